"""Packages that only some jobs need, each of an optional extra."""

from __future__ import annotations

import importlib
from typing import Any

from .errors import InputError

EXTRAS = {"mrcfile": "io", "starfile": "io", "pandas": "io", "matplotlib": "plot", "rich": "plot"}


def need(module: str) -> Any:
    """The imported module, or an error that says how to install it."""
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(
            f"this needs {package}: pip install 'torch-projectors[{EXTRAS[package]}]' ({error})"
        ) from error
