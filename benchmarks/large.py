"""A volume of more bytes than 32 bits count: what a call takes, and whether results are right everywhere in it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Callable

import numpy as np
import torch
from torch import Tensor

from torch_projectors.spectrum import halved, with_mates_, within

from . import memory
from .problems import DTYPES, OPERATIONS, Arrays, Problem, calls
from .timing import interleaved

CPU = torch.device("cpu")
CHECKED = 2  # poses

# Positions up to half the volume's box are rounded to single precision, and are off by some 1e-4 at most: so are values
# of random volumes. Slopes jump where that takes a sample past a point of the lattice. Sums over all samples and all of
# the volume are better: errors are independent.
TOLERANCES = {"projections": 1e-3, "shifts": 1e-3, "rotations": 0.1, "adjoint": 1e-6, "weights": 1e-6}


def interpolated(volume: Tensor, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
    """Values [K] at positions `[K, 3]`, slopes [K, 3] along (x, y, z), and the furthest byte that was read."""
    flat, n = volume.reshape(-1).numpy(), len(volume)
    first = np.floor(positions)
    along = positions - first
    values, slopes, furthest = np.zeros(len(first), complex), np.zeros(first.shape, complex), 0
    for tap in itertools.product((0, 1), repeat=3):
        q = first.astype(np.int64) + tap
        mirrored = q[:, 0] < 0
        q[mirrored] *= -1
        inside = (abs(q) <= n // 2).all(1)
        x, y, z = np.where(q < 0, q + n, q)[inside].T
        index = (z * n + y) * (n // 2 + 1) + x
        furthest = max(furthest, flat.itemsize * int(index.max()))
        read = np.zeros(len(q), complex)
        read[inside] = flat[index]
        read[mirrored] = read[mirrored].conj()
        weights = np.where(tap, along, 1 - along)
        values += read * weights.prod(1)
        for axis in range(3):
            slopes[:, axis] += read * np.delete(weights, axis, 1).prod(1) * (2 * tap[axis] - 1)
    return values, slopes, furthest


def products(a: Tensor, b: Tensor) -> Iterator[Tensor]:
    """Re (conj(a) b) in float64, a slab at a time."""
    for x, y in zip(a.split(16), b.split(16)):
        yield (x.to(torch.complex128).conj() * y).real


def total(slabs: Iterable[Tensor], width: int) -> float:
    """The sum over the full spectrum by two, in float64."""
    return sum(halved(x.double(), width).sum().item() for x in slabs)


def difference(ours: Any, exact: np.ndarray) -> float:
    """The greatest, by the root mean square of what is exact."""
    return float(abs(np.asarray(ours) - exact).max() / np.sqrt(np.mean(abs(exact) ** 2)))


def checks(problem: Problem, arrays: Arrays) -> dict[str, float]:
    """Errors relative to the size of results, and the furthest byte of the volume that a checked pose reads."""
    a, box, width, run = arrays, problem.box, problem.volume_shape[-1], calls(problem, arrays)
    with_mates_(
        a.volume, problem.volume_shape
    )  # a real volume's spectrum, which the adjoint identity is about
    index, k = within(problem.image_shape, box / 2)
    found = dict.fromkeys(TOLERANCES, 0.0)

    images = run["forward"]()
    expected = total(products(images, a.images), box)
    size = math.sqrt(total(products(images, images), box) * total(products(a.images, a.images), box))
    volume, weight_volume = run["backward"]()
    found["adjoint"] = abs(total(products(a.volume, volume), width) - expected) / size
    # Of every sample the weights of its taps sum up to 1.
    inside = torch.zeros(a.weights[0].numel(), dtype=torch.bool)
    inside[index] = True
    inserted = total(a.weights * inside.view_as(a.weights[0]), box)
    found["weights"] = abs(total(weight_volume.split(16), width) / inserted - 1)
    del volume, weight_volume
    volume, rotations, shifts = run["gradient"]()
    stored = sum(slab.sum().item() for slab in products(a.volume, volume))
    found["adjoint"] = max(found["adjoint"], abs(stored - expected) / size)
    del volume

    k = np.stack(k, 1)
    furthest = 0
    for pose in range(min(CHECKED, problem.poses)):
        matrix = problem.oversampling * a.rotations[pose, :, :2].double().numpy()
        values, slopes, last = interpolated(a.volume, k @ matrix.T)
        phase = np.exp(-2j * np.pi / box * (k @ a.shifts[pose].double().numpy()))
        values, slopes = values * phase, slopes * phase[:, None]
        along = halved(a.images[pose], box).flatten()[index].numpy().conj()
        by_matrix = np.einsum("k,ka,kb->ab", along, slopes, k).real * problem.oversampling
        by_shift = (along * values @ (-2j * np.pi / box * k)).real
        ours = {
            "projections": (images[pose].flatten()[index], values),
            "rotations": (rotations[pose, :, :2], by_matrix),
            "shifts": (shifts[pose], by_shift),
        }
        for name, pair in ours.items():
            found[name] = max(found[name], difference(*pair))
        furthest = max(furthest, last)
    for name, error in found.items():
        if not error <= TOLERANCES[name]:
            raise RuntimeError(f"{name} of {problem} are off by {error:.1e}")
    return {**found, "furthest_byte": furthest, "pixels": len(k) * min(CHECKED, problem.poses)}


def run(
    box: int,
    poses: Sequence[int],
    operations: Sequence[str],
    settings: dict[str, Any],
    repeats: int,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Linear slices at oversampling 2. Memory, of the operations named, is that of the least number of poses."""
    problems = [Problem("3-2", "linear", box, n, 2.0) for n in sorted(poses)]
    held = {}
    for operation in operations:
        progress(f"large, memory: {operation}")
        held[operation] = memory.measure(problems[0], operation, settings)
    progress("large, checks")
    arrays = Arrays(problems[-1], DTYPES[settings["dtype"]], CPU)
    checked = checks(problems[0], arrays.first(problems[0].poses))
    rows = []
    for operation in OPERATIONS:
        progress(f"large, time: {operation}")
        turns = {str(p.poses): calls(p, arrays.first(p.poses))[operation] for p in problems}
        times = interleaved(turns, repeats, CPU)
        rows += [
            {**vars(p), "pixels": p.pixels, "operation": operation, "seconds": times[str(p.poses)]}
            for p in problems
        ]
    return {"times": rows, "memory": held, "checks": checked}
