"""What is timed: one geometry and interpolation at one size, and each operation as a call without arguments."""

from __future__ import annotations

import copy
import ctypes
from dataclasses import dataclass
from functools import partial
from typing import Any, Callable, Optional

import torch
from torch import Tensor

import torch_projectors
from torch_projectors.geometry import INTERPOLATION_CODES
from torch_projectors.plugins import serving
from torch_projectors.spectrum import stored_shape, within

GEOMETRIES = {"3-2": (3, 2), "2-2": (2, 2), "3-3": (3, 3)}
OPERATIONS = ("forward", "backward", "gradient")
DTYPES = {"complex64": torch.complex64, "complex128": torch.complex128}


@dataclass(frozen=True)
class Problem:
    geometry: str
    interpolation: str
    box: int
    poses: int
    oversampling: float = 1.0

    @property
    def volume_shape(self) -> tuple[int, ...]:
        return (round(self.box * self.oversampling),) * GEOMETRIES[self.geometry][0]

    @property
    def image_shape(self) -> tuple[int, ...]:
        return (self.box,) * GEOMETRIES[self.geometry][1]

    @property
    def pixels(self) -> int:
        """Stored pixels of a projection inside the default cutoff."""
        index, _ = within(self.image_shape, self.box / 2)
        return len(index)


class Arrays:
    """Random arguments, drawn in the precision asked for, so that memory is that of the arrays and no more."""

    def __init__(self, problem: Problem, dtype: torch.dtype, device: torch.device) -> None:
        real = torch.empty(0, dtype=dtype).real.dtype
        generator = torch.Generator(device).manual_seed(0)

        def normal(shape: Any, dtype: torch.dtype) -> Tensor:
            return torch.randn(shape, dtype=dtype, device=device, generator=generator)

        dims, image_dims, poses = len(problem.volume_shape), len(problem.image_shape), problem.poses
        self.volume = normal(stored_shape(problem.volume_shape), dtype)
        self.images = normal((poses, *stored_shape(problem.image_shape)), dtype)
        self.weights = normal(self.images.shape, real).abs_()
        # Small, and not every device decomposes.
        matrices = normal((poses, dims, dims), real).cpu()
        self.rotations = torch.linalg.qr(matrices)[0].contiguous().to(device)
        self.shifts = normal((poses, image_dims), real)

    def first(self, poses: int) -> Arrays:
        """The same volume, and of the rest the first poses."""
        some = copy.copy(self)
        for name in ("images", "weights", "rotations", "shifts"):
            setattr(some, name, getattr(self, name)[:poses])
        return some


def calls(problem: Problem, arrays: Arrays, shifted: bool = True) -> dict[str, Callable[[], Any]]:
    """Every operation through the public functions."""
    a = arrays
    shifts = a.shifts if shifted else None

    def forward(volume: Tensor, rotations: Tensor, shifts: Any = None) -> Tensor:
        return torch_projectors.forward_project(
            volume, rotations, shifts, problem.image_shape, problem.interpolation, problem.oversampling
        )

    def backward() -> Any:
        return torch_projectors.backward_project(
            a.images,
            a.rotations,
            shifts,
            problem.volume_shape,
            problem.interpolation,
            problem.oversampling,
            weights=a.weights,
            projection_shape=problem.image_shape,
        )

    inputs = (a.volume, a.rotations, a.shifts) if shifted else (a.volume, a.rotations)
    return {
        "forward": lambda: forward(a.volume, a.rotations, shifts),
        "backward": backward,
        "gradient": lambda: gradient(forward, inputs, a.images),
    }


def gradient(forward: Callable[..., Tensor], inputs: tuple[Tensor, ...], along: Tensor) -> Any:
    leaves = [x.detach().requires_grad_() for x in inputs]
    return torch.autograd.grad(forward(*leaves), leaves, along)


def question(problem: Problem, arrays: Arrays) -> Any:
    """The problem as the C API of the CPU backend has it."""
    from torch_projectors_cpu import library

    a, (dims, image_dims) = arrays, GEOMETRIES[problem.geometry]
    return library.Problem(
        size=ctypes.sizeof(library.Problem),
        scalar=int(a.volume.dtype == torch.complex128),
        interpolation=INTERPOLATION_CODES[problem.interpolation],
        volume_dims=dims,
        image_dims=image_dims,
        volume_shape=problem.volume_shape,
        image_shape=problem.image_shape,
        oversampling=problem.oversampling,
        cutoff=problem.box / 2,
        batch=1,
        poses=problem.poses,
        rotations=a.rotations.data_ptr(),
        shifts=a.shifts.data_ptr(),
        rotation_strides=(0, dims * dims),
        shift_strides=(0, image_dims),
        image_strides=(a.images.numel(), a.images[0].numel()),
        volume_stride=a.volume.numel(),
        threads=torch.get_num_threads(),
    )


def limits(problem: Problem, arrays: Arrays) -> dict[str, dict[str, Callable[[], Any]]]:
    """What memory allows a linear gather, its loads and nothing else, and its kernel without the call around it.

    By the CPU backend. They too make their output.
    """
    if (problem.geometry, problem.interpolation) != ("3-2", "linear") or serving(
        arrays.volume.device
    ) != "cpu":
        return {}
    from torch_projectors_cpu import library

    asked = question(problem, arrays)

    def gather(function: str) -> Tensor:
        images = torch.empty_like(arrays.images)
        library.call(function, asked, arrays.volume.data_ptr(), images.data_ptr())
        return images

    functions = {"roof": "gather_roof", "kernel": "forward_project"}
    return {name: {"forward": partial(gather, function)} for name, function in functions.items()}


def kernel_calls(
    problem: Problem, arrays: Arrays, threads: Optional[int] = None
) -> dict[str, Callable[[], Any]]:
    """The kernels of the CPU backend through its C API, into outputs that are there already."""
    from torch_projectors_cpu import library

    a, asked, inserted = arrays, question(problem, arrays), question(problem, arrays)
    inserted.pairs_once = inserted.mates = 1
    if threads is not None:
        asked.threads = inserted.threads = threads
    images, volume, weight_volume = (torch.empty_like(x) for x in (a.images, a.volume, a.volume.real))
    return {
        "forward": lambda: library.call("forward_project", asked, a.volume.data_ptr(), images.data_ptr()),
        "backward": lambda: library.call(
            "backward_project",
            inserted,
            *(x.data_ptr() for x in (a.images, a.weights, volume, weight_volume)),
        ),
    }


def peer_calls(problem: Problem, arrays: Arrays) -> dict[str, Callable[[], Any]]:
    """The same by torch-fourier-slice, which has linear slices of volumes, and no shifts or weights of its own."""
    if problem.geometry != "3-2" or problem.interpolation != "linear":
        return {}
    from torch_fourier_slice.slice_extraction import extract_central_slices_rfft_3d
    from torch_fourier_slice.slice_insertion import insert_central_slices_rfft_3d

    # Its spectra are centred along all axes but x.
    volume = torch.fft.fftshift(arrays.volume, dim=(-3, -2))
    images = torch.fft.fftshift(arrays.images, dim=-2)

    def forward(volume: Tensor, rotations: Tensor) -> Tensor:
        return extract_central_slices_rfft_3d(volume, rotations, fftfreq_max=0.5)

    return {
        "forward": lambda: forward(volume, arrays.rotations),
        "backward": lambda: insert_central_slices_rfft_3d(
            images, problem.volume_shape, arrays.rotations, fftfreq_max=0.5
        ),
        "gradient": lambda: gradient(forward, (volume, arrays.rotations), images),
    }
