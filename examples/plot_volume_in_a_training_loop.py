"""
A volume in a training loop
===========================

A real volume is a ``torch.nn.Parameter`` that learns from mini-batches of noisy images in known poses. You learn that
``realspace.project`` goes into a loss as any other layer does, what the loop can do that direct reconstruction cannot,
and which gradient to ask for when you work with half spectra yourself.
"""

import matplotlib.pyplot as plt
import torch
from torch.nn.functional import mse_loss, softplus
from torch.utils.data import DataLoader, TensorDataset

from torch_projectors import backward_project, forward_project, realspace, rotations

torch.manual_seed(0)

# %%
# A volume of Gaussian blobs to recover, and a data set of noisy images of it.
n, poses = 32, 512
axis = torch.arange(n) - n // 2
points = torch.cartesian_prod(axis, axis, axis).flip(-1).float()  # (x, y, z) of every voxel
centres = 4 * torch.randn(20, 3)
truth = torch.exp(-torch.cdist(points, centres).square() / 3).sum(-1).reshape(n, n, n)

orientations = rotations.random(poses)
shifts = 2 * torch.randn(poses, 2)
images = realspace.project(truth, orientations, shifts)
images += 2 * images.std() * torch.randn_like(images)
loader = DataLoader(TensorDataset(images, orientations, shifts), batch_size=32, shuffle=True)

# %%
# Direct reconstruction solves the linear problem in one pass, and is what the loop has to better.
spectra = realspace.to_spectrum(images, 2)
ones = torch.ones_like(spectra.real)
total, weight = backward_project(spectra, orientations, shifts, oversampling=2, weights=ones)
direct = realspace.reconstruct(total, weight, oversampling=2, policy="radial")

# %%
# The loop. ``realspace.project`` maps real voxels to real pixels, and its gradient is exactly that of this map: half
# spectra stay inside. So anything of torch may stand before and after it. Here ``softplus`` keeps densities positive,
# which no linear reconstruction can.
parameters = torch.nn.Parameter(torch.full((n, n, n), -4.0))
optimizer = torch.optim.Adam([parameters], lr=0.1)
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=6 * len(loader))
curves = []
for _ in range(6):
    for batch, batch_rotations, batch_shifts in loader:
        loss = mse_loss(realspace.project(softplus(parameters), batch_rotations, batch_shifts), batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        curves.append(realspace.fsc(softplus(parameters.detach()), truth))
learnt = softplus(parameters.detach())

# %%
crossings = realspace.fsc_crossing(torch.stack(curves))  # cycles per box at FSC 0.5
direct_crossing = realspace.fsc_crossing(realspace.fsc(direct, truth))

figure, axes = plt.subplots(1, 4, figsize=(11, 3), width_ratios=[1, 1, 1, 1.4], layout="constrained")
for ax, (name, box) in zip(axes, {"truth": truth, "direct": direct, "learnt": learnt}.items()):
    ax.imshow(box[n // 2], cmap="gray")
    ax.set(title=name, xticks=[], yticks=[])
axes[3].plot(crossings, label="learnt")
axes[3].axhline(direct_crossing, color="gray", linestyle=":", label="direct")
axes[3].set(xlabel="step", ylabel="cycles per box at FSC 0.5", ylim=(0, n // 2))
axes[3].legend(frameon=False)
plt.show()

similarity, direct_similarity = [
    torch.cosine_similarity(x.ravel(), truth.ravel(), dim=0) for x in (learnt, direct)
]
assert similarity > 0.93 and similarity > direct_similarity + 0.1
assert crossings[-1] > direct_crossing


# %%
# Whoever works with half spectra has to say what a gradient means there, for they hold both members of a Friedel pair
# in some columns and one elsewhere. Before ``from_spectrum`` or ``torch.fft.irfft2``, which do the weighting
# themselves, take "stored". With a loss over the half spectrum itself take "friedel", the default: the gradient is then
# half of that over the full spectrum, which by Parseval's theorem is n^2 times that over the pixels. (The cutoff leaves
# out Nyquist's frequency, of which real pixels hold the real part alone.)
volume = direct.requires_grad_()
spectrum = realspace.to_spectrum(volume, 3)
options = {"rotations": orientations, "shifts": shifts, "fourier_radius_cutoff": n // 2 - 1}

pixels = realspace.project(volume, **options, oversampling=1, correction=None)
over_pixels = (pixels - images).square().sum()
stored = realspace.from_spectrum(forward_project(spectrum, **options, gradient="stored"), (n, n))
over_stored = (stored - images).square().sum()
over_half_spectra = 2 / n**2 * (forward_project(spectrum, **options) - spectra).abs().square().sum()

losses = (over_pixels, over_stored, over_half_spectra)
expected, *others = [torch.autograd.grad(loss, volume, retain_graph=True)[0] for loss in losses]
for gradient in others:
    assert (gradient - expected).norm() < 1e-4 * expected.norm()
