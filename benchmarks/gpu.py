"""The CUDA backend on a machine with a GPU, in one go: build, tests, and times beside what the device can do.

python -m benchmarks.gpu --json FILE [--minutes 10] [--skip STAGE ...] [--published peer_published.csv]

Needs torch with CUDA, numpy, pluggy, pytest, setuptools and nvcc; builds the backend in the checkout, for this device
alone, and installs nothing. Every stage is a process of its own with a limit of time. FILE is written whole after each;
one that fails or is out of time is written down, the others go on, and the exit status tells of it.

- build: the library.
- device: tests of streams, graphs, determinism, several devices.
- verify: every case.
- times: float32, of the public functions, with shifts and a pose of its own for every image. A problem too large for
  the device's memory, or for the time that is left, is written down as such.
- suite: all tests that run over all backends, on CUDA tensors; a process for each file. What time did not suffice for
  is counted as not run.
- memcheck, racecheck: compute-sanitizer over some of the cases.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import ctypes
import gc
import importlib.metadata
import itertools
import json
import math
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

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


class Stage(NamedTuple):
    """limit: seconds at the most. reserve: seconds that are left to later stages."""

    name: str
    commands: dict[str, list[str]]  # run at once, by name
    limit: float
    reserve: float = 0
    needs: str = "build"  # what has to have succeeded


# Where all of them have the backend of the checkout.
START = "import sys; from benchmarks.gpu import use_backend; use_backend(); "


def python(program: str, *arguments: Any) -> list[str]:
    return [sys.executable, "-c", START + program, *map(str, arguments)]


def pytest(*arguments: Any) -> list[str]:
    # -v: a line for each test, so that those of a process that is stopped are known.
    return python(
        "import pytest; sys.exit(pytest.main(sys.argv[1:]))", "-v", "--tb=short", "--color=no", *arguments
    )


def stages(parts: Path, published: Optional[Path]) -> list[Stage]:
    """In order. parts: a folder for what they write."""
    build = [sys.executable, PLUGIN / "setup.py", "-q", "build_ext", "--inplace"]
    times = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--only-times",
        "--minutes",
        2.9,
        "--json",
        parts / "times.json",
    ]
    if published is not None:
        times += ["--published", published.resolve()]
    files = sorted((ROOT / "tests").glob("test_*.py"))
    over_backends = [
        f.name for f in files if re.search(r"^def test_.*\bbackend\b", f.read_text("utf-8"), re.M)
    ]
    some = ("tests/test_cuda_device.py", "-k", "every_case and rectangular")
    found = [
        Stage("build", {"build": list(map(str, build))}, 240, needs=""),
        Stage("device", {"device": pytest("tests/test_cuda_device.py")}, 90, 200),
        Stage(
            "verify",
            {
                "verify": python(
                    "from torch_projectors.verification import report as r; sys.exit(not r(['cuda']))"
                )
            },
            90,
            180,
        ),
        Stage("times", {"times": list(map(str, times))}, 180, 150),
        Stage("suite", {f: pytest("--backend", "cuda", f"tests/{f}") for f in over_backends}, 240, 30),
    ]
    sanitizer = shutil.which("compute-sanitizer")
    for tool in ("memcheck", "racecheck"):
        command = [str(sanitizer), "--tool", tool, "--error-exitcode", "9", *pytest(*some)]
        found.append(Stage(tool, {tool: command} if sanitizer else {}, 90))
    return found


def counts(output: str) -> dict[str, int]:
    """Of tests, by what became of them, from what pytest -v says."""
    words = re.findall(r"^tests/\S+::.* (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS) +\[", output, re.M)
    found = {word.lower(): words.count(word) for word in sorted(set(words))}
    collected = re.search(r"^collected (\d+) items?(?: / (\d+) deselected)?", output, re.M)
    if collected:
        selected = int(collected[1]) - int(collected[2] or 0)
        found["not_run"] = max(0, selected - len(words))
    return found


def carry_out(stage: Stage, limit: float, log: Path) -> dict[str, Any]:
    """What became of the processes of a stage. All of their output goes to files in `log`."""
    start = time.monotonic()
    log.mkdir(parents=True, exist_ok=True)
    env = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{PLUGIN / 'src'}", "PYTHONUNBUFFERED": "1"}
    env.setdefault("OMP_NUM_THREADS", "2" if len(stage.commands) > 1 else str(os.cpu_count()))
    if stage.name == "build":
        major, minor = torch.cuda.get_device_capability()
        env.setdefault("TORCH_PROJECTORS_CUDA_ARCHITECTURES", f"{major}{minor}")
    waiting, running, results = list(stage.commands.items()), {}, {}
    while waiting or running:
        while waiting and len(running) < (os.cpu_count() or 1):
            name, command = waiting.pop(0)
            with (log / f"{stage.name}.{name}.log").open("w") as file:
                try:
                    running[name] = subprocess.Popen(
                        command,
                        cwd=ROOT,
                        env=env,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                        start_new_session=True,
                    )
                except OSError as error:
                    results[name] = {"returned": -1, "last_line": str(error)}
        out_of_time = time.monotonic() - start > limit
        for name, process in list(running.items()):
            if process.poll() is None and out_of_time:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.poll() is not None:
                del running[name]
                output = (log / f"{stage.name}.{name}.log").read_text(errors="replace")
                lines = output.strip().splitlines() or [""]
                # pytest returns 5 where nothing was selected.
                results[name] = {
                    "returned": 0 if process.returncode == 5 else process.returncode,
                    "last_line": lines[-1],
                    **counts(output),
                }
                failed = [line for line in lines if line.startswith(("FAILED ", "ERROR "))]
                if process.returncode not in (0, 5):
                    results[name]["failures"] = failed[:40] or lines[-15:]
                if out_of_time:
                    results[name]["out_of_time"] = True
        if out_of_time:
            for name, _ in waiting:
                results[name] = {"returned": None, "out_of_time": True, "last_line": "was not begun"}
            waiting = []
        time.sleep(0.05)
    ok = bool(results) and all(r["returned"] == 0 for r in results.values())
    total: dict[str, int] = {}
    for r in results.values():
        for word in ("passed", "failed", "error", "skipped", "xfail", "xpass", "not_run"):
            total[word] = total.get(word, 0) + r.get(word, 0)
    return {
        "ok": ok,
        "seconds": round(time.monotonic() - start, 1),
        **{word: n for word, n in total.items() if n},
        **(next(iter(results.values())) if len(results) == 1 else {"processes": results}),
    }


def carry_out_all(
    every: list[Stage], skip: list[str], end: float, log: Path, save: Callable[[dict], None]
) -> bool:
    """Whether all succeeded that were not to be skipped. `save` gets what is known after each."""
    result: dict[str, Any] = {}
    for stage in every:
        limit = min(stage.limit, end - time.monotonic() - stage.reserve)
        if stage.name in skip:
            result[stage.name] = {"left_out": "as was asked for"}
        elif not stage.commands:
            result[stage.name] = {"left_out": "compute-sanitizer was not found"}
        elif stage.needs and not result.get(stage.needs, {}).get("ok", stage.needs in skip):
            result[stage.name] = {"ok": False, "left_out": f"{stage.needs} failed"}
        elif limit < 5:
            result[stage.name] = {"ok": False, "left_out": "no time left"}
        else:
            print(f"== {stage.name}, at most {limit:.0f} s", flush=True)
            try:
                result[stage.name] = carry_out(stage, limit, log)
            except Exception as error:
                result[stage.name] = {"ok": False, "last_line": f"{type(error).__name__}: {error}"}
            brief = {k: v for k, v in result[stage.name].items() if k not in ("processes", "failures")}
            print(brief, flush=True)
        save(result)
    return all(r.get("ok", True) for r in result.values())


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


def arrays(p: Problem) -> dict[str, torch.Tensor]:
    dims, image_dims = GEOMETRIES[p.geometry]
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(*shape, dtype=dtype, device="cuda", generator=generator)

    def stored(n: int) -> tuple[int, ...]:
        return (p.box,) * (n - 1) + (p.columns,)

    images = normal(p.batch, p.poses, *stored(image_dims), dtype=torch.complex64)
    return {
        "volume": normal(p.batch, *stored(dims), dtype=torch.complex64),
        "images": images,
        "weights": torch.rand(images.shape, device="cuda", generator=generator),
        "rotations": torch.linalg.qr(normal(p.batch, p.poses, dims, dims))[0].contiguous(),
        "shifts": normal(p.batch, p.poses, image_dims),
    }


def calls(p: Problem) -> dict[str, Callable[[], Any]]:
    import torch_projectors

    dims, image_dims = GEOMETRIES[p.geometry]
    volume, images, weights, rotations, shifts = arrays(p).values()
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


def trial(
    schedule: str,
    kernels: Any,
    library: Any,
    images: Any,
    weights: Any,
    rotations: Any,
    shifts: Any,
    geometry: Any,
) -> Callable[[], tuple[torch.Tensor, torch.Tensor]]:
    """A call of the insertion, with weights, by a schedule that is not in use, and its results. "interleaved": sums and
    weights are, in float32. "bricks": blocks own bricks of the volume. `geometry`: a case, or the arguments that every
    op ends with."""
    tail = getattr(geometry, "geometry", geometry)
    problem, volume_shape, _ = kernels._setting("images", images, rotations, shifts, *tail)
    volume = images.new_empty(volume_shape)
    weight_volume = weights.new_empty(volume_shape)
    sums = torch.empty(16 * volume.numel(), dtype=torch.uint8, device=images.device)
    problem.workspace, problem.workspace_bytes = sums.data_ptr(), sums.numel()
    function = getattr(library.load(), f"torch_projectors_cuda_trial_{schedule}")
    function.argtypes = [ctypes.c_void_p] * 5

    def call() -> tuple[torch.Tensor, torch.Tensor]:
        arrays = (images, weights, volume, weight_volume)
        if function(ctypes.addressof(problem), *[x.data_ptr() for x in arrays]):
            raise RuntimeError(library.message())
        # Its workspace and poses have to last as long as it may be called.
        _ = sums, rotations, shifts
        return volume, weight_volume

    return call


def scatters(p: Problem) -> dict[str, Callable[[], Any]]:
    """The op of insertion as it is, and by the schedules that are measured beside it."""
    from torch_projectors.geometry import INTERPOLATION_CODES, Geometry
    from torch_projectors_cuda import library, older_torch

    x = arrays(p)
    dims, image_dims = GEOMETRIES[p.geometry]
    shapes = (p.box,) * dims, (p.box,) * image_dims
    geometry = Geometry(*shapes, INTERPOLATION_CODES[p.interpolation], 1.0, p.box / 2, True)
    tensors = (x["images"], x["weights"], x["rotations"], x["shifts"])
    op = torch.ops.torch_projectors.backward_project
    return {
        "seconds_op": lambda: op(*tensors, *geometry),
        **{
            f"seconds_op_{schedule}": trial(
                schedule, older_torch.KERNELS, library.LIBRARY, *tensors, geometry
            )
            for schedule in ("interleaved", "bricks")
        },
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
        if operation == "backward":
            with contextlib.suppress(torch.cuda.OutOfMemoryError):
                row.update({name: seconds(scatter) for name, scatter in scatters(p).items()})
        key = (p.geometry, operation, p.interpolation, p.box, p.batch, p.poses)
        if key in peer:
            row["of_published"] = row["projections_per_s"] / peer[key]
        rows.append(row)
        shown = {k: f"{v:.3g}" for k, v in row.items() if isinstance(v, float)}
        print(*key, *(f"{k}={v}" for k, v in shown.items()), flush=True)
    return rows


def write(path: Path, document: Any) -> None:
    """Whole or not at all: the machine may be taken away."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(document, indent=1) + "\n")
    temporary.replace(path)


