"""The ops: schemas and shapes for tracing. This is the contract that a backend fulfils.

Three of them come from one pairing, L = Re <P(volume; pose), images>, bilinear in volume and images; with `pairs_once`
in the geometry, entries of the images' paired columns count half in it:

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

Three more are for where nothing is differentiated. `add_projections_` adds what `backward_project` gives to a volume
and to its weights, which are left alone without weights. `add_mates_` completes an insertion in place:
`spectrum.with_mates_` of a volume and of its weights, which may be empty. `insert_projections` is `backward_project`,
completed so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any, Callable, Optional

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import plugins, reference
from .derivatives import FUNCTIONS, CountPairsOnce
from .geometry import Geometry
from .spectrum import stored_shape, with_mates_

NAMESPACE = "torch_projectors"
REFERENCE_NAMESPACE = "torch_projectors_reference"

_GEOMETRY = (
    "SymInt[] volume_shape, SymInt[] image_shape, int interpolation, float oversampling, float cutoff, "
    "bool pairs_once"
)
SCHEMAS = {
    "forward_project": f"(Tensor volume, Tensor rotations, Tensor? shifts, {_GEOMETRY}) -> Tensor",
    "backward_project": (
        f"(Tensor images, Tensor? weights, Tensor rotations, Tensor? shifts, {_GEOMETRY}) -> (Tensor, Tensor)"
    ),
    "project_gradients": (
        f"(Tensor volume, Tensor images, Tensor rotations, Tensor? shifts, {_GEOMETRY}, bool need_volume, "
        "bool need_images, bool need_rotations, bool need_shifts) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
    "add_projections_": (
        "(Tensor(a!) volume, Tensor(b!) weight_volume, Tensor images, Tensor? weights, Tensor rotations, "
        f"Tensor? shifts, {_GEOMETRY}) -> ()"
    ),
    "insert_projections": (
        f"(Tensor images, Tensor? weights, Tensor rotations, Tensor? shifts, {_GEOMETRY}) -> (Tensor, Tensor)"
    ),
    "add_mates_": "(Tensor(a!) volume, Tensor(b!) weight_volume, SymInt[] volume_shape) -> ()",
}


def tracing() -> bool:
    """Whether a compiler or exporter is looking: then the ops are called bare, and no value can be read."""
    compiler = torch.compiler
    return compiler.is_compiling() or getattr(compiler, "is_exporting", bool)()


def _differentiated(tensors: Iterable[Optional[Tensor]]) -> bool:
    """Whether eager mode has to record or transform a call; where not, the bare op is several times faster to call."""
    if torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return True
    if torch.is_grad_enabled():
        for x in tensors:
            if x is not None and x.requires_grad:
                return True
    return False


def _is_plain(x: Tensor) -> bool:
    return x.is_contiguous() and not x.is_conj() and not x.is_neg()


def _plain(x: Tensor) -> Tensor:
    """Contiguous, without the lazy conjugate and negative bits, which Python kernels do not see while tracing."""
    return x.resolve_conj().resolve_neg().contiguous()


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


def _add_projections(bare: Any, volume: Tensor, weight_volume: Tensor, *arguments: Any) -> None:
    sums = bare.backward_project(*arguments)
    volume += sums[0]
    if sums[1].shape[1:]:
        weight_volume += sums[1]


def _add_projections_fake(*_: Any) -> None:
    pass


def _add_mates(volume: Tensor, weight_volume: Tensor, volume_shape: Sequence[int]) -> None:
    with_mates_(volume, volume_shape)
    if weight_volume.shape[1:]:
        with_mates_(weight_volume, volume_shape)


def _insert_projections(bare: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
    inserted = bare.backward_project(*arguments)
    bare.add_mates_(*inserted, arguments[4])
    return inserted


def _add_mates_fake(volume: Tensor, weight_volume: Tensor, volume_shape: Sequence[int]) -> None:
    pass


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
    "insert_projections": (_insert_projections, _backward_project_fake),
    "add_projections_": (_add_projections, _add_projections_fake),
    "add_mates_": (_add_mates, _add_mates_fake),
}
# Made of others: by those of a backend that has none of its own.
COMPOSED = ("insert_projections", "add_projections_")


def _setup_bare(function: Any, ops: Operators, ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    function.setup_context(ctx, (*inputs, ops, False), output)


class Operators:
    """The ops of one namespace, differentiable in each of torch's ways, on canonical arguments."""

    def __init__(self, namespace: str, with_plugins: bool) -> None:
        self.library = torch.library.Library(namespace, "DEF")
        self.bare = getattr(torch.ops, namespace)
        for name, schema in SCHEMAS.items():
            kernel, fake = KERNELS[name]
            if name in COMPOSED:
                kernel = partial(kernel, self.bare)
            # A C++ program may have defined the ops before Python was started in it.
            if not torch._C._jit_get_schemas_for_operator(f"{namespace}::{name}"):
                self.library.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))
            self.library.impl(
                name,
                self._after_plugins(name, kernel) if with_plugins else kernel,
                "CompositeExplicitAutograd",
            )
            torch.library.register_fake(f"{namespace}::{name}", fake, lib=self.library)
            function = FUNCTIONS.get(name)
            if function is not None:
                torch.library.register_autograd(
                    f"{namespace}::{name}",
                    function.backward,
                    setup_context=partial(_setup_bare, function, self),
                    lib=self.library,
                )
        self.overloads = {name: getattr(self.bare, name).default for name in SCHEMAS}

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

    def insert_projections(
        self, *tensors: Optional[Tensor], geometry: Geometry, friedel: bool = False
    ) -> tuple[Tensor, Tensor]:
        """`backward_project` of the same tensors, completed by mates."""
        if not tracing() and not _differentiated(tensors):
            return self._undifferentiated("insert_projections", tensors, *geometry)
        volume, weight_volume = self.backward_project(*tensors, geometry=geometry, friedel=friedel)
        if weight_volume.dim() > 1:
            weight_volume = with_mates_(weight_volume, geometry.volume_shape)
        return with_mates_(volume, geometry.volume_shape), weight_volume

    def add_projections_(
        self,
        volume: Tensor,
        weight_volume: Tensor,
        images: Tensor,
        weights: Optional[Tensor],
        rotations: Tensor,
        shifts: Optional[Tensor],
        geometry: Geometry,
    ) -> None:
        """`backward_project` added to volumes in place, without derivatives."""
        tensors = [x if x is None else x.detach() for x in (images, weights, rotations, shifts)]
        self._undifferentiated("add_projections_", (volume, weight_volume, *tensors), *geometry)

    def add_mates_(self, volume: Tensor, weight_volume: Tensor, shape: tuple[int, ...]) -> None:
        """`with_mates_` of both in place, without derivatives."""
        self._undifferentiated("add_mates_", (volume, weight_volume), shape)

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
        if not tracing():
            if not _differentiated(tensors):
                return self._undifferentiated(name, tensors, *geometry, *need)
            plain = [x if x is None or _is_plain(x) else _plain(x) for x in tensors]
            return FUNCTIONS[name].apply(*plain, *geometry, *need, self, friedel)
        plain = [x if x is None else _plain(x) for x in tensors]
        result = getattr(self.bare, name)(*plain, *geometry, *need)
        if not friedel:
            return result
        if name == "forward_project":
            return CountPairsOnce.apply(result, geometry.image_shape[-1])
        width = geometry.volume_shape[-1]
        return tuple(CountPairsOnce.apply(x, width) if x.dim() > 1 else x for x in result)

    def _undifferentiated(self, name: str, tensors: Iterable[Optional[Tensor]], *rest: Any) -> Any:
        plain = [x if x is None or _is_plain(x) else _plain(x) for x in tensors]
        # A third of the cost of a call in which autograd looks whether there is something to record.
        with torch._C._AutoDispatchBelowAutograd():
            return self.overloads[name](*plain, *rest)


NATIVE = Operators(NAMESPACE, with_plugins=True)
REFERENCE = Operators(REFERENCE_NAMESPACE, with_plugins=False)


def selected(device: torch.device) -> Operators:
    """The ops that the chosen backend asks for."""
    return REFERENCE if plugins.selected(device) == "reference" else NATIVE
