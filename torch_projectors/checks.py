"""Checks of arguments: messages name the argument, what was expected, and what came."""

from __future__ import annotations

import functools
import math
import numbers
import reprlib
from collections.abc import Sequence
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from . import ops
from .batching import broadcast
from .geometry import INTERPOLATION_CODES
from .spectrum import real_shape, stored_shape

GRADIENTS = ("friedel", "stored")


def real_dtype(data: Tensor) -> torch.dtype:
    return torch.float32 if data.dtype == torch.complex64 else torch.float64


def shown(x: Any) -> str:
    return (
        f"{x.dtype} of shape {tuple(x.shape)}"
        if isinstance(x, Tensor)
        else f"{type(x).__name__} {reprlib.repr(x)}"
    )


def remembered(check: Callable[..., Any]) -> Callable[..., Any]:
    """A check of arguments that looks at no values of tensors, made once for all that look the same."""
    results: dict[Any, Any] = {}

    @functools.wraps(check)
    def run(*arguments: Any) -> Any:
        if ops.tracing():  # sizes are symbols
            return check(*arguments)
        try:
            look = tuple(map(_look, arguments))
            result = results.get(look)
        except TypeError:  # such as of a list, which may change
            look = result = None
        if result is None:
            result = check(*arguments)
            if len(results) >= 1000:
                results.clear()
            if look is not None:
                results[look] = result
        return result

    return run


def _look(x: Any) -> Any:
    # With types, for 1 == 1.0 == True.
    if isinstance(x, Tensor):
        return x.shape, x.dtype, x.device
    return tuple(map(_look, x)) if type(x) is tuple else (type(x), x)


def check_tensor(name: str, x: Any, dtypes: tuple[torch.dtype, ...], hint: str = "") -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {shown(x)}")
    if x.dtype not in dtypes:
        expected = " or ".join(str(d) for d in dtypes)
        raise TypeError(f"{name}: expected {expected}, got {shown(x)}{hint}")


def check_spectrum(name: str, x: Any) -> None:
    real = isinstance(x, Tensor) and x.is_floating_point()
    hint = "; transform real data first: torch.fft.rfftn(torch.fft.ifftshift(x, dim=axes), dim=axes)"
    check_tensor(name, x, (torch.complex64, torch.complex128), hint if real else "")


def check_rotations(rotations: Any, device: torch.device) -> int:
    check_tensor("rotations", rotations, (torch.float32, torch.float64))
    check_device("rotations", rotations, device)
    for dims in (2, 3):  # a literal: sizes are symbols while tracing
        if rotations.dim() >= 2 and rotations.shape[-2] == dims and rotations.shape[-1] == dims:
            return dims
    raise ValueError(
        f"rotations: expected matrices [..., P, 2, 2] or [..., P, 3, 3], got shape {tuple(rotations.shape)}"
    )


def check_rank(name: str, x: Tensor, dims: int, rotation_dims: int) -> None:
    if x.dim() < dims or 0 in x.shape[x.dim() - dims :]:
        layout = "[..., H, W//2+1]" if dims == 2 else "[..., D, H, W//2+1]"
        raise ValueError(
            f"{name}: expected a non-empty half spectrum {layout} to go with {rotation_dims}x{rotation_dims} "
            f"rotations, got shape {tuple(x.shape)}"
        )


def check_shape(name: str, shape: Any, lengths: tuple[int, ...]) -> tuple[int, ...]:
    if type(shape) is tuple and len(shape) in lengths and all(type(n) is int and n >= 1 for n in shape):
        return shape  # as in most calls, several times faster
    try:
        values = tuple(shape)
    except TypeError:
        values = ()
    if len(values) not in lengths or not all(_is_number(n, numbers.Integral) and n >= 1 for n in values):
        forms = " or ".join({1: "(W,)", 2: "(H, W)", 3: "(D, H, W)"}[n] for n in lengths)
        raise ValueError(
            f"{name}: expected a real-space shape {forms} of positive integers, got {reprlib.repr(shape)}"
        )
    return values if ops.tracing() else tuple(map(int, values))


def check_real_shape(
    name: str, x: Tensor, shape_name: str, shape: Optional[Sequence[int]], dims: int
) -> tuple[int, ...]:
    stored = tuple(x.shape[max(0, x.dim() - dims) :])
    if shape is None:
        return real_shape(stored)
    shape = check_shape(shape_name, shape, (dims,))
    if stored_shape(shape) != stored:
        raise ValueError(
            f"{shape_name}: {shape} has a half spectrum of shape {stored_shape(shape)}, but {name} has {stored}"
        )
    return shape


def check_shifts(shifts: Any, dims: int, device: torch.device) -> None:
    if shifts is None:
        return
    check_tensor("shifts", shifts, (torch.float32, torch.float64))
    if shifts.dim() < 1 or shifts.shape[-1] != dims:
        axes = "(x, y)" if dims == 2 else "(x, y, z)"
        raise ValueError(
            f"shifts: expected [..., P, {dims}], a vector {axes} for each projection, got shape {tuple(shifts.shape)}"
        )
    check_device("shifts", shifts, device)


