"""Where numbers come from: without this they mean nothing."""

from __future__ import annotations

import importlib
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Optional

import torch

import torch_projectors
from torch_projectors.plugins import serving


def output(*command: str) -> Optional[str]:
    try:
        run = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip() or None


def cpu() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return output("sysctl", "-n", "machdep.cpu.brand_string") or platform.processor()
    return platform.processor() or platform.machine()


def backend(device: torch.device, chosen: str) -> str:
    """What serves the ops, its version, and the vector instructions that it chose, or the architectures it holds."""
    with torch_projectors.use_backend(chosen):
        found = torch_projectors.backends()[serving(device)]
    detail = {"cpu": "level", "cuda": "architectures"}.get(found.name)
    if detail is None:
        return f"{found.name} {found.version}"
    library = importlib.import_module(f"torch_projectors_{found.name}.library")
    return f"{found.name} {found.version}, {getattr(library, detail)()}"


def accelerator(device: torch.device) -> str:
    """Its name; of a GPU also compute capability, memory and driver."""
    if device.type != "cuda":
        return device.type
    p = torch.cuda.get_device_properties(device)
    driver = output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
    driver = driver.splitlines()[0] if driver else "unknown"
    return f"{p.name}, {p.major}.{p.minor}, {p.total_memory / 2**30:.0f} GiB, driver {driver}"


def describe(device: torch.device, chosen: str) -> dict[str, object]:
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        # Threads that wait either spin or sleep.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "device": accelerator(device),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_projectors": torch_projectors.__version__,
        "commit": output("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
        "backend": backend(device, chosen),
    }
