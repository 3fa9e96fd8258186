"""What the demo shows of its results: a table, a picture, and maps."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, NamedTuple

import mrcfile
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from torch import Tensor

from .. import realspace, rotations
from .refinement import Poses

CONSOLE = Console(highlight=False)
COLOURS = {"disturbed": "tab:red", "refined": "tab:blue", "true": "black"}


class Result(NamedTuple):
    """What one set of poses gave: its errors, image by image, its map, and the map's correlation with the truth."""

    degrees: Tensor
    pixels: Tensor
    map: Tensor
    fsc: Tensor

    @classmethod
    def of(cls, poses: Poses, true_poses: Poses, density: Tensor, truth: Tensor) -> Result:
        return cls(
            torch.rad2deg(rotations.angles_between(poses.rotations, true_poses.rotations)).cpu(),
            (poses.shifts - true_poses.shifts).norm(dim=-1).cpu(),
            density.cpu(),
            realspace.fsc(density, truth).cpu(),
        )

    def numbers(self) -> dict[str, float]:
        crossing = realspace.fsc_crossing(self.fsc).item()
        return {
            "degrees_median": self.degrees.median().item(),
            "degrees_95_percent": self.degrees.quantile(0.95).item(),
            "pixels_median": self.pixels.median().item(),
            "pixels_95_percent": self.pixels.quantile(0.95).item(),
            "fsc_crossing_cycles_per_box": crossing,
            "resolution_pixels": self.map.shape[-1] / crossing,
        }


def say(text: str) -> None:
    CONSOLE.print(text, soft_wrap=True)


@contextmanager
def bar(task: str, steps: int) -> Iterator[Callable[[float], None]]:
    """A progress bar; what it gives is called at each step with the resolution in pixels."""
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()]
    with Progress(*columns, console=CONSOLE) as progress:
        name = progress.add_task(task, total=steps)
        yield lambda pixels: progress.update(name, advance=1, description=f"{task} at {pixels:4.1f} pixels")


def show(results: dict[str, Result], facts: dict[str, Any]) -> None:
    table = Table()
    table.add_column("poses")
    headings = [
        "angle off\nmedian",
        "\n95 %",
        "shift off\nmedian",
        "\n95 %",
        "resolution of map\nat FSC 0.5 with truth",
    ]
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, result in results.items():
        n = result.numbers()
        table.add_row(
            name,
            f"{n['degrees_median']:.2f}°",
            f"{n['degrees_95_percent']:.2f}°",
            f"{n['pixels_median']:.2f} px",
            f"{n['pixels_95_percent']:.2f} px",
            f"{n['resolution_pixels']:.2f} px",
        )
    CONSOLE.print(table)
    before, after = results["disturbed"].numbers(), results["refined"].numbers()
    angle, shift = (before[name] / after[name] for name in ("degrees_median", "pixels_median"))
    say(
        "What is off is counted after turning and moving the map as a whole, which no image can tell.\n"
        f"Refinement made angles {angle:.0f} times better, shifts {shift:.0f} times, in {facts['seconds']:.0f} s on "
        f"{facts['device']} (backend {facts['backend']}, {facts['threads']} threads)."
    )


def draw(path: Path, images: Tensor, truth: Tensor, results: dict[str, Result]) -> None:
    """Images, central slices of the maps, shell correlations and errors, in one picture."""
    figure = Figure(figsize=(13, 5.6), dpi=110, layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=[1.75, 1])
    upper, lower = left.subplots(2, 4)
    for i, (axes, image) in enumerate(zip(upper, images)):
        axes.imshow(image.numpy(), cmap="gray", origin="lower")
        axes.set_title(f"image {i + 1}")
    n = truth.shape[-1]
    middle = slice(n // 2 - n // 20, n // 2 + n // 20 + 1)
    top = truth[middle].sum(0).max().item()
    maps = {"truth": truth, **{f"{name} poses": result.map for name, result in results.items()}}
    for axes, (name, density) in zip(lower, maps.items()):
        axes.imshow(
            density[middle].sum(0).numpy(), cmap="gray", origin="lower", vmin=-0.1 * top, vmax=0.8 * top
        )
        axes.set_title(name)
    for axes in (*upper, *lower):
        axes.set_axis_off()
    lower[0].text(0, -0.1, f"central slices of {n // 20 * 2 + 1} voxels", transform=lower[0].transAxes)

    correlation, errors = right.subplots(2, 1)
    for name, result in results.items():
        style = "--" if name == "true" else "-"
        shells = [i / n for i in range(1, len(result.fsc))]
        correlation.plot(shells, result.fsc[1:].tolist(), style, color=COLOURS[name], label=f"{name} poses")
    correlation.axhline(0.5, color="gray", linewidth=0.7)
    correlation.set(
        xlabel="frequency (1 / pixel)", ylabel="FSC with the truth", xlim=(0, 0.5), ylim=(-0.05, 1.05)
    )
    correlation.legend(loc=(0.42, 0.12))
    for name in ("disturbed", "refined"):
        errors.loglog(
            results[name].degrees.tolist(),
            results[name].pixels.tolist(),
            ".",
            markersize=3,
            color=COLOURS[name],
            label=f"{name} poses",
        )
    errors.set(xlabel="angle off (degrees)", ylabel="shift off (pixels)")
    errors.legend(loc="upper left")
    figure.savefig(path)


def write_maps(folder: Path, truth: Tensor, results: dict[str, Result], label: str) -> None:
    maps = {"truth": truth, **{f"{name}_poses": result.map for name, result in results.items()}}
    for name, density in maps.items():
        with mrcfile.new(folder / f"{name}.mrc", density.float().numpy()) as file:
            file.voxel_size = 1.0
            file.add_label(label[:79])


def write_numbers(path: Path, facts: dict[str, Any], results: dict[str, Result]) -> None:
    rounded = {
        name: {k: round(v, 4) for k, v in result.numbers().items()} for name, result in results.items()
    }
    path.write_text(json.dumps({**facts, "results": rounded}, indent=2) + "\n", encoding="utf-8")
