"""Wrong arguments are refused by name, inputs are never written to, and no pose reaches outside of an array."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from on_device import bare

from torch_projectors import backward_project, forward_project
from torch_projectors.cases import GEOMETRIES, Case
from torch_projectors.geometry import INTERPOLATION_CODES
from torch_projectors.spectrum import frequencies, stored_shape

every_geometry = pytest.mark.parametrize(
    ("dims", "image_dims"), GEOMETRIES, ids=[f"{a}D->{b}D" for a, b in GEOMETRIES]
)
every_interpolation = pytest.mark.parametrize("interpolation", INTERPOLATION_CODES)


def spectrum(*shape, dtype=torch.complex64):
    return torch.randn(shape, dtype=dtype)


def forward_arguments():
    """Images [2, 3, 6, 4] of a volume [2, 8, 8, 5]."""
    return {
        "reconstruction": spectrum(2, 8, 8, 5),
        "rotations": torch.eye(3).repeat(3, 1, 1),
        "shifts": torch.zeros(3, 2),
        "output_shape": (6, 6),
        "interpolation": "linear",
        "oversampling": 1.0,
        "fourier_radius_cutoff": 3.0,
        "reconstruction_shape": (8, 8, 8),
        "gradient": "friedel",
    }


def backward_arguments():
    """The way back."""
    return {
        "projections": spectrum(2, 3, 6, 4),
        "rotations": torch.eye(3).repeat(3, 1, 1),
        "shifts": torch.zeros(3, 2),
        "reconstruction_shape": (8, 8, 8),
        "interpolation": "linear",
        "oversampling": 1.0,
        "fourier_radius_cutoff": 3.0,
        "weights": torch.ones(2, 3, 6, 4),
        "projection_shape": (6, 6),
        "gradient": "friedel",
    }


VALID = {forward_project: forward_arguments, backward_project: backward_arguments}


def only(value):
    """In place of any valid argument."""
    return lambda _: value


def poisoned(value):
    """One element of a copy replaced."""

    def poison(x):
        x = x.clone()
        x.view(-1)[5] = value
        return x

    return poison


def bad(label, error, words, **changes):
    """words: what the message has to contain, of the argument's name, what was expected and what came."""
    return pytest.param(changes, error, words, id=label)


NUMBERS = ["oversampling: expected a number >= 1"]
MATRICES = ["rotations: expected", "[..., P, 2, 2]", "[..., P, 3, 3]"]
BROADCAST = ["do not broadcast"]
COMPLEX = ["expected torch.complex64 or torch.complex128"]
REAL = ["expected torch.float32 or torch.float64"]
VECTORS = ["shifts: expected", "[..., P, 2]", "(x, y)"]

