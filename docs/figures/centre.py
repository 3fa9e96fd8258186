"""Where the origin is: index N//2 before ifftshift, index 0 after."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Rectangle

ORIGIN, OTHER = "#f2b866", "#e8eef5"


def draw(ax, n):
    offsets = np.arange(n) - n // 2
    for y, values in ((0, offsets), (2.1, np.fft.ifftshift(offsets))):
        for index, offset in enumerate(values):
            color = OTHER if offset else ORIGIN
            ax.add_patch(Rectangle((index - 0.5, y), 1, 1, facecolor=color, edgecolor="white", lw=2))
            sign = "\N{MINUS SIGN}" if offset < 0 else ""
            ax.text(index, y + 0.5, f"{sign}{abs(offset)}", ha="center", va="center", fontsize=11)
            ax.text(index, y + 1.25, index, ha="center", va="center", fontsize=8, color="#567")
        ax.text(-0.7, y + 1.25, "index", ha="right", va="center", fontsize=8, color="#567")
    ax.text(-0.7, 0.5, "image", ha="right", va="center", fontsize=10)
    ax.text(-0.7, 2.6, "ifftshift", ha="right", va="center", fontsize=10)
    ax.set(xlim=(-2.6, 7.6), ylim=(3.5, -0.05), aspect="equal")
    ax.set_title(f"N = {n}: centre at index {n // 2}", fontsize=11)
    ax.axis("off")


fig, axes = plt.subplots(1, 2, figsize=(9, 2.05), layout="constrained")
for ax, n in zip(axes, (8, 7)):
    draw(ax, n)
