"""First and second derivatives, exact under gradient="stored", and what gradient="friedel" means."""

from __future__ import annotations

import pytest
import torch

from torch_projectors import backward_project, forward_project
from torch_projectors.cases import GEOMETRIES
from torch_projectors.geometry import INTERPOLATION_CODES
from torch_projectors.spectrum import paired_columns, stored_shape

VOLUMES = {2: (3, 4), 3: (3, 2, 4)}
IMAGES = {2: (4, 3), 3: (2, 3, 3)}

every_geometry = pytest.mark.parametrize(
    ("dims", "image_dims"), GEOMETRIES, ids=[f"{a}D->{b}D" for a, b in GEOMETRIES]
)
every_interpolation = pytest.mark.parametrize("interpolation", INTERPOLATION_CODES)


def problem(dims, image_dims, interpolation, gradient):
    """Functions of leaf tensors, and the leaves: two poses, one of them stretched."""
    torch.manual_seed(dims + image_dims)
    volume_shape, image_shape = VOLUMES[dims], IMAGES[image_dims]

    def leaf(*shape, dtype=torch.float64):
        return torch.randn(*shape, dtype=dtype).requires_grad_()

    volume = leaf(*stored_shape(volume_shape), dtype=torch.complex128)
    images = leaf(2, *stored_shape(image_shape), dtype=torch.complex128)
    weights = torch.rand(images.shape, dtype=torch.float64).requires_grad_()
    rotations, shifts = leaf(2, dims, dims), leaf(2, image_dims)
    options = {"interpolation": interpolation, "oversampling": 1.2, "gradient": gradient}

    def forward(volume, rotations, shifts):
        return forward_project(
            volume, rotations, shifts, image_shape, reconstruction_shape=volume_shape, **options
        )

    def backward(images, weights, rotations, shifts):
        return backward_project(
            images, rotations, shifts, volume_shape, weights=weights, projection_shape=image_shape, **options
        )

    return (forward, (volume, rotations, shifts)), (backward, (images, weights, rotations, shifts))


@every_geometry
@every_interpolation
def test_first_derivatives_are_exact_backward_and_forward(backend, dims, image_dims, interpolation):
    for function, leaves in problem(dims, image_dims, interpolation, "stored"):
        assert torch.autograd.gradcheck(function, leaves, check_forward_ad=True, fast_mode=dims == 3)


@every_geometry
@every_interpolation
def test_second_derivatives_are_exact_backward_and_forward(backend, dims, image_dims, interpolation):
    for function, leaves in problem(dims, image_dims, interpolation, "stored"):
        assert torch.autograd.gradgradcheck(function, leaves, check_fwd_over_rev=True, fast_mode=True)


@every_interpolation
def test_third_derivatives_are_exact(interpolation):
    forward, (volume, rotations, shifts) = problem(2, 2, interpolation, "stored")[0]

    def gradient(rotations, shifts):
        loss = torch.view_as_real(forward(volume.detach(), rotations, shifts)).square().sum()
        return torch.autograd.grad(loss, (rotations, shifts), create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, (rotations, shifts), fast_mode=True)


@every_geometry
def test_nearest_has_no_rotation_gradient(backend, dims, image_dims):
    for function, leaves in problem(dims, image_dims, "nearest", "friedel"):
        outputs = function(*leaves)
        total = sum(x.abs().square().sum() for x in (outputs if isinstance(outputs, tuple) else [outputs]))
        (rotation_gradient,) = torch.autograd.grad(total, leaves[-2])
        assert torch.equal(rotation_gradient, torch.zeros_like(rotation_gradient))


@every_geometry
@every_interpolation
def test_friedel_gradient_is_that_of_the_loss_with_each_pair_counted_once(
    backend, dims, image_dims, interpolation
):
    stored = problem(dims, image_dims, interpolation, "stored")
    friedel = problem(dims, image_dims, interpolation, "friedel")
    for (exact, leaves), (default, default_leaves), width in zip(
        stored, friedel, (IMAGES[image_dims][-1], VOLUMES[dims][-1])
    ):

        def once(x, width=width):
            """1/2 on columns that hold both mates of a pair."""
            half = torch.ones(x.shape[-1], dtype=torch.float64)
            half[paired_columns(width)] = 0.5
            return half

        def loss(outputs, weighted, once=once):
            outputs = outputs if isinstance(outputs, tuple) else [outputs]
            return sum(((once(x) if weighted else 1) * x.abs().square()).sum() for x in outputs)

        counted_once = torch.autograd.grad(loss(exact(*leaves), True), leaves)
        plain = torch.autograd.grad(loss(default(*default_leaves), False), default_leaves)
        # The same products in both; sums of under 100 terms in the same order.
        torch.testing.assert_close(plain, counted_once, rtol=1e-13, atol=1e-13)


