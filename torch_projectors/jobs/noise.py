"""The power of noise by groups of particles, from what surrounds them in their images."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import realspace
from ..spectrum import radii, shell_sums
from .batches import Source, outside, without_background
from .progress import bar

IMAGES_OF_A_GROUP = 200
BATCH = 256


class Weights:
    """Inverse variances at the frequencies of images, by their groups `[P]` and the groups' variances by shell."""

    def __init__(self, groups: Tensor, variance: Tensor) -> None:
        self.groups, self.variance = groups, variance

    def __call__(self, index: Tensor, like: Tensor) -> Tensor:
        """Of particles `[n]`, for half spectra `[n, h, w//2+1]`: linear between shells, constant beyond the last."""
        radius = radii((like.shape[-2],) * 2)
        last = self.variance.shape[1] - 1
        below = radius.long().clamp(max=last)
        part = (radius - below).clamp(0, 1)
        curve = self.variance[self.groups[index]]
        between = curve[:, below] * (1 - part) + curve[:, (below + 1).clamp(max=last)] * part
        return between.reciprocal().to(like.device, like.real.dtype)


def by_group(source: Source, groups: Tensor, shown: bool = True) -> Tensor:
    """Variance of a component of an image's spectrum by shell, `[groups, box//2+1]`.

    Of up to 200 images of every group, the pixels outside the inscribed circle are transformed.
    """
    count = int(groups.max()) + 1
    order = torch.argsort(groups, stable=True)
    order = order[source.good[order]]
    first = torch.searchsorted(groups[order].contiguous(), torch.arange(count))
    place = torch.arange(len(order)) - first[groups[order]]
    chosen = order[place < IMAGES_OF_A_GROUP].sort().values
    n = source.full
    around = outside((n, n)).to(source.device, source.dtype)
    shells = (radii((n, n), torch.device(source.device)) + 0.5).long()
    highest = source.box // 2 + 1
    size = shell_sums(torch.ones(shells.shape, dtype=torch.float64, device=shells.device), shells, highest)
    total = torch.zeros(count, highest, dtype=torch.float64)
    images = torch.zeros(count, dtype=torch.float64)
    with bar("measuring noise", len(chosen), shown=shown) as advance:
        for piece in chosen.split(BATCH):
            x = source.particles.images(piece).to(source.device, source.dtype)
            usable = torch.isfinite(x.flatten(1).sum(1))
            x, index = without_background(x[usable]), piece[usable.cpu()]
            power = realspace.to_spectrum(x * around, 2).abs().square()
            total.index_add_(0, groups[index], (shell_sums(power, shells, highest) / size).cpu().double())
            images.index_add_(0, groups[index], torch.ones(len(index), dtype=torch.float64))
            advance(len(piece))
    # As much of it as there are pixels.
    variance = total / images.clamp(min=1)[:, None] * (n * n / around.sum().item())
    variance[:, 0] = variance[:, 1]  # the mean was taken away
    known = (images > 0) & (variance > 0).all(1)
    variance[~known] = variance[known].mean(0) if known.any() else 1.0
    return variance
