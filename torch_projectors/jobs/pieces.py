"""The work of a job piece by piece: with a bar, saved from time to time, and when it is cut short."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Callable

from torch import Tensor

from ..errors import InputError
from ..outputs import OutputError
from . import interrupts, progress
from .batches import Batch, Source
from .checkpoint import Checkpoint
from .interrupts import Interrupted
from .ranks import Ranks


@contextmanager
def keeping(checkpoint: Checkpoint) -> Iterator[None]:
    """All pieces are done and kept: whatever ends this says so."""
    try:
        yield
    except (InputError, OutputError, KeyboardInterrupt) as error:
        kept = f"what came of the particles is kept in {checkpoint.folder}: go on with --resume"
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"interrupted; {kept}") from None
        raise type(error)(f"{error}; {kept}") from error


@contextmanager
def finishing(checkpoint: Checkpoint, images: int, bad: dict[int, str]) -> Iterator[None]:
    """Results of so many images are made and written: at the end nothing is kept any longer."""
    if images == 0:
        checkpoint.remove()
        raise InputError(f"no image is left to work on: {next(iter(bad.values()), 'there are none')}")
    with keeping(checkpoint):
        yield
    checkpoint.remove()


def work_through(
    task: str,
    pieces: Sequence[Tensor],
    source: Source,
    work: Callable[[Batch], None],
    results: Callable[[], Any],
    checkpoint: Checkpoint,
    minutes: float,
    ranks: Ranks,
) -> None:
    """Do what is left of the pieces, indices `[n]` of particles; `results` gives what the checkpoint has to keep."""
    if not minutes > 0:
        raise InputError(f"--checkpoint-minutes: expected a number > 0, got {minutes:g}")
    source.bad.update(checkpoint.bad)
    mine = checkpoint.left(len(pieces), ranks)
    good = (pieces[i][source.good[pieces[i]]] for i in mine)
    total = sum(len(pieces[i]) for i in mine)

    def keep() -> None:
        checkpoint.bad = source.bad
        checkpoint.save(results())

    with interrupts.deferred() as stop, progress.bar(task, total, shown=ranks.first) as advance:
        saved = time.monotonic()
        try:
            for i, batch in zip(mine, source.batches(good)):
                work(batch)
                checkpoint.done.append(i)
                advance(len(pieces[i]))
                if stop.requested:
                    raise Interrupted("interrupted")
                if time.monotonic() - saved > 60 * minutes:
                    keep()
                    saved = time.monotonic()
        except (Interrupted, InputError) as error:
            if not checkpoint.done:
                raise type(error)(f"{error}; no result was written") from error
            keep()
            count = sum(len(pieces[i]) for i in checkpoint.done)
            raise type(error)(
                f"{error}; what came of {count} particles is kept in {checkpoint.folder}: go on with --resume"
            ) from error
    keep()  # what comes now may fail too: another process, or the disk