def all_times(path: Path, end: float, peer: dict[tuple[Any, ...], float]) -> None:
    """Written after every problem."""
    use_backend()
    from . import machine

    about = {**machine.describe(torch.device("cuda"), "auto"), "cuda": torch.version.cuda}
    result: dict[str, Any] = {"machine": about, "limits": device_limits(), "times": []}
    print(result["limits"], flush=True)
    write(path, result)
    for p in problems():
        if time.monotonic() > end - 10:
            result["times"].append({**asdict(p), "left_out": "no time left"})
            continue
        gc.collect()
        torch.cuda.empty_cache()
        try:
            result["times"] += measure(p, result["limits"], peer)
        except torch.cuda.OutOfMemoryError as error:
            result["times"].append({**asdict(p), "left_out": str(error).splitlines()[0]})
        write(path, result)
    write(path, result)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--skip", nargs="*", default=[], metavar="STAGE", help="build, device, verify, ...")
    parser.add_argument("--published", type=Path, help="the peer's times, peer_published.csv")
    parser.add_argument("--only-times", action="store_true", help="the stage of that name, in this process")
    options = parser.parse_args()
    options.json = options.json.resolve()
    if not torch.cuda.is_available():
        raise SystemExit("expected a CUDA device and a torch with CUDA")
    end = time.monotonic() + 60 * options.minutes
    if options.only_times:
        return all_times(options.json, end, published(options.published))

    with tempfile.TemporaryDirectory() as folder:
        parts = Path(folder)
        every = stages(parts, options.published)
        unknown = set(options.skip) - {stage.name for stage in every}
        if unknown:
            parser.error(f"--skip: there is no stage {', '.join(sorted(unknown))}")

        def save(result: dict[str, Any]) -> None:
            found = parts / "times.json"
            write(
                options.json, {"stages": result, **(json.loads(found.read_text()) if found.exists() else {})}
            )

        good = carry_out_all(
            every, options.skip, end, options.json.parent / f"{options.json.stem}_logs", save
        )
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
