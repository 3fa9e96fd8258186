"""Command line: `python -m torch_projectors`."""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Sequence
from typing import Any, Optional

from . import demo, diagnostics, verification
from .demo import DemoError
from .outputs import OutputError


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torch_projectors",
        description="Differentiable projection operators: a demonstration, and the installation.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands)
    commands.add_parser(
        "info",
        help="versions, devices and backends, to paste into a bug report",
        description="Print versions, devices, and which backends are installed, loaded, failed, and why.",
    )
    verifier = commands.add_parser(
        "verify",
        help="check every installed backend against the float64 reference",
        description=(
            "Run every geometry, interpolation and option on each installed backend, device and precision, and compare "
            "values, gradients and adjointness with the float64 reference. The exit code is 1 if anything fails."
        ),
        epilog="example: python -m torch_projectors verify --backend cpu --every-case",
    )
    verifier.add_argument(
        "--backend", action="append", metavar="NAME", help="only this one; may be given more than once"
    )
    verifier.add_argument(
        "--every-case", action="store_true", help="a row for each case, not for each geometry"
    )
    options = parser.parse_args(arguments)
    if options.command == "info":
        diagnostics.report()
        return 0
    if options.command == "demo":
        try:
            demo.run(**{name: value for name, value in vars(options).items() if name != "command"})
        except (DemoError, OutputError) as error:
            print(f"demo: {error}", file=sys.stderr)
            return 2
        return 0
    try:
        return 0 if verification.report(options.backend, options.every_case) else 1
    except ValueError as error:
        parser.error(str(error))


def _add_demo(commands: Any) -> None:
    parser = commands.add_parser(
        "demo",
        help="refine the poses of simulated images by gradient, and reconstruct: a table, a picture, maps",
        description=(
            "Simulate noisy images of a molecule whose Fourier transform is known in closed form, disturb their poses, "
            "refine the poses by gradient descent through the operators, and reconstruct from disturbed, refined and "
            "true poses. Writes a folder with a picture, the maps (MRC) and the numbers (JSON)."
        ),
        epilog="example: python -m torch_projectors demo --snr 0.5 -o noisier",
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
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("interrupted: nothing was written", file=sys.stderr)
        sys.exit(130)
