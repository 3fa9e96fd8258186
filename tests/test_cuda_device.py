"""The CUDA backend on a GPU: agreement, derivatives, streams, graphs, determinism, accuracy, and what it refuses."""

from __future__ import annotations

import math
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

import torch_projectors as tp
from torch_projectors import verification
from torch_projectors.cases import CASES, Case
from torch_projectors.ops import NATIVE, REFERENCE

LOADED = torch.cuda.is_available() and any(
    b.status == "loaded" and b.device == "cuda" for b in tp.backends().values()
)
if not LOADED:
    pytest.skip("expected a CUDA device, and torch-projectors-cuda loaded", allow_module_level=True)

DTYPES = [torch.complex64, torch.complex128]


def case_of(name: str) -> Case:
    return next(c for c in CASES if str(c) == name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("deterministically", [False, True])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_case_agrees_with_the_reference(
    case: Case, deterministically: bool, dtype: torch.dtype
) -> None:
    torch.use_deterministic_algorithms(deterministically)
    try:
        outputs = verification._outputs(NATIVE, case.inputs(dtype, "cuda"), case)
    finally:
        torch.use_deterministic_algorithms(False)
    expected = verification._outputs(REFERENCE, case.inputs(torch.complex128), case)
    assert all(x.is_cuda for x in outputs)
    errors = [verification._difference(x, y) for x, y in zip(outputs, expected)]
    assert max(errors) <= verification.error_bound(case, dtype), errors


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
def test_gradcheck_and_gradgradcheck(interpolation: str) -> None:
    case = Case("gradcheck", (5, 4, 5), (4, 5), interpolation, poses=2)
    volume, _, _, rotations, shifts = case.inputs(device="cuda")
    arguments = [x.requires_grad_() for x in (volume[0], rotations[0], shifts[0])]

    def project(*arguments: torch.Tensor) -> torch.Tensor:
        return tp.forward_project(
            *arguments, (4, 5), interpolation, reconstruction_shape=(5, 4, 5), gradient="stored"
        )

    # Atomics do not add in one order.
    assert torch.autograd.gradcheck(project, arguments, nondet_tol=1e-12)
    assert torch.autograd.gradgradcheck(project, arguments, nondet_tol=1e-10)


def test_work_goes_to_the_current_stream() -> None:
    case = Case("stream", (64, 64, 64), (64, 64), "linear", poses=64)
    volume, _, _, rotations, shifts = case.inputs(torch.complex64, "cuda")
    expected = NATIVE.forward_project(volume, rotations, shifts, case.geometry)
    stream = torch.cuda.Stream()
    late = torch.zeros_like(volume)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)
        late.copy_(volume)
        found = NATIVE.forward_project(late, rotations, shifts, case.geometry)
    stream.synchronize()
    assert torch.equal(found, expected)


@pytest.mark.parametrize("poses", [3, 2500])
def test_calls_are_captured_in_graphs(poses: int) -> None:
    case = Case("graph", (8, 8, 8), (8, 8), "cubic", poses=poses)
    volume, images, weights, rotations, shifts = case.inputs(torch.complex64, "cuda")
    need = (True, True, True, True)

    def run() -> list[torch.Tensor]:
        projected = NATIVE.bare.forward_project(volume, rotations, shifts, *case.geometry)
        inserted = NATIVE.bare.backward_project(images, weights, rotations, shifts, *case.geometry)
        gradients = NATIVE.bare.project_gradients(volume, images, rotations, shifts, *case.geometry, *need)
        return [projected, *inserted, *gradients]

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    for x in (volume, images):
        x.mul_(2)
    graph.replay()
    for x, y in zip(captured, run()):
        assert verification._difference(x, y.cpu()) < 1e-5


