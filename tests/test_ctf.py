"""The transfer function is what a formula per frequency, and what physics, say that it is."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from torch_projectors import ctf
from torch_projectors.ctf import Ctf
from torch_projectors.spectrum import cropped, radii

# Three images that differ in everything.
EVERY = Ctf(
    torch.tensor([12000.0, 21000.0, -4000.0]),
    torch.tensor([11000.0, 21500.0, -4500.0]),
    torch.tensor([25.0, -70.0, 130.0]),
    torch.tensor([300.0, 200.0, 100.0]),
    torch.tensor([2.7, 0.0, 1.4]),
    torch.tensor([0.1, 0.07, 0.0]),
    torch.tensor([0.0, 90.0, 30.0]),
    torch.tensor([0.0, 60.0, -20.0]),
    torch.tensor([1.0, 0.8, 1.3]),
)
SHAPES = [(8, 8), (9, 9), (12, 7), (7, 12)]
PIXEL_SIZE = 1.1


def terms(parameters: Ctf, image: int, shape: tuple[int, int], pixel_size: float) -> tuple[np.ndarray, ...]:
    """The parts of the phase and the envelope of an image at every stored frequency, one by one, in float64."""
    u, v, angle, voltage, cs, contrast, shift, b_factor, scale = (
        float(x[image]) if isinstance(x, torch.Tensor) else x for x in parameters
    )
    # de Broglie: h / p, with p c = sqrt(T (T + 2 m c^2)) of an electron of kinetic energy T, all in eV.
    energy, rest, planck_by_c = voltage * 1e3, 510998.95, 12398.419843
    length = planck_by_c / math.sqrt(energy * (energy + 2 * rest))
    height, width = shape
    phases = np.zeros((4, height, width // 2 + 1))
    envelope = np.zeros(phases.shape[1:])
    for i in range(height):
        for j in range(width // 2 + 1):
            y, x = (i if i <= height // 2 else i - height) / (height * pixel_size), j / (width * pixel_size)
            square = x * x + y * y
            direction = math.atan2(y, x) - math.radians(angle)
            phases[:, i, j] = (
                math.pi * length * square * (u * math.cos(direction) ** 2 + v * math.sin(direction) ** 2),
                -math.pi / 2 * cs * 1e7 * length**3 * square**2,
                math.radians(shift),
                math.asin(contrast),
            )
            envelope[i, j] = scale * math.exp(-b_factor * square / 4)
    return phases, envelope


def expected(parameters: Ctf, count: int, shape: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Values, and by how many units of rounding they may be wrong.

    A sum of five products, of factors that were rounded: each has an error of 8 roundings of 1/2 epsilon. The phase's
    error is that of the values, and the envelope, with an exponent below 1, adds some roundings of its own.
    """
    values, errors = [], []
    for image in range(count):
        phases, envelope = terms(parameters, image, shape, PIXEL_SIZE)
        values.append(envelope * np.sin(phases.sum(0)))
        errors.append(abs(envelope) * (4 * abs(phases).sum(0) + 16))
    return torch.from_numpy(np.stack(values)), torch.from_numpy(np.stack(errors))


