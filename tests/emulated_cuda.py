"""CUDA tensors without a GPU: tensors on the host that say they are on a device, and mix with no others.

The kernels are those of torch-projectors-cuda, compiled for the host. For a look, before there is a GPU, at whether
tests and the package's code around the ops keep to one device. It is slow, and cannot follow compiled functions and
forward mode:

    export TORCH_PROJECTORS_EMULATED_CUDA=$(python tests/cuda_on_host.py FOLDER)
    python -m pytest --backend cuda -k "not (compile or jvp or hessian or lazy or derivatives_are_exact)"
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import cuda_on_host
import torch
from on_device import OnDevice, on_device
from torch import Tensor
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from torch_projectors import plugins

LIBRARY = os.environ.get("TORCH_PROJECTORS_EMULATED_CUDA")
CUDA, CPU = torch.device("cuda", 0), torch.device("cpu")


def storage(x: Tensor) -> torch.UntypedStorage:
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.untyped_storage()


class Storages(TorchDispatchMode):
    """Below autograd: results are where their arguments are, and the ops are the kernels'."""

    def __init__(self, kernels: Any) -> None:
        super().__init__()
        self.kernels = kernels
        # Storages on the device, and of tensors that torch's derivatives make, which do not say where. To keep them
        # keeps their numbers theirs.
        self.kept: dict[int, Any] = {}
        self.undecided: dict[int, Any] = {}
        self.by_python = False

    def holds(self, x: Tensor) -> bool:
        return not x.is_meta and storage(x)._cdata in self.kept

    def put(self, x: Tensor) -> Tensor:
        self.kept[storage(x)._cdata] = storage(x)
        return x

    def take(self, x: Tensor) -> Tensor:
        """A copy on the host."""
        copy = x.clone()
        self.kept.pop(storage(copy)._cdata, None)
        return copy

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        copies = function is torch.ops.aten.copy_.default
        indexes = function._opname in ("index", "index_put_")  # by lists too
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and not x.is_meta]
        here = [x for x in tensors if self.holds(x)]
        if here and not copies:
            for x in tensors:
                if storage(x)._cdata in self.undecided:
                    self.put(x)
                elif not self.holds(x) and x.dim() and not (x.dtype == torch.int64 and indexes):
                    raise RuntimeError(
                        f"expected all tensors of {function} on one device, got some on cuda and cpu"
                    )
        if here and function.namespace == "torch_projectors":
            result = getattr(self.kernels, function._opname)(*args, **kwargs)
        else:
            result = function(*args, **kwargs)
        made = [x for x in tree_leaves(result) if isinstance(x, Tensor) and not x.is_meta]
        for x in made:
            if here and not copies:
                self.put(x)
            elif not tensors and not self.by_python:
                self.undecided[storage(x)._cdata] = storage(x)
        return result


class Emulated(OnDevice):
    def __init__(self, storages: Storages) -> None:
        super().__init__("cuda:0")
        self.storages = storages

    def moved(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return self.storages.put(x.detach().clone())

    def to_host(self, x: Tensor) -> Tensor:
        with torch._C.DisableTorchFunction():
            return self.storages.take(x)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        storages = self.storages
        storages.by_python = function in _device_constructors()
        try:
            return self.emulate(function, types, args, dict(kwargs or {}))
        finally:
            storages.by_python = False

    def emulate(self, function: Any, types: Any, args: Any, kwargs: Any) -> Any:
        storages = self.storages
        if function == Tensor.device.__get__:
            return CUDA if storages.holds(args[0]) else function(*args)
        if function == Tensor.is_cuda.__get__:
            return storages.holds(args[0])
        asked = [
            x
            for x in (*args[1:], *kwargs.values())
            if isinstance(x, torch.device) or (isinstance(x, str) and x in ("cpu", "cuda", "cuda:0"))
        ]
        places = [torch.device(x).type for x in asked]
        if function is Tensor.cpu or (function is Tensor.to and places == ["cpu"]):
            x = self.to_host(args[0]) if storages.holds(args[0]) else args[0]
            return function(x, *args[1:], **kwargs)
        if places == ["cuda"]:
            args = tuple(CPU if any(x is y for y in asked) else x for x in args)
            kwargs = {**kwargs, **({"device": CPU} if kwargs.get("device") is not None else {})}
            result = function(*args, **kwargs)
            return storages.put(result.clone() if function is Tensor.to else result)
        return super().__torch_function__(function, types, args, kwargs)


@functools.cache
def kernels() -> Any:
    """The ops on host memory; from now on, those of a loaded backend."""
    plugins.load()
    plugins._backends["cuda"] = plugins.Backend("cuda", "torch-projectors-cuda", "host", "loaded", "cuda")
    return cuda_on_host.package(Path(LIBRARY)).older_torch.KERNELS


@contextmanager
def emulated() -> Iterator[None]:
    storages = Storages(kernels())
    # What a mode gets whole runs without it, and derivatives would: their parts are to come one by one.
    never = lambda *_: False  # noqa: E731
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(torch.autograd, "has_torch_function", never))
        stack.enter_context(mock.patch.object(torch._tensor, "has_torch_function_unary", never))
        stack.enter_context(storages)
        stack.enter_context(on_device(Emulated(storages)))
        yield
