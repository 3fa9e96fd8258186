"""Peak memory of an operation beyond its inputs and outputs, each measured in a process of its own.

On the CPU a second process makes the same inputs and holds outputs of the same sizes; its peak is subtracted.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import astuple
from pathlib import Path
from typing import Any

import torch

import torch_projectors

from .problems import DTYPES, Arrays, Problem, calls

MEGABYTE = 1e6


def peak() -> int:
    """The most memory that this process ever held, in bytes."""
    if sys.platform == "linux":
        # ru_maxrss would include the peak of the process that started this one.
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return 1024 * int(line.split()[1])
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def outputs(operation: str, arrays: Arrays) -> list[torch.Tensor]:
    """Written tensors of the sizes of all that an operation returns or, for gradients, saves as a result."""
    a = arrays
    like = {
        "forward": [a.images],
        "backward": [a.volume, a.volume.real],
        "gradient": [a.images, a.volume, a.rotations, a.shifts],
    }[operation]
    return [torch.full_like(x, 1, memory_format=torch.contiguous_format) for x in like]


def child(arguments: dict[str, Any]) -> None:
    """Print the peak, in bytes, of one operation (or of its inputs and outputs alone)."""
    operation, dtype = arguments["operation"], DTYPES[arguments["dtype"]]
    device = torch.device(arguments["device"])
    torch.set_num_threads(arguments["threads"])
    with torch_projectors.use_backend(arguments["backend"]):
        # What a first call loads and starts is no array.
        small = Problem(*arguments["problem"][:2], 8, 2)
        calls(small, Arrays(small, dtype, device))[operation]()
        problem = Problem(*arguments["problem"])
        arrays = Arrays(problem, dtype, device)
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        run = calls(problem, arrays)[operation]
        held = outputs(operation, arrays) if arguments["baseline"] else run()
    print(torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak())
    del held


def measure(problem: Problem, operation: str, settings: dict[str, Any]) -> dict[str, float]:
    """Megabytes: the arrays (inputs and outputs), and the peak beyond them."""
    peaks = {}
    for baseline in (True, False):
        arguments = {
            **settings,
            "problem": astuple(problem),
            "operation": operation,
            "baseline": baseline,
        }
        run = subprocess.run(
            [sys.executable, "-m", "benchmarks.memory", json.dumps(arguments)],
            cwd=Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        peaks[baseline] = int(run.stdout)
    return {
        "baseline_mb": peaks[True] / MEGABYTE,
        "beyond_mb": (peaks[False] - peaks[True]) / MEGABYTE,
    }


if __name__ == "__main__":
    child(json.loads(sys.argv[1]))
