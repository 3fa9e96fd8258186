"""Backends: compiled kernels for the ops, in distributions of their own.

A backend is an entry point of the group `torch_projectors.backends` that names a module (or object) with two hooks,
marked by `hookimpl`. Entry points are listed on import of `torch_projectors` and loaded when an op first needs a
kernel, each on its own: one that fails leaves the reference in its place, and a warning that says why.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import threading
import warnings
from dataclasses import dataclass
from typing import Any

import pluggy
import torch

from .version import VERSION

# What plugins are built against: the schemas of the ops and what they mean. Bump it when either changes.
ABI = 1

GROUP = "torch_projectors.backends"
DISABLE = "TORCH_PROJECTORS_DISABLE"

hookspec = pluggy.HookspecMarker("torch_projectors")
hookimpl = pluggy.HookimplMarker("torch_projectors")


class BackendWarning(UserWarning):
    """An installed backend cannot be used."""


class Hooks:
    """What a backend implements."""

    @hookspec
    def torch_projectors_backend(self) -> dict[str, Any]:
        """Describe the backend: `abi` (int), `version` (str) and `device` (the torch device type it serves).

        Called first; nothing may be registered yet.
        """

    @hookspec
    def torch_projectors_register(self, torch_version: tuple[int, int]) -> None:
        """Register kernels for the ops of namespace `torch_projectors`, or raise with the reason why not.

        Raise before anything is registered: there is no taking back.
        """


@dataclass
class Backend:
    """What is known of a backend. status: found (not loaded yet), loaded, failed or disabled."""

    name: str
    distribution: str
    version: str
    status: str
    device: str = ""
    reason: str = ""


_lock = threading.RLock()
_backends: dict[str, Backend] = {}
_entry_points: dict[str, importlib.metadata.EntryPoint] = {}
_pending = False
_loading = False


def discover() -> None:
    """List the installed backends without loading any."""
    global _pending
    # By distribution, which an entry point does not name in Python 3.9.
    found = [(d, p) for d in importlib.metadata.distributions() for p in d.entry_points if p.group == GROUP]
    disabled = {name.strip() for name in os.environ.get(DISABLE, "").split(",")}
    with _lock:
        for distribution, point in found:
            if point.name in _entry_points:  # an editable install beside a wheel lists a backend twice
                continue
            off = bool(disabled & {point.name, "all"})
            _entry_points[point.name] = point
            _backends[point.name] = Backend(
                point.name,
                distribution.metadata["Name"],
                distribution.version,
                "disabled" if off else "found",
                reason=f"disabled by {DISABLE}" if off else "",
            )
            _pending = _pending or not off


def load() -> bool:
    """Load every backend that was found. Returns False, at no cost, where there is nothing left to load."""
    global _pending, _loading
    if not _pending:
        return False
    with _lock:
        if _loading:  # a backend calls an op while it registers
            return False
        if _pending:
            _loading = True
            try:
                found = [b for b in _backends.values() if b.status == "found"]
                for backend in found:
                    _load_one(backend, _entry_points[backend.name])
            finally:
                # Last, so that no other thread runs an op with half of the backends.
                _loading = _pending = False
            # After all of them, for a warning may be raised as an error.
            for backend in found:
                if backend.status == "failed":
                    warnings.warn(_complaint(backend), BackendWarning, stacklevel=2)
    return True


def _complaint(backend: Backend) -> str:
    return (
        f"backend {backend.name!r} ({backend.distribution}) is installed but cannot be used, so the PyTorch reference "
        f"serves instead: {backend.reason}. Set {DISABLE}={backend.name} to silence this."
    )


# A tracer cannot follow locks and imports, so it calls `load` at once. This is what torch.compiler's
# assume_constant_result does; to call that would import the compiler with this package, for over a second.
load._dynamo_marked_constant = True


def _load_one(backend: Backend, entry_point: importlib.metadata.EntryPoint) -> None:
    try:
        manager = pluggy.PluginManager("torch_projectors")
        manager.add_hookspecs(Hooks)
        manager.register(entry_point.load(), name=backend.name)
        manager.check_pending()
        descriptions = manager.hook.torch_projectors_backend()
        if len(descriptions) != 1 or not manager.hook.torch_projectors_register.get_hookimpls():
            raise RuntimeError("it lacks the hooks torch_projectors_backend and torch_projectors_register")
        (description,) = descriptions
        if description.get("abi") != ABI:
            raise RuntimeError(
                f"it was built for ABI {description.get('abi')} of torch_projectors, and this one has ABI {ABI}; "
                f"install matching versions: pip install -U torch-projectors {backend.distribution}"
            )
        backend.version = str(description.get("version", backend.version))
        backend.device = str(description["device"])
        for other in _backends.values():
            if other.status == "loaded" and other.device == backend.device:
                raise RuntimeError(
                    f"backend {other.name!r} already serves {backend.device} tensors; disable either"
                )
        manager.hook.torch_projectors_register(torch_version=torch_version())
        backend.status = "loaded"
    except Exception as error:
        backend.status, backend.reason = "failed", f"{type(error).__name__}: {error}"


def torch_version() -> tuple[int, int]:
    """(major, minor) of the installed torch."""
    major, minor = re.findall(r"\d+", torch.__version__)[:2]
    return int(major), int(minor)


def backends() -> dict[str, Backend]:
    """The reference and every installed backend: whether it is loaded, for which device, and if not, why."""
    load()
    reference = Backend("reference", "torch-projectors", VERSION, "loaded", device="any")
    return {"reference": reference, **_backends}


_chosen = "auto"
_regions: list[use_backend] = []


def set_backend(name: str) -> None:
    """Choose what serves the ops from now on, in the whole process.

    name: "auto" (a loaded backend for the device, else the reference), "reference", or the name of a loaded
    backend, which makes a tensor on a device that it does not serve an error.
    """
    global _chosen
    _check(name)
    _chosen = name


class use_backend:
    """Context manager that does as `set_backend` for a region; also in functions under `torch.compile` (of torch 2.4:
    only around them).

    The choice holds for the whole process, not for one thread, as torch's own backend flags do. Of open regions the
    last one entered counts. Gradients are computed by the backend that computed the result.
    """

    def __init__(self, name: str) -> None:
        _check(name)
        self.name = name

    def __enter__(self) -> use_backend:
        _regions.append(self)
        return self

    def __exit__(self, *_: Any) -> None:
        # The last of its entries: a region may be entered again inside itself.
        del _regions[len(_regions) - 1 - _regions[::-1].index(self)]


def selected(device: torch.device) -> str:
    """The chosen backend, "auto" or "reference"."""
    name = _regions[-1].name if _regions else _chosen
    if name not in ("auto", "reference") and _backends[name].device != device.type:
        raise ValueError(
            f"backend {name!r} is chosen and serves {_backends[name].device} tensors, but these are on {device}"
        )
    return name


def serving(device: torch.device) -> str:
    """The name of the backend that serves tensors on the device, as chosen."""
    name = selected(device)
    if name != "auto":
        return name
    loaded = [b.name for b in backends().values() if b.status == "loaded" and b.device == device.type]
    return loaded[0] if loaded else "reference"


def _check(name: str) -> None:
    if name in ("auto", "reference"):
        return
    load()
    backend = _backends.get(name)
    if backend is None:
        known = ", ".join(repr(n) for n in ("auto", "reference", *_backends))
        raise ValueError(f"unknown backend {name!r}; expected one of {known}")
    if backend.status != "loaded":
        raise RuntimeError(f"backend {name!r} is {backend.status}: {backend.reason}")