BAD_IN_BOTH = [
    bad("rotations None", TypeError, ["rotations: expected a torch.Tensor", "None"], rotations=only(None)),
    bad("rotations list", TypeError, ["rotations: expected a torch.Tensor", "list"], rotations=only([[1.0]])),
    bad(
        "rotations array",
        TypeError,
        ["rotations: expected a torch.Tensor", "ndarray"],
        rotations=lambda x: x.numpy(),
    ),
    bad("rotations complex", TypeError, ["rotations", *REAL, "complex64"], rotations=lambda x: x + 0j),
    bad("rotations integer", TypeError, ["rotations", *REAL, "int64"], rotations=lambda x: x.long()),
    bad("rotations half", TypeError, ["rotations", *REAL, "float16"], rotations=lambda x: x.half()),
    bad("rotations bfloat16", TypeError, ["rotations", *REAL, "bfloat16"], rotations=lambda x: x.bfloat16()),
    bad("rotations 4x4", ValueError, [*MATRICES, "(3, 4, 4)"], rotations=only(torch.zeros(3, 4, 4))),
    bad("rotations 3x2", ValueError, [*MATRICES, "(3, 3, 2)"], rotations=lambda x: x[..., :2]),
    bad("rotations 2x3", ValueError, [*MATRICES, "(3, 2, 3)"], rotations=lambda x: x[..., :2, :]),
    bad("rotations vector", ValueError, [*MATRICES, "(3,)"], rotations=lambda x: x[0, 0]),
    bad("rotations scalar", ValueError, [*MATRICES, "()"], rotations=lambda x: x[0, 0, 0]),
    bad("rotations empty", ValueError, [*MATRICES, "(3, 0, 0)"], rotations=lambda x: x[:, :0, :0]),
    bad(
        "rotations elsewhere",
        ValueError,
        ["rotations: expected a tensor on cpu", "meta"],
        rotations=lambda x: x.to("meta"),
    ),
    bad(
        "rotations nan",
        ValueError,
        ["rotations: expected finite values", "nan", "[0, 1, 2]"],
        rotations=poisoned(math.nan),
    ),
    bad("rotations inf", ValueError, ["rotations: expected finite", "inf"], rotations=poisoned(math.inf)),
    bad("rotations -inf", ValueError, ["rotations: expected finite", "-inf"], rotations=poisoned(-math.inf)),
    bad(
        "rotations of another number of poses",
        ValueError,
        [*BROADCAST, "rotations [P=4]", "shifts [P=3]"],
        rotations=only(torch.eye(3).repeat(4, 1, 1)),
    ),
    bad(
        "rotations of another batch",
        ValueError,
        [*BROADCAST, "rotations [5, P=3]"],
        rotations=only(torch.eye(3).repeat(5, 3, 1, 1)),
    ),
    bad("shifts list", TypeError, ["shifts: expected a torch.Tensor", "list"], shifts=only([0.0, 0.0])),
    bad("shifts complex", TypeError, ["shifts", *REAL, "complex64"], shifts=lambda x: x + 0j),
    bad("shifts integer", TypeError, ["shifts", *REAL, "int32"], shifts=lambda x: x.int()),
    bad("shifts half", TypeError, ["shifts", *REAL, "float16"], shifts=lambda x: x.half()),
    bad("shifts of a volume", ValueError, [*VECTORS, "(3, 3)"], shifts=only(torch.zeros(3, 3))),
    bad("shifts of one number", ValueError, [*VECTORS, "(3, 1)"], shifts=lambda x: x[:, :1]),
    bad("shifts scalar", ValueError, [*VECTORS, "()"], shifts=lambda x: x[0, 0]),
    bad(
        "shifts elsewhere",
        ValueError,
        ["shifts: expected a tensor on cpu", "meta"],
        shifts=lambda x: x.to("meta"),
    ),
    bad(
        "shifts nan",
        ValueError,
        ["shifts: expected finite values", "nan", "[2, 1]"],
        shifts=poisoned(math.nan),
    ),
    bad("shifts inf", ValueError, ["shifts: expected finite", "inf"], shifts=poisoned(math.inf)),
    bad(
        "shifts of another number of poses",
        ValueError,
        [*BROADCAST, "rotations [P=3]", "shifts [P=4]"],
        shifts=only(torch.zeros(4, 2)),
    ),
    bad(
        "shifts of another batch",
        ValueError,
        [*BROADCAST, "shifts [5, P=3]"],
        shifts=only(torch.zeros(5, 3, 2)),
    ),
    bad(
        "interpolation unknown",
        ValueError,
        ["interpolation: expected one of 'nearest', 'linear', 'cubic'", "'bilinear'"],
        interpolation=only("bilinear"),
    ),
    bad("interpolation code", ValueError, ["interpolation: expected", "1"], interpolation=only(1)),
    bad("interpolation None", ValueError, ["interpolation: expected", "None"], interpolation=only(None)),
    bad("interpolation list", ValueError, ["interpolation: expected", "[]"], interpolation=only([])),
    bad("oversampling below 1", ValueError, ["oversampling", ">= 1", "0.5"], oversampling=only(0.5)),
    bad("oversampling 0", ValueError, ["oversampling", ">= 1", "0"], oversampling=only(0)),
    bad("oversampling negative", ValueError, ["oversampling", ">= 1", "-2.0"], oversampling=only(-2.0)),
    bad("oversampling nan", ValueError, ["oversampling", ">= 1", "nan"], oversampling=only(math.nan)),
    bad("oversampling inf", ValueError, ["oversampling", "finite", "inf"], oversampling=only(math.inf)),
    bad("oversampling str", TypeError, [*NUMBERS, "str '2'"], oversampling=only("2")),
    bad("oversampling bool", TypeError, [*NUMBERS, "bool True"], oversampling=only(True)),
    bad("oversampling None", TypeError, [*NUMBERS, "None"], oversampling=only(None)),
    bad("oversampling tensor", TypeError, [*NUMBERS, "float32"], oversampling=only(torch.tensor(2.0))),
    bad("cutoff 0", ValueError, ["fourier_radius_cutoff", "> 0", "got 0"], fourier_radius_cutoff=only(0)),
    bad("cutoff negative", ValueError, ["fourier_radius_cutoff", "-1.5"], fourier_radius_cutoff=only(-1.5)),
    bad("cutoff nan", ValueError, ["fourier_radius_cutoff", "nan"], fourier_radius_cutoff=only(math.nan)),
    bad("cutoff -inf", ValueError, ["fourier_radius_cutoff", "-inf"], fourier_radius_cutoff=only(-math.inf)),
    bad("cutoff str", TypeError, ["fourier_radius_cutoff", "str '3'"], fourier_radius_cutoff=only("3")),
    bad(
        "gradient unknown", ValueError, ["gradient", "'friedel' or 'stored'", "'full'"], gradient=only("full")
    ),
    bad("gradient bool", ValueError, ["gradient", "'friedel' or 'stored'", "True"], gradient=only(True)),
]


