"""The distribution torch-projectors-cpu as a backend: registration, threads, processes, errors, memory.

What every backend has to do is tested elsewhere, on whichever are installed.
"""

from __future__ import annotations

import functools
import importlib.metadata
import math
import os
import pathlib
import platform
import shutil
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Optional

import pytest
import torch
from torch import Tensor

import torch_projectors
from torch_projectors import ops, plugins, verification
from torch_projectors.cases import CASES, GEOMETRIES, Case
from torch_projectors.geometry import INTERPOLATION_CODES

# By its entry point: from the root of the checkout, an import finds a directory of that name.
INSTALLED = "cpu" in plugins._backends
pytestmark = pytest.mark.skipif(not INSTALLED, reason="torch-projectors-cpu is not installed")

# What older releases of torch lack: its stable C interface.
stable_interface = pytest.mark.skipif(
    plugins.torch_version() < (2, 10), reason="torch before 2.10 gets the kernels by ctypes"
)

LEVELS = ("baseline", "avx2", "avx512")


def cubes(name: str, size: int, images: int, volumes: int) -> list[Case]:
    """Of every geometry and interpolation, with so many images, 2D or 3D, to each volume."""
    return [
        Case(
            name,
            (size,) * dims,
            (size,) * image_dims,
            interpolation,
            batch=2,
            poses=images if image_dims == 2 else volumes,
            shift_batch=2,
        )
        for dims, image_dims in GEOMETRIES
        for interpolation in INTERPOLATION_CODES
    ]


LARGE = cubes("large", 20, 40, 4)  # enough to be worth several threads
MANY = cubes("many", 16, 150, 15)  # enough that they are added to several copies of a volume

# Their entries are asked for ahead; rows are longer than a block.
FAR = [
    Case(
        "far",
        (90, 90, 150) if dims == 3 else (1100, 1000),
        (20, 26, 140)[-image_dims:],
        interpolation,
        cutoff=math.inf,
    )
    for dims, image_dims in GEOMETRIES
    for interpolation in INTERPOLATION_CODES
]


@pytest.fixture(autouse=True)
def cpu():
    with torch_projectors.use_backend("cpu"):
        yield


@pytest.fixture
def threads():
    """Sets the number of threads, and sets it back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@functools.cache
def arguments(case: Case) -> tuple[Optional[Tensor], ...]:
    """Volume, real volume, images, weights, rotations, shifts: once, for torch's own results may vary with threads."""
    volume, *rest = case.inputs(torch.complex64)
    return volume, volume.real.square().contiguous(), *rest


def outputs(case: Case) -> list[Tensor]:
    """All outputs of all ops. Calls nothing else of torch once the arguments are there."""
    volume, real_volume, images, weights, rotations, shifts = arguments(case)
    bare, tail = torch.ops.torch_projectors, case.geometry
    need = (True, True, True, True)
    return [
        bare.forward_project(volume, rotations, shifts, *tail),
        *bare.backward_project(images, weights, rotations, shifts, *tail),
        *bare.insert_projections(images, weights, rotations, shifts, *tail),
        *bare.project_gradients(volume, images, rotations, shifts, *tail, *need),
        bare.forward_project(real_volume, rotations, None, *tail),
        *bare.backward_project(weights, weights, rotations, None, *tail),
        *bare.project_gradients(real_volume, weights, rotations, None, *tail, *need),
    ]


def identical(actual: list[Tensor], expected: list[Tensor]) -> bool:
    return len(actual) == len(expected) and all(torch.equal(a, e) for a, e in zip(actual, expected))


def run(program: str, *arguments: str, **environment: str) -> str:
    """Run a program in a process of its own, with this file to import from."""
    path = [str(pathlib.Path(__file__).parent), os.environ.get("PYTHONPATH", "")]
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, path)), **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def test_it_serves_the_cpu_with_kernels_for_every_op():
    backend = torch_projectors.backends()["cpu"]
    assert (backend.status, backend.device, backend.distribution) == ("loaded", "cpu", "torch-projectors-cpu")
    assert (
        backend.version == importlib.metadata.version("torch-projectors-cpu") == torch_projectors.__version__
    )
    for name in ops.SCHEMAS:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"torch_projectors::{name}", "CPU")


