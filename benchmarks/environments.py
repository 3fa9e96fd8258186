"""Times by what the environment says, which a process reads once: each of several in processes of its own, in turn."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Callable

import torch

from .problems import DTYPES, Arrays, Problem, calls
from .timing import interleaved

LEVEL = "TORCH_PROJECTORS_CPU_LEVEL"
# To glibc: all memory comes from one heap of large pages, and what is freed there stays for the next results.
KEPT_MEMORY = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(1 << 40),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}


def child(arguments: dict[str, Any]) -> None:
    """Print the level in use, and seconds by number of the problem and by operation."""
    from torch_projectors_cpu import library

    torch.set_num_threads(arguments["threads"])
    device, turns = torch.device("cpu"), {}
    for number, fields in enumerate(arguments["problems"]):
        problem = Problem(*fields)
        for operation, call in calls(problem, Arrays(problem, DTYPES[arguments["dtype"]], device)).items():
            turns[f"{number} {operation}"] = call
    times = interleaved(turns, 3, device)
    print(json.dumps({"level": library.level(), "seconds": {n: t["median"] for n, t in times.items()}}))


def measure(
    environments: Mapping[str, Mapping[str, str]],
    problems: Sequence[Problem],
    processes: int,
    settings: dict[str, Any],
    progress: Callable[[str], None],
) -> dict[tuple[Problem, str], dict[str, dict[str, float]]]:
    """By problem and operation, and by name of the environment, median, least and greatest of the processes' medians.

    What asks for a level of vector instructions that the processor has not is left out.
    """
    seconds: dict[tuple[Problem, str], dict[str, list[float]]] = {}
    missing = set()
    arguments = {**settings, "problems": [list(vars(problem).values()) for problem in problems]}
    for turn in range(processes):
        for name, environment in environments.items():
            if name in missing:
                continue
            progress(f"{name}: process {turn + 1} of {processes}")
            run = subprocess.run(
                [sys.executable, "-m", "benchmarks.environments", json.dumps(arguments)],
                cwd=Path(__file__).parents[1],
                env={**os.environ, **environment},
                stdout=subprocess.PIPE,
                text=True,
                check=True,
            )
            result = json.loads(run.stdout)
            if result["level"] != environment.get(LEVEL, result["level"]):
                missing.add(name)
                continue
            for key, t in result["seconds"].items():
                number, operation = key.split()
                of = seconds.setdefault((problems[int(number)], operation), {})
                of.setdefault(name, []).append(t)
    return {
        key: {
            name: {"median": statistics.median(t), "min": min(t), "max": max(t)}
            for name, t in by_name.items()
        }
        for key, by_name in seconds.items()
    }


if __name__ == "__main__":
    child(json.loads(sys.argv[1]))
