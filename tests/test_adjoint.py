"""Gather and scatter are transposes, as stored and in real space; both are linear; no weight is negative."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from on_device import bare
from torch import Tensor

from torch_projectors import backward_project, forward_project
from torch_projectors.cases import CASES, Case

# In products of norms, which grow as the square root of the number of terms just as their rounding does.
DEFECT = {torch.complex128: 1e-13, torch.complex64: 1e-6}


def over(values: Any) -> Callable[..., Any]:
    return pytest.mark.parametrize("case", values, ids=str)


over_dtypes = pytest.mark.parametrize("dtype", DEFECT, ids=str)
over_interpolations = pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])


def inner(a: Tensor, b: Tensor) -> float:
    """Re <a, b>, in double precision whatever the operands."""
    a, b = [x.to(torch.complex128).flatten() for x in (a, b)]
    return torch.vdot(a, b).real.item()


def norm(x: Tensor) -> float:
    return math.sqrt(inner(x, x))


@over_dtypes
@over(CASES)
def test_backward_project_is_the_transpose_of_forward_project(
    case: Case, dtype: torch.dtype, backend: str
) -> None:
    """Re <Ax, y> = Re <x, A'y> over stored components; A is linear over the reals only."""
    volume, images, _, *pose = case.inputs(dtype)
    projected = bare().forward_project(volume, *pose, *case.geometry)
    inserted, _ = bare().backward_project(images, None, *pose, *case.geometry)
    defect = inner(projected, images) - inner(volume, inserted)
    assert norm(projected) > 0
    assert abs(defect) <= DEFECT[dtype] * norm(projected) * norm(images)


@over_dtypes
@over(CASES)
def test_weights_are_scattered_by_the_transpose_of_the_gather_of_real_data(
    case: Case, dtype: torch.dtype, backend: str
) -> None:
    volume, images, weights, rotations, shifts = case.inputs(dtype)
    weight_volume = volume.real.contiguous()
    projected = bare().forward_project(weight_volume, rotations, None, *case.geometry)
    _, inserted = bare().backward_project(images, weights, rotations, shifts, *case.geometry)
    defect = inner(projected, weights) - inner(weight_volume, inserted)
    assert projected.dtype == inserted.dtype == weights.dtype
    assert norm(projected) > 0
    assert abs(defect) <= DEFECT[dtype] * norm(projected) * norm(weights)


@over_dtypes
@over([case for case in CASES if case.interpolation == "cubic"])
def test_weight_volumes_are_never_negative(case: Case, dtype: torch.dtype, backend: str) -> None:
    _, images, weights, rotations, shifts = case.inputs(dtype)
    _, weight_volume = bare().backward_project(images, weights, rotations, shifts, *case.geometry)
    assert (weight_volume >= 0).all()
    assert weight_volume.any()


@over_dtypes
@over(CASES)
def test_projections_are_linear(case: Case, dtype: torch.dtype, backend: str) -> None:
    """Over the reals, for mates are conjugated. Both sides sum the same terms, a few eps apart each."""
    volume, images, weights, *pose = case.inputs(dtype)
    other = [x.flip(0).flip(-1).contiguous() for x in (volume, images, weights)]

    def project(volume: Tensor, images: Tensor, weights: Tensor) -> tuple[Tensor, ...]:
        inserted = bare().backward_project(images, weights, *pose, *case.geometry)
        return bare().forward_project(volume, *pose, *case.geometry), *inserted

    a, b = 1.5, 0.7
    sums = project(*[a * x + b * y for x, y in zip((volume, images, weights), other)])
    for together, x, y in zip(sums, project(volume, images, weights), project(*other)):
        assert norm(together - (a * x + b * y)) <= DEFECT[dtype] * norm(together)


# --- Between real-space signals ---

