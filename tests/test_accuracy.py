"""The study of accuracy: its reference, its errors against theory and against those committed, its page."""

from __future__ import annotations

import importlib
import json
import math
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT))
accuracy = importlib.import_module("benchmarks.accuracy")
speed = importlib.import_module("benchmarks.speed")

DOCUMENT = json.loads(accuracy.RESULTS.read_text())["results"]
STUDY = accuracy.Study()


def test_study_is_the_one_committed() -> None:
    assert json.loads(json.dumps(accuracy.asdict(STUDY))) == DOCUMENT["study"]


@pytest.mark.parametrize("diameter", STUDY.diameters)
def test_closed_form_is_the_sum_over_voxels(diameter: float) -> None:
    """Along each of three axes, angles are at most pi * box / 2, and off by three roundings of half an epsilon.

    What of a Gaussian lies beyond the box, or of its transform beyond the aliases summed, is less than an epsilon.
    """
    what = accuracy.particle(STUDY, diameter)
    f = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 0.5
    difference = accuracy.direct(accuracy.voxels(what, STUDY.box), f) - accuracy.transform(what, f)
    tolerance = 9 / 2 * math.pi * STUDY.box / 2 * torch.finfo(f.dtype).eps
    assert difference.abs().max() <= tolerance * what.masses.sum()


def weights(interpolation: str, t: torch.Tensor) -> tuple[list[int], torch.Tensor]:
    """Taps and their weights [T, taps] at t in [0, 1)."""
    if interpolation == "nearest":
        return [0, 1], torch.stack([t < 0.5, t >= 0.5], -1).to(t)
    if interpolation == "linear":
        return [0, 1], torch.stack([1 - t, t], -1)
    powers = t[:, None] ** torch.arange(4, dtype=t.dtype)
    keys = [[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]
    return [-1, 0, 1, 2], powers @ torch.tensor(keys, dtype=t.dtype) / 2


def predicted(row: dict) -> float:
    """A wave exp(2 pi i p v), of a point v boxes from the centre, is interpolated to that times a factor g(t), which
    depends on the fraction t of p alone. Fractions are uniform over poses and axes, and beyond the first shells the
    Gaussians are independent: so the power of the error is the mean over Gaussians of E|c g - 1|^2, where c is the
    correction, 1 / E g or 1.
    """
    what = accuracy.particle(STUDY, row["diameter"])
    v = what.centres / round(row["oversampling"] * STUDY.box)
    t = (torch.arange(200, dtype=v.dtype) + 0.5) / 200
    taps, w = weights(row["interpolation"], t)
    offset = torch.tensor(taps, dtype=v.dtype) - t[:, None]
    g = (w * torch.exp(2j * math.pi * v[..., None, None] * offset)).sum(-1)  # [G, 3, T]
    first, second = g.mean(-1).real.prod(-1), g.abs().square().mean(-1).prod(-1)
    c = 1 / first if row["correction"] else torch.ones_like(first)
    power = what.masses.square()
    return ((power * (c * c * second - 2 * c * first + 1)).sum() / power.sum()).sqrt().item()


ROWS = [row for row in DOCUMENT["projection"] if "errors" in row]


@pytest.mark.parametrize(
    "row", ROWS, ids=lambda r: f"{r['interpolation']}-{r['oversampling']}-{r['correction']}"
)
def test_errors_are_those_of_theory(row: dict) -> None:
    """Components a few apart are independent: all poses and shells have some 1e4. But chance correlations among 100
    Gaussians are common to all poses, and bring the power within some percent of that of theory only.
    """
    shells = torch.tensor(row["errors"][4:-1])
    assert shells.square().mean().sqrt().item() == pytest.approx(predicted(row), rel=0.05)


def test_errors_are_those_committed(backend: str) -> None:
    """To the four digits written."""
    choices = [c for c in accuracy.CHOICES if c[1] < 2]
    for row in accuracy.projections(STUDY, STUDY.diameter, choices):
        key = {name: row[name] for name in ("interpolation", "oversampling", "correction", "diameter")}
        committed = accuracy.only(DOCUMENT["projection"], **key)
        for ours, theirs in zip(row["errors"], committed["errors"]):
            assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-14)


def test_page_of_speed_has_the_tables_of_the_results_all_of_full_size() -> None:
    page, found = speed.PAGE.read_text(encoding="utf-8"), speed.texts(speed.committed())
    assert found["note"] == ""
    for text in found.values():
        assert text in page


def test_page_has_the_tables_of_the_results() -> None:
    page = accuracy.PAGE.read_text(encoding="utf-8")
    for rows in accuracy.tables(DOCUMENT).values():
        assert accuracy.markdown(rows) in page


def test_page_about_files_has_the_tables_of_the_results() -> None:
    dataset = importlib.import_module("benchmarks.dataset")
    results = json.loads(dataset.RESULTS.read_text())
    assert results["count"] == 20000
    page = dataset.PAGE.read_text(encoding="utf-8")
    for text in dataset.texts(results).values():
        assert text in page
