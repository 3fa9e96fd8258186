"""A backend's shared library and its C API, in ctypes. Needs neither torch nor torch_projectors."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Mapping, Sequence
from ctypes import POINTER, c_char_p, c_double, c_int32, c_int64, c_void_p
from pathlib import Path
from typing import Any

# What the structure of every backend begins with.
FIELDS = (
    ("size", c_int32),
    ("scalar", c_int32),
    ("real", c_int32),
    ("pairs_once", c_int32),
    ("interpolation", c_int32),
    ("volume_dims", c_int32),
    ("image_dims", c_int32),
    ("add", c_int32),
    ("mates", c_int32),
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
)
# And what every backend computes: the arguments after the structure.
OPERATIONS = {
    "forward_project": [c_void_p] * 2,
    "backward_project": [c_void_p] * 4,
    "project_gradients": [c_void_p] * 6,
    "add_mates": [c_void_p] * 2,
}


class CLibrary:
    """The shared library of a package, whose name all its functions begin with.

    operations: of each function of a problem, the types of what follows it. others: of each further function, the type
    of what it returns and those of its arguments.
    """

    def __init__(
        self,
        package: str,
        folder: Path,
        problem: type[ctypes.Structure],
        operations: Mapping[str, Sequence[Any]],
        others: Mapping[str, Sequence[Any]],
    ) -> None:
        self.package = package
        self.folder = folder
        self.operations = {name: (c_int32, POINTER(problem), *types) for name, types in operations.items()}
        self.others = {
            "message": [c_char_p],
            "version": [c_char_p],
            "abi": [c_int32],
            "register": [c_int32, c_int32],
            **others,
        }
        self._loaded: ctypes.CDLL | None = None

    def path(self) -> Path:
        """The shared library."""
        name = {"win32": "{}.dll", "darwin": "lib{}.dylib"}.get(sys.platform, "lib{}.so")
        return self.folder / name.format(self.package)

    def include_path(self) -> Path:
        """The directory of its headers."""
        installed = self.folder / "include"
        return installed if installed.is_dir() else self.folder.parents[1] / "include"

    def load(self) -> ctypes.CDLL:
        """The library, its functions declared."""
        if self._loaded is None:
            self._loaded = self._open()
        return self._loaded

    def use(self, library: ctypes.CDLL) -> ctypes.CDLL:
        """From now on this one, with its functions declared."""
        for name, (result, *arguments) in {**self.operations, **self.others}.items():
            function = getattr(library, f"{self.package}_{name}")
            function.restype, function.argtypes = result, arguments
        self._loaded = library
        return library

    def function(self, name: str) -> Any:
        return getattr(self.load(), f"{self.package}_{name}")

    def backend(self, device: str) -> dict[str, Any]:
        """What torch_projectors_backend returns."""
        return {"abi": self.function("abi")(), "version": self.version(), "device": device}

    def version(self) -> str:
        return self.function("version")().decode()

    def message(self) -> str:
        """Why the last call in this thread failed."""
        return self.function("message")().decode(errors="replace")

    def call(self, name: str, problem: ctypes.Structure, *arguments: object) -> None:
        """One of the operations, on addresses of arrays."""
        if self.function(name)(ctypes.byref(problem), *arguments):
            raise RuntimeError(f"torch_projectors: {self.message()}")

    def _open(self) -> ctypes.CDLL:
        path, distribution = self.path(), self.package.replace("_", "-")
        again = "pip install --force-reinstall --no-deps"
        if not path.is_file():
            raise RuntimeError(
                f"the shared library {path} is missing: this package was not built; install it again, "
                f"{again} {distribution}"
            )
        try:
            return self.use(ctypes.CDLL(str(path)))
        except OSError as error:
            raise RuntimeError(
                f"the shared library cannot be loaded on this system ({error}); build it here from source, "
                f"{again} --no-binary {distribution} {distribution}"
            ) from error
