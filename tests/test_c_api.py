"""The C API of torch-projectors-cpu in processes without torch: values, strides, threads, and hostile arguments."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
import textwrap

import brute_force
import numpy as np
import pytest

from torch_projectors import ops, plugins
from torch_projectors.cases import CASES

INSTALLED = "cpu" in plugins._backends
pytestmark = pytest.mark.skipif(not INSTALLED, reason="torch-projectors-cpu is not installed")

# What programs begin with. A description has the names of the fields of torch_projectors_problem.
PRELUDE = """
import ctypes
import os
import sys

import numpy as np
from torch_projectors_cpu import library
from torch_projectors_cpu.library import Problem

api = library.load()
OK, INVALID, MEMORY, FAILED = range(4)


def stored(shape):
    return (*shape[:-1], shape[-1] // 2 + 1)


def problem(volume_shape, image_shape, rotations, shifts=None, /, **fields):
    batch, poses = rotations.shape[:2]
    size = int(np.prod(stored(image_shape)))
    d = len(volume_shape)
    values = dict(
        size=ctypes.sizeof(Problem),
        scalar=int(rotations.dtype == np.float64),
        interpolation=1,
        volume_dims=d,
        image_dims=len(image_shape),
        volume_shape=tuple(volume_shape),
        image_shape=tuple(image_shape),
        oversampling=1.0,
        cutoff=float("inf"),
        batch=batch,
        poses=poses,
        rotations=rotations.ctypes.data,
        rotation_strides=(poses * d * d, d * d),
        image_strides=(poses * size, size),
        volume_stride=int(np.prod(stored(volume_shape))),
    )
    if shifts is not None:
        values.update(shifts=shifts.ctypes.data, shift_strides=(poses * len(image_shape), len(image_shape)))
    result = Problem(**{**values, **fields})
    result.arrays = (rotations, shifts)
    return result


def address(array):
    return array if array is None or isinstance(array, int) else array.ctypes.data


def run(name, problem, *arrays):
    return getattr(api, "torch_projectors_cpu_" + name)(ctypes.byref(problem), *map(address, arrays))


def ok(*arguments):
    assert run(*arguments) == OK, library.message()


def normal(*shape, dtype=np.complex128):
    generator = np.random.default_rng(0)
    x = generator.standard_normal(shape)
    if np.issubdtype(dtype, complex):
        x = x + 1j * generator.standard_normal(shape)
    return x.astype(dtype)


def poses(batch, count, dims, dtype=np.float64):
    return np.ascontiguousarray(np.linalg.qr(normal(batch, count, dims, dims, dtype=np.float64))[0].astype(dtype))


# Large enough to be worth several threads.
def large(**fields):
    q = problem((32, 32, 32), (32, 32), poses(1, 120, 3), **fields)
    return q, normal(1, 32, 32, 17), normal(1, 120, 32, 17)
"""


def run(program: str, *arguments: str, **environment: str) -> str:
    result = subprocess.run(
        [
            sys.executable,
            "-c",
            PRELUDE + textwrap.dedent(program) + "\nassert 'torch' not in sys.modules",
            *arguments,
        ],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, f"exit {result.returncode}: {result.stdout}{result.stderr}"
    return result.stdout


VALUES = [c for c in CASES if c.name in ("rectangular", "rotations for each", "pairs once")]


@pytest.mark.parametrize("case", VALUES, ids=str)
def test_values_are_those_of_brute_force_whatever_the_strides(case, tmp_path):
    inputs = case.inputs()
    volume, images, weights, rotations, shifts = [x.numpy() for x in inputs]
    expected_images = brute_force.gather(volume, rotations, shifts, case.geometry)
    expected_volume, expected_weights = brute_force.scatter(images, weights, rotations, shifts, case.geometry)
    gradients = ops.REFERENCE.bare.project_gradients(*inputs[:2], *inputs[3:], *case.geometry, *[True] * 4)
    arrays = {
        "volume": volume,
        "images": images,
        "weights": weights,
        "rotations": rotations,
        "shifts": shifts,
        "expected_images": expected_images,
        "expected_volume": expected_volume,
        "expected_weights": expected_weights,
        "expected_rotations": gradients[2].numpy(),
        "expected_shifts": gradients[3].numpy(),
    }
    geometry = case.geometry
    scalars = (list(geometry.volume_shape), list(geometry.image_shape), *geometry[2:])
    np.savez(tmp_path / "arrays.npz", **arrays)
    # Off from exact by the rounding of positions, weights and sums: some hundred operations on numbers of some 10.
    program = """
    import math

    inf = math.inf
    volume_shape, image_shape, interpolation, oversampling, cutoff, pairs_once = eval(sys.argv[2])
    data = dict(np.load(sys.argv[1]))
    batch, count = data["images"].shape[:2]

    def spread(x, filler=777):
        # Apart in memory, in a larger array.
        block = math.prod(x.shape[2:])
        whole = np.full((x.shape[0], x.shape[1] + 1, block + 5), filler, x.dtype)
        whole[:, : x.shape[1], :block] = x.reshape(*x.shape[:2], block)
        return whole, (0 if x.shape[0] == 1 else whole.strides[0] // x.itemsize, block + 5)

    def same(whole, x, what):
        block = math.prod(x.shape[2:])
        assert (whole[:, :, block:] == 777).all() and (whole[:, x.shape[1] :] == 777).all(), what + " is written beside"
        difference = np.abs(whole[:, : x.shape[1], :block].reshape(x.shape) - x).max()
        assert difference < 1e-10, (what, difference)

    spread_of = {name: spread(data[name]) for name in ("images", "weights", "rotations", "shifts")}
    spread_of["volume"] = spread(data["volume"][:, None])
    strides = {name: s for name, (_, s) in spread_of.items()}
    arrays = {name: a for name, (a, _) in spread_of.items()}
    copies = {name: a.copy() for name, a in arrays.items()}
    if batch == 1:
        strides["images"] = (0, strides["images"][1])
    q = problem(
        volume_shape,
        image_shape,
        data["rotations"],
        interpolation=interpolation,
        oversampling=oversampling,
        cutoff=cutoff,
        pairs_once=pairs_once,
        batch=batch,
        rotations=address(arrays["rotations"]),
        shifts=address(arrays["shifts"]),
        rotation_strides=strides["rotations"],
        shift_strides=strides["shifts"],
        image_strides=strides["images"],
        volume_stride=arrays["volume"].strides[0] // 16,
    )

    def blank(name, dtype=None):
        return np.full(arrays[name].shape, 777, dtype or arrays[name].dtype)

    images, volume, weight_volume = blank("images"), blank("volume"), blank("volume", float)
    ok("forward_project", q, arrays["volume"], images)
    same(images, data["expected_images"], "images")
    ok("backward_project", q, arrays["images"], arrays["weights"], volume, weight_volume)
    same(volume, data["expected_volume"][:, None], "volume")
    same(weight_volume, data["expected_weights"][:, None], "weight_volume")
    volume[...] = 777
    ok("backward_project", q, arrays["images"], None, volume, None)
    same(volume, data["expected_volume"][:, None], "volume without weights")

    of_volume, of_images, of_rotations, of_shifts = map(blank, ("volume", "images", "rotations", "shifts"))
    ok("project_gradients", q, arrays["volume"], arrays["images"], of_volume, of_images, of_rotations, of_shifts)
    same(of_volume, data["expected_volume"][:, None], "grad_volume")
    same(of_images, data["expected_images"], "grad_images")
    same(of_rotations, data["expected_rotations"], "grad_rotations")
    same(of_shifts, data["expected_shifts"], "grad_shifts")
    for name, a in arrays.items():
        assert (a == copies[name]).all(), name + " was written to"
    """
    run(program, str(tmp_path / "arrays.npz"), repr(scalars))


def test_results_are_the_same_to_the_last_bit_for_any_number_of_threads_and_any_runner():
    program = """
    import threading

    used = set()
    chunks = [0]
    Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    Runner = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, Body, ctypes.c_void_p)

    @Runner
    def runner(pool, n, body, context):
        # In thirds, or whole beside ranges of nothing.
        limits = {12345: np.linspace(0, n, 4).astype(int).tolist(), 54321: [0, 0, n, n]}[pool]
        threads = [
            threading.Thread(target=lambda b=b, e=e: (used.add(threading.get_ident()), body(context, b, e)))
            for b, e in zip(limits, limits[1:])
        ]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        chunks[0] += len(threads)

    def results(**fields):
        q, volume, images = large(**fields)
        out = [np.empty_like(x) for x in (images, volume, volume, images, q.arrays[0])]
        weights = np.ascontiguousarray(images.real)
        weight_volume = np.empty(volume.shape)
        ok("forward_project", q, volume, out[0])
        ok("backward_project", q, images, weights, out[1], weight_volume)
        ok("project_gradients", q, volume, images, *out[2:], None)
        return [*out, weight_volume]

    expected = results(threads=1)
    pools = [dict(runner=ctypes.cast(runner, ctypes.c_void_p).value, pool=pool) for pool in (12345, 54321)]
    for fields in (dict(threads=0), dict(threads=2), dict(threads=3), dict(threads=2**31 - 1), *pools):
        for actual, e in zip(results(**fields), expected):
            assert actual.tobytes() == e.tobytes(), fields
    assert chunks[0] >= 24 and used
    """
    run(program)


def test_projections_are_added_to_what_volumes_hold():
    """Whole numbers, so that sums are exact."""
    program = """
    identity = np.eye(3)[None, None] + np.zeros((1, 5, 1, 1))
    q = problem((6, 6, 6), (6, 6), identity)
    images = np.arange(5.0 * 6 * 4).reshape(1, 5, 6, 4) + 0j
    weights = images.real.copy()
    once, again = np.empty((1, 6, 6, 4), complex), np.empty((1, 6, 6, 4))
    ok("backward_project", q, images, weights, once, again)
    volume, weight_volume = once.copy(), again.copy()
    q.add = 1
    ok("backward_project", q, images, weights, volume, weight_volume)
    assert np.array_equal(volume, 2 * once) and np.array_equal(weight_volume, 2 * again)
    q.poses = 0
    ok("backward_project", q, images, weights, volume, weight_volume)
    assert np.array_equal(volume, 2 * once) and np.array_equal(weight_volume, 2 * again)
    q.poses = 5
    ok("project_gradients", q, once, images, volume, None, None, None)
    assert np.array_equal(volume, once)
    """
    run(program)


def test_an_insertion_may_be_completed_by_mates_at_once():
    """As by add_mates after it, also where there are no images. Of a few binary places, so that sums are exact."""
    program = """
    q = problem((6, 5, 8), (8, 8), np.round(4 * poses(1, 7, 3)) / 4, pairs_once=1)
    images, weights = np.round(4 * normal(1, 7, 8, 5)), np.round(4 * abs(normal(1, 7, 8, 5)))
    before = np.round(4 * normal(1, 6, 5, 5)), np.round(4 * abs(normal(1, 6, 5, 5)))
    for add in (0, 1):
        for count in (7, 0):
            q.add, q.poses, q.mates = add, count, 0
            expected, actual = ([x.copy() for x in before] for _ in range(2))
            ok("backward_project", q, images, weights, *expected)
            ok("add_mates", q, *expected)
            q.mates = 1
            ok("backward_project", q, images, weights, *actual)
            assert all(np.array_equal(a, e) for a, e in zip(actual, expected)), (add, count)
    """
    run(program)


def test_a_runner_that_leaves_work_undone_is_an_error():
    program = """
    Body = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64)
    Runner = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, Body, ctypes.c_void_p)
    lazy = Runner(lambda pool, n, body, context: body(context, 0, n - 1))
    q, volume, images = large(runner=ctypes.cast(lazy, ctypes.c_void_p).value)
    assert run("forward_project", q, volume, images) == FAILED
    assert "did not cover the whole range" in library.message()
    """
    run(program)


# Fields that are not as they must be, and what is said of them.
INVALID = {
    "size=0": "size: expected",
    "scalar=2": "scalar: expected 0 (float) or 1 (double), got 2",
    "real=2": "real: expected 0 or 1, got 2",
    "real=1, shifts=8": "shifts: expected NULL with real data",
    "interpolation=2": "interpolation: expected 0 (nearest), 1 (linear) or 3 (cubic), got 2",
    "interpolation=-1": "interpolation: expected",
    "volume_dims=2": "volume_dims, image_dims: expected 2 and 2, 3 and 2, or 3 and 3, got 2 and 3",
    "image_dims=1": "got 3 and 1",
    "volume_shape=(4, 0, 4)": "volume_shape: expected from 1 to 2^30 points, got 0",
    "image_shape=(4, 4, -1)": "image_shape: expected from 1 to 2^30 points, got -1",
    "volume_shape=(4, 4, 2**30 + 1)": "volume_shape: expected from 1 to 2^30 points, got 1073741825",
    "volume_shape=(2**30, 2**30, 2**30)": "volume_shape: expected planes of less than 2^31 entries",
    "volume_shape=(1, 2**16, 2**16)": "volume_shape: expected planes of less than 2^31 entries",
    "volume_shape=(2**30, 2**15, 2**15)": "volume: expected strides",
    "image_shape=(2**30, 2**30, 2**30)": "batch, poses: expected less than 2^60 samples",
    "oversampling=0": "oversampling: expected a finite number > 0, got 0",
    "oversampling=np.nan": "oversampling: expected",
    "oversampling=np.inf": "oversampling: expected",
    "cutoff=-1": "cutoff: expected a number >= 0, got -1",
    "add=2": "add: expected 0 or 1, got 2",
    "mates=-1": "mates: expected 0 or 1, got -1",
    "pairs_once=2": "pairs_once: expected 0 or 1, got 2",
    "cutoff=np.nan": "cutoff: expected",
    "batch=-1": "batch: expected a number >= 0, got -1",
    "poses=-1": "poses: expected a number >= 0, got -1",
    "poses=2**62": "batch, poses: expected less than 2^60 samples",
    "batch=2**40, poses=2**40": "batch, poses: expected less than 2^60 samples",
    "rotations=None": "rotations: expected a pointer, got NULL",
    "rotations=9": "rotations: expected an address that is a multiple of 8",
    "rotation_strides=(0, -1)": "rotations: expected strides >= 0, got -1",
    "rotation_strides=(2**62, 9)": "rotations: expected strides within memory",
    "rotation_strides=(2, 9)": "grad_rotations: expected strides that keep",
    "rotation_strides=(0, 0)": "grad_rotations: expected strides that keep",
    "shift_strides=(-5, 2)": "shifts: expected strides >= 0, got -5",
    "shift_strides=(6, 2)": "grad_shifts: expected strides that keep",
    "image_strides=(144, -48)": "images: expected strides >= 0, got -48",
    "image_strides=(144, 47)": "images: expected strides that keep",
    "image_strides=(143, 48)": "images: expected strides that keep",
    "image_strides=(0, 48)": "images: expected strides that keep",
    "image_strides=(2**61, 48)": "images: expected strides within memory",
    "volume_stride=-48": "volume: expected strides >= 0, got -48",
    "volume_stride=47": "volume: expected strides that keep",
    "threads=-1": "threads: expected a number >= 0, got -1",
}


def test_bad_fields_are_refused_and_named():
    program = """
    inputs = [normal(2, 4, 4, 3), normal(2, 3, 4, 4, 3)]
    weights = np.abs(inputs[1])

    def codes(fields):
        shifts = normal(2, 3, 3, dtype=float)
        # They may be written to, as gradients.
        outputs = [x.copy() for x in inputs] + [poses(2, 3, 3), shifts.copy(), np.empty((2, 4, 4, 3))]
        q = problem((4, 4, 4), (4, 4, 4), poses(2, 3, 3), shifts, **fields)
        calls = [
            ("forward_project", q, inputs[0], outputs[1]),
            ("backward_project", q, inputs[1], weights, outputs[0], outputs[4]),
            ("project_gradients", q, *inputs, *outputs[:4]),
        ]
        for call in calls:
            code = run(*call)
            yield code, library.message()

    assert [code for code, _ in codes({})] == [OK] * 3
    for fields, words in eval(sys.argv[1]).items():
        found = list(codes(eval(f"dict({fields})")))
        refused = [message for code, message in found if code == INVALID]
        assert refused and all(code in (OK, INVALID) for code, _ in found), (fields, found)
        assert any(words in message for message in refused), (fields, words, found)
        # What is not checked by name is no reason to go on.
        if "strides that keep" not in words and "_dims" not in fields:
            assert len(refused) == 3, (fields, found)
    """
    run(program, repr(INVALID))


def test_bad_arrays_are_refused_and_named():
    program = """
    volume, images, weights = normal(2, 4, 3), normal(2, 3, 4, 3), normal(2, 3, 4, 3, dtype=float)
    rotations, shifts = poses(2, 3, 2), normal(2, 3, 2, dtype=float)
    q, unshifted = [problem((4, 4), (4, 4), rotations, s) for s in (shifts, None)]
    out = {"volume": normal(2, 4, 3), "images": normal(2, 3, 4, 3), "weights": normal(2, 4, 3, dtype=float)}
    of_rotations, of_shifts = rotations.copy(), shifts.copy()
    one_volume = problem((4, 4), (4, 4), rotations, volume_stride=0)
    flat = problem((4, 1, 4), (4, 4), poses(2, 3, 3))
    two = np.empty(200, complex)
    cases = [
        ("volume: expected a pointer, got NULL", "forward_project", q, None, out["images"]),
        ("images: expected a pointer, got NULL", "forward_project", q, volume, None),
        ("images: expected an address", "forward_project", q, volume, address(out["images"]) + 4),
        ("images: expected memory that no other array is in, got some of volume", "forward_project", q, two, two),
        ("got some of volume", "forward_project", q, two, address(two) + 23 * 16),
        ("got some of rotations", "forward_project", q, volume, rotations),
        ("got some of shifts", "forward_project", q, volume, shifts),
        ("volume: expected a pointer, got NULL", "backward_project", q, images, None, None, None),
        ("images: expected a pointer, got NULL", "backward_project", q, None, None, out["volume"], None),
        ("weights: expected a pointer, got NULL", "backward_project", q, images, None, out["volume"], out["weights"]),
        ("weight_volume: expected a pointer with weights", "backward_project", q, images, weights, out["volume"], None),
        ("got some of volume", "backward_project", q, images, weights, out["volume"], out["volume"]),
        ("got some of weights", "backward_project", q, images, weights, weights, out["weights"]),
        ("got some of images", "backward_project", q, images, None, images, None),
        ("images: expected a pointer", "project_gradients", q, volume, None, out["volume"], None, None, None),
        ("volume: expected a pointer", "project_gradients", q, None, images, None, out["images"], None, None),
        ("grad_shifts: expected NULL", "project_gradients", unshifted, volume, images, None, None, None, of_shifts),
        ("got some of rotations", "project_gradients", q, volume, images, None, None, rotations, None),
        ("got some of grad_rotations", "project_gradients", q, volume, images, None, None, of_rotations, of_rotations),
        ("volume: expected a pointer, got NULL", "add_mates", q, None, None),
        ("weight_volume: expected memory that no other", "add_mates", q, out["volume"], out["volume"]),
        ("got some of rotations", "add_mates", q, rotations, None),
        ("volume: expected strides that keep", "add_mates", one_volume, out["volume"], None),
        ("expected axes of at least 2 points, got one of 1", "gather_roof", flat, normal(2, 4, 1, 3), out["images"]),
        ("expected 3, 2 and 0, got 2, 2 and 0", "gather_roof", q, volume, out["images"]),
    ]
    for words, name, description, *arrays in cases:
        assert run(name, description, *arrays) == INVALID, words
        assert words in library.message(), (words, library.message())
    assert api.torch_projectors_cpu_forward_project(None, address(volume), address(images)) == INVALID
    assert "problem: expected a pointer, got NULL" in library.message()
    # A buffer's end is another's beginning.
    ok("forward_project", q, two, address(two) + 24 * 16)
    assert library.message() == ""
    # Inputs may be shared, also with one another.
    ok("forward_project", problem((4, 4), (4, 4), rotations, volume_stride=0), volume, out["images"])
    ok("project_gradients", q, volume, images, None, None, None, None)
    """
    run(program)


def test_no_arguments_whatever_crash_it():
    program = """
    import random

    random.seed(0)
    # Those that are accepted must lie within these.
    arrays = [np.zeros(200_000) for _ in range(8)]
    ints = (-(2**63), -(2**31), -1, 0, 1, 2, 3, 4, 48, 100, 2**62, 2**63 - 1)
    small = (-(2**31), -1, 0, 1, 2, 3, 4, 2**31 - 1)
    doubles = (float("nan"), float("inf"), -1.0, 0.0, 1e-300, 1.0, 1e300)
    valid = dict(
        size=ctypes.sizeof(Problem), interpolation=1, volume_dims=3, image_dims=2, volume_shape=(4, 3, 4),
        image_shape=(4, 4, 4), oversampling=1.0, cutoff=2.0, batch=2, poses=3, rotations=address(arrays[0]),
        shifts=address(arrays[1]), rotation_strides=(27, 9), shift_strides=(9, 3), image_strides=(150, 50),
        volume_stride=50,
    )
    names = [name for name, _ in Problem._fields_ if name not in ("runner", "pool")]
    codes = {}
    for i in range(30_000):
        fields = dict(valid)
        for name in random.sample(names, random.choice((0, 1, 1, 2, 4))):
            if name in ("oversampling", "cutoff"):
                fields[name] = random.choice(doubles)
            elif name in ("rotations", "shifts"):
                fields[name] = random.choice((None, 1, address(arrays[0])))
            elif name.endswith("shape"):
                fields[name] = tuple(random.choice(small) for _ in range(3))
            elif name.endswith("strides"):
                fields[name] = tuple(random.choice(ints) for _ in range(2))
            else:
                kind = dict(Problem._fields_)[name]
                fields[name] = random.choice(small if kind is ctypes.c_int32 else ints)
        q = Problem(**fields)
        name = random.choice(list(library.FUNCTIONS))
        some = [a if random.random() < 0.9 else None for a in arrays[2 : 2 + len(library.FUNCTIONS[name])]]
        if random.random() < 0.05:
            some[0] = some[-1]
        code = run(name, q, *some)
        assert code in (OK, INVALID, MEMORY), (code, library.message(), fields)
        assert bool(library.message()) == bool(code)
        codes[code] = codes.get(code, 0) + 1
    assert min(codes[OK], codes[INVALID]) > 3000, codes
    """
    run(program)


def test_nothing_to_do_writes_zeros():
    program = """
    rotations = poses(1, 3, 2)
    for batch, count in ((0, 3), (2, 0), (0, 0)):
        shifts = normal(1, 3, 2, dtype=float)
        counts = dict(batch=batch, poses=count)
        q = problem((4, 4), (4, 4), rotations, shifts, **counts, rotation_strides=(0, 4), shift_strides=(0, 2))
        volume, weight_volume = np.ones((2, 4, 3), complex), np.ones((2, 4, 3))
        ok("forward_project", q, None, None)
        ok("backward_project", q, None, None, volume, weight_volume)
        assert (volume[:batch] == 0).all() and (volume[batch:] == 1).all()
        assert (weight_volume[:batch] == 0).all() and (weight_volume[batch:] == 1).all()
        volume[...] = 1
        of_rotations, of_shifts = np.ones_like(rotations), np.ones_like(shifts)
        ok("project_gradients", q, None, None, volume, None, of_rotations, of_shifts)
        assert (volume[:batch] == 0).all() and (volume[batch:] == 1).all()
        assert (of_rotations[:, :count] == 0).all() and (of_rotations[:, count:] == 1).all()
        assert (of_shifts[:, :count] == 0).all() and (of_shifts[:, count:] == 1).all()
    """
    run(program)


@pytest.mark.skipif(platform.system() != "Linux", reason="needs limits of memory that are kept")
def test_a_lack_of_memory_is_an_error_code_and_a_lack_of_threads_is_none():
    program = """
    import resource

    count = 2**20
    rotations = np.broadcast_to(np.eye(2), (1, count, 2, 2)).copy()
    of_rotations = np.empty_like(rotations)
    q = problem((4, 4), (4, 4), rotations, image_strides=(0, 0))
    volume, images = normal(1, 4, 3), normal(1, 1, 4, 3)
    serial, large_volume, large_images = large(threads=1)
    expected = np.empty_like(large_images)
    ok("forward_project", serial, large_volume, expected)
    parallel, _, actual = large(threads=4)
    # Added to copies of the volume, 8 MB in all.
    poses = np.broadcast_to(np.eye(2), (1, 50, 2, 2)).copy()
    many, image = problem((256, 256), (256, 256), poses, image_strides=(0, 0), add=1), normal(1, 1, 256, 129)
    sums = np.ones((1, 256, 129), complex)

    def allow(more):
        pages = int(open("/proc/self/statm").read().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + more, resource.RLIM_INFINITY))

    allow(8 * 2**20)
    code, message = run("project_gradients", q, volume, images, None, None, of_rotations, None), library.message()
    allow(2**20)
    code_of_copies = run("backward_project", many, image, None, sums, None)
    code_of_threads = run("forward_project", parallel, large_volume, actual)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert (code, "out of memory" in message) == (MEMORY, True), (code, message)
    assert code_of_threads == OK, library.message()
    assert code_of_copies == MEMORY and (sums == 1).all()
    ok("backward_project", many, image, None, sums, None)
    assert (sums != 1).any()
    assert (actual == expected).all()
    ok("project_gradients", q, volume, images, None, None, of_rotations, None)
    """
    run(program)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_processes_compute():
    program = """
    q, volume, images = large(threads=2)
    actual = images.copy()
    ok("forward_project", q, volume, images)
    pid = os.fork()
    if pid == 0:
        code = run("forward_project", q, volume, actual)
        os._exit(code if code else int((actual != images).any()))
    assert os.waitpid(pid, 0)[1] == 0
    """
    run(program)


def test_messages_are_of_the_thread():
    program = """
    from concurrent.futures import ThreadPoolExecutor

    def message(n):
        q, volume, images = large(threads=-n)
        assert run("forward_project", q, volume, images) == INVALID
        return library.message()

    q, volume, images = large(threads=-1)
    with ThreadPoolExecutor(4) as pool:
        for n, text in enumerate(pool.map(message, range(1, 100)), 1):
            assert text == f"threads: expected a number >= 0, got -{n}"
    assert library.message() == ""
    """
    run(program)


def test_without_torch_it_says_so_and_what_it_is():
    program = """
    assert api.torch_projectors_cpu_register(0) == INVALID
    assert "expected torch 2.10 or later in the process" in library.message(), library.message()
    assert library.level() in ("baseline", "avx2", "avx512")
    print(library.version(), api.torch_projectors_cpu_abi())
    """
    version, abi = run(program).split()
    assert version == plugins.VERSION
    assert int(abi) == plugins.ABI


@pytest.mark.parametrize("level", ["baseline", "avx2", "avx512"])
def test_a_lower_level_of_vector_instructions_can_be_asked_for(level):
    best = run("print(library.level())").strip()
    levels = ["baseline", "avx2", "avx512"]
    lower = levels[min(levels.index(level), levels.index(best))]
    assert run("print(library.level())", TORCH_PROJECTORS_CPU_LEVEL=level).strip() == lower


def test_an_unknown_level_is_an_error_of_every_call():
    program = """
    q, volume, images = large()
    for _ in range(2):
        assert run("forward_project", q, volume, images) == INVALID
        assert "TORCH_PROJECTORS_CPU_LEVEL: expected baseline, avx2 or avx512, got 'best'" in library.message()
    assert api.torch_projectors_cpu_level() == b""
    """
    run(program, TORCH_PROJECTORS_CPU_LEVEL="best")


PROGRAM = r"""
#include <stdio.h>
#include <string.h>

