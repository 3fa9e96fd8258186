"""What torch_projectors calls: this backend's description, and its registration."""

from __future__ import annotations

from typing import Any

import pluggy

from . import library

hookimpl = pluggy.HookimplMarker("torch_projectors")


@hookimpl
def torch_projectors_backend() -> dict[str, Any]:
    return library.LIBRARY.backend("cpu")


@hookimpl
def torch_projectors_register(torch_version: tuple[int, int]) -> None:
    library.level()  # raises if it cannot be had
    from torch_projectors import compiled

    from . import older_torch

    compiled.register(library, torch_version, older_torch.register)
