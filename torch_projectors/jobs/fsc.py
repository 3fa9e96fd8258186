"""How well two maps agree."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Optional, Union

from ..errors import InputError
from ..files import read_map, read_mask
from ..outputs import check_new, new_files
from . import correlation, plots, record
from .options import check_seed
from .ranks import checked_device


def run(
    map: Union[str, Path],
    other: Union[str, Path],
    *,
    output: Optional[Union[str, Path]] = None,
    mask: Optional[str] = None,
    pixel_size: Optional[float] = None,
    seed: int = 0,
    overwrite: bool = False,
    device: str = "cpu",
) -> dict[str, Any]:
    """The Fourier shell correlation of two maps, printed as a table, and drawn if an output is named.

    Args:
        map: a map.
        other: another one, of the same box and pixel size.
        output: a picture, ending in .png; the numbers go into a JSON file beside it.
        mask: map of values from 0 to 1; the correlation inside it is corrected for what the mask does by itself, by
            maps whose phases are random.
        pixel_size: in Å, in place of what the headers say.
        seed: of random phases.
        overwrite: replace earlier results.
        device: "cpu", "cuda", "cuda:1" ...

    Returns:
        What the JSON file holds.
    """
    options = dict(locals())
    check_seed(seed)
    where = checked_device(device)
    paths = []
    if output is not None:
        if Path(output).suffix != ".png":
            raise InputError(f"-o: expected the name of a picture, ending in .png, got {output}")
        paths = [Path(output), Path(output).with_suffix(".json")]
        check_new(paths, overwrite, [map, other, mask])
    a, size = read_map(map)
    b, other_size = read_map(other)
    if a.shape != b.shape:
        boxes = " and ".join(" x ".join(str(n) for n in reversed(x.shape)) for x in (a, b))
        raise InputError(f"{map} and {other}: expected maps of the same box, got {boxes}")
    if pixel_size is None:
        if abs(size - other_size) > 1e-3 * max(size, other_size):
            raise InputError(
                f"{map} and {other}: expected maps of the same pixel size, got {size:g} and {other_size:g} Å; "
                "--pixel-size says what it is"
            )
        pixel_size = size if size > 0 else 1.0
    if not 0 < pixel_size < math.inf:
        raise InputError(f"--pixel-size: expected a number > 0, got {pixel_size:g}")
    for path, x in ((map, a), (other, b)):
        if x.min() == x.max():
            raise InputError(f"{path}: expected a map with something in it, got {x.min():g} everywhere")
    inside = None if mask is None else read_mask(mask, a.shape)
    curves = correlation.compare(*(x if x is None else x.to(where) for x in (a, b, inside)), seed)
    box = max(a.shape)
    made = record.facts(
        "fsc", str(where), {name: value for name, value in options.items() if name != "overwrite"}
    )
    made.update(pixel_size=pixel_size, box=box, **curves.facts(box, pixel_size))
    if paths:
        with new_files(paths, overwrite) as (picture, numbers):
            plots.draw_fsc(picture, curves, box, pixel_size)
            record.write(numbers, made)
    return made


def table(made: dict[str, Any]) -> str:
    """The result as text: a row for each shell."""
    names = list(made["fsc"])
    lines = ["shell  resolution (Å)  " + "  ".join(f"{name:>9}" for name in names)]
    for shell in range(1, len(made["fsc"]["unmasked"])):
        angstrom = made["box"] * made["pixel_size"] / shell
        values = "  ".join(f"{made['fsc'][name][shell]:9.4f}" for name in names)
        lines.append(f"{shell:5d}  {angstrom:14.2f}  {values}")
    best = made["fsc"].get("corrected", made["fsc"]["unmasked"])[1:]
    for threshold, angstrom in made["resolution_angstrom"].items():
        falls = min(best) < float(threshold)
        lines.append(f"falls below {threshold} at {angstrom:.2f} Å" if falls else f"stays above {threshold}")
    return "\n".join(lines)
