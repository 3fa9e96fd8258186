"""The definitions, literally: float64 loops over samples and taps, and spectra read frequency by frequency.

Arrays are numpy, in the canonical shapes of the ops. Frequencies and positions are (x, y[, z]); shapes are
real-space shapes in array order.
"""

from __future__ import annotations

import cmath
import itertools
import math
from collections.abc import Iterator
from functools import cache

import numpy as np

from torch_projectors.geometry import Geometry

Frequency = tuple[int, ...]


def axis_frequencies(n: int) -> list[int]:
    return [i if i <= n // 2 else i - n for i in range(n)]


def stored_frequencies(shape: tuple[int, ...]) -> list[Frequency]:
    """The frequency of every component of a half spectrum, in memory order."""
    axes = [axis_frequencies(n) for n in shape[:-1]] + [list(range(shape[-1] // 2 + 1))]
    return [frequency[::-1] for frequency in itertools.product(*axes)]


@cache
def lattice(shape: tuple[int, ...]) -> dict[Frequency, tuple[int, bool]]:
    """Where each frequency of the extended lattice is stored (in memory order), and whether conjugated."""
    sizes = shape[::-1]
    position = {frequency: i for i, frequency in enumerate(stored_frequencies(shape))}
    table = {}
    for q in itertools.product(*[range(-(n // 2), n // 2 + 1) for n in sizes]):
        mirrored = q[0] < 0
        stored = tuple(-a for a in q) if mirrored else q
        # On even n the frequency -n/2 is stored as +n/2.
        stored = tuple(n // 2 if 2 * a == -n else a for a, n in zip(stored, sizes))
        table[q] = position[stored], mirrored
    return table


def value(spectrum: np.ndarray, shape: tuple[int, ...], q: Frequency) -> complex:
    """Frequency q of a half spectrum, extended by Friedel's law; zero outside."""
    if q not in lattice(shape):
        return 0
    index, mirrored = lattice(shape)[q]
    x = spectrum.reshape(-1)[index]
    return np.conj(x) if mirrored else x


def keys(t: float) -> float:
    t = abs(t)
    if t <= 1:
        return 1.5 * t**3 - 2.5 * t**2 + 1
    return -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2 if t < 2 else 0.0


def axis_taps(p: float, interpolation: int) -> list[tuple[int, float]]:
    if interpolation == 0:
        return [(math.floor(p + 0.5), 1.0)]
    first = math.floor(p)
    if interpolation == 1:
        return [(first, first + 1 - p), (first + 1, p - first)]
    return [(q, keys(p - q)) for q in range(first - 1, first + 3)]


def taps(position: tuple[float, ...], geometry: Geometry) -> Iterator[tuple[int, bool, float]]:
    """Where the taps around a position are stored, whether conjugated, and their weights."""
    table = lattice(tuple(geometry.volume_shape))
    for combination in itertools.product(*[axis_taps(p, geometry.interpolation) for p in position]):
        found = table.get(tuple([q for q, _ in combination]))
        if found is not None:
            yield (*found, math.prod([weight for _, weight in combination]))


def samples(geometry: Geometry, rotation: np.ndarray) -> Iterator[tuple[int, Frequency, tuple[float, ...]]]:
    """Every component inside the cutoff: its place in memory order, frequency, and position in the volume."""
    for i, k in enumerate(stored_frequencies(geometry.image_shape)):
        if sum(a * a for a in k) <= geometry.cutoff**2:
            yield (
                i,
                k,
                tuple(
                    [geometry.oversampling * sum(m * a for m, a in zip(row, k)) for row in rotation.tolist()]
                ),
            )


def phase(k: Frequency, shift: np.ndarray | None, shape: tuple[int, ...]) -> complex:
    if shift is None:
        return 1
    return cmath.exp(-2j * math.pi * sum(a * s / n for a, s, n in zip(k, shift.tolist(), shape[::-1])))


def counted(k: Frequency, geometry: Geometry) -> float:
    """How much an entry of an image counts in the pairing with a volume."""
    both = k[0] == 0 or 2 * k[0] == geometry.image_shape[-1]
    return 0.5 if geometry.pairs_once and both else 1.0


def stored_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    return (*shape[:-1], shape[-1] // 2 + 1)


def _poses(batch: int, rotations: np.ndarray, shifts: np.ndarray | None) -> Iterator[tuple]:
    for b in range(batch):
        for pose in range(rotations.shape[1]):
            shift = None if shifts is None else shifts[b if len(shifts) > 1 else 0, pose]
            yield b, pose, rotations[b if len(rotations) > 1 else 0, pose], shift


def gather(
    volume: np.ndarray, rotations: np.ndarray, shifts: np.ndarray | None, geometry: Geometry
) -> np.ndarray:
    """Images [B, P, ...] of volumes [B, ...]. Of real ones, interpolation weights count by modulus."""
    absolute = not np.iscomplexobj(volume)
    images = np.zeros(
        (len(volume), rotations.shape[1], math.prod(stored_shape(geometry.image_shape))), volume.dtype
    )
    flat = [v.reshape(-1).tolist() for v in volume]
    for b, pose, rotation, shift in _poses(len(volume), rotations, shifts):
        for i, k, position in samples(geometry, rotation):
            total = 0
            for index, mirrored, weight in taps(position, geometry):
                x = flat[b][index]
                total += abs(weight) * x if absolute else weight * (x.conjugate() if mirrored else x)
            images[b, pose, i] = total * phase(k, shift, geometry.image_shape) * counted(k, geometry)
    return images.reshape(*images.shape[:2], *stored_shape(geometry.image_shape))


def scatter(
    images: np.ndarray,
    weights: np.ndarray,
    rotations: np.ndarray,
    shifts: np.ndarray | None,
    geometry: Geometry,
) -> tuple[np.ndarray, np.ndarray]:
    """The transpose of gather, of images and of weights: volumes [B, ...]."""
    shape = stored_shape(geometry.volume_shape)
    volume = np.zeros((len(images), math.prod(shape)), complex)
    weight_volume = np.zeros(volume.shape)
    for b, pose, rotation, shift in _poses(len(images), rotations, shifts):
        image, image_weights = images[b, pose].reshape(-1), weights[b, pose].reshape(-1)
        for i, k, position in samples(geometry, rotation):
            count = counted(k, geometry)
            x = count * complex(image[i]) * phase(k, shift, geometry.image_shape).conjugate()
            for index, mirrored, weight in taps(position, geometry):
                volume[b, index] += weight * (x.conjugate() if mirrored else x)
                weight_volume[b, index] += abs(weight) * count * image_weights[i]
    return volume.reshape(-1, *shape), weight_volume.reshape(-1, *shape)


def insert(
    images: np.ndarray,
    weights: np.ndarray,
    rotations: np.ndarray,
    shifts: np.ndarray | None,
    geometry: Geometry,
) -> tuple[np.ndarray, np.ndarray]:
    """Reconstruction: every component of the full spectra and its mate, once."""
    image_shape, volume_shape = geometry.image_shape, tuple(geometry.volume_shape)

    def paired(k: Frequency, width: int) -> bool:
        return k[0] == 0 or 2 * k[0] == width

    half = np.array([0.5 if paired(k, image_shape[-1]) else 1.0 for k in stored_frequencies(image_shape)])
    half = half.reshape(stored_shape(image_shape))
    volume, weight_volume = scatter(images * half, weights * half, rotations, shifts, geometry)
    result, weight_result = volume.copy(), weight_volume.copy()
    for i, k in enumerate(stored_frequencies(volume_shape)):
        if paired(k, volume_shape[-1]):
            # The mate of a paired component is stored as itself, not as this one conjugated.
            mate = tuple(-a for a in k[1:])
            j, _ = lattice(volume_shape)[(k[0], *mate)]
            for b in range(len(volume)):
                result[b].reshape(-1)[i] += np.conj(volume[b].reshape(-1)[j])
                weight_result[b].reshape(-1)[i] += weight_volume[b].reshape(-1)[j]
    return result, weight_result
