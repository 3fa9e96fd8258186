"""The contrast transfer function of an electron microscope."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .checks import check_shape
from .spectrum import frequencies

# Planck's constant, the charge and mass of the electron, and the speed of light, in SI units.
_H, _E, _M, _C = 6.62607015e-34, 1.602176634e-19, 9.1093837015e-31, 299792458.0

# What parameters of an image may be; beyond these the function is no number, or that of no microscope.
LIMITS = {"voltage": (1.0, 10000.0), "amplitude_contrast": (-1.0, 1.0)}


def wavelength(voltage: Any) -> Any:
    """Of electrons, relativistic, in Å; the voltage in kV, a number or a tensor."""
    energy = voltage * (1e3 * _E)
    return 1e10 * _H / (2 * _M * energy * (1 + energy / (2 * _M * _C * _C))) ** 0.5


class Ctf(NamedTuple):
    """Parameters of P images: tensors `[P]`, or numbers that all of them share.

    The transfer function at spatial frequency (x, y) of length u, in 1/Å, is

        scale * exp(-b_factor u^2 / 4) * sin(pi L D u^2 - pi/2 Cs L^3 u^4 + phase_shift + asin(amplitude_contrast))

    with the wavelength L and the defocus D along the direction of (x, y): defocus_u along defocus_angle, defocus_v
    across it. So underfocus is positive, and so is the function at low frequencies: particles are bright.
    """

    defocus_u: Any  # Å
    defocus_v: Any  # Å
    defocus_angle: Any  # degrees, from x towards y
    voltage: Any = 300.0  # kV
    spherical_aberration: Any = 2.7  # mm
    amplitude_contrast: Any = 0.1
    phase_shift: Any = 0.0  # degrees
    b_factor: Any = 0.0  # Å^2
    scale: Any = 1.0

    def __getitem__(self, index: Any) -> Ctf:  # type: ignore[override]
        """Those of some of the images."""
        return Ctf(*(x[index] if isinstance(x, Tensor) and x.dim() else x for x in self))

    def values(
        self,
        shape: Sequence[int],
        pixel_size: float,
        *,
        dtype: torch.dtype = torch.float32,
        device: Optional[torch.device] = None,
    ) -> Tensor:
        """The function at the frequencies of images of a shape (H, W), `[P, H, W//2+1]`; the pixel size in Å.

        In float32 its phase, some hundred radians at the highest frequencies, is right to about 1e-4.
        """
        shape = check_shape("shape", shape, (2,))
        # Few and large: the factors of an image in float64, those of a frequency once for all.
        given = torch.broadcast_tensors(*(torch.as_tensor(x, dtype=torch.float64) for x in self))
        u, v, angle, voltage, cs, contrast, shift, b_factor, scale = (x.cpu().reshape(-1) for x in given)
        length = wavelength(voltage)
        mean, half, twice = (u + v) / 2, (u - v) / 2, 2 * torch.deg2rad(angle)
        constant = torch.deg2rad(shift) + torch.asin(contrast)
        of_image = [
            math.pi * length * mean,
            math.pi * length * half * twice.cos(),
            math.pi * length * half * twice.sin(),
            -math.pi / 2 * 1e7 * cs * length**3,
        ]
        y, x = (torch.from_numpy(k / (n * pixel_size)) for k, n in zip(frequencies(shape), shape))
        y, x = y[:, None], x[None, :]
        square = x * x + y * y
        of_frequency = [square, x * x - y * y, 2 * x * y, square * square]
        coefficients = torch.stack(of_image, -1).to(device, dtype)
        grids = torch.stack(of_frequency).reshape(4, -1).to(device, dtype)
        values = torch.addmm(constant[:, None].to(device, dtype), coefficients, grids).sin_()
        if (b_factor != 0).any():
            values *= torch.exp(-0.25 * b_factor[:, None].to(device, dtype) * grids[:1])
        if (scale != 1).any():
            values *= scale[:, None].to(device, dtype)
        return values.unflatten(-1, tuple(square.shape))
