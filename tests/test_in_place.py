"""The ops for what nothing differentiates: projections added to volumes in place, and the mates that complete an
insertion, by themselves or at once with it.
"""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

import torch_projectors as tp
from torch_projectors import ops
from torch_projectors.cases import CASES, GEOMETRIES, Case, Inputs
from torch_projectors.spectrum import stored_shape

SHAPES = [
    (6, 6),
    (5, 7),
    (7, 8),
    (1, 1),
    (1, 2),
    (2, 1),
    (4, 6, 8),
    (5, 5, 5),
    (7, 1, 4),
    (1, 6, 1),
    (3, 4, 2),
]
DTYPES = [torch.complex64, torch.complex128, torch.float32, torch.float64]


def add_mates_(volume: Tensor, weights: Tensor, shape: tuple[int, ...]) -> None:
    """By the chosen backend."""
    assert ops.selected(volume.device).bare.add_mates_(volume, weights, shape) is None


def with_mates(volume: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Entry by entry. Each is a sum of two numbers, so it is exact."""
    before, after = volume.numpy(), volume.numpy().copy()
    width = shape[-1]
    for index in itertools.product(*map(range, stored_shape(shape))):
        if 2 * index[-1] in (0, width):
            mate = (*[-i % n for i, n in zip(index[:-1], shape)], index[-1])
            after[(..., *index)] += np.conj(before[(..., *mate)])
    return torch.from_numpy(after)


def normal(batch: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.randn(batch, *stored_shape(shape), dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_entries_of_paired_columns_get_the_conjugates_of_their_mates(
    shape: tuple[int, ...], dtype: torch.dtype, backend: str
) -> None:
    volume, weights = normal(3, shape, dtype), normal(3, shape, dtype.to_real())
    expected = with_mates(volume, shape), with_mates(weights, shape)
    add_mates_(volume, weights, shape)
    assert torch.equal(volume, expected[0])
    assert torch.equal(weights, expected[1])


def test_weights_may_be_left_out(backend: str) -> None:
    volume = normal(2, (4, 6), torch.complex64)
    expected = with_mates(volume, (4, 6))
    add_mates_(volume, torch.empty(0), (4, 6))
    assert torch.equal(volume, expected)


def test_a_batch_may_be_empty(backend: str) -> None:
    add_mates_(normal(0, (4, 6), torch.complex64), normal(0, (4, 6), torch.float32), (4, 6))


def test_large_volumes_are_shared_among_threads_with_the_same_result(backend: str) -> None:
    shape = (130, 131, 128)
    volume, weights = normal(1, shape, torch.complex64), normal(1, shape, torch.float32)
    planes = [x[..., ::64].clone() for x in (volume, weights)]
    untouched = volume[..., 1:64].clone()
    add_mates_(volume, weights, shape)
    for x, before in zip((volume, weights), planes):
        mates = before.flip(1, 2).roll((1, 1), (1, 2)).conj()
        assert torch.equal(x[..., ::64], before + mates)
    assert torch.equal(volume[..., 1:64], untouched)


def exact(case: Case) -> Inputs:
    """Of whole numbers at a few binary places, so that sums are exact in any order. Phases would not be."""
    inputs = case.inputs(torch.complex128 if case.interpolation == "cubic" else torch.complex64)
    return inputs._replace(
        images=torch.view_as_complex(torch.view_as_real(inputs.images).mul(4).round()),
        weights=inputs.weights.mul(4).round(),
        rotations=inputs.rotations.mul(4).round().div(4),
        shifts=None,
    )


@pytest.mark.parametrize("weighted", [False, True])
def test_insertion_is_the_same_whether_or_not_it_is_differentiated(weighted: bool, backend: str) -> None:
    case = Case("batches", (8, 8, 8), (8, 8), "linear", batch=2)
    images, weights, rotations = exact(case)[1:4]
    options = {"weights": weights} if weighted else {}
    plain = tp.backward_project(images, rotations, **options)
    recorded = tp.backward_project(images.clone().requires_grad_(), rotations, **options)
    for a, b in zip(*[x if weighted else (x,) for x in (plain, recorded)]):
        assert torch.equal(a, b.detach())


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_an_insertion_is_the_transpose_and_its_mates(case: Case, weighted: bool, backend: str) -> None:
    case = replace(case, oversampling=round(2 * case.oversampling) / 2)
    inputs = exact(case)
    arguments = inputs.images, inputs.weights if weighted else None, inputs.rotations, inputs.shifts
    bare = ops.selected(inputs.images.device).bare
    expected = bare.backward_project(*arguments, *case.geometry)
    bare.add_mates_(*expected, case.geometry.volume_shape)
    inserted = bare.insert_projections(*arguments, *case.geometry)
    assert expected[1].shape == inserted[1].shape
    assert torch.equal(expected[0], inserted[0]) and torch.equal(expected[1], inserted[1])


def test_a_backend_that_has_only_the_transpose_has_insertions_by_it() -> None:
    program = """
import torch
import torch_projectors as tp

calls = []

def backward_project(images, weights, *rest):
    calls.append(images.shape)
    return torch.ops.torch_projectors_reference.backward_project(images, weights, *rest)

library = torch.library.Library("torch_projectors", "IMPL")
library.impl("backward_project", backward_project, "CPU")
images, weights, rotations = torch.randn(3, 8, 5, dtype=torch.complex64), torch.rand(3, 8, 5), tp.rotations.random(3)
inserted = tp.backward_project(images, rotations, weights=weights)
assert calls == [(1, 3, 8, 5)]
tail = (8, 8, 8), (8, 8), 1, 1.0, 4.0, True
sums = [torch.zeros_like(x)[None] for x in inserted]
torch.ops.torch_projectors.add_projections_(*sums, images[None], weights[None], rotations[None], None, *tail)
torch.ops.torch_projectors.add_mates_(*sums, (8, 8, 8))
assert len(calls) == 2
with tp.use_backend("reference"):
    expected = tp.backward_project(images, rotations, weights=weights)
for x, y, z in zip(inserted, sums, expected):
    torch.testing.assert_close(x, z)
    torch.testing.assert_close(y[0], z)
"""
    environment = {**os.environ, "TORCH_PROJECTORS_DISABLE": "cpu"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)


MANY = [Case("many", (8,) * v, (8,) * i, "linear", batch=2, poses=40) for v, i in GEOMETRIES]


@pytest.mark.parametrize("case", CASES + MANY, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_projections_are_added_to_what_volumes_hold(case: Case, weighted: bool, backend: str) -> None:
    """To rounding: of each entry one more sum than in a volume of their own."""
    inputs = case.inputs()
    weights = inputs.weights if weighted else None
    operators = ops.selected(inputs.images.device)
    images, rotations, shifts = inputs.images, inputs.rotations, inputs.shifts
    alone = operators.backward_project(images, weights, rotations, shifts, case.geometry)
    before = torch.randn_like(alone[0]), torch.randn(alone[0].shape, dtype=torch.float64)
    volume, weight_volume = (x.clone() for x in before)
    operators.add_projections_(volume, weight_volume, images, weights, rotations, shifts, case.geometry)
    largest = max(x.abs().max().item() for x in (*before, *alone) if x.numel())
    bound = 4 * rotations.shape[1] * 64 * torch.finfo(torch.float64).eps * largest
    assert (volume - before[0] - alone[0]).abs().max() <= bound
    if weighted:
        assert (weight_volume - before[1] - alone[1]).abs().max() <= bound
    else:
        assert torch.equal(weight_volume, before[1])


def test_no_projections_leave_volumes_as_they_are(backend: str) -> None:
    case = CASES[0]
    inputs = case.inputs()
    volume = normal(inputs.images.shape[0], case.geometry.volume_shape, torch.complex128)
    before = volume.clone()
    ops.selected(volume.device).add_projections_(
        volume, torch.empty(0), inputs.images[:, :0], None, inputs.rotations[:, :0], None, case.geometry
    )
    assert torch.equal(volume, before)
