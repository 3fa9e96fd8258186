"""The kernels of torch-projectors-cuda, compiled for the host: blocks one after another, threads of a block in turn."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import cuda_on_host
import pytest
import torch

from benchmarks import gpu
from torch_projectors import verification
from torch_projectors.cases import CASES, Case
from torch_projectors.ops import REFERENCE
from torch_projectors.plugins import torch_version
from torch_projectors.spectrum import stored_shape, with_mates_

DTYPES = [torch.complex64, torch.complex128]

pytestmark = pytest.mark.skipif(
    not cuda_on_host.POSSIBLE, reason="expected a C++ compiler, and torch_projectors_cuda beside the tests"
)

# More rows than a block takes, of images and of what is like one.
LARGE = [
    Case("large", volume, image, interpolation, batch=2, pairs_once=True, shift_batch=2)
    for volume, image in (((50, 70), (66, 70)), ((11, 12, 14), (70, 66)), ((12, 11, 10), (18, 19, 16)))
    for interpolation in ("nearest", "linear", "cubic")
]


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    return cuda_on_host.build(tmp_path_factory.mktemp("cuda_host"))


@pytest.fixture(scope="module")
def package(path):
    yield cuda_on_host.package(path)
    cuda_on_host.forget()


@pytest.fixture(scope="module")
def library(package) -> ctypes.CDLL:
    return package.library.load()


@pytest.fixture(scope="module")
def ops(package):
    """The ops as older torch has them, on host memory."""
    return package.older_torch.KERNELS


@pytest.fixture(params=["atomics", "owned", "bricks"])
def schedule(request, ops, library, monkeypatch):
    """How volumes are added to: by atomics, or in the same order in every run, as owned.h and bricks.h have it."""
    trial = library.torch_projectors_cuda_trial_bricks
    trial.argtypes = [ctypes.c_void_p] * 5
    call = ops.call

    def by_bricks(name: str, problem: ctypes.Structure, *arrays: object) -> None:
        if name != "backward_project":
            call(name, problem, *arrays)
        elif trial(ctypes.addressof(problem), *arrays):
            raise RuntimeError(library.torch_projectors_cuda_message().decode())

    if request.param == "bricks":
        monkeypatch.setattr(ops, "call", by_bricks)
    torch.use_deterministic_algorithms(request.param == "owned")
    yield request.param
    torch.use_deterministic_algorithms(False)


by_owners = pytest.mark.parametrize("schedule", ["owned", "bricks"], indirect=True)


@pytest.fixture
def backwards(library):
    """Sets whether blocks and threads run last first."""
    set_order = library.torch_projectors_cuda_host_backwards
    yield set_order
    set_order(0)


def check_against_reference(ops, case: Case, dtype: torch.dtype) -> None:
    """All outputs and gradients, and that insertion is the transpose of projection."""
    inputs, truth = case.inputs(dtype), case.inputs(torch.complex128)
    outputs = verification._outputs(SimpleNamespace(bare=ops), inputs, case)
    expected = verification._outputs(REFERENCE, truth, case)
    assert [o.dtype.is_complex for o in outputs] == [e.dtype.is_complex for e in expected]
    errors = [verification._difference(o, e) for o, e in zip(outputs, expected)]
    assert max(errors) <= verification.error_bound(case, dtype), errors
    defect = verification._defect(outputs[0], inputs.images, inputs.volume, outputs[1])
    assert defect <= (1e-6 if dtype == torch.complex64 else 1e-13)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES + LARGE, ids=str)
def test_every_case_agrees_with_the_reference(case: Case, dtype: torch.dtype, schedule: str, ops) -> None:
    check_against_reference(ops, case, dtype)


REGISTERED = """
import ctypes, sys
import torch
from torch_projectors import ops, verification
from torch_projectors.cases import CASES, Case

api = ctypes.CDLL(sys.argv[1])
api.torch_projectors_cuda_message.restype = ctypes.c_char_p
for _ in range(2):
    assert api.torch_projectors_cuda_register(0) == 0, api.torch_projectors_cuda_message()
