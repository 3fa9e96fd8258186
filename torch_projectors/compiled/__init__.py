"""What backends that are shared libraries with a C API have in common; see torch_projectors/include for their C++.

The module `c_library` needs nothing else, and every such backend carries a copy; `building` serves their setup.py. What
else a backend imports from here stays as it is within an ABI.
"""

from __future__ import annotations

from types import ModuleType
from typing import Callable


def register(library: ModuleType, torch_version: tuple[int, int], by_ctypes: Callable[[], None]) -> None:
    """Registers the ops: by the library itself, or by ctypes with a torch whose interface changes by release."""
    if torch_version < (2, 10):
        by_ctypes()
    elif library.LIBRARY.function("register")(0):
        raise RuntimeError(library.message())
