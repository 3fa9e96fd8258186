"""Real-space projection, its transpose, reconstruction and shell correlation.

A sample at a lattice point plus t, |t| <= 1, sees the voxel at r of a padded box of M through taps w_j at j - t:
instead of exp(-2 pi i t v), v = r / M, it gets sum_j w_j exp(-2 pi i j v). Along one axis these differ by at most
the interpolation error of the exponential: pi |v| for nearest, (2 pi v)^2 / 8 for linear, 3/32 |2 pi v|^3 for
cubic, as in test_closed_form.py. Where the box was divided by its blur H(v) <= 1, the relative error of a voxel is
at most e(v) = (that + 1 - H) / H along each axis, and prod(1 + e) - 1 over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Callable, Optional

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_projectors import backward_project, forward_project, rotations
from torch_projectors import spectrum as spectrum_module
from torch_projectors.cases import GEOMETRIES
from torch_projectors.geometry import INTERPOLATION_CODES
from torch_projectors.realspace import (
    CORRECTIONS,
    POLICIES,
    backproject,
    correct_gridding,
    crop,
    from_spectrum,
    fsc,
    fsc_crossing,
    gridding_blur,
    pad,
    prepare,
    project,
    reconstruct,
    to_spectrum,
)

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


# --- Transposes ---

# Reconstruction, output, options.
PAIRS = {
    "2D even": ((8, 8), (8, 8), {}),
    "2D odd": ((7, 7), (7, 7), {}),
    "2D rectangular, oversampled by 1.3": ((9, 6), (5, 8), {"oversampling": 1.3}),
    "2D larger pixels": ((11, 9), (5, 6), {"pixel_size": 1.9}),
    "2D smaller pixels, extended": ((5, 6), (9, 16), {"pixel_size": 0.6, "oversampling": 1.0}),
    "2D with a cutoff": ((8, 8), (8, 6), {"fourier_radius_cutoff": 2.5}),
    "3D to 2D even": ((6, 6, 6), (6, 6), {}),
    "3D to 2D odd": ((5, 5, 5), (5, 5), {"oversampling": 1.3}),
    "3D to 2D rectangular": ((4, 6, 5), (5, 8), {"fourier_radius_cutoff": math.inf}),
    "3D to 2D cropped": ((7, 6, 8), (4, 5), {"oversampling": 1.5}),
    "3D to 2D larger pixels": ((8, 7, 6), (4, 4), {"pixel_size": 2.0, "oversampling": 1.3}),
    "3D to 3D even": ((6, 6, 6), (6, 6, 6), {"oversampling": 1.0}),
    "3D to 3D odd": ((5, 5, 5), (5, 5, 5), {}),
    "3D to 3D rectangular": ((4, 6, 5), (5, 3, 7), {"pixel_size": 1.2, "oversampling": 1.3}),
}
every_pair = pytest.mark.parametrize(("shape", "image_shape", "options"), PAIRS.values(), ids=PAIRS)


@over_dtypes
@every_correction
@every_interpolation
@every_pair
def test_backproject_is_the_transpose_of_project(
    shape, image_shape, options, interpolation, correction, dtype, backend
):
    """<Ax, y> = <x, A'y>, off the lattice, shifted, for a batch of two with poses of its own."""
    dims, image_dims = len(shape), len(image_shape)
    x, y = normal(2, *shape, dtype=dtype), normal(2, 3, *image_shape, seed=1, dtype=dtype)
    poses = turns(2, 3, dims=dims), 2 * normal(2, 3, image_dims, seed=2)
    options = {**options, "interpolation": interpolation, "correction": correction}
    projected = project(x, *poses, image_shape, **options)
    smeared = backproject(y, *poses, shape, projection_shape=image_shape, **options)
    assert projected.shape == y.shape and smeared.shape == x.shape
    assert projected.dtype == smeared.dtype == dtype
    defect = (projected.double() * y).sum() - (x.double() * smeared).sum()
    assert norm(projected) > 0
    assert abs(defect) <= DEFECT[dtype] * norm(projected) * norm(y)


@pytest.mark.parametrize("dims", [2, 3])
def test_backproject_has_the_default_box_of_its_projections(dims, backend):
    """Times the pixel size; a volume is as deep as the longer axis. Images are of that box over the pixel size."""
    poses = turns(2, dims=dims)
    smeared = backproject(normal(2, 4, 6), poses, pixel_size=1.5)
    assert smeared.shape == (9, 6, 9)[-dims:]
    assert project(smeared, poses, pixel_size=1.5).shape == (2, 4, 6)
    assert project(smeared, poses).shape == (2, 6, 9)
    if dims == 3:
        volumes = backproject(normal(2, 4, 6, 5), poses, projection_shape=(4, 6, 5))
        assert volumes.shape == (4, 6, 5)


def test_a_batch_is_projected_as_one_by_one(backend):
    """Maps [2, 1] and poses [1, 3, P] make [2, 3, P]; a single pose has no P, in images as in what they smear."""
    maps, poses, shifts = normal(2, 1, 5, 5, 5), turns(1, 3, 2), normal(3, 2, 2, seed=2)
    images = project(maps, poses, shifts)
    smeared = backproject(images, poses, shifts)
    assert images.shape == (2, 3, 2, 5, 5) and smeared.shape == (2, 3, 5, 5, 5)
    for b, c in np.ndindex(2, 3):
        alone = project(maps[b, 0], poses[0, c], shifts[c])
        torch.testing.assert_close(images[b, c], alone, rtol=0, atol=EXACT)
        back = backproject(images[b, c], poses[0, c], shifts[c])
        # Of images that are sums of 5 voxels, over 2 poses and 5 voxels each.
        torch.testing.assert_close(smeared[b, c], back, rtol=0, atol=10 * EXACT)
    single = project(maps[0, 0], poses[0, 1, 0], shifts[1, 0])
    torch.testing.assert_close(single, images[0, 1, 0], rtol=0, atol=EXACT)
    total = sum(backproject(i, r, s) for i, r, s in zip(images[0, 1], poses[0, 1], shifts[1]))
    torch.testing.assert_close(smeared[0, 1], total, rtol=0, atol=10 * EXACT)


# --- Projections, against closed forms ---


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


