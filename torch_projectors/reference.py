"""The primitives in plain PyTorch: the specification that every compiled backend is verified against.

One stencil serves all of them. A sample at p touches `taps` lattice points along each axis; the tap at k reads (or
writes) the stored entry of k or, where k.x < 0, that of -k, conjugated. Work goes in blocks of samples, so that
memory beyond inputs and outputs does not grow with the number of poses.

Real data in place of complex are weights: they are sampled with |interpolation weight| and have no phase.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Callable, NamedTuple, Optional

import torch
from torch import Tensor

from .geometry import Geometry
from .spectrum import stored_shape, within

# Taps held at once: enough to hide the cost of calls, few enough to stay in cache.
BLOCK_TAPS = 1 << 20


class Interpolation(NamedTuple):
    """Separable interpolation: taps at floor(p + rounding) + first, first + 1, ... along each axis."""

    taps: int
    first: int
    rounding: float
    weights: Callable[[Tensor], list[Tensor]]  # of t = p - floor(p + rounding)
    slopes: Callable[[Tensor], list[Tensor]]  # d weights / d t


# `0 * t` carries a position that is not a number into the result.
NEAREST = Interpolation(1, 0, 0.5, lambda t: [1 + 0 * t], lambda t: [0 * t])

LINEAR = Interpolation(2, 0, 0.0, lambda t: [1 - t, t], lambda t: [0 * t - 1, 0 * t + 1])

CUBIC = Interpolation(  # Keys, a = -1/2 (Catmull-Rom)
    4,
    -1,
    0.0,
    lambda t: [
        0.5 * t * (t * (2 - t) - 1),
        0.5 * (t * t * (3 * t - 5) + 2),
        0.5 * t * (t * (4 - 3 * t) + 1),
        0.5 * t * t * (t - 1),
    ],
    lambda t: [
        0.5 * (t * (4 - 3 * t) - 1),
        0.5 * t * (9 * t - 10),
        0.5 * (t * (8 - 9 * t) + 1),
        0.5 * t * (3 * t - 2),
    ],
)

INTERPOLATIONS = {0: NEAREST, 1: LINEAR, 3: CUBIC}


class Axis:
    """The taps of samples at `position` along one axis of n; those outside the band have no weight."""

    def __init__(
        self, position: Tensor, n: int, interpolation: Interpolation, index_dtype: torch.dtype
    ) -> None:
        self.interpolation = interpolation
        base = torch.floor(position + interpolation.rounding)
        self.t = position - base
        taps = torch.arange(interpolation.taps, dtype=position.dtype, device=position.device)
        k = base + (taps + interpolation.first).reshape(-1, *[1] * base.dim())
        inside = k.abs() <= n // 2
        self.mask = inside.to(position.dtype)
        # Integer [taps, *S]. Not every float has one: what is outside, or not a number, is not converted.
        self.k = torch.where(inside, k, 0).to(index_dtype)

    def weights(self, absolute: bool = False) -> list[Tensor]:
        """A weight [*S] for every tap."""
        weights = [w * m for w, m in zip(self.interpolation.weights(self.t), self.mask)]
        return [w.abs() for w in weights] if absolute else weights

    def slopes(self, absolute: bool = False) -> list[Tensor]:
        """Derivatives of the weights along the axis."""
        slopes = [s * m for s, m in zip(self.interpolation.slopes(self.t), self.mask)]
        return [s * w.sign() for s, w in zip(slopes, self.weights())] if absolute else slopes


class Stencil:
    """Every tap of the samples at `positions`: where it is stored, whether mirrored, and its separable weight.

    positions: a tensor of any shape S for each of (x, y[, z]).
    base: integer, broadcasts against [V, *S]; where the volume of each sample begins in a vector of all volumes.
    """

    def __init__(
        self, positions: Sequence[Tensor], base: Tensor, shape: Sequence[int], interpolation: Interpolation
    ) -> None:
        sizes = list(reversed(shape))
        self.axes = [Axis(p, n, interpolation, base.dtype) for p, n in zip(positions, sizes)]
        x, *others = self.axes
        self.mirrored = x.k < 0  # [taps_x, *S]
        offset = x.k.abs()
        stride = sizes[0] // 2 + 1
        for a, (axis, n) in enumerate(zip(others, sizes[1:]), 1):
            k = axis.k
            here = torch.where(k < 0, k + n, k) * stride
            there = torch.where(k > 0, n - k, -k) * stride
            # A tap is mirrored as a whole, so its place along y and z depends on that along x.
            index = torch.where(self.mirrored.unsqueeze(1), there, here)
            offset = offset.unsqueeze(a) + (index if a == 1 else index.unsqueeze(1))
            stride = stride * n
        offset = offset.unsqueeze(0)
        if base.numel() > 1:
            offset = offset + base.reshape(base.shape[0], *[1] * len(sizes), *base.shape[1:])
        self.offset = offset  # [V or 1, taps_x, taps_y[, taps_z], *S]

    def gather(self, volumes: Tensor, slopes: bool = False) -> list[Tensor]:
        """Interpolated values [V, *S] and, if asked for, their derivatives along each of (x, y[, z])."""
        absolute = not volumes.is_complex()
        sums = [volumes.index_select(0, self.offset.reshape(-1)).reshape(self.offset.shape)]
        for a, axis in reversed(list(enumerate(self.axes))):
            if a == 0:
                sums = [self._conjugated(s) for s in sums]
            taps = [s.unbind(1 + a) for s in sums]
            sums = [_dot(axis.weights(absolute), t) for t in taps]
            if slopes:
                sums.insert(1, _dot(axis.slopes(absolute), taps[0]))
        return sums

    def scatter_(self, volumes: Tensor, values: Tensor) -> None:
        """Add values [V, *S] into the vector of volumes: the transpose of `gather`."""
        taps = values
        for a, axis in enumerate(self.axes):
            weights = axis.weights(absolute=not volumes.is_complex())
            taps = torch.stack([w * taps for w in weights], 1 + a)
            if a == 0:
                taps = self._conjugated(taps)
        volumes.scatter_add_(0, self.offset.expand(taps.shape).reshape(-1).long(), taps.reshape(-1))

    def _conjugated(self, taps: Tensor) -> Tensor:
        """Taps [V, taps_x, *S], conjugated where mirrored."""
        return torch.where(self.mirrored, taps.conj_physical(), taps) if taps.is_complex() else taps


def _dot(weights: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    total = weights[0] * values[0]
    for w, v in zip(weights[1:], values[1:]):
        total += w * v
    return total


class Block(NamedTuple):
    """Some of the poses times some of the pixels."""

    poses: slice
    pixels: Tensor  # [K] index into the flattened image
    k: list[Tensor]  # (x, y[, z]) frequencies, [K] each


class Sampling:
    """Where the images of all poses sample the volumes.

    Poses that all volumes share are visited once for V = B volumes. Otherwise each pose has a volume of its own,
    and the B * P of them are visited with V = 1. So images are [V, Q, pixels], with Q = P or B * P, which is a view
    of [B, P, ...] either way.
    """

    def __init__(self, batch: int, rotations: Tensor, shifts: Optional[Tensor], geometry: Geometry) -> None:
        poses, device = rotations.shape[1], rotations.device
        shared = rotations.shape[0] == 1
        self.shape = (batch, poses) if shared else (1, batch * poses)
        self.geometry = geometry
        self.volume_shape = [int(n) for n in geometry.volume_shape]
        self.image_shape = [int(n) for n in geometry.image_shape]
        self.interpolation = INTERPOLATIONS[geometry.interpolation]
        self.rotations = rotations.reshape(self.shape[1], *rotations.shape[2:])
        self.batch = batch
        self.shifts = None if shifts is None else self.per_pose(shifts)
        size = math.prod(stored_shape(self.volume_shape))
        index_dtype = torch.int32 if batch * size < 2**31 else torch.int64
        starts = size * torch.arange(batch, dtype=index_dtype, device=device)
        self.base = starts[:, None, None] if shared else starts.repeat_interleave(poses)[None, :, None]

    def per_pose(self, shifts: Tensor) -> Tensor:
        """[B or 1, P, d] as [V or 1, Q, d]."""
        if self.shape[0] == self.batch:
            return shifts
        return shifts.expand(self.batch, -1, -1).reshape(1, self.shape[1], shifts.shape[2])

    def blocks(self, size: int = 1) -> Iterator[Block]:
        """Blocks of at most `size * BLOCK_TAPS` taps, or of one sample."""
        device, dtype = self.rotations.device, self.rotations.dtype
        pixels, k = within(self.image_shape, self.geometry.cutoff)
        index = torch.from_numpy(pixels).to(device)
        k = [torch.from_numpy(f).to(device, dtype) for f in k]
        volumes, poses = self.shape
        samples = size * BLOCK_TAPS // (self.interpolation.taps ** len(self.volume_shape) * max(volumes, 1))
        pose_step, pixel_step = max(1, samples // len(pixels)), max(1, samples)
        for q in range(0, poses, pose_step):
            for i in range(0, len(pixels), pixel_step):
                span = slice(i, i + pixel_step)
                yield Block(slice(q, q + pose_step), index[span], [f[span] for f in k])

    def stencil(self, block: Block) -> Stencil:
        """The stencil at p = oversampling * M @ k, for poses times pixels: S = [Q, K]."""
        k = [self.geometry.oversampling * f for f in block.k]
        rows = self.rotations[block.poses, :, :, None].unbind(1)
        positions = [_dot(row.unbind(1)[: len(k)], k) for row in rows]
        base = self.base if self.base.shape[1] == 1 else self.base[:, block.poses]
        return Stencil(positions, base, self.volume_shape, self.interpolation)

    def cycles(self, block: Block) -> list[Tensor]:
        """Frequencies in cycles per pixel."""
        return [f / n for f, n in zip(block.k, reversed(self.image_shape))]

    def shifted(self, values: Tensor, block: Block, back: bool = False) -> Tensor:
        """Values [V, Q, K] times exp(-2 pi i k.s / N), or its conjugate."""
        if self.shifts is None:
            return values
        turns = _dot(self.cycles(block), self.shifts[:, block.poses, :, None].unbind(2))
        angle = (2 if back else -2) * math.pi * turns
        return values * torch.complex(torch.cos(angle), torch.sin(angle))

    def counted(self, values: Tensor, block: Block) -> Tensor:
        """Values [V, Q, K] by how much they count in the pairing of volumes and images."""
        if not self.geometry.pairs_once:
            return values
        x = block.k[0]
        paired = (x == 0) | (2 * x == self.image_shape[-1])
        return values * (1 - 0.5 * paired.to(x.dtype))

    def read(self, images: Tensor, block: Block) -> Tensor:
        """Pixels of images [B, P, ...]: [V, Q, K]."""
        pixels = images.reshape(*self.shape, -1)[:, block.poses].index_select(2, block.pixels)
        return self.counted(pixels, block)

    def write_(self, images: Tensor, block: Block, values: Tensor) -> None:
        pixels = images.view(*self.shape, -1)[:, block.poses]
        pixels.index_copy_(2, block.pixels, self.counted(values, block))


def forward_project(
    volume: Tensor, rotations: Tensor, shifts: Optional[Tensor], geometry: Geometry
) -> Tensor:
    images = volume.new_zeros(volume.shape[0], rotations.shape[1], *stored_shape(geometry.image_shape))
    if images.numel() == 0:
        return images
    sampling = Sampling(volume.shape[0], rotations, shifts, geometry)
    for block in sampling.blocks():
        (values,) = sampling.stencil(block).gather(volume.reshape(-1))
        sampling.write_(images, block, sampling.shifted(values, block))
    return images


def backward_project(
    images: Tensor, weights: Optional[Tensor], rotations: Tensor, shifts: Optional[Tensor], geometry: Geometry
) -> tuple[Tensor, Tensor]:
    volume = images.new_zeros(images.shape[0], *stored_shape(geometry.volume_shape))
    weight_volume = volume.real.new_zeros(0 if weights is None else volume.shape)
    if images.numel() == 0:
        return volume, weight_volume
    sampling = Sampling(images.shape[0], rotations, shifts, geometry)
    for block in sampling.blocks():
        stencil = sampling.stencil(block)
        stencil.scatter_(volume.view(-1), sampling.shifted(sampling.read(images, block), block, back=True))
        if weights is not None:
            stencil.scatter_(weight_volume.view(-1), sampling.read(weights, block))
    return volume, weight_volume


def project_gradients(
    volume: Tensor,
    images: Tensor,
    rotations: Tensor,
    shifts: Optional[Tensor],
    geometry: Geometry,
    need_volume: bool,
    need_images: bool,
    need_rotations: bool,
    need_shifts: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of L = Re <forward_project(volume), images>, each empty unless needed."""
    need = (need_volume, need_images, need_rotations, need_shifts and shifts is not None)
    tensors = (volume, images, rotations, rotations if shifts is None else shifts)
    gradients = [x.new_zeros(x.shape if n else 0) for x, n in zip(tensors, need)]
    grad_volume, grad_images, grad_rotations, grad_shifts = gradients
    if images.numel() == 0:
        return grad_volume, grad_images, grad_rotations, grad_shifts
    sampling = Sampling(volume.shape[0], rotations, shifts, geometry)
    rotation_sums = grad_rotations.view(-1, *rotations.shape[2:])
    shift_sums = rotations.new_zeros(*sampling.shape, len(geometry.image_shape))
    for block in sampling.blocks():
        stencil = sampling.stencil(block)
        unshifted = sampling.shifted(sampling.read(images, block), block, back=True)
        if need_volume:
            stencil.scatter_(grad_volume.view(-1), unshifted)
        if any(need[1:]):
            values, *slopes = stencil.gather(volume.reshape(-1), slopes=need_rotations)
        if need_images:
            sampling.write_(grad_images, block, sampling.shifted(values, block))
        if need_rotations:
            rotation_sums[block.poses] += _rotation_gradient(sampling, block, unshifted, slopes)
        if need[3]:
            shift_sums[:, block.poses] += _shift_gradient(sampling, block, unshifted, values)
    if need[3]:
        sums = shift_sums.view(-1, *shifts.shape[1:])
        grad_shifts = sums if sums.shape == shifts.shape else sums.sum(0, keepdim=True)
    return grad_volume, grad_images, grad_rotations, grad_shifts


