"""The interpolation kernels in Fourier space, and what they do in real space."""

import matplotlib.pyplot as plt
import numpy as np

t = np.linspace(-2.4, 2.4, 1201)
a = np.abs(t)
weights = {
    "nearest": np.where(a < 0.5, 1.0, 0.0),
    "linear": np.clip(1 - a, 0, None),
    "cubic": np.where(
        a < 1, 1.5 * a**3 - 2.5 * a**2 + 1, np.where(a < 2, -0.5 * a**3 + 2.5 * a**2 - 4 * a + 2, 0)
    ),
}
v = np.linspace(-0.5, 0.5, 401)
sinc = np.sinc(v)
transforms = {
    "nearest": sinc,
    "linear": sinc**2,
    "cubic": sinc**3 * (3 * sinc - 2 * np.cos(np.pi * v)),
}

fig, (left, right) = plt.subplots(1, 2, figsize=(9, 3.5), layout="constrained")
for name, values in weights.items():
    left.plot(t, values, label=name)
left.axhline(0, color="0.8", lw=0.7, zorder=0)
left.set_xlabel("distance from the sample, in frequencies")
left.set_title("weight of a tap", fontsize=11)
left.legend(frameon=False)
right.axvspan(-0.25, 0.25, color="0.93", zorder=0)
for values in transforms.values():
    right.plot(v, values)
right.set_xlabel("v = voxels from the centre / padded size")
right.set_title("what is left of a voxel", fontsize=11)
right.set(xlim=(-0.5, 0.5), ylim=(0, 1.05))
right.text(0, 0.06, "box at oversampling 2", ha="center", fontsize=9, color="0.35")