def voxel_errors(shape: Sequence[int], padded: int, interpolation: str) -> Tensor:
    """Relative error of every voxel, at most: the bound at the top."""
    growth = torch.ones(tuple(shape), dtype=torch.float64)
    for axis, n in zip(axes(len(shape)), shape):
        v = (torch.arange(n, dtype=torch.float64) - n // 2).abs() / padded
        w = 2 * math.pi * v
        taps = {"nearest": w / 2, "linear": w**2 / 8, "cubic": 3 / 32 * w**3}[interpolation]
        blur = torch.tensor([kernel_transform(interpolation, float(a)) for a in v], dtype=torch.float64)
        growth = growth * (1 + (taps + 1 - blur) / blur).reshape(-1, *[1] * (-axis - 1))
    return growth - 1


@pytest.mark.parametrize("pixel_size", [1, 2, 0.8])
@pytest.mark.parametrize("n", [22, 23])
@every_interpolation
@every_geometry
def test_blobs_are_projected_to_blobs(dims, image_dims, interpolation, n, pixel_size, backend):
    """What is at r goes to M^T r, summed along z, with its values, then by the shift; in every component.

    A Gaussian of width 2 is at 1/2 a cycle per voxel down to 3e-9 and at its 4 widths from the centre to 1e-4 of its
    mass out of the box, on all sides; the rest is the bound at the top, for each component of the spectrum.
    """
    oversampling = {2: 16, 3: 4}[dims]
    centre = torch.tensor([2.0, -1.5, 1.0], dtype=torch.float64)[:dims]
    shift = torch.tensor([1.3, -0.7, 0.4], dtype=torch.float64)[:image_dims]
    x, m = blob((n,) * dims, centre, 2.0, dims), turns(1, dims=dims)[0]
    side = math.ceil(n / pixel_size)
    image_shape = (side,) * image_dims
    options = {"interpolation": interpolation, "oversampling": oversampling, "pixel_size": pixel_size}
    image = project(x, m, shift, image_shape, **options)
    k = frequencies(image_shape)
    f = k / (side * pixel_size)
    moved = (m.T @ centre)[:image_dims] + shift * pixel_size
    turn = -2 * math.pi * (f @ moved)
    expected = torch.exp(torch.complex(-2 * (2 * math.pi) ** 2 * f.square().sum(-1), turn))
    expected = expected * (k.square().sum(-1) <= (side / 2) ** 2)
    # Nyquist is read from one of its two members, in a real box the mean of both.
    inside = (k.abs() < side / 2).all(-1)
    bound = (x * voxel_errors(x.shape, oversampling * n, interpolation)).sum() + 1e-4
    assert ((spectrum_by_hand(image, image_dims) - expected)[inside].abs() <= bound).all()


@pytest.mark.parametrize("n", [16, 17])
@every_geometry
def test_pixels_of_blobs_have_the_values_of_blobs(dims, image_dims, n, backend):
    """The density of what is summed along z. A pixel is a mean over components, that each err by the bound at the top.

    A Gaussian of width 1.6 is at 1/2 a cycle per voxel down to 4e-6, and of its mass 3e-5 is more than 4.3 widths away
    along any of three axes, beyond the box.
    """
    centre = torch.tensor([1.0, -0.6, 0.4], dtype=torch.float64)[:dims]
    x, m = blob((n,) * dims, centre, 1.6, dims), turns(1, dims=dims)[0]
    image = project(x, m, None, (n,) * image_dims, "cubic", 8)
    density = blob(image.shape, (m.T @ centre)[:image_dims], 1.6, image_dims)
    bound = (x * voxel_errors(x.shape, 8 * n, "cubic")).sum() + 4e-5
    assert bound < density.max() / 10
    assert ((image - density).abs() <= bound).all()


@every_interpolation
@every_geometry
def test_pixels_add_up_to_what_the_voxels_do(dims, image_dims, interpolation, backend):
    """Whatever the pose, the pixel size and the box, where nothing is cut off: zero frequency is on the lattice."""
    x = normal(5, 7, 6)[(0,) * (3 - dims)]
    for pixel_size, side in ((1, 9), (2, 4), (0.7, 12)):
        images = project(
            x,
            turns(2, dims=dims),
            normal(2, image_dims),
            (side,) * image_dims,
            interpolation,
            pixel_size=pixel_size,
            correction=None,
        )
        torch.testing.assert_close(images.flatten(1).sum(1), x.sum().expand(2), rtol=0, atol=EXACT)


EXACT_BOXES = {
    2: [((8, 8), (8, 8)), ((7, 7), (7, 7)), ((6, 9), (4, 5)), ((5, 4), (8, 9)), ((9, 6), (10, 3))],
    3: [((6, 6, 6), (6, 6, 6)), ((5, 5, 5), (5, 5, 5)), ((4, 7, 6), (3, 5, 4)), ((4, 3, 5), (6, 7, 8))],
}


@pytest.mark.parametrize("oversampling", [1, 2, 3])
@every_interpolation
@every_geometry
def test_whole_shifts_roll_the_larger_of_the_boxes(dims, image_dims, interpolation, oversampling, backend):
    """And no shift, or one around the whole box, crops or extends: at the identity all samples are on the lattice."""
    for shape, image_shape in EXACT_BOXES[dims]:
        image_shape = image_shape[-image_dims:]
        x = normal(*shape)
        side = max(*shape, *image_shape)
        # A whole number of times the larger box.
        finer = oversampling * side / max(shape) - 1e-9 * (oversampling > 1)
        summed = x if image_dims == dims else x.sum(0)
        steps = torch.tensor([[0, 0, 0], [2, 0, 0], [-1, 3, 2], [side, -side, 0]])[:, :image_dims]
        images = project(
            x,
            torch.eye(dims, dtype=torch.float64),
            steps.double(),
            image_shape,
            interpolation,
            finer,
            math.inf,
            correction=None,
        )
        whole = centred(summed, (side,) * image_dims)
        for image, step in zip(images, steps.tolist()):
            rolled = torch.roll(whole, step[::-1], axes(image_dims))
            torch.testing.assert_close(image, centred(rolled, image_shape), rtol=0, atol=EXACT)


QUARTERS = {
    2: [[[0, -1], [1, 0]], [[-1, 0], [0, -1]]],
    3: [
        [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
        [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
        [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
    ],
}


@every_interpolation
@every_geometry
def test_a_rectangular_box_goes_where_its_voxels_do(dims, image_dims, interpolation, backend):
    """By quarters of a turn each voxel goes to M^T r, and those that leave the image are not in it."""
    shape, image_shape = (5, 9, 6)[-dims:], (9, 7, 8)[-image_dims:]
    x = normal(*shape)
    matrices = torch.tensor(QUARTERS[dims], dtype=torch.float64)
    options = {"fourier_radius_cutoff": math.inf, "correction": None}
    images = project(x, matrices, None, image_shape, interpolation, **options)
    for image, m in zip(images, matrices):
        expected = torch.zeros(image_shape, dtype=torch.float64)
        for r, value in zip(offsets(shape).reshape(-1, dims), x.flatten()):
            place = (m.T @ r)[:image_dims].long().tolist()[::-1]
            index = tuple((a + 9 // 2) % 9 - 9 // 2 + n // 2 for a, n in zip(place, image_shape))
            if all(0 <= i < n for i, n in zip(index, image_shape)):
                expected[index] += value
        torch.testing.assert_close(image, expected, rtol=0, atol=EXACT)


@every_interpolation
@every_geometry
def test_a_smaller_output_is_the_centre_of_a_larger_one(dims, image_dims, interpolation, backend):
    """Nothing of what surrounds it folds in; the cutoff, in cycles per longest axis, stays the same frequency."""
    shape, small = (8, 8, 8)[-dims:], (4, 6, 2)[-image_dims:]
    x, poses = normal(*shape), (turns(3, dims=dims), normal(3, image_dims))
    for cutoff in (None, math.inf, 0.375):
        large, less = [
            project(x, *poses, s, interpolation, 1.3, None if cutoff is None else cutoff * max(s))
            for s in ((8,) * image_dims, small)
        ]
        torch.testing.assert_close(less, centred(large, small), rtol=0, atol=EXACT)


@every_geometry
def test_the_cutoff_removes_all_frequencies_beyond_it_and_no_others(dims, image_dims, backend):
    x, poses, shape = normal(*(8,) * dims), (turns(2, dims=dims), normal(2, image_dims)), (8,) * image_dims
    radius = frequencies(shape).norm(dim=-1)
    whole = spectrum_by_hand(
        project(x, *poses, fourier_radius_cutoff=math.inf, output_shape=shape), image_dims
    )
    for cutoff, limit in ((None, 4.0), (2.5, 2.5), (0.5, 0.5)):
        images = project(x, *poses, fourier_radius_cutoff=cutoff, output_shape=shape)
        cut = spectrum_by_hand(images, image_dims)
        # The components are sums of 8^3 voxels.
        torch.testing.assert_close(cut, whole * (radius <= limit), rtol=0, atol=100 * EXACT)


def fourier_cropped(x: Tensor, shape: Sequence[int]) -> Tensor:
    """Sums kept: the spectrum on fewer frequencies, unscaled."""
    spectrum = spectrum_by_hand(x, len(shape))
    for axis, n in zip(axes(len(shape))[:-1], shape[:-1]):
        index = [i if i <= n // 2 else i - n + spectrum.shape[axis] for i in range(n)]
        spectrum = spectrum.index_select(axis, torch.tensor(index))
    return box_by_hand(spectrum[..., : shape[-1] // 2 + 1], shape)


@every_interpolation
@every_geometry
def test_the_pixel_size_crops_in_fourier_space(dims, image_dims, interpolation, backend):
    """By 2 and 12/7, even and odd; shifts and cutoff are in the pixels of the output. Below Nyquist, that has mates."""
    x, m, shift = normal(*(12,) * dims), turns(3, dims=dims), normal(3, image_dims)
    for n in (6, 7):
        size, shape = 12 / n, (n,) * image_dims
        options = {"interpolation": interpolation, "fourier_radius_cutoff": 2.9}
        fine = project(x, m, shift * size, (12,) * image_dims, **options)
        coarse = project(x, m, shift, shape, pixel_size=size, **options)
        torch.testing.assert_close(coarse, fourier_cropped(fine, shape), rtol=0, atol=10 * EXACT)
        assert project(x, m, pixel_size=size).shape == (3, n, n)


@pytest.mark.parametrize("n", [8, 9])
@every_geometry
def test_project_is_the_fourier_projection_of_the_corrected_padded_box(dims, image_dims, n, backend):
    x, poses, shape = normal(*(n,) * dims), (turns(3, dims=dims), normal(3, image_dims)), (n,) * image_dims
    blur = torch.sinc((torch.arange(n, dtype=torch.float64) - n // 2) / (2 * n)) ** 2
    for axis in range(dims):
        x = x / blur.reshape(-1, *[1] * axis)
    images = forward_project(
        spectrum_by_hand(centred(x, (2 * n,) * dims), dims), *poses, shape, oversampling=2
    )
    for axis in range(dims):
        x = x * blur.reshape(-1, *[1] * axis)
    torch.testing.assert_close(project(x, *poses, shape), box_by_hand(images, shape), rtol=0, atol=10 * EXACT)


@every_correction
@every_interpolation
@every_geometry
def test_a_prepared_spectrum_is_what_project_samples(dims, image_dims, interpolation, correction, backend):
    """Of boxes of any shape, even and odd, padded by 2 and to 9 by 1.5, for many poses."""
    for shape, oversampling in (((6, 6, 6), 2), ((4, 6, 5), 1.5), ((5, 5, 5), 2)):
        shape, image_shape = shape[-dims:], (max(shape[-dims:]),) * image_dims
        x, poses = normal(2, *shape), (turns(3, dims=dims), normal(3, image_dims))
        spectrum = prepare(x, dims, interpolation, oversampling, correction=correction)
        padded = (round(oversampling * max(shape)),) * dims
        images = forward_project(
            spectrum, *poses, image_shape, interpolation, oversampling, reconstruction_shape=padded
        )
        expected = project(x, *poses, image_shape, interpolation, oversampling, correction=correction)
        torch.testing.assert_close(box_by_hand(images, image_shape), expected, rtol=0, atol=10 * EXACT)


@every_correction
@every_interpolation
@every_geometry
def test_project_corrects_for_the_padded_box(dims, image_dims, interpolation, correction, backend):
    """Padded to equal axes, by the oversampling of the longest: 1.4 times 7 is 9.8, and 10 is 1.43 times 7."""
    shape, image_shape = (4, 7, 6)[-dims:], (5, 6, 6)[-image_dims:]
    x, m = normal(*shape), turns(2, dims=dims)
    blur = blur_of(shape, (10,) * dims, interpolation, correction)
    options = {"output_shape": image_shape, "interpolation": interpolation, "oversampling": 1.4}
    found = project(x * blur, m, correction=correction, **options)
    torch.testing.assert_close(found, project(x, m, correction=None, **options), rtol=0, atol=EXACT)


def test_the_default_options_are_those_documented(backend):
    x, m, shift = normal(6, 6, 6), turns(2), normal(2, 2)
    options = {
        "interpolation": "linear",
        "oversampling": 2.0,
        "fourier_radius_cutoff": 3.0,
        "pixel_size": 1.0,
        "correction": "separable",
    }
    images = project(x, m, shift)
    assert torch.equal(images, project(x, m, shift, (6, 6), **options))
    assert torch.equal(backproject(images, m, shift), backproject(images, m, shift, (6, 6, 6), **options))


# --- Derivatives ---


@every_correction
@every_interpolation
@every_geometry
def test_first_derivatives_are_exact(dims, image_dims, interpolation, correction, backend):
    """Of the reconstruction, the projections and the poses, off the lattice, backward and forward."""
    shape, image_shape = (2, 4, 3)[-dims:], (3, 2, 4)[-image_dims:]
    x, y = normal(*shape).requires_grad_(), normal(2, *image_shape, seed=1).requires_grad_()
    poses = [p.requires_grad_() for p in (turns(2, dims=dims), normal(2, image_dims, seed=2))]
    options = {
        "interpolation": interpolation,
        "oversampling": 1.3,
        "pixel_size": 1.2,
        "correction": correction,
        "fourier_radius_cutoff": math.inf,
    }

    def forward(x: Tensor, *poses: Tensor) -> Tensor:
        return project(x, *poses, image_shape, **options)

    def backward(y: Tensor, *poses: Tensor) -> Tensor:
        return backproject(y, *poses, shape, projection_shape=image_shape, **options)

    fast = {"check_forward_ad": True, "fast_mode": True}
    assert torch.autograd.gradcheck(forward, (x, *poses), **fast)
    assert torch.autograd.gradcheck(backward, (y, *poses), **fast)


@every_geometry
def test_second_derivatives_are_exact(dims, image_dims, backend):
    shape, image_shape = (2, 4, 3)[-dims:], (3, 2, 4)[-image_dims:]
    x, y = normal(*shape).requires_grad_(), normal(2, *image_shape, seed=1).requires_grad_()
    poses = [p.requires_grad_() for p in (turns(2, dims=dims), normal(2, image_dims, seed=2))]

    def forward(x: Tensor, *poses: Tensor) -> Tensor:
        return project(x, *poses, image_shape, "cubic", 1.3)

    def backward(y: Tensor, *poses: Tensor) -> Tensor:
        return backproject(y, *poses, shape, "cubic", 1.3, projection_shape=image_shape)

    assert torch.autograd.gradgradcheck(forward, (x, *poses), fast_mode=True)
    assert torch.autograd.gradgradcheck(backward, (y, *poses), fast_mode=True)


@over_dtypes
@pytest.mark.parametrize("pose_dtype", DEFECT, ids=str)
def test_results_and_gradients_keep_the_dtype_of_each_input(dtype, pose_dtype, backend):
    x, y = normal(4, 4, 4, dtype=dtype).requires_grad_(), normal(2, 4, 4, dtype=dtype).requires_grad_()
    poses = [p.to(pose_dtype).requires_grad_() for p in (turns(2), normal(2, 2))]
    for function, data in ((project, x), (backproject, y)):
        result = function(data, *poses)
        assert result.dtype == dtype
        leaves = (data, *poses)
        for leaf, gradient in zip(leaves, torch.autograd.grad(result.square().sum(), leaves)):
            assert gradient.dtype == leaf.dtype and gradient.shape == leaf.shape
    spectrum = to_spectrum(x.detach(), 3).requires_grad_()
    weight = torch.ones(spectrum.shape, dtype=dtype).requires_grad_()
    for policy in POLICIES:
        result = reconstruct(spectrum, weight, policy=policy, snr=0.1 if policy == "wiener" else None)
        assert result.dtype == dtype
        for leaf, gradient in zip((spectrum, weight), torch.autograd.grad(result.sum(), (spectrum, weight))):
            assert gradient.dtype == leaf.dtype and gradient.shape == leaf.shape
    assert fsc(x, x).dtype == torch.float64
    assert torch.autograd.grad(fsc(x, 2 * x + 1).sum(), x)[0].dtype == dtype


def test_projections_compile_whole_with_gradients(backend):
    """Both sides do the same sums, of well under 1e4 terms, at most in another order: 1e4 float64 epsilons."""
    torch._dynamo.reset()
    x, poses = normal(6, 5, 6), (turns(2), normal(2, 2))

    def loss(x: Tensor, *poses: Tensor) -> Tensor:
        images = project(x, *poses, (5, 6), pixel_size=1.1)
        return images.square().sum() + backproject(images, *poses, (6, 5, 6), pixel_size=1.1).square().mean()

    results = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        leaves = [t.clone().requires_grad_() for t in (x, *poses)]
        value = function(*leaves)
        results.append((value.detach(), *torch.autograd.grad(value, leaves)))
    for eager, compiled in zip(*results):
        torch.testing.assert_close(compiled, eager, rtol=1e-12, atol=1e-12 * eager.abs().max().item())


def test_projections_map_over_batches_and_differentiate_functionally(backend):
    x, m, shift = normal(3, 5, 5, 5), turns(3, 2), normal(3, 2, 2)
    images = torch.func.vmap(project)(x, m, shift)
    torch.testing.assert_close(images, project(x, m, shift), rtol=0, atol=EXACT)
    smeared = torch.func.vmap(backproject)(images, m, shift)
    torch.testing.assert_close(smeared, backproject(images, m, shift), rtol=0, atol=10 * EXACT)

    def loss(x: Tensor) -> Tensor:
        return project(x, m[0], shift[0]).square().sum()

    # The gradient of |Ax|^2 is 2 A'Ax.
    expected = 2 * backproject(project(x[0], m[0], shift[0]), m[0], shift[0])
    torch.testing.assert_close(torch.func.grad(loss)(x[0]), expected, rtol=0, atol=10 * EXACT)


# --- Boxes and their spectra ---


@pytest.mark.parametrize("large", [6, 7, 9])
@pytest.mark.parametrize("small", [4, 5, 6, 1])
def test_pad_and_crop_move_centre_to_centre(small, large):
    """For all parities, axis by axis; cropping what was padded gives it back."""
    x = normal(2, 3, small, small)
    padded = pad(x, (large, large + 1))
    assert padded.shape == (2, 3, large, large + 1)
    assert torch.equal(padded, centred(x, (large, large + 1)))
    assert padded[0, 0, large // 2, (large + 1) // 2] == x[0, 0, small // 2, small // 2]
    assert torch.equal(crop(padded, (small, small)), x)
    y = normal(large, large, large)
    assert torch.equal(crop(y, (small, large, 1)), centred(y, (small, large, 1)))
    assert torch.equal(crop(y, (small,)), centred(y, (small,)))
    assert torch.equal(crop(pad(y, (9, 9, 9)), (small,) * 3), crop(y, (small,) * 3))


SHAPES = [(6,), (7,), (6, 6), (7, 7), (6, 9), (5, 4), (1, 2), (6, 6, 6), (5, 5, 5), (4, 5, 6), (3, 2, 1)]


@over_dtypes
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_spectra_are_those_of_boxes_with_the_centre_moved_to_index_0(shape, dtype):
    dims = len(shape)
    x = normal(2, *shape, dtype=dtype)
    spectrum = to_spectrum(x, dims)
    assert torch.equal(spectrum, spectrum_by_hand(x, dims))
    found = from_spectrum(spectrum, shape)
    assert torch.equal(found, box_by_hand(spectrum, shape))
    # A transform there and back: tens of roundings of numbers of size 1.
    torch.testing.assert_close(found, x, rtol=0, atol=100 * torch.finfo(dtype).eps)
    point = torch.zeros(shape, dtype=dtype)
    point[tuple(n // 2 for n in shape)] = 1
    assert torch.equal(to_spectrum(point, dims), torch.ones_like(spectrum[0]))


@pytest.mark.parametrize(
    ("shape", "smaller"), [((8, 7), (5, 7)), ((9, 8), (4, 3)), ((6, 9, 8), (6, 4, 5)), ((5,), (2,))]
)
def test_a_spectrum_gives_the_centre_of_its_box_alone(shape, smaller):
    x = torch.randn(2, *shape, dtype=torch.float64)
    spectrum = to_spectrum(x, len(shape))
    assert torch.equal(from_spectrum(spectrum, shape, smaller), crop(from_spectrum(spectrum, shape), smaller))
    with pytest.raises(ValueError, match="output_shape: expected at most"):
        from_spectrum(spectrum, shape, [n + 1 for n in shape])


@pytest.mark.parametrize("policy", ["radial", "wiener"])
def test_weights_are_divided_by_the_same_in_parts(policy, monkeypatch):
    """To the order in which a shell is summed."""
    data = torch.randn(2, 10, 10, 10, 6, dtype=torch.complex128)
    weight = torch.rand(2, 10, 10, 10, 6, dtype=torch.float64) ** 8
    snr = torch.linspace(1, 0.1, 6, dtype=torch.float64) if policy == "wiener" else None
    options = {"policy": policy, "snr": snr, "reconstruction_shape": (10, 10, 10)}
    whole = reconstruct(data, weight, **options)
    monkeypatch.setattr(spectrum_module, "SLAB", 150)
    assert len(spectrum_module.slabs((10, 10, 10))) == 5
    parts = reconstruct(data, weight, **options)
    assert (parts - whole).abs().max() <= 1000 * torch.finfo(torch.float64).eps * whole.abs().max()


LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "a view of a larger box": lambda x: torch.nn.functional.pad(x, (1, 1, 1, 1))[..., 1:-1, 1:-1],
    "expanded": lambda x: x[:1].clone().expand(x.shape),
}


@pytest.mark.parametrize("leaves", [False, True], ids=["plain", "leaves"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inputs_are_never_written_to(layout, leaves, backend):
    def arranged(x: Tensor) -> Tensor:
        x = LAYOUTS[layout](x).detach()
        return x.requires_grad_() if leaves else x

    x, y, m, shift = [arranged(t) for t in (normal(2, 6, 6, 6), normal(2, 6, 6), turns(2), normal(2, 2))]
    spectrum = arranged(to_spectrum(normal(2, 6, 6, 6), 3))
    weight = arranged(torch.rand(spectrum.shape, dtype=torch.float64))
    snr = arranged(torch.rand(3, 4, dtype=torch.float64))
    inputs = (x, y, m, shift, spectrum, weight, snr)
    copies, versions = [t.detach().clone() for t in inputs], [t._version for t in inputs]
    calls: list[Callable[[], Tensor]] = [
        lambda: project(x, m, shift, oversampling=1),
        lambda: project(x, m, shift, (6, 6, 6)[:2], correction=None),
        lambda: backproject(y, m, shift),
        lambda: backproject(y, m, shift, oversampling=1, correction=None),
        lambda: pad(x, (7, 7, 7)) + 0 * pad(x, (7, 7, 7)),
        lambda: crop(x, (3, 3, 3)),
        lambda: from_spectrum(to_spectrum(x, 3), (6, 6, 6)),
        lambda: from_spectrum(spectrum, (6, 6, 6)),
        lambda: correct_gridding(x, (6, 6, 6)),
        lambda: reconstruct(spectrum, weight, correction=None),
        lambda: reconstruct(spectrum, weight, policy="radial"),
        lambda: reconstruct(spectrum, weight, policy="wiener", snr=snr[0]),
        lambda: fsc(x, x),
        lambda: fsc(x, x.flip(0)),
        lambda: fsc_crossing(snr),
    ]
    for call in calls:
        result = call()
        if result.requires_grad:
            result.square().sum().backward()
        assert [t._version for t in inputs] == versions
        assert all(map(torch.equal, inputs, copies))


# --- Gridding correction ---


@every_interpolation
def test_the_blur_is_the_transform_of_the_interpolation_kernel(interpolation):
    """By numerical integration, at every distance up to half of the padded box. Some tens of roundings each."""
    for n, padded in ((9, 9), (8, 8), (8, 16), (9, 12), (7, 35)):
        blur = blur_of((n,), (padded,), interpolation)
        expected = [kernel_transform(interpolation, (i - n // 2) / padded) for i in range(n)]
        expected = torch.tensor(expected, dtype=torch.float64)
        torch.testing.assert_close(blur, expected, rtol=0, atol=100 * 2.2e-16)


def sampling_error(interpolation: str, count: int) -> float:
    """Of sum_m g(m / count) / count in place of the integral of g(u) = h(u) cos(2 pi u v), |v| <= 1/2.

    By trapezoids, over the length L of the kernel h in smooth pieces, at most L / (12 count^2) max|g''|; for nearest
    and an odd count by midpoints, half of that. With |h| in place of h and v = 0 it is no larger.
    """
    # max|h|, max|h'|, max|h''|, L, and the divisor of the rule.
    h, slope, bend, length, rule = {
        "nearest": (1, 0, 0, 1, 24),
        "linear": (1, 1, 0, 2, 12),
        "cubic": (1, 25 / 18, 5, 4, 12),
    }[interpolation]
    return length / (rule * count**2) * (bend + 2 * slope * math.pi + h * math.pi**2)


@every_interpolation
def test_interpolating_between_frequencies_multiplies_the_box_by_the_blur(interpolation, backend):
    """Where the samples have no preferred place between lattice points: the correction is right on average.

    A matrix of 1/K samples the spectrum of the box at K places to a lattice step in each axis; their inverse transform
    is, within the box, the box times sum_m h(m / K) exp(2 pi i m v / K) / K for each axis. Two axes, of factors up to 1
    and 1 + error, add their errors.
    """
    n, K = 13, 31
    error = sampling_error(interpolation, K)
    spectrum = to_spectrum(normal(n, n), 2)
    # Without its outermost frequencies no tap falls outside of it.
    spectrum = spectrum * (frequencies((n, n)).abs() <= n // 2 - 2).all(-1)
    x = box_by_hand(spectrum, (n, n))
    matrix = torch.eye(2, dtype=torch.float64) / K
    fine = forward_project(
        spectrum, matrix, None, (K * n, K * n), interpolation, fourier_radius_cutoff=math.inf
    )
    found = centred(box_by_hand(fine, (K * n, K * n)), (n, n))
    expected = x * blur_of((n, n), (n, n), interpolation)
    assert ((found - expected).abs() <= x.abs() * error * (2 + error) + EXACT).all()


@every_policy
@every_interpolation
def test_evenly_spread_samples_are_averaged_to_the_blurred_map(interpolation, policy, backend):
    """At the scale of the map, whatever the sign of the kernel, whose magnitude weighs.

    A point at r, sampled K times to a lattice step in each axis: data are sum_m h(m / K) times the spectrum there, and
    weights sum_m |h(m / K)|. The first is the blur of a lattice component times K^d, and the second their scale.
    """
    n, K = 9, 31
    error = sampling_error(interpolation, K)
    x = torch.zeros(n, n, dtype=torch.float64)
    x[n // 2 - 1, n // 2 + 2] = 1
    samples = spectrum_by_hand(centred(x, (K * n, K * n)), 2)
    data, weight = backward_project(
        samples,
        torch.eye(2, dtype=torch.float64) / K,
        None,
        (n, n),
        interpolation,
        fourier_radius_cutoff=math.inf,
        weights=torch.ones_like(samples.real),
    )
    snr = 1e15 if policy == "wiener" else None
    y = reconstruct(data, weight, interpolation, policy=policy, snr=snr, correction=None)
    # Beyond, there are no samples on the outer side.
    inside = (frequencies((n, n)).abs() <= n // 2 - 2).all(-1)
    off = spectrum_by_hand(y - x * blur_of((n, n), (n, n), interpolation), 2)[inside]
    # Of both axes, in data and in weights.
    assert (off.abs() <= (1 + error) ** 2 / (1 - error) ** 2 - 1 + EXACT).all()


@every_interpolation
@pytest.mark.parametrize("shape", [(5, 8), (7, 6, 4)], ids=str)
def test_separable_blur_is_an_outer_product_and_radial_blur_one_of_distance(shape, interpolation):
    padded = (12, 9, 14)[: len(shape)]
    lines = [blur_of((n,), (m,), interpolation) for n, m in zip(shape, padded)]
    product = torch.ones((), dtype=torch.float64)
    for line in lines:
        product = product[..., None] * line
    separable = blur_of(shape, padded, interpolation)
    # Three products of numbers up to 1.
    torch.testing.assert_close(separable, product, rtol=0, atol=10 * 2.2e-16)
    radial = blur_of(shape, padded, interpolation, "radial")
    for index in np.ndindex(*shape):
        v = math.sqrt(sum(((i - n // 2) / m) ** 2 for i, n, m in zip(index, shape, padded)))
        assert radial[index].item() == pytest.approx(kernel_transform(interpolation, v), abs=100 * 2.2e-16)
    assert torch.equal(blur_of(shape, padded, interpolation, None), torch.ones(shape, dtype=torch.float64))


@every_correction
@every_interpolation
def test_correction_divides_by_the_blur(interpolation, correction):
    for shape, padded in (((6, 6), (6, 9)), ((5, 4, 3), (8, 8, 8))):
        x = normal(2, *shape)
        blur = blur_of(shape, padded, interpolation, correction)
        corrected = correct_gridding(x, padded, interpolation, correction)
        torch.testing.assert_close(corrected, x / blur, rtol=1e-15, atol=0)
        single = correct_gridding(x.float(), padded, interpolation, correction)
        assert single.dtype == torch.float32
        # Some tens of roundings in a blur of this precision.
        torch.testing.assert_close(single, x.float() / blur.float(), rtol=100 * 1.2e-7, atol=0)
    for dtype in DEFECT:
        blur = gridding_blur((4,), (8,), interpolation, correction, dtype=dtype)
        assert blur.dtype == dtype and blur.shape == (4,)


# --- Reconstruction ---


def moments(x: Tensor, order: int) -> Tensor:
    """x times |r|^order."""
    return x * offsets(x.shape).norm(dim=-1) ** order


# Axis of the map, oversampling that makes the padded axis whole, and policy.
MAPS = [
    (16, 1, "clamp"),
    (15, 1, "wiener"),
    (16, 1.5, "radial"),
    (15, 1.6, "clamp"),
    (16, 2, "clamp"),
    (16, 2, "radial"),
    (16, 2, "wiener"),
    (15, 2, "clamp"),
    (16, 3, "clamp"),
]


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
@pytest.mark.parametrize(("n", "oversampling", "policy"), MAPS)
def test_many_projections_without_noise_give_the_map_back(n, oversampling, interpolation, policy, backend):
    """Shifted images of blobs, by their closed form, from all directions; values, not correlation.

    A component of data / weight is a mean of F(p) over samples around q. To first order in p - q that is F(q) plus its
    slope times the mean of p - q, which an insertion of the positions p themselves measures, so that it can be taken
    off. Where no weight came, F(q) is missing. The second order is at most half of the second derivative, |r|^2 times
    (2 pi / M)^2 in the map, times the mean square of p - q: along each axis 1/6 for linear, 1/12 for nearest.
    """
    m, poses = round(n * oversampling), round(150 * oversampling**3)
    blobs = [(1.0, 1.5, (2.1, -0.7, 1.3)), (0.6, 1.6, (-1.2, 1.9, 0.4))]
    matrices, shifts = turns(poses), normal(poses, 2, seed=2)
    k = frequencies((n, n))
    p = oversampling * torch.einsum("pij,yxj->pyxi", matrices[..., :2], k)
    phase = torch.exp(-2j * math.pi * torch.einsum("yxj,pj->pyx", k, shifts) / n)
    images = torch.zeros(p.shape[:-1], dtype=torch.complex128)
    x = torch.zeros((n,) * 3, dtype=torch.float64)
    for mass, width, centre in blobs:
        at = torch.tensor(centre, dtype=torch.float64)
        exponent = -2 * (math.pi * width / m) ** 2 * p.square().sum(-1)
        images += mass * torch.exp(torch.complex(exponent, -2 * math.pi / m * (p @ at)))
        x += mass * blob(x.shape, at, width, 3)
    options = {
        "reconstruction_shape": (m,) * 3,
        "interpolation": interpolation,
        "oversampling": oversampling,
    }
    ones = torch.ones(images.shape, dtype=torch.float64)
    data, weight = backward_project(images * phase, matrices, shifts, weights=ones, **options)
    places = backward_project(1j * p.movedim(-1, 0) * phase, matrices, shifts, **options).imag.movedim(0, -1)
    found = weight > 0
    drift = (places / torch.where(found, weight, 1)[..., None] - frequencies((m,) * 3)) * found[..., None]
    slope = [spectrum_by_hand(centred(x * r, (m,) * 3), 3) for r in offsets(x.shape).unbind(-1)]
    first = sum(-2j * math.pi / m * s * d for s, d in zip(slope, drift.unbind(-1)))
    # Where the weight is below 1, "clamp" keeps that share of the component.
    kept = weight.clamp(max=1) if policy == "clamp" else found.double()
    spectrum = spectrum_by_hand(centred(x, (m,) * 3), 3)
    missed = centred(box_by_hand(first * kept - spectrum * (1 - kept), (m,) * 3), x.shape)
    missed = missed / blur_of(x.shape, (m,) * 3, interpolation)
    y = reconstruct(
        data, weight, interpolation, oversampling, policy=policy, snr=1e9 if policy == "wiener" else None
    )
    assert y.shape == x.shape
    square = 3 * {"linear": 1 / 6, "nearest": 1 / 12}[interpolation]
    bound = 0.5 * square * (2 * math.pi / m) ** 2 * norm(moments(x, 2))
    assert norm(y - x - missed) <= bound
    if (n, oversampling, interpolation) == (16, 2, "linear"):
        # By Cauchy and Schwarz a relative error e leaves a cosine of at least sqrt(1 - e^2).
        e = (bound + norm(missed)) / norm(x)
        assert torch.cosine_similarity(y.flatten(), x.flatten(), dim=0) >= math.sqrt(1 - e**2) > 0.98


BOXES = [(6, 6, 6), (5, 5, 5), (6, 8), (7, 7), (4, 6, 6)]


def weighted(shape: Sequence[int], low: float, high: float, *batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """A box, its spectrum times a weight, and the weight, random between low and high."""
    x = normal(*batch, *shape)
    spectrum = spectrum_by_hand(x, len(shape))
    generator = torch.Generator().manual_seed(5)
    weight = low + (high - low) * torch.rand(spectrum.shape, generator=generator, dtype=torch.float64)
    return x, spectrum * weight, weight


@pytest.mark.parametrize("shape", BOXES, ids=str)
@pytest.mark.parametrize("snr", [math.inf, torch.tensor(math.inf), torch.tensor([1e30, math.inf])], ids=str)
def test_an_infinite_snr_divides_by_the_weight(shape, snr):
    x, data, weight = weighted(shape, 0.1, 3)
    options = {"policy": "wiener", "correction": None, "reconstruction_shape": shape}
    assert torch.equal(reconstruct(0 * data, 0 * weight, snr=snr, **options), 0 * x)
    torch.testing.assert_close(reconstruct(data, weight, snr=snr, **options), x, rtol=0, atol=EXACT)


@pytest.mark.parametrize("policy", ["clamp", "radial"])
@pytest.mark.parametrize("shape", BOXES, ids=str)
def test_data_that_weights_multiplied_are_divided_by_them(shape, policy):
    """All of them at least 1, and within a factor of a thousand: exact."""
    x, data, weight = weighted(shape, 1, 9, 2)
    found = reconstruct(data, weight, policy=policy, correction=None, reconstruction_shape=shape)
    torch.testing.assert_close(found, x, rtol=0, atol=EXACT)
    for b in range(2):
        alone = reconstruct(data[b], weight[b], policy=policy, correction=None, reconstruction_shape=shape)
        torch.testing.assert_close(found[b], alone, rtol=0, atol=EXACT)


def divided_by_hand(
    data: np.ndarray, weight: np.ndarray, padded: Sequence[int], oversampling: float, policy: str, snr: Any
) -> np.ndarray:
    """Component by component."""
    stored = list(np.ndindex(*weight.shape))

    def radius(index: tuple[int, ...]) -> float:
        k = [i if i <= n // 2 else i - n for i, n in zip(index, padded)]
        cycles = sum((a * max(padded) / n) ** 2 for a, n in zip(k, padded))
        return math.sqrt(cycles) / oversampling

    shells: dict[int, list[float]] = {}
    for index in stored:
        shells.setdefault(math.floor(radius(index) + 0.5), []).append(weight[index])
    result = np.zeros_like(data)
    for index in stored:
        w = weight[index]
        if policy == "clamp":
            w = max(w, 1.0)
        elif policy == "radial":
            shell = shells[math.floor(radius(index) + 0.5)]
            w = max(w, sum(shell) / len(shell) / 1000)
        else:
            curve = np.atleast_1d(snr)
            signal = np.interp(radius(index), np.arange(len(curve)), curve)
            w = w + oversampling ** -len(padded) / signal if signal > 0 else math.inf
        result[index] = data[index] / w if w > 0 else 0
    return result


SNRS = [
    0.1,
    3,
    torch.tensor(0.7, dtype=torch.float64),
    torch.tensor([5.0, 2.0, 0.0, 0.3], dtype=torch.float64),
]
DIVISIONS = [("clamp", None), ("radial", None), *(("wiener", snr) for snr in SNRS)]


@pytest.mark.parametrize("padded", [(6, 6, 6), (9, 9, 9), (6, 9), (12, 12), (6, 12, 9)], ids=str)
@pytest.mark.parametrize("oversampling", [1, 1.5, 3])
@pytest.mark.parametrize(("policy", "snr"), DIVISIONS, ids=str)
def test_policies_are_what_they_say_component_by_component(policy, snr, oversampling, padded):
    """With weights from none, over all that is small, to large ones, and shells that have none."""
    _, data, weight = weighted(padded, 0, 1)
    weight = 10 ** (6 * weight - 4) * (weight > 0.1)
    weight = weight * ((frequencies(padded).norm(dim=-1) / oversampling).round() != 2)
    expected = divided_by_hand(data.numpy(), weight.numpy(), padded, oversampling, policy, snr)
    box = np.fft.fftshift(np.fft.irfftn(expected, s=padded, axes=range(len(padded))))
    shape = [round(n / oversampling) for n in padded]
    found = reconstruct(
        data,
        weight,
        oversampling=oversampling,
        policy=policy,
        snr=snr,
        correction=None,
        reconstruction_shape=padded,
    )
    largest = np.abs(expected).max()
    expected = centred(torch.from_numpy(box), shape)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, rtol=0, atol=EXACT * max(1, largest))


@every_correction
@every_interpolation
@pytest.mark.parametrize(("padded", "oversampling"), [((8, 8, 8), 2), ((9, 9), 1.5), ((6, 8), 1)], ids=str)
def test_reconstruct_corrects_for_its_interpolation(padded, oversampling, interpolation, correction):
    _, data, weight = weighted(padded, 1, 2)
    options = {"oversampling": oversampling, "reconstruction_shape": padded}
    plain = reconstruct(data, weight, interpolation, correction=None, **options)
    blur = blur_of(plain.shape, padded, interpolation, correction)
    found = reconstruct(data, weight, interpolation, correction=correction, **options)
    torch.testing.assert_close(found * blur, plain, rtol=0, atol=EXACT)


def test_reconstruct_takes_shapes_from_its_data():
    """Three axes are a volume, two an image; batches of images, and odd boxes on their own, need the shape."""
    volumes, images = to_spectrum(normal(2, 5, 8, 8, 8), 3), to_spectrum(normal(5, 8, 8), 2)
    assert reconstruct(volumes, volumes.abs(), oversampling=2).shape == (2, 5, 4, 4, 4)
    assert reconstruct(images[0], images[0].abs(), oversampling=2).shape == (4, 4)
    found = reconstruct(images, images.abs(), oversampling=2, reconstruction_shape=(8, 8))
    assert found.shape == (5, 4, 4)
    torch.testing.assert_close(found[3], reconstruct(images[3], images[3].abs(), oversampling=2))
    odd = to_spectrum(normal(6, 7), 2)
    assert reconstruct(odd, odd.abs(), reconstruction_shape=(6, 7)).shape == (6, 7)


@pytest.mark.parametrize("dims", [2, 3])
def test_the_wiener_filter_is_that_of_the_images_whatever_the_oversampling(dims, backend):
    """Of n images of weight 1 a component keeps n / (n + 1 / snr).

    Insertion spreads the weight of a component over the oversampled ones around it, by a kernel that sums to 1: their
    total stays the same, and each gets 1 / oversampling^dims of it. With that weight, the map is filtered alike.
    """
    n, images, snr = 6, 40.0, 0.25
    x, matrices = normal(*(n,) * dims), turns(50, dims=dims)
    ones = torch.ones(50, *(n,) * (dims - 1), n // 2 + 1, dtype=torch.float64)
    totals = []
    for oversampling in (1, 2, 3):
        padded = (oversampling * n,) * dims
        _, spread = backward_project(
            ones + 0j,
            matrices,
            None,
            padded,
            oversampling=oversampling,
            fourier_radius_cutoff=1.9,  # all taps within the band
            weights=ones,
            projection_shape=(n,) * dims,
        )
        counts = torch.full(spread.shape, 2.0, dtype=torch.float64)
        counts[..., 0] = counts[..., -1] = 1
        totals.append((counts * spread).sum().item())
        spectrum = spectrum_by_hand(centred(x, padded), dims)
        weight = torch.full(spectrum.shape, images / oversampling**dims, dtype=torch.float64)
        options = {"policy": "wiener", "snr": snr, "correction": None}
        found = reconstruct(weight * spectrum, weight, "linear", oversampling, **options)
        torch.testing.assert_close(found, x * images / (images + 1 / snr), rtol=0, atol=EXACT)
    # Sums of some ten thousand weights.
    assert totals == pytest.approx([totals[0]] * 3, rel=1e-12)


@pytest.mark.parametrize(
    ("policy", "snr"), [("clamp", None), ("radial", None), ("wiener", 0.5), ("wiener", 0.0)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_nothing_gives_zeros_and_so_do_its_gradients(policy, snr, dtype):
    """Where there is no weight and no data, all is finite; the map is zero."""
    data = torch.zeros(6, 6, 4, dtype=dtype, requires_grad=True)
    weight = torch.zeros(6, 6, 4, dtype=data.real.dtype, requires_grad=True)
    found = reconstruct(
        data, weight, oversampling=1.5, policy=policy, snr=snr, reconstruction_shape=(6, 6, 6)
    )
    assert torch.equal(found, torch.zeros(4, 4, 4, dtype=weight.dtype))
    for gradient in torch.autograd.grad(found.sum() + found.square().sum(), (data, weight)):
        assert torch.isfinite(torch.view_as_real(gradient) if gradient.is_complex() else gradient).all()


@every_policy
def test_components_without_weight_are_zero(policy):
    """Whatever the data, in one shell that has weights and one that has none: never a division by zero."""
    x, data, weight = weighted((6, 6, 6), 1, 2)
    radius = frequencies((6, 6, 6)).norm(dim=-1).round()
    weight = weight * (radius != 2)
    weight[0, 1, 0] = 0
    data = data * (weight > 0)
    data.requires_grad_()
    weight.requires_grad_()
    snr = 1e30 if policy == "wiener" else None
    found = reconstruct(data, weight, policy=policy, snr=snr, correction=None)
    kept = spectrum_by_hand(x, 3) * (weight.detach() > 0)
    torch.testing.assert_close(found, box_by_hand(kept, x.shape), rtol=0, atol=EXACT)
    for gradient in torch.autograd.grad(found.square().sum(), (data, weight)):
        assert torch.isfinite(torch.view_as_real(gradient) if gradient.is_complex() else gradient).all()


def test_a_signal_that_is_all_noise_is_filtered_away():
    x, data, weight = weighted((6, 6, 6), 0, 3)
    for snr in (0, 0.0, torch.zeros(3)):
        assert torch.equal(reconstruct(data, weight, policy="wiener", snr=snr), 0 * x)


@pytest.mark.parametrize("shape", [(4, 4), (3, 4, 3)], ids=str)
@every_policy
def test_reconstructions_have_exact_derivatives(shape, policy):
    """In data, weights on either side of each limit, and the signal-to-noise ratio."""
    _, data, weight = weighted(shape, 0.3, 3)
    if policy == "radial":
        weight = torch.where(weight < 1, weight * 1e-4, weight * 10)
    leaves = [data.requires_grad_(), weight.requires_grad_()]
    if policy == "wiener":
        leaves.append(torch.tensor([2.0, 0.4, 0.9], dtype=torch.float64, requires_grad=True))

    def function(data: Tensor, weight: Tensor, snr: Optional[Tensor] = None) -> Tensor:
        return reconstruct(data, weight, policy=policy, snr=snr, reconstruction_shape=shape)

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)


# --- Shell correlation ---

FSC_BOXES = [(6, 6, 6), (7, 7, 7), (4, 7, 6), (8, 6), (5, 5), (4, 9)]


def fsc_by_hand(a: np.ndarray, b: np.ndarray) -> list[float]:
    """Over the whole spectrum, component by component."""
    f, g = np.fft.fftn(a), np.fft.fftn(b)
    longest = max(a.shape)
    sums = np.zeros((longest // 2 + 1, 3))
    for index in np.ndindex(*a.shape):
        k = [i if i <= n // 2 else i - n for i, n in zip(index, a.shape)]
        shell = math.floor(math.sqrt(sum((c * longest / n) ** 2 for c, n in zip(k, a.shape))) + 0.5)
        if shell < len(sums):
            p, q = f[index], g[index]
            sums[shell] += (p * q.conjugate()).real, abs(p) ** 2, abs(q) ** 2
    return [ab / math.sqrt(aa * bb) for ab, aa, bb in sums]


@pytest.mark.parametrize("shape", FSC_BOXES, ids=str)
def test_fsc_is_the_correlation_over_whole_shells(shape):
    a, b = normal(*shape), normal(*shape, seed=1)
    b = b + 0.7 * a
    curve = fsc(a, b, len(shape))
    assert curve.dtype == torch.float64 and curve.shape == (max(shape) // 2 + 1,)
    # Hundreds of terms to a shell.
    torch.testing.assert_close(curve.tolist(), fsc_by_hand(a.numpy(), b.numpy()), rtol=0, atol=EXACT)
    torch.testing.assert_close(fsc(b, a, len(shape)), curve, rtol=0, atol=EXACT)


@over_dtypes
@pytest.mark.parametrize("shape", FSC_BOXES, ids=str)
def test_a_map_correlates_with_itself_filtered_or_scaled(shape, dtype):
    """A positive factor to each shell changes nothing, a negative one the sign. A few eps over some hundred terms."""
    dims, tolerance = len(shape), 100 * torch.finfo(dtype).eps
    x = normal(*shape, dtype=dtype)
    longest = max(shape)
    cycles = frequencies(shape) * longest / torch.tensor(shape[::-1], dtype=torch.float64)
    shells = (cycles.norm(dim=-1) + 0.5).floor()
    filtered = box_by_hand(spectrum_by_hand(x.double(), dims) * torch.exp(-shells), shape).to(dtype)
    ones = torch.ones(longest // 2 + 1, dtype=torch.float64)
    # Rounding of the filtered map, relative to its largest shell, in the smallest: exp(-shells).
    for y, sign, slack in ((x, 1, 1), (3 * x, 1, 1), (-0.01 * x, -1, 1), (filtered, 1, math.exp(longest))):
        torch.testing.assert_close(fsc(x, y, dims), sign * ones, rtol=0, atol=tolerance * slack)


def test_independent_maps_do_not_correlate():
    """Over a shell of n components, n/2 independent: of standard deviation 1/sqrt(n). Five of these."""
    n = 24
    curve = fsc(normal(n, n, n), normal(n, n, n, seed=1))
    k = np.fft.fftfreq(n, 1 / n)
    shells = np.floor(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2) + 0.5).astype(int)
    counts = np.bincount(shells.ravel())[: n // 2 + 1]
    assert (curve.abs() <= torch.from_numpy(5 / np.sqrt(counts)))[3:].all()
    assert curve[3:].abs().max() > 0


def test_noise_of_a_known_level_correlates_by_its_share():
    """Maps s + n and s + m correlate by S / (S + N) in expectation: 1/(1 + 1/4), off by 1/sqrt(n) at most as above."""
    n = 24
    signal = normal(n, n, n)
    curve = fsc(signal + 0.5 * normal(n, n, n, seed=1), signal + 0.5 * normal(n, n, n, seed=2))
    # Shells from 6 on have more than 400 components.
    assert ((curve[6:] - 0.8).abs() <= 5 / math.sqrt(400)).all()


def test_shells_without_signal_correlate_by_zero():
    """Never by a number that is none; so do their gradients."""
    x, zero = normal(6, 6, 6), torch.zeros(6, 6, 6, dtype=torch.float64)
    for a, b in ((zero, zero), (x, zero), (zero, x)):
        leaves = [t.clone().requires_grad_() for t in (a, b)]
        curve = fsc(*leaves)
        assert torch.equal(curve, torch.zeros(4, dtype=torch.float64))
        for gradient in torch.autograd.grad(curve.sum(), leaves):
            assert torch.isfinite(gradient).all()
    flat = torch.ones(6, 6, 6, dtype=torch.float64)
    assert fsc(flat, flat).tolist() == [1, 0, 0, 0]


def test_fsc_of_a_batch_is_that_of_each():
    a, b = normal(2, 1, 5, 6, 5), normal(3, 5, 6, 5, seed=1)
    curves = fsc(a, b)
    assert curves.shape == (2, 3, 4)
    for i, j in np.ndindex(2, 3):
        torch.testing.assert_close(curves[i, j], fsc(a[i, 0], b[j]), rtol=0, atol=EXACT)
    images = fsc(a[0, 0], b[0], dims=2)
    assert images.shape == (5, 4)
    torch.testing.assert_close(images[2], fsc(a[0, 0, 2], b[0, 2], dims=2), rtol=0, atol=EXACT)


def test_fsc_has_exact_derivatives():
    a, b = normal(3, 4, 3).requires_grad_(), normal(3, 4, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(fsc, (a, b))
    assert torch.autograd.gradgradcheck(fsc, (a, b), fast_mode=True)


CROSSINGS = {
    "between two shells": ([1, 1, 0.75, 0.25, 0], 0.5, 2.5),
    "nearer to the first": ([1, 0.9, 0.6, 0.1, 0], 0.5, 2.2),
    "on a shell": ([1, 1, 0.5, 0.2], 0.5, 2.0),
    "the first of several": ([1, 0.8, 0.2, 0.9, 0.1], 0.5, 1.5),
    "at once, after 1 at the mean": ([1, 0.0, 0.9, 0.9], 0.5, 0.5),
    "at once, whatever the mean": ([-1, 0.0, 0.9, 0.9], 0.25, 0.75),
    "never": ([1, 0.9, 0.8, 0.7], 0.5, 3.0),
    "at the last": ([1, 1, 1, 0.0], 0.5, 2.5),
    "by another threshold": ([1, 1, 0.243, 0.043], 0.143, 2.5),
    "below zero": ([1, 0.5, -0.5], 0.0, 1.5),
}


@pytest.mark.parametrize(("curve", "threshold", "expected"), CROSSINGS.values(), ids=CROSSINGS)
def test_crossings_are_where_the_line_between_shells_falls_below(curve, threshold, expected):
    found = fsc_crossing(torch.tensor(curve, dtype=torch.float64), threshold)
    assert found.shape == () and found.item() == pytest.approx(expected, abs=1e-14)


def test_crossings_of_a_batch_are_those_of_each():
    curves = torch.tensor([[1, 1, 0.75, 0.25], [1, 1, 1, 1], [1, 0, 0, 0]], dtype=torch.float64)
    expected = torch.tensor([2.5, 3.0, 0.5], dtype=torch.float64)
    torch.testing.assert_close(fsc_crossing(curves), expected, rtol=0, atol=1e-14)
    torch.testing.assert_close(fsc_crossing(curves.reshape(3, 1, 4)), expected[:, None], rtol=0, atol=1e-14)


def test_crossings_have_derivatives():
    """Of 2 + (a - t) / (a - b), where they are between a and b."""
    curve = torch.tensor([1, 1, 0.75, 0.25, 0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fsc_crossing, curve)


def test_a_lowpass_shows_as_a_crossing_at_its_cutoff():
    """With noise of the whole band in one map: 1 up to shell 5, 0 from 6 on, half way at a half, within noise."""
    n = 16
    x = normal(n, n, n)
    low = box_by_hand(spectrum_by_hand(x, 3) * (frequencies(x.shape).norm(dim=-1) < 5.5), x.shape)
    curve = fsc(low + 1e-12 * normal(n, n, n, seed=1), x)
    # The shell of 6 has more than 300 components: its correlation is at most 5/sqrt(300) = 0.29 in size.
    assert 5 + 0.5 / 1.29 <= fsc_crossing(curve).item() <= 5 + 0.5 / 0.71
