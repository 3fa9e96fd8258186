"""Writes what main.cpp reads: inputs, and what torch_projectors' reference computes from them in float64.

python write_expected.py FILE
"""

from __future__ import annotations

import sys

import torch
from torch import Tensor

import torch_projectors
from torch_projectors import backward_project, forward_project


def inputs() -> dict[str, Tensor]:
    n, poses = 16, 5
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        # Rounded once, so that every precision sees the same numbers.
        return torch.randn(*shape, generator=generator).double()

    return {
        "volume": torch.fft.rfftn(normal(n, n, n), dim=(-3, -2, -1), norm="ortho"),
        "targets": torch.fft.rfftn(normal(poses, n, n), dim=(-2, -1), norm="ortho"),
        "weights": normal(poses, n, n // 2 + 1).square(),
        "rotations": torch.linalg.qr(normal(poses, 3, 3))[0].float().double(),
        "shifts": normal(poses, 2),
    }


def results(
    volume: Tensor, targets: Tensor, weights: Tensor, rotations: Tensor, shifts: Tensor
) -> dict[str, Tensor]:
    volume, rotations, shifts = [x.clone().requires_grad_() for x in (volume, rotations, shifts)]
    options = {"interpolation": "cubic"}
    images = forward_project(volume, rotations, shifts, **options)
    loss = (images - targets).abs().square().sum()
    gradients = torch.autograd.grad(loss, (volume, rotations, shifts), create_graph=True)
    (steepness_gradient,) = torch.autograd.grad(gradients[0].abs().square().sum(), volume)
    total, weight_total = backward_project(targets * weights, rotations, shifts, weights=weights, **options)
    return {
        "images": images,
        "volume_gradient": gradients[0],
        "rotation_gradient": gradients[1],
        "shift_gradient": gradients[2],
        "steepness_gradient": steepness_gradient,
        "sum": total,
        "weight_sum": weight_total,
    }


def main() -> None:
    given = inputs()
    with torch_projectors.use_backend("reference"):
        expected = results(**given)
    with open(sys.argv[1], "wb") as file:
        for name, x in (*given.items(), *[(f"expected_{name}", x) for name, x in expected.items()]):
            kind = "complex" if x.is_complex() else "real"
            file.write(" ".join([name, kind, *map(str, x.shape)]).encode() + b"\n")
            file.write(x.detach().contiguous().numpy().tobytes())


if __name__ == "__main__":
    main()
