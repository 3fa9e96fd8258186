"""A map from particles on disk, read once: halves, their correlation, and the filtered sum."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor

from .. import symmetry
from ..errors import InputError
from ..files import Particles, read_map, write_map
from ..insertion import Insertion
from ..outputs import OutputError, check_new, new_files
from ..spectrum import radii
from . import correlation, memory, noise, plots, record
from .batches import Batch, Source
from .checkpoint import Checkpoint, fingerprint
from .interrupts import Interrupted, deferred
from .progress import bar, say
from .ranks import Ranks, joined

THRESHOLDS = (0.5, 0.143)
# Images in flight: as many as spread the cost of a new volume, and no more than this many bytes.
MOST_IMAGES, BYTES = 1024, 768 * 2**20


def run(
    star: Union[str, Path],
    output: Union[str, Path],
    *,
    images: Optional[str] = None,
    pixel_size: Optional[float] = None,
    box: Optional[int] = None,
    oversampling: float = 2.0,
    interpolation: Literal["nearest", "linear", "cubic"] = "linear",
    no_ctf: bool = False,
    noise_by: Optional[str] = None,
    point_group: str = "C1",
    policy: Literal["wiener", "radial", "clamp"] = "wiener",
    mask: Optional[str] = None,
    seed: int = 0,
    double: bool = False,
    skip_bad: bool = False,
    checkpoint_minutes: float = 10.0,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Reconstruct, and write MAP.mrc, MAP_half1.mrc, MAP_half2.mrc, MAP_fsc.png and MAP.json.

    Memory: two halves of 12 bytes for each of (oversampling * box)^3 / 2 frequencies (24 with `double`), a third while
    images are inserted and about four while the maps are made, and up to 1 GiB for images; not more for more images.

    Args:
        star: particles, in a STAR file.
        output: the map to write, ending in .mrc; the other files are named after it.
        images: folder that names of stacks are relative to; by default the current one, or one above the STAR file.
        pixel_size: of the images in Å, in place of what the file says.
        box: edge of the map: smaller than the images, it crops their spectra.
        oversampling: 1 to 3. How much finer frequencies are sampled.
        interpolation: "nearest", "linear" or "cubic".
        no_ctf: images without a transfer function.
        noise_by: column of the STAR file by whose groups the power of noise is measured, such as rlnOpticsGroup.
        point_group: symmetry of the particle: C1, C4, D7, T, O, I1 ...; every image is inserted at all its poses.
        policy: "wiener", by the correlation of the halves; "radial" or "clamp", unfiltered, as `realspace.reconstruct`.
        mask: map of values from 0 to 1, for a correlation inside it, corrected for what the mask does by itself.
        seed: of the halves, if the STAR file has no rlnRandomSubset, and of random phases.
        double: sums in double precision.
        skip_bad: leave out particles whose image is missing, repeated or not finite, instead of stopping.
        checkpoint_minutes: how often sums are saved, for `resume`.
        resume: go on where an interrupted run of the same options stopped.
        overwrite: replace earlier results.
        device: "cpu", "cuda", "cuda:1" ...

    Returns:
        What the JSON file holds.
    """
    options = {name: value for name, value in locals().items() if name not in ("resume", "overwrite", "skip_bad")}
    _check(oversampling, checkpoint_minutes)
    output = Path(output)
    paths = _paths(output)
    start = time.perf_counter()
    with joined(device) as ranks:
        if ranks.first:
            check_new(list(paths.values()), overwrite)
        say_first = say if ranks.first else (lambda text: None)
        particles = Particles.read(star, images=images, pixel_size=pixel_size)
        dtype = torch.float64 if double else torch.float32
        source = Source(
            particles, box=box, with_ctf=not no_ctf, skip_bad=skip_bad, device=ranks.device, dtype=dtype
        )
        inside = _read_mask(mask, source)
        operators = symmetry.operators(point_group).to(ranks.device)
        halves_of, halves_by = _halves(particles, seed)
        chunk = _chunk(source)
        memory.check(
            memory_needed(source, oversampling, double, chunk), chunk * image_bytes(source), source.box,
            oversampling, ranks.device,
        )
        halves = [
            Insertion((source.box,) * 2, oversampling, interpolation, device=ranks.device, dtype=dtype) for _ in range(2)
        ]
        depends_on = ("pixel_size", "oversampling", "interpolation", "no_ctf", "noise_by", "point_group", "seed", "double")
        key = fingerprint(Path(star), {**{name: options[name] for name in depends_on}, "box": source.box, "of": chunk})
        checkpoint = _checkpoint(output, key, halves, resume, ranks)
        source.bad.update(checkpoint.bad)
        variance = groups = None
        if noise_by is not None:
            groups, names = particles.groups(noise_by)
            say_first(f"noise of {len(names)} groups by {noise_by}")
            variance = noise.by_group(source, groups, ranks.first)

        pieces = torch.arange(len(particles)).split(chunk)
        left = [i for i in range(len(pieces)) if i not in checkpoint.done and i not in checkpoint.elsewhere]
        mine = left[ranks.rank :: ranks.size]
        weighting = _Weighting(variance, groups, particles.premultiplied())

        def insert(batch: Batch) -> None:
            data, weight = weighting(batch)
            for half, insertion in enumerate(halves):
                chosen = torch.nonzero(halves_of[batch.index] == half).flatten()
                where = batch.index[chosen]
                part = chosen.to(data.device)
                if len(chosen):
                    insertion.add(
                        data[part],
                        weight[part],
                        poses[0][where].to(data.device),
                        poses[1][where].to(data.device) * (source.box / source.full),
                        cutoff,
                        operators=operators,
                    )

        poses = particles.poses()
        # The highest frequency of a cropped image stands for one side alone.
        cutoff = source.box / 2 if source.box == source.full else source.box / 2 - 0.5
        total = sum(len(pieces[i]) for i in mine)
        say_first(
            f"{len(particles)} particles of {source.full} pixels, {source.pixel_size:g} Å in the map; halves by {halves_by}"
        )
        with deferred() as stop, bar("inserting", total, shown=ranks.first) as advance:
            saved = time.monotonic()
            try:
                batches = source.batches(pieces[i][source.good[pieces[i]]] for i in mine)
                for i, batch in zip(mine, batches):
                    insert(batch)
                    checkpoint.done.append(i)
                    advance(len(pieces[i]))
                    if stop.requested:
                        raise Interrupted
                    if time.monotonic() - saved > 60 * checkpoint_minutes:
                        checkpoint.bad = source.bad
                        checkpoint.save(halves)
                        saved = time.monotonic()
            except (Interrupted, InputError) as error:
                if checkpoint.done:
                    checkpoint.bad = source.bad
                    checkpoint.save(halves)
                    kept = f"{sum(half.images for half in halves)} images are in the sums of {checkpoint.folder}: go on with --resume"
                else:
                    kept = "nothing was written"
                message = f"{error}; {kept}" if str(error) else f"interrupted: {kept}"
                raise type(error)(message) from error
        seconds = time.perf_counter() - start
        if ranks.size > 1:
            checkpoint.bad = source.bad
            checkpoint.save(halves)
        counts = ranks.gathered(([half.images for half in halves], {i: source.bad[i] for i in source.bad}))
        for half in halves:
            ranks.sum_(half.data)
            ranks.sum_(half.weight)
        if not ranks.first:
            return {}
        for i, half in enumerate(halves):
            half.images = sum(images_of[i] for images_of, _ in counts)
        bad = {index: why for _, found in counts for index, why in found.items()}
        made = record.facts("reconstruct", str(ranks.device), options)
        made["ranks"] = ranks.size
        result = _finish(halves, source, policy, inside, seed, paths, made, bad, seconds, overwrite)
        checkpoint.remove()
        return result


