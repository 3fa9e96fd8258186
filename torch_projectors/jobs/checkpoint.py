"""What an interrupted reconstruction keeps: the sums so far, and which pieces of the work are in them."""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError
from ..insertion import Insertion
from ..outputs import OutputError


def fingerprint(star: Path, options: Mapping[str, Any]) -> str:
    """Of all that the sums depend on."""
    digest = hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode())
    with open(star, "rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


class Checkpoint:
    """A folder beside the output, with a file of each process.

    Attributes:
        done: numbers of the pieces that this process's sums hold.
        elsewhere: those that sums of other processes of an earlier run hold, which another process took over.
        bad: particles left out, and why.
    """

    def __init__(self, output: Path, key: str) -> None:
        self.folder = output.with_name(output.name + ".partial")
        self.key = key
        self.done: list[int] = []
        self.elsewhere: set[int] = set()
        self.bad: dict[int, str] = {}
        # Never the name of an earlier run's file, which another process may still have to take over.
        self._path = self.folder / f"{secrets.token_hex(8)}.pt"
        self._merged: list[Path] = []

    def exists(self) -> bool:
        return self.folder.is_dir() and any(self.folder.glob("*.pt"))

    def load(self, halves: list[Insertion], rank: int = 0, size: int = 1) -> None:
        """Take over this process's share of what the processes of the last run left, more or fewer though they were."""
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
            for half, (data, weight, images) in zip(halves, state["halves"]):
                half.data += data.to(half.data.device)
                half.weight += weight.to(half.weight.device)
                half.images += images

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            state = torch.load(path, weights_only=True, mmap=True)
        except Exception as error:  # what torch raises for a file that is none is up to it
            raise InputError(f"{path}: expected what an interrupted run left; {error}") from error
        if state["key"] != self.key:
            raise InputError(
                f"{self.folder} was left by a run with other options or another STAR file: repeat that command with "
                "--resume, or remove the folder to begin anew"
            )
        return state

    def save(self, halves: list[Insertion]) -> None:
        """Replaces what this process saved or took over."""
        state = {
            "key": self.key,
            "done": self.done,
            "bad": self.bad,
            "halves": [(half.data.cpu(), half.weight.cpu(), half.images) for half in halves],
        }
        new = self._path.with_suffix(".new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            torch.save(state, new)
            os.replace(new, self._path)
            for path in self._merged:
                path.unlink(missing_ok=True)
        except (OSError, RuntimeError) as error:
            new.unlink(missing_ok=True)
            raise OutputError(f"cannot keep the sums in {self.folder}: {error}") from error
        self._merged = []

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
