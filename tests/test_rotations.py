"""Rotation matrices: which way they turn, that they are rotations, and that random ones are uniform."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from torch_projectors import rotations

# Matrices of entries up to 1, each of a few dozen operations.
EXACT = {torch.float64: 1e-14, torch.float32: 1e-5}

over_dtypes = pytest.mark.parametrize("dtype", EXACT, ids=str)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def assert_rotations(matrices: Tensor) -> None:
    identity = torch.eye(matrices.shape[-1], dtype=matrices.dtype).expand(matrices.shape)
    tolerance = EXACT[matrices.dtype]
    torch.testing.assert_close(matrices.mT @ matrices, identity, rtol=0, atol=tolerance)
    torch.testing.assert_close(torch.linalg.det(matrices), identity[..., 0, 0], rtol=0, atol=tolerance)


def rodrigues(vector: Tensor) -> Tensor:
    """u' = u cos t + (n x u) sin t + n (n.u) (1 - cos t), column by column."""
    angle = vector.norm()
    axis = vector / angle
    columns = [
        u * angle.cos() + torch.linalg.cross(axis, u) * angle.sin() + axis * axis.dot(u) * (1 - angle.cos())
        for u in torch.eye(3, dtype=vector.dtype)
    ]
    return torch.stack(columns, -1)


QUARTERS = {
    "about z, x to y": ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
    "about x, y to z": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "about y, z to x": ((0, 1, 0), (0, 0, 1), (1, 0, 0)),
}


@pytest.mark.parametrize(("axis", "before", "after"), QUARTERS.values(), ids=QUARTERS)
def test_vectors_turn_by_the_right_hand(axis, before, after):
    axis, before, after = [torch.tensor(v, dtype=torch.float64) for v in (axis, before, after)]
    turn = rotations.from_vectors(axis * math.pi / 2)
    torch.testing.assert_close(turn @ before, after, rtol=0, atol=1e-14)
    torch.testing.assert_close(turn @ axis, axis, rtol=0, atol=1e-14)


def test_vectors_are_axis_times_angle():
    """By the formula of Rodrigues, for angles from 1e-6 to beyond a whole turn."""
    directions = torch.nn.functional.normalize(normal(5, 3), dim=-1)
    angles = torch.tensor([1e-6, 0.3, 2.0, 3.1, 7.0], dtype=torch.float64)
    vectors = angles[:, None] * directions
    expected = torch.stack([rodrigues(v) for v in vectors])
    # The exponential is scaled and squared: its rounding grows with the angle, to 7 here.
    torch.testing.assert_close(rotations.from_vectors(vectors), expected, rtol=0, atol=7e-14)


@over_dtypes
def test_vectors_give_rotations_in_their_shape_and_dtype(dtype):
    matrices = rotations.from_vectors(normal(2, 5, 3, dtype=dtype))
    assert matrices.shape == (2, 5, 3, 3) and matrices.dtype == dtype
    assert_rotations(matrices)
    assert rotations.from_vectors(torch.zeros(0, 3)).shape == (0, 3, 3)
    assert torch.equal(rotations.from_vectors(torch.zeros(3)), torch.eye(3))


def test_vectors_are_smooth_at_zero():
    vectors = torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rotations.from_vectors, vectors)
    assert torch.autograd.gradgradcheck(rotations.from_vectors, vectors)
    generators = torch.autograd.functional.jacobian(rotations.from_vectors, vectors[0].detach())
    for axis, u in ((a, b) for a in range(3) for b in torch.eye(3, dtype=torch.float64)):
        expected = torch.linalg.cross(torch.eye(3, dtype=torch.float64)[axis], u)
        torch.testing.assert_close(generators[..., axis] @ u, expected, rtol=0, atol=1e-14)


@over_dtypes
@pytest.mark.parametrize("angle", [0.0, 1e-30, 1e-12, 1e-6, 1e-3, 0.02, 0.3, 2.0, 3.0, 3.14])
def test_vectors_return_as_they_were(angle, dtype):
    """To a few dozen roundings of the matrix, of the size of the angle where it is below 1."""
    vectors = angle * torch.nn.functional.normalize(normal(200, 3, dtype=dtype), dim=-1)
    vectors = torch.cat([vectors, angle * torch.eye(3, dtype=dtype), -angle * torch.eye(3, dtype=dtype)])
    found = rotations.to_vectors(rotations.from_vectors(vectors))
    assert found.shape == vectors.shape and found.dtype == dtype
    torch.testing.assert_close(found, vectors, rtol=0, atol=EXACT[dtype] * min(angle, 1))


@over_dtypes
def test_vectors_of_half_turns_have_either_axis(dtype):
    vectors = math.pi * torch.nn.functional.normalize(normal(200, 3, dtype=dtype), dim=-1)
    vectors = torch.cat([vectors, math.pi * torch.eye(3, dtype=dtype)])
    found = rotations.to_vectors(rotations.from_vectors(vectors))
    sign = (found * vectors).sum(-1, keepdim=True).sign()
    torch.testing.assert_close(sign * found, vectors, rtol=0, atol=EXACT[dtype])


