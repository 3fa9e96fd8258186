"""CUDA kernels of torch-projectors, which loads them itself. For C and C++: where library and header are."""

from __future__ import annotations

from .library import include_path, library_path, version

__all__ = ["__version__", "include_path", "library_path"]


def __getattr__(name: str) -> str:
    # The library knows, and is loaded no earlier than needed.
    if name == "__version__":
        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