def check_weights(
    weights: Any, projections: Tensor, name: str = "weights", data_name: str = "projections"
) -> None:
    if weights is None:
        return
    check_tensor(name, weights, (real_dtype(projections),))
    if weights.shape != projections.shape:
        raise ValueError(
            f"{name}: expected the shape of {data_name}, {tuple(projections.shape)}, got {tuple(weights.shape)}"
        )
    check_device(name, weights, projections.device)


def check_broadcast(*arguments: tuple[str, Optional[Sequence[int]]], hint: str = "") -> None:
    """Of leading dimensions, P the last of them."""
    present = [(name, lead) for name, lead in arguments if lead is not None]
    leads = [lead for _, lead in present if lead != (1,)]
    if all(lead == leads[0] for lead in leads[1:]):
        return  # as in most calls, several times faster
    try:
        broadcast(*[lead for _, lead in present])
    except ValueError:
        shapes = ", ".join(f"{name} {_leading(name, lead)}" for name, lead in present)
        raise ValueError(f"leading dimensions and P do not broadcast: {shapes}{hint}") from None


def _leading(name: str, lead: Sequence[int]) -> str:
    # The reconstruction has no P and came with a 1 in its place.
    last = [] if name == "reconstruction" else [f"P={lead[-1]}"] if lead else []
    return f"[{', '.join([*map(str, lead[:-1]), *last])}]"


def check_device(name: str, x: Tensor, device: torch.device) -> None:
    if x.device != device:
        raise ValueError(f"{name}: expected a tensor on {device}, where the data is, got one on {x.device}")


def check_interpolation(interpolation: Any) -> int:
    if not isinstance(interpolation, str) or interpolation not in INTERPOLATION_CODES:
        expected = ", ".join(repr(name) for name in INTERPOLATION_CODES)
        raise ValueError(f"interpolation: expected one of {expected}, got {interpolation!r}")
    return INTERPOLATION_CODES[interpolation]


def check_number(name: str, value: Any, expectation: str) -> float:
    if not _is_number(value, numbers.Real):
        raise TypeError(f"{name}: expected {expectation}, got {shown(value)}")
    return value


def _is_number(x: Any, types: Any) -> bool:
    if type(x) in (int, float):  # as in most calls; the abstract types take longer to ask
        return type(x) is int or types is numbers.Real
    # What a tracer puts in place of numbers is not an instance of their types.
    return ops.tracing() or (isinstance(x, types) and not isinstance(x, bool))


def check_oversampling(oversampling: Any) -> float:
    value = check_number("oversampling", oversampling, "a number >= 1")
    if not 1 <= value < math.inf:
        raise ValueError(f"oversampling: expected a finite number >= 1, got {value}")
    return float(value)


def check_cutoff(cutoff: Any, image_shape: tuple[int, ...]) -> float:
    if cutoff is None:
        return min(image_shape) / 2
    value = check_number("fourier_radius_cutoff", cutoff, "a number > 0 or None")
    if not value > 0:
        raise ValueError(f"fourier_radius_cutoff: expected a number > 0 or None, got {value}")
    return float(value)


def check_gradient(gradient: Any) -> bool:
    if gradient not in GRADIENTS:
        raise ValueError(f"gradient: expected 'friedel' or 'stored', got {gradient!r}")
    return gradient == "friedel"


def _values_are_there() -> bool:
    """Not so where calls are traced or transformed."""
    return (
        not ops.tracing()
        and not torch._C._are_functorch_transforms_active()
        and torch._C._len_torch_dispatch_stack() == 0
    )


def _readable(x: Tensor) -> bool:
    """Whether values can be looked at, once `_values_are_there`, without waiting for a device."""
    return x.is_cpu and type(x) in (Tensor, torch.nn.Parameter)


def check_values(*checks: tuple[Callable[[str, Tensor], None], str, Optional[Tensor]]) -> None:
    """`finite` or `not_negative` of each argument, as (check, name, x), wherever its values can be looked at."""
    if _values_are_there():
        for check, name, x in checks:
            if x is not None and _readable(x):
                check(name, x.detach() if x.requires_grad else x)


def finite(name: str, x: Tensor) -> None:
    # A sum is finite only if all terms are: a quarter of the cost of isfinite.
    if not math.isfinite(x.sum().item()):
        for bad in torch.nonzero(~torch.isfinite(x)).tolist():
            raise ValueError(f"{name}: expected finite values, got {x[tuple(bad)].item()} at index {bad}")


def not_negative(name: str, x: Tensor) -> None:
    if x.numel():
        smallest = x.min().item()
        if not smallest >= 0:
            raise ValueError(f"{name}: expected values >= 0, got {smallest}")


def check_orthonormal(name: str, x: Tensor) -> None:
    """That matrices `[..., d, d]` are rotations, to the digits that files may give."""
    if not (_values_are_there() and _readable(x) and x.numel()):
        return
    x = x.detach()
    defects = (x.mT @ x - torch.eye(x.shape[-1], dtype=x.dtype)).abs().amax((-2, -1))
    for bad in torch.nonzero(~(defects <= 1e-4)).tolist():
        raise ValueError(
            f"{name}: expected rotation matrices, M.T @ M the identity to 1e-4, got a deviation of "
            f"{defects[tuple(bad)].item():.2g} at index {bad}"
        )
    for bad in torch.nonzero(torch.linalg.det(x) < 0).tolist():
        raise ValueError(
            f"{name}: expected rotation matrices, got a mirror, of determinant -1, at index {bad}"
        )
