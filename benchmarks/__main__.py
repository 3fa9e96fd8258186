"""Benchmarks of torch_projectors, of every geometry and interpolation at several sizes."""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import sys
import time
from pathlib import Path
from typing import Any, Optional

import torch

import torch_projectors
from torch_projectors.geometry import INTERPOLATION_CODES

from . import accuracy, machine, memory, refinement, report, speed
from .problems import DTYPES, GEOMETRIES, OPERATIONS, Arrays, Problem, calls, limits, peer_calls
from .timing import interleaved

# A projection in 3D has as many pixels as the volume.
POSES = {
    "3-2": {64: 256, 128: 64, 256: 32},
    "2-2": {64: 256, 128: 64, 256: 32},
    "3-3": {64: 8, 128: 2, 256: 1},
}
PEER = ("torch_fourier_slice", "torch_ctf")

# Of no use to --accuracy, --refinement and --report.
PROBLEM = ("boxes", "poses", "geometry", "interpolation", "compare", "memory")

EXAMPLE = """\
operations:
  forward    forward_project: gather
  backward   backward_project with weights: scatter
  gradient   forward_project, and the gradients of reconstruction, rotations and shifts

columns:
  ms/proj    median wall time by the number of projections
  ns/pixel   the same, by the stored pixels inside the cutoff
  no shifts, peer, ratio   (--compare) ours without shifts, torch-fourier-slice, and peer / no shifts:
             above 1, ours is faster

examples:
  python -m benchmarks --quick
      everything once, small: does it run?
  python -m benchmarks --geometry 3-2 --interpolation linear --boxes 64 128 --compare --json result.json
      slices of volumes beside torch-fourier-slice (pip install torch-fourier-slice torch-ctf)
  python -m benchmarks --backend reference --threads 1 --boxes 128 --poses 16
      the PyTorch reference on one thread
  python -m benchmarks --memory
      peak memory beyond inputs and outputs, at box 256 with 16 and 512 poses
  python -m benchmarks --accuracy --threads 1
      errors of every interpolation and oversampling, and what they cost
  python -m benchmarks --refinement --repeats 3 --threads 2
      poses refined by Levenberg-Marquardt, BFGS and Adam: what errors they leave, and when
  python -m benchmarks --report --threads 2 --json benchmarks/results/cpu_report.json
      how time and memory of the CPU backend depend on all else; a part that is in the file already is replaced
  python -m benchmarks --report threads call
      two of its parts
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description=__doc__,
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--boxes", type=int, nargs="+", metavar="N", help="box sizes (64 128 256; with --memory 256)")
    add("--poses", type=int, nargs="+", metavar="P",
        help="projections: one number for all boxes, or one for each (256 64 32, for 3-3 8 2 1); "
        "with --memory every box is measured with each (16 512)")  # fmt: skip
    add("--geometry", nargs="+", choices=list(GEOMETRIES), metavar="G",
        help="dimensions of reconstruction and projection, of 3-2, 2-2, 3-3 (all; with --memory 3-2)")  # fmt: skip
    add("--interpolation", nargs="+", choices=list(INTERPOLATION_CODES), metavar="I",
        help="of nearest, linear, cubic (linear cubic; with --memory linear)")  # fmt: skip
    add("--backend", default="auto", help='"auto", "reference" or an installed backend (auto)')
    add("--device", default="cpu", help="cpu, cuda, mps (cpu)")
    add("--dtype", default="complex64", choices=list(DTYPES), help="(complex64)")
    add("--threads", type=int, metavar="T", help="of PyTorch on the CPU (its own choice)")
    add("--repeats", type=int, default=5, metavar="R", help="timed rounds; medians are shown (5)")
    add("--quick", action="store_true", help="box 32, few poses, 3 rounds, unless given")
    add("--compare", action="store_true", help="time torch-fourier-slice in turn with ours")
    add("--memory", action="store_true", help="measure memory instead of time")
    add("--accuracy", action="store_true", help="measure errors against a closed form, and time beside them")
    add("--refinement", action="store_true", help="refine poses in several ways: errors left, and time")
    add("--report", nargs="*", choices=list(report.PARTS), metavar="PART",
        help=f"measure how the CPU backend's time and memory grow, all or some of {', '.join(report.PARTS)}; "
        "large takes 14 GB")  # fmt: skip
    add("--json", type=Path, metavar="FILE", help="write results and machine there")
    args = parser.parse_args()

    try:
        args.device = torch.device(args.device)
        torch.empty(0, device=args.device)
        with torch_projectors.use_backend(args.backend):
            torch_projectors.plugins.selected(args.device)
    except Exception as error:
        parser.error(str(error))
    if args.compare and not all(importlib.util.find_spec(name) for name in PEER):
        parser.error("--compare needs torch-fourier-slice: pip install torch-fourier-slice torch-ctf")
    if args.compare and args.memory:
        parser.error("--compare times, and --memory does not")
    if args.memory and (sys.platform == "win32" or args.device.type == "mps"):
        parser.error("--memory works on the CPU of Linux and macOS, and on CUDA")
    given = [f"--{name}" for name in PROBLEM if vars(args)[name]]
    studies = [
        f"--{name}" for name in ("accuracy", "refinement", "report") if vars(args)[name] not in (None, False)
    ]
    if len(studies) > 1 or (studies and given):
        parser.error(f"{studies[0]} has problems of its own, and no use for {', '.join(studies[1:] + given)}")
    if args.accuracy and args.device.type == "mps":
        parser.error("--accuracy takes double precision, which MPS has not")
    if args.refinement and args.dtype != "complex64":
        parser.error("--refinement takes single precision")
    compiled = serves(args, "cpu") and sys.platform != "win32"
    if args.report is not None and not compiled:
        parser.error("--report measures the CPU backend, on Linux and macOS")
    # Of a quick run-through the report is the second half.
    args.thorough = args.quick and compiled and not studies and not given
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.quick:
        args.repeats = min(args.repeats, 3)
    if args.memory:
        args.geometry, args.interpolation = args.geometry or ["3-2"], args.interpolation or ["linear"]
    args.geometry = args.geometry or list(GEOMETRIES)
    args.interpolation = args.interpolation or ["linear", "cubic"]
    args.boxes = args.boxes or ([32] if args.quick else [256] if args.memory else [64, 128, 256])
    if args.memory:
        args.poses = args.poses or ([2, 16] if args.quick else [16, 512])
    elif args.poses and len(args.poses) not in (1, len(args.boxes)):
        parser.error(f"--poses: expected one number or {len(args.boxes)}, one for each box")
    return args


def serves(args: argparse.Namespace, name: str) -> bool:
    with torch_projectors.use_backend(args.backend):
        return torch_projectors.plugins.serving(args.device) == name


def poses(args: argparse.Namespace, geometry: str, box: int) -> int:
    if args.poses:
        return args.poses[args.boxes.index(box) if len(args.poses) > 1 else 0]
    if box in POSES[geometry]:
        return POSES[geometry][box]
    return 2 if args.quick or geometry == "3-3" else 32


def progress(text: str) -> None:
    end = "\r" if sys.stderr.isatty() else "\n"
    print(f"{text:<100}" if end == "\r" else text, end=end, file=sys.stderr, flush=True)


def end_progress() -> None:
    if sys.stderr.isatty():
        progress("")
    print()


def timed(args: argparse.Namespace) -> list[dict[str, Any]]:
    results = []
    start = time.perf_counter()
    cases = list(itertools.product(args.geometry, args.interpolation, args.boxes))
    for i, (geometry, interpolation, box) in enumerate(cases, 1):
        problem = Problem(geometry, interpolation, box, poses(args, geometry, box))
        arrays = Arrays(problem, DTYPES[args.dtype], args.device)
        contestants = {"ours": calls(problem, arrays)}
        peer = peer_calls(problem, arrays) if args.compare else {}
        if peer:
            contestants.update({"no_shifts": calls(problem, arrays, shifted=False), "peer": peer})
        contestants.update(limits(problem, arrays))
        for operation in OPERATIONS:
            progress(
                f"[{i}/{len(cases)}, {time.perf_counter() - start:.0f} s] {geometry} {interpolation} box {box}, "
                f"{problem.poses} poses: {operation}"
            )
            turns = {name: c[operation] for name, c in contestants.items() if operation in c}
            times = interleaved(turns, args.repeats, args.device)
            row: dict[str, Any] = {**vars(problem), "operation": operation}
            for name, t in times.items():
                row[name] = {f"{k}_ms_per_projection": 1e3 * v / problem.poses for k, v in t.items()}
            row["ns_per_pixel"] = 1e9 * times["ours"]["median"] / (problem.poses * problem.pixels)
            if peer:
                row["ratio"] = times["peer"]["median"] / times["no_shifts"]["median"]
            if "roof" in times:
                row["of_roof"] = times["ours"]["median"] / times["roof"]["median"]
                row["kernel_of_roof"] = times["kernel"]["median"] / times["roof"]["median"]
            results.append(row)
    return results


def measured(args: argparse.Namespace) -> list[dict[str, Any]]:
    settings = {
        "dtype": args.dtype,
        "device": str(args.device),
        "threads": torch.get_num_threads(),
        "backend": args.backend,
    }
    results = []
    for geometry, interpolation, box, n in itertools.product(
        args.geometry, args.interpolation, args.boxes, args.poses
    ):
        problem = Problem(geometry, interpolation, box, n)
        for operation in OPERATIONS:
            progress(f"{geometry} {interpolation} box {box}, {n} poses: {operation}")
            result = memory.measure(problem, operation, settings)
            results.append({**vars(problem), "operation": operation, **result})
    return results


def reported(
    args: argparse.Namespace, parts: list[str], about: dict[str, Any], file: Optional[Path] = None
) -> None:
    run = report.Run(report.QUICK if args.quick else report.Sizes(), args.dtype, args.repeats, progress)
    for part in parts:
        start = time.perf_counter()
        document = {part: {**about, "results": report.measure(part, run)}}
        progress(f"{part}: {time.perf_counter() - start:.0f} s")
        end_progress()
        speed.show(document)
        if file:  # at once, so that no part is lost with a later one
            known = json.loads(file.read_text()) if file.exists() else {}
            file.write_text(json.dumps({**known, **document}, indent=2) + "\n")


def table(results: list[dict[str, Any]], columns: dict[str, Any]) -> None:
    """Columns are (format, value of a row); a value of None is left blank."""
    head = ["geometry", "interpolation", "box", "poses", "operation", *columns]
    rows = []
    for r in results:
        values = [(form, value(r)) for form, value in columns.values()]
        rows.append(
            [
                *[str(r[name]) for name in head[:5]],
                *["" if v is None else format(v, form) for form, v in values],
            ]
        )
    widths = [max(len(row[c]) for row in [head, *rows]) for c in range(len(head))]
    for row in [head, *rows]:
        left = [cell.ljust(w) for cell, w in zip(row[:2], widths)]
        right = [cell.rjust(w) for cell, w in zip(row[2:], widths[2:])]
        print("  ".join([*left, *right]))


def median(name: str) -> Any:
    def value(row: dict[str, Any]) -> Optional[float]:
        return row[name]["median_ms_per_projection"] if name in row else None

    return value


def main() -> None:
    args = arguments()
    where = machine.describe(args.device, args.backend)
    print("\n".join(f"{name:>16}: {value}" for name, value in where.items()), flush=True)
    settings = {"dtype": args.dtype, "repeats": args.repeats, "quick": args.quick}
    about = {"machine": where, "settings": settings}
    with torch_projectors.use_backend(args.backend):
        if args.report is not None:
            return reported(args, args.report or list(report.PARTS), about, args.json)
        if args.accuracy:
            study = accuracy.QUICK if args.quick else accuracy.Study()
            results = accuracy.run(study, args.dtype, args.device, args.repeats, progress)
        elif args.refinement:
            study = refinement.QUICK if args.quick else refinement.Study()
            results = refinement.run(study, args.device, args.repeats, progress)
        else:
            results = measured(args) if args.memory else timed(args)
    end_progress()
    if args.accuracy:
        accuracy.show(results)
    elif args.refinement:
        refinement.show(results)
    elif args.memory:
        columns = {
            "beyond MB": (".1f", lambda r: r["beyond_mb"]),
            "baseline MB": (".1f", lambda r: r["baseline_mb"]),
        }
        table(results, columns)
        print("\nbaseline: the peak of a process that holds the same inputs, and outputs of the same sizes.")
        print("beyond: the peak of the operation, less the baseline.")
    else:
        columns = {"ms/proj": (".4f", median("ours")), "ns/pixel": (".2f", lambda r: r["ns_per_pixel"])}
        if args.compare:
            columns["no shifts"] = (".4f", median("no_shifts"))
            columns["peer"] = (".4f", median("peer"))
            columns["ratio"] = (".2f", lambda r: r.get("ratio"))
        if any("of_roof" in r for r in results):
            columns["roof"] = (".4f", median("roof"))
            columns["of roof"] = (".2f", lambda r: r.get("of_roof"))
            columns["kernel"] = (".2f", lambda r: r.get("kernel_of_roof"))
        table(results, columns)
        if "roof" in columns:
            print(
                "\nroof: the loads of a linear gather and nothing else. of roof: ours / roof, times of both."
                "\nkernel: the same without the call around it."
            )
        if args.compare:
            print(
                "\npeer: torch-fourier-slice, linear slices only. ratio: peer / no shifts; above 1, ours is faster."
            )
    if args.json:
        args.json.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")
    if args.thorough:
        with torch_projectors.use_backend(args.backend):
            reported(args, list(report.PARTS), about)


if __name__ == "__main__":
    main()
