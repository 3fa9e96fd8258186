"""Pictures of results."""

from __future__ import annotations

from pathlib import Path

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
