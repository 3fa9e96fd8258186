"""Images of a map: at the poses of a STAR file, or all around it."""

from __future__ import annotations

import math
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor

from .. import conventions, forward_project, realspace, rotations
from ..ctf import LIMITS, Ctf
from ..errors import InputError
from ..extras import need
from ..files import Particles, StackWriter, read_map
from ..files.particles import ANGLES, DEFOCUS, MICROSCOPE, ORIGINS_ANGSTROM, ORIGINS_PIXELS, path_to_write
from ..outputs import check_new, check_space, new_files
from . import memory, record
from .interrupts import Interrupted, deferred
from .options import check_oversampling, check_seed
from .progress import bar
from .ranks import checked_device

OF_OTHER_IMAGES = [
    *ORIGINS_PIXELS,
    "rlnImagePixelSize",
    "rlnImageSize",
    "rlnCtfDataAreCtfPremultiplied",
    "rlnCtfDataArePhaseFlipped",
]
BATCH_BYTES = 128 * 2**20
# At most, of the padded map as it is transformed, and of images from spectrum to noise.
BYTES_OF_A_POINT, BYTES_OF_A_PIXEL = 16, 32


def run(
    map: Union[str, Path],
    output: Union[str, Path],
    *,
    star: Optional[str] = None,
    count: int = 1000,
    orientations: Literal["random", "even"] = "random",
    shifts: float = 0.0,
    ctf: bool = False,
    defocus: Optional[tuple[float, float]] = None,
    voltage: float = 300.0,
    spherical_aberration: float = 2.7,
    amplitude_contrast: float = 0.1,
    snr: Optional[float] = None,
    box: Optional[int] = None,
    pixel_size: Optional[float] = None,
    interpolation: Literal["nearest", "linear", "cubic"] = "linear",
    oversampling: float = 2.0,
    seed: int = 0,
    overwrite: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Project, and write STACK.mrcs, STACK.star with the poses, and STACK.json.

    A pixel is the sum of the map along z, over the pixel's area: larger pixels hold more.

    Args:
        map: the volume, of equal axes.
        output: the stack to write, ending in .mrcs; the other files are named after it.
        star: particles at whose poses to project; their images need not be there.
        count: without a STAR file, how many images.
        orientations: without a STAR file, drawn at random, or views spread evenly.
        shifts: without a STAR file, standard deviation of shifts along each axis, in pixels of the images.
        ctf: apply the transfer function of the STAR file.
        defocus: without a STAR file, apply a transfer function of a defocus drawn between two values, in Å.
        voltage: of that microscope, in kV.
        spherical_aberration: of that microscope, in mm.
        amplitude_contrast: of that microscope.
        snr: add white noise: variance of the signal, with its transfer function, by that of the noise, per pixel.
        box: edge of the images, smaller than the map's: their pixels are larger, and their field of view the same.
        pixel_size: of the map in Å, in place of what its header says.
        interpolation: of the map's spectrum.
        oversampling: how much finer the spectrum is sampled, by zero padding.
        seed: of orientations, shifts, defocus and noise.
        overwrite: replace earlier results.
        device: "cpu", "cuda", "cuda:1" ...

    Returns:
        What the JSON file holds.
    """
    options = dict(locals())
    output = Path(output)
    if output.suffix != ".mrcs":
        raise InputError(f"-o: expected the name of a stack, ending in .mrcs, got {output}")
    paths = [output, output.with_suffix(".star"), output.with_suffix(".json")]
    check_new(paths, overwrite, [map, star])
    where = checked_device(device)
    volume, in_header = read_map(map)
    if len(set(volume.shape)) != 1:
        raise InputError(
            f"{map}: expected equal axes, got {' x '.join(str(n) for n in reversed(volume.shape))}"
        )
    pixel_size = in_header if pixel_size is None else pixel_size
    if not 0 < pixel_size < math.inf:
        raise InputError(f"{map}: no pixel size in its header: give one with --pixel-size")
    edge = volume.shape[-1]
    box = edge if box is None else box
    if not 8 <= box <= edge:
        raise InputError(f"--box: expected 8 to {edge}, the box of the map, got {box}")
    if snr is not None and not 0 < snr < math.inf:
        raise InputError(f"--snr: expected a number > 0, got {snr:g}")
    check_oversampling(oversampling, edge)
    images = max(1, BATCH_BYTES // (box * box * 12))
    fixed = images * box * box * BYTES_OF_A_PIXEL
    memory.check(
        (oversampling * edge) ** 3 * BYTES_OF_A_POINT + fixed,
        fixed,
        edge,
        oversampling,
        where,
        with_box=False,
    )
    spacing = pixel_size * edge / box
    check_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    if star is None:
        check_space(output, count * box * box * 4)
        if ctf:
            raise InputError(
                "--ctf applies the transfer function of a STAR file: give --star, or --defocus LOW HIGH"
            )
        table, poses, parameters = _drawn(
            count,
            orientations,
            shifts,
            defocus,
            (voltage, spherical_aberration, amplitude_contrast),
            spacing,
            generator,
        )
        optics = None
    else:
        if defocus is not None:
            raise InputError("--defocus: expected without --star, whose columns --ctf applies")
        particles = Particles.read(star, with_images=False)
        if particles.pixel_size is None:  # taken for that of the images here
            particles.pixel_size = spacing
        turns, moves = particles.poses()
        moves = moves * (particles.pixel_size / spacing)
        particles.pixel_size = spacing
        poses, parameters = (turns, moves), particles.ctf() if ctf else None
        table, optics = particles.with_poses(turns, moves).table, particles.optics
    total = len(table)
    check_space(output, total * box * box * 4)

    start = time.perf_counter()
    reference = realspace.prepare(volume.to(where), 3, interpolation, oversampling)
    turns, moves = (x.to(where, torch.float32) for x in poses)
    deviation = None
    made = record.facts(
        "project", str(where), {name: value for name, value in options.items() if name != "overwrite"}
    )
    with ExitStack() as context:
        stack_path, star_path, json_path = context.enter_context(new_files(paths, overwrite))
        stop = context.enter_context(deferred())
        with StackWriter(stack_path, total, (box, box), spacing, record.labels(made)) as stack:
            advance = context.enter_context(bar("projecting", total))
            for index in torch.arange(total).split(images):
                spectra = forward_project(
                    reference, turns[index], moves[index], (box, box), interpolation, oversampling, box / 2
                )
                if parameters is not None:
                    spectra = spectra * parameters[index].values((box, box), spacing, device=where)
                signal = realspace.from_spectrum(spectra, (box, box))
                if snr is not None:
                    if deviation is None:
                        deviation = (signal.var(dim=(-2, -1)).mean() / snr).sqrt().item()
                    noise = torch.randn(signal.shape, generator=generator)
                    signal = signal + deviation * noise.to(where)
                stack.append(signal)
                advance(len(index))
                if stop.requested:
                    raise Interrupted("interrupted: no result was written")
        _write_table(star_path, table, optics, output, spacing, box)
        made.update(images=total, pixel_size=spacing, box=box, noise_deviation=deviation)
        made["seconds"] = round(time.perf_counter() - start, 1)
        record.write(json_path, made)
    return made


def _drawn(
    count: int,
    orientations: str,
    deviation: float,
    defocus: Optional[tuple[float, float]],
    microscope: tuple[float, float, float],
    pixel_size: float,
    generator: torch.Generator,
) -> tuple[Any, tuple[Tensor, Tensor], Optional[Ctf]]:
    """A table of particles all around, their poses, and the parameters of their transfer functions."""
    if count < 1:
        raise InputError(f"--count: expected at least 1, got {count}")
    for option, value in (("voltage", microscope[0]), ("amplitude_contrast", microscope[2])):
        low, high = LIMITS[option]
        if not low <= value <= high:
            raise InputError(f"--{option.replace('_', '-')}: expected {low:g} to {high:g}, got {value:g}")
    if not 0 <= deviation < math.inf:
        raise InputError(f"--shifts: expected a number >= 0, got {deviation:g}")
    if orientations == "random":
        turns = rotations.random(count, generator=generator, dtype=torch.float64)
    else:
        turns = _even(count)
    moves = deviation * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    angles, origins = conventions.to_relion(turns, moves, pixel_size)
    columns = {**dict(zip(ANGLES, angles.unbind(-1))), **dict(zip(ORIGINS_ANGSTROM, origins.unbind(-1)))}
    parameters = None
    if defocus is not None:
        low, high = defocus
        if not -math.inf < low <= high < math.inf:
            raise InputError(f"--defocus: expected two numbers, the lower one first, got {low:g} {high:g}")
        mean = low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)
        half = 0.01 * mean * torch.rand(count, generator=generator, dtype=torch.float64)
        angle = 180 * torch.rand(count, generator=generator, dtype=torch.float64)
        parameters = Ctf(mean + half, mean - half, angle, *microscope)
        given = (parameters.defocus_u, parameters.defocus_v, angle)
        columns.update(zip(DEFOCUS, given))
        columns.update(zip(MICROSCOPE, (torch.full((count,), x, dtype=torch.float64) for x in microscope)))
    need("starfile")
    table = need("pandas").DataFrame({name: values.numpy() for name, values in columns.items()})
    return table, (turns, moves), parameters


def _even(count: int) -> Tensor:
    """Orientations whose views lie on a spiral from pole to pole, each in its own equal area of the sphere."""
    i = torch.arange(count, dtype=torch.float64)
    tilt = torch.rad2deg(torch.acos(1 - (2 * i + 1) / count))
    golden = 180 * (3 - math.sqrt(5))
    angles = torch.stack([i * golden % 360, tilt, 2 * i * golden % 360], -1)
    return conventions.from_relion(angles)[0]


def _write_table(path: Path, table: Any, optics: Any, stack: Path, pixel_size: float, box: int) -> None:
    pandas = need("pandas")
    # By a name that is found from here, as RELION does; elsewhere from the STAR file beside the stack.
    name = path_to_write(stack) if Path.cwd() in stack.absolute().parents else stack.name
    table["rlnImageName"] = [f"{i + 1:06d}@{name}" for i in range(len(table))]
    if optics is None:
        table["rlnOpticsGroup"] = 1
        optics = pandas.DataFrame({"rlnOpticsGroup": [1], "rlnOpticsGroupName": ["opticsGroup1"]})
        for name in MICROSCOPE:
            if name in table and table[name].nunique() == 1:
                optics[name] = table.pop(name).iloc[0]
    # RELION takes origins in pixels for those of a table without optics groups.
    if all(name in table for name in ORIGINS_PIXELS):
        for angstrom, pixels in zip(ORIGINS_ANGSTROM, ORIGINS_PIXELS):
            table[angstrom] = table[pixels] * pixel_size
    # Of the images that the table named before.
    table, optics = (x.drop(columns=OF_OTHER_IMAGES, errors="ignore") for x in (table, optics))
    optics["rlnImagePixelSize"], optics["rlnImageSize"], optics["rlnImageDimensionality"] = pixel_size, box, 2
    need("starfile").write({"optics": optics, "particles": table}, path)
