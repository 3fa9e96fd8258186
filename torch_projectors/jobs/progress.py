"""How far a job is, and how long it will take."""

from __future__ import annotations

import importlib.util
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Callable

SECONDS_BETWEEN_LINES = 10.0


def say(text: str) -> None:
    """Once for all processes of a job."""
    if os.environ.get("RANK", "0") == "0":
        print(text, file=sys.stderr, flush=True)


@contextmanager
def bar(task: str, total: int, done: int = 0, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """What it gives is told how many more are done. On a terminal a bar, if rich is installed; else lines."""
    if not shown:
        yield lambda more: None
    elif sys.stderr.isatty() and importlib.util.find_spec("rich") is not None:
        with _rich_bar(task, total, done) as advance:
            yield advance
    else:
        yield _Lines(task, total, done)


@contextmanager
def _rich_bar(task: str, total: int, done: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}/s"),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True)) as progress:
        name = progress.add_task(task, total=total, completed=done, rate="")
        start, made = time.monotonic(), 0

        def advance(more: int) -> None:
            nonlocal made
            made += more
            rate = made / max(time.monotonic() - start, 1e-9)
            progress.update(name, advance=more, rate=f"{rate:.0f}")

        yield advance


class _Lines:
    def __init__(self, task: str, total: int, done: int) -> None:
        self.task, self.total, self.first, self.done = task, total, done, done
        self.start = self.last = time.monotonic()

    def __call__(self, more: int) -> None:
        self.done += more
        now = time.monotonic()
        if now - self.last < SECONDS_BETWEEN_LINES and self.done < self.total:
            return
        self.last = now
        rate = (self.done - self.first) / max(now - self.start, 1e-9)
        left = (
            f", {(self.total - self.done) / rate:.0f} s left" if rate > 0 and self.done < self.total else ""
        )
        say(f"{self.task}: {self.done} of {self.total}, {rate:.0f}/s{left}")