# Volume, image, oversampling.
SIGNALS = [
    ((8, 8), (8, 8), 1.0),
    ((7, 7), (7, 7), 1.0),
    ((12, 12), (6, 6), 2.0),
    ((9, 6), (5, 8), 1.3),
    ((8, 8), (6, 9), 1.0),
    ((6, 6, 6), (6, 6), 1.0),
    ((7, 7, 7), (7, 7), 1.0),
    ((12, 12, 12), (6, 6), 2.0),
    ((10, 10, 10), (5, 5), 2.0),
    ((6, 9, 8), (7, 6), 1.0),
    ((6, 6, 6), (6, 6, 6), 1.0),
    ((7, 7, 7), (7, 7, 7), 1.0),
    ((10, 10, 10), (5, 5, 5), 2.0),
    ((7, 8, 9), (5, 6, 4), 1.5),
]


def signal(shape: Sequence[int], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def axes(dims: int) -> tuple[int, ...]:
    return tuple(range(-dims, 0))


@pytest.mark.parametrize("cutoff", [None, math.inf])
@over_interpolations
@pytest.mark.parametrize(("volume_shape", "image_shape", "oversampling"), SIGNALS)
def test_backward_project_is_the_adjoint_between_real_space_signals(
    volume_shape: tuple[int, ...],
    image_shape: tuple[int, ...],
    oversampling: float,
    interpolation: str,
    cutoff: float,
    backend: str,
) -> None:
    """<irfftn project(rfftn v), y> = prod(N_v) / prod(n_y) <v, irfftn backward_project(rfftn y)>.

    By Parseval, either side is Re <A, B> over stored components, paired ones halved, times 2 / its points.
    """
    dims, image_dims = len(volume_shape), len(image_shape)
    v, y = signal(volume_shape, 0), signal((3, *image_shape), 1)
    rotations, _ = torch.linalg.qr(signal((3, dims, dims), 2))
    shifts = signal((3, image_dims), 3)
    options = (interpolation, oversampling, cutoff)
    projected = forward_project(
        torch.fft.rfftn(v), rotations, shifts, image_shape, *options, reconstruction_shape=volume_shape
    )
    inserted = backward_project(
        torch.fft.rfftn(y, dim=axes(image_dims)),
        rotations,
        shifts,
        volume_shape,
        *options,
        projection_shape=image_shape,
    )
    projected = torch.fft.irfftn(projected, s=image_shape, dim=axes(image_dims))
    inserted = torch.fft.irfftn(inserted, s=volume_shape, dim=axes(dims))
    ratio = math.prod(volume_shape) / math.prod(image_shape)
    defect = inner(projected, y) - ratio * inner(v, inserted)
    assert abs(defect) <= DEFECT[torch.complex128] * norm(projected) * norm(y)


@over_interpolations
@pytest.mark.parametrize(("volume_shape", "image_shape", "oversampling"), SIGNALS)
def test_reconstructions_are_spectra_of_real_signals(
    volume_shape: tuple[int, ...],
    image_shape: tuple[int, ...],
    oversampling: float,
    interpolation: str,
    backend: str,
) -> None:
    """Paired planes are Hermitian, and their weights even, so that irfftn and rfftn return both unchanged."""
    dims, image_dims = len(volume_shape), len(image_shape)
    y = torch.fft.rfftn(signal((3, *image_shape), 1), dim=axes(image_dims))
    rotations, _ = torch.linalg.qr(signal((3, dims, dims), 2))
    volume, weight_volume = backward_project(
        y,
        rotations,
        signal((3, image_dims), 3),
        volume_shape,
        interpolation,
        oversampling,
        weights=y.abs(),
        projection_shape=image_shape,
    )
    assert (weight_volume >= 0).all()
    for x in (volume, weight_volume.to(volume.dtype)):
        real = torch.fft.irfftn(x, s=volume_shape, dim=axes(dims))
        assert norm(torch.fft.rfftn(real, dim=axes(dims)) - x) <= DEFECT[torch.complex128] * norm(x)
