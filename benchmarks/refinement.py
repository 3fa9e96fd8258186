"""Refinement of poses beside other ways to descend: errors that are left, and time, on one problem.

All go through the same cutoffs, see the same images, cropped and weighted alike, and descend in the same objective:
`torch_projectors.refinement` by Levenberg and Marquardt's method; BFGS with an inverse Hessian for each particle, which
in five unknowns is what L-BFGS would be with a memory of five; and Adam. The last two take gradients through
`forward_project`.
"""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any, Callable, NamedTuple

import torch
from torch import Tensor

from torch_projectors import forward_project, realspace, rotations
from torch_projectors.demo.molecule import Molecule
from torch_projectors.refinement import EXTENT, LONGEST_STEP, Refiner, Stage, cropped, whitened
from torch_projectors.spectrum import radii

from .tables import aligned
from .timing import synchronize


@dataclass(frozen=True)
class Study:
    """Images of a molecule in a box, times CTFs, with white noise of variance 1 / snr times that of the signal.

    starts: standard deviations, along each axis, of the errors to start from, in degrees and pixels.
    found: degrees and pixels within which a particle counts as found.
    """

    box: int = 128
    particles: int = 256
    snr: float = 0.1
    starts: tuple[tuple[float, float], ...] = ((2.0, 1.0), (4.0, 2.0), (8.0, 4.0))
    found: tuple[float, float] = (1.0, 0.5)


QUICK = Study(box=32, particles=16, snr=1.0, starts=((4.0, 0.5),))


class Data(NamedTuple):
    volume: Tensor
    images: Tensor
    ctf: Tensor
    rotations: Tensor
    shifts: Tensor


class Poses(NamedTuple):
    rotations: Tensor
    shifts: Tensor

    def moved(self, turns: Tensor, moves: Tensor) -> Poses:
        return Poses(self.rotations @ rotations.from_vectors(turns), self.shifts + moves)


def simulated(study: Study, device: torch.device) -> Data:
    n, count, generator = study.box, study.particles, torch.Generator().manual_seed(0)
    molecule = Molecule.fold(n, generator=generator)
    true = rotations.random(count, generator=generator)
    shifts = 2 * torch.randn(count, 2, generator=generator)
    clean = torch.cat([molecule.images(r, s, n) for r, s in zip(true.split(32), shifts.split(32))])
    # Some five to fifteen turns of phase from the centre to Nyquist.
    defocus = 10 + 20 * torch.rand(count, 1, 1, generator=generator)
    ctf = torch.sin(0.1 + math.pi * defocus * (2 * radii((n, n)).float() / n) ** 2)
    signal = realspace.from_spectrum(realspace.to_spectrum(clean, 2) * ctf, (n, n))
    noise = (signal.var((1, 2)).mean() / study.snr).sqrt()
    images = realspace.to_spectrum(signal + noise * torch.randn(signal.shape, generator=generator), 2)
    return Data(*[x.to(device) for x in (molecule.map(n), images, ctf, true, shifts)])


def marquardt(refiner: Refiner, data: Data, start: Poses, steps: int) -> Poses:
    refiner.steps = steps
    return Poses(*refiner(data.images, *start, ctf=data.ctf)[:2])


Objective = Callable[[Tensor, Tensor], Tensor]


def staged(descend: Callable[[Objective, Tensor, int], Tensor]) -> Callable[..., Poses]:
    """A descent of u [P, 5], turns and moves in radians of phase at the cutoff, from zeros, stage by stage."""

    def run(refiner: Refiner, data: Data, start: Poses, steps: int) -> Poses:
        n, poses = data.images.shape[-2], start
        stages = [Stage(c, n, refiner.oversampling, data.images) for c in refiner.schedule(n)]
        spectra, filters = whitened(data.images, data.ctf, None, stages[-1])
        filters = filters[..., 0]
        for stage in stages:
            y, c = cropped(spectra, stage.size), cropped(filters, stage.size)
            unit = torch.tensor([1 / EXTENT] * 3 + [n] * 2).to(c) / (2 * math.pi * stage.cutoff)

            def moved(u: Tensor, which: Tensor, poses: Poses = poses, unit: Tensor = unit) -> Poses:
                turns, moves = (u * unit).split([3, 2], -1)
                return Poses(*[x[which] for x in poses]).moved(turns, moves)

            def objective(
                u: Tensor,
                which: Tensor,
                stage: Stage = stage,
                y: Tensor = y,
                c: Tensor = c,
                moved: Callable[..., Poses] = moved,
            ) -> Tensor:
                """Of particles `which`, all but a constant of minus the log likelihood."""
                turned, shifts = moved(u, which)
                slices = c[which] * forward_project(
                    refiner.spectrum,
                    turned,
                    shifts * stage.size / n,
                    (stage.size, stage.size),
                    refiner.interpolation,
                    refiner.oversampling,
                    stage.cutoff,
                    gradient="stored",
                )
                flat = torch.view_as_real(slices).flatten(1)
                overlap = (torch.view_as_real(y[which]).flatten(1) * flat).sum(1)
                return -overlap * overlap.abs() / flat.square().sum(1)

            u = descend(objective, torch.zeros(len(y), 5).to(c), steps)
            poses = moved(u, torch.arange(len(y), device=u.device))
        return poses

    return run


