"""
Refine poses by gradient
========================

The rotations and shifts of noisy images are refined against a known volume with an ordinary optimizer. You learn how
to make a rotation a parameter, how to prepare the spectrum of a volume once for many projections, and why a cutoff
that goes from coarse to fine saves images from local minima.
"""

import math

import matplotlib.pyplot as plt
import torch

from torch_projectors import forward_project, realspace, rotations

torch.manual_seed(0)

# %%
# A volume of Gaussian blobs, and noisy images of it.
n, poses = 32, 64
axis = torch.arange(n) - n // 2
points = torch.cartesian_prod(axis, axis, axis).flip(-1).float()  # (x, y, z) of every voxel
centres = 5 * torch.randn(40, 3)
volume = torch.exp(-torch.cdist(points, centres).square() / 2).sum(-1).reshape(n, n, n)

true_rotations = rotations.random(poses)
true_shifts = 2 * torch.randn(poses, 2)
images = realspace.project(volume, true_rotations, true_shifts)
images += images.std() * torch.randn_like(images)

# %%
# The first guess of every pose is wrong by 20 degrees and 3 pixels.
turns = torch.nn.functional.normalize(torch.randn(poses, 3), dim=-1) * math.radians(20)
first_rotations = true_rotations @ rotations.from_vectors(turns)
first_shifts = true_shifts + 3 * torch.nn.functional.normalize(torch.randn(poses, 2), dim=-1)

# %%
# The volume stays as it is, so it is corrected for interpolation, padded and transformed once. ``forward_project``
# hears of the padding as ``oversampling``.
spectrum = realspace.prepare(volume, dims=3)
measured = realspace.to_spectrum(images, 2)


# %%
# A rotation is refined as a small turn behind the first guess: a rotation vector, three numbers without constraints.
# The loss is a sum over half spectra, which is what the default ``gradient="friedel"`` is for. Projections are zero
# beyond the cutoff, where the images add no more than a constant to the loss.
def refine(cutoffs, steps=30):
    turns = torch.zeros(poses, 3, requires_grad=True)
    shifts = first_shifts.clone().requires_grad_()
    optimizer = torch.optim.Adam([{"params": turns, "lr": 0.02}, {"params": shifts, "lr": 0.1}])
    degrees = []
    for cutoff in cutoffs:
        for _ in range(steps):
            guess = first_rotations @ rotations.from_vectors(turns)
            projections = forward_project(
                spectrum, guess, shifts, (n, n), oversampling=2, fourier_radius_cutoff=cutoff
            )
            loss = (projections - measured).abs().square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            degrees.append(rotations.angles_between(guess.detach(), true_rotations).rad2deg())
    return torch.stack(degrees), (shifts.detach() - true_shifts).norm(dim=-1)


# %%
# Cutoffs are in cycles per box. With few of them the loss is smooth over long distances; with all of them it is exact.
degrees, pixels = refine(cutoffs=(4, 5, 7, 10, 16))
degrees_at_once, _ = refine(cutoffs=(16,) * 5)

figure, axes = plt.subplots(1, 2, figsize=(9, 3.5), sharey=True, layout="constrained")
for ax, history, title in [
    (axes[0], degrees, "from coarse to fine"),
    (axes[1], degrees_at_once, "all frequencies at once"),
]:
    lost = history[-1] > 10
    ax.semilogy(history[:, ~lost], color="tab:blue", linewidth=0.6)
    ax.semilogy(history[:, lost], color="tab:red", linewidth=1)
    ax.set(title=f"{title}: {lost.sum()} of {poses} lost", xlabel="step")
axes[0].set_ylabel("error of rotation (degrees)")
plt.show()

# %%
# What remains is due to the noise.
assert degrees[-1].median() < 2 and pixels.median() < 0.15
lost, lost_at_once = (degrees[-1] > 10).sum(), (degrees_at_once[-1] > 10).sum()
assert lost <= 3 and lost < lost_at_once
