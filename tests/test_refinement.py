"""Refinement of poses: exact where data are, as good as noise allows where not, and each particle by itself."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Optional

import pytest
import torch
from torch import Tensor

from torch_projectors import forward_project, realspace, refinement, rotations
from torch_projectors.demo.molecule import Molecule
from torch_projectors.refinement import IMAGE, SLICE, Refiner, Stage, refine, whitened
from torch_projectors.spectrum import cropped, halved, radii

EPS = torch.finfo(torch.float64).eps


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


class Data(NamedTuple):
    """A map [n, n, n], half spectra of images [P, N, N//2+1], their CTFs, true poses, and poses to start from."""

    volume: Tensor
    images: Tensor
    ctf: Tensor
    rotations: Tensor
    shifts: Tensor
    start: tuple[Tensor, Tensor]

    def errors(self, poses: Any) -> Tensor:
        """Turns in radians and moves in pixels that are left, [P, 5]."""
        turns = rotations.to_vectors(self.rotations.mT @ poses.rotations.to(self.rotations))
        return torch.cat([turns, poses.shifts.to(turns) - self.shifts], -1)


def simulated(
    count: int = 6,
    size: int = 24,
    map_size: Optional[int] = None,
    degrees: float = 2.0,
    pixels: float = 0.5,
    noise: float = 0.0,
    interpolation: str = "linear",
    oversampling: float = 2.0,
    seed: int = 0,
) -> Data:
    """Slices of a molecule as `forward_project` makes them, times CTFs, with white noise of so much a component."""
    g = generator(seed)
    map_size = map_size or size
    molecule = Molecule.fold(map_size, atoms=60, generator=g)
    volume = Molecule(molecule.positions, width=1.2).map(map_size).double()
    true = rotations.random(count, generator=g, dtype=torch.float64)
    shifts = torch.randn(count, 2, generator=g, dtype=torch.float64)
    slices = forward_project(
        realspace.prepare(volume, 3, interpolation, oversampling),
        true,
        shifts,
        (size, size),
        interpolation,
        oversampling,
    )
    defocus = 3 + 2 * torch.rand(count, 1, 1, generator=g, dtype=torch.float64)
    ctf = torch.sin(0.3 + 40 * defocus * (radii((size, size), volume.device) / 2 / size) ** 2)
    images = ctf * slices + noise * torch.randn(slices.shape, generator=g, dtype=slices.dtype)
    turn = math.radians(degrees) * torch.randn(count, 3, generator=g, dtype=torch.float64)
    move = pixels * torch.randn(count, 2, generator=g, dtype=torch.float64)
    return Data(volume, images, ctf, true, shifts, (true @ rotations.from_vectors(turn), shifts + move))


# Steps until all that is left of them is rounding.
THOROUGH = {"tolerance": 1e-15, "steps": 40}


def rounding(dtype: torch.dtype) -> float:
    """Of a pose in radians and pixels: a value is off by some 10 roundings, and a pixel or radian moves phases by at
    least 2 pi k / N = 0.6 where the mean k is N / 10; unknowns that correlate make it twice that.
    """
    return 10 / 0.6 * 2 * torch.finfo(dtype).eps


every_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
every_interpolation = pytest.mark.parametrize("interpolation", ["linear", "cubic"])


def to(dtype: torch.dtype, data: Data) -> Data:
    """Arrays in that precision; poses stay as they are."""
    images = data.images.to(torch.complex64 if dtype == torch.float32 else torch.complex128)
    return data._replace(volume=data.volume.to(dtype), images=images, ctf=data.ctf.to(dtype))


@every_dtype
@every_interpolation
@pytest.mark.parametrize(
    ("size", "map_size", "oversampling"), [(24, 24, 2), (25, 25, 2), (24, 30, 1.5), (27, 24, 2)], ids=str
)
def test_poses_of_slices_come_back_to_rounding(
    size: int, map_size: int, oversampling: float, interpolation: str, dtype: torch.dtype
) -> None:
    """Of images and maps of any size, and the scale and score likewise: of each, two sums' roundings."""
    data = to(dtype, simulated(6, size, map_size, oversampling=oversampling, interpolation=interpolation))
    options = {"oversampling": oversampling, "interpolation": interpolation, **THOROUGH}
    result = refine(3 * data.images, data.volume, *data.start, ctf=data.ctf, **options)
    assert data.errors(result).abs().max() <= rounding(dtype)
    assert (result.score_after - 1).abs().max() <= 20 * torch.finfo(dtype).eps
    assert (result.scale / 3 - 1).abs().max() <= 20 * torch.finfo(dtype).eps


def test_slices_as_projections_have_them(backend: str) -> None:
    """The real-space functions' images of the map, their poses, and no CTF; below Nyquist, whose phase is lost."""
    data = simulated(4)
    images = realspace.to_spectrum(realspace.project(data.volume, data.rotations, data.shifts), 2)
    result = refine(images, data.volume, *data.start, cutoffs=[6, 11], **THOROUGH)
    assert data.errors(result).abs().max() <= rounding(torch.float64)


def test_known_scale_is_kept() -> None:
    data = simulated(4)
    result = refine(2 * data.images, data.volume, *data.start, ctf=data.ctf, scale=2, **THOROUGH)
    assert data.errors(result).abs().max() <= rounding(torch.float64)
    assert (result.scale == 2).all()


def test_prepared_map_is_the_map() -> None:
    data = simulated(3, noise=1.0)
    maps = data.volume, realspace.prepare(data.volume, 3)
    a, b = [refine(data.images, m, *data.start, ctf=data.ctf) for m in maps]
    assert all(torch.equal(x, y) for x, y in zip(a, b))


@pytest.mark.parametrize("size", [24, 25])
def test_derivatives_are_those_of_the_slice(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Differences over d voxels are off by roundings over d, and by d / 2 times the second derivative by voxels: at
    most 2 pi / 4 squared times the values, for a particle in the middle half of the padded box. As rows they count
    per radian: cutoff * oversampling voxels.
    """
    difference = 1e-6
    monkeypatch.setattr(refinement, "DIFFERENCE", difference)
    data = simulated(3, size, interpolation="cubic", degrees=20, pixels=3)
    refiner = Refiner(data.volume, interpolation="cubic")
    stage = Stage(size // 3, size, 2, data.images)
    spectra, filters = whitened(data.images, data.ctf, None, stage)
    rows = refiner.rows(stage, spectra, filters, *data.start)

    def image(turn: Tensor, move: Tensor) -> Tensor:
        y = forward_project(
            refiner.spectrum,
            data.start[0] @ rotations.from_vectors(turn),
            data.start[1] + move,
            (size, size),
            "cubic",
            2,
            stage.cutoff,
        )
        return cropped(y, (y.shape[-2],) * 2, (stage.size,) * 2) * filters[..., 0]

    zero = torch.zeros(3, 3, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float64)
    # The shift is done in these and undone in the rows.
    undo = rows[:, IMAGE] / torch.where(spectra == 0, 1, spectra)
    seen = (spectra != 0).double()
    assert torch.equal(seen, seen[:1].expand_as(seen))
    value = image(*zero) * undo
    largest = value.abs().max()
    assert ((rows[:, SLICE] - value) * seen).abs().max() <= 40 * EPS * largest
    tolerance = (40 * EPS / difference + difference / 2 * (math.pi / 2) ** 2) * stage.cutoff * 2 * largest
    for i in range(5):
        along = torch.eye(5, dtype=torch.float64)[i].expand(3, 5)
        _, expected = torch.func.jvp(image, zero, (along[:, :3].contiguous(), along[:, 3:].contiguous()))
        error = ((rows[:, 2 + i] - expected * undo) * seen).abs().max()
        assert error <= (tolerance if i < 3 else 100 * EPS * math.pi * largest)


def test_objective_counts_each_friedel_pair_once() -> None:
    """A weighted sum of squares over the half spectrum with 1/2 on its paired columns, within the cutoff."""
    for size, cutoff in ((24, 12), (24, 7.5), (25, 12)):
        data = simulated(3, size, degrees=5)
        weights = torch.rand(data.images.shape, generator=generator(), dtype=torch.float64)
        refiner, stage = Refiner(data.volume, scale=0.7), Stage(cutoff, size, 2, data.images)
        arrays = whitened(data.images, data.ctf, weights, stage)
        gram = refiner.gram(stage, *arrays, *data.start)
        unmoved = torch.eye(3, dtype=torch.float64).expand(3, 3, 3), torch.zeros_like(data.shifts)
        here = refiner.objective(gram, *unmoved)
        slices = forward_project(
            refiner.spectrum, *data.start, (size, size), oversampling=2, fourier_radius_cutoff=cutoff
        )
        radius = radii((size, size))
        inside = (radius <= cutoff) & (radius > 0)
        residual = weights * inside * (data.images - 0.7 * data.ctf * slices).abs().square()
        power = weights * inside * data.images.abs().square()
        expected = halved(residual - power, size).sum((1, 2))
        assert torch.allclose(here, expected, rtol=0, atol=100 * EPS * power.sum((1, 2)).max())
        total = gram[:, IMAGE, IMAGE]
        assert torch.allclose(total, halved(power, size).sum((1, 2)), rtol=100 * EPS)


@pytest.mark.parametrize("per_image", [False, True])
def test_frequencies_of_no_weight_do_not_count(per_image: bool) -> None:
    data = simulated(4)
    radius = radii((24, 24))
    bad = (radius >= 4) & (radius <= 6)
    images = torch.where(bad, 100 * torch.randn(data.images.shape, generator=generator()), data.images)
    images[:, 5, 0] = math.nan
    curve = torch.ones(13, dtype=torch.float64)
    curve[4:7] = 0
    weights = (~bad).double().expand(images.shape) if per_image else curve
    result = refine(images, data.volume, *data.start, ctf=data.ctf, weights=weights, **THOROUGH)
    assert data.errors(result).abs().max() <= rounding(torch.float64)


def test_curve_of_weights_is_interpolated_and_its_last_value_holds() -> None:
    data = simulated(4, noise=1.0)
    radius = radii((24, 24))
    a, b = [
        refine(data.images, data.volume, *data.start, ctf=data.ctf, weights=weights, cutoffs=[10])
        for weights in (
            torch.tensor([1.0, 2.0, 5.0]),
            torch.where(radius < 1, 1 + radius, (3 * radius - 1).clamp(max=5)),
        )
    ]
    assert torch.allclose(a.rotations, b.rotations, atol=1e4 * EPS)


def test_particles_do_not_depend_on_their_batch() -> None:
    """But for the order of sums. A derivative is a difference of a quarter voxel, and off by some 40 roundings; of it
    and noise a pose comes by normal equations of condition 100, or a few steps of less; times two for a difference.
    """
    data = simulated(7, noise=1.0, degrees=4)
    together = refine(data.images, data.volume, *data.start, ctf=data.ctf)
    # Images in memory by one, and worked on by one.
    size = Stage(12, 24, 2, data.images).bytes
    by_one, in_turns = [
        refine(data.images, data.volume, *data.start, ctf=data.ctf, working_set=w) for w in (1, size)
    ]
    alone = [
        refine(data.images[i, None], data.volume, *[x[i, None] for x in data.start], ctf=data.ctf[i, None])
        for i in range(7)
    ]
    for other in (by_one, in_turns, refinement.Refinement(*map(torch.cat, zip(*alone)))):
        assert torch.equal(other.steps, together.steps)
        for a, b in zip(other, together):
            assert torch.allclose(a.double(), b.double(), rtol=0, atol=1e4 * EPS * 2)


@pytest.mark.parametrize("scale", [None, 0.1])
@pytest.mark.parametrize("noise", [0.1, 30.0])
def test_no_step_and_no_stage_makes_it_worse(noise: float, scale: Optional[float]) -> None:
    """Not even from far away, nor in noise alone; but for rounding of the sums."""
    data = simulated(20, noise=noise, degrees=20, pixels=4)
    unmoved = torch.eye(3, dtype=torch.float64).expand(20, 3, 3), torch.zeros_like(data.shifts)
    stage = Stage(12, 24, 2, data.images)
    for cutoffs in (None, [12], [3, 12]):
        refiner = Refiner(data.volume, cutoffs=cutoffs, scale=scale)
        arrays = whitened(data.images, data.ctf, None, stage)
        slack = 100 * EPS * arrays[0].abs().square().sum((1, 2))
        values = []
        for steps in range(9):
            refiner.steps = steps
            poses = refiner(data.images, *data.start, ctf=data.ctf)[:2]
            values.append(refiner.objective(refiner.gram(stage, *arrays, *poses), *unmoved))
            assert (values[-1] <= values[0] + slack).all()
        if cutoffs == [12]:
            assert all((b <= a + slack).all() for a, b in zip(values, values[1:]))


def test_true_poses_stay() -> None:
    data = simulated(5)
    result = refine(data.images, data.volume, data.rotations, data.shifts, ctf=data.ctf)
    assert torch.equal(result.rotations, data.rotations)
    assert torch.equal(result.shifts, data.shifts)
    assert result.converged.all() and (result.steps == 0).all()


def test_errors_are_those_that_noise_makes_inevitable() -> None:
    """Errors e have the covariance C of Cramer and Rao: e C^-1 e is chi squared of 5 degrees, whose mean over P is
    within 5 sqrt(10 / P) but in one case of a million. A fifth more for what is not linear.
    """
    count, noise = 300, 2.0
    data = simulated(count, noise=noise, degrees=4, pixels=2 * 24 / 128, interpolation="cubic")
    refiner = Refiner(data.volume, degrees=4, pixels=2 * 24 / 128, interpolation="cubic")
    result = refiner(data.images, *data.start, ctf=data.ctf)
    assert result.converged.all()
    stage = Stage(12, 24, 2, data.images)
    precision = torch.full((1,), noise**-2, dtype=torch.float64)
    gram = refiner.gram(
        stage, *whitened(data.images, data.ctf, precision, stage), data.rotations, data.shifts
    )
    across = gram[:, SLICE, 2:]
    free = gram[:, 2:, 2:] - across[:, :, None] * across[:, None] / gram[:, SLICE, SLICE, None, None]
    error = data.errors(result)
    normal = 2 * torch.einsum("pi,pij,pj->p", error, free, error)
    assert 5 - 5 * math.sqrt(10 / count) <= normal.mean() <= 1.2 * 5 + 5 * math.sqrt(10 / count)


@pytest.mark.parametrize(("option", "first"), [("prior_degrees", 0), ("prior_pixels", 3)])
def test_prior_and_image_weigh_as_gaussians(option: str, first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Along an axis of the image's curvature, of other unknowns free, a prior of equal curvature leaves half of an
    offset that the image asks for: but for differences of slices over a thousandth of a voxel.
    """
    monkeypatch.setattr(refinement, "DIFFERENCE", 1e-3)
    data = simulated(1, degrees=0, pixels=0, interpolation="cubic")
    options = {"scale": 1, "cutoffs": [12], "interpolation": "cubic"}
    refiner, stage = Refiner(data.volume, **options), Stage(12, 24, 2, data.images)
    weights = torch.ones(1, dtype=torch.float64)
    gram = refiner.gram(stage, *whitened(data.images, data.ctf, weights, stage), *data.start)
    held = slice(first, 3) if first == 0 else slice(first, 5)
    covariance = torch.linalg.inv(2 * gram[0, 2:, 2:])[held, held]
    variances, axes = torch.linalg.eigh(covariance)
    offset = torch.zeros(1, 5, dtype=torch.float64)
    offset[0, held] = 1e-4 * axes[:, 0]
    start = data.rotations @ rotations.from_vectors(offset[:, :3]), data.shifts + offset[:, 3:]
    sigma = variances[0].sqrt().item()
    prior = {option: math.degrees(sigma) if first == 0 else sigma}
    result = refine(
        data.images, data.volume, *start, ctf=data.ctf, weights=weights, **options, **prior, **THOROUGH
    )
    left = data.errors(result)[0, held]
    assert (left - 0.5 * offset[0, held]).norm() <= 1e-3 * 1e-4


def test_images_that_are_not_finite_stay_and_spoil_no_others() -> None:
    data = simulated(4, noise=1.0)
    alone = refine(data.images, data.volume, *data.start, ctf=data.ctf)
    images = data.images.clone()
    images[1, 2, 3], images[2] = math.nan, math.inf
    result = refine(images, data.volume, *data.start, ctf=data.ctf)
    assert not result.converged[1:3].any() and result.score_after[1:3].isnan().all()
    for i in (1, 2):
        assert torch.equal(result.rotations[i], data.start[0][i])
        assert torch.equal(result.shifts[i], data.start[1][i])
    for a, b in zip(result, alone):
        assert torch.allclose(a[[0, 3]].double(), b[[0, 3]].double(), rtol=0, atol=1e4 * EPS * 2)


def test_images_of_nothing_stay() -> None:
    data = simulated(2)
    result = refine(torch.zeros_like(data.images), data.volume, *data.start, ctf=data.ctf)
    assert torch.equal(result.rotations, data.start[0])
    assert (result.scale == 0).all() and (result.score_after == 0).all()


def test_no_images_are_fine() -> None:
    data = simulated(2)
    told: list[int] = []
    result = refine(
        data.images[:0], data.volume, *[x[:0] for x in data.start], ctf=data.ctf[0], progress=told.append
    )
    assert [tuple(x.shape) for x in result] == [(0, 3, 3), (0, 2), *[(0,)] * 5]
    assert told == [0]


def test_progress_counts_all_particles() -> None:
    data = simulated(5)
    told: list[int] = []
    refine(data.images, data.volume, *data.start, progress=told.append, working_set=1)
    assert len(told) > 1 and sum(told) == 5


def test_inputs_are_not_written_to() -> None:
    data = simulated(3, noise=1.0)
    arrays = (data.images, data.volume, *data.start, data.ctf)
    copies = [x.clone() for x in arrays]
    refine(*arrays[:4], ctf=data.ctf, weights=torch.ones(1))
    assert all(torch.equal(a, b) for a, b in zip(arrays, copies))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"images": 0}, TypeError, "images: expected a torch.Tensor, got int 0"),
        ({"images": lambda d: d.images.real}, TypeError, "images: expected torch.complex64 or torch.complex128, got"),
        ({"images": lambda d: d.images[0]}, ValueError, r"images: expected half spectra .* got shape \(24, 13\)"),
        ({"images": lambda d: d.images[:, :20]}, ValueError, r"square images, got shape \(2, 20, 13\)"),
        (
            {"images": lambda d: d.images.to(torch.complex64)},
            TypeError,
            "images: expected the map's torch.complex128, got torch.complex64",
        ),
        ({"rotations": lambda d: d.rotations[:1]}, ValueError, r"rotations: expected \[2, 3, 3\].*got \[1, 3, 3\]"),
        ({"shifts": lambda d: d.shifts.T[:1]}, ValueError, r"shifts: expected \[2, 2\].*got \[1, 2\]"),
        ({"shifts": lambda d: d.shifts.fill_(math.nan)}, ValueError, "shifts: expected finite values, got nan"),
        ({"ctf": lambda d: d.ctf[:, :5]}, ValueError, r"ctf: .* images' \[2, 24, 13\], got \[2, 5, 13\]"),
        ({"ctf": lambda d: d.images}, TypeError, "ctf: expected torch.float32 or torch.float64, got torch.complex128"),
        ({"weights": lambda d: torch.zeros(2, 3)}, ValueError, r"weights: .* broadcasts .*, got \[2, 3\]"),
        ({"weights": lambda d: -torch.ones(3)}, ValueError, "weights: expected values >= 0, got"),
        ({"volume": lambda d: d.volume[0]}, ValueError, r"volume: expected a map \[N, N, N\].* got shape \(24, 24\)"),
        ({"volume": lambda d: d.volume[:20]}, ValueError, r"volume: .* got shape \(20, 24, 24\)"),
        ({"cutoffs": [4, 3]}, ValueError, r"cutoffs: expected rising numbers >= 1, got \[4, 3\]"),
        ({"cutoffs": []}, ValueError, r"cutoffs: expected rising numbers >= 1, got \[\]"),
        ({"cutoffs": [8, 13]}, ValueError, "cutoffs: expected at most half the images' 24 pixels, got 13"),
        ({"interpolation": "sinc"}, ValueError, "interpolation: expected one of"),
        ({"oversampling": 0.5}, ValueError, "oversampling: expected a finite number >= 1, got 0.5"),
        ({"tolerance": 0}, ValueError, "tolerance: expected a finite number > 0, got 0"),
        ({"scale": "1"}, TypeError, "scale: expected a number > 0, got str '1'"),
        ({"prior_pixels": -1}, ValueError, "prior_pixels: expected a finite number > 0, got -1"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(change: dict[str, Any], error: type[Exception], message: str) -> None:
    data = simulated(2)
    arguments = {
        "images": data.images,
        "volume": data.volume,
        "rotations": data.rotations,
        "shifts": data.shifts,
    }
    arguments.update({k: v(data) if callable(v) else v for k, v in change.items()})
    with pytest.raises(error, match=message):
        refine(**arguments)
