"""Poses of other programs: what they mean by their own documentation, and that nothing is lost on the way back.

Entries of matrices are at most 1. An angle up to a turn, in radians, is rounded by 2 pi eps / 2, three of them make a
matrix, and each of its entries is a sum of a few products: 20 eps between two ways of computing it, 40 there and back.
"""

from __future__ import annotations

import math
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from torch_projectors import conventions, realspace, rotations

EPS = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32)}

over_dtypes = pytest.mark.parametrize("dtype", EPS, ids=str)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, low: float, high: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.empty(shape, dtype=torch.float64).uniform_(low, high, generator=seeded()).to(dtype)


def assert_within(found: Tensor, expected: Tensor, count: float) -> None:
    """Equal to a number of eps times the size of what is expected, or 1."""
    assert found.dtype == expected.dtype
    tolerance = count * EPS[found.dtype] * max(1, expected.abs().max().item())
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


def euler_matrix(rot: float, tilt: float, psi: float) -> list[list[float]]:
    """RELION's, as the 3DEM conventions for rotations about z, y and z give its entries."""
    ca, sa = math.cos(math.radians(rot)), math.sin(math.radians(rot))
    cb, sb = math.cos(math.radians(tilt)), math.sin(math.radians(tilt))
    cg, sg = math.cos(math.radians(psi)), math.sin(math.radians(psi))
    return [
        [cg * cb * ca - sg * sa, cg * cb * sa + sg * ca, -cg * sb],
        [-sg * cb * ca - cg * sa, -sg * cb * sa + cg * ca, sg * sb],
        [sb * ca, sb * sa, cb],
    ]


def special_angles(dtype: torch.dtype) -> Tensor:
    """Every multiple of 45 degrees, and tilts near 0 and 180 by all that the dtype can tell."""
    rot, psi = torch.arange(-180, 181, 45), torch.arange(-180, 181, 45)
    near = [d for p in range(-320, 1, 4) for d in (10.0**p, 180 - 10.0**p)]
    tilt = torch.tensor([*range(0, 181, 45), *near], dtype=torch.float64)
    return torch.cartesian_prod(rot.double(), tilt, psi.double()).to(dtype)


def test_relion_angles_give_the_transpose_of_its_euler_matrix():
    angles = uniform(50, 3, low=-360, high=360)
    matrices, shifts = conventions.from_relion(angles)
    expected = torch.tensor([euler_matrix(*a) for a in angles.tolist()], dtype=torch.float64).mT
    assert_within(matrices, expected, 20)
    assert shifts.shape == (50, 2) and not shifts.any()


# Angles, and what the image's x axis, its y axis and the line of sight are in the volume.
VIEWS = {
    "along z": ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "along x": ((0, 90, 0), (0, 0, -1), (0, 1, 0), (1, 0, 0)),
    "along y": ((90, 90, 0), (0, 0, -1), (-1, 0, 0), (0, 1, 0)),
    "along y, turned": ((90, 90, 90), (-1, 0, 0), (0, 0, 1), (0, 1, 0)),
    "from below": ((0, 180, 0), (-1, 0, 0), (0, 1, 0), (0, 0, -1)),
}


@pytest.mark.parametrize(("angles", "x", "y", "z"), VIEWS.values(), ids=VIEWS)
def test_relion_views_are_those_of_hand(angles, x, y, z):
    """In the matrix, and of a voxel: what is at r appears where r lies along the image's axes."""
    matrix, _ = conventions.from_relion(angles)
    expected = torch.tensor([x, y, z], dtype=torch.float64).T
    assert_within(matrix, expected, 20)
    volume = torch.zeros(9, 9, 9, dtype=torch.float64)
    r = torch.tensor([3, 2, 1])
    volume[tuple(4 + r.flip(0))] = 1
    image = realspace.project(volume, matrix)
    at = 4 + torch.tensor([x, y]) @ r
    assert image.argmax() == at[1] * 9 + at[0]


