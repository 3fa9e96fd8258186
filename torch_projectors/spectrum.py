"""The half spectrum of a real box: what is stored, at which frequency, and which entries come in Friedel pairs.

Arrays are in `torch.fft.rfftn` layout: DC at index 0, last axis x stored for frequencies 0..W//2. Shapes are
real-space shapes, `([D,] H, W)`, unless they are called stored.
"""

from __future__ import annotations

from collections.abc import Sequence

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


def paired_columns(width: int) -> list[int]:
    """Columns that hold both members of each Friedel pair; every other column holds one."""
    return [0, width // 2] if width % 2 == 0 else [0]


def halved(spectrum: Tensor, width: int) -> Tensor:
    """The spectrum with 1/2 on its paired columns: a sum over it counts each Friedel pair once."""
    weight = torch.ones(spectrum.shape[-1], dtype=spectrum.real.dtype, device=spectrum.device)
    for column in paired_columns(width):
        weight[column] = 0.5
    return spectrum * weight


def add_mates_(spectrum: Tensor, shape: Sequence[int]) -> Tensor:
    """Add to each paired plane of a spectrum its own conjugate mate, in place: V(0, y, z) += conj V(0, -y, -z)."""
    axes = tuple(range(1 - len(shape), 0))
    for column in paired_columns(shape[-1]):
        plane = spectrum[..., column]
        mate = torch.roll(torch.flip(plane, axes), [1] * len(axes), axes)
        # Not conj: torch 2.4 does not export its lazy form, and its physical one has no rule for vmap.
        plane.add_(torch.complex(mate.real, -mate.imag) if mate.is_complex() else mate)
    return spectrum
