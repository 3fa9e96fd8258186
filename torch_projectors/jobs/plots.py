"""Pictures of results."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..extras import need
from .correlation import THRESHOLDS, Curves


def draw_fsc(path: Path, curves: Curves, box: int, pixel_size: float) -> None:
    """Shell correlations over resolution."""
    figure = need("matplotlib.figure").Figure(figsize=(6.4, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.present().items():
        axes.plot(range(1, len(curve)), curve[1:].cpu(), label=name)
    for threshold in THRESHOLDS:
        axes.axhline(threshold, color="0.6", linewidth=0.8, linestyle="--")
    shells = [round(n * box / 16) for n in range(1, 9)]
    axes.set_xticks(shells, [f"{box * pixel_size / max(shell, 1):.3g}" for shell in shells])
    axes.set(
        xlim=(0, box // 2), ylim=(-0.1, 1.02), xlabel="resolution (Å)", ylabel="Fourier shell correlation"
    )
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def draw_refinement(path: Path, told: Mapping[str, Tensor]) -> None:
    """How far poses moved, and scores before and after, `[P]` each."""
    figure = need("matplotlib.figure").Figure(figsize=(10, 3.2), layout="constrained")
    turned, moved, scores = figure.subplots(1, 3)
    for axes, values, label in (
        (turned, told["degrees_moved"], "degrees moved"),
        (moved, told["pixels_moved"], "pixels moved"),
    ):
        axes.hist(values.numpy(), bins=_bins(values))
        axes.set(xlabel=label, ylabel="particles")
    for name in ("score_before", "score_after"):
        scores.hist(
            told[name].numpy(),
            bins=_bins(told["score_before"], told["score_after"]),
            alpha=0.6,
            label=name.partition("_")[2],
        )
    scores.set(xlabel="correlation with the map", ylabel="particles")
    scores.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _bins(*values: Tensor) -> Any:
    """Limits of sixty bins for all values, which may all be the same."""
    every = torch.cat([x.double() for x in values])
    every = every[every.isfinite()]
    low, high = (every.min().item(), every.max().item()) if len(every) else (0.0, 0.0)
    return torch.linspace(low, max(high, low + 1e-3), 61, dtype=torch.float64).numpy()
