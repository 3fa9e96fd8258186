"""Particles in batches: read ahead of the work, checked, transformed, and with their transfer functions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .. import realspace
from ..errors import InputError
from ..files import Particles
from ..spectrum import cropped
from .progress import say


def outside(shape: Sequence[int]) -> Tensor:
    """Where a box `[..., H, W]` of equal axes has what surrounds the particle: outside the inscribed sphere."""
    square = torch.zeros(())
    for n in shape:
        square = square[..., None] + (torch.arange(n) - n // 2).square()
    return square > (min(shape) / 2) ** 2


def without_background(images: Tensor) -> Tensor:
    """Images `[n, H, W]` less their mean outside the inscribed circle: beside the particle there is nothing."""
    around = outside(images.shape[1:]).to(images)
    return images - (images * around).sum((1, 2), keepdim=True) / around.sum()


class Batch(NamedTuple):
    """n particles: which, half spectra `[n, h, w//2+1]` of their images, and as many transfer functions, or None."""

    index: Tensor
    spectra: Tensor
    ctf: Optional[Tensor]


class Source:
    """Where batches come from.

    Attributes:
        box: edge of the images in pixels, after cropping in Fourier space to a smaller one.
        pixel_size: theirs, in Å.
        bad: particles that are left out so far, and why, by index.
    """

    def __init__(
        self,
        particles: Particles,
        *,
        box: Optional[int] = None,
        with_ctf: bool = True,
        skip_bad: bool = False,
        expanded: bool = False,
        device: Any = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.particles, self.skip_bad, self.device, self.dtype = particles, skip_bad, device, dtype
        self.bad: dict[int, str] = particles.problems(expanded)
        if self.bad:
            self._leave_out_or_raise(self.bad)
        self.good = torch.ones(len(particles), dtype=torch.bool)
        self.good[list(self.bad)] = False
        if not self.good.any():
            raise InputError(f"{particles.path}: no particle has an image; {next(iter(self.bad.values()))}")
        first = int(torch.nonzero(self.good)[0])
        height, width = particles.stacks.header(int(particles.files[first])).shape[1:]
        if height != width:
            raise InputError(f"{particles.path}: expected square images, got {width} x {height} pixels")
        self.full = width
        self.box = width if box is None else box
        if not 8 <= self.box <= width:
            raise InputError(f"--box: expected 8 to {width}, the box of the images, got {box}")
        self.pixel_size = particles.pixel_size * width / self.box
        self.parameters = particles.ctf() if with_ctf else None
        # Of images whose phases were flipped only the sign of the transfer function is undone.
        self.flipped = particles.numbers("rlnCtfDataArePhaseFlipped", 0.0) != 0
        ignored = particles.not_applied()
        if ignored:
            say(f"note: {', '.join(ignored)} of {particles.path}: not applied")

    def _leave_out_or_raise(self, problems: dict[int, str]) -> None:
        if not self.skip_bad:
            example = next(iter(problems.values()))
            raise InputError(
                f"{len(problems)} of {len(self.particles)} particles cannot be used: {example}; --skip-bad leaves "
                "them out"
            )

    def stacks(self) -> list[tuple[str, int, int]]:
        """What tells that the stacks of images are still the same."""
        there = [path for path in self.particles.stacks.paths if path.is_file()]
        return [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in there]

    def batches(self, pieces: Iterable[Tensor]) -> Iterator[Batch]:
        """One for each piece, an index `[n]` of particles; without those that turn out to be bad."""
        with ThreadPoolExecutor(1) as reader:
            waiting = None
            for piece in pieces:
                ahead = piece, reader.submit(self.particles.images, piece)
                if waiting is not None:
                    yield self._batch(waiting[0], waiting[1].result())
                waiting = ahead
            if waiting is not None:
                yield self._batch(waiting[0], waiting[1].result())

    def _batch(self, index: Tensor, images: Tensor) -> Batch:
        if len(index) == 0:
            return self._none(index)
        images = images.to(self.device, self.dtype)
        least, most = images.flatten(1).aminmax(dim=1)
        usable = (torch.isfinite(most - least) & (most > least)).cpu()
        if not usable.all():
            bad = index[~usable].tolist()
            finite = torch.isfinite(most - least).cpu()[~usable].tolist()
            names = self.particles.table["rlnImageName"]
            found = {
                i: f"{names.iloc[i]}: "
                + ("all pixels have the same value" if ok else "pixels are not finite")
                for i, ok in zip(bad, finite)
            }
            self._leave_out_or_raise(found)
            self.bad.update(found)
            index, images = index[usable], images[usable.to(images.device)]
            if len(index) == 0:
                return self._none(index)
        images = without_background(images)
        spectra = cropped(realspace.to_spectrum(images, 2), (self.full,) * 2, (self.box,) * 2)
        return Batch(index, spectra, self.ctf(index))

    def _none(self, index: Tensor) -> Batch:
        # No library transforms nothing.
        shape = (0, self.box, self.box // 2 + 1)
        spectra = torch.zeros(shape, dtype=self.dtype.to_complex(), device=self.device)
        return Batch(index, spectra, None if self.parameters is None else spectra.real)

    def ctf(self, index: Tensor) -> Optional[Tensor]:
        """Transfer functions `[n, h, w//2+1]`."""
        if self.parameters is None:
            return None
        values = self.parameters[index].values(
            (self.box,) * 2, self.pixel_size, dtype=self.dtype, device=self.device
        )
        flipped = self.flipped[index].to(self.device)
        return torch.where(flipped[:, None, None], values.abs(), values) if flipped.any() else values