@pytest.mark.parametrize("case", MANY + FAR, ids=str)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
def test_many_images_and_volumes_larger_than_caches_agree_with_the_reference(case, dtype):
    result = verification._run("cpu", "cpu", dtype, case)
    assert result.passed, result


def test_every_case_agrees_with_the_reference_in_both_precisions():
    results = list(torch_projectors.verify(["cpu"]))
    assert len(results) == 2 * len(CASES)
    failed = [f"{r.case} {r.dtype}: {r.failure or (r.error, r.defect)}" for r in results if not r.passed]
    assert not failed, "\n".join(failed)


@pytest.mark.parametrize("level", LEVELS)
def test_every_level_of_vector_instructions_agrees_with_the_reference(level):
    from torch_projectors_cpu import library

    best = library.level()
    if LEVELS.index(level) > LEVELS.index(best):
        pytest.skip(f"this processor has {best} at most")
    program = """
    import sys
    from torch_projectors_cpu import library
    from torch_projectors.verification import verify

    assert library.level() == sys.argv[1], library.level()
    assert all(result.passed for result in verify(["cpu"]))
    """
    run(program, level, TORCH_PROJECTORS_CPU_LEVEL=level)


@pytest.mark.parametrize("case", LARGE + MANY, ids=str)
def test_results_are_the_same_to_the_last_bit_for_any_number_of_threads(case, threads):
    threads(1)
    expected = outputs(case)
    for n in (2, 3, 8):
        threads(n)
        assert identical(outputs(case), expected), f"{n} threads"


