"""The ops and the public functions against brute force: random poses, lattice poses, gradients of poses.

How far rounding may move a result. Let u be the unit roundoff and d the dimensions of the volume.

- Positions p = o * M @ k take d products, d - 1 sums and the scaling: |dp_a| <= (d + 2) u o sum_b |M_ab k_b|.
- A sample moves by at most SLOPE * LEBESGUE^(d-1) * max|F| * sum_a |dp_a|; see the constants below. A tap's
  own weight moves by TAP_SLOPE * sum_a |dp_a|, as its other factors are <= 1.
- A weight along an axis is a cubic polynomial with coefficients <= 4, good to 16 u; a product of d to 16 d u.
- Phases: 8 roundings of the angle, and 4 a step for tables that are made by repeated products.
- Data is rounded once, and a sum of n terms adds n u.

Nearest has no slope, but a tie within |dp| may go either way: then the whole value is uncertain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, NamedTuple

import brute_force
import numpy as np
import pytest
import torch
from on_device import bare
from torch import Tensor

import torch_projectors
from torch_projectors.cases import CASES, Case
from torch_projectors.geometry import INTERPOLATION_CODES, Geometry

# By interpolation code: the largest sums, along an axis, of |weights| and of their |derivatives|, 1st to 3rd.
LEBESGUE = {0: 1.0, 1: 1.0, 3: 1.25}
SLOPE = {0: 0.0, 1: 2.0, 3: 3.0}
BEND = {0: 0.0, 1: 0.0, 3: 12.0}
TWIST = {0: 0.0, 1: 0.0, 3: 24.0}
# The steepest slope of one weight, and how far from a sample its taps lie.
TAP_SLOPE = {0: 0.0, 1: 1.0, 3: 25 / 18}
REACH = {0: 0.5, 1: 1.0, 3: 2.0}

DTYPES = [torch.complex128, torch.complex64]
GEOMETRIES = [(2, 2), (3, 2), (3, 3)]


def over(cases: Sequence[Case]) -> Callable[..., Any]:
    return pytest.mark.parametrize("case", cases, ids=str)


def roundoff(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2


def to_numpy(x: Tensor | None) -> np.ndarray | None:
    return None if x is None else x.numpy()


def flat(x: np.ndarray) -> np.ndarray:
    """[B, P, components]."""
    return x.reshape(*x.shape[:2], -1)


@cache
def exact_images(case: Case) -> np.ndarray:
    volume, _, _, rotations, shifts = map(to_numpy, case.inputs())
    return brute_force.gather(volume, rotations, shifts, case.geometry)


@cache
def exact_volumes(case: Case) -> tuple[np.ndarray, np.ndarray]:
    _, images, weights, rotations, shifts = map(to_numpy, case.inputs())
    return brute_force.scatter(images, weights, rotations, shifts, case.geometry)


class Samples(NamedTuple):
    """Positions and |dp| [B, P, components, d], and the relative error of phases [B, P, components]."""

    positions: np.ndarray
    moved: np.ndarray
    phase: np.ndarray


def samples(rotations: np.ndarray, shifts: np.ndarray | None, geometry: Geometry, u: float) -> Samples:
    dims = len(geometry.volume_shape)
    k = np.array(brute_force.stored_frequencies(geometry.image_shape), float)
    matrices = geometry.oversampling * rotations[..., : k.shape[1]]
    positions = np.einsum("...ab,kb->...ka", matrices, k)
    moved = (dims + 2) * u * np.einsum("...ab,kb->...ka", np.abs(matrices), np.abs(k))
    phase = np.zeros((1, 1, len(k)))
    if shifts is not None:
        turns = (np.abs(shifts)[..., None, :] * np.abs(k) / geometry.image_shape[::-1]).sum(-1)
        phase = u * (8 * 2 * math.pi * turns + 4 * (1 + np.abs(k).sum(-1)))
    return Samples(positions, moved, phase)


def at_edge(positions: np.ndarray, moved: np.ndarray, interpolation: int) -> np.ndarray:
    """Whether taps may change: at ties for nearest, else at lattice points. A sample at rest has no edges."""
    edges = positions + 0.5 if interpolation == 0 else positions
    return ((np.abs(edges - np.round(edges)) <= moved) & (moved > 0)).any(-1)


def gather_bound(at: Samples, largest: float, geometry: Geometry, u: float) -> np.ndarray:
    """[B, P, components], where no component of the volume is larger than `largest`."""
    dims, code = len(geometry.volume_shape), geometry.interpolation
    lebesgue, taps = LEBESGUE[code], code + 1
    moved = SLOPE[code] * lebesgue ** (dims - 1) * at.moved.sum(-1)
    if code == 0:
        moved = 2 * at_edge(at.positions, at.moved, code)
    operations = 16 * dims * taps * lebesgue ** (dims - 1) + (taps**dims + 4) * lebesgue**dims
    return largest * (moved + u * operations + lebesgue**dims * at.phase)


def scatter_bound(at: Samples, values: np.ndarray, geometry: Geometry, u: float) -> np.ndarray:
    """Of every component of the volume [B, ...]: what the errors of all samples near it may add up to."""
    dims, code = len(geometry.volume_shape), geometry.interpolation
    frequencies = np.array(brute_force.stored_frequencies(geometry.volume_shape))
    bound = np.zeros((len(values), len(frequencies)))
    for b, image_sizes in enumerate(np.abs(flat(values))):
        # All poses in a row.
        positions, moved = [x[min(b, len(x) - 1)].reshape(-1, dims) for x in (at.positions, at.moved)]
        phase = np.broadcast_to(at.phase[min(b, len(at.phase) - 1)], image_sizes.shape).reshape(-1)
        # By modulus, axis by axis, so that mates and aliases of Nyquist are included.
        apart = np.abs(np.abs(frequencies[:, None]) - np.abs(positions))
        near = (apart <= REACH[code] + moved).all(-1)
        error = at_edge(positions, moved, code) if code == 0 else TAP_SLOPE[code] * moved.sum(-1)
        error = error + phase + u * (16 * dims + 4 + near.sum(-1, keepdims=True))
        # A component and its mate may both be taps of one sample.
        bound[b] = (2 * near * image_sizes.reshape(-1) * error).sum(-1)
    return bound.reshape(-1, *brute_force.stored_shape(geometry.volume_shape))


def assert_within(actual: Tensor, expected: np.ndarray, bound: np.ndarray) -> None:
    assert actual.shape == expected.shape
    error = np.abs(actual.numpy() - expected)
    bound = bound.reshape(expected.shape)
    assert (error <= bound).all(), (
        f"errors up to {error.max():.2e}, {(error / bound).max():.2g} times their bound"
    )


# --- The ops on random poses ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over(CASES)
def test_forward_project_sums_taps(case: Case, dtype: torch.dtype, backend: str) -> None:
    volume, images, _, rotations, shifts = case.inputs(dtype)
    projected = bare().forward_project(volume, rotations, shifts, *case.geometry)
    u = roundoff(dtype)
    at = samples(rotations.numpy(), to_numpy(shifts), case.geometry, u)
    bound = gather_bound(at, volume.abs().max().item(), case.geometry, u)
    assert projected.dtype == dtype
    assert_within(projected, exact_images(case), np.broadcast_to(bound, flat(images.numpy()).shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over(CASES)
def test_backward_project_adds_to_every_tap(case: Case, dtype: torch.dtype, backend: str) -> None:
    _, images, weights, rotations, shifts = case.inputs(dtype)
    u = roundoff(dtype)
    at = samples(rotations.numpy(), to_numpy(shifts), case.geometry, u)
    exact, exact_weights = exact_volumes(case)
    bound = scatter_bound(at, images.numpy(), case.geometry, u)
    volume, weight_volume = bare().backward_project(images, weights, rotations, shifts, *case.geometry)
    assert_within(volume, exact, bound)
    assert_within(weight_volume, exact_weights, scatter_bound(at, weights.numpy(), case.geometry, u))
    alone, nothing = bare().backward_project(images, None, rotations, shifts, *case.geometry)
    assert_within(alone, exact, bound)
    assert nothing.numel() == 0


# --- Gradients on random poses ---

STEP = 1e-6


def pairing(images: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """L = Re <images, gradient> of each pose: [B, P]."""
    return (flat(images) * flat(gradient).conj()).real.sum(-1)


def like_poses(x: np.ndarray, poses: np.ndarray) -> np.ndarray:
    """[B, P, ...], summed over the batch if it shares its poses."""
    return x.sum(0, keepdims=True) if len(poses) == 1 else x


def direction(rotations: np.ndarray) -> np.ndarray:
    return np.random.default_rng(rotations.size).uniform(-1, 1, rotations.shape)


def clear_inputs(case: Case, real: bool) -> tuple[np.ndarray | None, ...]:
    """Volume, images, rotations, shifts; images are 0 where rounding or STEP may take samples over edges."""
    volume, images, weights, rotations, shifts = map(to_numpy, case.inputs())
    if real:
        volume, images, shifts = volume.real.copy(), weights, None
    at = samples(rotations, None, case.geometry, roundoff(torch.complex64))
    step = samples(np.ones_like(rotations), None, case.geometry, STEP)
    clear = ~at_edge(at.positions, at.moved + step.moved, case.geometry.interpolation)
    return volume, images * clear.reshape(*clear.shape[:2], *images.shape[2:]), rotations, shifts


@cache
def rotation_differences(case: Case, real: bool) -> np.ndarray:
    """Central differences of L along a direction of each pose's matrix: [B, P]."""
    volume, images, rotations, shifts = clear_inputs(case, real)
    step = STEP * direction(rotations)
    ahead, behind = [
        brute_force.gather(volume, matrices, shifts, case.geometry)
        for matrices in (rotations + step, rotations - step)
    ]
    return pairing(ahead - behind, images) / (2 * STEP)


