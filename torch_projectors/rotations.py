"""Rotation matrices for column vectors (x, y[, z])."""

from __future__ import annotations

import math
from typing import Optional, Union

import torch
from torch import Tensor


def from_vectors(vectors: Tensor) -> Tensor:
    """Rotations about an axis by an angle: `[..., 3]` in radians, axis times angle, to `[..., 3, 3]`.

    Smooth everywhere, so that a turn is a good parameter to optimize: `rotations @ from_vectors(turn)`, from zeros.
    """
    if vectors.dim() < 1 or vectors.shape[-1] != 3:
        raise ValueError(f"vectors: expected [..., 3], got shape {tuple(vectors.shape)}")
    x, y, z = vectors.unbind(-1)
    o = torch.zeros_like(x)
    return torch.linalg.matrix_exp(torch.stack([o, -z, y, z, o, -x, -y, x, o], -1).unflatten(-1, (3, 3)))


def from_angles(angles: Tensor) -> Tensor:
    """Rotations of the plane, from x towards y: `[...]` in radians to `[..., 2, 2]`."""
    c, s = angles.cos(), angles.sin()
    return torch.stack([c, -s, s, c], -1).unflatten(-1, (2, 2))


def random(
    *count: int,
    dims: int = 3,
    generator: Optional[torch.Generator] = None,
    dtype: Optional[torch.dtype] = None,
    device: Optional[Union[torch.device, str]] = None,
) -> Tensor:
    """Rotations drawn uniformly: `[*count, dims, dims]`. The generator lives on the device."""
    options = {"generator": generator, "dtype": dtype, "device": device}
    if dims == 2:
        return from_angles(2 * math.pi * torch.rand(count, **options))
    if dims != 3:
        raise ValueError(f"dims: expected 2 or 3, got {dims!r}")
    # A unit quaternion of uniform direction is a uniform rotation.
    w, x, y, z = torch.nn.functional.normalize(torch.randn(*count, 4, **options), dim=-1).unbind(-1)
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def angles_between(a: Tensor, b: Tensor) -> Tensor:
    """The angle of `a^T b` in radians: rotations `[..., d, d]` to `[...]`; exact for small angles too."""
    chord = torch.linalg.matrix_norm(a - b) / math.sqrt(8)
    return 2 * chord.clamp(max=1).asin()
