"""The header of an MRC file, and whether the file holds what it says."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Union

import numpy as np

from ..errors import InputError
from ..extras import need

PathLike = Union[str, "os.PathLike[str]"]


class Header(NamedTuple):
    """Where the values of a file lie, and their sampling."""

    path: Path
    shape: tuple[int, int, int]  # sections, rows, columns
    dtype: np.dtype
    offset: int  # bytes before the first value
    pixel_size: float  # Å, along x; 0 where the file has none
    voxel: tuple[float, float, float]  # Å, along x, y and z
    axes: tuple[int, int, int]  # which of x, y, z (1, 2, 3) columns, rows and sections are
    labels: tuple[str, ...]


def read_header(path: PathLike) -> Header:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    mrcfile = need("mrcfile")
    try:
        _check_start(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of labels and map types, on which nothing here depends
            with mrcfile.open(path, header_only=True, permissive=True) as file:
                header, size, labels = file.header, file.voxel_size.copy(), tuple(file.get_labels())
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: expected an MRC file; {error}") from error
    mode = int(header.mode)
    try:
        dtype = mrcfile.utils.dtype_from_mode(mode).newbyteorder(header.mode.dtype.byteorder)
    except ValueError:
        raise InputError(f"{path}: expected an MRC file of a known mode, got mode {mode}") from None
    shape = tuple(int(n) for n in (header.nz, header.ny, header.nx))
    if min(shape) < 1 or dtype.kind == "c":
        raise InputError(f"{path}: expected real values, got mode {mode} and {_size(shape)} of them")
    offset = 1024 + int(header.nsymbt)
    expected, found = offset + math.prod(shape) * dtype.itemsize, path.stat().st_size
    if found < expected:
        raise InputError(
            f"{path}: the file is cut short: {_size(shape)} values take {expected} bytes, it has {found}"
        )
    axes = tuple(int(n) for n in (header.mapc, header.mapr, header.maps))
    sizes = tuple(float(n) if 0 < n < math.inf else 0.0 for n in (size.x, size.y, size.z))
    return Header(path, shape, dtype, offset, sizes[0], sizes, axes if any(axes) else (1, 2, 3), labels)


def _check_start(path: Path) -> None:
    """An error for files whose header would have all of them, or gigabytes, read."""
    with open(path, "rb") as file:
        start = file.read(1024)
    if start[:2] == b"\x1f\x8b" or start[:3] == b"BZh":
        raise InputError(f"{path}: expected an MRC file, got a compressed one: unpack it")
    extended = min(int.from_bytes(start[92:96], order) for order in ("little", "big"))
    if len(start) < 1024 or 1024 + extended > path.stat().st_size:
        raise InputError(f"{path}: expected an MRC file, got {path.stat().st_size} bytes without its header")


def add_labels(file: Any, labels: Sequence[str]) -> None:
    """As many as there is room for in an open file of mrcfile, 80 characters of each."""
    room = len(file.header.label) - int(file.header.nlabl)
    for label in labels[:room]:
        file.add_label("".join(c if " " <= c <= "~" else "?" for c in label[:80]))


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, reversed(shape)))
