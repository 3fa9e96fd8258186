"""The public functions: they check and complete their arguments, once, and call the ops on canonical tensors."""

from __future__ import annotations

import math
import numbers
import reprlib
from collections.abc import Sequence
from functools import partial
from typing import Any, Optional, Union

import torch
from torch import Tensor

from . import ops
from .batching import broadcast, fold_backward, fold_forward
from .geometry import INTERPOLATION_CODES, Geometry
from .spectrum import halved, real_shape, stored_shape, with_mates_

GRADIENTS = ("friedel", "stored")


def forward_project(
    reconstruction: Tensor,
    rotations: Tensor,
    shifts: Optional[Tensor] = None,
    output_shape: Optional[Sequence[int]] = None,
    interpolation: str = "linear",
    oversampling: float = 1.0,
    fourier_radius_cutoff: Optional[float] = None,
    *,
    reconstruction_shape: Optional[Sequence[int]] = None,
    gradient: str = "friedel",
) -> Tensor:
    """Fourier projections: central slices of a volume, or rotated copies of an image or a volume.

    Every output frequency k, in (x, y[, z]), is `F(oversampling * M @ k) * exp(-2 pi i sum(k * s / N))`, where F
    interpolates the reconstruction, M is the rotation, s the shift and N the output size.

    Args:
        reconstruction: complex64 or complex128 `[..., (D,) H, W//2+1]`: half spectrum in `torch.fft.rfftn` layout of a
            real image or volume whose centre was moved to index 0.
        rotations: `[..., P, 2, 2]` for images of images, `[..., P, 3, 3]` for images or volumes of a volume; any real
            matrices, acting on column vectors (x, y[, z]). Leading dimensions broadcast against those of the
            reconstruction and of the shifts. A single matrix `[d, d]` stands for one pose, without P in the output.
        shifts: `[..., P, d]` in output pixels, (x, y[, z]); positive moves the content along +axis.
        output_shape: real-space shape of the output: `(H, W)` for images, `(D, H, W)` for volumes. By default that of
            the last two axes of the reconstruction, divided by the oversampling. Smaller boxes downsample; in larger
            ones all beyond the reconstruction's band is zero.
        interpolation: "nearest", "linear" or "cubic".
        oversampling: how much finer the reconstruction's frequencies are sampled, by zero padding in real space: >= 1.
        fourier_radius_cutoff: output frequencies beyond this radius, in output pixels, are zero. By default half of
            the shortest output axis; `math.inf` for no cutoff.
        reconstruction_shape: real-space shape `([D,] H, W)` of the reconstruction, needed only where the parity of W
            differs from that of the other axes.
        gradient: "friedel" counts each pair of Friedel mates once in the gradients, as losses over half spectra mean
            it; "stored" takes the plain product over the stored half, as `torch.fft.irfftn` after this expects it.

    Returns:
        The projections, `[..., P, (D,) H, W//2+1]` of the output, of the reconstruction's dtype.
    """
    _check_spectrum("reconstruction", reconstruction)
    dims = _check_rotations(rotations, reconstruction.device)
    _check_rank("reconstruction", reconstruction, dims, dims)
    volume_shape = _real_shape(
        "reconstruction", reconstruction, "reconstruction_shape", reconstruction_shape, dims
    )
    oversampling = _check_oversampling(oversampling)
    if output_shape is None:
        image_shape = tuple(_divided(n, oversampling) for n in volume_shape[-2:])
    else:
        image_shape = _check_shape("output_shape", output_shape, (2,) if dims == 2 else (2, 3))
    geometry = Geometry(
        volume_shape,
        image_shape,
        _check_interpolation(interpolation),
        oversampling,
        _check_cutoff(fourier_radius_cutoff, image_shape),
    )
    friedel = _check_gradient(gradient)
    _check_shifts(shifts, len(image_shape), reconstruction.device)
    single = rotations.dim() == 2 and (shifts is None or shifts.dim() == 1)
    _check_broadcast(
        ("rotations", rotations, 2),
        ("shifts", shifts, 1),
        # No dimension of the reconstruction pairs with P.
        ("reconstruction", None if single else reconstruction.unsqueeze(-1 - dims), dims),
    )
    rotations, shifts = _pose(rotations, shifts, single, reconstruction)
    project = partial(ops.selected(reconstruction.device).forward_project, geometry=geometry, friedel=friedel)
    images = fold_forward(project, reconstruction, rotations, shifts, dims)
    return images.squeeze(-1 - len(image_shape)) if single else images


