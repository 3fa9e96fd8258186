"""Fixtures shared by all tests."""

from __future__ import annotations

from contextlib import nullcontext

import emulated_cuda
import pytest
import torch
from on_device import OnDevice, on_device

import torch_projectors


def served() -> dict[str, str]:
    """The device that each loaded backend is tested on: a CUDA one where there is a usable one."""
    if emulated_cuda.LIBRARY:
        emulated_cuda.kernels()
    usable = {"any": "cpu", "cpu": "cpu"}
    if torch.cuda.is_available() or emulated_cuda.LIBRARY:
        usable["cuda"] = "cuda:0"
    loaded = [b for b in torch_projectors.backends().values() if b.status == "loaded"]
    return {b.name: usable[b.device] for b in loaded if b.device in usable}


def pytest_addoption(parser):
    parser.addoption("--backend", help="only tests over all backends, and only with this one")


def pytest_collection_modifyitems(config, items):
    chosen = config.getoption("--backend")
    if chosen is not None:
        over_backends = ["backend" in getattr(item, "fixturenames", ()) for item in items]
        config.hook.pytest_deselected(items=[item for item, over in zip(items, over_backends) if not over])
        items[:] = [item for item, over in zip(items, over_backends) if over]


def pytest_generate_tests(metafunc):
    # Here and not in the fixture's decorator, so that collecting tests that need no backend loads none.
    if "backend" in metafunc.fixturenames:
        chosen = metafunc.config.getoption("--backend")
        found = [item for item in served().items() if chosen in (None, item[0])]
        metafunc.parametrize("backend", found, ids=[name for name, _ in found], indirect=True)


@pytest.fixture
def backend(request):
    """The name of a loaded backend, in use during the test: each in turn. New tensors are on the device it serves."""
    name, device = request.param
    if device == "cpu":
        there = nullcontext()
    elif emulated_cuda.LIBRARY:
        there = emulated_cuda.emulated()
    else:
        there = on_device(OnDevice(device))
    with torch_projectors.use_backend(name), there:
        yield name