def test_no_call_waits_for_the_device() -> None:
    case = case_of("3D->2D linear even")
    volume, images, weights, rotations, shifts = case.inputs(torch.complex64, "cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        NATIVE.bare.forward_project(volume, rotations, shifts, *case.geometry)
        NATIVE.bare.backward_project(images, weights, rotations, shifts, *case.geometry)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    done = torch.cuda.Event()
    torch.cuda._sleep(500_000_000)
    NATIVE.bare.project_gradients(volume, images, rotations, shifts, *case.geometry, *[True] * 4)
    done.record()
    assert not done.query()


@pytest.mark.parametrize("dims, image_dims", [(2, 2), (3, 2), (3, 3)])
def test_deterministic_insertions_are_the_same_to_the_last_bit(dims: int, image_dims: int) -> None:
    case = Case("bits", (32,) * dims, (32,) * image_dims, "cubic", poses=50)
    _, images, weights, rotations, shifts = case.inputs(torch.complex64, "cuda")
    arguments = (images, weights, rotations, shifts, *case.geometry)
    torch.use_deterministic_algorithms(True)
    try:
        first = NATIVE.bare.backward_project(*arguments)
        for _ in range(5):
            assert all(map(torch.equal, NATIVE.bare.backward_project(*arguments), first))
    finally:
        torch.use_deterministic_algorithms(False)
    for x, y in zip(NATIVE.bare.backward_project(*arguments), first):
        assert verification._difference(x, y.cpu()) < 1e-6


@pytest.mark.parametrize("deterministically", [False, True])
def test_sums_over_100_000_poses_stay_accurate(deterministically: bool) -> None:
    case = Case("many", (8, 8, 8), (8, 8), "linear", poses=100_000, cutoff=math.inf)
    _, images, weights, rotations, _ = case.inputs(torch.complex64, "cuda")
    images += 3  # of one sign: with every one added, the next makes a smaller difference to a float
    wide = [x.to(torch.complex128 if x.is_complex() else torch.float64) for x in (images, weights, rotations)]
    torch.use_deterministic_algorithms(deterministically)
    try:
        found = NATIVE.bare.backward_project(images, weights, rotations, None, *case.geometry)
    finally:
        torch.use_deterministic_algorithms(False)
    for x, y in zip(found, NATIVE.bare.backward_project(*wide, None, *case.geometry)):
        assert verification._difference(x, y.cpu()) <= 1e-4


def test_volumes_of_more_than_2_to_the_31_entries() -> None:
    shape, image = (1700, 1600, 1600), (16, 16)
    entries = 1700 * 1600 * 801
    assert entries > 2**31
    if torch.cuda.mem_get_info()[0] < 3 * 8 * entries:
        pytest.skip("expected 52 GB of free device memory")
    # Image axes along -y and z, of which the negative frequencies are stored last.
    rotations = torch.tensor([[[[0.0, 0, 1], [-1, 0, 0], [0, 1, 0]]]], device="cuda")
    volume = torch.zeros(1, 1700, 1600, 801, dtype=torch.complex64, device="cuda")
    corner = torch.randn(5, 5, 5, dtype=torch.complex64, device="cuda")
    volume[0, -5:, -5:, :5] = corner
    case = Case("huge", shape, image, "linear", poses=1, shift_batch=None)
    found = NATIVE.bare.forward_project(volume, rotations, None, *case.geometry)
    assert found.abs().sum() > 0
    inserted, _ = NATIVE.bare.backward_project(found, None, rotations, None, *case.geometry)
    a, b = (found.abs() ** 2).sum(), (inserted[0, -5:, -5:, :5].conj() * corner).real.sum()
    assert abs(a - b) <= 1e-5 * a


def test_arguments_of_two_devices_are_refused() -> None:
    case = CASES[0]
    volume, _, _, rotations, shifts = case.inputs(device="cuda")
    with pytest.raises((RuntimeError, ValueError), match="device"):
        tp.forward_project(volume[0], rotations[0].cpu(), shifts[0])


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="expected two CUDA devices")
def test_every_device_gets_its_own_work() -> None:
    case = case_of("3D->2D cubic poses for each")
    expected = verification._outputs(REFERENCE, case.inputs(), case)
    for device in ("cuda:1", "cuda:0"):
        outputs = verification._outputs(NATIVE, case.inputs(device=device), case)
        assert torch.cuda.current_device() == 0
        for x, y in zip(outputs, expected):
            assert str(x.device) == device
            assert verification._difference(x, y) <= verification.error_bound(case, torch.complex128)


@pytest.mark.skipif(shutil.which("nvcc") is None, reason="expected nvcc")
def test_the_example_of_the_c_api_finds_a_point_where_it_belongs(tmp_path) -> None:
    import torch_projectors_cuda as cuda

    source, folder = Path(__file__).parents[1] / "examples" / "c" / "cuda.c", cuda.library_path().parent
    command = ["nvcc", source, f"-I{cuda.include_path()}", f"-L{folder}", "-ltorch_projectors_cuda"]
    command += ["-Xlinker", f"-rpath={folder}", "-lm", "-o", tmp_path / "example"]
    subprocess.run(list(map(str, command)), check=True)
    run = subprocess.run([str(tmp_path / "example")], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
