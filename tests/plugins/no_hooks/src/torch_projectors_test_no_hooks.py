"""Says nothing of itself: these functions are not marked as hooks."""


def torch_projectors_backend():
    return {"abi": 1, "version": "1.0", "device": "cpu"}


def torch_projectors_register():
    raise AssertionError("called without being a hook")