bare = torch.ops.torch_projectors
for case in CASES[::4]:
    for dtype in (torch.complex64, torch.complex128):
        expected = verification._outputs(ops.REFERENCE, case.inputs(torch.complex128), case)
        for x, y in zip(verification._outputs(ops.NATIVE, case.inputs(dtype), case), expected):
            assert verification._difference(x, y) <= verification.error_bound(case, dtype), str(case)

case = Case("tiles", (5, 5), (5, 5), "linear", poses=5000)
_, images, weights, rotations, shifts = case.inputs(torch.complex64)
arguments = (images, weights, rotations, shifts, *case.geometry)
found = {}
for deterministic in (False, True):
    torch.use_deterministic_algorithms(deterministic)
    found[deterministic] = []
    for last_first in (0, 1):
        api.torch_projectors_cuda_host_backwards(last_first)
        found[deterministic].append(bare.backward_project(*arguments))
assert not torch.equal(found[False][0][0], found[False][1][0])
assert torch.equal(found[True][0][0], found[True][1][0]) and torch.equal(found[True][0][1], found[True][1][1])
torch.use_deterministic_algorithms(False)

volume = torch.randn(1, 5, 3, dtype=torch.complex64)
expected = torch.ops.torch_projectors_reference.add_mates_
copy = volume.clone()
expected(copy, torch.empty(0), (5, 5))
bare.add_mates_(volume, torch.empty(0), (5, 5))
assert torch.equal(volume, copy)

try:
    bare.backward_project(images, weights.double(), rotations, shifts, *case.geometry)
except RuntimeError as error:
    assert "weights: expected the precision of the other tensors" in str(error), error
else:
    raise AssertionError("weights of another precision were taken")
