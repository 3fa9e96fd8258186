"""The CUDA backend on a machine with a GPU, in one go: build, tests, and times beside what the device can do.

python -m benchmarks.gpu --json FILE [--minutes 10] [--skip build tests sanitizer] [--published peer_published.csv]

Needs torch with CUDA, numpy, pluggy, pytest, setuptools and nvcc; builds the backend in the checkout, for this device
alone, and installs nothing. Times are float32, of the public functions, with shifts and a pose of its own for every
image; a problem too large for the device's memory, or for the minutes that are left, is written down as such.
"""

from __future__ import annotations

import argparse
import csv
import gc
import importlib.metadata
import itertools
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, Optional

import torch

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "torch_projectors_cuda"

GEOMETRIES = {"3-2": (3, 2), "2-2": (2, 2), "3-3": (3, 3)}
TAPS = {"linear": 2, "cubic": 4}
# What the peer calls the same.
PUBLISHED = {
    ("3-2", "forward"): ("forward_3d_to_2d", "fwd_proj_s"),
    ("3-2", "gradient"): ("forward_3d_to_2d", "fwd_bwd_proj_s"),
    ("3-2", "backward"): ("backward_2d_to_3d", "fwd_proj_s"),
    ("2-2", "forward"): ("forward_2d", "fwd_proj_s"),
    ("2-2", "gradient"): ("forward_2d", "fwd_bwd_proj_s"),
    ("2-2", "backward"): ("backward_2d", "fwd_proj_s"),
}


@dataclass(frozen=True)
class Problem:
    geometry: str
    interpolation: str
    box: int
    batch: int
    poses: int

    @property
    def images(self) -> int:
        return self.batch * self.poses

    @property
    def columns(self) -> int:
        return self.box // 2 + 1

    @property
    def image_entries(self) -> int:
        return self.box ** (GEOMETRIES[self.geometry][1] - 1) * self.columns

    @property
    def volume_entries(self) -> int:
        return self.box ** (GEOMETRIES[self.geometry][0] - 1) * self.columns

    @property
    def samples(self) -> float:
        """Stored entries of an image within the cutoff, about."""
        radius, dims = self.box / 2, GEOMETRIES[self.geometry][1]
        return (math.pi * radius**2 if dims == 2 else 4 / 3 * math.pi * radius**3) / 2

    @property
    def taps(self) -> int:
        return TAPS[self.interpolation] ** GEOMETRIES[self.geometry][0]

    @property
    def bytes(self) -> int:
        """Of what is held at once: volumes, images, weights, their gradients, and what autograd keeps."""
        return 8 * (5 * self.images * self.image_entries + 5 * self.batch * self.volume_entries)


def problems() -> list[Problem]:
    """The most telling first."""
    every = [
        Problem(geometry, interpolation, box, batch, poses)
        for geometry, interpolation, box, batch, poses in itertools.product(
            GEOMETRIES, TAPS, (32, 128, 256, 512), (1, 8), (8, 128, 2048)
        )
    ]

    def order(p: Problem) -> tuple[Any, ...]:
        target = (p.geometry, p.interpolation) == ("3-2", "linear") and p.poses == 2048 and p.batch == 8
        small = p.box == 32 and p.poses == 8
        return not (target or small), p.samples * p.images * p.taps

    return sorted(every, key=order)


def run(*command: Any, timeout: float = 600, **environment: str) -> dict[str, Any]:
    """What became of a command, its output passed on."""
    print("$", *command, flush=True)
    start = time.perf_counter()
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{PLUGIN / 'src'}", **environment}
    try:
        done = subprocess.run(
            list(map(str, command)), cwd=ROOT, env=env, capture_output=True, text=True, timeout=timeout
        )
        code, output = done.returncode, done.stdout + done.stderr
    except (OSError, subprocess.TimeoutExpired) as error:
        code, output = -1, str(error)
    print(output[-3000:], flush=True)
    last = output.strip().splitlines()[-1:] or [""]
    return {"returned": code, "seconds": round(time.perf_counter() - start, 1), "last_line": last[0]}


def build() -> dict[str, Any]:
    major, minor = torch.cuda.get_device_capability()
    architecture = os.environ.get("TORCH_PROJECTORS_CUDA_ARCHITECTURES", f"{major}{minor}")
    return run(
        sys.executable,
        PLUGIN / "setup.py",
        "-q",
        "build_ext",
        "--inplace",
        TORCH_PROJECTORS_CUDA_ARCHITECTURES=architecture,
    )


