"""How the CPU backend's time and memory depend on all else: what docs/speed.md shows, whose tables are in speed.py."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Callable

import torch

from torch_projectors.spectrum import stored_shape

from . import environments, large, memory
from .problems import DTYPES, OPERATIONS, Arrays, Problem, calls, kernel_calls
from .timing import interleaved

CPU = torch.device("cpu")
Calls = dict[str, Callable[[], Any]]
Row = dict[str, Any]


@dataclass(frozen=True)
class Sizes:
    poses: tuple[tuple[int, int], ...] = ((64, 256), (128, 64), (256, 32))  # (box, poses)
    # As many samples to a percent or two, from as many bytes: the image is as large as the volumes.
    geometries: tuple[tuple[str, int, int], ...] = (("3-2", 128, 260), ("3-3", 128, 3), ("2-2", 1458, 2))
    call: tuple[int, int] = (32, 8)
    memory: tuple[tuple[int, ...], tuple[int, ...]] = ((64, 128), (16, 128, 1024))  # boxes, poses
    memory_operations: tuple[str, ...] = OPERATIONS
    along_box: tuple[tuple[int, ...], int] = ((32, 48, 64, 96, 128, 192, 256), 64)
    along_poses: tuple[int, tuple[int, ...]] = (128, (1, 2, 4, 8, 16, 32, 64, 128, 256, 512))
    levels: tuple[str, ...] = ("baseline", "avx2", "avx512")
    processes: int = 5  # of each level
    level: tuple[int, int] = (128, 64)
    large: tuple[int, tuple[int, ...]] = (512, (64, 512))


QUICK = Sizes(
    poses=((32, 2),),
    geometries=(("3-2", 16, 40), ("3-3", 16, 3), ("2-2", 64, 2)),
    memory=((32,), (16,)),
    memory_operations=("forward",),
    along_box=((16, 32), 2),
    along_poses=(16, (1, 4)),
    levels=("baseline",),
    processes=1,
    level=(32, 2),
    large=(32, (2, 4)),
)


@dataclass(frozen=True)
class Run:
    sizes: Sizes
    dtype: str
    repeats: int
    progress: Callable[[str], None]

    def arrays(self, problem: Problem) -> Arrays:
        return Arrays(problem, DTYPES[self.dtype], CPU)

    @property
    def settings(self) -> dict[str, Any]:
        """What processes of their own are told."""
        return {"dtype": self.dtype, "device": "cpu", "threads": torch.get_num_threads(), "backend": "cpu"}

    def turns(self, title: str, contestants: dict[Any, Calls]) -> Iterator[tuple[str, dict[Any, Any]]]:
        """Every operation, and its seconds by contestant."""
        for operation in OPERATIONS:
            of = {name: c[operation] for name, c in contestants.items() if operation in c}
            if of:
                self.progress(f"{title}: {operation}")
                yield operation, interleaved(of, self.repeats, CPU)


def described(problem: Problem, operation: str) -> Row:
    return {**vars(problem), "pixels": problem.pixels, "operation": operation}


def on_threads(number: int, of: Calls) -> Calls:
    def run(call: Callable[[], Any]) -> Any:
        torch.set_num_threads(number)
        return call()

    return {operation: partial(run, call) for operation, call in of.items()}


def apart(pool: ThreadPoolExecutor, kernels: list[Calls]) -> Calls:
    """All at once: each a call of one thread, with results of its own, that waits for no other."""

    def run(operation: str) -> None:
        for call in [pool.submit(kernel[operation]) for kernel in kernels]:
            call.result()

    return {operation: partial(run, operation) for operation in kernels[0]}


def threads(run: Run) -> Iterator[Row]:
    """One thread, and as many as PyTorch has been told to use; and what as many calls at once gain from their cores."""
    most = torch.get_num_threads()
    pool = ThreadPoolExecutor(most)
    for box, poses in run.sizes.poses:
        problem = Problem("3-2", "linear", box, poses)
        arrays = run.arrays(problem)
        ours = calls(problem, arrays)
        kernels = [kernel_calls(problem, arrays, threads=1) for _ in range(most)]
        contestants = {str(n): on_threads(n, ours) for n in sorted({1, most})}
        contestants |= {"kernel": kernels[0], "apart": apart(pool, kernels)}
        for operation, seconds in run.turns(f"threads, box {box}", contestants):
            medians = {name: s["median"] for name, s in seconds.items()}
            row = {
                **described(problem, operation),
                "seconds": seconds,
                "ratio": medians["1"] / medians[str(most)],
            }
            if "apart" in seconds:
                row["apart"] = most * medians["kernel"] / medians["apart"]
            yield row
    torch.set_num_threads(most)


def interpolation(run: Run) -> Iterator[Row]:
    for box, poses in run.sizes.poses:
        problems = {name: Problem("3-2", name, box, poses) for name in ("linear", "cubic")}
        arrays = run.arrays(problems["linear"])
        contestants = {name: calls(problem, arrays) for name, problem in problems.items()}
        for operation, seconds in run.turns(f"interpolation, box {box}", contestants):
            row = described(problems["linear"], operation)
            del row["interpolation"]
            ratio = seconds["cubic"]["median"] / seconds["linear"]["median"]
            yield {**row, "seconds": seconds, "ratio": ratio}


def geometry(run: Run) -> Iterator[Row]:
    """Time by sample, where samples are as many, and what they are taken from as large."""
    problems = [Problem(g, "linear", box, poses) for g, box, poses in run.sizes.geometries]
    contestants = {p.geometry: calls(p, run.arrays(p)) for p in problems}
    for operation, seconds in run.turns("geometry", contestants):
        by_sample = [1e9 * seconds[p.geometry]["median"] / (p.poses * p.pixels) for p in problems]
        for p, ns in zip(problems, by_sample):
            yield {
                **described(p, operation),
                "volume_bytes": math.prod(stored_shape(p.volume_shape)) * DTYPES[run.dtype].itemsize,
                "seconds": seconds[p.geometry],
                "ns_per_sample": ns,
                "ratio": ns / by_sample[0],
            }


def call(run: Run) -> Iterator[Row]:
    """What a small call takes above its kernel, as the C API runs it; ctypes is what this takes to be reached."""
    problem = Problem("3-2", "linear", *run.sizes.call)
    arrays = run.arrays(problem)
    idle = kernel_calls(replace(problem, poses=0), arrays)["forward"]
    contestants = {
        "public": calls(problem, arrays),
        "kernel": kernel_calls(problem, arrays),
        "ctypes": dict.fromkeys(("forward", "backward"), idle),
    }
    del contestants["public"]["gradient"]
    # A difference of times needs more rounds than a ratio.
    for operation, seconds in replace(run, repeats=5 * run.repeats).turns("call", contestants):
        public, kernel, ctypes = [seconds[name]["median"] for name in contestants]
        microseconds = 1e6 * (public - (kernel - ctypes))
        yield {**described(problem, operation), "seconds": seconds, "above_kernel_us": microseconds}


def memory_by_poses(run: Run) -> Iterator[Row]:
    boxes, poses = run.sizes.memory
    for box, operation, n in itertools.product(boxes, run.sizes.memory_operations, poses):
        run.progress(f"memory, box {box}, {n} poses: {operation}")
        problem = Problem("3-2", "linear", box, n)
        yield {**described(problem, operation), **memory.measure(problem, operation, run.settings)}


def scaling(run: Run) -> Iterator[Row]:
    """Along the box with poses fixed, and along the poses with the box fixed."""
    boxes, poses = run.sizes.along_box
    problems = {str(box): Problem("3-2", "linear", box, poses) for box in boxes}
    contestants = {name: calls(p, run.arrays(p)) for name, p in problems.items()}
    yield from _along("box", run, problems, contestants)
    box, several = run.sizes.along_poses
    problems = {str(n): Problem("3-2", "linear", box, n) for n in several}
    arrays = run.arrays(problems[str(max(several))])
    contestants = {name: calls(p, arrays.first(p.poses)) for name, p in problems.items()}
    yield from _along("poses", run, problems, contestants)


def _along(what: str, run: Run, problems: dict[str, Problem], contestants: dict[str, Calls]) -> Iterator[Row]:
    for operation, seconds in run.turns(f"scaling along {what}", contestants):
        for name, p in problems.items():
            yield {"along": what, **described(p, operation), "seconds": seconds[name]}


def in_environments(
    run: Run, by_name: dict[str, dict[str, str]], problems: Sequence[Problem], dtype: str
) -> Iterator[Row]:
    """And how much faster than in the first."""
    settings = {**run.settings, "dtype": dtype}
    found = environments.measure(by_name, problems, run.sizes.processes, settings, run.progress)
    for (problem, operation), seconds in found.items():
        first = seconds[next(iter(by_name))]["median"]
        ratio = {name: first / t["median"] for name, t in seconds.items()}
        yield {**described(problem, operation), "dtype": dtype, "seconds": seconds, "ratio": ratio}


def by_level(run: Run) -> Iterator[Row]:
    problems = [Problem("3-2", name, *run.sizes.level) for name in ("linear", "cubic")]
    levels = {name: {environments.LEVEL: name} for name in run.sizes.levels}
    for dtype in DTYPES:
        yield from in_environments(run, levels, problems, dtype)


def kept_memory(run: Run) -> Iterator[Row]:
    """With memory for results from the system, and with what the process has kept of results before."""
    problems = [Problem("3-2", "linear", box, poses) for box, poses in run.sizes.poses]
    memory = {"as it is": {}, "kept": environments.KEPT_MEMORY}
    yield from in_environments(run, memory, problems, run.dtype)


def large_volume(run: Run) -> dict[str, Any]:
    sizes = run.sizes
    return large.run(*sizes.large, sizes.memory_operations, run.settings, run.repeats, run.progress)


# The largest last: where memory ends, all else has been measured.
PARTS: dict[str, Callable[[Run], Any]] = {
    "threads": threads,
    "interpolation": interpolation,
    "geometry": geometry,
    "call": call,
    "memory": memory_by_poses,
    "scaling": scaling,
    "levels": by_level,
    "kept": kept_memory,
    "large": large_volume,
}


def measure(part: str, run: Run) -> Any:
    results = PARTS[part](run)
    return results if isinstance(results, dict) else list(results)