def backward_project(
    projections: Tensor,
    rotations: Tensor,
    shifts: Optional[Tensor] = None,
    reconstruction_shape: Optional[Sequence[int]] = None,
    interpolation: str = "linear",
    oversampling: float = 1.0,
    fourier_radius_cutoff: Optional[float] = None,
    *,
    weights: Optional[Tensor] = None,
    projection_shape: Optional[Sequence[int]] = None,
    gradient: str = "friedel",
) -> Union[Tensor, tuple[Tensor, Tensor]]:
    """Insert projections into a reconstruction: the adjoint of `forward_project` between real-space signals.

    Every component of the full spectra is inserted once, and so is its Friedel mate. Shifts are undone.

    Args:
        projections: complex64 or complex128 half spectra `[..., P, (D,) H, W//2+1]`.
        rotations: `[..., P, 2, 2]` or `[..., P, 3, 3]`, as given to `forward_project`; leading dimensions and P
            broadcast. A single matrix `[d, d]` stands for one pose; then projections have no P.
        shifts: `[..., P, d]` in pixels of the projections, as given to `forward_project`.
        reconstruction_shape: real-space shape of the reconstruction, `(H, W)` or `(D, H, W)`. By default that of the
            projections times the oversampling; D of a volume from images is the longer of their two axes.
        interpolation, oversampling: as for `forward_project`.
        fourier_radius_cutoff: projection frequencies beyond this radius are left out. By default half of the shortest
            axis of the projections; `math.inf` for no cutoff.
        weights: real, of the projections' shape, >= 0, such as CTF^2: inserted with |interpolation weight|.
        projection_shape: real-space shape of the projections: `(H, W)`, or `(D, H, W)` for volumes. Needed for
            volumes, and where the parity of W differs from that of the other axes.
        gradient: as for `forward_project`.

    Returns:
        The reconstruction `[..., (D,) H, W//2+1]`; with weights also their sum, real, of the same shape.
    """
    _check_spectrum("projections", projections)
    dims = _check_rotations(rotations, projections.device)
    if projection_shape is not None:
        projection_shape = _check_shape("projection_shape", projection_shape, (2,) if dims == 2 else (2, 3))
    image_dims = 2 if projection_shape is None else len(projection_shape)
    _check_rank("projections", projections, image_dims, dims)
    image_shape = _real_shape("projections", projections, "projection_shape", projection_shape, image_dims)
    oversampling = _check_oversampling(oversampling)
    if reconstruction_shape is None:
        depth = [max(image_shape)] if image_dims < dims else []
        volume_shape = tuple(_multiplied(n, oversampling) for n in (*depth, *image_shape))
    else:
        volume_shape = _check_shape("reconstruction_shape", reconstruction_shape, (dims,))
    geometry = Geometry(
        volume_shape,
        image_shape,
        _check_interpolation(interpolation),
        oversampling,
        _check_cutoff(fourier_radius_cutoff, image_shape),
    )
    friedel = _check_gradient(gradient)
    _check_shifts(shifts, image_dims, projections.device)
    _check_weights(weights, projections)
    single = rotations.dim() == 2 and (shifts is None or shifts.dim() == 1)
    volumes = projection_shape is None and dims == 3
    _check_broadcast(
        ("rotations", rotations, 2),
        ("shifts", shifts, 1),
        ("projections", projections, image_dims),
        hint="; projections that are volumes need projection_shape=(D, H, W)" if volumes else "",
    )
    rotations, shifts = _pose(rotations, shifts, single, projections)
    if single:
        projections = projections.unsqueeze(-1 - image_dims)
        weights = None if weights is None else weights.unsqueeze(-1 - image_dims)
    projections = halved(projections, image_shape[-1])
    weights = None if weights is None else halved(weights, image_shape[-1])
    backproject = partial(
        ops.selected(projections.device).backward_project, geometry=geometry, friedel=friedel
    )
    volume, weight_volume = fold_backward(backproject, projections, weights, rotations, shifts, image_dims)
    volume = with_mates_(volume, volume_shape)
    return volume if weights is None else (volume, with_mates_(weight_volume, volume_shape))


