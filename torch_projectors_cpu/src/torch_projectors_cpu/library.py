"""The shared library and its C API (torch_projectors_cpu.h) in ctypes. Needs no torch."""

from __future__ import annotations

import ctypes
from ctypes import c_char_p, c_int32, c_void_p
from pathlib import Path

from .c_library import FIELDS, OPERATIONS, CLibrary


class Problem(ctypes.Structure):
    """torch_projectors_problem."""

    _fields_ = (*FIELDS, ("threads", c_int32), ("runner", c_void_p), ("pool", c_void_p))


# What follows the problem.
FUNCTIONS = {**OPERATIONS, "gather_roof": [c_void_p] * 2}

LIBRARY = CLibrary(
    "torch_projectors_cpu", Path(__file__).resolve().parent, Problem, FUNCTIONS, {"level": [c_char_p]}
)

library_path, include_path = LIBRARY.path, LIBRARY.include_path
load, version, message, call = LIBRARY.load, LIBRARY.version, LIBRARY.message, LIBRARY.call


def level() -> str:
    """The vector instructions in use."""
    name = LIBRARY.function("level")().decode()
    if not name:
        raise RuntimeError(message())
    return name