#include "torch_projectors_cpu.h"

int main(void) {
  float rotation[4] = {1, 0, 0, 1}, volume[24], image[24];
  torch_projectors_problem q;
  int i;
  memset(&q, 0, sizeof(q));
  q.size = (int32_t)sizeof(q);
  q.interpolation = TORCH_PROJECTORS_LINEAR;
  q.volume_dims = q.image_dims = 2;
  q.volume_shape[0] = q.volume_shape[1] = q.image_shape[0] = q.image_shape[1] = 4;
  q.oversampling = 1;
  q.cutoff = 100;
  q.batch = q.poses = 1;
  q.rotations = rotation;
  for (i = 0; i < 24; ++i) volume[i] = (float)i;
  if (torch_projectors_cpu_forward_project(&q, volume, image) != TORCH_PROJECTORS_OK) {
    puts(torch_projectors_cpu_message());
    return 1;
  }
  if (memcmp(volume, image, sizeof(image)) != 0) return 2;
  printf("%d\n", (int)sizeof(q));
  return 0;
}
"""


@pytest.mark.skipif(platform.system() == "Windows", reason="needs a compiler with Unix options")
@pytest.mark.parametrize("language", ["c", "c++"])
def test_a_plain_program_compiles_against_the_header_and_runs(language, tmp_path):
    from torch_projectors_cpu import include_path, library

    compiler = shutil.which("cc" if language == "c" else "c++")
    if compiler is None:
        pytest.skip(f"no {language} compiler is installed")
    source = tmp_path / f"program.{language.replace('+', 'p')}"
    source.write_text(PROGRAM)
    folder = library.library_path().parent
    standard = "c99" if language == "c" else "c++11"
    command = [compiler, f"-std={standard}", "-pedantic", "-Wall", "-Wextra", "-Werror", str(source)]
    command += ["-o", str(tmp_path / "program"), "-I", str(include_path())]
    subprocess.run(
        [*command, "-L", str(folder), "-ltorch_projectors_cpu", f"-Wl,-rpath,{folder}"], check=True
    )
    result = subprocess.run([str(tmp_path / "program")], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout
    # The structure is declared in Python too.
    assert int(result.stdout) == ctypes.sizeof(library.Problem)