def bad_spectra(name):
    expected = f"{name}: expected"
    return [
        bad(f"{name} None", TypeError, [expected, "torch.Tensor", "None"], **{name: only(None)}),
        bad(f"{name} number", TypeError, [expected, "torch.Tensor", "float 1.0"], **{name: only(1.0)}),
        bad(
            f"{name} array",
            TypeError,
            [expected, "torch.Tensor", "ndarray"],
            **{name: only(np.zeros((2, 2), complex))},
        ),
        bad(
            f"{name} real",
            TypeError,
            [name, *COMPLEX, "float32", "torch.fft.rfftn(torch.fft.ifftshift("],
            **{name: lambda x: x.real},
        ),
        bad(f"{name} integer", TypeError, [name, *COMPLEX, "int64"], **{name: lambda x: x.real.long()}),
        bad(f"{name} half", TypeError, [name, *COMPLEX, "float16"], **{name: lambda x: x.real.half()}),
        bad(f"{name} complex half", TypeError, [name, *COMPLEX, "complex32"], **{name: lambda x: x.chalf()}),
        bad(
            f"{name} vector", ValueError, [expected, "[..., ", "W//2+1]", "(4,)"], **{name: only(spectrum(4))}
        ),
        bad(f"{name} scalar", ValueError, [expected, "[..., ", "()"], **{name: only(spectrum())}),
        bad(
            f"{name} elsewhere",
            ValueError,
            ["expected a tensor on meta", "cpu"],
            **{name: lambda x: x.to("meta")},
        ),
        bad(
            f"{name} without pixels",
            ValueError,
            [expected, "non-empty", "(2, 3, 6, 0)"],
            **{name: only(spectrum(2, 3, 6, 0))},
        ),
    ]


def bad_shapes(name, example):
    def expected(came):
        return [f"{name}: expected a real-space shape", example, "positive integers", came]

    sizes = example.count(",") + 1
    return [
        bad(f"{name} too long", ValueError, expected("(8, 8, 8, 8)"), **{name: only((8,) * 4)}),
        bad(f"{name} too short", ValueError, expected("(8,)"), **{name: only((8,))}),
        bad(f"{name} number", ValueError, expected("8"), **{name: only(8)}),
        bad(f"{name} with zero", ValueError, expected("0"), **{name: only((8,) * (sizes - 1) + (0,))}),
        bad(f"{name} negative", ValueError, expected("-8"), **{name: only((8,) * (sizes - 1) + (-8,))}),
        bad(f"{name} of floats", ValueError, expected("8.0"), **{name: only((8.0,) * sizes)}),
        bad(f"{name} of strings", ValueError, expected("88"), **{name: only("8" * sizes)}),
        bad(f"{name} of bools", ValueError, expected("True"), **{name: only((True,) * sizes)}),
    ]