def _pose(
    rotations: Tensor, shifts: Optional[Tensor], single: bool, data: Tensor
) -> tuple[Tensor, Optional[Tensor]]:
    """Poses with P, in the precision of the data."""
    dtype = _real_dtype(data)
    _check_finite("rotations", rotations)
    rotations = rotations.to(dtype)
    if single or rotations.dim() == 2:
        rotations = rotations.unsqueeze(-3)
    if shifts is not None:
        _check_finite("shifts", shifts)
        shifts = shifts.to(dtype)
        if single or shifts.dim() == 1:
            shifts = shifts.unsqueeze(-2)
    return rotations, shifts


def _real_dtype(data: Tensor) -> torch.dtype:
    return torch.float32 if data.dtype == torch.complex64 else torch.float64


def _divided(n: int, oversampling: float) -> int:
    return n if oversampling == 1 else max(1, round(n / oversampling))


def _multiplied(n: int, oversampling: float) -> int:
    return n if oversampling == 1 else round(n * oversampling)


# Checks name the argument, what was expected, and what came.


def _shown(x: Any) -> str:
    return (
        f"{x.dtype} of shape {tuple(x.shape)}"
        if isinstance(x, Tensor)
        else f"{type(x).__name__} {reprlib.repr(x)}"
    )


def _check_tensor(name: str, x: Any, dtypes: tuple[torch.dtype, ...], hint: str = "") -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {_shown(x)}")
    if x.dtype not in dtypes:
        expected = " or ".join(str(d) for d in dtypes)
        raise TypeError(f"{name}: expected {expected}, got {_shown(x)}{hint}")


def _check_spectrum(name: str, x: Any) -> None:
    real = isinstance(x, Tensor) and x.is_floating_point()
    hint = "; transform real data first: torch.fft.rfftn(torch.fft.ifftshift(x, dim=axes), dim=axes)"
    _check_tensor(name, x, (torch.complex64, torch.complex128), hint if real else "")


def _check_rotations(rotations: Any, device: torch.device) -> int:
    _check_tensor("rotations", rotations, (torch.float32, torch.float64))
    _check_device("rotations", rotations, device)
    for dims in (2, 3):  # a literal: sizes are symbols while tracing
        if rotations.dim() >= 2 and rotations.shape[-2] == dims and rotations.shape[-1] == dims:
            return dims
    raise ValueError(
        f"rotations: expected matrices [..., P, 2, 2] or [..., P, 3, 3], got shape {tuple(rotations.shape)}"
    )


def _check_rank(name: str, x: Tensor, dims: int, rotation_dims: int) -> None:
    if x.dim() < dims or 0 in x.shape[x.dim() - dims :]:
        layout = "[..., H, W//2+1]" if dims == 2 else "[..., D, H, W//2+1]"
        raise ValueError(
            f"{name}: expected a non-empty half spectrum {layout} to go with {rotation_dims}x{rotation_dims} "
            f"rotations, got shape {tuple(x.shape)}"
        )


def _check_shape(name: str, shape: Any, lengths: tuple[int, ...]) -> tuple[int, ...]:
    try:
        values = tuple(shape)
    except TypeError:
        values = ()
    if len(values) not in lengths or not all(_is_number(n, numbers.Integral) and n >= 1 for n in values):
        forms = " or ".join({2: "(H, W)", 3: "(D, H, W)"}[n] for n in lengths)
        raise ValueError(
            f"{name}: expected a real-space shape {forms} of positive integers, got {reprlib.repr(shape)}"
        )
    return values if ops.tracing() else tuple(map(int, values))


def _real_shape(
    name: str, x: Tensor, shape_name: str, shape: Optional[Sequence[int]], dims: int
) -> tuple[int, ...]:
    stored = tuple(x.shape[x.dim() - dims :])
    if shape is None:
        return real_shape(stored)
    shape = _check_shape(shape_name, shape, (dims,))
    if stored_shape(shape) != stored:
        raise ValueError(
            f"{shape_name}: {shape} has a half spectrum of shape {stored_shape(shape)}, but {name} has {stored}"
        )
    return shape


