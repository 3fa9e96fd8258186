"""
torch.compile and torch.func
============================

Projections work under torch's compiler and function transforms. You learn to compile a loss whole, to get gradients per
image by ``vmap`` and ``grad``, and to build from ``jvp`` a Gauss-Newton step, which refines poses in a few steps where
gradient descent takes dozens.
"""

import math

import matplotlib.pyplot as plt
import torch
from torch.func import grad, jvp, vmap

from torch_projectors import forward_project, realspace, rotations

torch.manual_seed(0)

# %%
# A volume of Gaussian blobs, transformed once, and cubic interpolation, for smooth derivatives.
n, count = 32, 24
axis = torch.arange(n) - n // 2
points = torch.cartesian_prod(axis, axis, axis).flip(-1).float()  # (x, y, z) of every voxel
centres = 4 * torch.randn(20, 3)
volume = torch.exp(-torch.cdist(points, centres).square() / 3).sum(-1).reshape(n, n, n)
spectrum = realspace.prepare(volume, dims=3, interpolation="cubic")


# %%
# A pose is five numbers: a turn from the rotation known so far, as a rotation vector, and a shift. With gradient
# "stored", as ``from_spectrum`` expects it, pixels have their exact derivatives.
def project(pose, first):
    turned = first @ rotations.from_vectors(pose[..., :3])
    projections = forward_project(spectrum, turned, pose[..., 3:], (n, n), "cubic", 2, gradient="stored")
    return realspace.from_spectrum(projections, (n, n))


def loss(pose, first, image):
    return (project(pose, first) - image).square().sum()


first = rotations.random(count)
truth = torch.cat([math.radians(6) * torch.randn(count, 3), torch.randn(count, 2)], dim=-1)
images = project(truth, first)
images += 0.5 * images.std() * torch.randn_like(images)
start = torch.zeros(count, 5)

# %%
# Compiled whole, with its gradient. "aot_eager" makes and differentiates the graph, and needs no C++ compiler. The
# default backend of ``torch.compile``, inductor, needs one; it fuses what real arithmetic there is around projections.
compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
pose = start.clone().requires_grad_()
(compiled_gradient,) = torch.autograd.grad(compiled(pose, first, images), pose)
(eager_gradient,) = torch.autograd.grad(loss(pose, first, images), pose)
torch.testing.assert_close(compiled_gradient, eager_gradient, rtol=1e-3, atol=0.1)

# %%
# Gradients per image. ``vmap`` writes the loop over images, and runs it as one batch. (torch itself refuses to compile
# transforms nested in each other.)
gradients = vmap(grad(loss))(start, first, images)
one_by_one = torch.stack([grad(loss)(*arguments) for arguments in zip(start, first, images)])
torch.testing.assert_close(gradients, one_by_one, rtol=1e-3, atol=0.1)


# %%
# A Jacobian of all pixels by five parameters has few columns, which is the case for forward mode. No image depends on
# the pose of another, so one ``jvp`` along the same parameter of all poses gives that column for all images.
def linearized(poses):
    def residuals(poses):
        return (project(poses, first) - images).flatten(1)

    columns = [jvp(residuals, (poses,), (along.expand_as(poses),))[1] for along in torch.eye(5)]
    return residuals(poses), torch.stack(columns, dim=-1)  # [count, n*n], [count, n*n, 5]


residual, jacobian = linearized(start)
from_jacobian = 2 * (jacobian.mT @ residual[..., None]).squeeze(-1)
torch.testing.assert_close(from_jacobian, gradients, rtol=1e-3, atol=0.1)


# %%
# Gauss-Newton solves for all five parameters at once in every step. Adam, for comparison, follows the gradient.
def degrees(poses):
    guess, actual = [first @ rotations.from_vectors(p[:, :3]) for p in (poses, truth)]
    return rotations.angles_between(guess, actual).rad2deg()


poses, newton = start, [degrees(start)]
for _ in range(8):
    residual, jacobian = linearized(poses)
    poses = poses - torch.linalg.lstsq(jacobian, residual[..., None]).solution.squeeze(-1)
    newton.append(degrees(poses))

pose, adam = start.clone().requires_grad_(), [degrees(start)]
optimizer = torch.optim.Adam([pose], lr=0.03)
for _ in range(50):
    optimizer.zero_grad()
    loss(pose, first, images).backward()
    optimizer.step()
    adam.append(degrees(pose.detach()))

figure, ax = plt.subplots(figsize=(6, 3.5), layout="constrained")
ax.semilogy(torch.stack(adam).median(dim=-1).values, label="Adam")
ax.semilogy(torch.stack(newton).median(dim=-1).values, marker="o", label="Gauss-Newton")
ax.set(xlabel="step", ylabel="median error of rotation (degrees)")
ax.legend(frameon=False)
plt.show()

assert newton[5].median() < 2
assert newton[5].median() < 0.5 * adam[5].median()
