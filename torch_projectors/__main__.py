"""Command line: `python -m torch_projectors`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Optional

from . import diagnostics, verification


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m torch_projectors",
        description="Differentiable projection operators: the installation.",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
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
    try:
        return 0 if verification.report(options.backend, options.every_case) else 1
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit("interrupted")