BAD_FORWARD = [
    *BAD_IN_BOTH,
    *bad_spectra("reconstruction"),
    *bad_shapes("output_shape", "(H, W)"),
    *bad_shapes("reconstruction_shape", "(D, H, W)"),
    bad(
        "an image with rotations of volumes",
        ValueError,
        ["reconstruction: expected", "[..., D, H, W//2+1]", "3x3 rotations", "(8, 5)"],
        reconstruction=lambda x: x[0, 0],
    ),
    bad(
        "images of volumes with rotations of images",
        ValueError,
        ["output_shape", "(H, W)", "(8, 8, 8)"],
        reconstruction_shape=only(None),
        rotations=only(torch.eye(2).repeat(3, 1, 1)),
        output_shape=only((8, 8, 8)),
    ),
    bad(
        "reconstruction of another batch",
        ValueError,
        [*BROADCAST, "rotations [2, P=3]", "reconstruction [4]"],
        reconstruction=only(spectrum(4, 8, 8, 5)),
        rotations=only(torch.eye(3).repeat(2, 3, 1, 1)),
    ),
    bad(
        "reconstruction_shape of another width",
        ValueError,
        ["reconstruction_shape: (8, 8, 6)", "(8, 8, 4)", "reconstruction has (8, 8, 5)"],
        reconstruction_shape=only((8, 8, 6)),
    ),
    bad(
        "reconstruction_shape of another depth",
        ValueError,
        ["reconstruction_shape: (9, 8, 8)", "reconstruction has (8, 8, 5)"],
        reconstruction_shape=only((9, 8, 8)),
    ),
    bad(
        "shifts of an image for volumes",
        ValueError,
        ["shifts: expected", "[..., P, 3]", "(x, y, z)", "(3, 2)"],
        output_shape=only((6, 6, 6)),
    ),
]

BAD_BACKWARD = [
    *BAD_IN_BOTH,
    *bad_spectra("projections"),
    *bad_shapes("projection_shape", "(H, W)"),
    *bad_shapes("reconstruction_shape", "(D, H, W)"),
    bad(
        "rotations of images for a volume",
        ValueError,
        ["reconstruction_shape", "(H, W)", "(8, 8, 8)"],
        rotations=only(torch.eye(2).repeat(3, 1, 1)),
    ),
    bad(
        "rotations of volumes for an image",
        ValueError,
        ["reconstruction_shape", "(D, H, W)", "(8, 8)"],
        reconstruction_shape=only((8, 8)),
    ),
    bad(
        "projections of another number of poses",
        ValueError,
        [*BROADCAST, "rotations [P=3]", "projections [2, P=4]"],
        projections=only(spectrum(2, 4, 6, 4)),
        weights=only(None),
    ),
    bad(
        "projections of another batch",
        ValueError,
        [*BROADCAST, "rotations [5, P=3]", "projections [2, P=3]"],
        rotations=only(torch.eye(3).repeat(5, 3, 1, 1)),
    ),
    bad(
        "volumes without projection_shape",
        ValueError,
        [*BROADCAST, "projections [2, P=6]", "projection_shape=(D, H, W)"],
        projections=only(spectrum(2, 6, 6, 4)),
        projection_shape=only(None),
        weights=only(None),
    ),
    bad(
        "projection_shape of another width",
        ValueError,
        ["projection_shape: (6, 8)", "(6, 5)", "projections has (6, 4)"],
        projection_shape=only((6, 8)),
    ),
    bad(
        "projection_shape of another height",
        ValueError,
        ["projection_shape: (5, 6)", "projections has (6, 4)"],
        projection_shape=only((5, 6)),
    ),
    bad("weights list", TypeError, ["weights: expected a torch.Tensor", "list"], weights=only([1.0])),
    bad(
        "weights complex",
        TypeError,
        ["weights: expected torch.float32", "complex64"],
        weights=lambda x: x + 0j,
    ),
    bad(
        "weights double",
        TypeError,
        ["weights: expected torch.float32", "float64"],
        weights=lambda x: x.double(),
    ),
    bad(
        "weights integer", TypeError, ["weights: expected torch.float32", "int64"], weights=lambda x: x.long()
    ),
    bad(
        "weights half", TypeError, ["weights: expected torch.float32", "float16"], weights=lambda x: x.half()
    ),
    bad(
        "weights of one image",
        ValueError,
        ["weights: expected the shape of projections", "(2, 3, 6, 4)", "(6, 4)"],
        weights=lambda x: x[0, 0],
    ),
    bad(
        "weights of the whole spectrum",
        ValueError,
        ["weights: expected the shape of projections", "(2, 3, 6, 4)", "(2, 3, 6, 6)"],
        weights=only(torch.ones(2, 3, 6, 6)),
    ),
    bad(
        "weights elsewhere",
        ValueError,
        ["weights: expected a tensor on cpu", "meta"],
        weights=lambda x: x.to("meta"),
    ),
    bad("weights negative", ValueError, ["weights: expected values >= 0", "-0.5"], weights=poisoned(-0.5)),
    bad("weights nan", ValueError, ["weights: expected values >= 0", "nan"], weights=poisoned(math.nan)),
]


