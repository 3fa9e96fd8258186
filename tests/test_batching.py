"""Leading dimensions broadcast as torch's do; layouts of tensors and their emptiness do not matter."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
import torch

from torch_projectors import backward_project, forward_project, reference
from torch_projectors.batching import fold_forward
from torch_projectors.cases import GEOMETRIES
from torch_projectors.spectrum import stored_shape

BOX = {2: (6, 6), 3: (6, 6, 6)}


def same(actual, expected):
    # The same sums, split into other blocks at most: a few float64 epsilons.
    torch.testing.assert_close(actual, expected, rtol=1e-13, atol=1e-13)


def spectrum(*lead, dims):
    return torch.randn(*lead, *stored_shape(BOX[dims]), dtype=torch.complex128)


def poses(*lead, dims):
    return torch.randn(*lead, dims, dims, dtype=torch.float64)


def moves(*lead, dims):
    return torch.randn(*lead, dims, dtype=torch.float64)


# Leading dimensions of the reconstruction, rotations and shifts; the last one of poses is P.
LEADING = [
    ((), (3,), (3,)),
    ((2,), (3,), (3,)),
    ((2,), (2, 3), (3,)),
    ((2,), (3,), (2, 3)),
    ((2,), (1, 3), (2, 3)),
    ((), (2, 3), (3,)),
    ((), (3,), (2, 3)),
    ((1,), (2, 3), (2, 1)),
    ((2,), (1,), (3,)),
    ((), (4, 2, 3), (2, 1)),
    ((4, 2), (2, 3), (4, 1, 3)),
    ((4, 1), (2, 3), (4, 1, 3)),
    ((4, 1), (1, 2, 3), (1, 1, 1)),
    ((2, 1, 3), (4, 1, 2), (3, 2)),
    ((2,), (3, 4, 1, 2), (2,)),  # the batch goes before two dimensions of the poses: not its own inverse
]


@pytest.mark.parametrize(("dims", "image_dims"), GEOMETRIES, ids=[f"{a}D->{b}D" for a, b in GEOMETRIES])
@pytest.mark.parametrize(("lead", "turned", "moved"), LEADING, ids=str)
def test_leading_dimensions_broadcast_as_a_loop_over_them(backend, dims, image_dims, lead, turned, moved):
    volume = spectrum(*lead, dims=dims)
    rotations, shifts = poses(*turned, dims=dims), moves(*moved, dims=image_dims)
    images = forward_project(volume, rotations, shifts, BOX[image_dims], "linear")

    *every, count = torch.broadcast_shapes((*lead, 1), turned, moved)
    assert images.shape == (*every, count, *stored_shape(BOX[image_dims]))
    volumes = volume.expand(*every, *volume.shape[len(lead) :])
    rotation = rotations.expand(*every, count, dims, dims)
    shift = shifts.expand(*every, count, image_dims)
    inserted = backward_project(
        images, rotations, shifts, BOX[dims], weights=images.abs(), projection_shape=BOX[image_dims]
    )
    for index in itertools.product(*[range(n) for n in every]):
        one = forward_project(volumes[index], rotation[index], shift[index], BOX[image_dims])
        same(images[index], one)
        back = backward_project(
            one, rotation[index], shift[index], BOX[dims], weights=one.abs(), projection_shape=BOX[image_dims]
        )
        same([x[index] for x in inserted], list(back))


@pytest.mark.parametrize(("lead", "turned", "moved"), LEADING, ids=str)
def test_gradients_of_broadcast_inputs_are_summed_over_the_batch(backend, lead, turned, moved):
    leaves = [spectrum(*lead, dims=3), poses(*turned, dims=3), moves(*moved, dims=2)]
    leaves = [x.requires_grad_() for x in leaves]

    def run(volume, rotations, shifts):
        images = forward_project(volume, rotations, shifts)
        return torch.autograd.grad(images.abs().square().sum(), leaves)

    *every, count = torch.broadcast_shapes((*lead, 1), turned, moved)
    volume, rotations, shifts = leaves
    expanded = (
        volume.expand(*every, *volume.shape[len(lead) :]).clone(),
        rotations.expand(*every, count, 3, 3).clone(),
        shifts.expand(*every, count, 2).clone(),
    )
    same(run(*leaves), run(*expanded))


@pytest.mark.parametrize(("dims", "image_dims"), GEOMETRIES, ids=[f"{a}D->{b}D" for a, b in GEOMETRIES])
def test_one_pose_needs_no_dimension_of_poses(backend, dims, image_dims):
    volume, rotation, shift = spectrum(2, dims=dims), poses(dims=dims), moves(dims=image_dims)
    shape = BOX[image_dims]
    images = forward_project(volume, rotation, shift, shape)
    assert images.shape == (2, *stored_shape(shape))
    same(images, forward_project(volume, rotation[None], shift[None], shape)[:, 0])
    options = {"reconstruction_shape": BOX[dims], "projection_shape": shape}
    single = backward_project(images, rotation, shift, **options)
    same(single, backward_project(images[:, None], rotation[None], shift[None], **options))
    # One rotation for several shifts, and the reverse.
    several = moves(3, dims=image_dims)
    same(
        forward_project(volume, rotation, several, shape),
        forward_project(volume, rotation.expand(3, dims, dims), several, shape),
    )


@pytest.mark.parametrize(("dims", "image_dims"), GEOMETRIES, ids=[f"{a}D->{b}D" for a, b in GEOMETRIES])
@pytest.mark.parametrize(("batch", "count"), [(2, 0), (0, 3), (0, 0)])
def test_no_poses_and_no_volumes_give_empty_results_and_zero_gradients(
    backend, dims, image_dims, batch, count
):
    volume = spectrum(batch, dims=dims).requires_grad_()
    rotations = poses(batch, count, dims=dims).requires_grad_()
    shifts = moves(count, dims=image_dims).requires_grad_()
    images = forward_project(volume, rotations, shifts, BOX[image_dims])
    assert images.shape == (batch, count, *stored_shape(BOX[image_dims]))
    inserted, weight = backward_project(
        images, rotations, shifts, BOX[dims], weights=images.detach().abs(), projection_shape=BOX[image_dims]
    )
    assert inserted.shape == weight.shape == volume.shape
    gradients = torch.autograd.grad(inserted.abs().sum() + images.abs().sum(), (volume, rotations, shifts))
    assert not any(g.any() for g in gradients)


@pytest.mark.parametrize(("dims", "image_dims"), GEOMETRIES, ids=[f"{a}D->{b}D" for a, b in GEOMETRIES])
def test_the_layout_of_inputs_does_not_matter(backend, dims, image_dims):
    volume = spectrum(2, dims=dims)
    rotations, shifts = poses(3, dims=dims), moves(3, dims=image_dims)
    expected = forward_project(volume, rotations, shifts, BOX[image_dims])
    transposed = [x.mT.contiguous().mT for x in (volume, rotations)]
    strided = torch.stack([shifts, shifts], -1)[..., 0]
    assert not any(x.is_contiguous() for x in (*transposed, strided))
    same(forward_project(*transposed, strided, BOX[image_dims]), expected)
    alike = forward_project(
        volume[:1].expand(2, *volume.shape[1:]), rotations[:1].expand(3, -1, -1), None, BOX[image_dims]
    )
    same(alike[1, 2], alike[0, 0])
    options = {"reconstruction_shape": BOX[dims], "projection_shape": BOX[image_dims]}
    weights = expected.abs()
    same(
        backward_project(
            expected.mT.contiguous().mT, rotations, shifts, weights=weights.mT.contiguous().mT, **options
        ),
        backward_project(expected, rotations, shifts, weights=weights, **options),
    )


def test_shared_poses_and_volumes_are_not_expanded():
    shapes = []

    def project(volume, rotations, shifts):
        shapes.append((volume.shape, rotations.shape, shifts.shape, volume.data_ptr()))
        return volume.new_zeros(volume.shape[0], rotations.shape[1], 2, 2)

    many, one = torch.zeros(5, 4, 4, 3), torch.zeros(4, 4, 3)
    fold_forward(project, many, torch.zeros(7, 3, 3), torch.zeros(7, 2), 3)
    images = fold_forward(project, one, torch.zeros(5, 7, 3, 3), torch.zeros(7, 2), 3)
    assert images.shape == (5, 7, 2, 2)
    assert shapes == [
        (many.shape, (1, 7, 3, 3), (1, 7, 2), many.data_ptr()),
        ((1, *one.shape), (1, 35, 3, 3), (1, 35, 2), one.data_ptr()),
    ]


@pytest.mark.parametrize("taps", [1, 7, 300, 1 << 22])
@pytest.mark.parametrize("batch", [1, 2])
def test_results_do_not_depend_on_the_size_of_blocks(monkeypatch, taps, batch):
    volume, rotations = spectrum(batch, dims=3), poses(3, dims=3)
    shifts = moves(3, dims=2)

    def run():
        leaves = [x.clone().requires_grad_() for x in (volume, rotations, shifts)]
        images = forward_project(*leaves)
        first = torch.autograd.grad(images.real.square().sum(), leaves, create_graph=True)
        second = torch.autograd.grad(sum(g.abs().square().sum() for g in first), leaves)
        return images, *first, *second, backward_project(images, rotations, shifts)

    expected = run()
    monkeypatch.setattr(reference, "BLOCK_TAPS", taps)
    for actual, wanted in zip(run(), expected):
        # Sums of under 1e3 terms of the size of the largest, in another order.
        scale = float(wanted.detach().abs().max())
        torch.testing.assert_close(actual, wanted, rtol=0, atol=1e3 * 2.2e-16 * scale)


MEMORY_PROGRAM = """
import resource, sys, torch
from torch_projectors import backward_project, forward_project
n, poses = 64, int(sys.argv[1])
volume = torch.randn(n, n, n // 2 + 1, dtype=torch.complex64).requires_grad_()
rotations = torch.linalg.qr(torch.randn(poses, 3, 3))[0].requires_grad_()
forward_project(volume, rotations[:1]).abs().sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
images = forward_project(volume, rotations)
torch.autograd.grad(images, (volume, rotations), images.detach())
backward_project(images.detach(), rotations.detach(), weights=torch.ones(images.shape))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, images.numel() * 8 // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux only")
def test_memory_beyond_inputs_and_outputs_does_not_grow_with_the_number_of_poses():
    def extra(count):
        root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        environment = {**os.environ, "PYTHONPATH": root, "TORCH_PROJECTORS_DISABLE": "all"}
        result = subprocess.run(
            [sys.executable, "-c", MEMORY_PROGRAM, str(count)],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert result.returncode == 0, result.stderr
        peak, images = map(int, result.stdout.split())
        # Held beside the images: their gradient weighted by half, the images weighted by half, and two of weights.
        return peak - 4 * images

    assert extra(2000) - extra(200) < 100 * 1024  # kilobytes; 2000 images are 133 MiB
