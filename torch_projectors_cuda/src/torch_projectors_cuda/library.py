"""The shared library and its C API (torch_projectors_cuda.h) in ctypes. Needs no torch, and until called no GPU."""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_char_p, c_int32, c_int64, c_void_p
from pathlib import Path

from .c_library import FIELDS, OPERATIONS, CLibrary


class Problem(ctypes.Structure):
    """torch_projectors_cuda_problem."""

    _fields_ = (
        *FIELDS,
        ("deterministic", c_int32),
        ("device", c_int32),
        ("stream", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_int64),
    )


# What follows the problem.
FUNCTIONS = {
    **OPERATIONS,
    "backward_workspace": [c_int32, POINTER(c_int64)],
    "gradients_workspace": [c_int32, c_int32, POINTER(c_int64)],
}

LIBRARY = CLibrary(
    "torch_projectors_cuda",
    Path(__file__).resolve().parent,
    Problem,
    FUNCTIONS,
    {"architectures": [c_char_p], "check_device": [c_int32, c_int32]},
)

library_path, include_path = LIBRARY.path, LIBRARY.include_path
load, version, message, call = LIBRARY.load, LIBRARY.version, LIBRARY.message, LIBRARY.call


def architectures() -> str:
    """What the library holds machine code for: compute capabilities without the dot."""
    return LIBRARY.function("architectures")().decode()


def check_device(device: int = 0) -> None:
    """Raises, and says what is missing, where the device cannot be used."""
    if LIBRARY.function("check_device")(device):
        raise RuntimeError(f"torch_projectors: {message()}")
