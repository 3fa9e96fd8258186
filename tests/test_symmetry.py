"""Point groups: that they are groups, which axes lie where, and what they leave unchanged.

Operators are made of at most six products of matrices whose entries are at most 1 and off by eps: 20 eps.
"""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from torch import Tensor

from torch_projectors import realspace, rotations, symmetry

EXACT = 20 * torch.finfo(torch.float64).eps
GOLDEN = (1 + math.sqrt(5)) / 2

# Of every order, how many operators turn by a multiple of a turn over it, and no less.
CLASSES = {
    "C1": {1: 1},
    "C2": {1: 1, 2: 1},
    "C5": {1: 1, 5: 4},
    "C12": {1: 1, 2: 1, 3: 2, 4: 2, 6: 2, 12: 4},
    "D1": {1: 1, 2: 1},
    "D2": {1: 1, 2: 3},
    "D7": {1: 1, 2: 7, 7: 6},
    "T": {1: 1, 2: 3, 3: 8},
    "T222": {1: 1, 2: 3, 3: 8},
    "O": {1: 1, 2: 9, 3: 8, 4: 6},
    **{name: {1: 1, 2: 15, 3: 20, 5: 24} for name in ("I", "I1", "I2", "I3", "I4")},
}

every_group = pytest.mark.parametrize("name", CLASSES)


def vector(*components: float) -> Tensor:
    return torch.nn.functional.normalize(torch.tensor(components, dtype=torch.float64), dim=0)


def position(matrices: Tensor, group: Tensor) -> Tensor:
    """Where in the group `[G, 3, 3]` each of the matrices `[..., 3, 3]` is; it has to be there once."""
    same = (matrices[..., None, :, :] - group).abs().amax((-2, -1)) <= EXACT
    assert (same.sum(-1) == 1).all()
    return same.int().argmax(-1)


def order(matrix: Tensor) -> int:
    power, count = matrix, 1
    while (power - torch.eye(3, dtype=matrix.dtype)).abs().max() > 12 * EXACT:
        power, count = power @ matrix, count + 1
        assert count <= 1000
    return count


def folds(name: str, axis: Tensor) -> int:
    """Of a direction, how many operators keep it."""
    return int(((symmetry.operators(name) @ axis - axis).abs().amax(-1) <= EXACT).sum())


@every_group
def test_operators_are_a_group_of_rotations(name):
    group = symmetry.operators(name)
    identity = torch.eye(3, dtype=torch.float64)
    assert group.dtype == torch.float64 and group.shape == (sum(CLASSES[name].values()), 3, 3)
    assert torch.equal(group[0], identity)
    torch.testing.assert_close(group.mT @ group, identity.expand_as(group), rtol=0, atol=EXACT)
    torch.testing.assert_close(
        torch.linalg.det(group), torch.ones(len(group), dtype=torch.float64), rtol=0, atol=EXACT
    )
    position(group.mT, group)
    table = position(group[:, None] @ group, group)
    # Each row and column of the table of products holds every operator once.
    assert all(len(set(line)) == len(group) for line in [*table.tolist(), *table.T.tolist()])
    assert torch.equal(symmetry.operators(name), group)


@every_group
def test_orders_of_operators_are_those_of_the_group(name):
    assert Counter(map(order, symmetry.operators(name))) == CLASSES[name]


def test_groups_of_the_lattice_are_exact():
    for name in ("T222", "O"):
        group = symmetry.operators(name)
        assert torch.equal(group, group.round())


X, Y, Z = vector(1, 0, 0), vector(0, 1, 0), vector(0, 0, 1)
AXES = {
    "C5": {5: [Z]},
    "D7": {7: [Z], 2: [X, vector(math.cos(math.pi / 7), math.sin(math.pi / 7), 0)], 1: [Y]},
    "T": {3: [Z], 2: [vector(0, math.sqrt(2), 1)]},
    "T222": {2: [X, Y, Z], 3: [vector(1, 1, 1), vector(-1, 1, 1)]},
    "O": {4: [X, Y, Z], 3: [vector(1, 1, 1), vector(-1, 1, 1)], 2: [vector(1, 1, 0), vector(0, -1, 1)]},
    "I1": {2: [X, Y, Z], 5: [vector(0, 1, GOLDEN)], 3: [vector(1, 0, GOLDEN**2)]},
    "I2": {2: [X, Y, Z], 5: [vector(1, 0, GOLDEN)], 3: [vector(0, 1, GOLDEN**2)]},
    "I3": {5: [Z, vector(-2, 0, 1)], 2: [Y, vector(-1, 0, GOLDEN)], 1: [vector(2, 0, 1)]},
    "I4": {5: [Z, vector(2, 0, 1)], 2: [Y, vector(1, 0, GOLDEN)], 1: [vector(-2, 0, 1)]},
}