def test_friedel_gradient_is_half_of_that_over_the_full_spectrum(backend):
    n = 8
    volume = torch.fft.rfftn(torch.randn(n, n, n, dtype=torch.float64))
    rotations = torch.linalg.qr(torch.randn(3, 3, 3, dtype=torch.float64))[0].requires_grad_()
    # Below Nyquist, where each component has a mate of its own.
    images = forward_project(volume, rotations, gradient="stored", fourier_radius_cutoff=3)
    # irfftn fills in the mates: the squared norm of the full spectrum, by Parseval.
    full = torch.fft.irfftn(images, dim=(1, 2)).square().sum() * n * n
    (over_full,) = torch.autograd.grad(full, rotations)
    images = forward_project(volume, rotations, fourier_radius_cutoff=3)
    (over_pairs,) = torch.autograd.grad(torch.view_as_real(images).square().sum(), rotations)
    # Sums of under 1e3 terms of the size of the largest result.
    scale = float(over_full.abs().max())
    torch.testing.assert_close(over_pairs, over_full / 2, rtol=0, atol=1e3 * 2.2e-16 * scale)


def test_stored_gradient_passes_through_irfftn(backend):
    shape = (4, 4)
    volume = torch.randn(4, 4, 4, dtype=torch.float64).requires_grad_()
    rotations = torch.linalg.qr(torch.randn(2, 3, 3, dtype=torch.float64))[0].requires_grad_()

    def project(volume, rotations):
        images = forward_project(torch.fft.rfftn(volume), rotations, output_shape=shape, gradient="stored")
        return torch.fft.irfftn(images, s=shape, dim=(1, 2))

    assert torch.autograd.gradcheck(project, (volume, rotations))


@pytest.mark.parametrize("complex_dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("pose_dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_come_in_the_dtype_of_each_input(backend, complex_dtype, pose_dtype):
    volume = torch.randn(4, 4, 3, dtype=complex_dtype).requires_grad_()
    rotations = torch.randn(2, 3, 3, dtype=pose_dtype).requires_grad_()
    shifts = torch.randn(2, 2, dtype=pose_dtype).requires_grad_()
    images = forward_project(volume, rotations, shifts)
    assert images.dtype == complex_dtype
    images.abs().sum().backward()
    for leaf in (volume, rotations, shifts):
        assert leaf.grad.dtype == leaf.dtype and leaf.grad.shape == leaf.shape


def test_only_the_gradients_asked_for_are_computed(backend, monkeypatch):
    from torch_projectors import ops

    calls = []
    original = ops.Operators.project_gradients

    def recorded(self, *args):
        calls.append(args[-4:])
        return original(self, *args)

    monkeypatch.setattr(ops.Operators, "project_gradients", recorded)
    volume = torch.randn(4, 4, 3, dtype=torch.complex128)
    rotations, shifts = torch.randn(2, 3, 3).double(), torch.randn(2, 2).double().requires_grad_()
    forward_project(volume, rotations, shifts).abs().sum().backward()
    assert calls == [(False, False, False, True)]
    forward_project(volume.requires_grad_(), rotations, shifts.detach()).abs().sum().backward()
    assert len(calls) == 1, "the gradient of the volume alone is one scatter"


def test_a_graph_through_both_directions_is_right():
    """Residual of a reconstruction step: gradients flow through backward_project into forward_project."""
    volume = torch.randn(4, 4, 3, dtype=torch.complex128)
    images = torch.randn(2, 4, 3, dtype=torch.complex128)
    rotations = torch.randn(2, 3, 3, dtype=torch.float64).requires_grad_()
    shifts = torch.randn(2, 2, dtype=torch.float64).requires_grad_()

    def step(rotations, shifts):
        residual = forward_project(volume, rotations, shifts, gradient="stored") - images
        return backward_project(residual, rotations, shifts, gradient="stored")

    assert torch.autograd.gradcheck(step, (rotations, shifts))
    assert torch.autograd.gradgradcheck(step, (rotations, shifts), fast_mode=True)
