"""Poses of particles, refined against a map from where they are."""

from __future__ import annotations

import math
import time
from pathlib import Path
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor

from .. import rotations as _rotations
from ..errors import InputError
from ..extras import need
from ..files import Particles, read_map
from ..outputs import check_new, new_files
from ..refinement import Refiner
from . import memory, noise, plots, record
from .batches import Batch, Source, outside
from .checkpoint import Checkpoint, fingerprint
from .options import check_oversampling
from .pieces import finishing, keeping, work_through
from .progress import say
from .ranks import joined

# Images in flight.
MOST_IMAGES, BYTES = 128, 512 * 2**20
# Images that tell a contrast from chance.
ENOUGH = 16
# The result depends on these options, and on the STAR file and the map.
MATTER = (
    "images",
    "pixel_size",
    "resolution",
    "degrees",
    "pixels",
    "prior_degrees",
    "prior_pixels",
    "oversampling",
    "interpolation",
    "no_ctf",
    "noise_by",
    "expanded",
)


def run(
    star: Union[str, Path],
    output: Union[str, Path],
    *,
    map: Union[str, Path],
    images: Optional[str] = None,
    pixel_size: Optional[float] = None,
    resolution: Optional[float] = None,
    degrees: float = 4.0,
    pixels: float = 2.0,
    prior_degrees: Optional[float] = None,
    prior_pixels: Optional[float] = None,
    oversampling: float = 2.0,
    interpolation: Literal["linear", "cubic"] = "linear",
    no_ctf: bool = False,
    noise_by: Optional[str] = None,
    skip_bad: bool = False,
    expanded: bool = False,
    checkpoint_minutes: float = 10.0,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Refine, and write OUT.star, OUT.png with how far poses moved, and OUT.json.

    Local: orientations and shifts have to be about right, such as from a coarse search. All images of a batch advance
    at once, from coarse to fine, each by steps of its own, none of which makes its agreement with the map worse.

    Args:
        star: particles, in a STAR file.
        output: the STAR file to write; the other files are named after it.
        map: what the particles are projections of, of their box and pixel size.
        images: folder that names of stacks are relative to; by default the current one, or one above the STAR file.
        pixel_size: of the images in Å, in place of what the file says.
        resolution: finest, in Å, that is compared: that of the map. By default Nyquist's.
        degrees: error to expect in orientations, as a standard deviation about each axis; how coarse to begin.
        pixels: error to expect in shifts, as a standard deviation along each axis.
        prior_degrees: hold orientations near the start, by a Gaussian prior of this standard deviation about each axis.
        prior_pixels: hold shifts near the start, likewise.
        oversampling: how much finer the map's spectrum is sampled, by zero padding.
        interpolation: of the map's spectrum.
        no_ctf: images without a transfer function.
        noise_by: column of the STAR file by whose groups the power of noise is measured, such as rlnOpticsGroup.
        skip_bad: leave out particles whose image is missing, repeated or not finite, instead of stopping.
        expanded: images may be there at several poses each, as symmetry expansion writes them.
        checkpoint_minutes: how often results are saved, for `resume`.
        resume: go on where an interrupted run of the same options stopped.
        overwrite: replace earlier results.
        device: "cpu", "cuda", "cuda:1" ...

    Returns:
        What the JSON file holds.
    """
    options = {name: value for name, value in locals().items() if name not in ("resume", "overwrite")}
    output = Path(output)
    if output.suffix != ".star":
        raise InputError(f"-o: expected the name of a STAR file, ending in .star, got {output}")
    paths = [output, output.with_suffix(".png"), output.with_suffix(".json")]
    need("matplotlib.figure")
    for name in ("degrees", "pixels", "prior_degrees", "prior_pixels"):
        if options[name] is not None and not 0 < options[name] < math.inf:
            raise InputError(f"--{name.replace('_', '-')}: expected a number > 0, got {options[name]:g}")
    start = time.perf_counter()
    with joined(device) as ranks:
        if ranks.first:
            check_new(paths, overwrite, [star, map])
        particles = Particles.read(star, images=images, pixel_size=pixel_size)
        source = Source(
            particles, with_ctf=not no_ctf, skip_bad=skip_bad, expanded=expanded, device=ranks.device
        )
        check_oversampling(oversampling, source.box)
        volume = _read(map, source).to(ranks.device)
        finest = _finest(resolution, source)
        rotations, shifts = particles.poses()
        piece = int(max(16, min(MOST_IMAGES, BYTES // (40 * source.full**2))))
        spectrum = 4 * (oversampling * source.box) ** 3
        needed = 3 * spectrum + piece * 40 * source.full**2 + 0.4 * memory.GIB
        memory.check(needed, needed - 3 * spectrum, source.box, oversampling, ranks.device)
        key = fingerprint(
            [Path(star), Path(map)],
            {**{name: options[name] for name in MATTER}, "piece": piece},
            source.stacks(),
        )
        checkpoint = Checkpoint.opened(output, key, resume, overwrite, ranks)
        refiner = Refiner(
            volume,
            degrees=degrees,
            pixels=pixels,
            interpolation=interpolation,
            oversampling=oversampling,
            prior_degrees=prior_degrees,
            prior_pixels=prior_pixels,
            finest=finest,
        )
        del volume
        weights = None
        if noise_by is not None:
            groups, names = particles.groups(noise_by)
            say(f"noise of {len(names)} groups by {noise_by}")
            weights = noise.Weights(groups, noise.by_group(source, groups, ranks.first))
        say(
            f"{len(particles)} particles of {source.full} pixels, up to {source.box * source.pixel_size / finest:.3g} Å"
        )
        premultiplied = particles.premultiplied()
        found: list[list[Tensor]] = [part for earlier in checkpoint.results for part in earlier]

        def refine(batch: Batch) -> None:
            c = batch.ctf.square() if premultiplied and batch.ctf is not None else batch.ctf
            pose = [x[batch.index].to(ranks.device, source.dtype) for x in (rotations, shifts)]
            w = None if weights is None else weights(batch.index, batch.spectra)
            result = refiner(batch.spectra, *pose, ctf=c, weights=w)
            _check_contrast(result.score_before)
            kept = (
                result.rotations,
                result.shifts,
                result.score_before,
                result.score_after,
                result.converged,
            )
            found.append([batch.index, *(x.cpu() for x in kept)])

        pieces = torch.arange(len(particles)).split(piece)
        work_through("refining", pieces, source, refine, lambda: found, checkpoint, checkpoint_minutes, ranks)
        seconds = time.perf_counter() - start
        with keeping(checkpoint):
            everyone = ranks.collected((source.bad, found))
        if not ranks.first:
            return {}
        bad = {index: why for theirs, _ in everyone for index, why in theirs.items()}
        parts = [torch.cat(x) for x in zip(*(part for _, theirs in everyone for part in theirs))]
        order = torch.argsort(parts[0])
        index, turned, moved, before, after, converged = (x[order] for x in parts)
        degrees_moved = torch.rad2deg(_rotations.angles_between(turned.double(), rotations[index]))
        pixels_moved = (moved - shifts[index]).norm(dim=-1)
        made = record.facts("refine", str(ranks.device), options)
        made["ranks"] = ranks.size
        made["images"] = {
            "refined": len(index),
            "left_out": len(bad),
            "not_converged": int((~converged).sum()),
        }
        made["left_out_first"] = {str(i): why for i, why in sorted(bad.items())[:20]}
        made["seconds"], made["images_per_second"] = round(seconds, 1), round(len(index) / seconds, 1)
        made["peak_gibibytes"] = round(memory.peak() / memory.GIB, 2)
        told = {
            "degrees_moved": degrees_moved,
            "pixels_moved": pixels_moved,
            "score_before": before,
            "score_after": after,
        }
        with finishing(checkpoint, len(index), bad):
            made.update({name: _spread(values) for name, values in told.items()})
            with new_files(paths, overwrite) as (star_path, picture, numbers):
                particles.at(index).with_poses(turned.double(), moved.double()).write(star_path)
                plots.draw_refinement(picture, told)
                record.write(numbers, made)
        say(
            f"{output}: poses of {len(index)} particles moved by {made['degrees_moved']['median']:.2f} degrees and "
            f"{made['pixels_moved']['median']:.2f} pixels (medians); their correlation with the map, in the mean, "
            f"went from {before.mean():.4f} to {after.mean():.4f}"
        )
        return made


def _check_contrast(scores: Tensor) -> None:
    """An error if images are less like the map than like its negative, beyond chance."""
    scores = scores[scores.isfinite()]
    if len(scores) >= ENOUGH and scores.mean() < -5 * scores.std() / math.sqrt(len(scores)):
        raise InputError(
            f"expected images of the map's contrast, got the opposite: their correlation is {scores.mean():.3f} in the "
            "mean; multiply one of them by -1"
        )


def _read(path: Union[str, Path], source: Source) -> Tensor:
    volume, pixel_size = read_map(path)
    if volume.shape != (source.full,) * 3:
        box = " x ".join(str(n) for n in reversed(volume.shape))
        raise InputError(
            f"{path}: expected a map of the images' box, {source.full} pixels along each axis, got {box}"
        )
    if volume.min() == volume.max():
        raise InputError(f"{path}: expected a map with something in it, got {volume.min():g} everywhere")
    if pixel_size > 0 and abs(pixel_size - source.pixel_size) > 0.01 * source.pixel_size:
        raise InputError(
            f"{path}: expected the images' pixel size, {source.pixel_size:g} Å, got {pixel_size:g} Å; "
            "--pixel-size says which is right for the images"
        )
    # What surrounds a particle is cut to a cube by padding, whose faces are stronger than the particle.
    return volume - volume[outside(volume.shape)].mean()


def _finest(resolution: Optional[float], source: Source) -> float:
    """In cycles per box."""
    if resolution is None:
        return source.box / 2
    if not 2 * source.pixel_size <= resolution <= source.box * source.pixel_size / 4:
        raise InputError(
            f"--resolution: expected {2 * source.pixel_size:.3g} (Nyquist's) to "
            f"{source.box * source.pixel_size / 4:.3g} Å, got {resolution:g}"
        )
    return source.box * source.pixel_size / resolution


def _spread(values: Tensor) -> dict[str, float]:
    levels = torch.tensor([0.05, 0.5, 0.95], dtype=torch.float64)
    # torch.quantile takes no more than 16 million values.
    ordered = values.double().sort().values
    low, median, high = ordered[(levels * (len(ordered) - 1)).round().long()].tolist()
    return {"mean": values.double().mean().item(), "5_percent": low, "median": median, "95_percent": high}