def spoil(x: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """x with so many entries that are not finite; with zeros there; with large numbers there."""
    places = torch.randperm(x.numel(), generator=torch.Generator().manual_seed(0))[:count]
    spoilt, without, large = x.clone(), x.clone(), x.clone()
    for value, chosen in zip((torch.inf, -torch.inf, torch.nan), places.chunk(3)):
        spoilt.view(-1)[chosen] = value
    without.view(-1)[places] = 0
    large.view(-1)[places] = 1000
    return spoilt, without, large


def spread_like_their_values(call: Any, reference: Any, inputs: tuple[Tensor, Tensor, Tensor]) -> None:
    """Numbers that are not finite get where others change results. The reference also takes them, times zero, for taps
    out of the band; and taps without weight change nothing."""
    found, *finite = map(call, inputs)
    for x, a, b, most in zip(found, *finite, reference(inputs[0])):
        spread = ~x.isfinite()
        assert spread[a != b].all()
        assert not most.isfinite()[spread].any()


@pytest.mark.parametrize("spoilt", ["images", "weights"])
@pytest.mark.parametrize("case", LARGE + MANY, ids=str)
def test_what_is_not_finite_stays_where_its_taps_are_for_any_number_of_threads(case, spoilt, threads):
    _, _, images, weights, rotations, shifts = arguments(case)

    def insertion(namespace: Any) -> Any:
        def insert(x: Tensor) -> list[Tensor]:
            data = {"images": images, "weights": weights, spoilt: x}
            volumes = namespace.backward_project(*data.values(), rotations, shifts, *case.geometry)
            return [torch.view_as_real(volumes[0]), volumes[1]]

        return insert

    insert = insertion(torch.ops.torch_projectors)
    inputs = spoil({"images": images, "weights": weights}[spoilt], 60)
    threads(1)
    expected = [x.nan_to_num(nan=3e38) for x in insert(inputs[0])]
    for n in (2, 3, 8):
        threads(n)
        assert identical([x.nan_to_num(nan=3e38) for x in insert(inputs[0])], expected), f"{n} threads"
    spread_like_their_values(insert, insertion(torch.ops.torch_projectors_reference), inputs)


@pytest.mark.parametrize("case", LARGE, ids=str)
def test_samples_are_not_finite_only_where_their_taps_are_not(case):
    volume, _, images, _, rotations, shifts = arguments(case)

    def reading(namespace: Any) -> Any:
        def read(x: Tensor) -> list[Tensor]:
            need = (False, True, False, False)
            return [
                namespace.forward_project(x, rotations, shifts, *case.geometry),
                namespace.project_gradients(x, images, rotations, shifts, *case.geometry, *need)[1],
            ]

        return read

    inputs = spoil(volume, volume.numel() // 100)
    spread_like_their_values(
        reading(torch.ops.torch_projectors), reading(torch.ops.torch_projectors_reference), inputs
    )


@stable_interface
@pytest.mark.skipif(not pathlib.Path("/proc/self/task").is_dir(), reason="needs /proc to count threads")
def test_torch_sets_the_number_of_threads():
    program = """
    import os
    import torch
    import torch_projectors
    from test_cpu_plugin import LARGE, outputs

    def count():
        return len(os.listdir("/proc/self/task"))

    torch_projectors.backends()
    torch.set_num_threads(1)
    before = count()
    outputs(LARGE[4])
    assert count() == before, (before, count())
    torch.set_num_threads(3)
    outputs(LARGE[4])
    assert count() >= before + 2, (before, count())
    """
    run(program)


def test_calls_from_many_threads_at_once_do_not_disturb_each_other():
    expected = {case: outputs(case) for case in LARGE}
    work = [case for _ in range(4) for case in LARGE]
    with ThreadPoolExecutor(8) as pool:
        for case, result in zip(work, pool.map(outputs, work)):
            assert identical(result, expected[case]), str(case)


def test_errors_of_many_threads_at_once_keep_their_own_messages():
    def message(n: int) -> str:
        volume, rotations = torch.zeros(1, 4, 3, dtype=torch.complex64), torch.eye(2)[None, None]
        with pytest.raises(RuntimeError) as caught:
            torch.ops.torch_projectors.forward_project(
                volume, rotations, None, (4, 4), (4, 4), 1, -n, 2.0, False
            )
        return str(caught.value)

    with ThreadPoolExecutor(8) as pool:
        for n, text in zip(range(1, 200), pool.map(message, range(1, 200))):
            assert f"oversampling: expected a finite number > 0, got -{n}" in text


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_processes_compute_after_their_parent_has_used_threads():
    program = """
    import os
    import signal
    import sys
    import warnings

    import torch
    import torch_projectors
    from test_cpu_plugin import LARGE, identical, outputs

    # Python warns of forks of processes with threads: that is what is tested.
    warnings.simplefilter("ignore")
    torch.set_num_threads(3)
    torch_projectors.backends()
    expected = outputs(LARGE[4])

    def fork(child):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            os._exit(0 if child() else 1)
        return os.waitpid(pid, 0)[1] == 0

    def compute():
        return identical(outputs(LARGE[4]), expected)

    assert fork(compute)
    assert fork(lambda: fork(compute) and compute())
    assert compute()
    """
    run(program)


def test_spawned_processes_and_workers_of_data_loaders_compute(tmp_path):
    program = """
    import multiprocessing
    import warnings

    import torch
    from torch.utils.data import DataLoader
    from test_cpu_plugin import LARGE, outputs

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, i):
            import torch_projectors
            assert torch_projectors.backends()["cpu"].status == "loaded"
            return outputs(LARGE[i])[0]

    if __name__ == "__main__":
        warnings.simplefilter("ignore")
        torch.set_num_threads(2)
        expected = [Images()[i] for i in range(6)]
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            assert torch.equal(pool.map(Images().__getitem__, [4])[0], expected[4])
        for context in set(multiprocessing.get_all_start_methods()) & {"fork", "spawn"}:
            loader = DataLoader(Images(), None, num_workers=2, multiprocessing_context=context)
            for images, e in zip(loader, expected):
                assert torch.equal(images, e), context
    """
    path = tmp_path / "program.py"
    path.write_text(textwrap.dedent(program))
    run(
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')",
        str(path),
    )


def test_works_in_inference_mode_and_gives_no_gradient():
    volume, rotations = torch.randn(1, 4, 3, dtype=torch.complex64), torch.eye(2)[None, None]
    with torch.inference_mode():
        images = torch.ops.torch_projectors.forward_project(
            volume, rotations, None, (4, 4), (4, 4), 1, 1.0, 2.0, False
        )
    assert images.is_inference()
    assert not images.requires_grad


@pytest.mark.parametrize("case", [CASES[0], CASES[-1]], ids=str)
def test_no_volumes_or_no_poses_give_zeros_or_nothing(case):
    volume, images, weights, rotations, shifts = case.inputs()
    bare, reference, tail = torch.ops.torch_projectors, torch.ops.torch_projectors_reference, case.geometry
    # No volumes, of shared poses, and no poses.
    for v, i, w, r, s in (
        (volume[:0], images[:0], weights[:0], rotations[:1], shifts[:1]),
        (volume, images[:, :0], weights[:, :0], rotations[:, :0], shifts[:, :0]),
    ):
        for name, arguments in {
            "forward_project": (v, r, s, *tail),
            "backward_project": (i, w, r, s, *tail),
            "project_gradients": (v, i, r, s, *tail, True, True, True, True),
        }.items():
            actual = getattr(bare, name)(*arguments)
            expected = getattr(reference, name)(*arguments)
            torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("need", [(n >> 0 & 1, n >> 1 & 1, n >> 2 & 1, n >> 3 & 1) for n in range(16)])
def test_only_needed_gradients_are_computed_and_the_others_are_empty(need):
    case = next(c for c in CASES if str(c) == "3D->2D cubic poses for each")
    volume, images, _, rotations, shifts = case.inputs()
    need = tuple(map(bool, need))
    every = torch.ops.torch_projectors.project_gradients(
        volume, images, rotations, shifts, *case.geometry, *[True] * 4
    )
    some = torch.ops.torch_projectors.project_gradients(
        volume, images, rotations, shifts, *case.geometry, *need
    )
    for n, gradient, full in zip(need, some, every):
        if n:
            torch.testing.assert_close(gradient, full, rtol=1e-12, atol=1e-12)
        else:
            assert (gradient.shape, gradient.dtype) == ((0,), full.dtype)


# What may be wrong with a call of forward_project (which kwargs replace), and words of the message.
VOLUME = torch.zeros(2, 4, 3, dtype=torch.complex64)
ROTATIONS = torch.eye(2).repeat(1, 3, 1, 1)
WRONG = {
    "dtype": ({"volume": VOLUME.real.int()}, "volume: expected complex64, complex128, float32 or float64"),
    "scalar": ({"volume": VOLUME[0, 0, 0].clone()}, "volume: expected a batch, got a scalar"),
    "dimensions": ({"volume": VOLUME[0].clone()}, "volume: expected shape [4, 4, 3], got [4, 3]"),
    "size": ({"volume_shape": (4, 5)}, "volume: expected shape [2, 4, 3], got", "volume_shape"),
    "strides": ({"volume": VOLUME.mT.contiguous().mT}, "volume: expected a contiguous tensor"),
    "rotation precision": ({"rotations": ROTATIONS.double()}, "rotations: expected the precision"),
    "rotation size": (
        {"rotations": torch.eye(3).repeat(1, 3, 1, 1)},
        "rotations: expected shape [1, 3, 2, 2]",
    ),
    "rotation batch": ({"rotations": ROTATIONS.repeat(3, 1, 1, 1)}, "rotations: expected shape [2, 3, 2, 2]"),
    "rotation dimensions": ({"rotations": ROTATIONS[0]}, "rotations: expected 4 dimensions, got 3"),
    "shift poses": ({"shifts": torch.zeros(1, 2, 2)}, "shifts: expected shape [1, 3, 2], got [1, 2, 2]"),
    "shift dimensions": ({"shifts": torch.zeros(3, 2)}, "shifts: expected 3 dimensions, got 2"),
    "shifts of weights": (
        {"volume": VOLUME.real.contiguous(), "shifts": torch.zeros(1, 3, 2)},
        "shifts: expected NULL with real data",
    ),
    "one axis": ({"volume_shape": (4,)}, "volume_shape: expected 2 or 3 numbers, got 1"),
    "four axes": ({"image_shape": (4, 4, 4, 4)}, "image_shape: expected 2 or 3 numbers, got 4"),
    "a volume of an image": ({"image_shape": (4, 4, 4)}, "image_shape: expected at most 2 numbers, got 3"),
    "no points": ({"image_shape": (0, 4)}, "image_shape: expected from 1 to 2^30 points, got 0"),
    "negative": ({"image_shape": (4, -4)}, "image_shape: expected from 1 to 2^30 points, got -4"),
    "long": ({"image_shape": (4, 2**31)}, "image_shape: expected from 1 to 2^30 points"),
    "interpolation": (
        {"interpolation": 2},
        "interpolation: expected 0 (nearest), 1 (linear) or 3 (cubic), got 2",
    ),
    "big interpolation": ({"interpolation": 2**32 + 1}, "interpolation: expected 0 (nearest)"),
    "oversampling": ({"oversampling": 0.0}, "oversampling: expected a finite number > 0, got 0"),
    "infinite oversampling": ({"oversampling": float("inf")}, "oversampling: expected a finite number > 0"),
    "cutoff": ({"cutoff": float("nan")}, "cutoff: expected a number >= 0, got"),
}


def wrong_call(name: str) -> str:
    """The message of a call that must fail."""
    arguments = {
        "volume": VOLUME,
        "rotations": ROTATIONS,
        "shifts": None,
        "volume_shape": (4, 4),
        "image_shape": (4, 4),
        "interpolation": 1,
        "oversampling": 1.0,
        "cutoff": 2.0,
        "pairs_once": False,
        **WRONG[name][0],
    }
    try:
        torch.ops.torch_projectors.forward_project(*arguments.values())
    except RuntimeError as error:
        return str(error).splitlines()[0]
    raise AssertionError("it was accepted")


@pytest.mark.parametrize("name", [name for name in WRONG if name != "size"])
def test_bad_arguments_are_named_with_what_was_expected_and_what_came(name):
    text = wrong_call(name)
    assert text.startswith("torch_projectors: ")
    for words in WRONG[name][1:]:
        assert words in text


def test_bad_arguments_of_the_other_ops_are_named_too():
    case = next(c for c in CASES if str(c) == "2D->2D linear even")
    volume, images, weights, rotations, shifts = case.inputs()
    bare, tail = torch.ops.torch_projectors, case.geometry
    for words, call in {
        "images: expected shape [1, 3, 8, 5], got [1, 2, 8, 5]": lambda: bare.backward_project(
            images[:, :2].contiguous(), None, rotations, shifts, *tail
        ),
        "weights: expected shape [1, 3, 8, 5], got [3, 8, 5]": lambda: bare.backward_project(
            images, weights[0], rotations, shifts, *tail
        ),
        "weights: expected the precision": lambda: bare.backward_project(
            images, weights.float(), rotations, shifts, *tail
        ),
        "images: expected the precision": lambda: bare.project_gradients(
            volume, images.to(torch.complex64), rotations, shifts, *tail, True, True, True, True
        ),
        "images: expected shape": lambda: bare.project_gradients(
            volume, images[0], rotations, shifts, *tail, False, False, True, False
        ),
        "volume: expected a batch": lambda: bare.add_mates_(volume[0, 0, 0], weights, (8, 8)),
        "volume: expected shape [8, 8, 5], got [8, 5]": lambda: bare.add_mates_(volume[0], weights, (8, 8)),
        "volume: expected complex64": lambda: bare.add_mates_(volume.real.int(), weights, (8, 8)),
        "volume_shape: expected 2 or 3 numbers, got 1": lambda: bare.add_mates_(volume, weights, (8,)),
        "weight_volume: expected shape [1, 8, 5], got [1, 3, 8, 5]": lambda: bare.add_mates_(
            volume, weights, (8, 8)
        ),
        "weight_volume: expected the precision": lambda: bare.add_mates_(volume, volume.real.float(), (8, 8)),
    }.items():
        with pytest.raises(RuntimeError) as caught:
            call()
        assert words in str(caught.value)


def test_the_way_of_older_torch_gives_the_same_results_and_messages(tmp_path):
    program = """
    import sys

    import torch
    from torch_projectors_cpu import older_torch
    from torch_projectors.cases import CASES
    from test_cpu_plugin import LARGE, WRONG, outputs, wrong_call

    older_torch.register()
    older_torch.register()
    results = [outputs(case) for case in [*LARGE, *CASES] if case.shift_batch is not None]
    torch.save((results, {name: wrong_call(name) for name in WRONG if name != "size"}), sys.argv[1])
    """
    run(program, str(tmp_path / "results"), TORCH_PROJECTORS_DISABLE="cpu")
    results, messages = torch.load(tmp_path / "results", weights_only=True)
    expected = [outputs(case) for case in [*LARGE, *CASES] if case.shift_batch is not None]
    assert all(identical(r, e) for r, e in zip(results, expected))
    dtypes = {"dtype"}  # printed by name and by number
    assert {k: v for k, v in messages.items() if k not in dtypes} == {
        name: wrong_call(name) for name in WRONG if name not in {"size", *dtypes}
    }


@stable_interface
@pytest.mark.parametrize("define_schemas", [0, 1])
def test_registering_again_changes_nothing(define_schemas):
    from torch_projectors_cpu import library

    before = outputs(LARGE[1])
    for _ in range(2):
        assert library.load().torch_projectors_cpu_register(define_schemas) == 0, library.message()
        assert identical(outputs(LARGE[1]), before)


@stable_interface
@pytest.mark.parametrize("order", ["import, register", "register, import"])
def test_a_program_and_the_core_may_both_define_the_ops(order):
    program = """
    import sys

    import torch
    from torch_projectors_cpu import library

    for what in sys.argv[1].split(", "):
        if what == "import":
            import torch_projectors
        else:
            assert library.load().torch_projectors_cpu_register(1) == 0, library.message()
    volume = torch.randn(6, 6, 4, dtype=torch.complex64, requires_grad=True)
    images = torch_projectors.forward_project(volume, torch.eye(3)[None])
    images.abs().sum().backward()
    assert volume.grad.abs().sum() > 0
    compiled = torch.compile(torch_projectors.forward_project, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(volume.detach(), torch.eye(3)[None]), images.detach())
    assert torch_projectors.backends()["cpu"].status == "loaded"
    """
    run(program, order)


@stable_interface
def test_a_program_without_the_python_core_gets_the_same_ops(tmp_path):
    program = """
    import sys

    import torch
    from torch_projectors_cpu import library

    for _ in range(2):
        assert library.load().torch_projectors_cpu_register(1) == 0, library.message()
    assert "torch_projectors" not in sys.modules
    arguments = torch.load(sys.argv[1], weights_only=True)
    torch.save(torch.ops.torch_projectors.forward_project(*arguments), sys.argv[1])
    for name in sys.argv[2:]:
        print(getattr(torch.ops.torch_projectors, name).default._schema)
    """
    case = LARGE[4]
    volume, _, _, rotations, shifts = case.inputs()
    arguments = (volume, rotations, shifts, *case.geometry)
    torch.save(arguments, tmp_path / "tensors")
    schemas = run(program, str(tmp_path / "tensors"), *ops.SCHEMAS)
    assert schemas.splitlines() == [
        f"torch_projectors::{name}{schema}" for name, schema in ops.SCHEMAS.items()
    ]
    images = torch.load(tmp_path / "tensors", weights_only=True)
    assert torch.equal(images, torch.ops.torch_projectors.forward_project(*arguments))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("missing", "is missing: this package was not built"),
        ("garbage", "cannot be loaded on this system"),
        ("level", "TORCH_PROJECTORS_CPU_LEVEL: expected baseline, avx2 or avx512, got 'fast'"),
    ],
)
def test_a_damaged_installation_costs_one_warning_that_says_what_is_wrong(damage, words, tmp_path):
    from torch_projectors_cpu import library_path

    package = shutil.copytree(library_path().parent, tmp_path / "torch_projectors_cpu")
    library = package / library_path().name
    if damage == "missing":
        library.unlink()
    elif damage == "garbage":
        library.write_bytes(b"not a library")
    program = """
    import sys
    import warnings

    sys.path.insert(0, sys.argv[1])
    import torch
    import torch_projectors

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        images = torch_projectors.forward_project(torch.ones(4, 3, dtype=torch.complex64), torch.eye(2))
        backend = torch_projectors.backends()["cpu"]
    (message,) = [str(w.message) for w in caught if "backend" in str(w.message)]
    assert sys.modules["torch_projectors_cpu"].__file__.startswith(sys.argv[1])
    assert images[0, 0] == 1
    assert backend.status == "failed"
    for words in (sys.argv[2], "torch-projectors-cpu", "TORCH_PROJECTORS_DISABLE=cpu"):
        assert words in message, message
    """
    level = {"TORCH_PROJECTORS_CPU_LEVEL": "fast"} if damage == "level" else {}
    run(program, str(tmp_path), words, **level)


