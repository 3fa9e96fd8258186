"""What a result was made by: command line, versions, options."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .. import plugins
from ..version import VERSION


def facts(job: str, device: str, options: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "job": job,
        "command": shlex.join(["torch-projectors", *sys.argv[1:]]),
        "torch_projectors": VERSION,
        "torch": torch.__version__,
        "python": sys.version.split()[0],
        "device": device,
        "backend": plugins.serving(torch.device(device)),
        "threads": torch.get_num_threads(),
        "options": {
            name: str(value) if isinstance(value, Path) else value for name, value in options.items()
        },
    }


def labels(made: Mapping[str, Any]) -> list[str]:
    """For the header of an MRC file, which holds ten of 80 characters: as much of the command as fits."""
    text = f"torch-projectors {made['torch_projectors']}: {made['command']}"
    return [text[i : i + 80] for i in range(0, min(len(text), 800), 80)]


def write(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
