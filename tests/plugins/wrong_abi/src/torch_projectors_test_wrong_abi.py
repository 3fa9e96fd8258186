"""Built for ops of another shape, so that its kernels would read the wrong arguments."""

import torch

from torch_projectors.plugins import hookimpl

library = torch.library.Library("torch_projectors", "IMPL")
registrations = []


def other_arguments(*args):
    raise AssertionError("a kernel for other ops was called")


@hookimpl
def torch_projectors_backend():
    return {"abi": 999, "version": "9.0", "device": "cpu"}


@hookimpl
def torch_projectors_register():
    registrations.append(None)
    library.impl("forward_project", other_arguments, "CPU")
