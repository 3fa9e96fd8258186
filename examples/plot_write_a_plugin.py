"""
Write a backend
===============

A backend serves the functions of this library by kernels of its own, from a package of its own. You learn what such a
package consists of, to write a kernel for one case and leave the others to the reference, and to have it verified,
which also finds a bug put into it on purpose.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt

import torch_projectors

# %%
# A module with two hooks. ``torch_projectors_backend`` says which version of the contract (``abi``) the kernels were
# written for and which device they serve. ``torch_projectors_register`` then registers them, or raises with the reason
# why not: the reference stays in its place, and a warning passes the reason on.
#
# What kernels are given is at the top of ``torch_projectors/ops.py``. This one knows images of volumes by nearest
# interpolation, and hands over everything else. Ops without a kernel are served by the reference anyway.
MODULE = """
import math

import torch

from torch_projectors.geometry import INTERPOLATION_CODES
from torch_projectors.plugins import hookimpl

library = torch.library.Library("torch_projectors", "IMPL")  # kernels live as long as this


@hookimpl
def torch_projectors_backend():
    return {"abi": 1, "version": "0.1.0", "device": "cpu"}


@hookimpl
def torch_projectors_register(torch_version):
    if torch_version < (2, 5):
        raise RuntimeError("needs torch 2.5 or later")  # before anything is registered
    library.impl("forward_project", forward_project, "CPU")


def forward_project(volume, rotations, shifts, *geometry):
    volume_shape, image_shape, interpolation, oversampling, cutoff, pairs_once = geometry
    if len(volume_shape) == 2 or len(image_shape) == 3 or interpolation != INTERPOLATION_CODES["nearest"]:
        return torch.ops.torch_projectors_reference.forward_project(volume, rotations, shifts, *geometry)
    height, width = image_shape
    y = torch.arange(height)
    y = torch.where(y > height // 2, y - height, y)[:, None].expand(-1, width // 2 + 1)
    x = torch.arange(width // 2 + 1).expand(height, -1)
    k = torch.stack([x, y], -1).to(rotations)  # frequencies of the image, [H, W//2+1, 2]
    paired = (x == 0) | (2 * x == width)  # columns that hold both members of each Friedel pair

    position = oversampling * torch.einsum("bpij,hwj->bphwi", rotations[..., :2], k)
    tap = (position + 0.5).floor().long()  # (x, y, z)
    mirrored = tap[..., 0] < 0  # not stored: the conjugate of what is at -tap
    tap = torch.where(mirrored[..., None], -tap, tap)
    size = torch.tensor(volume_shape[::-1])
    inside = (tap.abs() <= size // 2).all(-1) & (k.norm(dim=-1) <= cutoff)
    x, y, z = torch.where(inside[..., None], tap % size, 0).unbind(-1)

    batch = torch.arange(len(volume))[:, None, None, None]
    values = volume[batch, z, y, x]
    # Not the lazy conj(), which Python kernels do not see under torch.compile.
    values = torch.where(mirrored, values.conj_physical(), values)
    if shifts is not None:
        turns = torch.einsum("bpi,hwi->bphw", shifts, k / k.new_tensor([width, height]))
        values = values * torch.polar(torch.ones_like(turns), -2 * math.pi * turns)
    if pairs_once:
        values = torch.where(paired, values / 2, values)
    return torch.where(inside, values, 0)
"""

# %%
# A package is found by an entry point in its ``pyproject.toml``:
#
# .. code-block:: toml
#
#     [build-system]
#     requires = ["setuptools"]
#     build-backend = "setuptools.build_meta"
#
#     [project]
#     name = "nearest-backend"
#     version = "0.1.0"
#     dependencies = ["torch-projectors"]
#
#     [project.entry-points."torch_projectors.backends"]
#     nearest = "nearest_backend"
#
# ``pip install .`` makes of it the three files below, here written to a temporary folder, so that nothing stays behind.


def install(module, site):
    (site / "nearest_backend.py").write_text(module)
    info = site / "nearest_backend-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: nearest-backend\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[torch_projectors.backends]\nnearest = nearest_backend\n")


# %%
# Verification runs every case in both precisions and compares with the reference in float64, within what rounding
# explains. Once a package is installed, ``python -m torch_projectors verify`` prints the results as a table. Here they
# are read from a process of its own, since registered kernels cannot be taken back, and of some cases only. Other
# backends are disabled there, since one alone can serve a device.
PROGRAM = """
import json
import torch_projectors
from torch_projectors.cases import CASES

of_volumes = [c for c in CASES if len(c.volume_shape) == 3 and len(c.image_shape) == 2]
cases = [c for c in of_volumes if c.interpolation in ("nearest", "linear")]
results = torch_projectors.verify(["nearest"], cases)
print(json.dumps([[r.case.interpolation, str(r.dtype)[6:], r.error / r.error_bound, r.passed] for r in results]))
"""


def verify(module):
    others = [name for name in torch_projectors.backends() if name != "reference"]
    with tempfile.TemporaryDirectory() as site:
        install(module, Path(site))
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([site, *sys.path]),
            "TORCH_PROJECTORS_DISABLE": ",".join(others),
        }
        command = [sys.executable, "-c", PROGRAM]
        run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True, timeout=300)
    return json.loads(run.stdout)


# %%
# The kernel as it is, and one that forgets that mirrored values are conjugates.
right = verify(MODULE)
wrong = verify(MODULE.replace("values.conj_physical()", "values"))

figure, ax = plt.subplots(figsize=(7, 3.8), layout="constrained")
for results, name, marker in [(wrong, "without conjugation", "x"), (right, "as it is", ".")]:
    groups = [f"{interpolation}\n{dtype}" for interpolation, dtype, _, _ in results]
    ax.plot(groups, [error for _, _, error, _ in results], marker, linestyle="", label=name)
ax.axhline(1, color="gray", linewidth=0.8, linestyle=":")
ax.set_yscale("symlog", linthresh=1e-5)  # some errors are zero
ax.set(ylabel="error / bound", ylim=(-1e-5, 1e15), yticks=[0, 1e-4, 1, 1e4, 1e8, 1e12])
ax.legend(frameon=False)
plt.show()

assert all(passed for _, _, _, passed in right)
assert all(passed == (interpolation != "nearest") for interpolation, _, _, passed in wrong)

# %%
# Compiled kernels are registered from the same hook: it loads the package's shared library by ``ctypes`` and calls a
# function of it that registers the kernels through LibTorch's stable C shim, so that one build serves many versions of
# torch.
