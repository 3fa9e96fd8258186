"""An F of blobs, rotated and shifted by the library; crosses are at M^T r + s."""

import math

import matplotlib.pyplot as plt
import torch

from torch_projectors import forward_project, realspace

N = 64
PLACES = [(-6, y) for y in (-12, -6, 0, 6, 12)] + [(0, -12), (6, -12), (0, -1)]
places = torch.tensor(PLACES, dtype=torch.float64)
pixels = torch.arange(N, dtype=torch.float64) - N // 2
y, x = torch.meshgrid(pixels, pixels, indexing="ij")
image = sum(torch.exp(-((x - a) ** 2 + (y - b) ** 2) / 8) for a, b in places)
padded = realspace.to_spectrum(realspace.pad(image, (2 * N, 2 * N)), 2)

identity = torch.eye(2, dtype=torch.float64)
quarter = torch.tensor([[0.0, -1.0], [1.0, 0.0]], dtype=torch.float64)
none, some = torch.zeros(2, dtype=torch.float64), torch.tensor([14.0, 6.0], dtype=torch.float64)
cases = [
    ("M = identity", identity, none),
    ("shift (+14, +6)", identity, some),
    ("M: x to y, +90°", quarter, none),
    ("both", quarter, some),
]

fig, axes = plt.subplots(1, 4, figsize=(10, 3.1), layout="constrained", sharey=True)
for ax, (title, rotation, shift) in zip(axes, cases):
    spectrum = forward_project(padded, rotation, shift, (N, N), "cubic", 2, math.inf)
    output = realspace.from_spectrum(spectrum, (N, N))
    edge = N // 2 + 0.5
    ax.imshow(output, cmap="gray_r", extent=(-edge, edge - 1, edge - 1, -edge), vmin=0)
    expected = places @ rotation + shift
    ax.plot(*expected.T, "+", color="tab:red", ms=5, mew=1)
    ax.axhline(0, color="tab:blue", lw=0.6)
    ax.axvline(0, color="tab:blue", lw=0.6)
    ax.set_title(title, fontsize=11)
    ax.set_xlabel("x (pixels from centre)", fontsize=9)
    ax.set_xticks([-20, 0, 20])
    ax.set_yticks([-20, 0, 20])
axes[0].set_ylabel("y, last but one axis", fontsize=9)