def use_backend() -> None:
    """The backend in the checkout, as if it were installed."""
    sys.path.insert(0, str(PLUGIN / "src"))
    import torch_projectors
    from torch_projectors import plugins

    if "cuda" not in plugins._backends:
        point = importlib.metadata.EntryPoint("cuda", "torch_projectors_cuda.backend", plugins.GROUP)
        plugins._entry_points["cuda"] = point
        plugins._backends["cuda"] = plugins.Backend("cuda", "torch-projectors-cuda", "", "found")
        plugins._pending = True
    backend = torch_projectors.backends()["cuda"]
    if backend.status != "loaded":
        raise SystemExit(f"backend cuda is {backend.status}: {backend.reason}")


def tests(sanitizer: bool) -> dict[str, Any]:
    """In a process of its own, where the backend is used as above."""
    start = "import sys; from benchmarks.gpu import use_backend; use_backend(); "
    pytest_main = start + "import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    verify = start + "from torch_projectors.verification import report; sys.exit(not report(['cuda']))"
    results = {
        "device": run(sys.executable, "-c", pytest_main, "-q", "tests/test_cuda_device.py"),
        "verify": run(sys.executable, "-c", verify),
    }
    if sanitizer:
        if shutil.which("compute-sanitizer") is None:
            results["sanitizer"] = {"returned": None, "last_line": "compute-sanitizer was not found"}
        else:
            arguments = ("-q", "tests/test_cuda_device.py", "-k", "every_case and rectangular")
            for tool in ("memcheck", "racecheck"):
                command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "9")
                results[tool] = run(*command, sys.executable, "-c", pytest_main, *arguments, timeout=150)
    return results


def seconds(call: Callable[[], Any], least: float = 0.1, most: int = 50) -> float:
    """Median time of a call on the device."""
    call()
    torch.cuda.synchronize()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    times: list[float] = []
    while len(times) < 3 or (sum(times) < least and len(times) < most):
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3)
        if sum(times) > 2:
            break
    return statistics.median(times)


def seconds_of_call(call: Callable[[], Any], number: int = 200) -> float:
    """Of many calls in a row: what launching costs, where the device is faster."""
    call()
    torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(number):
        call()
    torch.cuda.synchronize()
    return (time.perf_counter() - start) / number


def device_limits() -> dict[str, float]:
    """Plain copies, and plain atomics: float32, to entries that neighbouring threads share, or scattered."""
    x = torch.empty(1 << 28, device="cuda")
    y = torch.empty_like(x)
    copy = 2 * 4 * x.numel() / seconds(lambda: y.copy_(x))
    limits = {"copy_bytes_per_s": copy}
    n, entries = 1 << 26, 256 * 256 * 129 * 2  # a volume of box 256
    values, to = x[:n], y[:entries].zero_()
    index = torch.arange(n, device="cuda") % entries
    limits["neighbouring_atomics_per_s"] = n / seconds(lambda: to.index_add_(0, index, values))
    index = torch.randint(entries, (n,), device="cuda")
    limits["scattered_atomics_per_s"] = n / seconds(lambda: to.index_add_(0, index, values))
    limits["scattered_reads_per_s"] = n / seconds(lambda: torch.index_select(to, 0, index))
    return limits


def calls(p: Problem) -> dict[str, Callable[[], Any]]:
    import torch_projectors

    dims, image_dims = GEOMETRIES[p.geometry]
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, device="cuda", generator=generator)

    stored = lambda n: (p.box,) * (n - 1) + (p.columns,)  # noqa: E731
    volume = normal(p.batch, *stored(dims), dtype=torch.complex64)
    images = normal(p.batch, p.poses, *stored(image_dims), dtype=torch.complex64)
    weights = torch.rand(images.shape, device="cuda", generator=generator)
    rotations = torch.linalg.qr(normal(p.batch, p.poses, dims, dims))[0].contiguous()
    shifts = normal(p.batch, p.poses, image_dims)
    shape = (p.box,) * image_dims

    def forward(*arguments: torch.Tensor) -> torch.Tensor:
        return torch_projectors.forward_project(*arguments, shape, p.interpolation)

    def gradient() -> Any:
        leaves = [x.detach().requires_grad_() for x in (volume, rotations, shifts)]
        return torch.autograd.grad(forward(*leaves), leaves, images)

    def backward() -> Any:
        return torch_projectors.backward_project(
            images,
            rotations,
            shifts,
            (p.box,) * dims,
            p.interpolation,
            weights=weights,
            projection_shape=shape,
        )

    return {
        "forward": lambda: forward(volume, rotations, shifts),
        "gradient": gradient,
        "backward": backward,
    }


