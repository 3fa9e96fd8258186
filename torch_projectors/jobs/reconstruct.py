"""A map from particles on disk, read once: halves, their correlation, and the filtered sum."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Literal, Optional, Union

import torch
from torch import Tensor

from .. import symmetry
from ..errors import InputError
from ..extras import need
from ..files import Particles, read_mask, write_map
from ..insertion import Insertion
from ..outputs import check_new, check_space, new_files
from . import correlation, memory, noise, plots, record
from .batches import Batch, Source
from .checkpoint import Checkpoint, fingerprint
from .correlation import Curves
from .options import check_oversampling, check_seed
from .pieces import finishing, keeping, work_through
from .progress import say
from .ranks import Ranks, joined

# Images at once: what caches and new memory make fastest, and no more than this many bytes.
MOST_IMAGES, BYTES = 256, 384 * 2**20
# Of 12 bytes a frequency, or 24 in double precision, when most are held.
VOLUMES = 6
# The sums depend on these options, and on the STAR file.
MATTER = (
    "images",
    "pixel_size",
    "oversampling",
    "interpolation",
    "no_ctf",
    "noise_by",
    "point_group",
    "seed",
    "double",
    "expanded",
)


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
    expanded: bool = False,
    checkpoint_minutes: float = 10.0,
    resume: bool = False,
    overwrite: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """Reconstruct, and write MAP.mrc, MAP_half1.mrc, MAP_half2.mrc, MAP_fsc.png and MAP.json.

    Memory: 12 bytes for each of (oversampling * box)^3 / 2 frequencies in each of two halves (24 with `double`), three
    times that at most while the maps are made, and about 0.8 GiB for images and programs. Not more for more images.

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
        expanded: images may be there at several poses each, as symmetry expansion writes them: all in the same half.
        checkpoint_minutes: how often sums are saved, for `resume`.
        resume: go on where an interrupted run of the same options stopped.
        overwrite: replace earlier results.
        device: "cpu", "cuda", "cuda:1" ...

    Returns:
        What the JSON file holds.
    """
    options = {name: value for name, value in locals().items() if name not in ("resume", "overwrite")}
    paths = _paths(Path(output))
    need("matplotlib.figure")
    check_seed(seed)
    start = time.perf_counter()
    with joined(device) as ranks:
        if ranks.first:
            check_new(list(paths.values()), overwrite, [star, mask])
        particles = Particles.read(star, images=images, pixel_size=pixel_size)
        dtype = torch.float64 if double else torch.float32
        source = Source(
            particles,
            box=box,
            with_ctf=not no_ctf,
            skip_bad=skip_bad,
            expanded=expanded,
            device=ranks.device,
            dtype=dtype,
        )
        operators = _operators(point_group).to(ranks.device)
        check_oversampling(oversampling, source.box, most=3)
        inside = None
        if mask is not None:
            inside = read_mask(mask, (source.box,) * 3).to(ranks.device, dtype)
        halves_of, halves_by = _halves(particles, seed, expanded)
        if policy == "wiener" and len(halves_of[source.good].unique()) < 2:
            raise InputError("--policy wiener: expected images in both halves; --policy radial goes without")
        check_space(paths["map"], 3 * 4 * source.box**3)
        piece = _piece(source)
        needed = memory_needed(source, oversampling, piece)
        memory.check(needed, _fixed(source, piece), source.box, oversampling, ranks.device)
        say(
            f"{len(particles)} particles of {source.full} pixels; voxels of {source.pixel_size:g} Å; "
            f"halves by {halves_by}"
        )

        sums = [
            Insertion((source.box,) * 2, oversampling, interpolation, device=ranks.device, dtype=dtype)
            for _ in range(2)
        ]
        matter = {name: options[name] for name in MATTER}
        key = fingerprint([Path(star)], {**matter, "box": source.box, "piece": piece}, source.stacks())
        checkpoint = Checkpoint.opened(paths["map"], key, resume, overwrite, ranks)
        for earlier in checkpoint.results:
            for insertion, (data, weight, count) in zip(sums, earlier):
                insertion.data += data.to(ranks.device)
                insertion.weight += weight.to(ranks.device)
                insertion.images += count
        weights = None
        if noise_by is not None:
            groups, names = particles.groups(noise_by)
            say(f"noise of {len(names)} groups by {noise_by}")
            variance = noise.by_group(source, groups, ranks.first)
            # Weights about 1, as without: small ones are told by their size.
            weights = noise.Weights(groups, variance / variance.mean())
        premultiplied = particles.premultiplied()
        rotations, shifts = particles.poses()
        shifts = shifts * (source.box / source.full)
        # The highest frequency of a cropped image stands for one side alone.
        cutoff = source.box / 2 if source.box == source.full else source.box / 2 - 0.5

        def insert(batch: Batch) -> None:
            data, weight = _weighted(batch, weights, premultiplied)
            for half, insertion in enumerate(sums):
                chosen = torch.nonzero(halves_of[batch.index] == half).flatten()
                where = batch.index[chosen]
                chosen = chosen.to(data.device)
                pose = rotations[where].to(data.device), shifts[where].to(data.device)
                insertion.add(data[chosen], weight[chosen], *pose, cutoff, operators=operators)

        work_through(
            "inserting",
            torch.arange(len(particles)).split(piece),
            source,
            insert,
            lambda: [(insertion.data.cpu(), insertion.weight.cpu(), insertion.images) for insertion in sums],
            checkpoint,
            checkpoint_minutes,
            ranks,
        )
        seconds = time.perf_counter() - start
        with keeping(checkpoint):
            bad, counts = _reduce(sums, source.bad, ranks)
        if not ranks.first:
            return {}
        made = record.facts("reconstruct", str(ranks.device), options)
        made["ranks"] = ranks.size
        made["images"] = {"in_map": sum(counts), "left_out": len(bad), "halves": counts}
        made["left_out_first"] = {str(index): why for index, why in sorted(bad.items())[:20]}
        made["seconds"], made["images_per_second"] = round(seconds, 1), round(sum(counts) / seconds, 1)
        with finishing(checkpoint, sum(counts), bad):
            if policy == "wiener" and not all(counts):
                raise InputError(
                    f"--policy wiener: expected images in both halves, got {counts[0]} and {counts[1]}"
                )
            volumes, curves = _maps(sums, counts, policy, inside, seed)
            _write(volumes, curves, source, paths, made, overwrite)
        say(_summary(made, paths["map"]))
        return made


def _reduce(sums: list[Insertion], bad: dict[int, str], ranks: Ranks) -> tuple[dict[int, str], list[int]]:
    """The sums of all processes, on the first; particles left out, and images in each half, of all."""
    everyone = ranks.collected((bad, [insertion.images for insertion in sums]))
    for insertion in sums:
        ranks.sum_(insertion.data)
        ranks.sum_(insertion.weight)
    together = {index: why for theirs, _ in everyone for index, why in theirs.items()}
    return together, [sum(images[half] for _, images in everyone) for half in range(2)]


def _weighted(batch: Batch, weights: Optional[noise.Weights], premultiplied: bool) -> tuple[Tensor, Tensor]:
    """What is inserted of an image y with transfer function c, noise of variance s2: c y / s2, of weight c^2 / s2."""
    data, c = batch.spectra, batch.ctf
    if c is None:
        weight = torch.ones_like(data.real)
    else:
        weight = c.square()
        data = data if premultiplied else data * c
    if weights is not None:
        inverse = weights(batch.index, data)
        data, weight = data * inverse, weight * inverse
    return data, weight


def _maps(
    sums: list[Insertion], counts: list[int], policy: str, inside: Optional[Tensor], seed: int
) -> tuple[dict[str, Tensor], Optional[Curves]]:
    """The maps by name, and how the halves agree, if both have images. Nothing can be added to the sums after."""
    halves = [insertion.map(policy="radial", last=True) for insertion in sums]
    curves = correlation.compare(*halves, inside, seed) if all(counts) else None
    whole = sums[0]
    whole.merge_(sums.pop())
    if policy != "wiener":
        density = whole.map(policy=policy)
    else:
        density = whole.map(policy="wiener", snr=whole.signal_to_noise(curves.best))
    return {"map": density, "half1": halves[0], "half2": halves[1]}, curves


def _write(
    volumes: dict[str, Tensor],
    curves: Optional[Curves],
    source: Source,
    paths: dict[str, Path],
    made: dict[str, Any],
    overwrite: bool,
) -> None:
    """All files, or none; `made` gets what the maps tell."""
    made["pixel_size"], made["box"] = source.pixel_size, source.box
    if curves is not None:
        made.update(curves.facts(source.box, source.pixel_size))
    made["peak_gibibytes"] = round(memory.peak() / memory.GIB, 2)
    names = [name for name in paths if name != "fsc" or curves is not None]
    with new_files([paths[name] for name in names], overwrite) as written:
        to = dict(zip(names, written))
        for name, volume in volumes.items():
            write_map(to[name], volume, source.pixel_size, record.labels(made))
        if curves is not None:
            plots.draw_fsc(to["fsc"], curves, source.box, source.pixel_size)
        record.write(to["json"], made)


def _summary(made: dict[str, Any], path: Path) -> str:
    resolutions = made.get("resolution_angstrom", {}).items()
    found = ", ".join(f"{angstrom:.2f} Å at FSC {threshold}" for threshold, angstrom in resolutions)
    left_out = f", {made['images']['left_out']} left out" if made["images"]["left_out"] else ""
    return f"{path}: {made['images']['in_map']} images{left_out}{': ' + found if found else ''}"


def _operators(point_group: str) -> Tensor:
    try:
        return symmetry.operators(point_group)
    except ValueError as error:
        raise InputError(f"--point-group: {error}") from error


def _paths(output: Path) -> dict[str, Path]:
    if output.suffix != ".mrc":
        raise InputError(f"-o: expected the name of a map, ending in .mrc, got {output}")
    names = {"map": ".mrc", "half1": "_half1.mrc", "half2": "_half2.mrc", "fsc": "_fsc.png", "json": ".json"}
    return {name: output.with_name(output.stem + ending) for name, ending in names.items()}


def _halves(particles: Particles, seed: int, expanded: bool) -> tuple[Tensor, str]:
    """The half, 0 or 1, of each particle, and how they were chosen: by image, of which there may be several poses."""
    image = particles.same_images() if expanded else torch.arange(len(particles))
    count = int(image.max()) + 1
    if particles.has(["rlnRandomSubset"]):
        halves = (particles.numbers("rlnRandomSubset") != 1).long()
        of_image = torch.zeros(count, dtype=torch.int64).scatter_(0, image, halves)
        torn = torch.nonzero(of_image[image] != halves)
        if len(torn):
            name = particles.table["rlnImageName"].iloc[int(torn[0])]
            raise InputError(f"{particles.path}: expected one rlnRandomSubset for all poses of {name}")
        return halves, "rlnRandomSubset"
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return order[image] % 2, f"chance, seed {seed}"


def image_bytes(source: Source) -> int:
    """That an image takes on its way: as it is read ahead, transformed, weighted."""
    return (16 * source.full**2 + 24 * source.box**2) * (2 if source.dtype == torch.float64 else 1)


def _piece(source: Source) -> int:
    return int(max(16, min(MOST_IMAGES, BYTES // image_bytes(source))))


def _fixed(source: Source, piece: int) -> float:
    return piece * image_bytes(source) + 0.4 * memory.GIB


def memory_needed(source: Source, oversampling: float, piece: int) -> float:
    """At most, while the maps are made; it does not grow with the number of images."""
    frequencies = (oversampling * source.box) ** 3 / 2
    return frequencies * VOLUMES * (24 if source.dtype == torch.float64 else 12) + _fixed(source, piece)
