"""Correlation by shells."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from realspace_by_hand import EXACT, box_by_hand, frequencies, normal, over_dtypes, spectrum_by_hand

from torch_projectors.realspace import fsc, fsc_crossing

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
