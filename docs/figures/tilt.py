"""A tilt about y: what is sampled, what is summed, and the image."""

import math

import matplotlib.pyplot as plt
import torch

from torch_projectors import realspace

N, DEGREES = 64, 35
PLACES = [(14, 0, 8), (-10, -12, -12), (-4, 10, 16)]
COLORS = ["tab:red", "tab:green", "tab:purple"]
c, s = math.cos(math.radians(DEGREES)), math.sin(math.radians(DEGREES))
tilt = torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)
places = torch.tensor(PLACES, dtype=torch.float64)
moved = places @ tilt

pixels = torch.arange(N, dtype=torch.float64) - N // 2
z, y, x = torch.meshgrid(pixels, pixels, pixels, indexing="ij")
volume = sum(torch.exp(-((x - u) ** 2 + (y - v) ** 2 + (z - w) ** 2) / 16) for u, v, w in places)
image = realspace.project(volume, tilt)


def frame(ax, title, across, down, half=N // 2):
    ax.set_title(title, fontsize=11)
    ax.set_xlabel(across)
    ax.set_ylabel(down)
    ax.set(xlim=(-half, half), ylim=(half, -half), aspect="equal")
    ax.set_xticks([-20, 0, 20])
    ax.set_yticks([-20, 0, 20])
    ax.axhline(0, color="0.8", lw=0.6, zorder=0)
    ax.axvline(0, color="0.8", lw=0.6, zorder=0)


def dots(ax, points, across, down):
    for point, color in zip(points, COLORS):
        ax.plot(point[across], point[down], "o", ms=13, color=color, alpha=0.7)


fig, ((fourier, before), (after, result)) = plt.subplots(2, 2, figsize=(8, 8), layout="constrained")

frame(fourier, "Fourier space: the slice p = M k", r"$p_x$", r"$p_z$")
line = torch.arange(-28, 29, 4, dtype=torch.float64)[:, None] * tilt[:, 0]
fourier.plot(line[:, 0], line[:, 2], "o-", color="tab:blue", ms=4)
fourier.annotate(
    r"M $(k_x, k_y, 0)$", (line[-2, 0], line[-2, 2]), (3, -18), textcoords="data", color="tab:blue"
)
fourier.plot([0, 28], [0, 0], color="0.5", ls=":")
fourier.text(9, -2.6, f"{DEGREES}°", color="0.3", va="center")

frame(before, "volume: summed along M $e_z$", "x", "z")
for offset in range(-24, 25, 8):
    start = offset * tilt[:, 0] - 60 * tilt[:, 2]
    end = offset * tilt[:, 0] + 60 * tilt[:, 2]
    before.plot([start[0], end[0]], [start[2], end[2]], color="tab:blue", lw=0.7, alpha=0.6)
dots(before, places, 0, 2)

frame(after, r"the same, moved to $M^T r$: summed along z", "x", "z")
for offset in range(-24, 25, 8):
    after.axvline(offset, color="tab:blue", lw=0.7, alpha=0.6)
dots(after, moved, 0, 2)

edge = N // 2 + 0.5
result.imshow(image, cmap="gray_r", extent=(-edge, edge - 1, edge - 1, -edge), vmin=0)
frame(result, "image, by the library", "x", "y")
for point, color in zip(moved, COLORS):
    result.plot(point[0], point[1], "+", ms=11, mew=1.5, color=color)
