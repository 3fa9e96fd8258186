"""Fixtures shared by all tests."""

from __future__ import annotations

import pytest

import torch_projectors


def pytest_generate_tests(metafunc):
    # Here and not in the fixture's decorator, so that collecting tests that need no backend loads none.
    if "backend" in metafunc.fixturenames:
        names = [
            name
            for name, backend in torch_projectors.backends().items()
            if backend.status == "loaded" and backend.device in ("any", "cpu")
        ]
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture
def backend(request):
    """The name of a loaded backend that serves the CPU, in use during the test: each in turn."""
    with torch_projectors.use_backend(request.param):
        yield request.param
