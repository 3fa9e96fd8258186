"""Point groups: the rotations that leave a symmetric map as it is, and what follows from them for poses.

A map V has the symmetry of a group if V(R r) = V(r) for every operator R of it, about the box's centre. Its spectrum
has the same symmetry. Frequency k of an image reads it at M @ k, so that a pose M and every R @ M give the same image;
shifts stay as they are. An asymmetric map becomes symmetric as the mean over R of V(R r).
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from . import rotations as _rotations
from .checks import shown

_GOLDEN = (1 + math.sqrt(5)) / 2

# About (1, 1, 1), x to y to z, by a third; about z by a quarter; and by a fifth about (1, 0, golden ratio).
_THIRD = ((0, 0, 1), (1, 0, 0), (0, 1, 0))
_QUARTER = ((0, -1, 0), (1, 0, 0), (0, 0, 1))
_FIFTH = (
    (1 / 2, -_GOLDEN / 2, (_GOLDEN - 1) / 2),
    (_GOLDEN / 2, (_GOLDEN - 1) / 2, -1 / 2),
    ((_GOLDEN - 1) / 2, 1 / 2, _GOLDEN / 2),
)

# What turns groups with 2-fold axes along x, y and z: (1, 1, 1) to z; or (1, 0, golden ratio) to z.
_THIRD_TO_Z = (
    (-math.sqrt(1 / 2), math.sqrt(1 / 2), 0),
    (-math.sqrt(1 / 6), -math.sqrt(1 / 6), math.sqrt(2 / 3)),
    (math.sqrt(1 / 3), math.sqrt(1 / 3), math.sqrt(1 / 3)),
)
_SIDE = math.hypot(1, _GOLDEN)
_FIFTH_TO_Z = ((_GOLDEN / _SIDE, 0, -1 / _SIDE), (0, 1, 0), (1 / _SIDE, 0, _GOLDEN / _SIDE))


def operators(name: str) -> Tensor:
    """The rotations of a point group, `[G, 3, 3]` in float64, the identity first, always in the same order.

    Names are those of RELION, in capitals or not, and axes lie where RELION has them:

    - "C1" to "C999": an n-fold axis along z.
    - "D1" to "D999": an n-fold axis along z and a 2-fold one along x.
    - "T": a 3-fold axis along z, and a 2-fold one in the yz plane, at (0, sqrt(2), 1).
    - "T222": the same group with 2-fold axes along x, y and z and 3-fold ones along (1, 1, 1), as other programs have
      it. RELION does not know this name.
    - "O": 4-fold axes along x, y and z, 3-fold ones along (1, 1, 1).
    - "I1": 2-fold axes along x, y and z. Nearest to z, 5-fold axes in the yz plane at (0, 1, g), g = 1.618 the golden
      ratio, and 3-fold ones in the xz plane at (1, 0, g^2).
    - "I2", or "I": as I1, turned by 90 degrees about z. Nearest to z, 5-fold axes in the xz plane at (1, 0, g), and
      3-fold ones in the yz plane at (0, 1, g^2). This is the setting of Crowther.
    - "I3": a 5-fold axis along z, a 2-fold one along y, and another 5-fold one at (-2, 0, 1).
    - "I4": as I3, turned by 180 degrees about z: another 5-fold axis at (2, 0, 1).
    """
    key = name.strip().upper() if isinstance(name, str) else ""
    axial = re.fullmatch("([CD])([1-9][0-9]{0,2})", key)
    if axial:
        about_z = _about_z(int(axial[2]))
        return about_z if axial[1] == "C" else _products(about_z, _diagonals((1, 1, 1), (1, -1, -1)))
    if key in ("T", "T222"):
        return _turned(_tetrahedral(), _THIRD_TO_Z) if key == "T" else _tetrahedral()
    if key == "O":
        return _products(_tetrahedral(), _powers(_QUARTER, 2))
    if key in ("I", "I1", "I2", "I3", "I4"):
        group = _products(_tetrahedral(), _powers(_FIFTH, 5))
        if key == "I1":
            return _turned(group, _QUARTER)
        if key == "I3":
            return _turned(group, _FIFTH_TO_Z)
        return _turned(group, tuple(zip(*_FIFTH_TO_Z))) if key == "I4" else group
    raise ValueError(
        "name: expected a point group, C<n> or D<n> with n from 1 to 999, T, T222, O, I, I1, I2, I3 or I4, "
        f"as in 'D7', got {shown(name)}"
    )


def equivalent(rotations: Tensor, operators: Tensor) -> Tensor:
    """The poses that give the same image of a symmetric map: rotations `[..., 3, 3]` to `[..., G, 3, 3]`, R @ M.

    operators: `[G, 3, 3]`. The result has the dtype of the rotations; the first of each G is the rotation as it was.
    """
    for argument, x in (("rotations", rotations), ("operators", operators)):
        if x.dim() < 2 or x.shape[-2:] != (3, 3):
            raise ValueError(f"{argument}: expected [..., 3, 3], got shape {tuple(x.shape)}")
    return operators.to(rotations) @ rotations[..., None, :, :]


def angles_between(a: Tensor, b: Tensor, operators: Tensor) -> Tensor:
    """The angle in radians between poses of a symmetric map: that of `a^T R b` for the R that makes it the smallest.

    a, b: `[..., 3, 3]`, broadcast; operators: `[G, 3, 3]`. Returns `[...]`.
    """
    return _rotations.angles_between(a[..., None, :, :], equivalent(b, operators)).amin(-1)


# Groups are made as products of two of their subgroups, one element of each: exact, in order, and none twice.


def _products(a: Tensor, b: Tensor) -> Tensor:
    return (a[:, None] @ b).flatten(0, 1)


def _about_z(n: int) -> Tensor:
    matrices = torch.eye(3, dtype=torch.float64).repeat(n, 1, 1)
    turns = torch.arange(n, dtype=torch.float64) / n
    matrices[:, :2, :2] = _rotations.from_angles(2 * math.pi * turns)
    return matrices


def _diagonals(*signs: tuple[int, int, int]) -> Tensor:
    return torch.diag_embed(torch.tensor(signs, dtype=torch.float64))


def _powers(matrix: tuple, count: int) -> Tensor:
    step = torch.tensor(matrix, dtype=torch.float64)
    return torch.stack([torch.linalg.matrix_power(step, i) for i in range(count)])


def _tetrahedral() -> Tensor:
    halves = _diagonals((1, 1, 1), (1, -1, -1), (-1, 1, -1), (-1, -1, 1))
    return _products(halves, _powers(_THIRD, 3))


def _turned(group: Tensor, turn: tuple) -> Tensor:
    """The group about axes that the turn has moved."""
    matrix = torch.tensor(turn, dtype=torch.float64)
    moved = matrix @ group @ matrix.T
    moved[0] = group[0]  # the identity, without rounding
    return moved