@pytest.mark.parametrize("name", AXES)
def test_axes_lie_where_they_are_said_to(name):
    for count, axes in AXES[name].items():
        assert [folds(name, axis) for axis in axes] == [count] * len(axes)


# Axes that identify each setting in cryoSPARC's and Xmipp's lists of I1 to I4 and T, of seven to ten digits.
LISTED = {
    "I1": {2: (0, 1, 0), 5: (-0.85065080702670, 0, 0.5257311142635), 3: (-0.9341723640, 0.3568220765, 0)},
    "I2": {2: (0, 0, 1), 5: (-1.618033989, -1, 0), 3: (-0.53934467, -1.4120227, 0)},
    "I3": {2: (-0.5257311143, 0, 0.8506508070), 5: (0, 0, 1), 3: (-0.4911234779, 0.3568220765, 0.7946544754)},
    "I4": {
        2: (0.5257311143, 0, 0.8506508070),
        5: (0.8944271933, 0, 0.4472135910),
        3: (0.4911234779, 0.3568220765, 0.7946544754),
    },
    "T": {3: (0, 0, 1), 2: (0, 0.8164965809, 0.5773502692)},
}


@pytest.mark.parametrize("name", LISTED)
def test_axes_are_those_of_other_programs(name):
    for count, axis in LISTED[name].items():
        kept = (symmetry.operators(name) @ vector(*axis) - vector(*axis)).abs().amax(-1) <= 1e-7
        assert kept.sum() == count


def test_settings_are_one_group_turned():
    def turned(name: str, turn: Tensor) -> Tensor:
        return turn @ symmetry.operators(name) @ turn.T

    def about(axis: Tensor, angle: float) -> Tensor:
        return rotations.from_vectors(angle * axis)

    assert torch.equal(symmetry.operators("I"), symmetry.operators("I2"))
    tilt = math.atan(1 / GOLDEN)
    for name, other, turn in (
        ("I1", "I2", about(Z, math.pi / 2)),
        ("I3", "I4", about(Z, math.pi)),
        ("I3", "I2", about(Y, -tilt)),
        ("I4", "I2", about(Y, tilt)),
        ("T", "T222", about(vector(-1, 1, 0), -math.acos(math.sqrt(1 / 3)))),
    ):
        found = turned(other, turn)
        if name == "T":  # once the axis is along z, by a turn about it
            found = about(Z, -3 * math.pi / 4) @ found @ about(Z, -3 * math.pi / 4).T
        assert sorted(position(found, symmetry.operators(name)).tolist()) == list(range(len(found)))
    for name in ("O", "I1", "I2"):
        position(symmetry.operators("T222"), symmetry.operators(name))


def test_names_are_taken_in_any_case():
    assert torch.equal(symmetry.operators(" d3 "), symmetry.operators("D3"))
    assert torch.equal(symmetry.operators("i3"), symmetry.operators("I3"))
    assert len(symmetry.operators("C999")) == 999


@pytest.mark.parametrize(
    "name",
    ["", "C", "C0", "C04", "C-1", "D1000", "I5", "Oh", "C4v", "4", None, 4, "C1\N{FULLWIDTH DIGIT FOUR}"],
)
def test_names_that_are_not_known_are_refused(name):
    with pytest.raises(ValueError) as caught:
        symmetry.operators(name)
    assert "expected a point group, C<n> or D<n>" in str(caught.value) and repr(name) in str(caught.value)


