"""CUDA kernels of torch-projectors, which loads them itself. For C and C++: where library and header are."""

from __future__ import annotations

from pathlib import Path

from .library import library_path, version

__all__ = ["__version__", "include_path", "library_path"]


def include_path() -> Path:
    """The directory of torch_projectors_cuda.h."""
    package = Path(__file__).resolve().parent
    installed = package / "include"
    return installed if installed.is_dir() else package.parents[1] / "include"


def __getattr__(name: str) -> str:
    # The library knows, and is loaded no earlier than needed.
    if name == "__version__":
        return version()
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
