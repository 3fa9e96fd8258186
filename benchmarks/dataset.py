"""From files to maps on a data set made for it: rates, memory, resolution, errors of refined poses, and processes.

`python -m benchmarks.dataset --folder FOLDER --json FILE` makes 20,000 images with transfer functions and noise in the
folder (1.3 GB) and runs the commands on them, each as a user would. `--count` makes fewer. Without a folder it writes
the tables of the stored results into docs/files.md.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Optional

import torch

from torch_projectors import realspace, rotations
from torch_projectors.demo.molecule import Molecule
from torch_projectors.files import Particles, read_map, write_map

from .machine import describe
from .tables import markdown, rewrite

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "dataset.json"
PAGE = ROOT / "docs" / "files.md"

BOX, PIXEL_SIZE = 128, 1.5
DEGREES, PIXELS, SNR = 4.0, 2.0, 0.1


def command(*arguments: str, ranks: int = 1, threads: Optional[int] = None) -> float:
    """Run `torch-projectors` in a process of its own, or in several; returns seconds."""
    start = time.perf_counter()
    launcher = (
        ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"] if ranks > 1 else []
    )
    threads = threads or max(1, (os.cpu_count() or 1) // ranks)
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    subprocess.run(
        [sys.executable, *launcher, "-m", "torch_projectors", *arguments], check=True, env=environment
    )
    return time.perf_counter() - start


def made(path: Path) -> dict[str, Any]:
    return json.loads(path.with_suffix(".json").read_text())


def make(folder: Path, count: int) -> tuple[Path, Path, Path]:
    """The map, particles at their true poses, and the same at disturbed ones."""
    truth, images = folder / "truth.mrc", folder / "images.mrcs"
    write_map(truth, Molecule.fold(BOX, generator=torch.Generator().manual_seed(0)).map(BOX), PIXEL_SIZE)
    options = f"--count {count} --shifts 3 --defocus 8000 20000 --snr {SNR} --overwrite".split()
    command("project", str(truth), "-o", str(images), *options)
    particles = Particles.read(images.with_suffix(".star"))
    turns, moves = particles.poses()
    generator = torch.Generator().manual_seed(1)
    turns = turns @ rotations.from_vectors(
        math.radians(DEGREES) * torch.randn(count, 3, generator=generator, dtype=torch.float64)
    )
    moves = moves + PIXELS * torch.randn(count, 2, generator=generator, dtype=torch.float64)
    disturbed = folder / "disturbed.star"
    particles.with_poses(turns, moves).write(disturbed)
    return truth, images.with_suffix(".star"), disturbed


def errors(star: Path, truth: Path) -> dict[str, float]:
    (turns, moves), (true_turns, true_moves) = (Particles.read(path).poses() for path in (star, truth))
    return {
        "degrees_median": torch.rad2deg(rotations.angles_between(turns, true_turns)).median().item(),
        "pixels_median": (moves - true_moves).norm(dim=-1).median().item(),
    }


def of_the_table(star: Path, folder: Path) -> dict[str, float]:
    """Seconds by row that every process needs for a table of ten times as many rows, beside the images."""
    particles = Particles.read(star)
    many = folder / "many.star"
    particles.at(torch.arange(len(particles)).repeat(10)).write(many)
    start = time.perf_counter()
    read = Particles.read(many)
    read.poses(), read.ctf()
    seconds = time.perf_counter() - start
    return {"rows": len(read), "microseconds_a_row": round(1e6 * seconds / len(read), 1)}


def reached(path: Path, truth: Path) -> float:
    """The resolution in Å at which a map's correlation with the truth falls below 0.5."""
    curve = realspace.fsc(read_map(path)[0], read_map(truth)[0])
    return BOX * PIXEL_SIZE / realspace.fsc_crossing(curve, 0.5).item()


def difference(path: Path, other: Path) -> float:
    """The largest, by the largest value."""
    a, b = read_map(path)[0], read_map(other)[0]
    return ((a - b).abs().max() / b.abs().max()).item()