"""


def test_the_ops_as_torch_calls_them_agree_with_the_reference(path) -> None:
    if torch_version() < (2, 10) or sys.platform != "linux":
        pytest.skip("expected torch 2.10 or later, on Linux")
    result = subprocess.run(
        [sys.executable, "-c", REGISTERED, str(path)],
        env={**os.environ, "TORCH_PROJECTORS_DISABLE": "all"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert "Warning" not in result.stderr


def insertion(ops, case: Case, dtype: torch.dtype) -> list[torch.Tensor]:
    _, images, weights, rotations, shifts = case.inputs(dtype)
    return ops.backward_project(images, weights, rotations, shifts, *case.geometry)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("dims, image_dims", [(2, 2), (3, 2), (3, 3)])
@by_owners
def test_the_deterministic_insertion_finds_samples_of_poses_along_the_axes(
    dims: int, image_dims: int, interpolation: str, dtype: torch.dtype, schedule: str, ops
) -> None:
    signed = [torch.diag(torch.tensor(signs)) for signs in itertools.product((1.0, -1.0), repeat=dims)]
    matrices = [s[list(order)] for s in signed for order in itertools.permutations(range(dims))]
    matrices += [m * torch.tensor([1.0, 1e-4, 0.0])[:dims] for m in matrices]  # onto a line, and nearly so
    case = Case("axes", (12, 9, 10)[-dims:], (11, 12, 9)[-image_dims:], interpolation, poses=len(matrices))
    _, images, weights, _, shifts = case.inputs(dtype)
    rotations = torch.stack(matrices)[None].to(weights.dtype)
    found = ops.backward_project(images, weights, rotations, shifts, *case.geometry)
    expected = REFERENCE.bare.backward_project(images, weights, rotations, shifts, *case.geometry)
    for x, y in zip(found, expected):
        assert verification._difference(x, y) <= verification.error_bound(case, dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])
@pytest.mark.parametrize("dims, image_dims", [(2, 2), (3, 2), (3, 3)])
@by_owners
def test_the_deterministic_insertion_finds_samples_of_any_matrix(
    dims: int, image_dims: int, interpolation: str, dtype: torch.dtype, schedule: str, ops, monkeypatch
) -> None:
    volume, image = (19, 18, 34)[-dims:], (3, 8, 150)[-image_dims:]
    case = Case("any matrix", volume, image, interpolation, poses=40, cutoff=math.inf)
    _, images, weights, _, shifts = case.inputs(dtype)
    rotations = torch.randn(
        1, 40, dims, dims, generator=torch.Generator().manual_seed(0), dtype=weights.dtype
    )
    rotations[:, 10:20] *= 0.03  # many samples for each entry
    rotations[:, 20:, :, 1] = rotations[:, 20:, :, 0] + 0.1 * rotations[:, 20:, :, 1]
    rotations[:, 30:, :, 0] *= torch.logspace(-9, 0, 10)[:, None]
    arguments = (images, weights, rotations, shifts)
    found = ops.backward_project(*arguments, *case.geometry)
    # By atomics: of the same positions, so that all that differs is the order of sums.
    monkeypatch.undo()
    torch.use_deterministic_algorithms(False)
    for x, y in zip(found, ops.backward_project(*arguments, *case.geometry)):
        assert (x - y).abs().max() <= (1e-5 if dtype == torch.complex64 else 1e-14) * y.abs().max()


@pytest.mark.parametrize("case", CASES[::3] + LARGE, ids=str)
@by_owners
def test_the_deterministic_insertion_goes_without_weights_and_takes_real_data(
    case: Case, schedule: str, ops
) -> None:
    _, images, weights, rotations, shifts = case.inputs()
    insert, expected = ops.backward_project, REFERENCE.bare.backward_project
    for arguments in ((images, None, rotations, shifts), (weights, None, rotations, None)):
        found, _ = insert(*arguments, *case.geometry)
        bound = verification.error_bound(case, torch.complex128)
        assert verification._difference(found, expected(*arguments, *case.geometry)[0]) <= bound


@pytest.mark.parametrize("case", LARGE, ids=str)
@by_owners
def test_the_deterministic_insertion_does_not_depend_on_the_order_of_threads(
    case: Case, schedule: str, ops, backwards
) -> None:
    forwards = insertion(ops, case, torch.complex64)
    backwards(1)
    assert all(map(torch.equal, insertion(ops, case, torch.complex64), forwards))


def test_the_order_of_threads_matters_to_atomics(ops, backwards) -> None:
    case = LARGE[1]
    forwards = insertion(ops, case, torch.complex64)
    backwards(1)
    assert not torch.equal(insertion(ops, case, torch.complex64)[0], forwards[0])


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_gradients_of_poses_do_not_depend_on_the_order_of_threads(case: Case, ops, backwards) -> None:
    volume, images, _, rotations, shifts = case.inputs(torch.complex64)

    def gradients():
        need = (False, True, True, True)
        return ops.project_gradients(volume, images, rotations, shifts, *case.geometry, *need)

    forwards = gradients()
    backwards(1)
    assert all(map(torch.equal, gradients(), forwards))


@pytest.mark.parametrize("need", list(itertools.product((False, True), repeat=4)), ids=str)
def test_gradients_are_the_same_whichever_are_needed(need: tuple[bool, ...], ops) -> None:
    case = next(c for c in CASES if str(c) == "3D->2D linear rotations for each")
    volume, images, _, rotations, shifts = case.inputs()
    every = ops.project_gradients(volume, images, rotations, shifts, *case.geometry, *[True] * 4)
    some = ops.project_gradients(volume, images, rotations, shifts, *case.geometry, *need)
    for needed, a, b in zip(need, some, every):
        assert torch.equal(a, b) if needed else a.shape == (0,)


@pytest.mark.parametrize("batch, poses", [(0, 3), (2, 0), (0, 0)])
def test_without_images_sums_are_zero(batch: int, poses: int, ops) -> None:
    case = Case("empty", (4, 4, 4), (5, 5), "linear", batch=batch, poses=poses)
    volume, images, weights, rotations, shifts = case.inputs()
    tail = case.geometry
    assert ops.forward_project(volume, rotations, shifts, *tail).shape == images.shape
    for x in ops.backward_project(images, weights, rotations, shifts, *tail):
        assert x.shape == volume.shape
        assert not x.any()
    gradients = ops.project_gradients(volume, images, rotations, shifts, *tail, *[True] * 4)
    for gradient, x in zip(gradients, (volume, images, rotations, shifts)):
        assert gradient.shape == x.shape
        assert not gradient.any()


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("interpolation", ["nearest", "linear", "cubic"])
def test_a_pose_that_is_no_number_is_seen_and_spoils_no_other(
    interpolation: str, value: float, schedule: str, ops
) -> None:
    case = Case("bad pose", (6, 6, 6), (6, 6), interpolation)
    volume, images, weights, rotations, shifts = case.inputs()
    rotations[0, 1, 0, 0] = value
    projected = ops.forward_project(volume, rotations, shifts, *case.geometry)
    expected = REFERENCE.bare.forward_project(volume, rotations, shifts, *case.geometry)
    assert torch.equal(projected.isnan(), expected.isnan())
    assert not projected[0, [0, 2]].isnan().any()
    for x in ops.backward_project(images, weights, rotations, shifts, *case.geometry):
        assert x.flatten()[0].isnan()
        assert not x.flatten()[1:].isnan().any()


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "shape", [(6, 6), (5, 7), (1, 2), (2, 1), (4, 6, 8), (5, 5, 5), (1, 6, 1), (3, 4, 2)]
)
def test_entries_of_paired_columns_get_the_conjugates_of_their_mates(
    shape: tuple[int, ...], dtype: torch.dtype, ops
) -> None:
    volume = torch.randn(3, *stored_shape(shape), dtype=dtype)
    weights = torch.randn(3, *stored_shape(shape), dtype=dtype.to_real())
    expected = with_mates_(volume.clone(), shape), with_mates_(weights.clone(), shape)
    ops.add_mates_(volume, weights, shape)
    assert torch.equal(volume, expected[0])
    assert torch.equal(weights, expected[1])
    ops.add_mates_(volume, weights.new_empty(0), shape)
    assert torch.equal(volume, with_mates_(expected[0], shape))


def test_sums_over_very_many_poses_stay_accurate(schedule: str, ops) -> None:
    # Weights of one sign: with every one added, the next makes a smaller difference to a float.
    case = Case("many poses", (3, 3, 3), (3, 3), "linear", poses=50_000, cutoff=math.inf, batch=2)
    _, images, weights, rotations, shifts = case.inputs(torch.complex64)
    images += 3
    arguments = (images, weights, rotations, shifts)
    found = ops.backward_project(*arguments, *case.geometry)
    wide = [x.to(torch.complex128 if x.is_complex() else torch.float64) for x in arguments]
    for x, y in zip(found, REFERENCE.bare.backward_project(*wide, *case.geometry)):
        assert verification._difference(x, y) <= 1e-5


@pytest.mark.parametrize("poses", [3, 2050])
def test_strides_leave_what_lies_between_alone(poses: int, schedule: str, ops) -> None:
    case = Case("strides", (4, 5, 6), (5, 6), "linear", batch=2, poses=poses, rotation_batch=2)
    volume, images, weights, rotations, shifts = case.inputs(torch.complex64)
    expected = ops.backward_project(images, weights, rotations, shifts, *case.geometry)
    problem, _, _ = ops._setting("images", images, rotations, shifts, *case.geometry)
    size, image_size, gap = volume[0].numel(), images[0, 0].numel(), 7
    problem.volume_stride = size + gap
    problem.image_strides = (poses * (image_size + gap) + gap, image_size + gap)

    def spread(x: torch.Tensor) -> torch.Tensor:
        """[B, P, ...] with gaps."""
        padded = torch.nn.functional.pad(x.flatten(2), (0, gap), value=math.nan)
        return torch.nn.functional.pad(padded.flatten(1), (0, gap), value=math.nan).contiguous()

    inputs = [spread(images), spread(weights)]
    outputs = [torch.full((2, size + gap), math.inf, dtype=x.dtype) for x in (volume, weights)]
    workspace = ops.workspace(images, problem, "backward_workspace", True)
    ops.call("backward_project", problem, *(x.data_ptr() for x in (*inputs, *outputs)))
    assert bool(workspace.numel()) == (poses > 2048)
    for found, x in zip(outputs, expected):
        assert (found[:, size:] == math.inf).all()
        assert torch.equal(found[:, :size], x.flatten(1))


def test_refusals_say_what_was_expected_and_what_came(ops) -> None:
    case = CASES[0]
    volume, images, weights, rotations, shifts = case.inputs()
    geometry = case.geometry

    def refused(message: str, call, *arguments) -> None:
        with pytest.raises(RuntimeError, match=message):
            call(*arguments)

    forward, backward = ops.forward_project, ops.backward_project
    refused("volume: expected shape", forward, volume[:, 1:], rotations, shifts, *geometry)
    refused(
        "interpolation: expected", forward, volume, rotations, shifts, *geometry._replace(interpolation=2)
    )
    refused("cutoff: expected", forward, volume, rotations, shifts, *geometry._replace(cutoff=math.nan))
    refused("rotations: .*precision", forward, volume, rotations.float(), shifts, *geometry)
    refused("weights: .*precision", backward, images, weights.float(), rotations, shifts, *geometry)


@pytest.mark.parametrize("case", CASES + LARGE, ids=str)
def test_insertion_into_interleaved_sums_agrees_with_the_reference(case: Case, package, ops) -> None:
    _, images, weights, rotations, shifts = case.inputs(torch.complex64)
    found = gpu.trial("interleaved", ops, package.library.LIBRARY, images, weights, rotations, shifts, case)()
    wide = [
        x if x is None else x.to(torch.complex128 if x.is_complex() else torch.float64)
        for x in (images, weights, rotations, shifts)
    ]
    for x, y in zip(found, REFERENCE.bare.backward_project(*wide, *case.geometry)):
        assert verification._difference(x, y) <= verification.error_bound(case, torch.complex64)


# What the example uses of the CUDA runtime, on host memory.
RUNTIME = """
#include <stdlib.h>
#include <string.h>
enum { cudaSuccess, cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost };
static int cudaMalloc(void** to, size_t bytes) { return (*to = malloc(bytes)) == NULL; }
static int cudaMemcpy(void* to, const void* from, size_t bytes, int way) {
  (void)way;
  memcpy(to, from, bytes);
  return cudaSuccess;
}
"""


def test_the_example_of_the_c_api_finds_a_point_where_it_belongs(path, tmp_path) -> None:
    if shutil.which("cc") is None:
        pytest.skip("expected a C compiler")
    (tmp_path / "cuda_runtime_api.h").write_text(RUNTIME)
    command = ["cc", "-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", f"-I{tmp_path}"]
    command += [f"-I{cuda_on_host.PLUGIN / 'include'}", str(cuda_on_host.ROOT / "examples" / "c" / "cuda.c")]
    program = tmp_path / "example"
    subprocess.run([*command, str(path), f"-Wl,-rpath,{path.parent}", "-lm", "-o", str(program)], check=True)
    run = subprocess.run([str(program)], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "point within" in run.stdout


def test_the_example_of_the_c_api_compiles_with_the_toolkit(tmp_path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("expected nvcc")
    command = [
        "nvcc",
        "-c",
        str(cuda_on_host.ROOT / "examples" / "c" / "cuda.c"),
        "-Xcompiler",
        "-Wall,-Werror",
    ]
    command += [f"-I{cuda_on_host.PLUGIN / 'include'}", "-o", str(tmp_path / "example.o")]
    subprocess.run(command, check=True)
