"""Projects with the ops before, between and after its kernels are registered, slowly."""

import time

import torch

from torch_projectors import reference
from torch_projectors.geometry import Geometry
from torch_projectors.plugins import ABI, hookimpl

library = torch.library.Library("torch_projectors", "IMPL")
registrations = []
projections = []


def project():
    volume, rotations = torch.ones(1, 4, 3, dtype=torch.complex64), torch.eye(2)[None, None]
    projections.append(
        torch.ops.torch_projectors.forward_project(
            volume, rotations, None, (4, 4), (4, 4), 1, 1.0, 2.0, False
        )
    )


def forward_project(volume, rotations, shifts, *geometry):
    return reference.forward_project(volume, rotations, shifts, Geometry(*geometry))


@hookimpl
def torch_projectors_backend():
    return {"abi": ABI, "version": "1.0", "device": "cpu"}


@hookimpl
def torch_projectors_register():
    registrations.append(None)
    project()
    time.sleep(0.5)
    library.impl("forward_project", forward_project, "CPU")
    project()