@over_dtypes
def test_vectors_of_matrices_give_them_again(dtype):
    """With angles up to pi, of matrices of every quadrant of the quaternions and of the 24 of a cube, exactly known."""
    axes = torch.eye(3, dtype=dtype)
    cube = torch.stack([axes[list(p)] for p in itertools.permutations(range(3))])
    cube = (cube[:, None] * torch.cartesian_prod(*[torch.tensor([1, -1], dtype=dtype)] * 3)[:, None]).flatten(
        0, 1
    )
    cube = cube[torch.linalg.det(cube) > 0]
    assert len(cube) == 24
    matrices = torch.cat(
        [cube, rotations.random(1000, generator=torch.Generator().manual_seed(5), dtype=dtype)]
    )
    vectors = rotations.to_vectors(matrices)
    assert (vectors.norm(dim=-1) <= math.pi * (1 + EXACT[dtype])).all()
    # The exponential's rounding grows with the angle, to pi.
    tolerance = math.pi * EXACT[dtype]
    torch.testing.assert_close(rotations.from_vectors(vectors), matrices, rtol=0, atol=tolerance)
    assert rotations.to_vectors(matrices[:1000].reshape(10, 100, 3, 3)).shape == (10, 100, 3)
    assert rotations.to_vectors(torch.zeros(0, 3, 3)).shape == (0, 3)


@pytest.mark.parametrize("angle", [0.0, 1e-9, 1e-4, 0.009, 0.3, 2.0, 3.0])
def test_vectors_of_matrices_have_derivatives(angle):
    """There and back is the identity, and so is its derivative, whose own is zero."""
    vectors = angle * torch.nn.functional.normalize(normal(2, 3), dim=-1)

    def there_and_back(v: Tensor) -> Tensor:
        return rotations.to_vectors(rotations.from_vectors(v))

    vectors.requires_grad_()
    assert torch.autograd.gradcheck(there_and_back, vectors)
    assert torch.autograd.gradgradcheck(there_and_back, vectors)
    jacobian = torch.func.jacrev(there_and_back)(vectors[0].detach())
    torch.testing.assert_close(jacobian, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-13)


@over_dtypes
def test_angles_turn_x_towards_y(dtype):
    angles = torch.tensor([[math.pi / 2, math.pi / 6], [-0.4, 5.0]], dtype=dtype)
    matrices = rotations.from_angles(angles)
    assert matrices.shape == (2, 2, 2, 2) and matrices.dtype == dtype
    assert_rotations(matrices)
    directions = torch.stack([angles.cos(), angles.sin()], -1)
    torch.testing.assert_close(matrices[..., 0], directions, rtol=0, atol=EXACT[dtype])
    in_space = rotations.from_vectors(torch.stack([0 * angles, 0 * angles, angles], -1))
    torch.testing.assert_close(matrices, in_space[..., :2, :2], rtol=0, atol=5 * EXACT[dtype])
    assert torch.equal(rotations.from_angles(torch.tensor(0.0)), torch.eye(2))


def test_angles_have_derivatives():
    assert torch.autograd.gradcheck(rotations.from_angles, normal(3).requires_grad_())


@over_dtypes
@pytest.mark.parametrize("dims", [2, 3])
def test_random_matrices_are_rotations_of_the_shape_and_dtype_asked_for(dims, dtype):
    for count in ((), (7,), (2, 3), (0,)):
        matrices = rotations.random(*count, dims=dims, dtype=dtype)
        assert matrices.shape == (*count, dims, dims) and matrices.dtype == dtype
        assert_rotations(matrices)
    assert rotations.random(2, dims=dims).dtype == torch.get_default_dtype()


