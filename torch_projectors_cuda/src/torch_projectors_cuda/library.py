"""The shared library and its C API (torch_projectors_cuda.h) in ctypes. Needs no torch, and until called no GPU."""

from __future__ import annotations

import ctypes
import functools
import sys
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_void_p
from pathlib import Path


def library_path() -> Path:
    """The shared library."""
    name = {"win32": "{}.dll"}.get(sys.platform, "lib{}.so")
    return Path(__file__).resolve().parent / name.format("torch_projectors_cuda")


class Problem(ctypes.Structure):
    """torch_projectors_cuda_problem."""

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
        ("deterministic", c_int32),
        ("device", c_int32),
        ("stream", c_void_p),
        ("workspace", c_void_p),
        ("workspace_bytes", c_int64),
    )


# What follows the problem.
FUNCTIONS = {
    "forward_project": [c_void_p] * 2,
    "backward_project": [c_void_p] * 4,
    "project_gradients": [c_void_p] * 6,
    "add_mates": [c_void_p] * 2,
    "backward_workspace": [c_int32, POINTER(c_int64)],
    "gradients_workspace": [c_int32, c_int32, POINTER(c_int64)],
}


def declared(library: ctypes.CDLL) -> ctypes.CDLL:
    """The library, with the types of its functions."""
    for name, arguments in FUNCTIONS.items():
        function = getattr(library, f"torch_projectors_cuda_{name}")
        function.argtypes = [POINTER(Problem), *arguments]
        function.restype = c_int32
    for name in ("message", "architectures", "version"):
        getattr(library, f"torch_projectors_cuda_{name}").restype = c_char_p
    library.torch_projectors_cuda_check_device.argtypes = [c_int32]
    library.torch_projectors_cuda_check_device.restype = c_int32
    return library


@functools.cache
def load() -> ctypes.CDLL:
    """The library, its functions declared."""
    path = library_path()
    if not path.is_file():
        raise RuntimeError(
            f"the shared library {path} is missing: this package was not built; install it again, "
            "pip install --force-reinstall --no-deps torch-projectors-cuda"
        )
    try:
        library = declared(ctypes.CDLL(str(path)))
    except OSError as error:
        raise RuntimeError(
            f"the shared library cannot be loaded on this system ({error}); build it here from source, "
            "pip install --force-reinstall --no-deps --no-binary torch-projectors-cuda torch-projectors-cuda"
        ) from error
    library.torch_projectors_cuda_abi.restype = c_int32
    library.torch_projectors_cuda_register.argtypes = [c_int32]
    library.torch_projectors_cuda_register.restype = c_int32
    return library


def version() -> str:
    return load().torch_projectors_cuda_version().decode()


def architectures() -> str:
    """What the library holds machine code for: compute capabilities without the dot."""
    return load().torch_projectors_cuda_architectures().decode()


def message() -> str:
    """Why the last call in this thread failed."""
    return load().torch_projectors_cuda_message().decode(errors="replace")


def check_device(device: int = 0) -> None:
    """Raises, and says what is missing, where the device cannot be used."""
    if load().torch_projectors_cuda_check_device(device):
        raise RuntimeError(f"torch_projectors: {message()}")


def call(name: str, problem: Problem, *arguments: object) -> None:
    """One of FUNCTIONS, on addresses of arrays."""
    if getattr(load(), f"torch_projectors_cuda_{name}")(ctypes.byref(problem), *arguments):
        raise RuntimeError(f"torch_projectors: {message()}")