def symmetric(name: str) -> Tensor:
    """A map of round blobs, one for each operator, far from touching the box."""
    centres = symmetry.operators(name) @ (10 * vector(1, -0.5, 2))
    i = torch.arange(33, dtype=torch.float64) - 16
    points = torch.stack(torch.meshgrid(i, i, i, indexing="ij")[::-1], -1)
    return sum(torch.exp(-(points - c).square().sum(-1) / (2 * 1.5**2)) for c in centres)


def seeded_poses(count: int) -> Tensor:
    return rotations.random(count, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


@pytest.mark.parametrize("name", ["C2", "D4", "T222", "O"])
def test_images_at_equivalent_poses_are_the_same(name, backend):
    """Of any map with the symmetry: the grid has it too, so that interpolation does as well. To sums of 1e4 terms."""
    group = symmetry.operators(name).round()
    n = 17
    i = torch.arange(n) - n // 2
    points = torch.stack(torch.meshgrid(i, i, i, indexing="ij")[::-1], -1)
    noise = torch.rand(n, n, n, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    volume = 0
    for turn in group.long():
        x, y, z = (points @ turn.T + n // 2).unbind(-1)
        volume = volume + noise[z, y, x]
    poses = symmetry.equivalent(seeded_poses(3), group)
    images = realspace.project(volume, poses.flatten(0, 1)).unflatten(0, poses.shape[:2])
    tolerance = 1e4 * torch.finfo(torch.float64).eps * images.abs().max().item()
    torch.testing.assert_close(images, images[:, :1].expand_as(images), rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ["C5", "D7", "T", "I1", "I2", "I3", "I4"])
def test_images_at_equivalent_poses_are_the_same_but_for_interpolation(name, backend):
    """R @ M is another pose of the same image, and M @ R is not."""
    volume, group, base = symmetric(name), symmetry.operators(name)[::3], seeded_poses(1)

    def likeness(poses: Tensor) -> Tensor:
        every = torch.cat([base, poses])
        images = realspace.project(volume, every, interpolation="cubic", oversampling=3).flatten(1)
        images = images - images.mean(1, keepdim=True)
        return torch.cosine_similarity(images[1:], images[:1])

    # Interpolation so fine is good to a hundredth of the contrast, and correlation loses half the square of that.
    assert likeness(symmetry.equivalent(base, group)[0]).min() >= 1 - 0.01**2 / 2
    assert likeness(base @ group[1:]).min() < 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_equivalent_poses_begin_with_the_pose(dtype):
    poses, group = seeded_poses(6).reshape(2, 3, 3, 3).to(dtype), symmetry.operators("D3")
    found = symmetry.equivalent(poses, group)
    assert found.shape == (2, 3, 6, 3, 3) and found.dtype == dtype
    assert torch.equal(found[:, :, 0], poses)
    assert symmetry.equivalent(poses[:0], group).shape == (0, 3, 6, 3, 3)


@every_group
def test_angles_are_taken_to_the_nearest_equivalent_pose(name):
    """A turn by less than half of the smallest angle of the group is the angle itself, from whichever pose."""
    group = symmetry.operators(name)
    poses = seeded_poses(4)
    angle = 0.1  # the smallest is 2 pi / 12
    turn = rotations.from_vectors(angle * vector(1, -2, 3))
    others = group[len(group) // 2] @ poses @ turn
    found = symmetry.angles_between(poses, others, group)
    assert found.shape == (4,)
    # The chord is off by the norm of nine roundings.
    torch.testing.assert_close(found, torch.full_like(found, angle), rtol=0, atol=3 * EXACT)
    assert symmetry.angles_between(poses[:, None], others, group).shape == (4, 4)


@pytest.mark.parametrize("shape", [(), (3,), (4, 2, 2)], ids=str)
def test_poses_and_operators_are_matrices_in_space(shape):
    for arguments, name in (
        ((torch.zeros(shape), torch.eye(3)[None]), "rotations"),
        ((torch.eye(3), torch.zeros(shape)), "operators"),
    ):
        with pytest.raises(ValueError) as caught:
            symmetry.equivalent(*arguments)
        assert f"{name}: expected [..., 3, 3]" in str(caught.value) and str(shape) in str(caught.value)
