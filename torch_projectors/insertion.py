"""Reconstruction from more images than fit into memory: what insertions of a few at a time add up to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

import torch
from torch import Tensor

from . import ops, realspace
from .checks import check_cutoff, check_interpolation, check_oversampling, check_shape
from .geometry import INTERPOLATION_CODES, Geometry
from .spectrum import shell_means, stored_shape


class Insertion:
    """The sums that `backward_project` of all images at once would give, made a few images at a time.

    Attributes:
        data, weight: half spectra `[D, H, W//2+1]` of the oversampled box, complex and real. The mates of paired
            planes are added when a map is made.
        images: how many were inserted.
    """

    def __init__(
        self,
        shape: Sequence[int],
        oversampling: float = 2.0,
        interpolation: str = "linear",
        *,
        device: Any = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """Of images of a shape (H, W), into a volume of equal axes; the dtype is that of weights."""
        self.shape = check_shape("shape", shape, (2,))
        self.oversampling, self.interpolation = check_oversampling(oversampling), interpolation
        self._code = check_interpolation(interpolation)
        self.volume_shape = (round(max(self.shape) * self.oversampling),) * 3
        stored = stored_shape(self.volume_shape)
        self.data = torch.zeros(stored, dtype=dtype, device=device).to(dtype.to_complex())
        self.weight = torch.zeros(stored, dtype=dtype, device=device)
        self.images = 0
        self._complete = False

    def add(
        self,
        spectra: Tensor,
        weights: Tensor,
        rotations: Tensor,
        shifts: Optional[Tensor] = None,
        fourier_radius_cutoff: Optional[float] = None,
        *,
        operators: Optional[Tensor] = None,
    ) -> None:
        """Insert half spectra `[P, H, W//2+1]` with weights of that shape, at rotations `[P, 3, 3]`, shifts `[P, 2]`.

        For a transfer function c and noise of variance s2, spectra are c y / s2, and weights c^2 / s2. With the
        operators `[G, 3, 3]` of a point group every image is inserted at all of its equivalent poses.
        """
        if self._complete:
            raise RuntimeError("the last map was made of these sums: nothing can be added to them")
        geometry = Geometry(
            self.volume_shape,
            self.shape,
            self._code,
            self.oversampling,
            check_cutoff(fourier_radius_cutoff, self.shape),
            pairs_once=True,
        )
        real = self.weight.dtype
        shifts = None if shifts is None else shifts[None].to(real)
        for turned in (
            rotations[None] if operators is None else (operator @ rotations for operator in operators)
        ):
            ops.selected(self.data.device).add_projections_(
                self.data[None],
                self.weight[None],
                spectra[None],
                weights[None],
                turned[None].to(real),
                shifts,
                geometry,
            )
        self.images += len(spectra)

    def merge_(self, other: Insertion) -> None:
        """Add another's sums; both have, or have not, given their last map."""
        if self._complete != other._complete:
            raise RuntimeError("expected two sums of which both or none gave their last map")
        self.data += other.data
        self.weight += other.weight
        self.images += other.images

    def map(self, *, last: bool = False, **options: Any) -> Tensor:
        """`realspace.reconstruct` of the sums with its options, `[D, H, W]`.

        The last map needs no copy of the sums; after it nothing can be added.
        """
        data, weight = self.data, self.weight
        if not self._complete:
            if not last:
                data, weight = data.clone(), weight.clone()
            ops.selected(data.device).add_mates_(data[None], weight[None], self.volume_shape)
            self._complete = last
        return realspace.reconstruct(
            data,
            weight,
            self.interpolation,
            self.oversampling,
            reconstruction_shape=self.volume_shape,
            **options,
        )

    def signal_to_noise(self, fsc: Tensor) -> Tensor:
        """For policy "wiener": `snr` by shell from the correlation `[shells]` of maps of two halves of the images.

        A map of all images correlates with the truth so that 2 fsc / (1 - fsc) is the ratio of its signal to its noise.
        """
        mean = shell_means(self.weight, self.volume_shape, 1 / self.oversampling, len(fsc))
        if self._code == INTERPOLATION_CODES["cubic"]:
            mean = mean * (6 / 7) ** 3  # as `reconstruct` takes weights
        fsc = fsc.to(mean).clamp(0, 0.9999)
        share = self.oversampling**-3
        return share * 2 * fsc / (1 - fsc) / mean.clamp(min=torch.finfo(mean.dtype).tiny)
