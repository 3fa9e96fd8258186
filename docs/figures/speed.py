"""Time along the box and along the number of poses."""

import json
from pathlib import Path

import matplotlib.pyplot as plt

# Sphinx runs this in the directory that it lies in, without __file__.
here = Path(globals().get("__file__", "speed.py")).resolve().parent
root = next(p for p in (here, *here.parents) if (p / "benchmarks" / "results").is_dir())
document = json.loads((root / "benchmarks" / "results" / "cpu_report.json").read_text())["scaling"]
threads = document["machine"]["threads"]

colours = {"forward": "#3b6fb0", "backward": "#e08214", "gradient": "#20a386"}
names = {"forward": "gather", "backward": "scatter with weights", "gradient": "gather and all gradients"}

figure, axes = plt.subplots(1, 2, figsize=(9, 4.4), layout="constrained")
for ax, along in zip(axes, ("box", "poses")):
    rows = [r for r in document["results"] if r["along"] == along]
    for operation, colour in colours.items():
        of = [r for r in rows if r["operation"] == operation]
        places = [r[along] for r in of]
        share = [r["poses"] if along == "box" else 1 for r in of]
        low, middle, high = [
            [1e3 * r["seconds"][key] / n for r, n in zip(of, share)] for key in ("min", "median", "max")
        ]
        ax.loglog(places, middle, marker="o", markersize=4, color=colour, label=names[operation])
        ax.fill_between(places, low, high, color=colour, alpha=0.15, linewidth=0)
        if operation == "forward":
            power, n = (2 if along == "box" else 1), len(places) // 2
            guide = [middle[n] * (x / places[n]) ** power for x in places]
    ax.loglog(places, guide, color="grey", linestyle=":", label="as the number of pixels")
    ax.set_xticks(places, [str(x) for x in places])
    ax.set_xticks([], minor=True)
    ax.grid(alpha=0.3)
fixed = {along: next(r for r in document["results"] if r["along"] == along) for along in ("box", "poses")}
axes[0].set(xlabel="box", ylabel="ms by projection", title=f"{fixed['box']['poses']} poses a call")
axes[1].set(xlabel="poses a call", ylabel="ms by call", title=f"box {fixed['poses']['box']}")
handles, labels = axes[0].get_legend_handles_labels()
figure.legend(handles, labels, loc="outside upper center", ncols=len(labels), frameon=False)
figure.supxlabel(f"{threads} thread{'s' if threads > 1 else ''}", fontsize="small", color="grey")
