"""The ops by ctypes, for torch 2.4 to 2.9, on as many threads as torch has."""

from __future__ import annotations

import ctypes

import torch

from torch_projectors.compiled.older_torch import Kernels

from .library import LIBRARY, Problem


class CpuKernels(Kernels):
    device, place = "cpu", "the CPU"

    def prepare(self, problem: ctypes.Structure, device: torch.device) -> None:
        problem.threads = torch.get_num_threads()


KERNELS = CpuKernels(LIBRARY, Problem)
register = KERNELS.register
