"""Errors by shell of projections and maps, one curve for every oversampling."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

# Sphinx runs this in the directory that it lies in, without __file__.
here = Path(globals().get("__file__", "accuracy.py")).resolve().parent
root = next(p for p in (here, *here.parents) if (p / "benchmarks" / "results").is_dir())
document = json.loads((root / "benchmarks" / "results" / "accuracy.json").read_text())["results"]
images = max(document["study"]["inserted"])

rows = {
    "projections": [r for r in document["projection"] if "errors" in r],
    f"maps of {images} images": [r for r in document["insertion"] if r["poses"] == images],
}
interpolations = list(dict.fromkeys(r["interpolation"] for r in document["projection"]))
oversamplings = sorted({r["oversampling"] for r in document["projection"]})
colours = dict(zip(oversamplings, ("#440154", "#3b6fb0", "#20a386", "#e08214")))

figure, axes = plt.subplots(2, 3, figsize=(9, 6.4), sharex=True, sharey=True, layout="constrained")
for (name, found), line in zip(rows.items(), axes):
    for interpolation, ax in zip(interpolations, line):
        for row in found:
            if row["interpolation"] == interpolation:
                corrected = row.get("correction", "separable")
                ax.semilogy(
                    range(1, len(row["errors"])),
                    row["errors"][1:],
                    color=colours[row["oversampling"]],
                    linestyle="-" if corrected else ":",
                    linewidth=1.6 if corrected else 1.2,
                )
        ax.grid(alpha=0.3)
        ax.set_title(f"{name}, {interpolation}", fontsize="medium")
    line[0].set_ylabel("relative error")
for ax in axes[-1]:
    ax.set_xlabel("shell, cycles per box")
axes[0, 0].set_ylim(5e-4, 1.5)
axes[0, 0].set_xlim(0, document["study"]["box"] // 2)
curves = {f"{o:g}": {"color": colour} for o, colour in colours.items()}
curves["without gridding correction"] = {"color": "grey", "linestyle": ":"}
handles = [plt.Line2D([], [], label=label, **style) for label, style in curves.items()]
figure.legend(
    handles=handles, title="oversampling", loc="outside upper center", ncols=len(handles), frameon=False
)
