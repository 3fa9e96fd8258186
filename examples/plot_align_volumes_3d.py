"""
Align two volumes
=================

A volume is turned and moved onto a noisy copy of itself by gradient, from starts all over the sphere. You learn to ask
a projection for volumes, to run many starts as the poses of one call, to keep the coarse search cheap, and to invert a
pose.
"""

import matplotlib.pyplot as plt
import torch

from torch_projectors import forward_project, realspace, rotations

torch.manual_seed(0)

# %%
# A volume of Gaussian blobs, and a noisy copy of it, turned by an unknown rotation and moved by some 2 voxels. The
# output of a projection is a volume where ``output_shape`` has three sizes; shifts are (x, y, z) then.
n = 32
axis = torch.arange(n) - n // 2
points = torch.cartesian_prod(axis, axis, axis).flip(-1).float()  # (x, y, z) of every voxel
centres = 4 * torch.randn(15, 3)
volume = torch.exp(-torch.cdist(points, centres).square() / 3).sum(-1).reshape(n, n, n)

true_rotation, true_shift = rotations.random(), torch.randn(3)
target = realspace.project(volume, true_rotation, true_shift, (n, n, n))
target += target.std() * torch.randn_like(target)

# %%
# Neither volume changes, so both are transformed once.
spectrum = realspace.prepare(volume, dims=3)
target_spectrum = realspace.to_spectrum(target, 3)


# %%
# A rotation is refined as a small turn behind the one it starts from. Every pose has a loss of its own; their sum lets
# each go its own way. A projection costs what lies within its cutoff, so coarse ones are cheap.
def refine(starts, shifts, cutoff, steps=40):
    turns = torch.zeros(len(starts), 3, requires_grad=True)
    shifts = shifts.clone().requires_grad_()
    optimizer = torch.optim.Adam([{"params": turns, "lr": 0.05}, {"params": shifts, "lr": 0.2}])
    degrees = []
    for _ in range(steps):
        guess = starts @ rotations.from_vectors(turns)
        moved = forward_project(
            spectrum, guess, shifts, (n, n, n), oversampling=2, fourier_radius_cutoff=cutoff
        )
        losses = (moved - target_spectrum).abs().square().mean((-3, -2, -1))
        optimizer.zero_grad()
        losses.sum().backward()
        optimizer.step()
        degrees.append(rotations.angles_between(guess.detach(), true_rotation).rad2deg())
    return (
        starts @ rotations.from_vectors(turns.detach()),
        shifts.detach(),
        losses.detach(),
        torch.stack(degrees),
    )


# %%
# Many starts at the lowest frequencies, of which the best goes on to all frequencies.
starts = 64
guesses, shifts, losses, coarse_degrees = refine(rotations.random(starts), torch.zeros(starts, 3), cutoff=4)
best = losses.argmin(keepdim=True)
guess, shift, _, fine_degrees = refine(guesses[best], shifts[best], cutoff=n // 2)
rotation, shift = guess[0], shift[0]

# %%
# What was found brings the volume to the target. Its inverse, which undoes the shift along the turned axes, brings the
# target to the volume.
moved = realspace.project(volume, rotation, shift, (n, n, n))
returned = realspace.project(target, rotation.mT, -rotation @ shift, (n, n, n))

figure, axes = plt.subplots(1, 5, figsize=(12, 3), width_ratios=[1, 1, 1, 1, 1.7], layout="constrained")
sections = {"volume": volume, "target": target, "volume, moved": moved, "target, returned": returned}
for ax, (name, box) in zip(axes, sections.items()):
    ax.imshow(box[n // 2], cmap="gray")
    ax.set(title=name, xticks=[], yticks=[])
axes[4].plot(coarse_degrees, color="lightgray", linewidth=0.6)
axes[4].plot(torch.cat([coarse_degrees[:, best], fine_degrees]), color="tab:blue", linewidth=2)
axes[4].axvline(len(coarse_degrees), color="gray", linewidth=0.8, linestyle=":")
axes[4].set(xlabel="step", ylabel="error of rotation (degrees)", title="best of all starts")
plt.show()

# %%
clean = realspace.project(volume, true_rotation, true_shift, (n, n, n))
assert fine_degrees[-1] < 2
assert (shift - true_shift).norm() < 0.2
assert torch.cosine_similarity(moved.flatten(), clean.flatten(), dim=0) > 0.98
assert realspace.fsc(returned, volume)[:8].min() > 0.7
