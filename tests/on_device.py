"""What lets tests that make CPU tensors run on another device: in their code new tensors are made there."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors

from torch_projectors import ops
from torch_projectors.cases import Case

# Of the package, what makes tensors from nothing. The rest has to say on which device: that is tested.
MAKING = ("torch_projectors.rotations", "torch_projectors.cases")


def caller_tests() -> bool:
    """Whether the caller's caller is neither of the package nor of torch."""
    module = sys._getframe(2).f_globals.get("__name__", "")
    return module in MAKING or module.partition(".")[0] not in ("torch", "torch_projectors")


def bare() -> Any:
    """The ops of the chosen backend, for where new tensors are."""
    return ops.selected(torch.empty(0).device).bare


class OnDevice(TorchFunctionMode):
    """Random numbers are those of the CPU, and arrays of NumPy are of copies."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.device = torch.device(device)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if function in (Tensor.numpy, Tensor.__array__):
            return function(self.to_host(args[0].detach()), *args[1:], **kwargs)
        is_new = function in _device_constructors() and not any(isinstance(x, Tensor) for x in args)
        if is_new and kwargs.get("device") is None and caller_tests():
            differentiable = kwargs.pop("requires_grad", False)
            made = self.moved(function(*args, **{**kwargs, "device": "cpu"}))
            return made.requires_grad_() if differentiable else made
        return function(*args, **kwargs)

    def moved(self, x: Tensor) -> Tensor:
        return x.to(self.device)

    def to_host(self, x: Tensor) -> Tensor:
        return x.cpu()


@contextmanager
def on_device(mode: OnDevice) -> Iterator[None]:
    """Until left, also for arrays of NumPy and `Case.inputs`. What is compiled runs as it would without."""
    compile, from_numpy, defaults = torch.compile, torch.from_numpy, Case.inputs.__defaults__

    def compiled(*args: Any, **kwargs: Any) -> Any:
        function = compile(*args, **kwargs)

        def run(*args: Any, **kwargs: Any) -> Any:
            with torch._C.DisableTorchFunction():
                return function(*args, **kwargs)

        return run

    def moved_from_numpy(array: Any) -> Tensor:
        x = from_numpy(array)
        return mode.moved(x) if caller_tests() else x

    torch.compile, torch.from_numpy = compiled, moved_from_numpy
    Case.inputs.__defaults__ = (defaults[0], str(mode.device))
    try:
        with mode:
            yield
    finally:
        torch.compile, torch.from_numpy, Case.inputs.__defaults__ = compile, from_numpy, defaults
