"""Projection between real volumes and images, and what it takes around the Fourier operators.

A box has its origin in the centre, index N//2 of every axis. Values are sums: an image of a volume is its integral
along z after rotation, in voxels, and larger pixels hold more. All functions are differentiable, and compose with any
other of torch; the conventions of half spectra stay inside.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from .batching import broadcast
from .checks import (
    check_cutoff,
    check_device,
    check_interpolation,
    check_number,
    check_oversampling,
    check_real_shape,
    check_rotations,
    check_shape,
    check_spectrum,
    check_tensor,
    check_values,
    check_weights,
    not_negative,
    shown,
)
from .fourier import backward_project, forward_project
from .geometry import INTERPOLATION_CODES
from .spectrum import halved, radii, shell_means, shell_sums, slab_of, slabs

CORRECTIONS = ("separable", "radial", None)
POLICIES = ("clamp", "radial", "wiener")


def project(
    reconstruction: Tensor,
    rotations: Tensor,
    shifts: Optional[Tensor] = None,
    output_shape: Optional[Sequence[int]] = None,
    interpolation: str = "linear",
    oversampling: float = 2.0,
    fourier_radius_cutoff: Optional[float] = None,
    *,
    pixel_size: float = 1.0,
    correction: Optional[str] = "separable",
) -> Tensor:
    """Images of a real volume, or rotated copies of a real image or volume.

    What is at r moves to `M^T r`, is summed along z where the output is an image, and then moves by the shift. The
    reconstruction is zero outside its box, and divided by the gridding correction, so that interpolation does not
    dim its rim. The larger of the two boxes is periodic: what leaves it on one side enters on the other.

    Args:
        reconstruction: float32 or float64 `[..., (D,) H, W]`.
        rotations: `[..., P, 2, 2]` for images of images, `[..., P, 3, 3]` for images or volumes of a volume; leading
            dimensions broadcast. A single matrix `[d, d]` stands for one pose, without P in the output.
        shifts: `[..., P, d]` in output pixels, (x, y[, z]); positive moves the content along +axis.
        output_shape: box of the output in its pixels, `(H, W)`, or `(D, H, W)` for volumes. By default that of the last
            two axes of the reconstruction, over the pixel size. It crops or extends; the scale is the pixel size's.
        interpolation: "nearest", "linear" or "cubic".
        oversampling: how much finer frequencies are sampled, by zero padding: >= 1.
        fourier_radius_cutoff: output frequencies beyond this radius, in cycles per longest output axis, are zero. By
            default half of that axis; `math.inf` for no cutoff.
        pixel_size: edge of an output pixel, in those of the reconstruction; 2 halves the resolution.
        correction: "separable", exact for the interpolations here; "radial", as RELION does; None for none.

    Returns:
        The projections, `[..., P, (D,) H, W]`, of the reconstruction's dtype.
    """
    dims = check_rotations(rotations, _device("reconstruction", reconstruction))
    shape = _box("reconstruction", reconstruction, dims)
    pixel_size = _check_pixel_size(pixel_size)
    if output_shape is None:
        output_shape = tuple(max(1, round(n / pixel_size)) for n in shape[-2:])
    else:
        output_shape = check_shape("output_shape", output_shape, (2,) if dims == 2 else (2, 3))
    boxes = _boxes(shape, output_shape, pixel_size, oversampling, fourier_radius_cutoff)
    projections = forward_project(
        _prepared(reconstruction, boxes.volume, interpolation, correction),
        rotations,
        shifts,
        boxes.image,
        interpolation,
        boxes.oversampling,
        boxes.cutoff,
        reconstruction_shape=boxes.volume,
        gradient="stored",
    )
    return from_spectrum(projections, boxes.image, output_shape)


def backproject(
    projections: Tensor,
    rotations: Tensor,
    shifts: Optional[Tensor] = None,
    reconstruction_shape: Optional[Sequence[int]] = None,
    interpolation: str = "linear",
    oversampling: float = 2.0,
    fourier_radius_cutoff: Optional[float] = None,
    *,
    pixel_size: float = 1.0,
    correction: Optional[str] = "separable",
    projection_shape: Optional[Sequence[int]] = None,
) -> Tensor:
    """The transpose of `project`: every image smeared back along the direction that it was summed in, and added up.

    As a linear map between real arrays it is the exact transpose, as iterative solvers need it, with the same options.
    It is not yet a reconstruction: that is `torch_projectors.backward_project` and `reconstruct`.

    Args:
        projections: float32 or float64 `[..., P, (D,) H, W]`.
        rotations, shifts, interpolation, oversampling, fourier_radius_cutoff, pixel_size, correction: as given to
            `project`.
        reconstruction_shape: box of the result, `(H, W)` or `(D, H, W)`. By default that of the projections times the
            pixel size; D of a volume from images is the longer of their two axes.
        projection_shape: `(D, H, W)`, needed for projections that are volumes.

    Returns:
        The reconstruction `[..., (D,) H, W]`.
    """
    dims = check_rotations(rotations, _device("projections", projections))
    if projection_shape is not None:
        projection_shape = check_shape("projection_shape", projection_shape, (2,) if dims == 2 else (2, 3))
    image_dims = 2 if projection_shape is None else len(projection_shape)
    image_shape = _box("projections", projections, image_dims)
    if projection_shape is not None and projection_shape != image_shape:
        raise ValueError(
            f"projection_shape: expected that of projections, {image_shape}, got {projection_shape}"
        )
    pixel_size = _check_pixel_size(pixel_size)
    if reconstruction_shape is None:
        depth = [max(image_shape)] if image_dims < dims else []
        shape = tuple(max(1, round(n * pixel_size)) for n in (*depth, *image_shape))
    else:
        shape = check_shape("reconstruction_shape", reconstruction_shape, (dims,))
    boxes = _boxes(shape, image_shape, pixel_size, oversampling, fourier_radius_cutoff)
    total = backward_project(
        to_spectrum(pad(projections, boxes.image), image_dims),
        rotations,
        shifts,
        boxes.volume,
        interpolation,
        boxes.oversampling,
        boxes.cutoff,
        projection_shape=None if projection_shape is None else boxes.image,
        gradient="stored",
    )
    # What the inverse transforms divide by on the two sides.
    scale = math.prod(boxes.volume) / math.prod(boxes.image)
    cropped = from_spectrum(total, boxes.volume, shape) * scale
    return correct_gridding(cropped, boxes.volume, interpolation, correction)


class _Boxes(NamedTuple):
    """Padded boxes with equal axes, in which frequencies of all axes are alike; the scale and the cutoff there."""

    volume: tuple[int, ...]
    image: tuple[int, ...]
    oversampling: float
    cutoff: float


def _boxes(
    shape: Sequence[int],
    image_shape: Sequence[int],
    pixel_size: float,
    oversampling: float,
    cutoff: Optional[float],
) -> _Boxes:
    # An image smaller than the reconstruction is cropped from one that is not, or all around it would fold in.
    side = max(*image_shape, math.ceil(max(shape) / pixel_size))
    view = side * pixel_size  # in voxels
    padded = math.ceil(max(check_oversampling(oversampling) * max(shape), view))
    cutoff = check_cutoff(cutoff, (max(image_shape),)) * side / max(image_shape)
    return _Boxes((padded,) * len(shape), (side,) * len(image_shape), padded / view, cutoff)


def prepare(
    reconstruction: Tensor,
    dims: int,
    interpolation: str = "linear",
    oversampling: float = 2.0,
    *,
    correction: Optional[str] = "separable",
) -> Tensor:
    """The half spectrum that `project` samples, for `forward_project` with the same interpolation and oversampling.

    Transformed once, it serves any number of projections: a map against which poses are refined, say. Boxes `[..., D,
    H, W]` (dims=3) or `[..., H, W]` (dims=2) are corrected, padded to equal axes and transformed. The longest axis
    times the oversampling has to be a whole number.
    """
    side = max(_box("reconstruction", reconstruction, dims))
    padded = side * check_oversampling(oversampling)
    if abs(padded - round(padded)) > 1e-6 * padded:
        raise ValueError(
            f"oversampling: expected one that pads {side} points to a whole number, got {oversampling}: {padded:g}; "
            "or pad the box to another size first"
        )
    return _prepared(reconstruction, (round(padded),) * dims, interpolation, correction)


def _prepared(x: Tensor, padded: Sequence[int], interpolation: str, correction: Optional[str]) -> Tensor:
    return to_spectrum(pad(correct_gridding(x, padded, interpolation, correction), padded), len(padded))


def pad(x: Tensor, shape: Sequence[int]) -> Tensor:
    """x `[..., (D,) H, W]` in the centre of a larger box of zeros, of the shape for the last `len(shape)` axes."""
    return _around_centre("pad", x, shape)


def crop(x: Tensor, shape: Sequence[int]) -> Tensor:
    """The central box of x `[..., (D,) H, W]`, of the shape for the last `len(shape)` axes."""
    return _around_centre("crop", x, shape)


def _around_centre(verb: str, x: Tensor, shape: Sequence[int]) -> Tensor:
    if not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch.Tensor, got {shown(x)}")
    shape = check_shape("shape", shape, (1, 2, 3))
    if x.dim() < len(shape):
        raise ValueError(
            f"x: expected at least {len(shape)} axes for a box of {shape}, got shape {tuple(x.shape)}"
        )
    old = tuple(x.shape[x.dim() - len(shape) :])
    if any(new < n if verb == "pad" else new > n for n, new in zip(old, shape)):
        raise ValueError(f"shape: cannot {verb} a box of {old} to {shape}")
    if old == shape:
        return x
    before = [new // 2 - n // 2 for n, new in zip(old, shape)]
    after = [new - n - b for n, new, b in zip(old, shape, before)]
    return torch.nn.functional.pad(x, [b for pair in zip(before[::-1], after[::-1]) for b in pair])


def to_spectrum(x: Tensor, dims: int) -> Tensor:
    """Half spectra `[..., (D,) H, W//2+1]`, as the Fourier functions take them, of real boxes `[..., (D,) H, W]`."""
    _box("x", x, dims)
    axes = tuple(range(-dims, 0))
    return torch.fft.rfftn(torch.fft.ifftshift(x, dim=axes), dim=axes)


def from_spectrum(
    spectrum: Tensor, shape: Sequence[int], output_shape: Optional[Sequence[int]] = None
) -> Tensor:
    """Real boxes `[..., *shape]` of half spectra `[..., (D,) H, W//2+1]`: the inverse of `to_spectrum`.

    With an output_shape the central box of that shape, as `crop` gives it.
    """
    check_spectrum("spectrum", spectrum)
    shape = check_shape("shape", shape, (1, 2, 3))
    check_real_shape("spectrum", spectrum, "shape", shape, len(shape))
    axes = tuple(range(-len(shape), 0))
    x = torch.fft.irfftn(spectrum, s=shape, dim=axes)
    if output_shape is None or tuple(output_shape) == shape:
        return torch.fft.fftshift(x, dim=axes)
    output_shape = check_shape("output_shape", output_shape, (len(shape),))
    if any(new > n for n, new in zip(shape, output_shape)):
        raise ValueError(f"output_shape: expected at most {shape}, got {output_shape}")
    # Less to move than all of the box.
    for axis, n, new in zip(axes, shape, output_shape):
        before = new // 2
        x = torch.cat([x.narrow(axis, n - before, before), x.narrow(axis, 0, new - before)], axis)
    return x


def gridding_blur(
    shape: Sequence[int],
    padded: Sequence[int],
    interpolation: str = "linear",
    correction: Optional[str] = "separable",
    *,
    dtype: Optional[torch.dtype] = None,
    device: Optional[torch.device] = None,
) -> Tensor:
    """What interpolating its spectrum multiplies a box by, `[*shape]`: the interpolation kernel's transform.

    A voxel v box lengths from the centre, lengths of the padded box, is dimmed along each axis by sinc(v) for nearest,
    sinc(v)^2 for linear, sinc(v)^3 (3 sinc(v) - 2 cos(pi v)) for cubic. "separable" is their product, and exact;
    "radial" takes v for the distance from the centre, once.
    """
    code = check_interpolation(interpolation)
    _check_correction(correction)
    shape = check_shape("shape", shape, (1, 2, 3))
    padded = check_shape("padded", padded, (len(shape),))
    # One axis at a time in float64, which not every device has.
    offsets = [(torch.arange(n, dtype=torch.float64) - n // 2) / m for n, m in zip(shape, padded)]
    blur = torch.ones((), dtype=dtype, device=device)
    if correction is None:
        return blur.expand(*shape)
    if correction == "radial":
        square = torch.zeros_like(blur)
        for v in offsets:
            square = square[..., None] + v.square().to(blur)
        return _kernel_transform(code, square.sqrt())
    for v in offsets:
        blur = blur[..., None] * _kernel_transform(code, v).to(blur)
    return blur


def _kernel_transform(code: int, v: Tensor) -> Tensor:
    sinc = torch.sinc(v)
    if code == INTERPOLATION_CODES["nearest"]:
        return sinc
    if code == INTERPOLATION_CODES["linear"]:
        return sinc.square()
    return sinc**3 * (3 * sinc - 2 * torch.cos(math.pi * v))


def correct_gridding(
    x: Tensor,
    padded: Sequence[int],
    interpolation: str = "linear",
    correction: Optional[str] = "separable",
) -> Tensor:
    """x `[..., (D,) H, W]` divided by its `gridding_blur` in a padded box of shape `padded`.

    Before a projection, from a box padded to that shape, or after an insertion, cropped from it: it is the same.
    """
    check_interpolation(interpolation)
    _check_correction(correction)
    padded = check_shape("padded", padded, (1, 2, 3))
    shape = _box("x", x, len(padded))
    if correction is None:
        return x
    return x / gridding_blur(shape, padded, interpolation, correction, dtype=x.dtype, device=x.device)


def reconstruct(
    data: Tensor,
    weight: Tensor,
    interpolation: str = "linear",
    oversampling: float = 1.0,
    *,
    policy: str = "clamp",
    snr: Any = None,
    correction: Optional[str] = "separable",
    reconstruction_shape: Optional[Sequence[int]] = None,
) -> Tensor:
    """The real map of what `backward_project` returned: data divided by weight, transformed, cropped, corrected.

    Args:
        data, weight: `[..., (D,) H, W//2+1]`, complex and real; rank 3 or more is taken for volumes, 2 for an image.
        interpolation, oversampling: as given to `backward_project`. The box of the data has to be the oversampling
            times a whole number.
        policy: what becomes of small weights.
            "clamp": divide by at least 1.
            "radial": divide by at least a thousandth of the mean weight of the shell, as RELION does.
            "wiener": add 1 / snr to the weight; needs `snr`.
        snr: signal-to-noise ratio of a component of a single image of weight 1: a number, or a tensor
            `[shells]` for |k| = 0, 1, ... whose last value holds from there on. With weights CTF^2 / sigma^2, and data
            likewise, this is the power tau^2 of the signal's transform.
        correction: as for `project`.
        reconstruction_shape: real-space shape of the data, where the parity of W differs from that of other axes;
            and for a batch of images.

    Returns:
        The map `[..., (D,) H, W]`, smaller than the data's box by the oversampling. Where there is no weight, the
        spectrum is zero. No image has components between 0 and 1 cycles per box, so that with oversampling the
        mean of a map is uncertain.
    """
    check_spectrum("data", data)
    if reconstruction_shape is not None:
        reconstruction_shape = check_shape("reconstruction_shape", reconstruction_shape, (2, 3))
    dims = min(data.dim(), 3) if reconstruction_shape is None else len(reconstruction_shape)
    if dims < 2 or 0 in data.shape[-dims:]:
        raise ValueError(
            f"data: expected a non-empty half spectrum [..., (D,) H, W//2+1], got shape {tuple(data.shape)}"
        )
    padded = check_real_shape("data", data, "reconstruction_shape", reconstruction_shape, dims)
    check_tensor("weight", weight, (torch.float32, torch.float64))
    check_weights(weight, data, "weight", "data")
    check_values((not_negative, "weight", weight))
    oversampling = check_oversampling(oversampling)
    shape = tuple(round(n / oversampling) for n in padded)
    if any(abs(n * oversampling - m) > 1e-6 * m for n, m in zip(shape, padded)):
        raise ValueError(
            f"oversampling: expected one that the data's box {padded} is a whole number times, got {oversampling}; "
            "give backward_project a reconstruction_shape that is"
        )
    if check_interpolation(interpolation) == INTERPOLATION_CODES["cubic"]:
        # Weights are inserted with the kernel's magnitude, whose integral is 7/6 where the kernel's is 1.
        weight = weight * (6 / 7) ** dims
    inverse = _inverse_weight(weight, padded, oversampling, policy, snr)
    x = from_spectrum(data * inverse, padded, shape)
    return correct_gridding(x, padded, interpolation, correction)


def _inverse_weight(
    weight: Tensor, padded: tuple[int, ...], oversampling: float, policy: str, snr: Any
) -> Tensor:
    if policy not in POLICIES:
        raise ValueError(f"policy: expected one of {', '.join(map(repr, POLICIES))}, got {shown(policy)}")
    if (policy == "wiener") != (snr is not None):
        raise ValueError(f"snr: expected with policy 'wiener' and with no other, got {snr!r} with {policy!r}")
    if policy == "clamp":
        return weight.clamp(min=1).reciprocal()
    last = math.ceil(math.sqrt(len(padded)) * max(padded) / 2 / oversampling) + 1
    if policy == "radial":
        least = (shell_means(weight, padded, 1 / oversampling, last + 1) / 1000).to(weight.dtype)
    # An oversampled component has its share of an independent one's weight.
    share = oversampling ** -len(padded)

    def inverse(part: slice) -> Tensor:
        radius, divisor = radii(padded, weight.device, part) / oversampling, slab_of(weight, padded, part)
        if policy == "radial":
            divisor = torch.maximum(divisor, least[..., (radius + 0.5).long()])
        else:
            divisor = divisor + share / _curve(snr, radius).to(weight.dtype)
        empty = divisor == 0
        return torch.where(empty, 0, torch.where(empty, 1, divisor).reciprocal())

    return torch.cat([inverse(part) for part in slabs(padded)], -len(padded))


def _curve(snr: Any, radius: Tensor) -> Tensor:
    """Values at every radius: a number, or a curve over the integers, interpolated linearly."""
    values = (
        snr
        if isinstance(snr, Tensor)
        else torch.tensor(check_number("snr", snr, "a number or a tensor"), dtype=radius.dtype)
    )
    if values.dim():
        check_device("snr", values, radius.device)
    if values.dim() > 1 or values.is_complex() or not values.numel() or not (values.detach() >= 0).all():
        raise ValueError(f"snr: expected values >= 0, a number or a curve [shells], got {shown(snr)}")
    values = values.reshape(-1).to(radius)
    last = len(values) - 1
    radius = radius.clamp(max=last)
    below = radius.long()
    part = radius - below
    between = values[below] * (1 - part) + values[(below + 1).clamp(max=last)] * part
    return torch.where(part == 0, values[below], between)  # not 0 * inf


def fsc(a: Tensor, b: Tensor, dims: int = 3) -> Tensor:
    """Fourier shell correlation of real maps `[..., D, H, W]`, or ring correlation of images `[..., H, W]` with dims=2.

    Shell i holds the frequencies that round to i cycles per longest axis, up to Nyquist. Returns `[..., N//2+1]` of the
    longest axis, float64; a shell without signal in both maps correlates by 0.
    """
    shape = _box("a", a, dims)
    if _box("b", b, dims) != shape:
        raise ValueError(
            f"b: expected a map of the box of a, {shape}, got {tuple(b.shape[b.dim() - dims :])}"
        )
    check_device("b", b, a.device)
    leads = [x.shape[: x.dim() - dims] for x in (a, b)]
    try:
        broadcast(*leads)
    except ValueError:
        shapes = " and ".join(f"{name} {list(lead)}" for name, lead in zip("ab", leads))
        raise ValueError(f"leading dimensions do not broadcast: {shapes}") from None
    shells, count = (radii(shape, a.device) + 0.5).long(), max(shape) // 2 + 1
    f, g = to_spectrum(a, dims), to_spectrum(b, dims)
    once = halved(torch.ones(f.shape[f.dim() - dims :], dtype=a.dtype, device=a.device), shape[-1])

    def inner(p: Tensor, q: Tensor) -> Tensor:
        return shell_sums(once * (p * q.conj()).real, shells, count)

    power = inner(f, f) * inner(g, g)
    empty = power == 0
    return torch.where(empty, 0, inner(f, g) / torch.where(empty, 1, power).sqrt())


def fsc_crossing(curve: Tensor, threshold: float = 0.5) -> Tensor:
    """Where a shell correlation `[..., shells]` first falls below the threshold, between shells; the last if nowhere.

    In cycles per box: N / crossing is a resolution in pixels.
    """
    if curve.dim() < 1 or curve.shape[-1] < 2:
        raise ValueError(f"curve: expected [..., shells] of two or more, got shape {tuple(curve.shape)}")
    curve = curve[..., 1:]  # the mean of a map tells nothing of its detail
    below = curve < threshold
    first = below.to(torch.int8).argmax(-1, keepdim=True)
    after = curve.gather(-1, first)
    before = torch.where(first > 0, curve.gather(-1, (first - 1).clamp(min=0)), 1.0)
    crossing = first + (before - threshold) / (before - after)
    last = torch.full_like(crossing, curve.shape[-1])
    return torch.where(below.any(-1, keepdim=True), crossing, last).squeeze(-1)


def _device(name: str, x: Any) -> torch.device:
    check_tensor(name, x, (torch.float32, torch.float64), _hint(x))
    return x.device


def _hint(x: Any) -> str:
    return (
        "; from_spectrum gives the real box of a half spectrum"
        if isinstance(x, Tensor) and x.is_complex()
        else ""
    )


def _box(name: str, x: Any, dims: int) -> tuple[int, ...]:
    """The last axes of a real array."""
    if dims not in (1, 2, 3):
        raise ValueError(f"dims: expected 1, 2 or 3, got {dims!r}")
    check_tensor(name, x, (torch.float32, torch.float64), _hint(x))
    box = tuple(x.shape[max(0, x.dim() - dims) :])
    if len(box) < dims or 0 in box:
        layout = {1: "[..., W]", 2: "[..., H, W]", 3: "[..., D, H, W]"}[dims]
        raise ValueError(f"{name}: expected a non-empty box {layout}, got shape {tuple(x.shape)}")
    return box


def _check_pixel_size(pixel_size: Any) -> float:
    value = check_number("pixel_size", pixel_size, "a number > 0")
    if not 0 < value < math.inf:
        raise ValueError(f"pixel_size: expected a finite number > 0, got {value}")
    return float(value)


def _check_correction(correction: Any) -> None:
    if correction not in CORRECTIONS:
        raise ValueError(f"correction: expected 'separable', 'radial' or None, got {correction!r}")
