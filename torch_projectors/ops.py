"""The ops: schemas, shapes for tracing, and derivatives. This is the contract that a backend fulfils.

All three come from one pairing, L = Re <P(volume; pose), images>, bilinear in volume and images:

- `forward_project`   = dL/d images, the gather P;
- `backward_project`  = dL/d volume, its exact transpose, with weights scattered in the same pass;
- `project_gradients` = whichever of dL/d (volume, images, rotations, shifts) are needed, in one pass.

So they are each other's first derivatives. Second derivatives are the same ops again, and one term in which the pose
varies twice (`reference.pose_curvature`).

Canonical arguments, contiguous and of one precision:

- volume: complex [B, (D,) H, W//2+1]; images: complex [B, P, (D,) H, W//2+1], the exact stored values;
- rotations: real [B or 1, P, d, d]; shifts: real [B or 1, P, d_image] or None;
- weights: real, of the images' shape, scattered with |interpolation weight|. Real data in place of both volume and
  images mean the same for the other two ops; there are no shifts then.

Outputs that were not asked for are empty.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, Callable, Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import plugins, reference
from .batching import fold_backward, fold_forward
from .geometry import Geometry
from .spectrum import halved, stored_shape

NAMESPACE = "torch_projectors"
REFERENCE_NAMESPACE = "torch_projectors_reference"

_GEOMETRY = "SymInt[] volume_shape, SymInt[] image_shape, int interpolation, float oversampling, float cutoff"
SCHEMAS = {
    "forward_project": f"(Tensor volume, Tensor rotations, Tensor? shifts, {_GEOMETRY}) -> Tensor",
    "backward_project": (
        f"(Tensor images, Tensor? weights, Tensor rotations, Tensor? shifts, {_GEOMETRY}) -> (Tensor, Tensor)"
    ),
    "project_gradients": (
        f"(Tensor volume, Tensor images, Tensor rotations, Tensor? shifts, {_GEOMETRY}, bool need_volume, "
        "bool need_images, bool need_rotations, bool need_shifts) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
}


def tracing() -> bool:
    """Whether a compiler or exporter is looking: then the ops are called bare, and no value can be read."""
    compiler = torch.compiler
    return compiler.is_compiling() or getattr(compiler, "is_exporting", bool)()


def _differentiated(tensors: Iterable[Optional[Tensor]]) -> bool:
    """Whether eager mode has to record or transform a call; where not, the bare op is several times faster to call."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    return torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)


# --- Reference kernels under the schemas' flat signatures ---


def _forward_project(volume: Tensor, rotations: Tensor, shifts: Optional[Tensor], *geometry: Any) -> Tensor:
    return reference.forward_project(volume, rotations, shifts, Geometry(*geometry))


def _backward_project(
    images: Tensor, weights: Optional[Tensor], rotations: Tensor, shifts: Optional[Tensor], *geometry: Any
) -> tuple[Tensor, Tensor]:
    return reference.backward_project(images, weights, rotations, shifts, Geometry(*geometry))


