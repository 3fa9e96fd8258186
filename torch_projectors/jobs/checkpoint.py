"""What an interrupted job keeps: results so far, and which pieces of the work are in them."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError, first_line
from ..outputs import OutputError
from .progress import say
from .ranks import Ranks


def fingerprint(files: Sequence[Path], options: Mapping[str, Any], more: Any) -> str:
    """Of all that results depend on: contents of files, options, and what tells that other files are the same."""
    digest = hashlib.sha256(json.dumps([options, more], sort_keys=True, default=str).encode())
    for path in files:
        with open(path, "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


class Checkpoint:
    """A folder beside the output, with a file of each process.

    Attributes:
        done: numbers of the pieces that this process's results hold.
        elsewhere: those that results of an earlier run hold which another process took over.
        bad: particles left out, and why.
        results: what this process took over, a list of what was given to `save`.
    """

    def __init__(self, output: Path, key: str) -> None:
        self.folder = output.with_name(output.name + ".partial")
        self.key = key
        self.done: list[int] = []
        self.elsewhere: set[int] = set()
        self.bad: dict[int, str] = {}
        self.results: list[Any] = []
        # Never the name of an earlier run's file, which another process may still have to take over.
        self._path = self.folder / f"{secrets.token_hex(8)}.pt"
        self._merged: list[Path] = []

    @classmethod
    def opened(cls, output: Path, key: str, resume: bool, overwrite: bool, ranks: Ranks) -> Checkpoint:
        """With what an interrupted run left, to resume that; otherwise there may be nothing left, or it is removed."""
        checkpoint = cls(output, key)
        found = any(ranks.gathered(checkpoint.folder.is_dir() and any(checkpoint.folder.glob("*.pt"))))
        if found and not resume:
            if not overwrite:
                raise OutputError(
                    f"{checkpoint.folder} was left by an interrupted run: go on with --resume, or begin anew with "
                    "--overwrite"
                )
            if ranks.first:
                checkpoint.remove()
        if resume:
            say(f"going on from {checkpoint.folder}" if found else f"no {checkpoint.folder}: from the start")
        if found and resume:
            checkpoint._load(ranks.rank, ranks.size)
        ranks.gathered(None)  # before any of them saves, and so removes
        return checkpoint

    def left(self, pieces: int, ranks: Ranks) -> list[int]:
        """The numbers of the pieces that this process has to do."""
        finished = self.elsewhere.union(self.done)
        return [i for i in range(pieces) if i not in finished][ranks.rank :: ranks.size]

    def _load(self, rank: int, size: int) -> None:
        """This process's share of what the processes of the last run left, more or fewer though they were."""
        left = [(path, self._read(path)) for path in sorted(self.folder.glob("*.pt"))]
        # Who was stopped between saving and removing left a file that another one contains.
        seen: set[int] = set()
        current = []
        for path, state in sorted(left, key=lambda item: -len(item[1]["done"])):
            if not seen.issuperset(state["done"]):
                current.append((path, state))
                seen.update(state["done"])
            elif rank == 0:
                self._merged.append(path)
        for i, (path, state) in enumerate(current):
            if i % size != rank:
                self.elsewhere.update(state["done"])
                continue
            self.done += state["done"]
            self.bad.update(state["bad"])
            self._merged.append(path)
            self.results.append(state["results"])

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state = torch.load(path, weights_only=True, mmap=True)
        except Exception as error:  # what torch raises for a file that is none is up to it
            raise InputError(f"{path}: expected what an interrupted run left; {first_line(error)}") from error
        if state["key"] != self.key:
            raise InputError(
                f"{self.folder} was left by a run with other options or other files: repeat that command with "
                "--resume, or remove the folder to begin anew"
            )
        return state

    def save(self, results: Any) -> None:
        """Replaces what this process saved or took over. Results: tensors, numbers, and lists of them."""
        state = {"key": self.key, "done": self.done, "bad": self.bad, "results": results}
        new = self._path.with_suffix(".new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, new)
            os.replace(new, self._path)
            for path in self._merged:
                path.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            new.unlink(missing_ok=True)
            with suppress(OSError):  # there if it holds what was kept earlier
                self.folder.rmdir()
            raise OutputError(f"cannot keep results in {self.folder}: {first_line(error)}") from error
        self._merged = []

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
