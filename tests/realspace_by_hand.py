"""What the tests of real space share: cases, and what they compare with, written out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_projectors import rotations
from torch_projectors.cases import GEOMETRIES
from torch_projectors.geometry import INTERPOLATION_CODES
from torch_projectors.realspace import CORRECTIONS, POLICIES, gridding_blur

# Of the norms, which grow as the square root of the number of terms just as their rounding does.
DEFECT = {torch.float64: 1e-13, torch.float32: 1e-6}
# Values of some thousand operations on numbers of size 1.
EXACT = 1e-12

every_geometry = pytest.mark.parametrize(
    ("dims", "image_dims"), GEOMETRIES, ids=[f"{a}D->{b}D" for a, b in GEOMETRIES]
)
every_interpolation = pytest.mark.parametrize("interpolation", INTERPOLATION_CODES)
every_correction = pytest.mark.parametrize("correction", CORRECTIONS)
every_policy = pytest.mark.parametrize("policy", POLICIES)
over_dtypes = pytest.mark.parametrize("dtype", DEFECT, ids=str)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def turns(*count: int, dims: int = 3, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return rotations.random(*count, dims=dims, generator=generator, dtype=torch.float64)


def blur_of(
    shape: Sequence[int], padded: Sequence[int], interpolation: str, correction: str = "separable"
) -> Tensor:
    return gridding_blur(shape, padded, interpolation, correction, dtype=torch.float64)


def axes(dims: int) -> tuple[int, ...]:
    return tuple(range(-dims, 0))


def offsets(shape: Sequence[int]) -> Tensor:
    """(x, y[, z]) of every voxel from the centre, [(D,) H, W, d]."""
    grid = torch.meshgrid(*[torch.arange(n, dtype=torch.float64) - n // 2 for n in shape], indexing="ij")
    return torch.stack(grid[::-1], -1)


def frequencies(shape: Sequence[int]) -> Tensor:
    """(x, y[, z]) of every stored component, [(D,) H, W//2+1, d]."""
    lines = [[i if i <= n // 2 else i - n for i in range(n)] for n in shape[:-1]] + [
        range(shape[-1] // 2 + 1)
    ]
    grid = torch.meshgrid(*[torch.tensor(list(k), dtype=torch.float64) for k in lines], indexing="ij")
    return torch.stack(grid[::-1], -1)


def spectrum_by_hand(x: Tensor, dims: int) -> Tensor:
    return torch.fft.rfftn(torch.fft.ifftshift(x, dim=axes(dims)), dim=axes(dims))


def box_by_hand(spectrum: Tensor, shape: Sequence[int]) -> Tensor:
    dims = len(shape)
    return torch.fft.fftshift(torch.fft.irfftn(spectrum, s=tuple(shape), dim=axes(dims)), dim=axes(dims))


def centred(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The last axes of x, cropped or extended with zeros around index N//2."""
    for axis, n in zip(axes(len(shape)), shape):
        old = x.shape[axis]
        index = torch.arange(n) - n // 2 + old // 2
        inside = ((index >= 0) & (index < old)).to(x.dtype)
        along = [1] * (-axis - 1)
        x = x.index_select(axis, index.clamp(0, old - 1)) * inside.reshape(-1, *along)
    return x


def norm(x: Tensor) -> float:
    return x.double().norm().item()


def blob(shape: Sequence[int], centre: Tensor, width: float, dims: int) -> Tensor:
    """Density of a Gaussian of mass 1."""
    r2 = (offsets(shape) - centre[: len(shape)]).square().sum(-1)
    return torch.exp(-r2 / (2 * width**2)) / (math.sqrt(2 * math.pi) * width) ** dims


def kernel_transform(interpolation: str, v: float) -> float:
    """The kernel's Fourier integral, by Gauss and Legendre with 30 nodes on each of its polynomial pieces.

    The remainder has the 60th power of at most 2 pi v / 4 <= 1 over 60!.
    """
    edges, kernel = {
        "nearest": ([-0.5, 0.5], lambda u: 1 + 0 * u),
        "linear": ([-1, 0, 1], lambda u: 1 - abs(u)),
        "cubic": (
            [-2, -1, 0, 1, 2],
            lambda u: np.where(
                abs(u) <= 1,
                1.5 * abs(u) ** 3 - 2.5 * u**2 + 1,
                -0.5 * abs(u) ** 3 + 2.5 * u**2 - 4 * abs(u) + 2,
            ),
        ),
    }[interpolation]
    nodes, weights = np.polynomial.legendre.leggauss(30)
    total = 0.0
    for a, b in zip(edges, edges[1:]):
        u = (a + b) / 2 + (b - a) / 2 * nodes
        total += (b - a) / 2 * (weights * kernel(u) * np.cos(2 * math.pi * u * v)).sum()
    return total
