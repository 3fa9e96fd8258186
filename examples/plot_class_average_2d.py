"""
A class average from noisy images
=================================

Copies of one image, turned by unknown angles, moved by unknown shifts and buried in noise, are aligned and averaged
without a reference to begin with. You learn to turn one image by a grid of angles, to find the best shift for each of
them by cross-correlation, and to average by insertion, as one does for volumes.
"""

import math

import matplotlib.pyplot as plt
import torch

from torch_projectors import backward_project, realspace, rotations

torch.manual_seed(0)

# %%
# The truth, an image of Gaussian blobs, and noisy copies of it. Given rotations of 2x2, the functions for volumes work
# on images.
n, count, reach = 48, 200, 3
axis = torch.arange(n) - n // 2
points = torch.cartesian_prod(axis, axis).flip(-1).float()  # (x, y) of every pixel
centres = 7 * torch.randn(10, 2)
truth = torch.exp(-torch.cdist(points, centres).square() / 8).sum(-1).reshape(n, n)

true_rotations = rotations.random(count, dims=2)
true_shifts = reach * (2 * torch.rand(count, 2) - 1)  # (x, y) in pixels
clean = realspace.project(truth, true_rotations, true_shifts)
images = clean + 3 * clean.std() * torch.randn_like(clean)
spectra = realspace.to_spectrum(images, 2)

# %%
# Alignment. A reference is turned by every angle of a grid. The product of one spectrum with the conjugate of another
# is the spectrum of their correlation at all shifts, with no shift in the centre of the box.
grid = rotations.from_angles(torch.arange(0, 2 * math.pi, math.radians(4)))


def align(spectra, reference, cutoff):
    """Rotations and shifts of the reference that match the images best, from frequencies up to the cutoff."""
    turned = realspace.project(reference, grid, fourier_radius_cutoff=cutoff)
    products = spectra[:, None] * realspace.to_spectrum(turned, 2).conj()  # [images, angles, n, n//2+1]
    window = 2 * reach + 1
    correlations = realspace.crop(realspace.from_spectrum(products, (n, n)), (window, window))
    best = correlations.flatten(1).argmax(-1)
    angle, y, x = torch.unravel_index(best, correlations.shape[1:])
    return grid[angle], torch.stack([x, y], -1).float() - reach


# %%
# Averaging is reconstruction in two dimensions: ``backward_project`` turns and shifts all images back and adds them up.
def average(spectra, turns, shifts):
    ones = torch.ones_like(spectra.real)
    total, weight = backward_project(spectra, turns, shifts, oversampling=2, weights=ones)
    return realspace.reconstruct(total, weight, oversampling=2, policy="radial")


# %%
# The plain average, rings around the centre, is enough to start from. Each round aligns to the average of the round
# before, by more of the frequencies.
plain = images.mean(0)
aligned = plain
for cutoff in (5, 7, 9, 12):
    aligned = average(spectra, *align(spectra, aligned, cutoff))

# %%
# No image knows which way is up, so before they are compared the truth is turned as the average happens to lie.
pose = align(realspace.to_spectrum(aligned[None], 2), truth, cutoff=n // 2)
target = realspace.project(truth, *pose)[0]


# %%
# Ring correlation with the truth, and what it would be in the true poses.
ideal = realspace.project(average(spectra, true_rotations, true_shifts), *pose)[0]
curves = {
    "one image": realspace.fsc(images, clean, dims=2).mean(0),
    "plain average": realspace.fsc(plain, target, dims=2),
    "aligned average": realspace.fsc(aligned, target, dims=2),
    "in true poses": realspace.fsc(ideal, target, dims=2),
}

figure, axes = plt.subplots(1, 5, figsize=(12, 3), width_ratios=[1, 1, 1, 1, 1.7], layout="constrained")
pictures = {"one image": images[0], "plain average": plain, "aligned average": aligned, "truth": target}
for ax, (name, picture) in zip(axes, pictures.items()):
    ax.imshow(picture, cmap="gray")
    ax.set(title=name, xticks=[], yticks=[])
for name, curve in curves.items():
    axes[-1].plot(curve, label=name)
axes[-1].set(xlabel="cycles per box", ylabel="correlation with the truth", ylim=(-0.3, 1.05))
axes[-1].legend(frameon=False, fontsize="small")
plt.show()

# %%
similarity = torch.cosine_similarity(aligned.flatten(), target.flatten(), dim=0)
best_possible = torch.cosine_similarity(ideal.flatten(), target.flatten(), dim=0)
assert similarity > 0.9 and similarity > best_possible - 0.05
