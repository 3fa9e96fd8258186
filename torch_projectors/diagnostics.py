"""What a bug report should say about the installation."""

from __future__ import annotations

import os
import platform
import sys

import numpy
import pluggy
import torch

from . import plugins
from .version import VERSION


def info() -> dict[str, str]:
    """Versions, devices and backends, name by name."""
    facts = {
        "torch_projectors": f"{VERSION} (plugin ABI {plugins.ABI})",
        "python": f"{sys.version.split()[0]} ({platform.python_implementation()})",
        "torch": f"{torch.__version__} (CUDA {torch.version.cuda or 'none'}, {torch.get_num_threads()} threads)",
        "numpy": numpy.__version__,
        "pluggy": pluggy.__version__,
        "system": f"{platform.system()} {platform.release()} {platform.machine()}, {os.cpu_count()} cores",
    }
    for i in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(i)
        facts[f"cuda:{i}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        facts["mps"] = "available"
    facts[plugins.DISABLE] = os.environ.get(plugins.DISABLE, "not set")
    for name, backend in plugins.backends().items():
        device = f" for {backend.device} device" if backend.device else ""
        reason = f": {backend.reason}" if backend.reason else ""
        facts[f"backend {name}"] = (
            f"{backend.distribution} {backend.version}, {backend.status}{device}{reason}"
        )
    return facts


def report() -> None:
    facts = info()
    width = max(len(name) for name in facts)
    for name, fact in facts.items():
        print(f"{name:<{width}}  {fact}")
