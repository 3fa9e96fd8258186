"""Processes that share a job, as torchrun starts them; one process where it does not."""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Optional

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import InputError, first_line


class RankError(InputError):
    """Another process is gone."""


class Ranks:
    """This process's number among `size`, and what they do together."""

    def __init__(self, rank: int, size: int, device: torch.device) -> None:
        self.rank, self.size, self.device = rank, size, device

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum_(self, x: Tensor) -> None:
        """In place the sum over all, on the first; on the others x is of no more use."""
        if self.size > 1:
            with _others():
                dist.reduce(torch.view_as_real(x) if x.is_complex() else x, 0)

    def collected(self, x: Any) -> list[Any]:
        """Of every rank what it gave, on the first; on the others nothing."""
        if self.size == 1:
            return [x]
        everyone: Optional[list[Any]] = [None] * self.size if self.first else None
        with _others():
            dist.gather_object(x, everyone, 0)
        return everyone or []

    def gathered(self, x: Any) -> list[Any]:
        """Of every rank what it gave, on all."""
        if self.size == 1:
            return [x]
        everyone: list[Any] = [None] * self.size
        with _others():
            dist.all_gather_object(everyone, x)
        return everyone


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankError(
            f"another process of this job has ended: see its message ({first_line(error)})"
        ) from error


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The processes of this job. `cuda` without a number is a device of its own for each process of a machine."""
    size, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    if device == "cuda" and size > 1:
        device = f"cuda:{int(os.environ.get('LOCAL_RANK', rank)) % max(torch.cuda.device_count(), 1)}"
    chosen = checked_device(device)
    if size == 1:
        yield Ranks(0, 1, chosen)
        return
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)  # where NCCL puts what it sends
    # A rank that has more to read may be waited for a long time; one that has died is noticed at once.
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=datetime.timedelta(days=30))
    try:
        yield Ranks(rank, size, chosen)
    finally:
        dist.destroy_process_group()


def checked_device(device: str) -> torch.device:
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).item()  # which a device without data has not
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"--device: cannot compute on {device!r}: {first_line(error)}") from error
    return chosen
