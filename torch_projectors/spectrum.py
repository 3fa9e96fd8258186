"""The half spectrum of a real box: what is stored, at which frequency, and which entries come in Friedel pairs.

Arrays are in `torch.fft.rfftn` layout: DC at index 0, last axis x stored for frequencies 0..W//2. Shapes are
real-space shapes, `([D,] H, W)`, unless they are called stored.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor


def stored_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Shape of the half spectrum of a real box."""
    return (*shape[:-1], shape[-1] // 2 + 1)


def real_shape(stored: Sequence[int]) -> tuple[int, ...]:
    """Real-space shape of a half spectrum: the width is that of the nearest axis that agrees, else even."""
    *others, columns = stored
    for n in reversed(others):
        if n // 2 + 1 == columns:
            return (*others, n)
    return (*others, max(2 * (columns - 1), 1))


def frequencies(shape: Sequence[int]) -> list[np.ndarray]:
    """Integer frequency of every stored index, axis by axis: -((n - 1) // 2) .. n // 2, and 0 .. W // 2 along x."""
    index = [np.arange(n) for n in stored_shape(shape)]
    return [np.where(i > n // 2, i - n, i) for i, n in zip(index, shape)]


def within(shape: Sequence[int], cutoff: float) -> tuple[np.ndarray, list[np.ndarray]]:
    """Entries with |k| <= cutoff: their index in the flattened spectrum, and their (x, y[, z]) frequencies."""
    axes = frequencies(shape)
    inside = sum(k * k for k in np.ix_(*axes)) <= cutoff * cutoff
    index = np.nonzero(inside)
    return np.ravel_multi_index(index, inside.shape), [k[i] for k, i in zip(axes[::-1], index[::-1])]


def cropped(spectrum: Tensor, shape: Sequence[int], smaller: Sequence[int]) -> Tensor:
    """The frequencies that a smaller box has too: half spectra `[..., *stored]` of a shape to those of another.

    Where a smaller axis is even, its highest frequency is taken from the positive side.
    """
    for axis, (n, m) in enumerate(zip(shape, smaller)):
        dim = spectrum.dim() - len(shape) + axis
        if m == n:
            continue
        if axis == len(shape) - 1:
            spectrum = spectrum.narrow(dim, 0, m // 2 + 1)
        else:
            negative = (m - 1) // 2
            parts = [spectrum.narrow(dim, 0, m // 2 + 1), spectrum.narrow(dim, n - negative, negative)]
            spectrum = torch.cat(parts, dim)
    return spectrum.contiguous()


def paired_columns(width: int) -> list[int]:
    """Columns that hold both members of each Friedel pair; every other column holds one."""
    return [0, width // 2] if width % 2 == 0 else [0]


def halved(spectrum: Tensor, width: int) -> Tensor:
    """The spectrum with 1/2 on its paired columns: a sum over it counts each Friedel pair once."""
    if not torch.compiler.is_compiling():
        spectrum = spectrum.clone()  # several times faster than to multiply all of it
        for paired in paired_columns(width):
            spectrum[..., paired] *= 0.5
        return spectrum
    column = torch.arange(spectrum.shape[-1], device=spectrum.device)
    paired = (column == 0) | (2 * column == width)
    return spectrum * (1 - 0.5 * paired.to(spectrum.real.dtype))


def with_mates_(spectrum: Tensor, shape: Sequence[int]) -> Tensor:
    """The spectrum, changed in place in eager mode, with its own conjugate mate added to each paired plane:
    V(0, y, z) + conj V(0, -y, -z).
    """
    if torch.compiler.is_compiling():
        return _WithMates.apply(spectrum, shape)
    width = shape[-1]
    planes = spectrum[..., :: width // 2] if width % 2 == 0 else spectrum[..., :1]
    axes = tuple(range(-len(shape), -1))
    planes.add_(torch.roll(torch.flip(planes, axes), [1] * len(axes), axes).conj())
    return spectrum


class _WithMates(torch.autograd.Function):
    """For traced graphs: changes in place, and derivatives of indexing, come out wrong in torch 2.4."""

    @staticmethod
    def forward(ctx: Any, spectrum: Tensor, shape: Sequence[int]) -> Tensor:
        ctx.shape = shape
        return _sum_with_mates(spectrum, shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sum_with_mates(grad, ctx.shape), None  # its own adjoint


def _sum_with_mates(spectrum: Tensor, shape: Sequence[int]) -> Tensor:
    planes, mates = _planes_and_mates(spectrum, shape)
    first, last = (planes + mates).tensor_split([1], -1)
    unpaired = spectrum[..., 1 : spectrum.shape[-1] - last.shape[-1]]
    return torch.cat([first, unpaired, last], -1)


def _planes_and_mates(spectrum: Tensor, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
    """The planes of the paired columns, and their conjugate mates."""
    axes = tuple(range(-len(shape), -1))
    planes = torch.cat([spectrum[..., column : column + 1] for column in paired_columns(shape[-1])], -1)
    mates = torch.roll(torch.flip(planes, axes), [1] * len(axes), axes)
    if mates.dtype.is_complex:  # without lazy conjugates, which torch 2.4 does not export
        mates = torch.complex(mates.real, -mates.imag)
    return planes, mates


# Entries that are looked at together where a whole spectrum would leave the caches many times.
SLAB = 2**20


def slabs(shape: Sequence[int]) -> list[slice]:
    """Parts of the first axis of a half spectrum, of about as many entries as caches hold."""
    size = math.prod(stored_shape(shape)[1:])
    step = max(1, SLAB // size)
    return [slice(i, min(i + step, shape[0])) for i in range(0, shape[0], step)]


def slab_of(x: Tensor, shape: Sequence[int], part: slice) -> Tensor:
    """Of arrays `[..., *stored]` what a part of the first axis holds."""
    return x[(..., part, *[slice(None)] * (len(shape) - 1))]


def shell_means(values: Tensor, shape: Sequence[int], scale: float, count: int) -> Tensor:
    """Means `[..., count]` of values `[..., *stored]` over shells: where radius times `scale` rounds to 0, 1, ..."""
    total = size = 0
    for part in slabs(shape):
        shells = (radii(shape, values.device, part) * scale + 0.5).long()
        total = total + shell_sums(slab_of(values, shape, part), shells, count)
        size = size + shell_sums(torch.ones_like(shells, dtype=values.dtype), shells, count)
    return total / size.clamp(min=1)


def radii(shape: Sequence[int], device: Optional[torch.device] = None, part: slice = slice(None)) -> Tensor:
    """Spatial frequency of every stored entry, in cycles per longest axis: |k| in a box of equal axes.

    part: of the first axis.
    """
    longest, dtype = max(shape), _widest(device)
    axes = [torch.from_numpy((k * (longest / n)) ** 2) for k, n in zip(frequencies(shape), shape)]
    axes[0] = axes[0][part]
    total = torch.zeros((), dtype=dtype, device=device)
    for axis in axes:
        total = total[..., None] + axis.to(device, dtype)
    return total.sqrt()


def shell_sums(values: Tensor, shells: Tensor, count: int) -> Tensor:
    """Sums over the entries of each shell: values `[..., *stored]`, shells `[*stored]`, to `[..., count]`, in float64.

    Entries of shells from `count` on are left out.
    """
    lead = values.shape[: values.dim() - shells.dim()]
    values = values.reshape(*lead, -1).to(_widest(values.device))
    index = shells.reshape(-1).clamp(max=count).expand(values.shape)
    return values.new_zeros(*lead, count + 1).scatter_add(-1, index, values)[..., :count]


def _widest(device: Optional[torch.device]) -> torch.dtype:
    # Metal has no float64.
    return torch.float32 if device is not None and device.type == "mps" else torch.float64
