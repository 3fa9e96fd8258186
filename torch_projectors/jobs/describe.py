"""What a file holds."""

from __future__ import annotations

from pathlib import Path
from typing import Union

import numpy as np
import torch

from ..errors import InputError
from ..files import Particles
from ..files.mrc import read_header
from ..files.particles import ANGLES, DEFOCUS, MICROSCOPE


def describe(path: Union[str, Path]) -> str:
    """A map, a stack of images, or a STAR file of particles, in a few lines."""
    path = Path(path)
    if path.suffix == ".star":
        return _particles(path)
    if path.suffix in (".mrc", ".mrcs", ".map", ".rec", ".st"):
        return _mrc(path)
    raise InputError(f"{path}: expected a name that ends in .star, .mrc, .mrcs or .map")


def _mrc(path: Path) -> str:
    header = read_header(path)
    sections, rows, columns = header.shape
    middle = np.fromfile(
        path,
        header.dtype,
        rows * columns,
        offset=header.offset + sections // 2 * rows * columns * header.dtype.itemsize,
    ).astype(np.float64)
    lines = [
        f"{path}: {columns} x {rows} x {sections}, {header.dtype.name}",
        f"  pixel size {header.pixel_size:g} Å" if header.pixel_size else "  no pixel size",
        f"  section {sections // 2}: {middle.min():g} to {middle.max():g}, mean {middle.mean():g}, "
        f"deviation {middle.std():g}",
    ]
    lines += [f"  {label}" for label in header.labels if label.strip()]
    return "\n".join(lines)


def _particles(path: Path) -> str:
    particles = Particles.read(path)
    lines = [f"{path}: {len(particles)} particles in {len(particles.stacks.paths)} stacks"]
    problems = particles.problems()
    if len(problems) < len(particles):
        first = next(i for i in range(len(particles)) if i not in problems)
        height, width = particles.stacks.header(int(particles.files[first])).shape[1:]
        lines.append(f"  images of {width} x {height} pixels, {particles.pixel_size:g} Å each")
    if problems:
        lines.append(f"  {len(problems)} cannot be used: {next(iter(problems.values()))}")
    if particles.optics is not None:
        lines.append(f"  {len(particles.optics)} optics groups")
    if particles.has([*DEFOCUS[:2], *MICROSCOPE]):
        u = particles.numbers(DEFOCUS[0])
        voltages = " and ".join(f"{v:g}" for v in torch.unique(particles.numbers(MICROSCOPE[0])).tolist())
        lines.append(f"  transfer functions: defocus {u.min():.0f} to {u.max():.0f} Å at {voltages} kV")
    else:
        lines.append("  no transfer functions")
    if particles.has(ANGLES):
        _, shifts = particles.poses()
        lines.append(
            f"  shifts: {shifts.std():.2f} pixels (standard deviation), at most {shifts.abs().max():.2f}"
        )
    else:
        lines.append("  no orientations")
    if particles.has(["rlnRandomSubset"]):
        lines.append("  halves: rlnRandomSubset")
    ignored = particles.not_applied()
    if ignored:
        lines.append(f"  not applied here: {', '.join(ignored)}")
    return "\n".join(lines)
