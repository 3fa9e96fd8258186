"""Medians of interleaved repeats: what else the machine does falls on all contestants alike."""

from __future__ import annotations

import gc
import math
import statistics
import time
from typing import Any, Callable

import torch

# Shorter measurements are repeated to this many seconds: clocks and schedulers are coarse.
SHORTEST = 0.02


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def seconds(call: Callable[[], Any], number: int, device: torch.device) -> float:
    """Mean time of a call."""
    synchronize(device)
    start = time.perf_counter()
    for _ in range(number):
        call()
    synchronize(device)
    return (time.perf_counter() - start) / number


def interleaved(
    contestants: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, dict[str, float]]:
    """Median, least and greatest time of a call of each contestant, which take turns."""
    numbers = {}
    for name, call in contestants.items():
        seconds(call, 1, device)  # warm-up: kernels load, caches and allocators fill
        numbers[name] = math.ceil(SHORTEST / max(seconds(call, 1, device), 1e-6))
    times: dict[str, list[float]] = {name: [] for name in contestants}
    gc.collect()
    for _ in range(repeats):
        for name, call in contestants.items():
            seconds(call, 1, device)  # what others left in caches and allocators
            times[name].append(seconds(call, numbers[name], device))
    return {name: {"median": statistics.median(t), "min": min(t), "max": max(t)} for name, t in times.items()}