def check_rotation_gradient(case: Case, dtype: torch.dtype, real: bool) -> None:
    """A sample at `speed` contributes at most |g| max|F| speed slope. What may be wrong with that:

    - of the differences: h^2 / 6 times the third derivative, and two values rounded in float64, over 2 h;
    - of the op: the second derivative times |dp|, the phase, and the rounding of weights and sums.
    """
    volume, images, rotations, shifts = clear_inputs(case, real)
    geometry, u = case.geometry, roundoff(dtype)
    poses = case.inputs(dtype)
    data = poses.weights.dtype if real else dtype
    tensors = [torch.from_numpy(x).to(data) for x in (volume, images)]
    gradients = bare().project_gradients(
        *tensors, poses.rotations, None if real else poses.shifts, *geometry, False, False, True, False
    )
    assert [x.numel() for x in gradients] == [0, 0, rotations.size, 0]

    dims, code = len(geometry.volume_shape), geometry.interpolation
    lebesgue, slope, taps = LEBESGUE[code], SLOPE[code], code + 1
    slopes = slope * lebesgue ** (dims - 1)
    bends = max(BEND[code] * lebesgue, slope**2) * lebesgue ** (dims - 2)
    third = max(TWIST[code] * lebesgue**2, BEND[code] * slope * lebesgue, slope**3)

    towards = direction(rotations)
    at = samples(rotations, shifts, geometry, u)
    precise = samples(rotations, shifts, geometry, roundoff(torch.float64))
    speed = np.abs(samples(towards, None, geometry, u).positions).sum(-1)
    size = np.abs(flat(images)) * np.abs(volume).max()
    own = (
        STEP**2 / 6 * third * speed**3 + gather_bound(precise, 1.0, geometry, roundoff(torch.float64)) / STEP
    )
    operations = 16 * dims * taps + taps**dims + 4 + size[:, 0].size
    op = speed * (bends * at.moved.sum(-1) + slopes * (at.phase + u * operations))
    assert_within(
        (gradients[2].double() * torch.from_numpy(towards)).sum((-1, -2)),
        like_poses(rotation_differences(case, real), rotations),
        like_poses((size * (own + op)).sum(-1), rotations),
    )