def test_relion_origins_are_minus_shifts_in_their_pixels():
    origins = torch.tensor([[3.0, -2.0], [0.5, 4.0]], dtype=torch.float64)
    angles = torch.zeros(2, 3, dtype=torch.float64)
    assert torch.equal(conventions.from_relion(angles, origins)[1], -origins)
    assert torch.equal(conventions.from_relion(angles, origins, 2.0)[1], -origins / 2)
    sizes = torch.tensor([0.5, 2.0], dtype=torch.float64)
    _, shifts = conventions.from_relion(angles, origins, sizes)
    assert torch.equal(shifts, torch.tensor([[-6.0, 4.0], [-0.25, -2.0]], dtype=torch.float64))
    assert torch.equal(conventions.to_relion(torch.eye(3).double(), shifts, sizes)[1], origins)


def test_relion_images_of_odd_size_lie_one_pixel_further():
    origins = torch.tensor([4.0, -6.0])
    for size, further in ((64, 0), (65, 1)):
        matrix, shifts = conventions.from_relion(torch.zeros(3), origins, 2.0, image_size=size)
        assert torch.equal(shifts, torch.tensor([-2.0, 3.0]) + further)
        assert torch.equal(conventions.to_relion(matrix, shifts, 2.0, image_size=size)[1], origins)


@over_dtypes
def test_relion_angles_of_a_matrix_give_it_again(dtype):
    """Also near tilts of 0 and 180, and where the matrix has errors of its own: they do not grow there."""
    matrices = torch.cat(
        [
            conventions.from_relion(special_angles(dtype))[0],
            rotations.random(1000, generator=seeded(), dtype=dtype),
        ]
    )
    for noise in (0, EPS[dtype]):
        rounded = matrices + noise * (2 * torch.rand(matrices.shape, generator=seeded(), dtype=dtype) - 1)
        angles, _ = conventions.to_relion(rounded)
        assert angles.shape == (len(rounded), 3) and angles.dtype == dtype
        assert_within(conventions.from_relion(angles)[0], rounded, 40)
        assert (angles.abs() <= 180).all() and (angles[:, 1] >= 0).all()


@over_dtypes
def test_relion_angles_return_as_they_were(dtype):
    """Where the tilt is far from 0 and 180, from which rot and psi are off by eps over its sine."""
    angles = uniform(1000, 3, low=-180, high=180, dtype=dtype)
    angles[:, 1] = angles[:, 1].abs().clamp(1, 179)
    found, _ = conventions.to_relion(conventions.from_relion(angles)[0])
    assert (found - angles).abs().max() <= math.degrees(40 * EPS[dtype] / math.sin(math.radians(1)))


@pytest.mark.parametrize("tilt", [0, 180])
@pytest.mark.parametrize("zero", [0.0, -0.0])
def test_relion_rot_is_zero_where_it_is_not_known(tilt, zero):
    c, s, sign = math.cos(0.6), math.sin(0.6), 1 if tilt == 0 else -1
    matrix = torch.tensor(
        [[sign * c, -s, zero], [sign * s, c, zero], [zero, zero, sign]], dtype=torch.float64
    )
    angles, _ = conventions.to_relion(matrix)
    assert angles[0] == 0 and angles[1] == tilt
    assert_within(conventions.from_relion(angles)[0], matrix, 20)


def test_relion_angles_have_derivatives():
    angles = uniform(4, 3, low=-180, high=180).requires_grad_()
    assert torch.autograd.gradcheck(lambda a: conventions.from_relion(a)[0], angles)
    matrices = conventions.from_relion(angles)[0].detach()
    turns = torch.zeros(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda t: conventions.to_relion(matrices @ rotations.from_vectors(t))[0], turns
    )


def rodrigues(vectors: np.ndarray) -> np.ndarray:
    """1 + sin t K + (1 - cos t) K^2, K the cross product with the axis."""
    angles = np.linalg.norm(vectors, axis=-1)[..., None, None]
    x, y, z = np.moveaxis(vectors, -1, 0)
    o = np.zeros_like(x)
    k = np.stack([o, -z, y, z, o, -x, -y, x, o], -1).reshape(*vectors.shape[:-1], 3, 3) / angles
    return np.eye(3) + np.sin(angles) * k + (1 - np.cos(angles)) * k @ k


