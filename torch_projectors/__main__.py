"""Command line: `torch-projectors`, or `python -m torch_projectors`."""

from __future__ import annotations

import argparse
import inspect
import signal
import sys
from collections.abc import Sequence
from typing import Any, Optional

from . import commandline, demo, diagnostics, verification
from .demo import DemoError
from .errors import InputError
from .jobs import describe, fsc, project, reconstruct, refine
from .jobs.interrupts import Interrupted
from .outputs import OutputError

JOBS = {
    "project": (
        project.run,
        "images of a map: at the poses of a STAR file, or all around it",
        "torch-projectors project map.mrc --count 10000 --defocus 8000 20000 --snr 0.1 -o images.mrcs",
    ),
    "reconstruct": (
        reconstruct.run,
        "a map from particles: halves, their correlation, the filtered map",
        "torch-projectors reconstruct particles.star --point-group D7 --mask mask.mrc -o map.mrc\n"
        "  torchrun --nproc-per-node 4 -m torch_projectors reconstruct particles.star -o map.mrc",
    ),
    "refine": (
        refine.run,
        "poses of particles, refined by gradient against a map from where they are",
        "torch-projectors refine particles.star --map map.mrc --resolution 8 -o refined.star",
    ),
    "fsc": (
        fsc.run,
        "the Fourier shell correlation of two maps",
        "torch-projectors fsc map_half1.mrc map_half2.mrc --mask mask.mrc -o fsc.png",
    ),
}


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="torch-projectors",
        description="Projection operators for cryo-EM: from files to maps, a demonstration, and the installation.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (function, summary, example) in JOBS.items():
        commandline.add(commands, name, function, summary, example)
    _add_demo(commands)
    describer = commands.add_parser(
        "info",
        help="what files hold; without files versions, devices and backends, to paste into a bug report",
        description=(
            "Print what maps, stacks and STAR files hold. Without files: versions, devices, and which backends are "
            "installed, loaded, failed, and why."
        ),
        epilog="example: torch-projectors info particles.star map.mrc",
    )
    describer.add_argument("files", nargs="*", metavar="FILE", help="STAR, MRC or MRCS")
    verifier = commands.add_parser(
        "verify",
        help="check every installed backend against the float64 reference",
        description=(
            "Run every geometry, interpolation and option on each installed backend, device and precision, and compare "
            "values, gradients and adjointness with the float64 reference. The exit code is 1 if anything fails."
        ),
        epilog="example: torch-projectors verify --backend cpu --every-case",
    )
    verifier.add_argument(
        "--backend", action="append", metavar="NAME", help="only this one; may be given more than once"
    )
    verifier.add_argument(
        "--every-case", action="store_true", help="a row for each case, not for each geometry"
    )
    return parser


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = command_line()
    options = vars(parser.parse_args(arguments))
    command = options.pop("command")
    try:
        if command in JOBS:
            made = options.pop("function")(**options)
            if command == "fsc":
                print(fsc.table(made))
        elif command == "info":
            if not options["files"]:
                diagnostics.report()
            for path in options["files"]:
                print(describe.describe(path))
        elif command == "demo":
            demo.run(**options)
        else:
            return 0 if verification.report(options["backend"], options["every_case"]) else 1
    except (DemoError, InputError, OutputError, Interrupted) as error:
        print(f"{command}: {error}", file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 2
    except ValueError as error:
        if command != "verify":
            raise
        parser.error(str(error))
    return 0


def console() -> int:
    """`main`, and Ctrl-C, or SIGTERM, at any moment."""

    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return main()
    except KeyboardInterrupt:
        print("interrupted: no result was written", file=sys.stderr)
        return 130
    finally:
        signal.signal(signal.SIGTERM, before)


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="refine the poses of simulated images by gradient, and reconstruct: a table, a picture, maps",
        description=(
            "Simulate noisy images of a molecule whose Fourier transform is known in closed form, disturb their poses, "
            "refine the poses by gradient descent through the operators, and reconstruct from disturbed, refined and "
            "true poses. Writes a folder with a picture, the maps (MRC) and the numbers (JSON)."
        ),
        epilog="example: torch-projectors demo --snr 0.5 -o noisier",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    defaults = {name: p.default for name, p in inspect.signature(demo.run).parameters.items()}
    for flags, kind, metavar, text in (
        (("-o", "--output"), str, "FOLDER", "what to write"),
        (("--size",), int, "N", "edge of images and maps, in pixels"),
        (("--images",), int, "P", "how many images"),
        (("--snr",), float, "RATIO", "variance of the signal by that of the noise, pixel by pixel"),
        (("--degrees",), float, "ANGLE", "standard deviation of the disturbance about each axis"),
        (("--pixels",), float, "LENGTH", "standard deviation of the disturbance along each axis"),
        (("--seed",), int, "SEED", "of the molecule, the poses and the noise"),
        (("--device",), str, "DEVICE", "cpu, cuda, cuda:1, mps"),
    ):
        name = flags[-1].lstrip("-")
        parser.add_argument(*flags, type=kind, metavar=metavar, help=text, default=defaults[name])
    parser.add_argument("--overwrite", action="store_true", help="replace the folder of an earlier run")


if __name__ == "__main__":
    sys.exit(console())
