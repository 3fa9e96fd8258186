"""The case list: every geometry and interpolation with every option, for tests, verification and benchmarks alike."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from typing import NamedTuple, Optional

import torch
from torch import Tensor

from .geometry import INTERPOLATION_CODES, Geometry
from .spectrum import stored_shape


class Inputs(NamedTuple):
    """Canonical arguments of the ops. Volume and images are unrelated, and no half spectrum is Hermitian."""

    volume: Tensor
    images: Tensor
    weights: Tensor
    rotations: Tensor
    shifts: Optional[Tensor]


@dataclass(frozen=True)
class Case:
    """One geometry and its options. Shapes are real-space shapes in array order."""

    name: str
    volume_shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    interpolation: str
    oversampling: float = 1.0
    cutoff: Optional[float] = None
    batch: int = 1
    poses: int = 3
    rotation_batch: int = 1
    shift_batch: Optional[int] = 1  # None: no shifts
    stretch: float = 0.0  # how far matrices are from rotations
    aligned: bool = False  # matrices swap and mirror axes, so that samples lie on grid points
    pairs_once: bool = False

    def __str__(self) -> str:
        return f"{len(self.volume_shape)}D->{len(self.image_shape)}D {self.interpolation} {self.name}"

    @property
    def geometry(self) -> Geometry:
        cutoff = min(self.image_shape) / 2 if self.cutoff is None else self.cutoff
        code = INTERPOLATION_CODES[self.interpolation]
        return Geometry(self.volume_shape, self.image_shape, code, self.oversampling, cutoff, self.pairs_once)

    def inputs(self, dtype: torch.dtype = torch.complex128, device: str = "cpu") -> Inputs:
        """The same random numbers for every dtype and device."""
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def spectrum(*shape: int) -> Tensor:
            return torch.complex(normal(*shape), normal(*shape)).to(device, dtype)

        dims = len(self.volume_shape)
        volume = spectrum(self.batch, *stored_shape(self.volume_shape))
        images = spectrum(self.batch, self.poses, *stored_shape(self.image_shape))
        weights = normal(*images.shape).abs()
        matrices, _ = torch.linalg.qr(normal(self.rotation_batch, self.poses, dims, dims))
        if self.aligned:
            order = normal(self.rotation_batch, self.poses, dims).argsort(-1)
            matrices = torch.nn.functional.one_hot(order, dims) * matrices.sign()
        rotations = (matrices + self.stretch * normal(*matrices.shape)).contiguous()
        shifts = None
        if self.shift_batch is not None:
            shifts = 2 * normal(self.shift_batch, self.poses, len(self.image_shape))
        real = volume.real.dtype
        # Rounded once, so that every precision sees the same poses.
        rotations, shifts = [x if x is None else x.float().to(device, real) for x in (rotations, shifts)]
        return Inputs(volume, images, weights.to(device, real), rotations, shifts)


def _options(dims: int, image_dims: int) -> dict[str, dict]:
    """What varies beside geometry and interpolation, by name."""
    even, odd, box = (8, 8, 8), (7, 7, 7), (9, 6, 8)
    big, small = (12, 12, 12), (5, 6, 6)

    def shapes(volume: tuple[int, ...], image: tuple[int, ...]) -> dict:
        return {"volume_shape": volume[-dims:], "image_shape": image[-image_dims:]}

    return {
        "even": shapes(even, even),
        "odd": shapes(odd, odd),
        "unshifted": {**shapes(even, even), "shift_batch": None},
        "rectangular": {**shapes(box, (6, 9, 7)), "oversampling": 1.3},
        "oversampled": {**shapes(big, small), "oversampling": 2.0},
        "downsampled": shapes(big, small),
        "beyond the band": {**shapes(small, big), "cutoff": math.inf},
        "cutoff": {**shapes(even, odd), "cutoff": 2.2},
        "stretched": {**shapes(even, even), "stretch": 0.3, "oversampling": 1.5},
        "aligned": {**shapes(even, even), "aligned": True, "poses": 8},
        "pairs once": {**shapes(odd, even), "cutoff": math.inf, "pairs_once": True},
        "pairs once, unshifted": {**shapes(even, odd), "shift_batch": None, "pairs_once": True},
        "one batch of poses": {**shapes(even, odd), "batch": 2},
        "poses for each": {**shapes(odd, even), "batch": 2, "rotation_batch": 2, "shift_batch": 2},
        "shifts for each": {**shapes(even, even), "batch": 2, "shift_batch": 2},
        "rotations for each": {**shapes(even, even), "batch": 2, "rotation_batch": 2},
    }


GEOMETRIES = ((2, 2), (3, 2), (3, 3))

CASES = [
    Case(name, interpolation=interpolation, **options)
    for dims, image_dims in GEOMETRIES
    for interpolation in INTERPOLATION_CODES
    for name, options in _options(dims, image_dims).items()
]
