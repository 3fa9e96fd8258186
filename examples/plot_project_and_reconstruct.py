"""
Project a volume and reconstruct it
===================================

From a volume to noisy images with a contrast transfer function (CTF), and back. You learn which steps belong to real
space and which to Fourier space, how CTF^2 weights travel with the images, and what the choice of a policy for small
weights does to the map.
"""

import matplotlib.pyplot as plt
import torch

from torch_projectors import backward_project, realspace, rotations

torch.manual_seed(0)

# %%
# A volume of Gaussian blobs. The origin of a box is its centre, index n//2; coordinates are (x, y, z), where x is the
# last axis of the array.
n, poses = 40, 600
axis = torch.arange(n) - n // 2
points = torch.cartesian_prod(axis, axis, axis).flip(-1).float()  # (x, y, z) of every voxel
centres = 5 * torch.randn(20, 3)
volume = torch.exp(-torch.cdist(points, centres).square() / 3).sum(-1).reshape(n, n, n)

# %%
# Images of it from directions drawn uniformly: integrals along z of the rotated volume, each shifted by (x, y) pixels.
orientations = rotations.random(poses)
shifts = 2 * torch.randn(poses, 2)
clean = realspace.project(volume, orientations, shifts)

# %%
# The microscope multiplies the spectrum of each image by a CTF, here one of defocus and some amplitude contrast, and
# the detector adds noise. ``to_spectrum`` and ``from_spectrum`` transform a centred box to its half spectrum and back.
frequency = torch.fft.fftfreq(n)[:, None].hypot(torch.fft.rfftfreq(n))  # cycles per pixel, [n, n//2+1]
defocus = 40 + 20 * torch.rand(poses, 1, 1)
ctf = -torch.sin(defocus * frequency.square() + 0.2)

exposed = realspace.from_spectrum(ctf * realspace.to_spectrum(clean, 2), (n, n))
sigma = 4 * exposed.std()
images = exposed + sigma * torch.randn_like(exposed)

# %%
# The best estimate of a component x from images CTF x + noise is sum(CTF image) / (sum(CTF^2) + 1 / SNR). So the
# spectra are multiplied by the CTF, and the weights are CTF^2. ``backward_project`` undoes the shifts and adds up both;
# oversampling, a reconstruction in a box twice as large, makes its interpolation accurate.
spectra = realspace.to_spectrum(images, 2)
total, weight = backward_project(ctf * spectra, orientations, shifts, oversampling=2, weights=ctf.square())

# %%
# The signal-to-noise ratio of a component, as it would be without CTF, per shell of cycles per box. The signal is the
# power that the images have beyond that of the noise, known here: n^2 sigma^2 in every component of a transform.
noise = n**2 * sigma.square()
shells = (n * frequency).round().long().flatten()
excess = torch.bincount(shells, (spectra.abs().square().mean(0) - noise).flatten())
snr = excess / torch.bincount(shells, ctf.square().mean(0).flatten()) / noise

# %%
# ``reconstruct`` divides, transforms, crops and corrects for interpolation. "radial" divides by the weight almost
# wherever there is any, and so keeps all noise; "wiener" leaves out what has no signal.
radial = realspace.reconstruct(total, weight, oversampling=2, policy="radial")
wiener = realspace.reconstruct(total, weight, oversampling=2, policy="wiener", snr=snr.clamp(min=1e-4))

# %%
# Fourier shell correlation compares shells one by one and does not notice a filter, so the two policies nearly agree
# in it. The maps do not.
fsc = {"radial": realspace.fsc(radial, volume), "wiener": realspace.fsc(wiener, volume)}
resolution = n / realspace.fsc_crossing(fsc["wiener"])

figure, axes = plt.subplots(1, 5, figsize=(12, 3), width_ratios=[1, 1, 1, 1, 1.4], layout="constrained")
sections = {"truth": volume, "radial": radial, "wiener": wiener}
for ax, (name, box) in zip(axes, [("one of the images", images[:1]), *sections.items()]):
    ax.imshow(box[len(box) // 2], cmap="gray")
    ax.set(title=name, xticks=[], yticks=[])
for name, curve in fsc.items():
    axes[-1].plot(curve, label=name)
axes[-1].axhline(0.5, color="gray", linewidth=0.8, linestyle=":")
axes[-1].set(
    xlabel="cycles per box", ylabel="FSC with the truth", title=f"{resolution:.1f} pixels at FSC 0.5"
)
axes[-1].legend(frameon=False)
plt.show()

# %%
similarity = torch.cosine_similarity(wiener.flatten(), volume.flatten(), dim=0)
assert similarity > 0.85
assert fsc["wiener"][:8].min() > 0.8
