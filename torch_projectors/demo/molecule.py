"""A molecule of Gaussians: its map and its images are known in closed form, with no grid in between."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Optional

import torch
from torch import Tensor

from .. import realspace


class Molecule:
    """Atoms of mass 1 at `positions` [A, 3], (x, y, z) in pixels from the centre of the box, `width` pixels wide."""

    def __init__(self, positions: Tensor, width: float) -> None:
        self.positions = positions
        self.width = width

    @classmethod
    def fold(cls, size: int, atoms: int = 300, generator: Optional[torch.Generator] = None) -> Molecule:
        """A chain that wanders through two thirds of the box, so that no two views of it are alike."""
        radius, step = size / 3, size / 20
        place, heading = torch.zeros(3), torch.randn(3, generator=generator)
        chain = []
        for _ in range(atoms):
            heading = heading / heading.norm() + 0.6 * torch.randn(3, generator=generator)
            ahead = place + step * heading / heading.norm()
            if ahead.norm() > radius:
                heading = -ahead
                ahead = place + step * heading / heading.norm()
            place = ahead
            chain.append(place)
        positions = torch.stack(chain)
        return cls(positions - positions.mean(0), width=0.9)

    def map(self, size: int) -> Tensor:
        """The density, `[size, size, size]`, sampled without aliases."""
        shape = (size,) * 3
        return realspace.from_spectrum(self._spectrum(self.positions, shape), shape)

    def images(self, rotations: Tensor, shifts: Tensor, size: int) -> Tensor:
        """Projections `[P, size, size]` at poses `[P, 3, 3]`, `[P, 2]`: an atom at r goes to the x, y of M^T r."""
        places = (self.positions.to(rotations) @ rotations)[..., :2] + shifts[:, None]
        shape = (size,) * 2
        return realspace.from_spectrum(self._spectrum(places, shape), shape)

    def _spectrum(self, places: Tensor, shape: Sequence[int]) -> Tensor:
        """Half spectra of atoms at places `[..., A, d]`: a product of one factor an axis, summed over atoms."""
        factors = []
        for axis, n in enumerate(reversed(shape)):  # x first
            frequency = (torch.fft.fftfreq if axis else torch.fft.rfftfreq)(n, device=places.device)
            phase = -2 * math.pi * places[..., axis, None] * frequency
            factors.append(
                torch.polar(torch.exp(-2 * (math.pi * self.width * frequency) ** 2).expand_as(phase), phase)
            )
        if len(shape) == 2:
            return torch.einsum("...ax,...ay->...yx", *factors)
        return torch.einsum("...ax,...ay,...az->...zyx", *factors)
