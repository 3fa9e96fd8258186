"""Differentiable projection operators for cryo-EM and tomography."""

from . import conventions, plugins, realspace, refinement, rotations, symmetry
from .diagnostics import info
from .fourier import backward_project, forward_project
from .plugins import backends, set_backend, use_backend
from .verification import verify
from .version import VERSION as __version__

plugins.discover()

__all__ = [
    "__version__",
    "backends",
    "backward_project",
    "conventions",
    "forward_project",
    "info",
    "realspace",
    "refinement",
    "rotations",
    "set_backend",
    "symmetry",
    "use_backend",
    "verify",
]