@pytest.mark.parametrize("function", VALID)
def test_the_call_that_is_spoilt_below_is_valid(function):
    function(**VALID[function]())


def refused(function, changes, error, words):
    arguments = VALID[function]()
    function(**arguments)  # what was valid is remembered, and must not be taken for what is not
    for name, change in changes.items():
        arguments[name] = change(arguments[name])
    with pytest.raises(error) as caught:
        function(**arguments)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize(("changes", "error", "words"), BAD_FORWARD)
def test_forward_project_says_what_it_expected_and_what_came(changes, error, words):
    refused(forward_project, changes, error, words)


@pytest.mark.filterwarnings("ignore:ComplexHalf")
@pytest.mark.parametrize(("changes", "error", "words"), BAD_BACKWARD)
def test_backward_project_says_what_it_expected_and_what_came(changes, error, words):
    refused(backward_project, changes, error, words)


@pytest.mark.parametrize(
    "changes", [{"oversampling": True}, {"output_shape": (8.0, 8)}, {"output_shape": [8, 8.5]}]
)
def test_equal_numbers_of_other_types_are_not_taken_for_those_of_calls_before(changes):
    volume, rotations = spectrum(8, 8, 5), torch.eye(3)[None]
    forward_project(volume, rotations, output_shape=(8, 8), oversampling=1)
    forward_project(volume, rotations, output_shape=[8, 8], oversampling=1.0)
    with pytest.raises((TypeError, ValueError), match="expected") as caught:
        forward_project(volume, rotations, **changes)
    assert caught.value.__context__ is None  # a list cannot be remembered, which is nothing to tell


# --- Inputs ---


def problem(dims, image_dims, interpolation):
    """Both functions with their options, and their tensors as leaves."""
    case = Case("inputs", (6, 7, 6)[-dims:], (6, 5, 6)[-image_dims:], interpolation, batch=2, shift_batch=2)
    volume, images, weights, rotations, shifts = case.inputs()
    options = {"interpolation": interpolation}

    def forward(volume, rotations, shifts):
        return forward_project(
            volume, rotations, shifts, case.image_shape, reconstruction_shape=case.volume_shape, **options
        )

    def backward(images, rotations, shifts, weights=None):
        return backward_project(
            images,
            rotations,
            shifts,
            case.volume_shape,
            weights=weights,
            projection_shape=case.image_shape,
            **options,
        )

    return (forward, (volume, rotations, shifts)), (backward, (images, rotations, shifts, weights))


def several(outputs):
    return outputs if isinstance(outputs, tuple) else (outputs,)


def total(outputs):
    return sum(x.abs().square().sum() for x in several(outputs))


LAYOUTS = {
    "contiguous": lambda x: x.clone(),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
    "lazy": lambda x: x.conj_physical().conj() if x.is_complex() else torch._neg_view(-x),
}


@every_geometry
@every_interpolation
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("leaves", [False, True], ids=["plain", "leaves"])
def test_inputs_are_never_written_to(backend, dims, image_dims, interpolation, layout, leaves):
    for function, tensors in problem(dims, image_dims, interpolation):
        inputs = [LAYOUTS[layout](x).detach().requires_grad_(leaves) for x in tensors]
        versions = [x._version for x in inputs]
        loss = total(function(*inputs))
        if leaves:
            gradients = torch.autograd.grad(loss, inputs, create_graph=True)
            torch.autograd.grad(total(gradients), inputs, allow_unused=True)
        assert [x._version for x in inputs] == versions
        for x, original in zip(inputs, tensors):
            assert torch.equal(x, original)


