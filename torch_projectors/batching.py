"""Leading dimensions: from torch's broadcasting to the canonical batch and poses of the ops.

Rotations and shifts that a batch shares are never expanded; neither is a volume that many sets of poses share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Callable, Optional

from torch import Tensor


def broadcast(*shapes: Sequence[int]) -> tuple[int, ...]:
    """The shape that all shapes broadcast to; several times faster than `torch.broadcast_shapes`."""
    result: list[int] = []
    for shape in shapes:
        result[:0] = [1] * (len(shape) - len(result))
        first = len(result) - len(shape)
        for i, n in enumerate(shape, first):
            if n != 1 and n != result[i]:
                if result[i] != 1:
                    raise ValueError(f"shapes do not broadcast: {', '.join(str(tuple(s)) for s in shapes)}")
                result[i] = n
    return tuple(result)


def _aligned(x: Tensor, trailing: int, leading: int) -> Tensor:
    """x with `leading` dimensions before its `trailing` ones."""
    if x.dim() == leading + trailing:
        return x
    return x.reshape(*[1] * (leading + trailing - x.dim()), *x.shape)


def _to_batch(pose: Tensor, lead: Sequence[int]) -> Tensor:
    """Merge the leading dimensions into one: of size 1 if all of them are shared, else that of the batch."""
    inner = pose.shape[len(lead) :]
    if all(n == 1 for n in pose.shape[: len(lead)]):
        return pose.reshape(1, *inner)
    return pose.expand(*lead, *inner).reshape(math.prod(lead), *inner)


def fold_forward(
    project: Callable[[Tensor, Tensor, Optional[Tensor]], Tensor],
    volume: Tensor,
    rotations: Tensor,
    shifts: Optional[Tensor],
    grid: int,
) -> Tensor:
    """Call project on canonical tensors: volume [..., *grid], rotations [..., P, d, d], shifts [..., P, d].

    Where only the poses have a leading dimension, it becomes poses of one volume; the others become the batch.
    Returns images [..., P, *grid of an image].
    """
    if (volume.dim(), rotations.dim()) == (grid, 3) and (
        shifts is None or (shifts.dim() == 2 and shifts.shape[0] == rotations.shape[0])
    ):  # as below, several times faster
        return project(
            volume.unsqueeze(0), rotations.unsqueeze(0), None if shifts is None else shifts.unsqueeze(0)
        ).squeeze(0)
    leading = max(volume.dim() - grid, rotations.dim() - 3, 0 if shifts is None else shifts.dim() - 2)
    volume = _aligned(volume, grid, leading)
    rotations = _aligned(rotations, 3, leading)
    shifts = None if shifts is None else _aligned(shifts, 2, leading)
    poses = [rotations] if shifts is None else [rotations, shifts]
    *pose_lead, count = broadcast(*[x.shape[: leading + 1] for x in poses])
    lead = broadcast(volume.shape[:leading], pose_lead)
    own = [i for i in range(leading) if volume.shape[i] == 1 and lead[i] != 1]  # of the poses alone
    shared = [i for i in range(leading) if i not in own]
    batch, per_volume = [lead[i] for i in shared], [*[lead[i] for i in own], count]

    def fold(pose: Optional[Tensor]) -> Optional[Tensor]:
        if pose is None:
            return None
        inner = pose.shape[leading + 1 :]
        if own:
            pose = pose.permute(*shared, *own, *range(leading, pose.dim()))
        outer = pose.shape[: len(shared)]
        pose = pose.expand(*outer, *per_volume, *inner).reshape(*outer, math.prod(per_volume), *inner)
        return _to_batch(pose, batch)

    box = volume.shape[leading:]
    if own:
        volume = volume.permute(*shared, *own, *range(leading, volume.dim()))
    volume = volume.expand(*batch, *volume.shape[len(shared) :]).reshape(math.prod(batch), *box)
    images = project(volume, fold(rotations), fold(shifts))
    images = images.reshape(*batch, *per_volume, *images.shape[2:])
    if own:
        order = [*shared, *own]
        images = images.permute(*[order.index(i) for i in range(leading)], *range(leading, images.dim()))
    return images


def fold_backward(
    backproject: Callable[..., tuple[Tensor, Tensor]],
    images: Tensor,
    weights: Optional[Tensor],
    rotations: Tensor,
    shifts: Optional[Tensor],
    grid: int,
) -> tuple[Tensor, Tensor]:
    """Call backproject on canonical tensors: images, weights [..., P, *grid], rotations [..., P, d, d], shifts.

    Returns the volume and the weight volume, [..., *grid of a volume]; the latter is empty without weights.
    """
    poses = rotations.shape[0]
    if (
        (images.dim(), rotations.dim()) == (grid + 1, 3)
        and images.shape[0] == poses
        and (weights is None or weights.shape == images.shape)
        and (shifts is None or (shifts.dim() == 2 and shifts.shape[0] == poses))
    ):  # as below, several times faster
        volume, weight_volume = backproject(
            images.unsqueeze(0),
            None if weights is None else weights.unsqueeze(0),
            rotations.unsqueeze(0),
            None if shifts is None else shifts.unsqueeze(0),
        )
        return volume.squeeze(0), weight_volume if weights is None else weight_volume.squeeze(0)
    trailing = [grid + 1, grid + 1, 3, 2]
    tensors = [images, weights, rotations, shifts]
    leading = max(x.dim() - t for x, t in zip(tensors, trailing) if x is not None)
    tensors = [None if x is None else _aligned(x, t, leading) for x, t in zip(tensors, trailing)]
    *lead, poses = broadcast(*[x.shape[: leading + 1] for x in tensors if x is not None])
    batch = math.prod(lead)

    def fold(x: Optional[Tensor]) -> Optional[Tensor]:
        if x is None:
            return None
        x = x.expand(*x.shape[:leading], poses, *x.shape[leading + 1 :])
        return _to_batch(x, lead)

    images, weights = [
        None
        if x is None
        else x.expand(*lead, poses, *x.shape[-grid:]).reshape(batch, poses, *x.shape[-grid:])
        for x in tensors[:2]
    ]
    volume, weight_volume = backproject(images, weights, *[fold(x) for x in tensors[2:]])
    volume = volume.reshape(*lead, *volume.shape[1:])
    if weights is not None:
        weight_volume = weight_volume.reshape(volume.shape)
    return volume, weight_volume
