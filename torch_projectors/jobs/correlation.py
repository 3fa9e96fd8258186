"""How well two maps agree, shell by shell, and what a mask adds to that by itself."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .. import realspace
from ..spectrum import radii

# Beyond where maps without a mask agree so well, phases are drawn anew to see what the mask alone does.
RANDOM_BELOW = 0.8
THRESHOLDS = (0.5, 0.143)


class Curves(NamedTuple):
    """Shell correlations `[N//2+1]`; without a mask the first one alone, which `best` then is."""

    unmasked: Tensor
    masked: Optional[Tensor] = None
    random: Optional[Tensor] = None
    corrected: Optional[Tensor] = None

    @property
    def best(self) -> Tensor:
        return self.unmasked if self.corrected is None else self.corrected

    def present(self) -> dict[str, Tensor]:
        return {name: curve for name, curve in self._asdict().items() if curve is not None}

    def facts(self, box: int, pixel_size: float) -> dict[str, Any]:
        """Resolutions in Å, and the curves, as numbers to keep."""
        return {
            "resolution_angstrom": {
                f"{t:g}": box * pixel_size / max(1.0, realspace.fsc_crossing(self.best, t).item())
                for t in THRESHOLDS
            },
            "fsc": {
                name: [round(value, 5) for value in curve.tolist()] for name, curve in self.present().items()
            },
        }


def compare(a: Tensor, b: Tensor, mask: Optional[Tensor] = None, seed: int = 0) -> Curves:
    """Of maps `[D, H, W]`; with a mask `[D, H, W]` of values from 0 to 1 also inside it.

    A mask makes maps that share nothing correlate too. How much, is seen from maps whose phases beyond some shell s are
    random: with t the masked correlation and r that, (t - r) / (1 - r) is the corrected one from shell s + 2 on.
    """
    unmasked = realspace.fsc(a, b)
    if mask is None:
        return Curves(unmasked)
    masked = realspace.fsc(a * mask, b * mask)
    below = torch.nonzero(unmasked[1:] < RANDOM_BELOW)
    first = int(below[0]) + 1 if len(below) else len(unmasked)
    generator = torch.Generator().manual_seed(seed)
    random = realspace.fsc(*(_with_random_phases(x, first, generator) * mask for x in (a, b)))
    corrected = masked.clone()
    late = slice(min(first + 2, len(masked)), None)
    corrected[late] = ((masked - random) / (1 - random).clamp(min=1e-6))[late]
    return Curves(unmasked, masked, random, corrected)


def _with_random_phases(x: Tensor, first: int, generator: torch.Generator) -> Tensor:
    """The map with the same amplitudes, and from shell `first` on with phases of a map of noise."""
    noise = realspace.to_spectrum(torch.randn(x.shape, generator=generator, dtype=x.dtype).to(x.device), 3)
    spectrum = realspace.to_spectrum(x, 3)
    changed = spectrum.abs() * torch.polar(torch.ones_like(noise.real), noise.angle())
    far = radii(x.shape, x.device) + 0.5 >= first
    return realspace.from_spectrum(torch.where(far, changed, spectrum), x.shape)