@staged
def adam(objective: Objective, u: Tensor, steps: int) -> Tensor:
    u, everyone = u.requires_grad_(), torch.arange(len(u), device=u.device)
    optimizer = torch.optim.Adam([u], lr=0.3, betas=(0.8, 0.95))
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, steps)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(u, everyone).sum().backward()
        optimizer.step()
        schedule.step()
    return u.detach()


@staged
def bfgs(objective: Objective, u: Tensor, steps: int) -> Tensor:
    def evaluated(u: Tensor, which: Tensor) -> tuple[Tensor, Tensor]:
        u = u.requires_grad_()
        value = objective(u, which)
        return value.detach(), torch.autograd.grad(value.sum(), u)[0]

    active = torch.arange(len(u), device=u.device)
    value, slope = evaluated(u.clone(), active)
    # At first, steps of a third of a radian down the slope.
    inverse = torch.eye(5).to(u) * (0.3 / slope.norm(dim=-1).clamp(min=1e-30))[:, None, None]
    part = torch.ones_like(value)
    for _ in range(steps):
        step = -(inverse[active] @ slope[active][..., None])[..., 0]
        length = step.norm(dim=-1)
        step = step * ((LONGEST_STEP / length).clamp(max=1) * part[active])[:, None]
        left = step.norm(dim=-1) > 0.05
        active, step = active[left], step[left]
        if not len(active):
            break
        new_value, new_slope = evaluated(u[active] + step, active)
        enough = new_value <= value[active] + 1e-4 * (step * slope[active]).sum(-1)
        part[active] = torch.where(enough, 1, 0.3 * part[active])
        moved, s, y = active[enough], step[enough], (new_slope - slope[active])[enough]
        curvature = (s * y).sum(-1)
        bent = curvature > 1e-3 * s.norm(dim=-1) * y.norm(dim=-1)
        rho = torch.where(bent, 1 / torch.where(bent, curvature, 1), 0)[:, None, None]
        project = torch.eye(5).to(u) - rho * s[:, :, None] * y[:, None, :]
        inverse[moved] = project @ inverse[moved] @ project.mT + rho * s[:, :, None] * s[:, None, :]
        u[moved] = u[moved] + s
        value[moved], slope[moved] = new_value[enough], new_slope[enough]
    return u


METHODS = {
    ("Levenberg-Marquardt", 12): marquardt,
    ("BFGS", 12): bfgs,
    ("BFGS", 40): bfgs,
    ("Adam", 12): adam,
    ("Adam", 40): adam,
}


def run(
    study: Study, device: torch.device, repeats: int, progress: Callable[[str], None] = lambda text: None
) -> dict[str, Any]:
    data = simulated(study, device)
    rows = []
    for degrees, pixels in study.starts:
        generator = torch.Generator().manual_seed(1)
        turn = math.radians(degrees) * torch.randn(study.particles, 3, generator=generator)
        move = pixels * torch.randn(study.particles, 2, generator=generator)
        start = Poses(data.rotations, data.shifts).moved(turn.to(device), move.to(device))
        refiner = Refiner(data.volume, degrees=degrees, pixels=pixels)
        times: dict[Any, list[float]] = {method: [] for method in METHODS}
        results = {}
        for turn_of_all in range(repeats + 1):  # methods take turns, after a warm-up
            for (name, steps), method in METHODS.items():
                progress(
                    f"{degrees:g} degrees, {pixels:g} pixels, round {turn_of_all}: {name}, {steps} steps"
                )
                synchronize(device)
                begin = time.perf_counter()
                results[name, steps] = method(refiner, data, start, steps)
                synchronize(device)
                times[name, steps].append(time.perf_counter() - begin)
        for (name, steps), poses in results.items():
            turns = torch.rad2deg(rotations.angles_between(data.rotations, poses.rotations))
            moves = (data.shifts - poses.shifts).norm(dim=-1)
            found = (turns < study.found[0]) & (moves < study.found[1])
            rows.append(
                {
                    "degrees": degrees,
                    "pixels": pixels,
                    "method": name,
                    "steps": steps,
                    "ms_per_particle": 1e3 * statistics.median(times[name, steps][1:]) / study.particles,
                    "turn": turns.median().item(),
                    "move": moves.median().item(),
                    "found": found.double().mean().item(),
                }
            )
    return {"study": asdict(study), "rows": rows}


def table(results: dict[str, Any]) -> list[list[str]]:
    rows = [["start", "method", "steps a cutoff", "ms/particle", "degrees left", "pixels left", "found"]]
    for r in results["rows"]:
        rows.append(
            [
                f"{r['degrees']:g} degrees, {r['pixels']:g} px",
                r["method"],
                str(r["steps"]),
                f"{r['ms_per_particle']:.2f}",
                f"{r['turn']:.3f}",
                f"{r['move']:.3f}",
                f"{100 * r['found']:.1f} %",
            ]
        )
    return rows


def show(results: dict[str, Any]) -> None:
    study = results["study"]
    degrees, pixels = study["found"]
    print(
        f"{study['particles']} images of {study['box']} pixels with CTF, signal / noise variance {study['snr']:g}.\n"
        f"Medians of errors left; found: within {degrees:g} degrees and {pixels:g} pixels.\n"
    )
    print(aligned(table(results)))
