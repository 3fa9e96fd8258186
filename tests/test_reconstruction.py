"""Reconstruction: sums and weights to maps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import pytest
import torch
from realspace_by_hand import (
    EXACT,
    blob,
    blur_of,
    box_by_hand,
    centred,
    every_correction,
    every_interpolation,
    every_policy,
    frequencies,
    norm,
    normal,
    offsets,
    spectrum_by_hand,
    turns,
)
from torch import Tensor

from torch_projectors import backward_project
from torch_projectors.realspace import reconstruct, to_spectrum


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