def run(folder: Path, count: int, ranks: list[int], refined_by: Optional[list[int]] = None) -> dict[str, Any]:
    results: dict[str, Any] = {
        "machine": describe(torch.device("cpu"), "cpu"),
        "count": count,
        "box": BOX,
        "snr": SNR,
    }
    truth, star, disturbed = make(folder, count)
    results["project"] = {"images_per_second": round(count / made(folder / "images.mrcs")["seconds"], 1)}

    def reconstruct(
        name: str, particles: Path, *options: str, ranks: int = 1, threads: Optional[int] = None
    ) -> dict[str, Any]:
        path = folder / f"{name}.mrc"
        seconds = command(
            "reconstruct", str(particles), "-o", str(path), "--overwrite", *options, ranks=ranks
        )
        facts = made(path)
        return {
            "images_per_second": facts["images_per_second"],
            "seconds_in_all": round(seconds, 1),
            "peak_gibibytes": facts["peak_gibibytes"],
            "resolution_of_halves": facts["resolution_angstrom"],
            "resolution_with_truth": round(reached(path, truth), 3),
        }

    results["reconstruct"] = reconstruct("map", star)
    results["reconstruct_double"] = reconstruct("map_double", star, "--double")
    for n in ranks:
        facts = reconstruct(f"map_{n}", star, ranks=n)
        facts["difference_from_one_process"] = difference(folder / f"map_{n}.mrc", folder / "map.mrc")
        results[f"reconstruct_{n}_processes"] = facts
    results["table"] = of_the_table(star, folder)
    results["weak"] = {}
    particles = Particles.read(star)
    for n in sorted({1, *ranks}):
        some = folder / f"some_{n}.star"
        particles.at(torch.arange(count * n // max(1, *ranks))).write(some)
        results["weak"][str(n)] = reconstruct(f"map_weak_{n}", some, ranks=n, threads=1)["images_per_second"]
    results["disturbed"] = errors(disturbed, star)
    results["reconstruct_disturbed"] = reconstruct("map_disturbed", disturbed)
    for n in refined_by or [1]:
        refined = folder / f"refined_{n}.star"
        seconds = command(
            "refine", str(disturbed), "--map", str(truth), "-o", str(refined), "--overwrite", ranks=n
        )
        facts = made(refined)
        results[f"refine_{n}_processes"] = {
            "images_per_second": facts["images_per_second"],
            "seconds_in_all": round(seconds, 1),
            "peak_gibibytes": facts["peak_gibibytes"],
            **errors(refined, star),
        }
        if n != 1:
            turned = [Particles.read(folder / f"refined_{i}.star").poses() for i in (1, n)]
            results[f"refine_{n}_processes"]["largest_difference_degrees"] = torch.rad2deg(
                rotations.angles_between(turned[0][0], turned[1][0]).max()
            ).item()
    results["reconstruct_refined"] = reconstruct("map_refined", folder / "refined_1.star")
    return results


def texts(results: dict[str, Any]) -> dict[str, str]:
    """The tables of the page, by name."""
    rows = [["", "images/s", "peak memory, GiB", "found"]]
    rows.append(["`project`", f"{results['project']['images_per_second']:.0f}", "", ""])
    for name, label in (
        ("reconstruct", "`reconstruct`"),
        ("reconstruct_double", "`reconstruct --double`"),
        ("reconstruct_disturbed", "`reconstruct`, disturbed poses"),
        ("refine_1_processes", "`refine`"),
        ("reconstruct_refined", "`reconstruct`, refined poses"),
    ):
        facts = results[name]
        if "degrees_median" in facts:
            before = results["disturbed"]
            told = " and ".join(
                f"{before[key]:.2f} to {facts[key]:.2f} {unit}"
                for key, unit in (("degrees_median", "degrees"), ("pixels_median", "pixels"))
            )
        else:
            told = f"{facts['resolution_with_truth']:.2f} Å at FSC 0.5 with the true map"
        rows.append([label, f"{facts['images_per_second']:.0f}", f"{facts['peak_gibibytes']:.2f}", told])
    shared = [["processes", "`reconstruct`, images/s", "`refine`, images/s", "weak: images/s"]]
    for n in (1, 2, 4):
        one = results["reconstruct" if n == 1 else f"reconstruct_{n}_processes"]["images_per_second"]
        two = results[f"refine_{n}_processes"]["images_per_second"]
        shared.append([str(n), *(f"{rate:.0f}" for rate in (one, two, results["weak"][str(n)]))])
    machine = results["machine"]
    return {
        "dataset": f"{results['count']} images, {machine['threads']} threads, {machine['cpu']}; median errors.\n\n"
        + markdown(rows)
        + f"\n\nThe table itself takes {results['table']['microseconds_a_row']:.0f} µs a row in every process.",
        "scaling": "The same work by more processes, which share these threads; and (weak) a quarter of the images "
        "for each process of one thread:\n\n" + markdown(shared),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--count", type=int, default=20000)
    parser.add_argument("--ranks", type=int, nargs="*", default=[2, 4], help="processes to reconstruct with")
    parser.add_argument(
        "--refined-by", type=int, nargs="*", default=[1, 2, 4], help="processes to refine with"
    )
    options = parser.parse_args()
    if options.folder is None:
        rewrite(PAGE, texts(json.loads(RESULTS.read_text())))
        return
    options.folder.mkdir(parents=True, exist_ok=True)
    results = run(options.folder, options.count, options.ranks, options.refined_by)
    print(json.dumps(results, indent=2))
    if options.json is not None:
        options.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
