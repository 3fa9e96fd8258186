"""Kernels for the CPU that count their calls and leave the work to the reference."""

from collections import Counter

import torch

from torch_projectors import reference
from torch_projectors.geometry import Geometry
from torch_projectors.plugins import ABI, hookimpl

calls = Counter()
# Kernels live as long as the library that registered them.
library = torch.library.Library("torch_projectors", "IMPL")


def counting(name, tensors):
    kernel = getattr(reference, name)

    def run(*args):
        calls[name] += 1
        geometry = Geometry(*args[tensors : tensors + 6])
        return kernel(*args[:tensors], geometry, *args[tensors + 6 :])

    return run


@hookimpl
def torch_projectors_backend():
    return {"abi": ABI, "version": "1.0+described", "device": "cpu"}


@hookimpl
def torch_projectors_register(torch_version):
    assert torch_version == tuple(int(n) for n in torch.__version__.split(".")[:2])
    for name, tensors in [("forward_project", 3), ("backward_project", 4), ("project_gradients", 4)]:
        library.impl(name, counting(name, tensors), "CPU")
