"""The ops by ctypes, for torch 2.4 to 2.9, on the current stream."""

from __future__ import annotations

import ctypes

import torch
from torch import Tensor

from torch_projectors.compiled.older_torch import Kernels

from .library import LIBRARY, Problem


class CudaKernels(Kernels):
    device, place = "cuda", "a CUDA device"

    def prepare(self, problem: ctypes.Structure, device: torch.device) -> None:
        problem.deterministic = torch.are_deterministic_algorithms_enabled()
        problem.device = device.index or 0
        problem.stream = self.stream(device)

    def stream(self, device: torch.device) -> int:
        return torch.cuda.current_stream(device).cuda_stream

    def workspace(self, data: Tensor, problem: ctypes.Structure, function: str, *needs: bool) -> Tensor:
        size = ctypes.c_int64()
        self.call(function, problem, *needs, ctypes.byref(size))
        workspace = torch.empty(size.value, dtype=torch.uint8, device=data.device)
        problem.workspace, problem.workspace_bytes = workspace.data_ptr() or None, size.value
        return workspace


KERNELS = CudaKernels(LIBRARY, Problem)
register = KERNELS.register
