"""Sums of insertions, a few images at a time: the same as all at once."""

from __future__ import annotations

import math

import pytest
import torch

from torch_projectors import backward_project, realspace, rotations, symmetry
from torch_projectors.insertion import Insertion

N, P = 12, 40


def data(dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(P, N, N, generator=generator, dtype=dtype)
    spectra = realspace.to_spectrum(images, 2)
    weights = torch.rand(spectra.shape, generator=generator, dtype=dtype)
    matrices = rotations.random(P, generator=generator, dtype=dtype)
    shifts = torch.randn(P, 2, generator=generator, dtype=dtype)
    return spectra, weights, matrices, shifts


def at_once(oversampling, interpolation, spectra, weights, matrices, shifts):
    side = round(N * oversampling)
    return backward_project(
        spectra, matrices, shifts, (side,) * 3, interpolation, oversampling, weights=weights
    )


def close(a, b, dtype):
    # A sum of P images of which each adds up to 8 or 64 taps to an entry, in another order.
    bound = 4 * P * torch.finfo(dtype).eps * b.abs().max()
    assert (a - b).abs().max() <= bound


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("oversampling", "interpolation"), [(1, "linear"), (2, "linear"), (1.5, "cubic")])
def test_pieces_add_up_to_all_images_at_once(backend, dtype, oversampling, interpolation):
    arguments = data(dtype)
    insertion = Insertion((N, N), oversampling, interpolation, dtype=dtype, device=arguments[0].device)
    for piece in torch.arange(P).split(7):
        insertion.add(*(x[piece] for x in arguments))
    volume, weight = at_once(oversampling, interpolation, *arguments)
    expected = realspace.reconstruct(
        volume,
        weight,
        interpolation,
        oversampling,
        policy="radial",
        reconstruction_shape=insertion.volume_shape,
    )
    assert insertion.images == P
    close(insertion.map(policy="radial"), expected, dtype)
    close(insertion.map(policy="radial", last=True), expected, dtype)
    close(insertion.data, volume, dtype)
    close(insertion.weight, weight, dtype)


def test_a_map_leaves_the_sums_as_they_are_but_for_the_last():
    arguments = data()
    insertion = Insertion((N, N), 2, dtype=torch.float64)
    insertion.add(*arguments)
    first = insertion.map()
    assert torch.equal(insertion.map(), first)
    assert torch.equal(insertion.map(last=True), first)
    assert torch.equal(insertion.map(), first)
    with pytest.raises(RuntimeError, match="nothing can be added"):
        insertion.add(*arguments)


def test_two_sums_merge_into_that_of_all():
    arguments = data()
    parts = [Insertion((N, N), 2, dtype=torch.float64) for _ in range(2)]
    parts[0].add(*(x[: P // 3] for x in arguments))
    parts[1].add(*(x[P // 3 :] for x in arguments))
    parts[0].merge_(parts[1])
    volume, weight = at_once(2, "linear", *arguments)
    parts[0].map(last=True)
    assert parts[0].images == P
    close(parts[0].data, volume, torch.float64)
    close(parts[0].weight, weight, torch.float64)
    with pytest.raises(RuntimeError, match="both or none"):
        parts[0].merge_(Insertion((N, N), 2, dtype=torch.float64))


def test_operators_insert_every_image_at_all_equivalent_poses():
    spectra, weights, matrices, shifts = data()
    operators = symmetry.operators("D3")
    insertion = Insertion((N, N), 2, dtype=torch.float64)
    insertion.add(spectra, weights, matrices, shifts, operators=operators)
    copies = len(operators)
    turned = symmetry.equivalent(matrices, operators).flatten(0, 1)
    repeated = [x.repeat_interleave(copies, 0) for x in (spectra, weights, shifts)]
    volume, _ = at_once(2, "linear", *repeated[:2], turned, repeated[2])
    insertion.map(last=True)
    assert insertion.images == P
    close(insertion.data, volume, torch.float64)


def test_what_the_cutoff_leaves_out_adds_nothing():
    spectra, weights, matrices, shifts = data()
    insertion = Insertion((N, N), 1, dtype=torch.float64)
    insertion.add(spectra, weights, matrices, shifts, 3)
    volume = backward_project(spectra, matrices, shifts, (N,) * 3, fourier_radius_cutoff=3)
    insertion.map(last=True)
    close(insertion.data, volume, torch.float64)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_signal_to_noise_makes_the_filter_that_the_correlation_asks_for(interpolation):
    """Of a map with weights equal all over a shell, every component is multiplied by 2 f / (1 + f)."""
    insertion = Insertion((N, N), 1, interpolation, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    insertion.data += torch.randn(insertion.data.shape, generator=generator, dtype=torch.complex128)
    insertion.weight += 5.0
    fsc = torch.linspace(0.95, 0.05, N // 2 + 1, dtype=torch.float64)
    options = {"correction": None, "reconstruction_shape": insertion.volume_shape}
    insertion._complete = True  # mates would change weights on paired planes
    filtered = insertion.map(
        policy="wiener", snr=insertion.signal_to_noise(fsc), correction=options["correction"]
    )
    plain = insertion.map(policy="radial", correction=options["correction"])
    ratio = realspace.to_spectrum(filtered, 3) / realspace.to_spectrum(plain, 3)
    for shell in range(1, N // 2):  # on the axis, where frequencies are whole numbers
        expected = 2 * fsc[shell] / (1 + fsc[shell])
        assert math.isclose(ratio[0, 0, shell].real.item(), expected.item(), rel_tol=1e-9)
