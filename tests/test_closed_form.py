"""Gaussian blobs, whose slices are known: accuracy and order of interpolation, and every sign convention.

A blob of mass a and width s at r has the transform F(f) = a exp(-2 pi^2 s^2 |f|^2 - 2 pi i f.r), f in cycles
a pixel. It is sampled exactly at f = q / N, with no box or pixel in between, so that only interpolation errs.
Its derivatives in q are transforms of x^m times the blob: |d^m F / dq_a^m| <= (2 pi / N_a)^m E|x_a|^m, where the
moments of a Gaussian are known. The error along an axis is then at most

- linear: 1/8 max|F''|;
- cubic: 3/32 max|F'''|. It is exact for quadratics, so that of Taylor's formula at the sample only the
  remainder is left, sum_j |w_j| |j - t|^3 / 6 max|F'''|, and that is largest half way between two taps.

Interpolating d axes one by one adds d of these. Each but the first is interpolated along the axes before it,
and grows by at most the sum of |weights|: 1 for linear, 5/4 for cubic.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from torch_projectors import backward_project, forward_project

GEOMETRIES = [(2, 2), (3, 2), (3, 3)]
SMOOTH = ["linear", "cubic"]


class Blob(NamedTuple):
    mass: float
    width: float
    centre: Sequence[float]  # (x, y[, z]), in pixels from the centre of the box


BLOBS = [Blob(1.0, 1.0, (2.1, -0.7, 1.3)), Blob(0.6, 1.6, (-1.2, 1.9, 0.4)), Blob(0.3, 0.8, (0.5, 2.4, -2.2))]


def flattened(blobs: list[Blob], dims: int) -> list[Blob]:
    return [Blob(b.mass, b.width, b.centre[:dims]) for b in blobs]


def frequencies(shape: Sequence[int]) -> Tensor:
    """(x, y[, z]) of every stored component, [(D,) H, W//2+1, d]."""
    axes = [[i if i <= n // 2 else i - n for i in range(n)] for n in shape[:-1]] + [range(shape[-1] // 2 + 1)]
    grid = torch.meshgrid(*[torch.tensor(list(axis), dtype=torch.float64) for axis in axes], indexing="ij")
    return torch.stack(grid[::-1], -1)


def per_pixel(k: Tensor, shape: Sequence[int]) -> Tensor:
    return k / torch.tensor(shape[::-1], dtype=k.dtype)


def transform(blobs: list[Blob], f: Tensor) -> Tensor:
    total = torch.zeros(f.shape[:-1], dtype=torch.complex128)
    for mass, width, centre in blobs:
        turns = f @ torch.as_tensor(centre, dtype=f.dtype)
        exponent = torch.complex(-2 * (math.pi * width) ** 2 * f.square().sum(-1), -2 * math.pi * turns)
        total += mass * exponent.exp()
    return total


def spectrum(blobs: list[Blob], shape: Sequence[int]) -> Tensor:
    return transform(blobs, per_pixel(frequencies(shape), shape))


def error_bound(blobs: list[Blob], shape: Sequence[int], interpolation: str) -> float:
    total = 0.0
    for axis, n in enumerate(shape[::-1]):
        for mass, width, centre in blobs:
            r2, s2 = centre[axis] ** 2, width**2
            if interpolation == "linear":
                total += mass / 8 * (2 * math.pi / n) ** 2 * (r2 + s2)
            else:
                # E|x|^3 <= (E x^4)^(3/4)
                third = (r2**2 + 6 * r2 * s2 + 3 * s2**2) ** 0.75
                total += 1.25**axis * mass * 3 / 32 * (2 * math.pi / n) ** 3 * third
    return total


def inside(shape: Sequence[int], cutoff: float) -> Tensor:
    return frequencies(shape).square().sum(-1) <= cutoff**2


def matrix(dims: int) -> Tensor:
    generator = torch.Generator().manual_seed(dims)
    return torch.linalg.qr(torch.randn(dims, dims, generator=generator, dtype=torch.float64))[0]


def shifted(images: Tensor, shift: Tensor, shape: Sequence[int]) -> Tensor:
    turns = per_pixel(frequencies(shape), shape) @ shift
    return images * torch.exp(-2j * math.pi * turns)


# --- Accuracy. Cutoffs keep all taps inside the band, where no axis is extended by zeros or aliases. ---


class Box(NamedTuple):
    volume: int
    image: tuple[int, ...]
    oversampling: float
    cutoff: float


BOXES = {
    "even": Box(16, (16, 16, 16), 1.0, 5.0),
    "odd": Box(15, (15, 15, 15), 1.0, 5.0),
    "oversampled": Box(32, (16, 16, 16), 2.0, 6.0),
    "oversampled by 1.5": Box(24, (16, 16, 16), 1.5, 6.0),
    "downsampled": Box(24, (13, 12, 15), 1.0, 6.0),
}


@pytest.mark.parametrize("box", BOXES.values(), ids=BOXES)
@pytest.mark.parametrize("interpolation", SMOOTH)
@pytest.mark.parametrize(("dims", "image_dims"), GEOMETRIES)
def test_rotated_blobs_are_blobs_elsewhere(
    dims: int, image_dims: int, interpolation: str, box: Box, backend: str
) -> None:
    """exp(-2 pi i (M k).r) is exp(-2 pi i k.(M^T r)): content at r goes to M^T r, projected along z."""
    blobs = flattened(BLOBS, dims)
    volume_shape, image_shape = (box.volume,) * dims, box.image[-image_dims:]
    m = matrix(dims)
    shift = torch.tensor([1.3, -0.8, 2.7][:image_dims], dtype=torch.float64)
    volume = spectrum(blobs, volume_shape)
    image = forward_project(volume, m, shift, image_shape, interpolation, box.oversampling, box.cutoff)
    moved = [Blob(b.mass, b.width, (m.T @ torch.tensor(b.centre).to(m))[:image_dims].tolist()) for b in blobs]
    expected = transform(moved, frequencies(image_shape) * box.oversampling / box.volume)
    expected = shifted(expected, shift, image_shape) * inside(image_shape, box.cutoff)
    assert (image - expected).abs().max() <= error_bound(blobs, volume_shape, interpolation)
    assert not image[~inside(image_shape, box.cutoff)].any()


@pytest.mark.parametrize("interpolation", SMOOTH)
@pytest.mark.parametrize(("dims", "image_dims"), GEOMETRIES)
def test_any_matrix_samples_any_box(dims: int, image_dims: int, interpolation: str, backend: str) -> None:
    """Of a box with unequal axes, with a matrix that is no rotation: frequency p_a / N_a along each axis."""
    blobs = flattened(BLOBS, dims)
    volume_shape, image_shape = (22, 27, 24)[-dims:], (12, 15, 18)[-image_dims:]
    m = matrix(dims) + torch.tensor([[0.1, -0.2, 0.1], [0.2, 0.1, 0.0], [-0.1, 0.1, -0.2]])[:dims, :dims]
    volume = spectrum(blobs, volume_shape)
    image = forward_project(
        volume, m, None, image_shape, interpolation, 1.5, 4.0, reconstruction_shape=volume_shape
    )
    p = 1.5 * frequencies(image_shape) @ m[:, :image_dims].T
    expected = transform(blobs, per_pixel(p, volume_shape)) * inside(image_shape, 4.0)
    assert (image - expected).abs().max() <= error_bound(blobs, volume_shape, interpolation)


@pytest.mark.parametrize(("interpolation", "order"), [("linear", 2), ("cubic", 3)])
@pytest.mark.parametrize(("dims", "image_dims"), [(2, 2), (3, 2)])
def test_error_falls_with_oversampling(
    dims: int, image_dims: int, interpolation: str, order: int, backend: str
) -> None:
    """By 4 a doubling for linear, 8 for cubic, in the root mean square.

    In the root mean square, the next term of the error is 1.3 * 2 pi |x| / N of the first for cubic, less for
    linear: 0.26 on 32 points for blobs within a pixel of the centre. It is even between two taps where the
    first is odd, and so adds in squares: 3 percent. The other 12 are for samples that are not evenly spread.
    """
    blobs = [Blob(b.mass, 0.3 * b.width, [0.3 * a for a in b.centre]) for b in flattened(BLOBS, dims)]
    m, n = matrix(dims), 16
    p = frequencies((n,) * image_dims) @ m[:, :image_dims].T / n
    expected = transform(blobs, p) * inside((n,) * image_dims, 6.0)
    errors = []
    for oversampling in (2, 4, 8):
        volume = spectrum(blobs, (oversampling * n,) * dims)
        image = forward_project(volume, m, None, (n,) * image_dims, interpolation, oversampling, 6.0)
        errors.append((image - expected).abs().square().mean().sqrt().item())
    for coarse, fine in zip(errors, errors[1:]):
        assert coarse / fine == pytest.approx(2**order, rel=0.15)


# --- Real space: where things are, and which way they go ---


def to_half(x: Tensor) -> Tensor:
    axes = tuple(range(x.dim()))
    return torch.fft.rfftn(torch.fft.ifftshift(x, dim=axes), dim=axes)


def to_real(y: Tensor, shape: Sequence[int]) -> Tensor:
    axes = tuple(range(y.dim()))
    return torch.fft.fftshift(torch.fft.irfftn(y, s=tuple(shape), dim=axes), dim=axes)


def point(shape: Sequence[int], offset: Sequence[int]) -> Tensor:
    """1 at an offset (x, y[, z]) from the centre, N//2."""
    x = torch.zeros(tuple(shape), dtype=torch.float64)
    x[tuple(n // 2 + a for n, a in zip(shape, offset[::-1]))] = 1
    return x


def peak(x: Tensor) -> tuple[int, ...]:
    """Offset (x, y[, z]) of the maximum from the centre."""
    index = (x == x.max()).nonzero()
    assert len(index) == 1
    return tuple(i - n // 2 for i, n in zip(index[0].tolist(), x.shape))[::-1]


@pytest.mark.parametrize("n", [24, 25])
@pytest.mark.parametrize(("dims", "image_dims"), GEOMETRIES)
def test_sampled_blobs_have_their_origin_in_the_centre(
    dims: int, image_dims: int, n: int, backend: str
) -> None:
    """Below a third of the sampling rate, aliases of such blobs, and what leaves the box, are below 1e-7."""
    blobs = [Blob(1.0, 1.5, (1.4, -0.9, 1.1)[:dims]), Blob(0.5, 1.6, (-1.8, 0.3, -0.6)[:dims])]
    pixels = torch.stack(
        torch.meshgrid(*[torch.arange(n, dtype=torch.float64) - n // 2] * dims, indexing="ij")[::-1], -1
    )
    x = torch.zeros((n,) * dims, dtype=torch.float64)
    for mass, width, centre in blobs:
        r2 = (pixels - torch.tensor(centre, dtype=torch.float64)).square().sum(-1)
        x += mass * torch.exp(-r2 / (2 * width**2)) / (math.sqrt(2 * math.pi) * width) ** dims
    m, image_shape = matrix(dims), (n,) * image_dims
    image = forward_project(to_half(x), m, None, image_shape, "cubic", 1.0, 6.0)
    p = frequencies(image_shape) @ m[:, :image_dims].T
    expected = transform(blobs, p / n) * inside(image_shape, 6.0)
    assert (image - expected).abs().max() <= error_bound(blobs, (n,) * dims, "cubic") + 1e-7


@pytest.mark.parametrize("n", [8, 7])
@pytest.mark.parametrize(
    ("dims", "image_dims", "axis"), [(d, i, axis) for d, i in GEOMETRIES for axis in range(d)]
)
def test_identity_keeps_what_is_at_plus_x_at_plus_x(
    dims: int, image_dims: int, axis: int, n: int, backend: str
) -> None:
    """And likewise y and z; along z an image sums."""
    offset = [2 if a == axis else 0 for a in range(dims)]
    volume = to_half(point((n,) * dims, offset))
    image_shape = (n,) * image_dims
    identity = torch.eye(dims, dtype=torch.float64)
    image = forward_project(volume, identity, None, image_shape, fourier_radius_cutoff=math.inf)
    expected = point(image_shape, offset[:image_dims])
    torch.testing.assert_close(to_real(image, image_shape), expected, rtol=0, atol=1e-14)


SHAPES = {2: [(8, 8), (7, 7), (6, 9), (9, 8)], 3: [(6, 6, 6), (5, 5, 5), (4, 6, 7)]}


@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("shape", SHAPES[2] + SHAPES[3], ids=str)
def test_whole_shifts_roll_towards_plus(shape: tuple[int, ...], interpolation: str, backend: str) -> None:
    """Axis by axis, and all together; backward_project rolls back."""
    dims = len(shape)
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    steps = [[2 if a == axis else 0 for a in range(dims)] for axis in range(dims)] + [[1, -2, 3][:dims]]
    for step in steps:
        pose = torch.eye(dims, dtype=torch.float64), torch.tensor(step, dtype=torch.float64)
        y = forward_project(
            to_half(x), *pose, shape, interpolation, 1.0, math.inf, reconstruction_shape=shape
        )
        rolled = torch.roll(x, step[::-1], tuple(range(dims)))
        torch.testing.assert_close(to_real(y, shape), rolled, rtol=0, atol=1e-13)
        back = backward_project(y, *pose, shape, interpolation, 1.0, math.inf, projection_shape=shape)
        torch.testing.assert_close(to_real(back, shape), x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("n", [8, 7])
def test_whole_shifts_roll_projections_of_volumes(n: int, backend: str) -> None:
    x = torch.randn((n, n, n), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.tensor([3.0, -1.0], dtype=torch.float64)
    y = forward_project(to_half(x), torch.eye(3, dtype=torch.float64), shift, fourier_radius_cutoff=math.inf)
    rolled = torch.roll(x.sum(0), (-1, 3), (0, 1))
    torch.testing.assert_close(to_real(y, (n, n)), rolled, rtol=0, atol=1e-12)


TURNS = {
    "x to y": [[0.0, -1.0], [1.0, 0.0]],
    "by the angle of 3, 4, 5": [[0.6, -0.8], [0.8, 0.6]],
    "cyclic": [[0.0, 0.0, 1.0], [1.0, 0.0, 0.0], [0.0, 1.0, 0.0]],
    "y to z": [[1.0, 0.0, 0.0], [0.0, 0.0, -1.0], [0.0, 1.0, 0.0]],
    "z to x by the angle of 3, 4, 5": [[0.6, 0.0, 0.8], [0.0, 1.0, 0.0], [-0.8, 0.0, 0.6]],
}
# M^T r by hand: a matrix that takes x to y in frequency space brings what is at x to -y.
TURNED = {
    "x to y": ((5, 0), (0, -5)),
    "by the angle of 3, 4, 5": ((5, 0), (3, -4)),
    "cyclic": ((1, 2, 4), (2, 4, 1)),
    "y to z": ((1, 2, 4), (1, 4, -2)),
    "z to x by the angle of 3, 4, 5": ((5, 1, 0), (3, 1, 4)),
}


@pytest.mark.parametrize("n", [20, 21])
@pytest.mark.parametrize("name", TURNS)
def test_content_goes_to_the_transposed_matrix_times_its_place(name: str, n: int, backend: str) -> None:
    m, (before, after) = torch.tensor(TURNS[name], dtype=torch.float64), TURNED[name]
    dims = len(before)
    volume = spectrum([Blob(1.0, 1.2, before)], (2 * n,) * dims)
    for image_dims in {2, dims}:
        shape = (n,) * image_dims
        image = forward_project(volume, m, None, shape, oversampling=2)
        assert peak(to_real(image, shape)) == after[:image_dims]


@pytest.mark.parametrize(("dims", "image_dims"), GEOMETRIES)
def test_smaller_boxes_have_larger_pixels(dims: int, image_dims: int, backend: str) -> None:
    """Half the box: half the distance in pixels; shifts are in pixels of the smaller box."""
    volume = spectrum([Blob(1.0, 2.5, (6, -4, 2)[:dims])], (24,) * dims)
    shape = (12,) * image_dims
    shift = torch.tensor([-1.0, 3.0, 1.0][:image_dims], dtype=torch.float64)
    image = forward_project(volume, torch.eye(dims, dtype=torch.float64), shift, shape)
    assert peak(to_real(image, shape)) == (2, 1, 2)[:image_dims]