SMOOTH = [case for case in CASES if case.interpolation != "nearest"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over(SMOOTH)
def test_rotation_gradient_is_the_slope_of_images(case: Case, dtype: torch.dtype, backend: str) -> None:
    check_rotation_gradient(case, dtype, real=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over([case for case in SMOOTH if case.name == "rectangular"])
def test_rotation_gradient_is_the_slope_of_weights(case: Case, dtype: torch.dtype, backend: str) -> None:
    check_rotation_gradient(case, dtype, real=True)


@over([case for case in CASES if case.interpolation == "nearest"])
def test_nearest_has_no_rotation_gradient(case: Case, backend: str) -> None:
    volume, images, _, rotations, shifts = case.inputs()
    need = (False, False, True, False)
    gradient = bare().project_gradients(volume, images, rotations, shifts, *case.geometry, *need)[2]
    assert gradient.shape == rotations.shape
    assert not gradient.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@over(CASES)
def test_gradients_of_data_and_shifts_in_one_pass(case: Case, dtype: torch.dtype, backend: str) -> None:
    volume, images, _, rotations, shifts = case.inputs(dtype)
    geometry, u = case.geometry, roundoff(dtype)
    need = (True, True, False, True)
    gradients = bare().project_gradients(volume, images, rotations, shifts, *geometry, *need)
    at = samples(rotations.numpy(), to_numpy(shifts), geometry, u)
    y, g = [flat(x) for x in (exact_images(case), images.numpy().astype(complex))]
    bound = np.broadcast_to(gather_bound(at, volume.abs().max().item(), geometry, u), y.shape)
    assert_within(gradients[0], exact_volumes(case)[0], scatter_bound(at, images.numpy(), geometry, u))
    assert_within(gradients[1], exact_images(case), bound)
    assert gradients[2].numel() == 0
    if shifts is None:
        assert gradients[3].numel() == 0
        return
    # A shift s multiplies component k by exp(-2 pi i k s / N): its derivative is -2 pi i k / N times that.
    k = np.array(brute_force.stored_frequencies(geometry.image_shape)) / geometry.image_shape[::-1]
    slopes = (-2j * math.pi * y * g.conj()).real[..., None] * k
    error = 2 * math.pi * np.abs(g) * (bound + np.abs(y) * u * (12 + y[:, 0].size))
    assert_within(
        gradients[3],
        like_poses(slopes.sum(-2), shifts),
        like_poses((error[..., None] * np.abs(k)).sum(-2), shifts),
    )


# --- Poses on the lattice: positions are exact, and so are values ---

ON_LATTICE = {
    2: {
        "identity": [[1, 0], [0, 1]],
        "90 degrees": [[0, -1], [1, 0]],
        "270 degrees": [[0, 1], [-1, 0]],
        "swap": [[0, 1], [1, 0]],
        "inversion": [[-1, 0], [0, -1]],
        "mirrored x": [[-1, 0], [0, 1]],
        "shear": [[1, 1], [0, 1]],
    },
    3: {
        "identity": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
        "90 degrees about x": [[1, 0, 0], [0, 0, -1], [0, 1, 0]],
        "90 degrees about y": [[0, 0, 1], [0, 1, 0], [-1, 0, 0]],
        "90 degrees about z": [[0, -1, 0], [1, 0, 0], [0, 0, 1]],
        "cyclic": [[0, 0, 1], [1, 0, 0], [0, 1, 0]],
        "inversion": [[-1, 0, 0], [0, -1, 0], [0, 0, -1]],
        "mirrored y": [[1, 0, 0], [0, -1, 0], [0, 0, 1]],
    },
}


def whole_numbers(shape: tuple[int, ...]) -> Tensor:
    """A half spectrum, not Hermitian, of small whole numbers: their sums are exact."""
    generator = torch.Generator().manual_seed(0)
    parts = torch.randint(-50, 50, (2, *brute_force.stored_shape(shape)), generator=generator).double()
    return torch.complex(parts[0], parts[1])


def check_copies(matrix: Sequence[Sequence[float]], geometry: Geometry, position: Callable[..., Any]) -> None:
    """Component k of the image is component position(k) of the volume, in both directions."""
    rotations = torch.tensor(matrix, dtype=torch.float64)[None, None]
    volume, image = whole_numbers(geometry.volume_shape), whole_numbers(geometry.image_shape)
    expected, expected_volume = torch.zeros_like(image), torch.zeros_like(volume)
    expected_weights = torch.zeros_like(volume.real)
    lattice = brute_force.lattice(geometry.volume_shape)
    for i, k in enumerate(brute_force.stored_frequencies(geometry.image_shape)):
        if position(k) in lattice:
            j, mirrored = lattice[position(k)]
            x, y = volume.view(-1)[j], image.view(-1)[i]
            expected.view(-1)[i] = x.conj() if mirrored else x
            expected_volume.view(-1)[j] += y.conj() if mirrored else y
            expected_weights.view(-1)[j] += i
    weights = torch.arange(image.numel(), dtype=torch.float64).view(image.shape)
    projected = bare().forward_project(volume[None], rotations, None, *geometry)
    inserted, inserted_weights = bare().backward_project(
        image[None, None], weights[None, None], rotations, None, *geometry
    )
    assert torch.equal(projected[0, 0], expected)
    assert torch.equal(inserted[0], expected_volume)
    assert torch.equal(inserted_weights[0], expected_weights)


@pytest.mark.parametrize("n", [6, 5])
@pytest.mark.parametrize("interpolation", INTERPOLATION_CODES)
@pytest.mark.parametrize(
    ("dims", "image_dims", "name"), [(d, i, name) for d, i in GEOMETRIES for name in ON_LATTICE[d]]
)
def test_lattice_poses_copy_components(
    dims: int, image_dims: int, name: str, interpolation: str, n: int, backend: str
) -> None:
    """Without cutoff, so that x = 0, Nyquist and all corners are among them."""
    matrix = ON_LATTICE[dims][name]
    geometry = Geometry((n,) * dims, (n,) * image_dims, INTERPOLATION_CODES[interpolation], 1.0, math.inf)
    check_copies(matrix, geometry, lambda k: tuple(sum(m * a for m, a in zip(row, k)) for row in matrix))


@pytest.mark.parametrize("interpolation", INTERPOLATION_CODES)
@pytest.mark.parametrize("n", [6, 5])
def test_identity_returns_the_stored_components(n: int, interpolation: str, backend: str) -> None:
    """Also of paired columns that are not Hermitian: they are read as they are stored."""
    volume = whole_numbers((n, n, n))[None]
    identity = torch.eye(3, dtype=torch.float64)[None, None]
    for image_shape, expected in (((n, n), volume[:, :1]), ((n, n, n), volume[:, None])):
        geometry = Geometry((n, n, n), image_shape, INTERPOLATION_CODES[interpolation], 1.0, math.inf)
        assert torch.equal(bare().forward_project(volume, identity, None, *geometry), expected)


@pytest.mark.parametrize("interpolation", INTERPOLATION_CODES)
def test_inversion_reads_mates_from_where_they_are_stored(interpolation: str, backend: str) -> None:
    image = whole_numbers((6, 6))
    inversion = -torch.eye(2, dtype=torch.float64)[None, None]
    geometry = Geometry((6, 6), (6, 6), INTERPOLATION_CODES[interpolation], 1.0, math.inf)
    inverted = bare().forward_project(image[None], inversion, None, *geometry)[0, 0]
    assert torch.equal(inverted[:, 1:], image[:, 1:].conj())
    # (0, -y) has a place of its own, and (0, -3) that of (0, 3).
    assert torch.equal(inverted[:, 0], image[[0, 5, 4, 3, 2, 1], 0])


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize(("dims", "image_dims"), GEOMETRIES)
def test_ties_of_nearest_go_up(dims: int, image_dims: int, sign: int, backend: str) -> None:
    """At oversampling 1.5 odd frequencies are ties. -1.5 goes to -1, also in x, where its mate is read."""
    up = {-4: -6, -3: -4, -2: -3, -1: -1, 0: 0, 1: 2, 2: 3, 3: 5, 4: 6}
    matrix = [[sign * (i == j) for j in range(dims)] for i in range(dims)]
    geometry = Geometry((12,) * dims, (8,) * image_dims, 0, 1.5, math.inf)
    check_copies(matrix, geometry, lambda k: (*[up[sign * a] for a in k], *[0] * (dims - image_dims)))


@pytest.mark.parametrize(("cutoff", "radius_squared"), [(5.0, 25), (4.99, 24), (1.0, 1), (0.5, 0)])
def test_components_on_the_cutoff_are_inside(cutoff: float, radius_squared: int, backend: str) -> None:
    volume = torch.ones(1, 10, 6, dtype=torch.complex128)
    identity = torch.eye(2, dtype=torch.float64)[None, None]
    image = bare().forward_project(volume, identity, None, (10, 10), (10, 10), 1, 1.0, cutoff, False)
    k = torch.tensor(brute_force.stored_frequencies((10, 10)))
    assert torch.equal(image.flatten(), (k.square().sum(-1) <= radius_squared).to(image.dtype))


# --- Public functions ---


class Call(NamedTuple):
    """Real-space shapes, and those that have to be said; the others are for the functions to infer."""

    volume_shape: tuple[int, ...]
    image_shape: tuple[int, ...]
    said: tuple[str, ...] = ()
    oversampling: float = 1.0
    cutoff: float | None = None


CALLS = {
    "even": Call((8, 8), (8, 8)),
    "odd": Call((7, 7), (7, 7)),
    "wide": Call((6, 10), (6, 10)),
    "wide and odd": Call((6, 9), (6, 9), ("stored volume", "stored image")),
    "even volume": Call((6, 6, 6), (6, 6)),
    "odd volume": Call((7, 7, 7), (7, 7)),
    "flat volume": Call((5, 8, 8), (8, 8), ("volume",)),
    "flat and odd volume": Call((4, 7, 7), (7, 7), ("volume",)),
    "volume to volume": Call((6, 6, 6), (6, 6, 6), ("image", "stored image")),
    "odd volume to volume": Call((7, 7, 7), (7, 7, 7), ("image", "stored image")),
    "oversampled": Call((12, 12, 12), (6, 6), oversampling=2.0),
    "oversampled and odd": Call((14, 14), (7, 7), oversampling=2.0),
    "oversampled and rounded": Call((9, 9), (7, 7), oversampling=1.3),
    "downsampled": Call((8, 8, 8), (5, 6), ("image", "volume")),
    "boxes": Call((6, 8, 9), (9, 6, 7), ("image", "volume", "stored image", "stored volume")),
    "cutoff": Call((6, 6), (6, 6), cutoff=1.7),
    "no cutoff": Call((6, 6, 6), (6, 6), cutoff=math.inf),
}


def case_of(call: Call, interpolation: str) -> Case:
    geometry = (call.volume_shape, call.image_shape, interpolation, call.oversampling, call.cutoff)
    return Case("public", *geometry, poses=2)


@pytest.mark.parametrize("interpolation", INTERPOLATION_CODES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_public_forward_project_sums_taps(call: Call, interpolation: str, backend: str) -> None:
    case = case_of(call, interpolation)
    volume, _, _, rotations, shifts = case.inputs()
    images = torch_projectors.forward_project(
        volume[0],
        rotations[0],
        shifts[0],
        call.image_shape if "image" in call.said else None,
        interpolation,
        call.oversampling,
        call.cutoff,
        reconstruction_shape=call.volume_shape if "stored volume" in call.said else None,
    )
    at = samples(rotations.numpy(), shifts.numpy(), case.geometry, roundoff(volume.dtype))
    bound = gather_bound(at, volume.abs().max().item(), case.geometry, roundoff(volume.dtype))
    assert_within(images, exact_images(case)[0], bound)


@pytest.mark.parametrize("interpolation", INTERPOLATION_CODES)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_public_backward_project_inserts_components_and_mates(
    call: Call, interpolation: str, backend: str
) -> None:
    case = case_of(call, interpolation)
    _, images, weights, rotations, shifts = case.inputs()
    options = {
        "shifts": shifts[0],
        "reconstruction_shape": call.volume_shape if "volume" in call.said else None,
        "interpolation": interpolation,
        "oversampling": call.oversampling,
        "fourier_radius_cutoff": call.cutoff,
        "projection_shape": call.image_shape if "stored image" in call.said else None,
    }
    volume, weight_volume = torch_projectors.backward_project(
        images[0], rotations[0], weights=weights[0], **options
    )
    arrays = [x.numpy() for x in (images, weights, rotations, shifts)]
    exact, exact_weights = brute_force.insert(*arrays, case.geometry)
    u = roundoff(images.dtype)
    at = samples(*arrays[2:], case.geometry, u)
    # Bounds go by modulus, so that a component and its mate have the same.
    assert_within(volume[None], exact, 2 * scatter_bound(at, arrays[0], case.geometry, u))
    assert_within(weight_volume[None], exact_weights, 2 * scatter_bound(at, arrays[1], case.geometry, u))
    alone = torch_projectors.backward_project(images[0], rotations[0], **options)
    assert_within(alone[None], exact, 2 * scatter_bound(at, arrays[0], case.geometry, u))
