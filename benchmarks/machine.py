"""Where numbers come from: without this they mean nothing."""

from __future__ import annotations

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
    """What serves the ops, its version, and the vector instructions that it chose."""
    with torch_projectors.use_backend(chosen):
        found = torch_projectors.backends()[serving(device)]
    if found.name != "cpu":
        return f"{found.name} {found.version}"
    from torch_projectors_cpu import library

    return f"{found.name} {found.version}, {library.level()}"


def describe(device: torch.device, chosen: str) -> dict[str, object]:
    return {
        "cpu": cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        # Threads that wait either spin or sleep.
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torch_projectors": torch_projectors.__version__,
        "commit": output("git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"),
        "backend": backend(device, chosen),
    }
