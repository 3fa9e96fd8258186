"""Derivatives of the ops: rules for autograd, forward mode and vmap.

Each class serves eager mode and torch.func by `apply`, with (ops, friedel) behind the op's own arguments, and the bare
op by the same `backward` through `torch.library.register_autograd`. `ops` is the set of ops whose derivative is taken,
so a gradient is computed by the backend that computed the result.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Optional

import torch
from torch import Tensor

from . import reference
from .batching import fold_backward, fold_forward
from .geometry import Geometry
from .spectrum import halved, stored_shape

FIELDS = len(Geometry._fields)


def _setup(ctx: Any, inputs: tuple[Any, ...], tensors: int) -> None:
    ctx.save_for_backward(*inputs[:tensors])
    ctx.save_for_forward(*inputs[:tensors])
    ctx.set_materialize_grads(False)
    rest = inputs[tensors:]
    ctx.geometry = Geometry(*rest[:FIELDS])
    *ctx.need, ctx.ops, ctx.friedel = rest[FIELDS:]


def _padded(ctx: Any, *gradients: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
    return (*gradients, *[None] * (len(ctx.needs_input_grad) - len(gradients)))


def _sum(*terms: Optional[Tensor]) -> Optional[Tensor]:
    present = [t for t in terms if t is not None]
    return sum(present[1:], present[0]) if present else None


def _front(x: Optional[Tensor], dim: Optional[int]) -> Optional[Tensor]:
    """The mapped dimension first; of size 1 where x is not mapped."""
    return x if x is None else x.unsqueeze(0) if dim is None else x.movedim(dim, 0)


class _ForwardProject(torch.autograd.Function):
    @staticmethod
    def forward(volume: Tensor, rotations: Tensor, shifts: Optional[Tensor], *rest: Any) -> Tensor:
        *geometry, ops, _ = rest
        return ops.bare.forward_project(volume, rotations, shifts, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _setup(ctx, inputs, 3)

    @staticmethod
    def backward(ctx: Any, grad: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
        if grad is None:
            return _padded(ctx)
        volume, rotations, shifts = ctx.saved_tensors
        geometry = ctx.geometry._replace(pairs_once=True) if ctx.friedel else ctx.geometry
        volume_needed, *pose_needed = ctx.needs_input_grad[:3]
        need = (volume_needed, False, *pose_needed)
        g_volume, _, *g_pose = ctx.ops.gradients(volume, grad, rotations, shifts, geometry, need)
        return _padded(ctx, g_volume, *g_pose)

    @staticmethod
    def jvp(ctx: Any, t_volume: Any, t_rotations: Any, t_shifts: Any, *_: Any) -> Tensor:
        volume, rotations, shifts = ctx.saved_tensors
        images = volume.new_zeros(
            volume.shape[0], rotations.shape[1], *stored_shape(ctx.geometry.image_shape)
        )
        tangents = (t_volume, None, t_rotations, t_shifts)
        only_images = (False, True, False, False)
        return _second(ctx.ops, (volume, images, rotations, shifts), ctx.geometry, tangents, only_images)[1]

    @staticmethod
    def vmap(info: Any, in_dims: Any, volume: Any, rotations: Any, shifts: Any, *rest: Any) -> Any:
        tensors = [_front(x, d) for x, d in zip((volume, rotations, shifts), in_dims)]
        *geometry, ops, friedel = rest
        project = partial(ops.forward_project, geometry=Geometry(*geometry), friedel=friedel)
        images = fold_forward(project, *tensors, len(geometry[0]))
        return images, 0


class _BackwardProject(torch.autograd.Function):
    @staticmethod
    def forward(images: Tensor, weights: Any, rotations: Tensor, shifts: Any, *rest: Any) -> Any:
        *geometry, ops, _ = rest
        return ops.bare.backward_project(images, weights, rotations, shifts, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _setup(ctx, inputs, 4)
        if inputs[1] is None:
            ctx.mark_non_differentiable(output[1])

    @staticmethod
    def backward(ctx: Any, g_volume: Any, g_weight_volume: Any) -> tuple[Optional[Tensor], ...]:
        images, weights, rotations, shifts = ctx.saved_tensors
        images_needed, weights_needed, *pose_needed = ctx.needs_input_grad[:4]
        result: list[Optional[Tensor]] = [None] * 4
        if g_volume is not None:
            if ctx.friedel:
                g_volume = halved(g_volume, ctx.geometry.volume_shape[-1])
            need = (False, images_needed, *pose_needed)
            _, g, *g_pose = ctx.ops.gradients(g_volume, images, rotations, shifts, ctx.geometry, need)
            result = [g, None, *g_pose]
        if g_weight_volume is not None and weights is not None:
            if ctx.friedel:
                g_weight_volume = halved(g_weight_volume, ctx.geometry.volume_shape[-1])
            need = (False, weights_needed, pose_needed[0], False)
            _, g, g_rotations, _ = ctx.ops.gradients(
                g_weight_volume, weights, rotations, None, ctx.geometry, need
            )
            result[1], result[2] = g, _sum(result[2], g_rotations)
        return _padded(ctx, *result)

    @staticmethod
    def jvp(ctx: Any, t_images: Any, t_weights: Any, t_rotations: Any, t_shifts: Any, *_: Any) -> Any:
        images, weights, rotations, shifts = ctx.saved_tensors
        only_volume = (True, False, False, False)
        shape = (images.shape[0], *stored_shape(ctx.geometry.volume_shape))

        def tangent(images: Tensor, t_images: Any, shifts: Any, t_shifts: Any) -> Tensor:
            tensors = (images.new_zeros(shape), images, rotations, shifts)
            tangents = (None, t_images, t_rotations, t_shifts)
            gradient = _second(ctx.ops, tensors, ctx.geometry, tangents, only_volume)[0]
            return tensors[0] if gradient is None else gradient

        t_volume = tangent(images, t_images, shifts, t_shifts)
        return t_volume, None if weights is None else tangent(weights, t_weights, None, None)

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        tensors = [_front(x, d) for x, d in zip(args[:4], in_dims)]
        *geometry, ops, friedel = args[4:]
        backproject = partial(ops.backward_project, geometry=Geometry(*geometry), friedel=friedel)
        outputs = fold_backward(backproject, *tensors, len(geometry[1]))
        return outputs, (0, None if tensors[1] is None else 0)


class _ProjectGradients(torch.autograd.Function):
    @staticmethod
    def forward(volume: Tensor, images: Tensor, rotations: Tensor, shifts: Any, *rest: Any) -> Any:
        *arguments, ops, _ = rest
        return ops.bare.project_gradients(volume, images, rotations, shifts, *arguments)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _setup(ctx, inputs, 4)
        need = (*ctx.need[:3], ctx.need[3] and inputs[3] is not None)
        ctx.mark_non_differentiable(*[x for x, n in zip(output, need) if not n])

    @staticmethod
    def backward(ctx: Any, *along: Optional[Tensor]) -> tuple[Optional[Tensor], ...]:
        directions = [x if n else None for x, n in zip(along, ctx.need)]
        return _padded(
            ctx, *_second(ctx.ops, ctx.saved_tensors, ctx.geometry, directions, ctx.needs_input_grad[:4])
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Any:
        # The Hessian of L is symmetric: forward and backward derivatives of a gradient are the same product.
        result = _second(ctx.ops, ctx.saved_tensors, ctx.geometry, tangents[:4], ctx.need)
        need = (*ctx.need[:3], ctx.need[3] and ctx.saved_tensors[3] is not None)
        return tuple(
            (torch.zeros_like(x) if r is None else r) if n else None
            for r, x, n in zip(result, ctx.saved_tensors, need)
        )

    @staticmethod
    def vmap(info: Any, in_dims: Any, *args: Any) -> Any:
        tensors = [_front(x, d) for x, d in zip(args[:4], in_dims)]
        return _map_gradients(info.batch_size, tensors, args[4:])


def _map_gradients(size: int, tensors: list[Optional[Tensor]], rest: tuple[Any, ...]) -> Any:
    """project_gradients mapped over the first dimension: folded into the poses of one volume, else into the batch."""
    volume, images, _, shifts = tensors
    batch = images.shape[1]
    need = (*rest[FIELDS : FIELDS + 3], rest[FIELDS + 3] and shifts is not None)
    into_poses = volume.shape[0] == 1 and not need[0]

    def fold(x: Optional[Tensor]) -> Optional[Tensor]:
        if x is None:
            return None
        if into_poses:
            return x.expand(size, *x.shape[1:]).movedim(0, 1).flatten(1, 2)
        return x.expand(size, batch, *x.shape[2:]).flatten(0, 1)

    def unfold(gradient: Tensor, x: Tensor) -> Tensor:
        if into_poses:
            return gradient.unflatten(1, (size, x.shape[2])).movedim(1, 0)
        gradient = gradient.unflatten(0, (size, batch))
        return gradient if x.shape[1] == batch else gradient.sum(1, keepdim=True)

    folded = [volume[0] if into_poses else fold(volume), *[fold(x) for x in tensors[1:]]]
    *arguments, ops, _ = rest
    gradients = ops.project_gradients(*folded, Geometry(*arguments[:FIELDS]), *arguments[FIELDS:])
    outputs = tuple(unfold(g, x) if n else g for g, x, n in zip(gradients, tensors, need))
    return outputs, tuple(0 if n else None for n in need)


def _second(ops: Any, tensors: Any, geometry: Geometry, along: Any, need: Any) -> list[Optional[Tensor]]:
    """The Hessian of L times the direction `along`, in the tensors that are needed: gradients of dL(along).

    dL(along) = L(along volume, images) + L(volume, along images) + the change of L(volume, images) with the pose.
    """
    volume, images, rotations, shifts = tensors
    result: list[Optional[Tensor]] = [None] * 4

    def add(terms: list[Optional[Tensor]]) -> None:
        result[:] = [_sum(old, new) for old, new in zip(result, terms)]

    if along[0] is not None:
        fixed = (False, *need[1:])
        add(ops.gradients(along[0], images, rotations, shifts, geometry, fixed))
    if along[1] is not None:
        fixed = (need[0], False, *need[2:])
        add(ops.gradients(volume, along[1], rotations, shifts, geometry, fixed))
    if along[2] is not None or along[3] is not None:
        add(reference.pose_curvature(volume, images, rotations, shifts, geometry, along[2], along[3], need))
    return result


class CountPairsOnce(torch.autograd.Function):
    """Identity, for traced graphs, whose gradient counts each Friedel pair once."""

    @staticmethod
    def forward(ctx: Any, spectrum: Tensor, width: int) -> Tensor:  # with ctx: torch 2.4 traces no other form
        ctx.width = width
        return spectrum.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return halved(grad, ctx.width), None


FUNCTIONS = {
    "forward_project": _ForwardProject,
    "backward_project": _BackwardProject,
    "project_gradients": _ProjectGradients,
}
