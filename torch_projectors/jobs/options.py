"""Checks of options that several jobs have."""

from __future__ import annotations

import math

from ..errors import InputError


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**63:
        raise InputError(f"--seed: expected a number from 0 to 2^63 - 1, got {seed}")


def check_oversampling(oversampling: float, box: int, most: float = math.inf) -> None:
    """That a box of so many pixels is padded to a whole number of points."""
    padded = oversampling * box
    if not 1 <= oversampling <= most or math.isinf(padded) or abs(padded - round(padded)) > 1e-6 * padded:
        limits = f"1 to {most:g}" if most < math.inf else "at least 1"
        raise InputError(
            f"--oversampling: expected {limits}, and a whole number of points for {box} pixels, got {oversampling:g}"
        )