@over_dtypes
def test_cryosparc_poses_are_rotation_vectors(dtype):
    """The exponential is off by some eps for every unit of the angle, up to pi here."""
    vectors = torch.nn.functional.normalize(uniform(50, 3, low=-1, high=1), dim=-1)
    vectors = vectors * torch.linspace(1e-3, math.pi, 50, dtype=torch.float64)[:, None]
    vectors = vectors.to(dtype)
    matrices, shifts = conventions.from_cryosparc(vectors.numpy())
    assert_within(matrices, torch.from_numpy(rodrigues(vectors.double().numpy())).to(dtype), 20 * math.pi)
    assert shifts.shape == (50, 2) and shifts.dtype == dtype and not shifts.any()
    poses, _ = conventions.to_cryosparc(matrices)
    assert_within(poses[:-1], vectors[:-1], 20 * math.pi)
    assert_within(conventions.from_cryosparc(poses)[0], matrices, 40 * math.pi)


def test_cryosparc_shifts_are_minus_ours_in_pixels_of_their_own():
    """A refinement on images downsampled by 2: its pixels are two of the images'."""
    shifts = np.array([[1.5, -3.0], [0.0, 2.0]], "float32")
    pixels, own = np.array([0.5, 0.75], "float32"), np.array([1.0, 1.5], "float32")
    poses = np.zeros((2, 3), "float32")
    _, found = conventions.from_cryosparc(poses, shifts, own, pixels)
    assert torch.equal(found, torch.tensor([[-3.0, 6.0], [0.0, -4.0]]))
    assert torch.equal(conventions.from_cryosparc(poses, shifts)[1], -torch.from_numpy(shifts))
    _, back = conventions.to_cryosparc(torch.eye(3), found, own, pixels)
    assert torch.equal(back, torch.from_numpy(shifts))


def test_cryodrgn_matrices_are_the_euler_matrices_of_relion():
    """For row vectors k @ A, as here M @ k; and its translations are fractions of the box, of the sign of origins."""
    angles = uniform(20, 3, low=-180, high=180)
    origins = uniform(20, 2, low=-10, high=10)
    theirs = np.array([euler_matrix(*a) for a in angles.tolist()])
    matrices, shifts = conventions.from_cryodrgn(theirs, origins / 128, box=128)
    expected, expected_shifts = conventions.from_relion(angles, origins)
    assert_within(matrices, expected, 20)
    assert torch.equal(shifts, expected_shifts)  # 128 is a power of two
    k = uniform(3, low=-5, high=5)
    assert_within(matrices @ k, torch.tensor(k.numpy() @ theirs), 20)


@over_dtypes
def test_cryodrgn_poses_return_as_they_were(dtype):
    matrices = rotations.random(2, 5, generator=seeded(), dtype=dtype)
    shifts = uniform(2, 5, 2, low=-10, high=10, dtype=dtype)
    theirs, translations = conventions.to_cryodrgn(matrices, shifts, 100)
    assert (translations.abs() <= 0.1).all()
    again, shifts_again = conventions.from_cryodrgn(theirs, translations, 100)
    assert torch.equal(again, matrices)
    assert_within(shifts_again, shifts, 2)
    assert torch.equal(conventions.from_cryodrgn(theirs)[0], matrices)


CONVERSIONS = [
    (conventions.from_relion, (3,)),
    (conventions.to_relion, (3, 3)),
    (conventions.from_cryosparc, (3,)),
    (conventions.to_cryosparc, (3, 3)),
    (conventions.from_cryodrgn, (3, 3)),
    (conventions.to_cryodrgn, (3, 3)),
]

every_conversion = pytest.mark.parametrize(
    ("convert", "shape"), CONVERSIONS, ids=[convert.__name__ for convert, _ in CONVERSIONS]
)


