"""The header of an MRC file, and whether the file holds what it says."""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import NamedTuple, Union

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
    pixel_size: float  # Å, of columns; 0 where the file has none
    axes: tuple[int, int, int]  # which of x, y, z (1, 2, 3) columns, rows and sections are
    labels: tuple[str, ...]


def read_header(path: PathLike) -> Header:
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    mrcfile = need("mrcfile")
    try:
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
    expected, found = offset + int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, path.stat().st_size
    if found < expected:
        raise InputError(
            f"{path}: the file is cut short: {_size(shape)} values take {expected} bytes, it has {found}"
        )
    axes = tuple(int(n) for n in (header.mapc, header.mapr, header.maps))
    return Header(path, shape, dtype, offset, float(size.x), axes if any(axes) else (1, 2, 3), labels)


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, reversed(shape)))
