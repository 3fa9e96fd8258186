"""Poses of other programs as `rotations [..., 3, 3]` and `shifts [..., 2]` of this library, and back.

Arguments are tensors or whatever numpy makes an array of, such as columns of a table; results are tensors of the same
precision, float64 for integers. Shifts that are not given are zero. Images are square, shifts in their pixels, (x, y).
"""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from . import rotations as _rotations
from .checks import (
    check_broadcast,
    check_device,
    check_orthonormal,
    check_tensor,
    check_values,
    finite,
    shown,
)


def from_relion(
    angles: Any, origins: Any = None, pixel_size: Any = 1.0, image_size: Optional[int] = None
) -> tuple[Tensor, Tensor]:
    """Rotations and shifts of RELION's angles and origins.

    Args:
        angles: `[..., 3]` in degrees: rlnAngleRot, rlnAngleTilt, rlnAnglePsi.
        origins: `[..., 2]`: rlnOriginXAngst and rlnOriginYAngst, or, in pixels, rlnOriginX and rlnOriginY.
        pixel_size: of the images, in Å, a number or one for each pose `[...]`; 1 for origins in pixels.
        image_size: edge of the images in pixels, if they are by relion_project: the content of odd ones lies one
            pixel further in x and y.

    Returns:
        rotations `[..., 3, 3]` and shifts `[..., 2]`.
    """
    angles = _floats("angles", angles, 3)
    origins = _shifts("origins", origins, "angles", angles, angles.shape[:-1])
    rot, tilt, psi = torch.deg2rad(angles).unbind(-1)
    matrices = _about_z(rot) @ _about_y(tilt) @ _about_z(psi)
    return matrices, -origins / _pixels("pixel_size", pixel_size, origins) + _odd(image_size)


def to_relion(
    rotations: Any, shifts: Any = None, pixel_size: Any = 1.0, image_size: Optional[int] = None
) -> tuple[Tensor, Tensor]:
    """RELION's angles and origins of rotations and shifts: the inverse of `from_relion`, with the same arguments.

    Tilt is from 0 to 180, rot and psi from -180 to 180. Where tilt is 0 or 180 only the sum or the difference of rot
    and psi is known, and rot is 0. There and nearby too, the angles give the matrix to rounding.

    Returns:
        angles `[..., 3]` in degrees and origins `[..., 2]`, in Å, or in pixels for a pixel size of 1.
    """
    matrices = _matrices("rotations", rotations)
    shifts = _shifts("shifts", shifts, "rotations", matrices, matrices.shape[:-2])
    m = [row.unbind(-1) for row in matrices.unbind(-2)]
    # Plus 0 makes zeros positive, since atan2 takes -0 for the other side.
    rot = torch.atan2(m[1][2] + 0.0, m[0][2] + 0.0)
    tilt = torch.atan2(torch.hypot(m[0][2], m[1][2]), m[2][2])
    # Near a pole rot is uncertain: psi follows from the sum or the difference that is not.
    total = torch.atan2(m[1][0] - m[0][1], m[0][0] + m[1][1])
    difference = torch.atan2(-m[1][0] - m[0][1], m[1][1] - m[0][0])
    psi = torch.where(m[2][2] >= 0, total - rot, rot - difference)
    angles = torch.rad2deg(torch.stack([rot, tilt, psi], -1))
    angles = angles - 360 * (angles / 360).round()
    return angles, (_odd(image_size) - shifts) * _pixels("pixel_size", pixel_size, shifts)


def from_cryosparc(
    poses: Any, shifts: Any = None, shift_pixel_size: Any = None, pixel_size: Any = None
) -> tuple[Tensor, Tensor]:
    """Rotations and shifts of cryoSPARC's.

    Args:
        poses: `[..., 3]`, alignments3D/pose: rotation vectors.
        shifts: `[..., 2]`, alignments3D/shift.
        shift_pixel_size: alignments3D/psize_A, a number or `[...]`: pixels that cryoSPARC's shifts are in.
        pixel_size: blob/psize_A, a number or `[...]`: pixels of the images. Without both, the two are the same.

    Returns:
        rotations `[..., 3, 3]` and shifts `[..., 2]`.
    """
    poses = _floats("poses", poses, 3)
    shifts = _shifts("shifts", shifts, "poses", poses, poses.shape[:-1])
    return _rotations.from_vectors(poses), -shifts * _ratio(shift_pixel_size, pixel_size, shifts)


def to_cryosparc(
    rotations: Any, shifts: Any = None, shift_pixel_size: Any = None, pixel_size: Any = None
) -> tuple[Tensor, Tensor]:
    """CryoSPARC's poses and shifts of rotations and shifts: the inverse of `from_cryosparc`, with the same sizes.

    Returns:
        poses `[..., 3]`, of an angle from 0 to pi, and shifts `[..., 2]`.
    """
    matrices = _matrices("rotations", rotations)
    shifts = _shifts("shifts", shifts, "rotations", matrices, matrices.shape[:-2])
    return _rotations.to_vectors(matrices), -shifts / _ratio(shift_pixel_size, pixel_size, shifts)