def published(path: Optional[Path]) -> dict[tuple[Any, ...], float]:
    """Projections a second of the peer, on an H100."""
    if path is None or not path.is_file():
        return {}
    with path.open() as file:
        rows = [row for row in csv.DictReader(file) if row["platform"] == "h100-cuda"]
    found = {}
    for (geometry, operation), (kernel, column) in PUBLISHED.items():
        for row in rows:
            if row["kernel"] == kernel:
                key = (geometry, operation, row["interp"], *(int(row[n]) for n in ("box", "batch", "poses")))
                found[key] = float(row[column])
    return found


def measure(p: Problem, limits: dict[str, float], peer: dict[tuple[Any, ...], float]) -> list[dict[str, Any]]:
    """A row for each operation."""
    free = torch.cuda.mem_get_info()[0]
    if p.bytes > 0.9 * free:
        return [{**asdict(p), "left_out": f"needs {p.bytes / 1e9:.0f} GB of {free / 1e9:.0f}"}]
    rows = []
    for operation, call in calls(p).items():
        row: dict[str, Any] = {**asdict(p), "operation": operation}
        row["seconds"] = seconds(call)
        if p.images <= 64 and p.box == 32:
            row["seconds_of_call"] = seconds_of_call(call)
        row["projections_per_s"] = p.images / row["seconds"]
        samples = p.samples * p.images
        if operation == "forward":
            # Once through memory, at least; and what samples load, mostly from caches.
            least = 8 * (p.images * p.image_entries + p.batch * min(p.volume_entries, samples * p.taps))
            row["of_copy"] = least / row["seconds"] / limits["copy_bytes_per_s"]
            row["loads_bytes_per_s"] = samples * p.taps * 8 / row["seconds"]
        elif operation == "backward":
            row["atomics_per_s"] = samples * p.taps * 3 / row["seconds"]
            row["of_scattered_atomics"] = row["atomics_per_s"] / limits["scattered_atomics_per_s"]
        if operation == "backward" and p.images <= 2048:
            torch.use_deterministic_algorithms(True)
            row["seconds_deterministic"] = seconds(call)
            torch.use_deterministic_algorithms(False)
        key = (p.geometry, operation, p.interpolation, p.box, p.batch, p.poses)
        if key in peer:
            row["of_published"] = row["projections_per_s"] / peer[key]
        rows.append(row)
        shown = {k: f"{v:.3g}" for k, v in row.items() if isinstance(v, float)}
        print(*key, *(f"{k}={v}" for k, v in shown.items()), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--skip", nargs="*", default=[], choices=("build", "tests", "sanitizer"))
    parser.add_argument("--published", type=Path, help="the peer's times, peer_published.csv")
    options = parser.parse_args()
    end = time.monotonic() + 60 * options.minutes
    if not torch.cuda.is_available():
        raise SystemExit("expected a CUDA device and a torch with CUDA")

    result: dict[str, Any] = {"times": []}

    def save() -> None:  # early and often: the machine may be taken away
        options.json.write_text(json.dumps(result, indent=1) + "\n")

    if "build" not in options.skip:
        result["build"] = build()
        save()
        if result["build"]["returned"]:
            raise SystemExit("the build failed")
    if "tests" not in options.skip:
        result["tests"] = tests("sanitizer" not in options.skip)
        save()
    use_backend()
    from . import machine

    result["machine"] = {**machine.describe(torch.device("cuda"), "auto"), "cuda": torch.version.cuda}
    result["limits"] = limits = device_limits()
    print(limits, flush=True)
    peer = published(options.published)
    for p in problems():
        if time.monotonic() > end - 20:
            result["times"].append({**asdict(p), "left_out": "no time left"})
            continue
        gc.collect()
        torch.cuda.empty_cache()
        try:
            result["times"] += measure(p, limits, peer)
        except torch.cuda.OutOfMemoryError as error:
            result["times"].append({**asdict(p), "left_out": str(error).splitlines()[0]})
        save()
    save()


if __name__ == "__main__":
    main()
