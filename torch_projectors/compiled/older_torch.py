"""The ops by ctypes, for torch 2.4 to 2.9, which lack the interface that a library registers them through.

What include/torch_projectors/torch_ops.h does, and says, in Python.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .c_library import CLibrary

_REAL = {
    torch.complex64: torch.float32,
    torch.complex128: torch.float64,
    torch.float32: torch.float32,
    torch.float64: torch.float64,
}


NAMES = (
    "forward_project",
    "backward_project",
    "project_gradients",
    "insert_projections",
    "add_projections_",
    "add_mates_",
)


class Kernels:
    """The ops over a backend's C API, whose structure is `problem`. Derived classes have a device, and say what to
    prepare for it.
    """

    device = ""  # its type
    place = ""  # of tensors, as in "expected a tensor on the CPU"

    def __init__(self, library: CLibrary, problem: type[ctypes.Structure]) -> None:
        self.call = library.call
        self.structure = problem
        self._registered: torch.library.Library | None = None

    def prepare(self, problem: ctypes.Structure, device: torch.device) -> None:
        """Which threads, or which stream, a call has."""

    def workspace(
        self, data: Tensor, problem: ctypes.Structure, function: str, *needs: bool
    ) -> Tensor | None:
        """What a call needs beside its arrays, to be kept until it has been made."""

    def register(self) -> None:
        if self._registered is None:
            library = torch.library.Library("torch_projectors", "IMPL")
            for name in NAMES:
                library.impl(name, getattr(self, name), self.device.upper())
            self._registered = library

    def forward_project(
        self, volume: Tensor, rotations: Tensor, shifts: Tensor | None, *geometry: Any
    ) -> Tensor:
        problem, volume_shape, image_shape = self._setting("volume", volume, rotations, shifts, *geometry)
        self._expect("volume", volume, volume.device, volume.dtype, volume_shape)
        images = volume.new_empty(image_shape)
        self.call("forward_project", problem, volume.data_ptr(), images.data_ptr())
        return images

    def backward_project(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return self._insert(0, *arguments)

    def insert_projections(self, *arguments: Any) -> tuple[Tensor, Tensor]:
        return self._insert(1, *arguments)

    def _insert(
        self,
        mates: int,
        images: Tensor,
        weights: Tensor | None,
        rotations: Tensor,
        shifts: Tensor | None,
        *geometry: Any,
    ) -> tuple[Tensor, Tensor]:
        problem, volume_shape, image_shape = self._setting("images", images, rotations, shifts, *geometry)
        self._expect("images", images, images.device, images.dtype, image_shape)
        if weights is not None:
            self._expect("weights", weights, images.device, _REAL[images.dtype], image_shape)
        problem.mates = mates
        volume = images.new_empty(volume_shape)
        weight_volume = rotations.new_empty(0 if weights is None else volume_shape)
        arrays = (images, weights, volume, None if weights is None else weight_volume)
        workspace = self.workspace(images, problem, "backward_workspace", weights is not None)
        self.call("backward_project", problem, *map(_address, arrays))
        del workspace  # a later allocation on this stream may have it
        return volume, weight_volume

    def add_projections_(
        self,
        volume: Tensor,
        weight_volume: Tensor,
        images: Tensor,
        weights: Tensor | None,
        rotations: Tensor,
        shifts: Tensor | None,
        *geometry: Any,
    ) -> None:
        problem, volume_shape, image_shape = self._setting("images", images, rotations, shifts, *geometry)
        self._expect("volume", volume, images.device, images.dtype, volume_shape)
        self._expect("images", images, images.device, images.dtype, image_shape)
        if weights is not None:
            self._expect("weights", weights, images.device, _REAL[images.dtype], image_shape)
            self._expect("weight_volume", weight_volume, images.device, _REAL[images.dtype], volume_shape)
        problem.add = 1
        workspace = self.workspace(images, problem, "backward_workspace", weights is not None)
        arrays = (images, weights, volume, None if weights is None else weight_volume)
        self.call("backward_project", problem, *map(_address, arrays))
        del workspace

    def project_gradients(
        self, volume: Tensor, images: Tensor, rotations: Tensor, shifts: Tensor | None, *rest: Any
    ) -> tuple[Tensor, ...]:
        *geometry, need_volume, need_images, need_rotations, need_shifts = rest
        problem, volume_shape, image_shape = self._setting("volume", volume, rotations, shifts, *geometry)
        self._expect("volume", volume, volume.device, volume.dtype, volume_shape)
        self._expect("images", images, volume.device, volume.dtype, image_shape)
        need = (need_volume, need_images, need_rotations, need_shifts and shifts is not None)
        like = (volume, images, rotations, rotations if shifts is None else shifts)
        gradients = tuple(x.new_empty(x.shape if n else 0) for x, n in zip(like, need))
        if any(need):
            arrays = [_address(g) if n else None for g, n in zip(gradients, need)]
            workspace = self.workspace(volume, problem, "gradients_workspace", need[0], need[2] or need[3])
            self.call("project_gradients", problem, volume.data_ptr(), images.data_ptr(), *arrays)
            del workspace
        return gradients

    def add_mates_(self, volume: Tensor, weight_volume: Tensor, volume_shape: Sequence[int]) -> None:
        shape = _shape("volume_shape", volume_shape)
        real = self._real("volume", volume)
        all_volumes = (volume.shape[0], *shape[:-1], shape[-1] // 2 + 1)
        self._expect("volume", volume, volume.device, volume.dtype, all_volumes)
        weighted = weight_volume.shape != (0,)
        if weighted:
            self._expect("weight_volume", weight_volume, volume.device, real, all_volumes)
        problem = self._problem(volume, shape, shape)
        self.call("add_mates", problem, volume.data_ptr(), weight_volume.data_ptr() if weighted else None)

    def _expect(
        self, name: str, tensor: Tensor, device: torch.device, dtype: torch.dtype, shape: Sequence[int]
    ) -> None:
        self._here(name, tensor)
        if tensor.device != device:
            _fail(f"{name}: expected a tensor on {device}, got one on {tensor.device}")
        if tuple(tensor.shape) != tuple(shape):
            _fail(f"{name}: expected shape {list(shape)}, got {list(tensor.shape)}")
        if tensor.dtype != dtype:
            _fail(f"{name}: expected the precision of the other tensors")
        if not tensor.is_contiguous():
            _fail(f"{name}: expected a contiguous tensor")

    def _real(self, name: str, data: Tensor) -> torch.dtype:
        """The dtype of its real numbers; data begin with a batch."""
        real = _REAL.get(data.dtype)
        if real is None:
            _fail(f"{name}: expected complex64, complex128, float32 or float64, got {data.dtype}")
        if data.dim() < 1:
            _fail(f"{name}: expected a batch, got a scalar")
        self._here(name, data)
        return real

    def _here(self, name: str, tensor: Tensor) -> None:
        if tensor.device.type != self.device:
            _fail(f"{name}: expected a tensor on {self.place}")

    def _problem(
        self, data: Tensor, volume: tuple[int, ...], image: tuple[int, ...], **poses: Any
    ) -> ctypes.Structure:
        problem = self.structure(
            size=ctypes.sizeof(self.structure),
            scalar=int(_REAL[data.dtype] == torch.float64),
            real=int(not data.is_complex()),
            volume_dims=len(volume),
            image_dims=len(image),
            volume_shape=volume,
            image_shape=image,
            batch=data.shape[0],
            volume_stride=math.prod(volume[:-1]) * (volume[-1] // 2 + 1),
            **{"oversampling": 1.0, **poses},
        )
        self.prepare(problem, data.device)
        return problem

    def _setting(
        self,
        name: str,
        data: Tensor,
        rotations: Tensor,
        shifts: Tensor | None,
        volume_shape: Sequence[int],
        image_shape: Sequence[int],
        interpolation: int,
        oversampling: float,
        cutoff: float,
        pairs_once: bool,
    ) -> tuple[ctypes.Structure, tuple[int, ...], tuple[int, ...]]:
        """The problem, and the stored shapes of all volumes and images. `data` tells batch and precision."""
        volume, image = _shape("volume_shape", volume_shape), _shape("image_shape", image_shape)
        real = self._real(name, data)
        dims = len(volume)
        if len(image) > dims:
            _fail(f"image_shape: expected at most {dims} numbers, got {len(image)}")
        if rotations.dim() != 4:
            _fail(f"rotations: expected 4 dimensions, got {rotations.dim()}")
        batch, (own, poses) = data.shape[0], rotations.shape[:2]
        self._expect("rotations", rotations, data.device, real, (1 if own == 1 else batch, poses, dims, dims))
        stored_volume, stored_image = [(*shape[:-1], shape[-1] // 2 + 1) for shape in (volume, image)]
        image_size = math.prod(stored_image)
        problem = self._problem(
            data,
            volume,
            image,
            interpolation=interpolation if 0 <= interpolation <= 3 else -1,
            oversampling=oversampling,
            cutoff=cutoff,
            pairs_once=int(pairs_once),
            poses=poses,
            rotations=rotations.data_ptr(),
            rotation_strides=(0 if own == 1 else poses * dims * dims, dims * dims),
            image_strides=(poses * image_size, image_size),
        )
        if shifts is not None:
            if shifts.dim() != 3:
                _fail(f"shifts: expected 3 dimensions, got {shifts.dim()}")
            own = shifts.shape[0]
            self._expect("shifts", shifts, data.device, real, (1 if own == 1 else batch, poses, len(image)))
            problem.shifts = shifts.data_ptr()
            problem.shift_strides = (0 if own == 1 else poses * len(image), len(image))
        return problem, (batch, *stored_volume), (batch, poses, *stored_image)


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def _fail(message: str) -> None:
    raise RuntimeError(f"torch_projectors: {message}")


def _shape(name: str, shape: Sequence[int]) -> tuple[int, ...]:
    if len(shape) not in (2, 3):
        _fail(f"{name}: expected 2 or 3 numbers, got {len(shape)}")
    for n in shape:
        if not 1 <= n <= 2**30:
            _fail(f"{name}: expected from 1 to 2^30 points, got {n}")
    return tuple(int(n) for n in shape)