def poses(*lead: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> Tensor:
    matrices = rotations.random(*lead, generator=seeded(), dtype=dtype)
    return matrices if shape == (3, 3) else matrices[..., 0].contiguous()


def options(convert) -> dict:
    return {"box": 64} if "cryodrgn" in convert.__name__ else {}


@every_conversion
@over_dtypes
def test_shapes_and_dtypes_are_kept(convert, shape, dtype):
    for lead in ((), (4,), (2, 3), (0,)):
        pose = poses(*lead, shape=shape, dtype=dtype)
        for shifts in (torch.ones(*lead, 2, dtype=dtype), None):
            first, second = convert(pose, shifts, **options(convert))
            assert first.shape[: len(lead)] == lead and first.dtype == dtype
            assert second.shape == (*lead, 2) and second.dtype == dtype


@every_conversion
def test_arrays_are_taken_as_tensors_are(convert, shape):
    """Read-only, reversed and of the other byte order too; integers as float64."""
    pose, shifts = poses(4, shape=shape), torch.arange(8.0, dtype=torch.float64).reshape(4, 2)
    expected = convert(pose, shifts, **options(convert))
    swapped = pose.numpy().astype(pose.numpy().dtype.newbyteorder())
    swapped.setflags(write=False)
    for arrays in (
        (swapped, shifts.numpy().astype(int)),
        (pose.tolist(), shifts.tolist()),
        (pose.flip(0).numpy()[::-1], shifts.flip(0).numpy()[::-1]),
    ):
        found = convert(*arrays, **options(convert))
        assert all(map(torch.equal, found, expected))


@every_conversion
def test_inputs_are_never_written_to(convert, shape):
    pose, shifts = poses(4, shape=shape), torch.ones(4, 2, dtype=torch.float64)
    copies, versions = (pose.clone(), shifts.clone()), (pose._version, shifts._version)
    convert(pose, shifts, **options(convert))
    assert (pose._version, shifts._version) == versions
    assert torch.equal(pose, copies[0]) and torch.equal(shifts, copies[1])


def rejected(error, convert, *args, **kwargs) -> str:
    with pytest.raises(error) as caught:
        convert(*args, **kwargs)
    return str(caught.value)


@every_conversion
def test_poses_of_other_shapes_kinds_or_values_are_refused(convert, shape):
    layout = ", ".join(["...", *map(str, shape)])
    for wrong in (torch.zeros(2, 4), torch.zeros(()), torch.zeros(3, 2)):
        message = rejected(ValueError, convert, wrong)
        assert f"expected [{layout}]" in message and str(tuple(wrong.shape)) in message
    for wrong in ("abc", None, np.zeros((2, *shape), complex), torch.zeros(2, *shape, dtype=torch.int64)):
        assert "expected" in rejected(TypeError, convert, wrong)
    for value in (math.nan, math.inf):
        pose = poses(4, shape=shape)
        pose[2, 1] = value
        message = rejected(ValueError, convert, pose)
        assert "expected finite values" in message and str(value) in message and "[2, 1" in message


@every_conversion
def test_shifts_of_other_shapes_or_values_are_refused(convert, shape):
    pose = poses(4, shape=shape)
    message = rejected(ValueError, convert, pose, torch.zeros(4, 3), **options(convert))
    assert "expected [..., 2]" in message and "(4, 3)" in message
    assert "P=5" in rejected(ValueError, convert, pose, torch.zeros(5, 2), **options(convert))
    assert "nan" in rejected(ValueError, convert, pose, torch.full((4, 2), math.nan), **options(convert))


@pytest.mark.parametrize(
    "convert",
    [conventions.to_relion, conventions.to_cryosparc, conventions.to_cryodrgn, conventions.from_cryodrgn],
)
def test_matrices_that_are_no_rotations_are_refused(convert):
    pose = poses(4, shape=(3, 3))
    pose[2] *= 1.01
    message = rejected(ValueError, convert, pose)
    assert "expected rotation matrices" in message and "0.02" in message and "[2]" in message
    pose[2] *= torch.tensor([1, 1, -1]) / 1.01
    message = rejected(ValueError, convert, pose)
    assert "mirror" in message and "[2]" in message
    convert(poses(4, shape=(3, 3), dtype=torch.float32) + 1e-5)  # of a file with five digits


@pytest.mark.parametrize("size", [0, -1.5, math.nan, math.inf, [1.0, 0.0]])
def test_pixel_sizes_are_positive_numbers(size):
    angles, matrices = torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3)
    for convert, pose in (
        (conventions.from_relion, angles),
        (conventions.to_relion, matrices),
    ):
        assert "pixel_size: expected" in rejected(ValueError, convert, pose, None, size)
    for convert, pose in ((conventions.from_cryosparc, angles), (conventions.to_cryosparc, matrices)):
        assert "shift_pixel_size: expected" in rejected(ValueError, convert, pose, None, size, 1.0)
        assert "pixel_size: expected" in rejected(ValueError, convert, pose, None, 1.0, size)
    assert "P=3" in rejected(ValueError, conventions.from_relion, angles, angles[:, :2], [1.0, 2.0, 3.0])


