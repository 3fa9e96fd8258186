"""Maps: volumes in MRC files."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from ..extras import need
from .mrc import PathLike, add_labels, read_header


def read_map(path: PathLike) -> tuple[Tensor, float]:
    """The density `[D, H, W]` in float32, whatever the order of axes in the file, and its pixel size in Å, or 0."""
    header = read_header(path)
    if sorted(header.axes) != [1, 2, 3]:
        raise InputError(f"{path}: expected each of the axes 1, 2, 3 once, got {header.axes}")
    if min(header.voxel) > 0 and max(header.voxel) > 1.01 * min(header.voxel):
        found = " x ".join(f"{n:g}" for n in header.voxel)
        raise InputError(f"{path}: expected voxels of equal edges, got {found} Å")
    values = np.fromfile(header.path, header.dtype, int(np.prod(header.shape)), offset=header.offset)
    values = values.reshape(header.shape).astype(np.float32)
    # File order is sections, rows, columns; ours is z, y, x.
    order = [header.axes[::-1].index(axis) for axis in (3, 2, 1)]
    density = torch.from_numpy(np.ascontiguousarray(values.transpose(order)))
    if not torch.isfinite(density).all():
        raise InputError(
            f"{path}: expected finite values, got {int((~torch.isfinite(density)).sum())} that are not"
        )
    return density, header.pixel_size


def read_mask(path: PathLike, shape: Sequence[int]) -> Tensor:
    """A mask `[D, H, W]` of a shape, of values from 0 to 1."""
    mask, _ = read_map(path)
    if mask.shape != tuple(shape):
        expected, got = (" x ".join(str(n) for n in reversed(x)) for x in (tuple(shape), mask.shape))
        raise InputError(f"{path}: expected a mask of {expected} pixels, as the map, got {got}")
    if mask.min() < -1e-3 or mask.max() > 1.001 or not mask.any():
        raise InputError(
            f"{path}: expected a mask of values from 0 to 1, got {mask.min():g} to {mask.max():g}"
        )
    return mask.clamp(0, 1)


def write_map(path: PathLike, density: Tensor, pixel_size: float, labels: Sequence[str] = ()) -> None:
    """A volume `[D, H, W]` as MRC in float32, with up to nine labels of 80 characters in its header."""
    with need("mrcfile").new(path, overwrite=True) as file:
        file.set_data(density.detach().cpu().to(torch.float32).numpy())
        file.set_volume()
        file.voxel_size = pixel_size
        add_labels(file, labels)
