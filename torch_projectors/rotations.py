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


def to_vectors(rotations: Tensor) -> Tensor:
    """The inverse of `from_vectors`: rotations `[..., 3, 3]` to `[..., 3]`, axis times an angle from 0 to pi.

    As exact as the matrices at every angle, and smooth but at pi, where an axis and its opposite are one rotation.
    """
    if rotations.dim() < 2 or rotations.shape[-2:] != (3, 3):
        raise ValueError(f"rotations: expected [..., 3, 3], got shape {tuple(rotations.shape)}")
    m = [row.unbind(-1) for row in rotations.unbind(-2)]
    x, y, z = m[2][1] - m[1][2], m[0][2] - m[2][0], m[1][0] - m[0][1]
    xy, yz, zx = m[0][1] + m[1][0], m[1][2] + m[2][1], m[2][0] + m[0][2]
    # Of a unit quaternion (w, x, y, z), 4 times each component times all of them. The longest row loses no digits.
    rows = [
        [1 + m[0][0] + m[1][1] + m[2][2], x, y, z],
        [x, 1 + m[0][0] - m[1][1] - m[2][2], xy, zx],
        [y, xy, 1 - m[0][0] + m[1][1] - m[2][2], yz],
        [z, zx, yz, 1 - m[0][0] - m[1][1] + m[2][2]],
    ]
    products = torch.stack([torch.stack(row, -1) for row in rows], -2)
    longest = products.diagonal(dim1=-2, dim2=-1).argmax(-1)[..., None, None]
    quaternion = torch.take_along_dim(products, longest, -2).squeeze(-2)
    quaternion = torch.where(quaternion[..., :1] < 0, -quaternion, quaternion)
    w, axis = torch.nn.functional.normalize(quaternion, dim=-1).split([1, 3], -1)
    square = axis.square().sum(-1, keepdim=True)
    # 2 atan(s / w) / s, and near s = 0 its series, which has derivatives there.
    small = square < math.sqrt(torch.finfo(square.dtype).eps)
    sine = torch.where(small, 1, square).sqrt()
    cosine = torch.where(small, w, 1)
    series = 2 / cosine * (1 - square / (3 * cosine.square()))
    return axis * torch.where(small, series, 2 * torch.atan2(sine, w) / sine)


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