def _project_gradients(
    volume: Tensor, images: Tensor, rotations: Tensor, shifts: Optional[Tensor], *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *geometry, need_volume, need_images, need_rotations, need_shifts = rest
    need = (need_volume, need_images, need_rotations, need_shifts)
    return reference.project_gradients(volume, images, rotations, shifts, Geometry(*geometry), *need)


# --- Shapes for tracing ---


def _forward_project_fake(
    volume: Tensor, rotations: Tensor, shifts: Optional[Tensor], volume_shape: Any, image_shape: Any, *_: Any
) -> Tensor:
    return volume.new_empty(volume.shape[0], rotations.shape[1], *stored_shape(image_shape))


def _backward_project_fake(
    images: Tensor,
    weights: Optional[Tensor],
    rotations: Tensor,
    shifts: Optional[Tensor],
    volume_shape: Any,
    *_: Any,
) -> tuple[Tensor, Tensor]:
    shape = (images.shape[0], *stored_shape(volume_shape))
    weight_volume = rotations.new_empty(0 if weights is None else shape)
    return images.new_empty(shape), weight_volume


def _project_gradients_fake(
    volume: Tensor, images: Tensor, rotations: Tensor, shifts: Optional[Tensor], *rest: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    tensors = (volume, images, rotations, rotations if shifts is None else shifts)
    need = (*rest[-4:-1], rest[-1] and shifts is not None)
    return tuple(x.new_empty(x.shape if n else 0) for x, n in zip(tensors, need))


KERNELS = {
    "forward_project": (_forward_project, _forward_project_fake),
    "backward_project": (_backward_project, _backward_project_fake),
    "project_gradients": (_project_gradients, _project_gradients_fake),
}


class Operators:
    """The three ops of one namespace, differentiable in each of torch's ways, on canonical arguments."""

    def __init__(self, namespace: str, with_plugins: bool) -> None:
        self.library = torch.library.Library(namespace, "DEF")
        self.bare = getattr(torch.ops, namespace)
        for name, schema in SCHEMAS.items():
            kernel, fake = KERNELS[name]
            self.library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
            self.library.impl(
                name,
                self._after_plugins(name, kernel) if with_plugins else kernel,
                "CompositeExplicitAutograd",
            )
            torch.library.register_fake(f"{namespace}::{name}", fake, lib=self.library)
            function = FUNCTIONS[name]
            torch.library.register_autograd(
                f"{namespace}::{name}",
                function.backward,
                setup_context=partial(_setup_bare, function, self),
                lib=self.library,
            )

    def _after_plugins(self, name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
        """The first call that falls through to the reference loads the plugins, and is dispatched once more."""

        def run(*args: Any) -> Any:
            return getattr(self.bare, name)(*args) if plugins.load() else kernel(*args)

        return run

    def forward_project(
        self,
        volume: Tensor,
        rotations: Tensor,
        shifts: Optional[Tensor],
        geometry: Geometry,
        friedel: bool = False,
    ) -> Tensor:
        return self._call("forward_project", (volume, rotations, shifts), geometry, friedel)

    def backward_project(
        self,
        images: Tensor,
        weights: Optional[Tensor],
        rotations: Tensor,
        shifts: Optional[Tensor],
        geometry: Geometry,
        friedel: bool = False,
    ) -> tuple[Tensor, Tensor]:
        return self._call("backward_project", (images, weights, rotations, shifts), geometry, friedel)

    def project_gradients(
        self,
        volume: Tensor,
        images: Tensor,
        rotations: Tensor,
        shifts: Optional[Tensor],
        geometry: Geometry,
        *need: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self._call("project_gradients", (volume, images, rotations, shifts), geometry, False, *need)

    def gradients(
        self,
        volume: Tensor,
        images: Tensor,
        rotations: Tensor,
        shifts: Optional[Tensor],
        geometry: Geometry,
        need: tuple[bool, ...],
    ) -> list[Optional[Tensor]]:
        """Derivatives of L with respect to the four tensors, by the op that does no more than is needed."""
        need = (*need[:3], need[3] and shifts is not None)
        if not any(need):
            return [None] * 4
        if need == (True, False, False, False):
            return [self.backward_project(images, None, rotations, shifts, geometry)[0], None, None, None]
        if need == (False, True, False, False):
            return [None, self.forward_project(volume, rotations, shifts, geometry), None, None]
        gradients = self.project_gradients(volume, images, rotations, shifts, geometry, *need)
        return [g if n else None for g, n in zip(gradients, need)]

    def _call(
        self, name: str, tensors: tuple[Optional[Tensor], ...], geometry: Geometry, friedel: bool, *need: bool
    ) -> Any:
        # Python kernels do not see the lazy conjugate and negative bits while a graph is traced.
        plain = [x if x is None else x.resolve_conj().resolve_neg().contiguous() for x in tensors]
        if not tracing() and _differentiated(plain):
            return FUNCTIONS[name].apply(*plain, *geometry, *need, self, friedel)
        result = getattr(self.bare, name)(*plain, *geometry, *need)
        if not (friedel and tracing()):
            return result
        if name == "forward_project":
            return _CountPairsOnce.apply(result, geometry.image_shape[-1])
        width = geometry.volume_shape[-1]
        return tuple(_CountPairsOnce.apply(x, width) if x.dim() > 1 else x for x in result)


# --- Derivatives ---
#
# Each class serves eager mode and torch.func by `apply`, with (ops, friedel) behind the op's own arguments, and the
# bare op by the same `backward` through register_autograd.


def _setup_bare(function: Any, ops: Operators, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    function.setup_context(ctx, (*inputs, ops, False), output)


def _setup(ctx: Any, inputs: tuple[Any, ...], tensors: int) -> None:
    ctx.save_for_backward(*inputs[:tensors])
    ctx.save_for_forward(*inputs[:tensors])
    ctx.set_materialize_grads(False)
    ctx.geometry = Geometry(*inputs[tensors : tensors + 5])
    *ctx.need, ctx.ops, ctx.friedel = inputs[tensors + 5 :]


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
        if ctx.friedel:
            grad = halved(grad, ctx.geometry.image_shape[-1])
        volume_needed, *pose_needed = ctx.needs_input_grad[:3]
        need = (volume_needed, False, *pose_needed)
        g_volume, _, *g_pose = ctx.ops.gradients(volume, grad, rotations, shifts, ctx.geometry, need)
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
    need = (*rest[5:8], rest[8] and shifts is not None)
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
    gradients = ops.project_gradients(*folded, Geometry(*arguments[:5]), *arguments[5:])
    outputs = tuple(unfold(g, x) if n else g for g, x, n in zip(gradients, tensors, need))
    return outputs, tuple(0 if n else None for n in need)


def _second(
    ops: Operators, tensors: Any, geometry: Geometry, along: Any, need: Any
) -> list[Optional[Tensor]]:
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


class _CountPairsOnce(torch.autograd.Function):
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

NATIVE = Operators(NAMESPACE, with_plugins=True)
REFERENCE = Operators(REFERENCE_NAMESPACE, with_plugins=False)


def selected(device: torch.device) -> Operators:
    """The ops that the chosen backend asks for."""
    return REFERENCE if plugins.selected(device) == "reference" else NATIVE
