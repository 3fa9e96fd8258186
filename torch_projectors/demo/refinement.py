"""Poses refined by gradient descent through the operators, in turns with the map that they give."""

from __future__ import annotations

import math
from typing import Callable, NamedTuple, Union

import torch
from torch import Tensor

from .. import backward_project, forward_project, realspace, rotations

OVERSAMPLING = 2


class Poses(NamedTuple):
    """Where each image was taken from: rotations [P, 3, 3], shifts [P, 2] in pixels, (x, y)."""

    rotations: Tensor
    shifts: Tensor

    def to(self, device: Union[torch.device, str]) -> Poses:
        return Poses(self.rotations.to(device), self.shifts.to(device))

    def moved(self, turns: Tensor, moves: Tensor) -> Poses:
        """By rotation vectors [P, 3] in radians, and by pixels [P, 2]."""
        return Poses(self.rotations @ rotations.from_vectors(turns), self.shifts + moves)

    def in_frame_of(self, others: Poses) -> Poses:
        """The same poses of a map turned and moved as a whole to agree best with others: no image can tell."""
        u, _, v = torch.linalg.svd((others.rotations @ self.rotations.mT).sum(0))
        u = torch.cat([u[:, :2], u[:, 2:] * torch.linalg.det(u @ v)], 1)  # a rotation, no mirror
        turned = u @ v @ self.rotations
        # A map moved by t moves an image by the x, y of M^T t.
        seen = turned.mT[:, :2].reshape(-1, 3)
        move = torch.linalg.lstsq(seen, (others.shifts - self.shifts).reshape(-1, 1)).solution
        return Poses(turned, self.shifts + (seen @ move).reshape(-1, 2))


def reconstruct(spectra: Tensor, poses: Poses, snr: float) -> Tensor:
    """The map [n, n, n] that half spectra of images [P, n, n//2+1] at their poses give."""
    n = spectra.shape[-2]
    data, weight = backward_project(
        spectra,
        *poses,
        reconstruction_shape=(OVERSAMPLING * n,) * 3,
        oversampling=OVERSAMPLING,
        weights=torch.ones_like(spectra.real),
    )
    return realspace.reconstruct(data, weight, oversampling=OVERSAMPLING, policy="wiener", snr=snr)


def refine(
    spectra: Tensor,
    poses: Poses,
    snr: float,
    rounds: int,
    steps: int,
    progress: Callable[[float], None] = lambda resolution: None,
) -> Poses:
    """Poses that agree better with the images: rounds of a new map and some steps of descent for every pose.

    Coarse features first, finer ones as poses get better. `progress` is told the resolution in pixels at each step.
    """
    n = spectra.shape[-2]
    for i in range(rounds):
        cutoff = n * min(0.09 + 0.065 * i, 0.34)
        volume = reconstruct(spectra, poses, snr)
        reference = realspace.prepare(volume, dims=3, oversampling=OVERSAMPLING)
        turns = torch.zeros_like(poses.rotations[..., 0], requires_grad=True)
        moves = torch.zeros_like(poses.shifts, requires_grad=True)
        rate = 0.7**i
        optimizer = torch.optim.Adam(
            [{"params": [turns], "lr": math.radians(1.7) * rate}, {"params": [moves], "lr": 0.3 * rate}],
            betas=(0.8, 0.95),
        )
        for _ in range(steps):
            projections = forward_project(
                reference,
                *poses.moved(turns, moves),
                output_shape=(n, n),
                oversampling=OVERSAMPLING,
                fourier_radius_cutoff=cutoff,
            )
            # Beyond the cutoff projections are zero, and the images add a constant.
            loss = (projections - spectra).abs().square().sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            progress(n / cutoff)
        poses = poses.moved(turns.detach(), moves.detach())
    return poses