class _Weighting:
    """What is inserted of an image y with transfer function c and noise of variance s2: c y / s2, with weight c^2 / s2."""

    def __init__(self, variance: Optional[Tensor], groups: Optional[Tensor], premultiplied: bool) -> None:
        self.variance, self.groups, self.premultiplied = variance, groups, premultiplied

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        data, c = batch.spectra, batch.ctf
        if c is None:
            weight = torch.ones_like(data.real)
        else:
            weight = c.square()
            data = data if self.premultiplied else data * c
        if self.variance is not None:
            inverse = self._inverse(batch.index, data)
            data, weight = data * inverse, weight * inverse
        return data, weight

    def _inverse(self, index: Tensor, like: Tensor) -> Tensor:
        """1 / variance at every frequency, `[n, h, w//2+1]`: linear between shells, constant in the corners."""
        box = like.shape[-2]
        radius = radii((box, box))
        last = self.variance.shape[1] - 1
        below = radius.long().clamp(max=last)
        above = (below + 1).clamp(max=last)
        part = (radius - below).clamp(0, 1)
        curve = self.variance[self.groups[index]]
        return (curve[:, below] * (1 - part) + curve[:, above] * part).reciprocal().to(like.device, like.real.dtype)


def _finish(
    halves: list[Insertion],
    source: Source,
    policy: str,
    inside: Optional[Tensor],
    seed: int,
    paths: dict[str, Path],
    made: dict[str, Any],
    bad: dict[int, str],
    seconds: float,
    overwrite: bool,
) -> dict[str, Any]:
    box, pixel_size = source.box, source.pixel_size
    maps = [half.map(policy="radial", last=True) for half in halves]
    curves = correlation.compare(*maps, inside, seed) if all(half.images for half in halves) else None
    counts = [half.images for half in halves]
    whole = halves[0]
    whole.merge_(halves[1])
    if policy == "wiener":
        if curves is None:
            raise InputError("policy wiener needs images in both halves; --policy radial goes without")
        density = whole.map(policy="wiener", snr=whole.signal_to_noise(curves.best))
    else:
        density = whole.map(policy=policy)
    made["images"] = {"in_map": whole.images, "left_out": len(bad), "halves": counts}
    made["left_out_first"] = {str(index): why for index, why in list(sorted(bad.items()))[:20]}
    made["pixel_size"], made["box"] = pixel_size, box
    if curves is not None:
        made["resolution_angstrom"] = {
            f"{threshold:g}": correlation.resolution(curves.best, box, pixel_size, threshold) for threshold in THRESHOLDS
        }
        made["fsc"] = {
            name: [round(float(value), 5) for value in curve]
            for name, curve in curves._asdict().items()
            if curve is not None
        }
    made["seconds"], made["images_per_second"] = round(seconds, 1), round(whole.images / seconds, 1)
    made["peak_gibibytes"] = round(memory.peak() / memory.GIB, 2)
    wanted = [name for name in paths if curves is not None or name != "fsc"]
    with new_files([paths[name] for name in wanted], overwrite) as written:
        to = dict(zip(wanted, written))
        for name, volume in {"map": density, "half1": maps[0], "half2": maps[1]}.items():
            write_map(to[name], volume, pixel_size, record.labels(made))
        if curves is not None:
            drawn = {name: curve for name, curve in curves._asdict().items() if curve is not None}
            plots.draw_fsc(to["fsc"], drawn, box, pixel_size, THRESHOLDS)
        record.write(to["json"], made)
    return made


