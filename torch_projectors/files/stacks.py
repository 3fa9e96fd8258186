"""Stacks of images: many MRC files, read and written a few images at a time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Optional

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..extras import need
from .mrc import Header, PathLike, add_labels, read_header


class Stacks:
    """Images by the number of their file, and their place in it.

    Headers are read, and sizes of files compared with them, when a file is first asked for.
    """

    def __init__(self, paths: Sequence[PathLike]) -> None:
        self.paths = [Path(path) for path in paths]
        self._headers: dict[int, Header] = {}

    def header(self, file: int) -> Header:
        if file not in self._headers:
            header = read_header(self.paths[file])
            if header.axes[:2] != (1, 2):
                raise InputError(
                    f"{header.path}: expected columns along x and rows along y, got axes {header.axes}"
                )
            self._headers[file] = header
        return self._headers[file]

    def problem(self, file: int, last: int, shape: Optional[tuple[int, int]] = None) -> Optional[str]:
        """What is wrong with a file from which images up to `last` are wanted, of a shape; None if nothing is."""
        try:
            header = self.header(file)
        except InputError as error:
            return str(error)
        if last >= header.shape[0]:
            return f"{header.path}: expected at least {last + 1} images, got {header.shape[0]}"
        if shape is not None and header.shape[1:] != shape:
            return _other_shape(header, shape)
        return None

    def read(self, files: Tensor, places: Tensor) -> Tensor:
        """Images `[n, H, W]` in float32: of each its file, and its place in it from 0."""
        files, places = files.numpy(), places.numpy()
        n = len(files)
        shape = self.header(int(files[0])).shape[1:] if n else (0, 0)
        images = np.empty((n, *shape), np.float32)
        # Images that follow one another in a file are read at once.
        follows = (files[1:] == files[:-1]) & (places[1:] == places[:-1] + 1)
        starts = np.flatnonzero(np.concatenate([np.ones(min(n, 1), bool), ~follows]))
        for start, stop in zip(starts, [*starts[1:], n]):
            header = self.header(int(files[start]))
            if header.shape[1:] != shape:
                raise InputError(_other_shape(header, shape))
            first, count = int(places[start]), int(stop - start)
            offset = header.offset + first * shape[0] * shape[1] * header.dtype.itemsize
            try:
                values = np.fromfile(header.path, header.dtype, count * shape[0] * shape[1], offset=offset)
                images[start:stop] = values.reshape(count, *shape)
            except (OSError, ValueError) as error:
                raise InputError(
                    f"{header.path}: cannot read images {first + 1} to {first + count}: {error}"
                ) from error
        return torch.from_numpy(images)


def _other_shape(header: Header, shape: tuple[int, int]) -> str:
    theirs, ours = (f"{w} x {h}" for h, w in (header.shape[1:], shape))
    return f"{header.path}: expected images of {ours} pixels as in the first stack, got {theirs}"


class StackWriter:
    """A stack of `count` images of a shape (H, W), filled from the front by `append`, complete after the block.

    With statement only: `with StackWriter(path, count, shape, pixel_size) as stack: stack.append(images)`.
    """

    def __init__(
        self,
        path: PathLike,
        count: int,
        shape: tuple[int, int],
        pixel_size: float,
        labels: Sequence[str] = (),
    ) -> None:
        self.path, self.count, self.shape = Path(path), count, shape
        with need("mrcfile").new(path, np.zeros((1, *shape), np.float32), overwrite=True) as file:
            file.set_image_stack()
            file.voxel_size = pixel_size
            add_labels(file, labels)
            file.flush()
            self._header = file.header.copy()
        self._written, self._sum, self._square = 0, 0.0, 0.0
        self._least, self._most = np.inf, -np.inf

    def __enter__(self) -> StackWriter:
        self._file = open(self.path, "r+b")
        self._file.seek(self._header.nbytes)
        return self

    def append(self, images: Tensor) -> None:
        """Images `[n, H, W]`."""
        values = images.detach().cpu().to(torch.float32).contiguous().numpy()
        if values.shape[1:] != self.shape or self._written + len(values) > self.count:
            raise ValueError(
                f"expected up to {self.count - self._written} images of {self.shape}, got {values.shape}"
            )
        self._file.write(values.data)
        self._written += len(values)
        if values.size:
            self._sum += float(values.sum(dtype=np.float64))
            self._square += float(np.square(values, dtype=np.float64).sum())
            self._least, self._most = (
                min(self._least, float(values.min())),
                max(self._most, float(values.max())),
            )

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        with self._file:
            if kind is not None:
                return
            if self._written != self.count:
                raise ValueError(f"expected {self.count} images, got {self._written}")
            header, total = self._header, self.count * self.shape[0] * self.shape[1]
            header.nz = header.mz = self.count
            mean = self._sum / total
            header.dmin, header.dmax, header.dmean = self._least, self._most, mean
            header.rms = max(self._square / total - mean * mean, 0.0) ** 0.5
            header.cella.z = float(header.cella.z) * self.count  # the voxel size times sections
            self._file.seek(0)
            self._file.write(header.tobytes())
