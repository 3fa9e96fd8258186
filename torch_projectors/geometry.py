"""What an operation is, beside its tensors: two grids, an interpolation, and the scale between them."""

from __future__ import annotations

from typing import NamedTuple

# Number of taps along an axis, less one; the ops speak of interpolations by these codes.
INTERPOLATION_CODES = {"nearest": 0, "linear": 1, "cubic": 3}


class Geometry(NamedTuple):
    """The arguments that every op ends with.

    volume_shape, image_shape: real-space shapes, ([D,] H, W); an "image" may itself be a volume.
    interpolation: one of INTERPOLATION_CODES.
    oversampling: volume frequencies per image frequency; a sample lies at p = oversampling * M @ k.
    cutoff: images are zero where |k| > cutoff, in image frequencies; may be infinite.
    pairs_once: images count each Friedel pair once: entries of columns that hold both of its members count half.
    """

    volume_shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    interpolation: int
    oversampling: float
    cutoff: float
    pairs_once: bool = False