def from_cryodrgn(
    matrices: Any, translations: Any = None, box: Optional[int] = None
) -> tuple[Tensor, Tensor]:
    """Rotations and shifts of cryoDRGN's.

    Args:
        matrices: `[..., 3, 3]`, the first of a pose file's two arrays.
        translations: `[..., 2]`, the second: fractions of the box.
        box: edge of the images in pixels, needed with translations.

    Returns:
        rotations `[..., 3, 3]` and shifts `[..., 2]`.
    """
    matrices = _matrices("matrices", matrices)
    edge = _box(box, "translations", translations)
    translations = _shifts("translations", translations, "matrices", matrices, matrices.shape[:-2])
    return matrices.mT, -translations * edge


def to_cryodrgn(rotations: Any, shifts: Any = None, box: Optional[int] = None) -> tuple[Tensor, Tensor]:
    """CryoDRGN's matrices `[..., 3, 3]` and translations `[..., 2]`: the inverse of `from_cryodrgn`."""
    matrices = _matrices("rotations", rotations)
    edge = _box(box, "shifts", shifts)
    shifts = _shifts("shifts", shifts, "rotations", matrices, matrices.shape[:-2])
    return matrices.mT, -shifts / edge


def _about_z(angle: Tensor) -> Tensor:
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, -s, zero, s, c, zero, zero, zero, one], -1).unflatten(-1, (3, 3))


def _about_y(angle: Tensor) -> Tensor:
    c, s, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    return torch.stack([c, zero, s, zero, one, zero, -s, zero, c], -1).unflatten(-1, (3, 3))


def _floats(name: str, x: Any, *last: int) -> Tensor:
    """x as a tensor `[..., *last]` of finite values, single precision as it is."""
    if not isinstance(x, Tensor):
        array = np.asarray(x)
        if array.dtype.kind not in "iuf":
            raise TypeError(f"{name}: expected an array of real numbers, got {shown(x)}")
        single = array.dtype.kind == "f" and array.dtype.itemsize == 4
        # A copy: other byte orders and arrays that are not to be written to do not become tensors.
        x = torch.from_numpy(array.astype("float32" if single else "float64"))
    check_tensor(name, x, (torch.float32, torch.float64))
    if x.shape[x.dim() - len(last) :] != last:
        expected = ", ".join(["...", *map(str, last)])
        raise ValueError(f"{name}: expected [{expected}], got shape {tuple(x.shape)}")
    check_values((finite, name, x))
    return x


def _matrices(name: str, x: Any) -> Tensor:
    x = _floats(name, x, 3, 3)
    check_orthonormal(name, x)
    return x


def _shifts(name: str, x: Any, pose_name: str, poses: Tensor, lead: Sequence[int]) -> Tensor:
    if x is None:
        return poses.new_zeros(*lead, 2)
    x = _floats(name, x, 2)
    check_device(name, x, poses.device)
    check_broadcast((pose_name, tuple(lead)), (name, tuple(x.shape[:-1])))
    return x


def _pixels(name: str, x: Any, shifts: Tensor) -> Tensor:
    """Pixel sizes `[...]` as `[..., 1]`, to go with shifts `[..., 2]`."""
    x = _floats(name, x)
    if not (x > 0).all():
        raise ValueError(f"{name}: expected sizes > 0, got {x.min().item():g}")
    check_broadcast(("shifts", tuple(shifts.shape[:-1])), (name, tuple(x.shape)))
    return x.to(shifts)[..., None]


def _ratio(shift_pixel_size: Any, pixel_size: Any, shifts: Tensor) -> Any:
    if shift_pixel_size is None and pixel_size is None:
        return 1
    if shift_pixel_size is None or pixel_size is None:
        missing = "shift_pixel_size" if shift_pixel_size is None else "pixel_size"
        raise ValueError(f"{missing}: expected with the other pixel size, or neither, got None")
    return _pixels("shift_pixel_size", shift_pixel_size, shifts) / _pixels("pixel_size", pixel_size, shifts)


def _odd(image_size: Optional[int]) -> int:
    return 0 if image_size is None else _edge("image_size", image_size) % 2


def _box(box: Optional[int], name: str, shifts: Any) -> int:
    if box is None and shifts is not None:
        raise ValueError(f"box: expected the edge of the images in pixels, since there are {name}, got None")
    return 1 if box is None else _edge("box", box)


def _edge(name: str, value: Any) -> int:
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name}: expected a positive integer, got {value!r}")
    return int(value)
