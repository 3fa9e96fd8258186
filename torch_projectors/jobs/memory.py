"""Whether a job fits into memory, before it starts."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from ..errors import InputError

GIB = 2**30


def available(device: torch.device) -> float:
    """Bytes that may be had; infinite where nothing tells."""
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    # The processes of a job on this machine share it.
    return min(_free(), _free_in_group()) / int(os.environ.get("LOCAL_WORLD_SIZE", 1))


def _free_in_group() -> float:
    """What a container, or a batch system, leaves of its limit."""
    try:
        limit, used = (Path("/sys/fs/cgroup", f"memory.{name}").read_text() for name in ("max", "current"))
        return float("inf") if limit.strip() == "max" else float(limit) - float(used)
    except (OSError, ValueError):
        return float("inf")


def _free() -> float:
    try:
        with open("/proc/meminfo") as file:
            lines = dict(line.split(":", 1) for line in file)
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        pass
    try:
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return float("inf")


def peak() -> float:
    """The most bytes that this process has held; 0 where the system does not tell."""
    try:
        import resource
    except ImportError:
        return 0.0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(most if sys.platform == "darwin" else most * 1024)


def check(
    needed: float, fixed: float, box: int, oversampling: float, device: torch.device, with_box: bool = True
) -> None:
    """An error where `needed` bytes are not there; all but `fixed` grow as (box * oversampling)^3."""
    there = available(device)
    if needed <= there:
        return
    share = max((there - fixed) / (needed - fixed), 0.0) ** (1 / 3)
    smaller, less = int(box * share) // 2 * 2, oversampling * share
    fits = [f"--box {smaller}"] if with_box and smaller >= 16 else []
    if less >= 1:
        fits.append(f"--oversampling {int(less * 10) / 10:g}")
    raise InputError(
        f"a box of {box} with oversampling {oversampling:g} takes {needed / GIB:.1f} GiB, and {there / GIB:.1f} GiB "
        f"are free on {device}; {' or '.join(fits) or 'nothing smaller'} would fit"
    )
