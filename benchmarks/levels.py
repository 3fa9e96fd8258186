"""Times by level of vector instructions, which a process chooses once: each level in processes of its own, in turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Callable

import torch

from .problems import DTYPES, Arrays, Problem, calls
from .timing import interleaved

INTERPOLATIONS = ("linear", "cubic")


def child(arguments: dict[str, Any]) -> None:
    """Print the level in use, and seconds by interpolation and operation."""
    from torch_projectors_cpu import library

    torch.set_num_threads(arguments["threads"])
    device, turns = torch.device("cpu"), {}
    for interpolation in INTERPOLATIONS:
        problem = Problem("3-2", interpolation, arguments["box"], arguments["poses"])
        for operation, call in calls(problem, Arrays(problem, DTYPES[arguments["dtype"]], device)).items():
            turns[f"{interpolation} {operation}"] = call
    times = interleaved(turns, 3, device)
    print(json.dumps({"level": library.level(), "seconds": {n: t["median"] for n, t in times.items()}}))


def measure(
    levels: Sequence[str], rounds: int, arguments: dict[str, Any], progress: Callable[[str], None]
) -> dict[str, dict[str, dict[str, float]]]:
    """By interpolation and operation, and by level, the median, least and greatest of the processes' medians.

    Levels that the processor has not are left out.
    """
    seconds: dict[str, dict[str, list[float]]] = {}
    missing = set()
    for turn in range(rounds):
        for level in levels:
            if level in missing:
                continue
            progress(f"levels: {level}, process {turn + 1} of {rounds}")
            run = subprocess.run(
                [sys.executable, "-m", "benchmarks.levels", json.dumps(arguments)],
                cwd=Path(__file__).parents[1],
                env={**os.environ, "TORCH_PROJECTORS_CPU_LEVEL": level},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            result = json.loads(run.stdout)
            if result["level"] != level:
                missing.add(level)
                continue
            for name, t in result["seconds"].items():
                seconds.setdefault(name, {}).setdefault(level, []).append(t)
    return {
        name: {
            level: {"median": statistics.median(t), "min": min(t), "max": max(t)}
            for level, t in by_level.items()
        }
        for name, by_level in seconds.items()
    }


if __name__ == "__main__":
    child(json.loads(sys.argv[1]))
