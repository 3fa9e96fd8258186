"""Small data sets on disk: a map, and images of it with what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from torch_projectors.files import write_map
from torch_projectors.jobs import project


class Data(NamedTuple):
    """Paths of the map, of the stack of its images and their STAR file; the map `[box, box, box]` itself."""

    map: Path
    stack: Path
    star: Path
    truth: Tensor


def molecule(box: int, seed: int = 0) -> Tensor:
    """Blobs within half the box, no two alike, so that no turn of the map is another map."""
    generator = torch.Generator().manual_seed(seed)
    axis = torch.arange(box, dtype=torch.float64) - box // 2
    points = torch.stack(torch.meshgrid(axis, axis, axis, indexing="ij"), -1)
    centres = (torch.rand(12, 3, generator=generator, dtype=torch.float64) - 0.5) * (box / 2)
    heights = 0.5 + torch.rand(12, generator=generator, dtype=torch.float64)
    width = box / 16
    return sum(
        height * torch.exp(-(points - centre).square().sum(-1) / (2 * width**2))
        for centre, height in zip(centres, heights)
    ).float()


def write_data(
    folder: Path, count: int = 60, box: int = 24, seed: int = 0, pixel_size: float = 2.0, **options: Any
) -> Data:
    """`map.mrc`, and `images.mrcs`, `images.star` and `images.json`, as `project` writes them with its options."""
    folder.mkdir(parents=True, exist_ok=True)
    truth = molecule(box, seed)
    write_map(folder / "map.mrc", truth, pixel_size)
    project.run(folder / "map.mrc", folder / "images.mrcs", count=count, seed=seed, **options)
    return Data(folder / "map.mrc", folder / "images.mrcs", folder / "images.star", truth)
