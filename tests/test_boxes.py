"""Boxes and their spectra, and the correction of gridding."""

from __future__ import annotations

import math
from typing import Callable

import numpy as np
import pytest
import torch
from realspace_by_hand import (
    DEFECT,
    EXACT,
    blur_of,
    box_by_hand,
    centred,
    every_correction,
    every_interpolation,
    every_policy,
    frequencies,
    kernel_transform,
    normal,
    over_dtypes,
    spectrum_by_hand,
    turns,
)
from torch import Tensor

from torch_projectors import backward_project, forward_project
from torch_projectors import spectrum as spectrum_module
from torch_projectors.realspace import (
    backproject,
    correct_gridding,
    crop,
    from_spectrum,
    fsc,
    fsc_crossing,
    gridding_blur,
    pad,
    project,
    reconstruct,
    to_spectrum,
)


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
