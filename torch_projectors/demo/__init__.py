"""The library at work: noisy images of a molecule, poses refined by gradient, and the map that they give.

`refinement.py` is what to learn from; `molecule.py` makes the data, `report.py` shows the results.
"""

from __future__ import annotations

import importlib.util
import math
import shlex
import sys
import time
from pathlib import Path

import torch

from .. import plugins, realspace, rotations
from ..outputs import new_folder
from ..version import VERSION
from .molecule import Molecule
from .refinement import Poses, reconstruct, refine

ROUNDS, STEPS = 8, 10
NEEDS = ("matplotlib", "mrcfile", "rich")
NUMBERS = "results.json"


class DemoError(Exception):
    """The demo cannot run as asked; the message says why, and what would help."""


def run(
    output: str = "torch-projectors-demo",
    size: int = 64,
    images: int = 1000,
    snr: float = 1.0,
    degrees: float = 5.0,
    pixels: float = 2.0,
    seed: int = 0,
    device: str = "cpu",
    overwrite: bool = False,
) -> Path:
    """Run the demo and write its folder.

    Args:
        output: folder for the picture, the maps and the numbers.
        size: edge of images and maps, in pixels.
        images: how many there are.
        snr: variance of the signal by that of the noise, pixel by pixel.
        degrees, pixels: standard deviation of what poses are disturbed by, about and along each axis.
        seed: of the molecule, the poses and the noise.
        device: where to compute.
        overwrite: replace the folder of an earlier run.
    """
    options = {"size": size, "images": images, "snr": snr, "degrees": degrees, "pixels": pixels, "seed": seed}
    _check(options, device)
    from . import report

    with new_folder(output, NUMBERS, overwrite) as folder:
        report.say(
            f"Simulating {images} images of {size} x {size} pixels of a molecule, signal to noise {snr:g}.\n"
            f"Their poses are known only to {degrees:g} degrees about, and {pixels:g} pixels along, each axis."
        )
        start = time.perf_counter()
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> torch.Tensor:
            return torch.randn(*shape, generator=generator)

        molecule = Molecule.fold(size, generator=generator)
        truth = molecule.map(size)
        poses = Poses(rotations.random(images, generator=generator), pixels * normal(images, 2))
        disturbed = poses.moved(math.radians(degrees) * normal(images, 3), pixels * normal(images, 2))
        clean = molecule.images(*poses, size)
        noisy = clean + normal(*clean.shape) * clean.std() / math.sqrt(snr)

        spectra = realspace.to_spectrum(noisy, 2).to(device)
        poses, disturbed = poses.to(device), disturbed.to(device)
        with report.bar("refining poses", ROUNDS * STEPS) as progress:
            refined = refine(spectra, disturbed, snr, ROUNDS, STEPS, progress)
        results = {}
        for name, found in {"disturbed": disturbed, "refined": refined, "true": poses}.items():
            found = found.in_frame_of(poses)
            density = reconstruct(spectra, found, snr)
            results[name] = report.Result.of(found, poses, density, truth.to(device))
        seconds = time.perf_counter() - start

        facts = {
            "command": shlex.join(["python", "-m", "torch_projectors", *sys.argv[1:]]),
            "torch_projectors": VERSION,
            "torch": torch.__version__,
            "device": device,
            "backend": plugins.serving(torch.device(device)),
            "threads": torch.get_num_threads(),
            "seconds": round(seconds, 1),
            "options": options,
        }
        report.show(results, facts)
        report.write_numbers(folder / NUMBERS, facts, results)
        report.write_maps(folder, truth, results, f"torch-projectors {VERSION}, demo --seed {seed}")
        report.draw(folder / "demo.png", noisy[:4], truth, results)
    report.say(f"Written to {output}: demo.png, the picture; *.mrc, the maps; {NUMBERS}, the numbers.")
    return Path(output)


def _check(options: dict[str, float], device: str) -> None:
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise DemoError(f"needs {' and '.join(missing)}: pip install 'torch-projectors[demo]'")
    for name, smallest in {"size": 16, "images": 20, "degrees": 0, "pixels": 0}.items():
        if not smallest <= options[name] < math.inf:
            raise DemoError(f"--{name}: expected at least {smallest}, got {options[name]}")
    if not 0 < options["snr"] < math.inf:
        raise DemoError(f"--snr: expected a number > 0, got {options['snr']}")
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise DemoError(f"--device: cannot compute on {device!r}: {str(error).splitlines()[0]}") from error
