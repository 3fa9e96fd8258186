"""The shared library and its C API (torch_projectors_cpu.h) in ctypes. Needs no torch."""

from __future__ import annotations

import ctypes
import functools
import sys
from ctypes import c_char_p, c_double, c_int32, c_int64, c_void_p
from pathlib import Path


def library_path() -> Path:
    """The shared library."""
    name = {"win32": "{}.dll", "darwin": "lib{}.dylib"}.get(sys.platform, "lib{}.so")
    return Path(__file__).resolve().parent / name.format("torch_projectors_cpu")


class Problem(ctypes.Structure):
    """torch_projectors_problem."""

    _fields_ = (
        *(
            (name, c_int32)
            for name in (
                "size",
                "scalar",
                "real",
                "pairs_once",
                "interpolation",
                "volume_dims",
                "image_dims",
            )
        ),
        ("volume_shape", c_int64 * 3),
        ("image_shape", c_int64 * 3),
        ("oversampling", c_double),
        ("cutoff", c_double),
        ("batch", c_int64),
        ("poses", c_int64),
        ("rotations", c_void_p),
        ("shifts", c_void_p),
        ("rotation_strides", c_int64 * 2),
        ("shift_strides", c_int64 * 2),
        ("image_strides", c_int64 * 2),
        ("volume_stride", c_int64),
        ("threads", c_int32),
        ("runner", c_void_p),
        ("pool", c_void_p),
    )


# Number of arrays that follow the problem.
FUNCTIONS = {
    "forward_project": 2,
    "backward_project": 4,
    "project_gradients": 6,
    "add_mates": 2,
    "gather_roof": 2,
}


@functools.cache
def load() -> ctypes.CDLL:
    """The library, its functions declared."""
    path = library_path()
    if not path.is_file():
        raise RuntimeError(
            f"the shared library {path} is missing: this package was not built; install it again, "
            "pip install --force-reinstall --no-deps torch-projectors-cpu"
        )
    try:
        library = ctypes.CDLL(str(path))
    except OSError as error:
        raise RuntimeError(
            f"the shared library cannot be loaded on this system ({error}); build it here from source, "
            "pip install --force-reinstall --no-deps --no-binary torch-projectors-cpu torch-projectors-cpu"
        ) from error
    for name, arrays in FUNCTIONS.items():
        function = getattr(library, f"torch_projectors_cpu_{name}")
        function.argtypes = [ctypes.POINTER(Problem), *[c_void_p] * arrays]
        function.restype = c_int32
    for name in ("message", "level", "version"):
        getattr(library, f"torch_projectors_cpu_{name}").restype = c_char_p
    library.torch_projectors_cpu_abi.restype = c_int32
    library.torch_projectors_cpu_register.argtypes = [c_int32]
    library.torch_projectors_cpu_register.restype = c_int32
    return library


def version() -> str:
    return load().torch_projectors_cpu_version().decode()


def level() -> str:
    """The vector instructions in use."""
    name = load().torch_projectors_cpu_level().decode()
    if not name:
        raise RuntimeError(message())
    return name


def message() -> str:
    """Why the last call in this thread failed."""
    return load().torch_projectors_cpu_message().decode(errors="replace")


def call(name: str, problem: Problem, *arrays: int | None) -> None:
    """One of FUNCTIONS, on addresses of arrays."""
    if getattr(load(), f"torch_projectors_cpu_{name}")(ctypes.byref(problem), *arrays):
        raise RuntimeError(f"torch_projectors: {message()}")