def test_sizes_that_are_needed_are_asked_for():
    """One pixel size of two would be taken for a ratio, and fractions of no box for pixels."""
    vectors, matrices, shifts = torch.zeros(2, 3), torch.eye(3).expand(2, 3, 3), torch.zeros(2, 2)
    for convert, pose in ((conventions.from_cryosparc, vectors), (conventions.to_cryosparc, matrices)):
        assert rejected(ValueError, convert, pose, shifts, 1.5).startswith("pixel_size: expected")
        message = rejected(ValueError, convert, pose, shifts, pixel_size=1.5)
        assert message.startswith("shift_pixel_size: expected")
    for convert in (conventions.from_cryodrgn, conventions.to_cryodrgn):
        assert "box: expected" in rejected(ValueError, convert, matrices, shifts)
        for box in (0, 64.0, True, "64"):
            assert repr(box) in rejected(ValueError, convert, matrices, shifts, box)
    for size in (0, 64.0, True):
        message = rejected(ValueError, conventions.from_relion, vectors, shifts, image_size=size)
        assert "image_size: expected" in message and repr(size) in message


class Table(dict):
    """Columns by name, or several of them by a list, as data frames have them."""

    def __getitem__(self, names):
        if isinstance(names, list):
            return np.stack([super(Table, self).__getitem__(name) for name in names], -1)
        return super().__getitem__(names)


def test_documented_conversions_run(tmp_path, monkeypatch):
    """The page's blocks, on poses of one data set as each program has them: all give the same rotations and shifts.

    And its last block finds which of the eight readings made some images.
    """
    page = Path(__file__).parents[1] / "docs" / "other_programs.md"
    blocks = re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    box, count = 16, 6
    matrices = rotations.random(count, generator=seeded(1), dtype=torch.float64)
    shifts = uniform(count, 2, low=-2, high=2)
    angles, origins = conventions.to_relion(matrices, shifts, 1.5)
    vectors, moves = conventions.to_cryosparc(matrices, shifts, 3.0, 1.5)
    theirs = conventions.to_cryodrgn(matrices, shifts, box)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "poses.pkl").write_bytes(pickle.dumps(tuple(x.numpy() for x in theirs)))
    particles = Table(
        {
            **{f"rlnAngle{name}": angles[:, i].numpy() for i, name in enumerate(("Rot", "Tilt", "Psi"))},
            **{f"rlnOrigin{name}Angst": origins[:, i].numpy() for i, name in enumerate("XY")},
            "alignments3D/pose": vectors.numpy(),
            "alignments3D/shift": moves.numpy(),
            "alignments3D/psize_A": np.full(count, 3.0),
            "blob/psize_A": np.full(count, 1.5),
        }
    )
    found = 0
    for block in blocks:
        names = {"particles": particles, "pixel_size": 1.5, "box": box}
        exec(compile(block, str(page), "exec"), names)
        if "matrices" in names:
            assert_within(names["matrices"], matrices, 40)
            assert_within(names["shifts"], shifts, 40)
            found += 1
    assert found == 3
    volume = torch.rand(3 * (box,), generator=seeded(), dtype=torch.float64)
    images = realspace.project(volume, matrices.mT, -shifts.flip(-1))
    score, reading = names["reading"](volume, images, matrices, shifts)
    assert score > 0.999 and reading == {"transposed": True, "sign": -1, "reversed": True}
