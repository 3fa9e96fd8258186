"""The public functions: they check and complete their arguments, once, and call the ops on canonical tensors."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Optional, Union

from torch import Tensor

from . import ops
from .batching import fold_backward, fold_forward
from .checks import (
    check_broadcast,
    check_cutoff,
    check_gradient,
    check_interpolation,
    check_oversampling,
    check_rank,
    check_real_shape,
    check_rotations,
    check_shape,
    check_shifts,
    check_spectrum,
    check_values,
    check_weights,
    finite,
    not_negative,
    real_dtype,
    remembered,
)
from .geometry import Geometry


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
    geometry, friedel, single = _forward_call(
        reconstruction,
        rotations,
        shifts,
        output_shape,
        interpolation,
        oversampling,
        fourier_radius_cutoff,
        reconstruction_shape,
        gradient,
    )
    check_values((finite, "rotations", rotations), (finite, "shifts", shifts))
    rotations, shifts = _pose(rotations, shifts, single, reconstruction)
    project = partial(ops.selected(reconstruction.device).forward_project, geometry=geometry, friedel=friedel)
    images = fold_forward(project, reconstruction, rotations, shifts, len(geometry.volume_shape))
    return images.squeeze(-1 - len(geometry.image_shape)) if single else images


@remembered
def _forward_call(
    reconstruction: Tensor,
    rotations: Tensor,
    shifts: Optional[Tensor],
    output_shape: Optional[Sequence[int]],
    interpolation: str,
    oversampling: float,
    fourier_radius_cutoff: Optional[float],
    reconstruction_shape: Optional[Sequence[int]],
    gradient: str,
) -> tuple[Geometry, bool, bool]:
    """What `forward_project` makes of its arguments: also whether gradients are of half spectra, and of one pose."""
    check_spectrum("reconstruction", reconstruction)
    dims = check_rotations(rotations, reconstruction.device)
    check_rank("reconstruction", reconstruction, dims, dims)
    volume_shape = check_real_shape(
        "reconstruction", reconstruction, "reconstruction_shape", reconstruction_shape, dims
    )
    oversampling = check_oversampling(oversampling)
    if output_shape is None:
        image_shape = tuple(_divided(n, oversampling) for n in volume_shape[-2:])
    else:
        image_shape = check_shape("output_shape", output_shape, (2,) if dims == 2 else (2, 3))
    geometry = Geometry(
        volume_shape,
        image_shape,
        check_interpolation(interpolation),
        oversampling,
        check_cutoff(fourier_radius_cutoff, image_shape),
    )
    friedel = check_gradient(gradient)
    check_shifts(shifts, len(image_shape), reconstruction.device)
    single = rotations.dim() == 2 and (shifts is None or shifts.dim() == 1)
    check_broadcast(
        ("rotations", rotations.shape[:-2]),
        ("shifts", None if shifts is None else shifts.shape[:-1]),
        # No dimension of the reconstruction pairs with P.
        ("reconstruction", None if single else (*reconstruction.shape[:-dims], 1)),
    )
    return geometry, friedel, single


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
    geometry, friedel, single = _backward_call(
        projections,
        rotations,
        shifts,
        reconstruction_shape,
        interpolation,
        oversampling,
        fourier_radius_cutoff,
        weights,
        projection_shape,
        gradient,
    )
    check_values(
        (not_negative, "weights", weights), (finite, "rotations", rotations), (finite, "shifts", shifts)
    )
    rotations, shifts = _pose(rotations, shifts, single, projections)
    image_dims = len(geometry.image_shape)
    if single:
        projections = projections.unsqueeze(-1 - image_dims)
        weights = None if weights is None else weights.unsqueeze(-1 - image_dims)
    insert = partial(ops.selected(projections.device).insert_projections, geometry=geometry, friedel=friedel)
    volume, weight_volume = fold_backward(insert, projections, weights, rotations, shifts, image_dims)
    return volume if weights is None else (volume, weight_volume)


@remembered
def _backward_call(
    projections: Tensor,
    rotations: Tensor,
    shifts: Optional[Tensor],
    reconstruction_shape: Optional[Sequence[int]],
    interpolation: str,
    oversampling: float,
    fourier_radius_cutoff: Optional[float],
    weights: Optional[Tensor],
    projection_shape: Optional[Sequence[int]],
    gradient: str,
) -> tuple[Geometry, bool, bool]:
    """What `backward_project` makes of its arguments, as `_forward_call` does."""
    check_spectrum("projections", projections)
    dims = check_rotations(rotations, projections.device)
    if projection_shape is not None:
        projection_shape = check_shape("projection_shape", projection_shape, (2,) if dims == 2 else (2, 3))
    image_dims = 2 if projection_shape is None else len(projection_shape)
    check_rank("projections", projections, image_dims, dims)
    image_shape = check_real_shape(
        "projections", projections, "projection_shape", projection_shape, image_dims
    )
    oversampling = check_oversampling(oversampling)
    if reconstruction_shape is None:
        depth = [max(image_shape)] if image_dims < dims else []
        volume_shape = tuple(_multiplied(n, oversampling) for n in (*depth, *image_shape))
    else:
        volume_shape = check_shape("reconstruction_shape", reconstruction_shape, (dims,))
    geometry = Geometry(
        volume_shape,
        image_shape,
        check_interpolation(interpolation),
        oversampling,
        check_cutoff(fourier_radius_cutoff, image_shape),
        pairs_once=True,
    )
    friedel = check_gradient(gradient)
    check_shifts(shifts, image_dims, projections.device)
    check_weights(weights, projections)
    single = rotations.dim() == 2 and (shifts is None or shifts.dim() == 1)
    volumes = projection_shape is None and dims == 3
    check_broadcast(
        ("rotations", rotations.shape[:-2]),
        ("shifts", None if shifts is None else shifts.shape[:-1]),
        ("projections", projections.shape[:-image_dims]),
        hint="; projections that are volumes need projection_shape=(D, H, W)" if volumes else "",
    )
    return geometry, friedel, single


def _pose(
    rotations: Tensor, shifts: Optional[Tensor], single: bool, data: Tensor
) -> tuple[Tensor, Optional[Tensor]]:
    """Poses with P, in the precision of the data."""
    dtype = real_dtype(data)
    if rotations.dtype != dtype:
        rotations = rotations.to(dtype)
    if single or rotations.dim() == 2:
        rotations = rotations.unsqueeze(-3)
    if shifts is not None:
        if shifts.dtype != dtype:
            shifts = shifts.to(dtype)
        if single or shifts.dim() == 1:
            shifts = shifts.unsqueeze(-2)
    return rotations, shifts


def _divided(n: int, oversampling: float) -> int:
    return n if oversampling == 1 else max(1, round(n / oversampling))


def _multiplied(n: int, oversampling: float) -> int:
    return n if oversampling == 1 else round(n * oversampling)
