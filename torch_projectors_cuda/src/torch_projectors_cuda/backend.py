"""What torch_projectors calls: this backend's description, and its registration."""

from __future__ import annotations

from typing import Any

import pluggy

from . import library

hookimpl = pluggy.HookimplMarker("torch_projectors")


@hookimpl
def torch_projectors_backend() -> dict[str, Any]:
    return library.LIBRARY.backend("cuda")


@hookimpl
def torch_projectors_register(torch_version: tuple[int, int]) -> None:
    import torch

    # Whether there is a GPU is not asked: it may be hidden for now, and to ask would begin to use it.
    if torch.version.cuda is None:
        raise RuntimeError(
            f"torch {torch.__version__} was built without CUDA; install one that was (pytorch.org/get-started)"
        )
    from torch_projectors import compiled

    from . import older_torch

    compiled.register(library, torch_version, older_torch.register)
