"""Has both hooks, and one by a name that nothing calls."""

from torch_projectors.plugins import ABI, hookimpl


@hookimpl
def torch_projectors_backend():
    return {"abi": ABI, "version": "1.0", "device": "cpu"}


@hookimpl
def torch_projectors_register():
    raise AssertionError("registered in spite of an unknown hook")


@hookimpl
def torch_projectors_registre():
    pass
