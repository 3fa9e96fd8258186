"""What a half spectrum stores, for an even and an odd box."""

import matplotlib.pyplot as plt
from matplotlib.patches import FancyArrowPatch, Patch, Rectangle

SINGLE, PAIRED, REAL = "#e8eef5", "#8fb8de", "#f2b866"


def frequency(i, n):
    return i if i <= n // 2 else i - n


def draw(ax, n):
    for row in range(n):
        for column in range(n // 2 + 1):
            ky, kx = frequency(row, n), column
            paired = kx in (0, n / 2)
            own_mate = paired and ky in (0, n / 2)
            color = REAL if own_mate else PAIRED if paired else SINGLE
            ax.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=color, edgecolor="white", lw=2))
            label = "DC" if kx == ky == 0 else f"{kx}, {ky}".replace("-", "\N{MINUS SIGN}")
            ax.text(column, row, label, ha="center", va="center", fontsize=9)
    for column in [0, n // 2] if n % 2 == 0 else [0]:
        arrow = {"arrowstyle": "<->", "mutation_scale": 9, "color": "#234", "lw": 1}
        side = -0.62 if column == 0 else column + 0.62
        bend = 0.35 if column == 0 else -0.35
        start, end = (side, 1), (side, n - 1)
        ax.add_patch(FancyArrowPatch(start, end, connectionstyle=f"arc3,rad={bend}", clip_on=False, **arrow))
        ax.text(column, -0.75, "Nyquist" if column else "x = 0", ha="center", fontsize=9, color="#567")
    for column in range(n // 2 + 1):
        ax.text(column, n - 0.1, column, ha="center", va="center")
    ax.text(n // 4, n + 0.6, "index along x", ha="center", va="center")
    ax.set(xlim=(-2, 6.2), ylim=(8.9, -1.1), aspect="equal", xticks=[])
    ax.set_yticks(range(n))
    ax.set_ylabel("index along y")
    ax.set_title(f"N = {n}: stored [{n}, {n // 2 + 1}], frequencies x, y", fontsize=11)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)


fig, axes = plt.subplots(1, 2, figsize=(9, 5.4), layout="constrained")
for ax, n in zip(axes, (8, 7)):
    draw(ax, n)
fig.legend(
    handles=[
        Patch(color=REAL, label="its own mate (real)"),
        Patch(color=PAIRED, label="both mates stored"),
        Patch(color=SINGLE, label="mate not stored"),
    ],
    loc="outside lower center",
    ncols=3,
    frameon=False,
)