@pytest.mark.parametrize(("kilovolts", "angstrom"), [(300, 0.0197), (200, 0.0251), (100, 0.0370)])
def test_wavelengths_are_those_of_textbooks(kilovolts, angstrom):
    assert round(ctf.wavelength(kilovolts), 4) == angstrom
    assert ctf.wavelength(torch.tensor(float(kilovolts), dtype=torch.float64)).item() == pytest.approx(
        ctf.wavelength(kilovolts), rel=1e-15
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_those_of_the_formula(shape, dtype):
    values = EVERY.values(shape, PIXEL_SIZE, dtype=dtype)
    right, units = expected(EVERY, 3, shape)
    # The reference's own constants have eight digits at least.
    allowed = units * max(torch.finfo(dtype).eps, 1e-9)
    assert values.dtype == dtype and values.shape == right.shape
    assert ((values - right).abs() <= allowed).all()


def test_single_precision_is_double_precision_rounded_where_phases_are_large():
    """Hundreds of radians at the corner of a large box of small pixels, as its documentation says."""
    one = Ctf(30000.0, 29000.0, 40.0, 200.0)
    single, double = (one.values((256, 256), 0.8, dtype=dtype) for dtype in (torch.float32, torch.float64))
    phase = math.pi * ctf.wavelength(200.0) * 30000 * (0.5 / 0.8) ** 2 * 2
    spherical = math.pi / 2 * 2.7e7 * ctf.wavelength(200.0) ** 3 * ((0.5 / 0.8) ** 2 * 2) ** 2
    assert phase > 500
    bound = 4 * torch.finfo(torch.float32).eps * (phase + spherical)
    assert (single - double).abs().max() <= bound < 2e-3


def test_numbers_are_shared_by_all_images():
    tensors = Ctf(EVERY.defocus_u, 11000.0, 25.0)
    everywhere = Ctf(
        *(torch.as_tensor(x, dtype=torch.float64).expand(3) if i else x for i, x in enumerate(tensors))
    )
    assert torch.equal(tensors.values((8, 8), 1.1), everywhere.values((8, 8), 1.1))
    assert Ctf(1e4, 1e4, 0.0).values((8, 8), 1.1).shape == (1, 8, 5)


def test_some_images_are_those_of_all():
    values = EVERY.values((9, 9), PIXEL_SIZE, dtype=torch.float64)
    index = torch.tensor([2, 0])
    assert torch.equal(EVERY[index].values((9, 9), PIXEL_SIZE, dtype=torch.float64), values[index])
    mixed = EVERY._replace(voltage=300.0, scale=torch.tensor(2.0))
    assert mixed[index].voltage == 300.0 and mixed[index].scale == 2.0
    assert mixed[torch.tensor([], dtype=torch.int64)].values((8, 8), 1.1).shape == (0, 8, 5)


def test_defocus_is_that_of_its_direction():
    """Along the angle from x towards y that of u, across it that of v; the same function turned by a right angle."""
    u, v = 15000.0, 9000.0
    size = {"shape": (16, 16), "pixel_size": 1.5, "dtype": torch.float64}
    round_u, round_v = (Ctf(d, d, 0.0).values(**size)[0] for d in (u, v))
    along_x, along_y, diagonal = (Ctf(u, v, angle).values(**size)[0] for angle in (0.0, 90.0, 45.0))
    k = torch.arange(8)
    near = {"rtol": 0, "atol": 1e-12}  # some tens of radians, times epsilon
    torch.testing.assert_close(along_x[0, k], round_u[0, k], **near)
    torch.testing.assert_close(along_x[k, 0], round_v[k, 0], **near)
    torch.testing.assert_close(along_y[0, k], round_v[0, k], **near)
    torch.testing.assert_close(along_y[k, 0], round_u[k, 0], **near)
    torch.testing.assert_close(diagonal[k, k], round_u[k, k], **near)
    torch.testing.assert_close(diagonal[-k, k], round_v[-k, k], **near)


def test_underfocus_is_positive_and_makes_particles_bright():
    values = Ctf(10000.0, 10000.0, 0.0).values((64, 64), 4.0, dtype=torch.float64)[0]
    assert values[0, 0] == pytest.approx(0.1, abs=1e-15)
    assert (values[0, 1:8] > values[0, :7]).all()


def test_a_phase_plate_of_a_right_angle_exchanges_sine_and_cosine():
    one = Ctf(10000.0, 10000.0, 0.0, amplitude_contrast=0.0)
    sine = one.values((16, 16), 1.5, dtype=torch.float64)
    cosine = one._replace(phase_shift=90.0).values((16, 16), 1.5, dtype=torch.float64)
    torch.testing.assert_close(sine**2 + cosine**2, torch.ones_like(sine), rtol=0, atol=1e-12)
    assert cosine[0, 0, 0] == 1


def test_envelope_is_half_a_b_factor_of_intensity():
    """Amplitudes fall with exp(-B u^2 / 4), and the scale is theirs too."""
    plain, damped = (Ctf(8000.0, 8000.0, 0.0, b_factor=b, scale=s) for b, s in ((0.0, 1.0), (100.0, 0.5)))
    size = ((16, 16), 1.5)
    ratio = damped.values(*size, dtype=torch.float64) / plain.values(*size, dtype=torch.float64)
    square = (radii((16, 16)) / (16 * 1.5)) ** 2
    torch.testing.assert_close(ratio[0], 0.5 * torch.exp(-25 * square), rtol=1e-14, atol=0)


@pytest.mark.parametrize(("full", "small"), [(16, 8), (15, 8), (16, 7), (15, 9)])
def test_of_a_cropped_spectrum_is_the_cropped_one(full, small):
    """The same frequencies, to rounding: 1/(n d) of one box is 1/(m (n d / m)) of the other."""
    of_all = EVERY.values((full, full), PIXEL_SIZE, dtype=torch.float64)
    smaller = EVERY.values((small, small), PIXEL_SIZE * full / small, dtype=torch.float64)
    torch.testing.assert_close(smaller, cropped(of_all, (full, full), (small, small)), rtol=0, atol=1e-12)
