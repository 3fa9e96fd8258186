"""Projections by RELION, where they are at hand: conventions, and values, of another program.

RELION samples linearly at oversampling 2 from a padded map that was divided by the separable sinc^2 of linear
interpolation. The even map is the odd one, cropped by frequency.
"""

from __future__ import annotations

import os
import struct
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_projectors import conventions, forward_project, realspace

GOLDENS = Path(os.environ.get("TORCH_PROJECTORS_GOLDENS") or Path(__file__).parents[2] / "shared" / "goldens")
RELION = GOLDENS / "relion"

pytestmark = pytest.mark.skipif(not RELION.is_dir(), reason="no goldens: set TORCH_PROJECTORS_GOLDENS")


def read_mrc(path: Path) -> np.ndarray:
    data = path.read_bytes()
    nx, ny, nz, mode = struct.unpack_from("<4i", data)
    (extended,) = struct.unpack_from("<i", data, 92)
    assert mode == 2
    return np.frombuffer(data, "<f4", nx * ny * nz, 1024 + extended).reshape(nz, ny, nx).astype(float)


def read_particles(path: Path) -> list[dict[str, str]]:
    """The rows of data_particles."""
    lines = iter(path.read_text().partition("data_particles")[2].splitlines())
    names, rows = [], []
    for line in lines:
        words = line.split()
        if line.startswith("_"):
            names.append(words[0])
        elif len(words) == len(names) > 0:
            rows.append(dict(zip(names, words)))
    return rows


def to_half(x: Tensor, dims: int) -> Tensor:
    axes = tuple(range(-dims, 0))
    return torch.fft.rfftn(torch.fft.ifftshift(x, dim=axes), dim=axes)


def cropped(x: Tensor, n: int) -> Tensor:
    """The map on n points an axis, values kept, without its Nyquist planes."""
    old = x.shape[0]
    spectrum = torch.fft.fftshift(torch.fft.fftn(torch.fft.ifftshift(x)))
    keep = slice(old // 2 - n // 2, old // 2 - n // 2 + n)
    spectrum = spectrum[keep, keep, keep].clone()
    for axis in range(3):
        spectrum.select(axis, 0).zero_()
    return torch.fft.fftshift(torch.fft.ifftn(torch.fft.ifftshift(spectrum))).real * (n / old) ** 3


@cache
def relion_map(n: int) -> Tensor:
    x = torch.from_numpy(np.load(RELION / "clean70SRibosome_vol.npy")).double()
    return x if n == x.shape[0] else cropped(x, n)


@cache
def relion_reconstruction(n: int) -> Tensor:
    x = relion_map(n)
    blur = torch.sinc((torch.arange(n, dtype=torch.float64) - n // 2) / (2 * n)) ** 2
    x = x / (blur[:, None, None] * blur[:, None] * blur)
    padded = torch.zeros((2 * n,) * 3, dtype=torch.float64)
    inner = slice(n - n // 2, n - n // 2 + n)
    padded[inner, inner, inner] = x
    return to_half(padded, 3)


every_stack = pytest.mark.parametrize(
    ("name", "n"), [("rln_proj_65_centered", 65), ("rln_proj_64_centered", 64), ("rln_proj_64_shifted", 64)]
)


def relion_images(name: str, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """The images, and their poses in our conventions."""
    rows = read_particles(RELION / f"{name}.star")
    golden = torch.from_numpy(read_mrc(RELION / f"{name}.mrcs"))
    assert golden.shape == (len(rows), n, n) == (4, n, n)
    angles = [[float(row[f"_rlnAngle{angle}"]) for angle in ("Rot", "Tilt", "Psi")] for row in rows]
    origins = [[float(row.get(f"_rlnOrigin{axis}", 0)) for axis in "XY"] for row in rows]
    rotations, shifts = conventions.from_relion(angles, origins, image_size=n)
    return golden, rotations.to(golden.device), shifts.to(golden.device)


def assert_same_images(ours: Tensor, theirs: Tensor, n: int) -> None:
    """Correlation inside Nyquist, and amplitude, of each of the half spectra."""
    ky, kx = torch.fft.fftfreq(n, 1 / n)[:, None], torch.arange(n // 2 + 1)
    # Pairs of mates count twice; the mean, which correlation leaves out, does not count.
    counts = torch.where(kx == 0, 1.0, 2.0) * (kx**2 + ky**2 < (n // 2) ** 2) * (kx**2 + ky**2 > 0)

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return (counts * (a.conj() * b).real).sum((-2, -1))

    correlation = inner(ours, theirs) / (inner(ours, ours) * inner(theirs, theirs)).sqrt()
    scale = inner(ours, theirs) / inner(theirs, theirs)
    assert (correlation >= 0.9999).all()
    assert ((scale - 1).abs() <= 1e-3).all()


@every_stack
def test_projections_are_those_of_relion(name: str, n: int, backend: str) -> None:
    golden, rotations, shifts = relion_images(name, n)
    ours = forward_project(relion_reconstruction(n).to(rotations.device), rotations, shifts, oversampling=2)
    assert_same_images(ours, to_half(golden, 2), n)


@every_stack
def test_images_of_the_map_are_those_of_relion(name: str, n: int, backend: str) -> None:
    """With the default options, from the map to the image, in the same order and at the same scale."""
    golden, rotations, shifts = relion_images(name, n)
    ours = realspace.project(relion_map(n).to(rotations.device), rotations, shifts)
    assert ours.shape == golden.shape
    assert_same_images(to_half(ours, 2), to_half(golden, 2), n)
