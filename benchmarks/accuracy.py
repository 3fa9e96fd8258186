"""Errors of every interpolation and oversampling against a closed form, shell by shell, with their cost beside them.

`python -m benchmarks --accuracy` runs the study; `python -m benchmarks.accuracy` writes the tables of
results/accuracy.json into docs/accuracy.md.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Optional

import torch
from torch import Tensor

from torch_projectors import backward_project, forward_project, realspace, rotations
from torch_projectors.geometry import INTERPOLATION_CODES
from torch_projectors.spectrum import halved, radii, shell_sums, stored_shape, within

from .problems import DTYPES, OPERATIONS, Arrays, Problem, calls
from .tables import aligned, markdown, rewrite
from .timing import interleaved

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.json"
PAGE = ROOT / "docs" / "accuracy.md"

OVERSAMPLING = (1.0, 1.5, 2.0, 3.0)
CHOICES = list(itertools.product(INTERPOLATION_CODES, OVERSAMPLING))
WIDTH = 0.7  # of a Gaussian, in voxels: its transform at Nyquist is 9 percent of that at 0
MARGIN = 5  # widths between the centre of a Gaussian and the rim of the particle


@dataclass(frozen=True)
class Study:
    box: int = 64
    diameter: float = 0.7  # of the particle, in boxes
    diameters: tuple[float, ...] = (0.5, 0.7, 0.9)
    gaussians: int = 100
    poses: int = 100
    inserted: tuple[int, ...] = (500, 2000)
    checked: int = 5  # poses of the direct sum
    timed: int = 256


QUICK = Study(box=32, gaussians=20, poses=10, inserted=(50, 200), checked=2, timed=16)


class Particle(NamedTuple):
    """Gaussians of one width, in voxels from the centre of the box."""

    masses: Tensor  # [G]
    centres: Tensor  # [G, 3], (x, y, z)


def particle(study: Study, diameter: float, device: Optional[torch.device] = None) -> Particle:
    """Gaussians drawn uniformly in a ball, that of another diameter being the same, scaled."""
    generator = torch.Generator().manual_seed(0)
    options = {"generator": generator, "dtype": torch.float64}
    masses = 0.5 + torch.rand(study.gaussians, **options)
    directions = torch.nn.functional.normalize(torch.randn(study.gaussians, 3, **options), dim=-1)
    radius = diameter * study.box / 2 - MARGIN * WIDTH
    centres = radius * torch.rand(study.gaussians, 1, **options) ** (1 / 3) * directions
    return Particle(masses.to(device), centres.to(device))


def voxels(what: Particle, box: int) -> Tensor:
    """The Gaussians at the voxels: [box, box, box]. Beyond the box, nothing is left of them."""
    x = torch.arange(box, dtype=torch.float64, device=what.masses.device) - box // 2
    along = torch.exp(-(x - what.centres[..., None]).square() / (2 * WIDTH**2))
    along = along / (math.sqrt(2 * math.pi) * WIDTH)
    return torch.einsum("g,gz,gy,gx->zyx", what.masses, along[:, 2], along[:, 1], along[:, 0])


def transform(what: Particle, f: Tensor) -> Tensor:
    """Fourier transform of the voxels at any frequencies f `[K, 3]` in cycles per voxel, |f| <= 1/2 along each axis.

    By Poisson's formula the sum over all voxels is that of the Gaussian's own transform over its aliases, axis by axis.
    Of the aliases, those from 2.5 cycles per voxel on are below 1e-26.
    """
    aliases = torch.arange(-2, 3, dtype=f.dtype, device=f.device)
    total = what.masses.to(torch.complex128)
    for q, r in zip(f.unbind(-1), what.centres.unbind(-1)):
        envelope = torch.exp(-2 * (math.pi * WIDTH * (q[:, None] + aliases)) ** 2)
        turns = _turn(aliases, r)
        total = total * (envelope.to(turns) @ turns) * _turn(q, r)
    return total.sum(-1)


def direct(volume: Tensor, f: Tensor) -> Tensor:
    """The same by a sum over the voxels of a volume."""
    x = torch.arange(volume.shape[-1], dtype=f.dtype, device=f.device) - volume.shape[-1] // 2
    parts = []
    for some in f.split(256):
        turns = [_turn(q, x) for q in some.unbind(-1)]
        rows = torch.einsum("zyx,kx->zyk", volume.to(turns[0]), turns[0])
        parts.append(torch.einsum("zyk,ky,kz->k", rows, *turns[1:]))
    return torch.cat(parts)


def _turn(frequency: Tensor, place: Tensor) -> Tensor:
    """exp(-2 pi i frequency place), [frequencies, places]."""
    angle = -2 * math.pi * frequency[:, None] * place
    return torch.polar(torch.ones_like(angle), angle)


class Plane:
    """The stored components of an image inside its inscribed circle."""

    def __init__(self, box: int, device: Optional[torch.device] = None) -> None:
        index, k = within((box, box), box / 2)
        self.box = box
        self.index = torch.from_numpy(index).to(device)
        self.k = torch.stack([torch.from_numpy(axis) for axis in k], -1).double().to(device)
        self.shells = (self.k.norm(dim=-1) + 0.5).long()
        once = halved(torch.ones(stored_shape((box, box)), dtype=torch.float64), box)
        self.once = once.to(device).reshape(-1)[self.index]

    def inside(self, images: Tensor) -> Tensor:
        """[P, H, W//2+1] to [P, K]."""
        return images.flatten(-2)[..., self.index]

    def images(self, values: Tensor) -> Tensor:
        """[P, K] to [P, H, W//2+1]."""
        shape = (len(values), *stored_shape((self.box, self.box)))
        return (
            values.new_zeros(len(values), math.prod(shape[1:])).index_copy(1, self.index, values).view(shape)
        )

    def frequencies(self, rotation: Tensor) -> Tensor:
        """Where a slice lies, in cycles per voxel: [K, 3]."""
        return self.k @ rotation[:, :2].T / self.box

    def slices(self, what: Particle, poses: Tensor) -> Tensor:
        """The closed form: [P, K]."""
        return torch.stack([transform(what, self.frequencies(rotation)) for rotation in poses])

    def errors(self, values: Tensor, exact: Tensor) -> Tensor:
        """Root of the error's power by the signal's, each summed over poses and shell: [box//2+1]."""
        power = [
            shell_sums((self.once * x.abs().square()).sum(0), self.shells, self.box // 2 + 1)
            for x in (values - exact, exact)
        ]
        return (power[0] / power[1]).sqrt()


def drawn(poses: int, device: Optional[torch.device] = None) -> Tensor:
    return rotations.random(poses, generator=torch.Generator().manual_seed(1), dtype=torch.float64).to(device)


def projected(
    volume: Tensor, poses: Tensor, interpolation: str, oversampling: float, correction: Optional[str]
) -> Tensor:
    """What `realspace.project` does, without its last step, the transform of the images: [P, H, W//2+1]."""
    box = volume.shape[-1]
    padded = (round(box * oversampling),) * 3
    corrected = realspace.correct_gridding(volume, padded, interpolation, correction)
    spectrum = realspace.to_spectrum(realspace.pad(corrected, padded), 3)
    return forward_project(spectrum, poses, None, (box, box), interpolation, oversampling)


def projections(
    study: Study,
    diameter: float,
    choices: Sequence[tuple[str, float]] = CHOICES,
    device: Optional[torch.device] = None,
) -> Iterator[dict[str, Any]]:
    """Errors of projections of one particle, by shell."""
    plane, poses, what = (
        Plane(study.box, device),
        drawn(study.poses, device),
        particle(study, diameter, device),
    )
    volume, exact = voxels(what, study.box), plane.slices(what, poses)
    for (interpolation, oversampling), correction in itertools.product(choices, ("separable", None)):
        ours = plane.inside(projected(volume, poses, interpolation, oversampling, correction))
        errors = plane.errors(ours, exact)
        yield {
            "interpolation": interpolation,
            "oversampling": oversampling,
            "correction": correction,
            "diameter": diameter,
            "mean": rounded(mean(errors)),
            "errors": [rounded(e) for e in errors.tolist()],
        }


def floor(study: Study, device: Optional[torch.device] = None) -> float:
    """Largest difference, over shells and diameters, between the closed form and the sum over voxels."""
    plane, poses = Plane(study.box, device), drawn(study.checked, device)
    differences = []
    for diameter in study.diameters:
        what = particle(study, diameter, device)
        volume = voxels(what, study.box)
        sums = torch.stack([direct(volume, plane.frequencies(rotation)) for rotation in poses])
        differences.append(plane.errors(sums, plane.slices(what, poses)).max().item())
    return max(differences)


def insertions(
    study: Study, choices: Sequence[tuple[str, float]] = CHOICES, device: Optional[torch.device] = None
) -> Iterator[dict[str, Any]]:
    """Errors of maps made of exact, noise-free slices, by shell.

    `scale` is the median over shells of what a shell has to be divided by to come closest to the particle's; the errors
    are those of the map divided by it.
    """
    plane, what, box = Plane(study.box, device), particle(study, study.diameter, device), study.box
    poses = drawn(max(study.inserted), device)
    images = plane.images(plane.slices(what, poses))
    weights = torch.ones_like(images.real)
    exact = realspace.to_spectrum(voxels(what, box), 3)
    shells, count = (radii((box,) * 3, device) + 0.5).long(), box // 2 + 1

    def inner(a: Tensor, b: Tensor) -> Tensor:
        return shell_sums(halved((a * b.conj()).real, box), shells, count)

    for (interpolation, oversampling), n in itertools.product(choices, study.inserted):
        data, weight = backward_project(
            images[:n], poses[:n], None, None, interpolation, oversampling, weights=weights[:n]
        )
        found = realspace.reconstruct(data, weight, interpolation, oversampling, policy="radial")
        ours = realspace.to_spectrum(found, 3)
        scale = (inner(ours, ours) / inner(ours, exact))[1:-1].median().item()
        off = ours / scale - exact
        errors = (inner(off, off) / inner(exact, exact)).sqrt()
        yield {
            "interpolation": interpolation,
            "oversampling": oversampling,
            "poses": n,
            "scale": rounded(scale),
            "mean": rounded(mean(errors)),
            "errors": [rounded(e) for e in errors.tolist()],
        }


def costs(study: Study, dtype: torch.dtype, device: torch.device, repeats: int) -> list[dict[str, Any]]:
    """Wall time by projection, all choices taking turns, and bytes of the padded half spectrum."""
    turns: dict[tuple[str, float, str], Callable[[], Any]] = {}
    for oversampling in OVERSAMPLING:
        problems = [Problem("3-2", i, study.box, study.timed, oversampling) for i in INTERPOLATION_CODES]
        arrays = Arrays(problems[0], dtype, device)
        for problem in problems:
            for operation, call in calls(problem, arrays).items():
                turns[problem.interpolation, oversampling, operation] = call
    times: dict[tuple[str, float, str], float] = {}
    for operation in OPERATIONS:
        of = {key: call for key, call in turns.items() if key[2] == operation}
        found = interleaved(of, repeats, device)
        times.update({key: t["median"] for key, t in found.items()})
    base = {operation: times["linear", 1.0, operation] for operation in OPERATIONS}
    half = math.prod(stored_shape((study.box,) * 3))
    return [
        {
            "interpolation": interpolation,
            "oversampling": oversampling,
            "ms_per_projection": {
                o: rounded(1e3 * times[interpolation, oversampling, o] / study.timed) for o in OPERATIONS
            },
            "relative": {o: rounded(times[interpolation, oversampling, o] / base[o]) for o in OPERATIONS},
            "memory": rounded(math.prod(stored_shape((round(oversampling * study.box),) * 3)) / half),
        }
        for interpolation, oversampling in CHOICES
    ]


def mean(errors: Tensor) -> float:
    """Over all shells but that of the mean and that which the cutoff halves."""
    return errors[1:-1].mean().item()


def rounded(x: float) -> float:
    return float(f"{x:.4g}")


def run(
    study: Study, dtype: str, device: torch.device, repeats: int, progress: Callable[[str], None]
) -> dict[str, Any]:
    progress("the closed form against a sum over voxels")
    document: dict[str, Any] = {"study": asdict(study), "floor": float(f"{floor(study, device):.1e}")}
    rows = []
    for diameter in study.diameters:
        progress(f"projections of a particle of {diameter:g} of the box, {study.poses} poses")
        rows += projections(study, diameter, device=device)
    for row in rows:
        if row["diameter"] != study.diameter:
            del row["errors"]
    document["projection"] = rows
    document["insertion"] = []
    for row in insertions(study, device=device):
        progress("insertion, {interpolation}, oversampling {oversampling:g}, {poses} poses".format(**row))
        document["insertion"].append(row)
    progress(f"time, box {study.box}, {study.timed} poses")
    document["cost"] = costs(study, DTYPES[dtype], device, repeats)
    return document


def only(rows: list[dict[str, Any]], **values: Any) -> dict[str, Any]:
    (row,) = [row for row in rows if all(row[name] == value for name, value in values.items())]
    return row


def percent(x: float) -> str:
    return f"{100 * x:.0f}" if x >= 0.1 else f"{100 * x:.2g}"


def tables(document: dict[str, Any]) -> dict[str, list[list[str]]]:
    """Named tables, heads first."""
    study, first = document["study"], ["interpolation", "oversampling"]
    last = study["box"] // 2
    shells = [*[s for s in (1, 2, 4, 8, 16, 24) if s < last - 1], last - 1, last]
    poses = study["inserted"]
    found = {
        "choices": [
            [*first, "projection %", "uncorrected %", "map %", "gather", "scatter", "gradient", "memory"]
        ],
        "shells": [[*first, *[f"shell {s}" for s in shells]]],
        "diameters": [[*first, *[f"diameter {d:g}" for d in study["diameters"]]]],
        "maps": [[*first, *[f"{n} images" for n in poses], "brightness"]],
    }
    for interpolation, oversampling in CHOICES:
        choice = {"interpolation": interpolation, "oversampling": oversampling}
        errors = {
            (d, c): only(document["projection"], **choice, diameter=d, correction=c)
            for d, c in itertools.product(study["diameters"], ("separable", None))
        }
        corrected, uncorrected = [errors[study["diameter"], c] for c in ("separable", None)]
        maps = [only(document["insertion"], **choice, poses=n) for n in poses]
        cost = only(document["cost"], **choice)
        rows = {
            "choices": [
                *[percent(row["mean"]) for row in (corrected, uncorrected, maps[-1])],
                *[f"{cost['relative'][operation]:.2g}" for operation in OPERATIONS],
                f"{cost['memory']:.2g}",
            ],
            "shells": [percent(corrected["errors"][s]) for s in shells],
            "diameters": [percent(errors[d, "separable"]["mean"]) for d in study["diameters"]],
            "maps": [*[percent(m["mean"]) for m in maps], f"{maps[-1]['scale']:.2f}"],
        }
        for name, row in rows.items():
            found[name].append([interpolation, f"{oversampling:g}", *row])
    return found


TITLES = {
    "choices": "percent error, mean over shells; time and memory relative to linear at oversampling 1",
    "shells": "percent error of projections by shell",
    "diameters": "percent error of projections by diameter of the particle, mean over shells",
    "maps": "percent error of maps, mean over shells, and what their brightness was divided by for it",
}


def show(document: dict[str, Any]) -> None:
    for name, rows in tables(document).items():
        print(f"{TITLES[name]}\n\n{aligned(rows)}\n")
    print(f"closed form and sum over voxels differ by {document['floor']:.0e}")


if __name__ == "__main__":
    document = json.loads(RESULTS.read_text())["results"]
    rewrite(PAGE, {name: markdown(rows) for name, rows in tables(document).items()})