def _check(oversampling: float, checkpoint_minutes: float) -> None:
    if not 1 <= oversampling <= 3:
        raise InputError(f"--oversampling: expected 1 to 3, got {oversampling:g}")
    if not checkpoint_minutes > 0:
        raise InputError(f"--checkpoint-minutes: expected a number > 0, got {checkpoint_minutes:g}")


def _paths(output: Path) -> dict[str, Path]:
    if output.suffix != ".mrc":
        raise InputError(f"-o: expected the name of a map, ending in .mrc, got {output}")
    names = {"map": ".mrc", "half1": "_half1.mrc", "half2": "_half2.mrc", "fsc": "_fsc.png", "json": ".json"}
    return {name: output.with_name(output.stem + ending) for name, ending in names.items()}


def _halves(particles: Particles, seed: int) -> tuple[Tensor, str]:
    """The half, 0 or 1, of each particle, and how they were chosen."""
    if particles.has(["rlnRandomSubset"]):
        return (particles.numbers("rlnRandomSubset") != 1).long(), "rlnRandomSubset"
    order = torch.randperm(len(particles), generator=torch.Generator().manual_seed(seed))
    return order % 2, f"chance, seed {seed}"


def _read_mask(path: Optional[str], source: Source) -> Optional[Tensor]:
    if path is None:
        return None
    mask, _ = read_map(path)
    if mask.shape != (source.box,) * 3:
        raise InputError(f"{path}: expected a mask of {source.box} pixels along each axis, got {tuple(mask.shape)}")
    if mask.min() < -1e-3 or mask.max() > 1.001 or not mask.any():
        raise InputError(f"{path}: expected values from 0 to 1, got {mask.min():g} to {mask.max():g}")
    return mask.clamp(0, 1).to(source.device, source.dtype)


def image_bytes(source: Source) -> int:
    """That an image takes on its way: as it is read ahead, transformed, weighted."""
    return (16 * source.full**2 + 24 * source.box**2) * (2 if source.dtype == torch.float64 else 1)


def _chunk(source: Source) -> int:
    return int(max(16, min(MOST_IMAGES, BYTES // image_bytes(source))))


def memory_needed(source: Source, oversampling: float, double: bool, chunk: int) -> float:
    frequencies = (oversampling * source.box) ** 3 / 2
    return frequencies * 12 * (2 if double else 1) * 7 + chunk * image_bytes(source) + 0.4 * memory.GIB


def _checkpoint(output: Path, key: str, halves: list[Insertion], resume: bool, ranks: Ranks) -> Checkpoint:
    checkpoint = Checkpoint(output, key)
    found = any(ranks.gathered(checkpoint.exists()))
    if resume and found:
        checkpoint.load(halves, ranks.rank, ranks.size)
    ranks.gathered(None)  # before any of them saves, and so removes
    if found and not resume:
        raise OutputError(f"{checkpoint.folder} was left by an interrupted run: go on with --resume, or remove it")
    if resume and ranks.first:
        say(f"going on from {checkpoint.folder}" if found else f"nothing to resume in {checkpoint.folder}: from the start")
    return checkpoint