def _check_shifts(shifts: Any, dims: int, device: torch.device) -> None:
    if shifts is None:
        return
    _check_tensor("shifts", shifts, (torch.float32, torch.float64))
    if shifts.dim() < 1 or shifts.shape[-1] != dims:
        axes = "(x, y)" if dims == 2 else "(x, y, z)"
        raise ValueError(
            f"shifts: expected [..., P, {dims}], a vector {axes} for each projection, got shape {tuple(shifts.shape)}"
        )
    _check_device("shifts", shifts, device)


def _check_weights(weights: Any, projections: Tensor) -> None:
    if weights is None:
        return
    _check_tensor("weights", weights, (_real_dtype(projections),))
    if weights.shape != projections.shape:
        raise ValueError(
            f"weights: expected the shape of projections, {tuple(projections.shape)}, got {tuple(weights.shape)}"
        )
    _check_device("weights", weights, projections.device)
    if weights.numel() and _readable(weights):
        smallest = weights.detach().min().item()
        if not smallest >= 0:
            raise ValueError(f"weights: expected values >= 0, got {smallest}")


def _check_broadcast(*arguments: tuple[str, Optional[Tensor], int], hint: str = "") -> None:
    present = [(name, x.shape[: x.dim() - trailing]) for name, x, trailing in arguments if x is not None]
    try:
        broadcast(*[lead for _, lead in present])
    except ValueError:
        shapes = ", ".join(f"{name} {_leading(name, lead)}" for name, lead in present)
        raise ValueError(f"leading dimensions and P do not broadcast: {shapes}{hint}") from None


def _leading(name: str, lead: Sequence[int]) -> str:
    # The reconstruction has no P and came with a 1 in its place.
    last = [] if name == "reconstruction" else [f"P={lead[-1]}"] if lead else []
    return f"[{', '.join([*map(str, lead[:-1]), *last])}]"


def _check_device(name: str, x: Tensor, device: torch.device) -> None:
    if x.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, where the data is, got one on {x.device}")


def _check_interpolation(interpolation: Any) -> int:
    if not isinstance(interpolation, str) or interpolation not in INTERPOLATION_CODES:
        expected = ", ".join(repr(name) for name in INTERPOLATION_CODES)
        raise ValueError(f"interpolation: expected one of {expected}, got {interpolation!r}")
    return INTERPOLATION_CODES[interpolation]


def _check_number(name: str, value: Any, expectation: str) -> float:
    if not _is_number(value, numbers.Real):
        raise TypeError(f"{name}: expected {expectation}, got {_shown(value)}")
    return value


def _is_number(x: Any, types: Any) -> bool:
    # What a tracer puts in place of numbers is not an instance of their types.
    return ops.tracing() or (isinstance(x, types) and not isinstance(x, bool))


def _check_oversampling(oversampling: Any) -> float:
    value = _check_number("oversampling", oversampling, "a number >= 1")
    if not 1 <= value < math.inf:
        raise ValueError(f"oversampling: expected a finite number >= 1, got {value}")
    return float(value)


def _check_cutoff(cutoff: Any, image_shape: tuple[int, ...]) -> float:
    if cutoff is None:
        return min(image_shape) / 2
    value = _check_number("fourier_radius_cutoff", cutoff, "a number > 0 or None")
    if not value > 0:
        raise ValueError(f"fourier_radius_cutoff: expected a number > 0 or None, got {value}")
    return float(value)


def _check_gradient(gradient: Any) -> bool:
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient: expected 'friedel' or 'stored', got {gradient!r}")
    return gradient == "friedel"


def _readable(x: Tensor) -> bool:
    """Whether values can be looked at without tracing, transforming or waiting for a device."""
    return (
        x.device.type == "cpu"
        and not ops.tracing()
        and type(x) in (Tensor, torch.nn.Parameter)
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _check_finite(name: str, x: Tensor) -> None:
    # The sum of 0 * x is 0, unless something is not finite: a third of the cost of isfinite.
    if _readable(x) and (x.detach() * 0).sum().item() != 0:
        bad = torch.nonzero(~torch.isfinite(x.detach()))[0].tolist()
        raise ValueError(f"{name}: expected finite values, got {x[tuple(bad)].item()} at index {bad}")