@pytest.mark.skipif(platform.system() != "Linux", reason="needs /proc to measure memory")
def test_calls_leak_no_memory():
    volume, images = torch.ones(1, 4, 3, dtype=torch.complex64), torch.ones(1, 1, 4, 3, dtype=torch.complex64)
    rotations, shifts = torch.eye(2)[None, None], torch.zeros(1, 1, 2)
    geometry = ((4, 4), (4, 4), 1, 1.0, 2.0, False)
    bare = torch.ops.torch_projectors

    def call():
        bare.forward_project(volume, rotations, shifts, *geometry)
        bare.backward_project(images, images.real.contiguous(), rotations, None, *geometry)
        bare.project_gradients(volume, images, rotations, shifts, *geometry, True, True, True, True)
        for wrong in ((volume, rotations[0], shifts), (volume, rotations, shifts[0])):
            with pytest.raises(RuntimeError):
                bare.forward_project(*wrong, *geometry)

    def resident() -> int:
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    calls = 20_000
    for _ in range(2_000):
        call()
    before = resident()
    for _ in range(calls):
        call()
    # The smallest thing that can be lost is 16 bytes; what else the process does in the meantime is let pass.
    assert resident() - before < 16 * calls


def test_a_source_distribution_builds_alone_and_names_a_missing_compiler(tmp_path):
    root = pathlib.Path(__file__).parents[1]
    if not (root / "torch_projectors_cpu" / "setup.py").is_file():
        pytest.skip("needs a checkout")
    found = [d.version for d in importlib.metadata.distributions(name="setuptools")]
    if not found or int(found[0].split(".")[0]) < 77:
        pytest.skip("needs setuptools 77 or later")
    # Builds write beside the sources.
    checkout = tmp_path / "checkout"
    products = shutil.ignore_patterns("build", "*.egg-info", "*.so", "*.dylib", "*.dll", "__pycache__")
    for name in ("torch_projectors", "torch_projectors_cpu"):
        shutil.copytree(root / name, checkout / name, ignore=products)
    shutil.copy(root / "LICENSE", checkout)

    def setup(folder: pathlib.Path, *arguments: str) -> subprocess.CompletedProcess:
        missing = {"CC": "no-such-compiler", "CXX": "no-such-compiler"}
        command = [sys.executable, "setup.py", "-q", *arguments]
        return subprocess.run(
            command, cwd=folder, env={**os.environ, **missing}, capture_output=True, text=True, timeout=60
        )

    result = setup(checkout / "torch_projectors_cpu", "sdist", "--dist-dir", str(tmp_path))
    assert result.returncode == 0, result.stderr
    version = torch_projectors.__version__
    shutil.unpack_archive(tmp_path / f"torch_projectors_cpu-{version}.tar.gz", tmp_path / "alone")
    alone = tmp_path / "alone" / f"torch_projectors_cpu-{version}"
    for name in ("grid.h", "interpolation.h"):
        assert (alone / "core" / "include" / "torch_projectors" / name).is_file()
    assert (alone / "LICENSE").read_text() == (root / "LICENSE").read_text()
    assert f"\nVersion: {version}\n" in (alone / "PKG-INFO").read_text()
    result = setup(alone, "build_ext")
    assert result.returncode != 0
    assert "Traceback" not in result.stderr
    if sys.platform != "win32":
        assert "no-such-compiler was not found. It needs a C++17 compiler" in result.stderr