# --- Poses that are not numbers, or huge ---


def hostile_case(dims, image_dims, interpolation):
    """Three volumes with poses of their own; those of the middle one get spoilt."""
    return Case(
        "hostile poses",
        (6, 7, 6)[-dims:],
        (7, 6, 6)[-image_dims:],
        interpolation,
        oversampling=1.5,
        batch=3,
        rotation_batch=3,
        shift_batch=3,
    )


def results(case, volume, images, weights, rotations, shifts):
    """All outputs of all ops that have a batch."""
    needed = (True, True, True, True)
    return {
        "images": bare().forward_project(volume, rotations, shifts, *case.geometry),
        "sampled weights": bare().forward_project(volume.abs(), rotations, None, *case.geometry),
        **dict(
            zip(
                ("volume", "weight volume"),
                bare().backward_project(images, weights, rotations, shifts, *case.geometry),
            )
        ),
        **dict(
            zip(
                ("d volume", "d images", "d rotations", "d shifts"),
                bare().project_gradients(volume, images, rotations, shifts, *case.geometry, *needed),
            )
        ),
    }


def between_poison(x):
    """The same values in the middle of a buffer of NaN, so that a read beyond either end shows."""
    guard = torch.full((x.numel(),), math.nan, dtype=x.dtype)
    return torch.cat([guard, x.reshape(-1), guard])[x.numel() : 2 * x.numel()].view(x.shape)


@every_geometry
@every_interpolation
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("size", [40.0, 3e9, 1e19, 1e30])
def test_samples_far_beyond_the_band_are_zero(backend, dims, image_dims, interpolation, dtype, size):
    """As far as 40, and further than 32 and 64 bit integers reach."""
    case = hostile_case(dims, image_dims, interpolation)
    volume, images, weights, rotations, shifts = case.inputs(dtype)
    # No entry of a matrix is so small that a frequency other than DC stays near the band along every axis.
    rotations[1] = size * torch.tensor([[1.0, -0.7, 0.6], [-0.9, 0.8, 1.1], [0.5, 1.3, -1.2]])[:dims, :dims]
    inputs = [between_poison(x) for x in (volume, images, weights, rotations, shifts)]
    found = results(case, *inputs)
    assert all(torch.isfinite(x).all() for x in found.values())

    dc = found["images"].new_zeros(found["images"].shape[2:])
    dc[(0,) * image_dims] = volume[(1, *[0] * dims)]
    torch.testing.assert_close(found["images"][1], dc.expand(case.poses, *dc.shape), rtol=0, atol=0)
    assert torch.count_nonzero(found["volume"][1]) == 1
    assert torch.count_nonzero(found["weight volume"][1]) == 1
    for name in ("d rotations", "d shifts"):
        assert torch.count_nonzero(found[name][1]) == 0


@every_geometry
@every_interpolation
@pytest.mark.parametrize("spoilt", ["rotations", "shifts"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38])
def test_poses_that_are_not_numbers_spoil_no_other_volume(
    backend, dims, image_dims, interpolation, spoilt, value
):
    case = hostile_case(dims, image_dims, interpolation)
    inputs = case.inputs(torch.complex64)
    expected = results(case, *inputs)
    inputs = inputs._replace(**{spoilt: getattr(inputs, spoilt).clone()})
    getattr(inputs, spoilt)[1] = value
    found = results(case, *[between_poison(x) for x in inputs])
    for name in expected:
        for b in (0, 2):
            torch.testing.assert_close(found[name][b], expected[name][b], msg=lambda m, n=name: f"{n}: {m}")