def _rotation_gradient(
    sampling: Sampling, block: Block, unshifted: Tensor, slopes: Sequence[Tensor]
) -> Tensor:
    """[Q, d, d]: dL / dM = oversampling * sum over samples of dL/dp k^T."""
    rows = []
    for slope in slopes:
        force = sampling.geometry.oversampling * _real_product(unshifted, slope).sum(0)
        columns = [(force * k).sum(-1) for k in block.k]
        columns += [torch.zeros_like(columns[0])] * (len(slopes) - len(columns))
        rows.append(torch.stack(columns, -1))
    return torch.stack(rows, -2)


def _shift_gradient(sampling: Sampling, block: Block, unshifted: Tensor, values: Tensor) -> Tensor:
    """[V, Q, d]: the phase turns by -2 pi k / N for each pixel of shift."""
    torque = unshifted.real * values.imag - unshifted.imag * values.real
    return torch.stack([2 * math.pi * (torque * k).sum(-1) for k in sampling.cycles(block)], -1)


def _real_product(a: Tensor, b: Tensor) -> Tensor:
    """Re(conj(a) b)."""
    return a.real * b.real + a.imag * b.imag if a.is_complex() else a * b


def pose_curvature(
    volume: Tensor,
    images: Tensor,
    rotations: Tensor,
    shifts: Optional[Tensor],
    geometry: Geometry,
    along_rotations: Optional[Tensor],
    along_shifts: Optional[Tensor],
    need: Sequence[bool],
) -> list[Optional[Tensor]]:
    """Gradients, with respect to the needed ones of the four tensors, of the derivative of L along a change of poses.

    L is linear in volume and in images, so this is all that its second derivatives need beyond the primitives. It is
    made of differentiable torch calls: derivatives of any order follow.
    """
    tensors = (volume, images, rotations, shifts)
    needed = tuple(i for i, tensor in enumerate(tensors) if need[i] and tensor is not None)
    sums: list[Optional[Tensor]] = [None] * 4
    for i in needed:
        sums[i] = torch.zeros_like(tensors[i])
    if not needed or images.numel() == 0:
        return sums

    def derivative(
        block: Block, volume: Tensor, images: Tensor, rotations: Tensor, shifts: Optional[Tensor]
    ) -> Tensor:
        sampling = Sampling(volume.shape[0], rotations, shifts, geometry)
        unshifted = sampling.shifted(sampling.read(images, block), block, back=True)
        values, *slopes = sampling.stencil(block).gather(volume.reshape(-1), slopes=True)
        total = rotations.new_zeros(())
        if along_rotations is not None:
            direction = along_rotations.reshape(sampling.rotations.shape)[block.poses]
            total = total + (direction * _rotation_gradient(sampling, block, unshifted, slopes)).sum()
        if along_shifts is not None:
            direction = sampling.per_pose(along_shifts)[:, block.poses]
            total = total + (direction * _shift_gradient(sampling, block, unshifted, values)).sum()
        return total

    for block in Sampling(volume.shape[0], rotations, shifts, geometry).blocks(size=4):
        gradients = torch.func.grad(partial(derivative, block), argnums=needed)(*tensors)
        for i, gradient in zip(needed, gradients):
            sums[i] = sums[i] + gradient
    return sums
