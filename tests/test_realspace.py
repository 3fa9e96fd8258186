"""Real-space projection, its transpose and its derivatives.

A sample at a lattice point plus t, |t| <= 1, sees the voxel at r of a padded box of M through taps w_j at j - t:
instead of exp(-2 pi i t v), v = r / M, it gets sum_j w_j exp(-2 pi i j v). Along one axis these differ by at most
the interpolation error of the exponential: pi |v| for nearest, (2 pi v)^2 / 8 for linear, 3/32 |2 pi v|^3 for
cubic, as in test_closed_form.py. Where the box was divided by its blur H(v) <= 1, the relative error of a voxel is
at most e(v) = (that + 1 - H) / H along each axis, and prod(1 + e) - 1 over all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from realspace_by_hand import (
    DEFECT,
    EXACT,
    axes,
    blob,
    blur_of,
    box_by_hand,
    centred,
    every_correction,
    every_geometry,
    every_interpolation,
    frequencies,
    kernel_transform,
    norm,
    normal,
    offsets,
    over_dtypes,
    spectrum_by_hand,
    turns,
)
from torch import Tensor

from torch_projectors import forward_project
from torch_projectors.realspace import POLICIES, backproject, fsc, prepare, project, reconstruct, to_spectrum

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