@every_geometry
@every_interpolation
@pytest.mark.parametrize("spoilt", ["rotations", "shifts"])
def test_poses_that_are_not_numbers_give_no_numbers(backend, dims, image_dims, interpolation, spoilt):
    """Inside the cutoff, and for that pose alone."""
    case = hostile_case(dims, image_dims, interpolation)
    inputs = case.inputs()
    getattr(inputs, spoilt)[1, 2] = math.nan
    found = results(case, *inputs)
    radius = sum(torch.from_numpy(k * k) for k in np.ix_(*frequencies(case.image_shape)))
    inside = radius <= case.geometry.cutoff**2
    for name in ("images", "d images"):
        assert found[name][1, 2].isnan()[inside].all()
        assert torch.equal(
            found[name][1, 2][~inside], found[name][1, 2].new_zeros(()).expand((~inside).sum())
        )
    for name in ("volume", "d volume"):
        assert found[name][1].isnan().any()
    assert found["d rotations"][1, 2, :, :image_dims].isnan().all()
    assert found["d shifts"][1, 2].isnan().all()
    for name in ("images", "d images", "d rotations", "d shifts"):
        assert torch.isfinite(found[name][1, :2]).all()


@every_geometry
@pytest.mark.parametrize("spoilt", [1, 2], ids=["rotations", "shifts"])
def test_compiled_poses_that_are_not_numbers_give_no_numbers(backend, dims, image_dims, spoilt):
    """A compiled function cannot look at values, so it cannot raise."""
    torch._dynamo.reset()
    (forward, tensors), (backward, backward_tensors) = problem(dims, image_dims, "linear")
    forward = torch.compile(forward, fullgraph=True, backend="aot_eager")
    backward = torch.compile(backward, fullgraph=True, backend="aot_eager")

    leaves = [x.clone().requires_grad_() for x in tensors]
    leaves[spoilt].detach().fill_(math.nan)
    images = forward(*leaves)
    assert images[(..., *[0] * image_dims)].isnan().all()
    for gradient in torch.autograd.grad(total(images), leaves):
        assert gradient.isnan().any()

    leaves = [x.clone().requires_grad_() for x in backward_tensors[:3]]
    leaves[spoilt].detach().fill_(math.nan)
    volume = backward(*leaves)
    assert volume.isnan().any()
    for gradient in torch.autograd.grad(total(volume), leaves):
        assert gradient.isnan().any()


# --- Extreme sizes ---


