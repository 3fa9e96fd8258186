"""Every installed backend on every device, over the whole case list, against the float64 reference."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Callable, Optional

import torch
from torch import Tensor

from . import plugins
from .cases import CASES, Case, Inputs
from .ops import REFERENCE, Operators, selected

PRECISIONS = (torch.complex64, torch.complex128)


@dataclass
class Result:
    """How one backend did in one case.

    error: largest of the relative differences |x - reference| / |reference| over all outputs and gradients.
    defect: |<A x, y> - <x, A' y>| / (|A x| |y|).
    speed: time of the reference on the same device over that of the backend, for the three ops together.
    """

    backend: str
    device: str
    dtype: torch.dtype
    case: Case
    error: float
    defect: float
    speed: float
    failure: str = ""

    @property
    def passed(self) -> bool:
        return not self.failure and self.error <= self.error_bound and self.defect <= self.defect_bound

    @property
    def error_bound(self) -> float:
        return error_bound(self.case, self.dtype)

    @property
    def defect_bound(self) -> float:
        return 1e-6 if self.dtype == torch.complex64 else 1e-13


def error_bound(case: Case, dtype: torch.dtype) -> float:
    """What rounding explains. In units of epsilon: a position, up to `reach` from the centre, is a sum of one product
    an axis, and values change by about themselves over one lattice spacing; a phase, of up to some 8 turns, is wrong
    by its angle. Each is rounded about four times on its way.
    """
    reach = case.oversampling * math.hypot(*case.image_shape) / 2 * (1 + case.stretch)
    return 4 * torch.finfo(dtype).eps * (len(case.volume_shape) * reach + 2 * math.pi * 8)


def devices(backend: str) -> list[str]:
    """Devices of this machine that a backend serves."""
    available = ["cpu"]
    available += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    if torch.backends.mps.is_available():
        available.append("mps")
    served = plugins.backends()[backend].device
    return [d for d in available if served in ("any", torch.device(d).type)]


def verify(
    backends: Optional[Iterable[str]] = None,
    cases: Iterable[Case] = CASES,
    progress: Optional[Callable[[int, int], None]] = None,
) -> Iterator[Result]:
    """Run every case on every loaded backend, device and precision it has.

    backends: names; by default all that are loaded, the reference included. progress: called with (done, total).
    """
    installed = plugins.backends()
    names = [n for n, b in installed.items() if b.status == "loaded"] if backends is None else list(backends)
    for name in names:
        if name not in installed or installed[name].status != "loaded":
            state = (
                f"{installed[name].status}: {installed[name].reason}"
                if name in installed
                else "not installed"
            )
            raise ValueError(f"backend {name!r} cannot be verified, it is {state}")
    jobs = [
        (name, device, dtype, case)
        for name in names
        for device in devices(name)
        for dtype in PRECISIONS
        if not (device == "mps" and dtype == torch.complex128)  # Metal has no float64
        for case in cases
    ]
    for i, job in enumerate(jobs):
        yield _run(*job)
        if progress is not None:
            progress(i + 1, len(jobs))


def _run(name: str, device: str, dtype: torch.dtype, case: Case) -> Result:
    try:
        inputs, truth = case.inputs(dtype, device), case.inputs(torch.complex128)
        with plugins.use_backend(name):
            ops = selected(torch.device(device))
            outputs = _outputs(ops, inputs, case)
            expected = _outputs(REFERENCE, truth, case)
            error = max(_difference(o, e) for o, e in zip(outputs, expected))
            images, volume = outputs[:2]
            defect = _defect(images, inputs.images, inputs.volume, volume)
            elapsed = _time(lambda: _outputs(ops, inputs, case), device)
        reference = _time(lambda: _outputs(REFERENCE, inputs, case), device)
        return Result(name, device, dtype, case, error, defect, reference / elapsed)
    except Exception as failure:
        return Result(
            name, device, dtype, case, math.nan, math.nan, math.nan, f"{type(failure).__name__}: {failure}"
        )


def _outputs(ops: Operators, inputs: Inputs, case: Case) -> list[Tensor]:
    volume, images, weights, rotations, shifts = inputs
    tail = case.geometry
    projected = ops.bare.forward_project(volume, rotations, shifts, *tail)
    inserted, weight_volume = ops.bare.backward_project(images, weights, rotations, shifts, *tail)
    need = (True, True, True, shifts is not None)
    gradients = ops.bare.project_gradients(volume, images, rotations, shifts, *tail, *need)
    sampled_weights = ops.bare.forward_project(volume.abs(), rotations, None, *tail)
    of_weights = ops.bare.project_gradients(
        volume.abs(), weights, rotations, None, *tail, False, True, True, False
    )
    completed = ops.bare.insert_projections(images, weights, rotations, shifts, *tail)
    outputs = [projected, inserted, weight_volume, *gradients, sampled_weights, *of_weights, *completed]
    return [x for x in outputs if x.numel()]


def _difference(actual: Tensor, expected: Tensor) -> float:
    if actual.shape != expected.shape:
        raise ValueError(f"expected an output of shape {tuple(expected.shape)}, got {tuple(actual.shape)}")
    difference = actual.cpu().to(expected.dtype) - expected
    # Nearest has no rotation gradient: there the reference is zero, and so must be the rest.
    scale = float(expected.norm())
    error = float(difference.norm()) / (scale if scale else 1.0)
    return math.inf if math.isnan(error) else error


def _defect(images: Tensor, y: Tensor, x: Tensor, volume: Tensor) -> float:
    def inner(a: Tensor, b: Tensor) -> float:
        a, b = a.cpu().to(torch.complex128), b.cpu().to(torch.complex128)
        return float((a.conj() * b).real.sum())

    norms = math.sqrt(inner(images, images) * inner(y, y))
    return abs(inner(images, y) - inner(x, volume)) / (norms if norms else 1.0)


def _time(run: Callable[[], Any], device: str, repeats: int = 3) -> float:
    def once() -> float:
        start = time.perf_counter()
        run()
        if device != "cpu":
            getattr(torch, torch.device(device).type).synchronize()
        return time.perf_counter() - start

    return min(once() for _ in range(repeats))


def report(backends: Optional[Iterable[str]] = None, every_case: bool = False) -> bool:
    """Print what `verify` finds, a row for each backend, device, precision and geometry. Returns whether all passed."""
    interactive = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if interactive:
            print(f"\r{done}/{total} cases", end="\n" if done == total else "", file=sys.stderr, flush=True)

    groups: dict[tuple[str, ...], list[Result]] = {}
    for result in verify(backends, progress=progress):
        geometry = " ".join(str(result.case).split()[:2])
        key = (result.backend, result.device, str(result.dtype)[6:], geometry)
        groups.setdefault(key, []).append(result)

    columns = "{:<12} {:<8} {:<11} {:<16} {:>9} {:>10} {:>10} {:>10} {:>8}  {}"
    print(
        columns.format(
            "backend",
            "device",
            "dtype",
            "geometry",
            "cases",
            "error",
            "of bound",
            "adjoint",
            "speed",
            "result",
        )
    )
    for key, results in groups.items():
        rows = [[r] for r in results] if every_case else [results]
        for row in rows:
            failed = [r for r in row if not r.passed]
            print(
                columns.format(
                    *key,
                    f"{len(row) - len(failed)}/{len(row)}",
                    f"{max(r.error for r in row):.1e}",
                    f"{max(r.error / r.error_bound for r in row):.2f}",
                    f"{max(r.defect for r in row):.1e}",
                    f"{sorted(r.speed for r in row)[len(row) // 2]:.2f}x",
                    "FAILED" if failed else "ok",
                )
                + (f"  {row[0].case.name}" if every_case else "")
            )
            for r in failed:
                reason = r.failure or (
                    f"error {r.error:.1e} (bound {r.error_bound:.1e}), adjoint defect {r.defect:.1e} "
                    f"(bound {r.defect_bound:.0e})"
                )
                print(f"    {r.case}: {reason}")
    every = [r for results in groups.values() for r in results]
    failures = sum(not r.passed for r in every)
    print(
        f"\n{len(every) - failures} passed, {failures} failed. "
        "error: largest relative difference from the float64 reference over all outputs and gradients; "
        "adjoint: |<Ax,y> - <x,A'y>| / |Ax||y|; speed: median against the reference on the same device."
    )
    return failures == 0