@pytest.mark.parametrize("dims", [2, 3])
def test_random_matrices_follow_their_generator(dims):
    def drawn(seed):
        return rotations.random(4, dims=dims, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    state = torch.random.get_rng_state()
    drawn(1)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("dims", [2, 3])
def test_random_matrices_are_uniform(dims):
    """First and second moments of the entries are those of the uniform distribution.

    In space E R_ij = 0 and E R_ij R_kl = 1/3 where ij is kl, else 0. In the plane each entry is a cosine or a sine, so
    that the matrix of second moments is 1/2 of the identity over (cos, sin). Entries are at most 1 in size, and so is
    the variance of each mean times the count; the bound is five of its standard deviations.
    """
    count = 40000
    generator = torch.Generator().manual_seed(3)
    entries = rotations.random(count, dims=dims, generator=generator, dtype=torch.float64).flatten(1)
    if dims == 2:
        entries = entries[:, [0, 2]]
    bound = 5 / math.sqrt(count)
    assert (entries.mean(0).abs() <= bound).all()
    second = entries.T @ entries / count
    assert ((second - torch.eye(len(second), dtype=second.dtype) / dims).abs() <= bound).all()


def test_random_angles_are_those_of_uniform_rotations():
    """The density of the angle is (1 - cos t) / pi, with mean pi/2 + 2/pi and second moment pi^2/3 + 2."""
    count = 40000
    generator = torch.Generator().manual_seed(4)
    matrices = rotations.random(count, generator=generator, dtype=torch.float64)
    angles = rotations.angles_between(matrices, torch.eye(3, dtype=torch.float64))
    mean, square = math.pi / 2 + 2 / math.pi, math.pi**2 / 3 + 2
    assert abs(angles.mean().item() - mean) <= 5 * math.sqrt((square - mean**2) / count)


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("angle", [0.0, 1e-8, 1e-3, 0.5, 2.0, 3.0, math.pi])
def test_angles_between_are_those_turned_by(angle, dims):
    """Entries are off by eps, and so is the chord c = sin(t/2); the angle by 2 / cos(t/2) times that.

    There are 9 entries of up to 10 eps each from the exponential, up to 3e-15 for their norm. At pi the slope ends in a
    square root: 2 asin(1 - e) is 2 sqrt(2 e) short, and of some hundred chords there some are above 1.
    """
    base = rotations.random(100, dims=dims, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    if dims == 2:
        turn = rotations.from_angles(torch.tensor(angle, dtype=torch.float64))
    else:
        axis = torch.nn.functional.normalize(normal(3), dim=-1)
        turn = rotations.from_vectors(angle * axis)
    found = rotations.angles_between(base, base @ turn)
    assert found.shape == (100,) and found.dtype == torch.float64
    slope = 2 / max(math.cos(angle / 2), 1e-9)
    bound = min(slope * 3e-15, 2 * math.sqrt(2 * 3e-15))
    assert ((found - angle).abs() <= bound).all()
    assert ((rotations.angles_between(base @ turn, base) - angle).abs() <= bound).all()


def test_angles_between_broadcast_and_are_of_the_product():
    """In a batch, and of a^T b: the common frame does not matter, and the trace tells the angle."""
    generator = torch.Generator().manual_seed(2)
    a = rotations.random(4, 1, generator=generator, dtype=torch.float64)
    b = rotations.random(5, generator=generator, dtype=torch.float64)
    angles = rotations.angles_between(a, b)
    assert angles.shape == (4, 5)
    trace = (a.mT @ b).diagonal(dim1=-2, dim2=-1).sum(-1)
    # acos is off by the rounding over the sine of the angle, at most 1e3 for none of 20 within 1e-3 of 0 or pi.
    torch.testing.assert_close(angles, ((trace - 1) / 2).acos(), rtol=0, atol=1e-12)


def test_angles_between_have_derivatives():
    """Of the angle about an axis it is 1; at the angle 0, where there is none, it is a number."""
    base = rotations.random(generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    axis = torch.nn.functional.normalize(normal(3), dim=-1)

    def between(angle: Tensor) -> Tensor:
        return rotations.angles_between(base, base @ rotations.from_vectors(angle * axis))

    slope = torch.func.grad(between)(torch.tensor(0.7, dtype=torch.float64))
    # Some hundred operations on numbers of size 1.
    assert abs(slope.item() - 1) <= 1e-13
    assert torch.isfinite(torch.func.grad(between)(torch.tensor(0.0, dtype=torch.float64)))


@pytest.mark.parametrize("shape", [(), (2,), (4,), (3, 4), (3, 0)], ids=str)
def test_vectors_have_three_components(shape):
    with pytest.raises(ValueError) as caught:
        rotations.from_vectors(torch.zeros(shape))
    assert "vectors: expected [..., 3]" in str(caught.value) and str(shape) in str(caught.value)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (3, 2), (4, 3, 4)], ids=str)
def test_vectors_are_of_matrices_in_space(shape):
    with pytest.raises(ValueError) as caught:
        rotations.to_vectors(torch.zeros(shape))
    assert "rotations: expected [..., 3, 3]" in str(caught.value) and str(shape) in str(caught.value)


@pytest.mark.parametrize("dims", [1, 4, 0, None, "3"])
def test_dimensions_are_two_or_three(dims):
    with pytest.raises(ValueError) as caught:
        rotations.random(2, dims=dims)
    assert "dims: expected 2 or 3" in str(caught.value) and repr(dims) in str(caught.value)


def test_inputs_are_never_written_to():
    vectors, angles, a = normal(4, 3), normal(4), rotations.random(4, dtype=torch.float64)
    inputs = (vectors, angles, a)
    copies, versions = [x.clone() for x in inputs], [x._version for x in inputs]
    rotations.from_vectors(vectors)
    rotations.to_vectors(a)
    rotations.from_angles(angles)
    rotations.angles_between(a, a)
    assert [x._version for x in inputs] == versions
    assert all(map(torch.equal, inputs, copies))