@every_geometry
@every_interpolation
@pytest.mark.parametrize("parity", [0, 1], ids=["even", "odd"])
def test_outputs_are_zero_beyond_the_band_of_the_reconstruction(
    backend, dims, image_dims, interpolation, parity
):
    n, reach = 6 + parity, {"nearest": 0.5, "linear": 1, "cubic": 2}[interpolation]
    case = Case("wide", (n,) * dims, (15,) * image_dims, interpolation, cutoff=math.inf)
    volume, _, _, rotations, shifts = case.inputs()
    images = forward_project(
        volume, rotations, shifts, case.image_shape, interpolation, fourier_radius_cutoff=math.inf
    )
    axes = [torch.from_numpy(k).double() for k in frequencies(case.image_shape)]
    k = torch.stack(torch.meshgrid(*axes, indexing="ij")[::-1], -1)
    positions = torch.einsum("bpij,...j->bp...i", rotations[..., :image_dims], k)
    beyond = (positions.abs() >= n // 2 + reach + 1e-9).any(-1)
    assert beyond.any()
    assert torch.equal(images[beyond], torch.zeros_like(images[beyond]))
    within = (positions.abs() < n // 2).all(-1)
    assert torch.count_nonzero(images[within]) == within.sum()


@every_geometry
@every_interpolation
def test_the_identity_keeps_the_band_of_the_reconstruction_and_nothing_else(
    backend, dims, image_dims, interpolation
):
    case = Case("wide", (5,) * dims, (9,) * image_dims, interpolation)
    volume = case.inputs().volume[0]
    images = forward_project(
        volume,
        torch.eye(dims, dtype=torch.float64),
        output_shape=case.image_shape,
        interpolation=interpolation,
        fourier_radius_cutoff=math.inf,
    )
    expected = torch.zeros_like(images)
    index = [0, 1, 2, -2, -1]
    band = volume if image_dims == dims else volume[0]
    for source in np.ndindex(*band.shape):
        expected[(*[index[i] for i in source[:-1]], source[-1])] = band[source]
    assert torch.equal(images, expected)


@every_geometry
@every_interpolation
@pytest.mark.parametrize("leads", [(0, 3), (2, 0), (0, 0)], ids=["no batch", "no poses", "neither"])
def test_nothing_in_gives_nothing_or_zero_out(backend, dims, image_dims, interpolation, leads):
    batch, poses = leads
    case = Case(
        "empty", (6,) * dims, (5,) * image_dims, interpolation, batch=batch, poses=poses, rotation_batch=batch
    )
    volume, images, weights, rotations, shifts = [x.requires_grad_() for x in case.inputs()]
    projections = forward_project(
        volume, rotations, shifts, case.image_shape, interpolation, reconstruction_shape=case.volume_shape
    )
    assert projections.shape == (batch, poses, *stored_shape(case.image_shape))
    found = backward_project(
        images,
        rotations,
        shifts,
        case.volume_shape,
        interpolation,
        weights=weights,
        projection_shape=case.image_shape,
    )
    for x in found:
        assert x.shape == (batch, *stored_shape(case.volume_shape))
    for outputs, leaves in (
        (projections, (volume, rotations, shifts)),
        (found, (images, rotations, shifts, weights)),
    ):
        for x in (*several(outputs), *torch.autograd.grad(total(outputs), leaves)):
            assert total(x) == 0


@every_geometry
@every_interpolation
@pytest.mark.parametrize("sizes", [(1, 1), (2, 2), (1, 2), (2, 1), (1, 5), (5, 1), (2, 5), (5, 2)], ids=str)
def test_boxes_of_one_and_two_pixels(backend, dims, image_dims, interpolation, sizes):
    """The identity keeps what both boxes hold; gather and scatter stay transposes."""
    size, image_size = sizes
    case = Case("tiny", (size,) * dims, (image_size,) * image_dims, interpolation, cutoff=math.inf)
    volume, images, _, rotations, shifts = case.inputs()
    projections = bare().forward_project(volume, rotations, shifts, *case.geometry)
    inserted, _ = bare().backward_project(images, None, rotations, shifts, *case.geometry)
    defect = torch.vdot(projections.flatten(), images.flatten()) - torch.vdot(
        volume.flatten(), inserted.flatten()
    )
    assert abs(defect.real) <= 1e-13 * images.norm() * volume.norm()

    identity = torch.eye(dims, dtype=torch.float64)
    images = forward_project(
        volume[0],
        identity,
        None,
        case.image_shape,
        interpolation,
        fourier_radius_cutoff=math.inf,
        reconstruction_shape=case.volume_shape,
    )
    assert images.shape == stored_shape(case.image_shape)
    assert images[(0,) * image_dims] == volume[(0,) * (dims + 1)]
    if size == image_size:
        assert torch.equal(images, volume[0] if image_dims == dims else volume[0, 0])
    returned = backward_project(
        images,
        identity,
        None,
        case.volume_shape,
        interpolation,
        fourier_radius_cutoff=math.inf,
        projection_shape=case.image_shape,
    )
    assert returned.shape == stored_shape(case.volume_shape)
    assert returned[(0,) * dims] == images[(0,) * image_dims].real


@every_geometry
@every_interpolation
def test_a_cutoff_below_one_keeps_the_mean_alone(backend, dims, image_dims, interpolation):
    case = Case("mean", (6,) * dims, (6,) * image_dims, interpolation, cutoff=0.5)
    volume, images, _, rotations, shifts = case.inputs()
    options = {"interpolation": interpolation, "fourier_radius_cutoff": 0.5}
    projections = forward_project(volume, rotations, shifts, case.image_shape, **options)
    expected = torch.zeros_like(projections)
    expected[(..., *[0] * image_dims)] = volume[(0,) * (dims + 1)]
    assert torch.equal(projections, expected)

    inserted = backward_project(
        images, rotations, shifts, case.volume_shape, projection_shape=case.image_shape, **options
    )
    expected = torch.zeros_like(inserted)
    expected[(0,) * (dims + 1)] = images[(0, slice(None), *[0] * image_dims)].sum().real
    torch.testing.assert_close(inserted, expected)


def test_a_single_column_is_a_box_of_one_pixel():
    column = torch.fft.rfftn(torch.randn(5, 1))
    identity = torch.eye(2)
    for function in (forward_project, backward_project):
        torch.testing.assert_close(function(column, identity, fourier_radius_cutoff=math.inf), column)
