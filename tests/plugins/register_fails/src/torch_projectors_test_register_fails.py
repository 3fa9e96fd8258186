"""Finds out late that it cannot serve this machine."""

from torch_projectors.plugins import ABI, hookimpl


@hookimpl
def torch_projectors_backend():
    return {"abi": ABI, "version": "1.0", "device": "cpu"}


@hookimpl
def torch_projectors_register(torch_version):
    raise RuntimeError(f"no kernels for torch {torch_version[0]}.{torch_version[1]} on this machine")
