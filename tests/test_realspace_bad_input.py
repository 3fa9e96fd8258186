"""Wrong arguments of the real-space functions are refused by name, with what was expected and what came."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_bad_input import BAD_IN_BOTH, bad, only, poisoned

from torch_projectors import realspace

REAL = ["expected torch.float32 or torch.float64"]
HINT = "from_spectrum"


def project_arguments():
    """Images [2, 3, 6, 6] of a volume [2, 8, 8, 8]."""
    return {
        "reconstruction": torch.randn(2, 8, 8, 8),
        "rotations": torch.eye(3).repeat(3, 1, 1),
        "shifts": torch.zeros(3, 2),
        "output_shape": (6, 6),
        "interpolation": "linear",
        "oversampling": 1.5,
        "fourier_radius_cutoff": 3.0,
        "pixel_size": 1.2,
        "correction": "separable",
    }


def backproject_arguments():
    """The way back."""
    return {
        "projections": torch.randn(2, 3, 6, 6),
        "rotations": torch.eye(3).repeat(3, 1, 1),
        "shifts": torch.zeros(3, 2),
        "reconstruction_shape": (8, 8, 8),
        "interpolation": "linear",
        "oversampling": 1.5,
        "fourier_radius_cutoff": 3.0,
        "pixel_size": 1.2,
        "correction": "separable",
        "projection_shape": (6, 6),
    }


def reconstruct_arguments():
    return {
        "data": torch.randn(2, 8, 8, 5, dtype=torch.complex64),
        "weight": torch.ones(2, 8, 8, 5),
        "interpolation": "linear",
        "oversampling": 2.0,
        "policy": "wiener",
        "snr": torch.ones(4),
        "correction": "separable",
        "reconstruction_shape": (8, 8, 8),
    }


VALID = {
    realspace.project: project_arguments,
    realspace.backproject: backproject_arguments,
    realspace.reconstruct: reconstruct_arguments,
    realspace.fsc: lambda: {"a": torch.randn(2, 6, 6, 6), "b": torch.randn(2, 6, 6, 6), "dims": 3},
    realspace.pad: lambda: {"x": torch.randn(2, 6, 6, 6), "shape": (8, 8, 8)},
    realspace.crop: lambda: {"x": torch.randn(2, 6, 6, 6), "shape": (4, 4, 4)},
    realspace.to_spectrum: lambda: {"x": torch.randn(2, 6, 6, 6), "dims": 3},
    realspace.from_spectrum: lambda: {
        "spectrum": torch.randn(2, 6, 6, 4, dtype=torch.complex64),
        "shape": (6, 6, 6),
    },
    realspace.prepare: lambda: {
        "reconstruction": torch.randn(2, 6, 6, 6),
        "dims": 3,
        "interpolation": "linear",
        "oversampling": 1.5,
        "correction": "separable",
    },
    realspace.gridding_blur: lambda: {
        "shape": (6, 6),
        "padded": (8, 8),
        "interpolation": "linear",
        "correction": "radial",
    },
    realspace.correct_gridding: lambda: {
        "x": torch.randn(2, 6, 6),
        "padded": (8, 8),
        "interpolation": "linear",
        "correction": "radial",
    },
}

# All but what the real-space functions have no argument for.
POSES_AND_OPTIONS = [p for p in BAD_IN_BOTH if "gradient" not in p.values[0]]

PIXEL_SIZES = [
    bad("pixel_size 0", ValueError, ["pixel_size", "finite number > 0", "got 0"], pixel_size=only(0)),
    bad("pixel_size negative", ValueError, ["pixel_size", "> 0", "-1.5"], pixel_size=only(-1.5)),
    bad("pixel_size nan", ValueError, ["pixel_size", "> 0", "nan"], pixel_size=only(math.nan)),
    bad("pixel_size inf", ValueError, ["pixel_size", "finite", "inf"], pixel_size=only(math.inf)),
    bad("pixel_size str", TypeError, ["pixel_size", "a number > 0", "str '2'"], pixel_size=only("2")),
    bad("pixel_size None", TypeError, ["pixel_size", "a number > 0", "None"], pixel_size=only(None)),
    bad("pixel_size bool", TypeError, ["pixel_size", "a number > 0", "bool"], pixel_size=only(True)),
    bad("pixel_size list", TypeError, ["pixel_size", "a number > 0", "list"], pixel_size=only([1.0, 1.0])),
    bad(
        "pixel_size tensor",
        TypeError,
        ["pixel_size", "a number > 0", "float32"],
        pixel_size=only(torch.tensor(1.0)),
    ),
]

CORRECTIONS = [
    bad(
        "correction unknown",
        ValueError,
        ["correction: expected 'separable', 'radial' or None", "'sinc'"],
        correction=only("sinc"),
    ),
    bad("correction bool", ValueError, ["correction: expected", "got True"], correction=only(True)),
    bad("correction list", ValueError, ["correction: expected", "got []"], correction=only([])),
]

INTERPOLATIONS = [
    bad(
        "interpolation unknown",
        ValueError,
        ["interpolation: expected one of 'nearest', 'linear', 'cubic'", "'bilinear'"],
        interpolation=only("bilinear"),
    ),
    bad(
        "interpolation unknown, without correction",
        ValueError,
        ["interpolation: expected one of 'nearest', 'linear', 'cubic'", "'bilinear'"],
        interpolation=only("bilinear"),
        correction=only(None),
    ),
    bad("interpolation code", ValueError, ["interpolation: expected", "1"], interpolation=only(1)),
    bad("interpolation None", ValueError, ["interpolation: expected", "None"], interpolation=only(None)),
]


def bad_boxes(name, layout, rank):
    """Of real data [..., *rank axes]."""
    expected = f"{name}: expected"
    empty = (2, *(8,) * (rank - 1), 0)
    return [
        bad(f"{name} None", TypeError, [expected, "torch.Tensor", "None"], **{name: only(None)}),
        bad(f"{name} number", TypeError, [expected, "torch.Tensor", "float 1.0"], **{name: only(1.0)}),
        bad(
            f"{name} array",
            TypeError,
            [expected, "torch.Tensor", "ndarray"],
            **{name: lambda x: np.zeros(x.shape, np.float32)},
        ),
        bad(f"{name} integer", TypeError, [name, *REAL, "int64"], **{name: lambda x: x.long()}),
        bad(f"{name} bool", TypeError, [name, *REAL, "bool"], **{name: lambda x: x > 0}),
        bad(f"{name} half", TypeError, [name, *REAL, "float16"], **{name: lambda x: x.half()}),
        bad(f"{name} bfloat16", TypeError, [name, *REAL, "bfloat16"], **{name: lambda x: x.bfloat16()}),
        bad(f"{name} complex", TypeError, [name, *REAL, "complex64", HINT], **{name: lambda x: x + 0j}),
        bad(f"{name} vector", ValueError, [expected, layout, "(8,)"], **{name: only(torch.ones(8))}),
        bad(f"{name} scalar", ValueError, [expected, layout, "()"], **{name: only(torch.tensor(1.0))}),
        bad(
            f"{name} without pixels",
            ValueError,
            [expected, "non-empty", layout, str(empty)],
            **{name: only(torch.ones(empty))},
        ),
        bad(
            f"{name} without rows",
            ValueError,
            [expected, "non-empty", layout, "0, 8"],
            **{name: only(torch.ones(*(3,) * (rank - 2), 0, 8))},
        ),
    ]


def bad_shapes(name, example):
    def expected(came):
        return [f"{name}: expected", example, "positive integers", came]

    sizes = example.count(",") + 1
    return [
        bad(f"{name} too long", ValueError, expected("(8, 8, 8, 8)"), **{name: only((8,) * 4)}),
        bad(f"{name} number", ValueError, expected("8"), **{name: only(8)}),
        bad(f"{name} empty", ValueError, expected("()"), **{name: only(())}),
        bad(f"{name} with zero", ValueError, expected("0"), **{name: only((8,) * (sizes - 1) + (0,))}),
        bad(f"{name} negative", ValueError, expected("-8"), **{name: only((8,) * (sizes - 1) + (-8,))}),
        bad(f"{name} of floats", ValueError, expected("8.0"), **{name: only((8.0,) * sizes)}),
        bad(f"{name} of strings", ValueError, expected("88"), **{name: only("8" * sizes)}),
        bad(f"{name} of bools", ValueError, expected("True"), **{name: only((True,) * sizes)}),
    ]


BAD = {
    realspace.project: [
        *POSES_AND_OPTIONS,
        *PIXEL_SIZES,
        *CORRECTIONS,
        INTERPOLATIONS[1],
        *bad_boxes("reconstruction", "[..., D, H, W]", 3),
        *bad_shapes("output_shape", "(H, W)"),
        bad(
            "output_shape too short", ValueError, ["output_shape: expected", "(8,)"], output_shape=only((8,))
        ),
        bad(
            "an image with rotations of volumes",
            ValueError,
            ["reconstruction: expected", "[..., D, H, W]", "(8, 8)"],
            reconstruction=lambda x: x[0, 0],
        ),
        bad(
            "images of volumes with rotations of images",
            ValueError,
            ["output_shape", "(H, W)", "(8, 8, 8)"],
            rotations=only(torch.eye(2).repeat(3, 1, 1)),
            output_shape=only((8, 8, 8)),
        ),
        bad(
            "reconstruction of another batch",
            ValueError,
            ["do not broadcast", "rotations [2, P=3]", "reconstruction [4]"],
            reconstruction=only(torch.ones(4, 8, 8, 8)),
            rotations=only(torch.eye(3).repeat(2, 3, 1, 1)),
        ),
        bad(
            "reconstruction elsewhere",
            ValueError,
            ["expected a tensor on meta", "cpu"],
            reconstruction=lambda x: x.to("meta"),
        ),
        bad(
            "shifts of an image for volumes",
            ValueError,
            ["shifts: expected", "[..., P, 3]", "(x, y, z)", "(3, 2)"],
            output_shape=only((6, 6, 6)),
        ),
    ],
    realspace.backproject: [
        *POSES_AND_OPTIONS,
        *PIXEL_SIZES,
        *CORRECTIONS,
        INTERPOLATIONS[1],
        *bad_boxes("projections", "[..., H, W]", 2),
        *bad_shapes("projection_shape", "(H, W)"),
        *bad_shapes("reconstruction_shape", "(D, H, W)"),
        bad(
            "reconstruction_shape of an image for a volume",
            ValueError,
            ["reconstruction_shape: expected", "(D, H, W)", "(8, 8)"],
            reconstruction_shape=only((8, 8)),
        ),
        bad(
            "rotations of images for a volume",
            ValueError,
            ["reconstruction_shape", "(H, W)", "(8, 8, 8)"],
            rotations=only(torch.eye(2).repeat(3, 1, 1)),
        ),
        bad(
            "projection_shape of another size",
            ValueError,
            ["projection_shape: expected that of projections, (6, 6)", "(6, 8)"],
            projection_shape=only((6, 8)),
        ),
        bad(
            "projections of another number of poses",
            ValueError,
            ["do not broadcast", "rotations [P=3]", "projections [2, P=4]"],
            projections=only(torch.ones(2, 4, 6, 6)),
        ),
        bad(
            "volumes without projection_shape",
            ValueError,
            ["do not broadcast", "projections [2, P=6]", "projection_shape=(D, H, W)"],
            projections=only(torch.ones(2, 6, 6, 6)),
            projection_shape=only(None),
        ),
        bad(
            "projections elsewhere",
            ValueError,
            ["expected a tensor on meta", "cpu"],
            projections=lambda x: x.to("meta"),
        ),
    ],
    realspace.reconstruct: [
        *CORRECTIONS,
        *INTERPOLATIONS,
        *[p for p in POSES_AND_OPTIONS if set(p.values[0]) == {"oversampling"}],
        bad("data None", TypeError, ["data: expected a torch.Tensor", "None"], data=only(None)),
        bad("data array", TypeError, ["data: expected a torch.Tensor", "ndarray"], data=lambda x: x.numpy()),
        bad("data real", TypeError, ["data: expected torch.complex64", "float32"], data=lambda x: x.real),
        bad(
            "data integer",
            TypeError,
            ["data: expected torch.complex64", "int64"],
            data=lambda x: x.real.long(),
        ),
        bad(
            "data vector",
            ValueError,
            ["data: expected", "[..., (D,) H, W//2+1]", "(5,)"],
            data=lambda x: x[0, 0, 0],
            weight=lambda x: x[0, 0, 0],
            reconstruction_shape=only(None),
        ),
        bad(
            "data of an image with the shape of a volume",
            ValueError,
            ["reconstruction_shape: (8, 8, 8)", "(8, 8, 5)", "data has", "(8, 5)"],
            data=lambda x: x[0, 0],
            weight=lambda x: x[0, 0],
        ),
        bad(
            "data without rows",
            ValueError,
            ["data: expected", "non-empty", "(0, 8, 5)"],
            data=lambda x: x[0, :0],
            weight=lambda x: x[0, :0],
            reconstruction_shape=only(None),
        ),
        bad(
            "data without columns",
            ValueError,
            ["data: expected", "non-empty", "(8, 8, 0)"],
            data=lambda x: x[0, ..., :0],
            weight=lambda x: x[0, ..., :0],
            reconstruction_shape=only(None),
        ),
        bad("weight None", TypeError, ["weight: expected a torch.Tensor", "None"], weight=only(None)),
        bad("weight list", TypeError, ["weight: expected a torch.Tensor", "list"], weight=only([1.0])),
        bad(
            "weight complex",
            TypeError,
            ["weight: expected torch.float32", "complex64"],
            weight=lambda x: x + 0j,
        ),
        bad(
            "weight double",
            TypeError,
            ["weight: expected torch.float32", "float64"],
            weight=lambda x: x.double(),
        ),
        bad(
            "weight integer",
            TypeError,
            ["weight: expected torch.float32", "int64"],
            weight=lambda x: x.long(),
        ),
        bad(
            "weight of one map",
            ValueError,
            ["weight: expected the shape of data", "(2, 8, 8, 5)", "(8, 8, 5)"],
            weight=lambda x: x[0],
        ),
        bad(
            "weight of none",
            ValueError,
            ["weight: expected the shape of data", "(2, 8, 8, 5)", "(0, 8, 8, 5)"],
            weight=lambda x: x[:0],
        ),
        bad(
            "weight elsewhere",
            ValueError,
            ["weight: expected a tensor on cpu", "meta"],
            weight=lambda x: x.to("meta"),
        ),
        bad("weight negative", ValueError, ["weight: expected values >= 0", "-0.5"], weight=poisoned(-0.5)),
        bad("weight nan", ValueError, ["weight: expected values >= 0", "nan"], weight=poisoned(math.nan)),
        bad(
            "a box that no whole one is oversampled to",
            ValueError,
            ["oversampling: expected", "(8, 8, 8)", "whole number", "1.5", "give backward_project"],
            oversampling=only(1.5),
        ),
        bad(
            "an oversampling that leaves no box",
            ValueError,
            ["oversampling: expected", "(8, 8, 8)", "20.0"],
            oversampling=only(20.0),
        ),
        bad(
            "policy unknown",
            ValueError,
            ["policy: expected one of 'clamp', 'radial', 'wiener'", "'none'"],
            policy=only("none"),
        ),
        bad("policy None", ValueError, ["policy: expected one of", "None"], policy=only(None)),
        bad("policy list", ValueError, ["policy: expected one of", "[]"], policy=only([])),
        bad("wiener without snr", ValueError, ["snr: expected with policy 'wiener'", "None"], snr=only(None)),
        *[
            bad(
                f"snr with {policy}",
                ValueError,
                ["snr: expected with policy 'wiener'", "no other", repr(policy)],
                policy=only(policy),
            )
            for policy in ("clamp", "radial")
        ],
        bad("snr negative", ValueError, ["snr: expected values >= 0", "-1.5"], snr=only(-1.5)),
        bad("snr nan", ValueError, ["snr: expected values >= 0", "nan"], snr=only(math.nan)),
        bad("snr str", TypeError, ["snr: expected a number or a tensor", "str '1'"], snr=only("1")),
        bad("snr bool", TypeError, ["snr: expected a number or a tensor", "bool"], snr=only(True)),
        bad("snr complex", TypeError, ["snr: expected a number or a tensor", "complex"], snr=only(1j)),
        bad("snr list", TypeError, ["snr: expected a number or a tensor", "list"], snr=only([1.0, 2.0])),
        bad(
            "snr of complex numbers",
            ValueError,
            ["snr: expected values >= 0", "[shells]", "complex64"],
            snr=lambda x: x + 0j,
        ),
        bad("snr table", ValueError, ["snr: expected", "[shells]", "(2, 4)"], snr=only(torch.ones(2, 4))),
        bad("snr empty", ValueError, ["snr: expected", "[shells]", "(0,)"], snr=only(torch.ones(0))),
        bad(
            "snr curve negative",
            ValueError,
            ["snr: expected values >= 0"],
            snr=only(torch.tensor([1.0, -1.0])),
        ),
        bad(
            "snr curve nan",
            ValueError,
            ["snr: expected values >= 0"],
            snr=only(torch.tensor([1.0, math.nan])),
        ),
        bad(
            "snr elsewhere", ValueError, ["snr: expected a tensor on cpu", "meta"], snr=lambda x: x.to("meta")
        ),
        bad(
            "reconstruction_shape of another width",
            ValueError,
            ["reconstruction_shape: (8, 8, 6)", "(8, 8, 4)", "data has (8, 8, 5)"],
            reconstruction_shape=only((8, 8, 6)),
        ),
        *bad_shapes("reconstruction_shape", "(D, H, W)"),
        bad(
            "reconstruction_shape too short",
            ValueError,
            ["reconstruction_shape: expected", "(8,)"],
            reconstruction_shape=only((8,)),
        ),
    ],
    realspace.fsc: [
        *bad_boxes("a", "[..., D, H, W]", 3),
        *bad_boxes("b", "[..., D, H, W]", 3),
        bad(
            "images taken for maps",
            ValueError,
            ["a: expected", "[..., D, H, W]", "(6, 6)"],
            a=lambda x: x[0, 0],
            b=lambda x: x[0, 0],
        ),
        bad(
            "maps of different boxes",
            ValueError,
            ["b: expected", "(6, 6, 6)", "(6, 6, 8)"],
            b=only(torch.ones(2, 6, 6, 8)),
        ),
        bad("maps of different batches", ValueError, ["a [2", "b [3"], b=only(torch.ones(3, 6, 6, 6))),
        bad(
            "b elsewhere",
            ValueError,
            ["b: expected a tensor on cpu", "meta"],
            b=lambda x: x.to("meta"),
        ),
        *[
            bad(f"dims {dims!r}", ValueError, ["dims: expected", repr(dims)], dims=only(dims))
            for dims in (0, 4, -1, None, "3", (3,))
        ],
    ],
    realspace.pad: [
        *bad_shapes("shape", "(D, H, W)"),
        bad("x list", TypeError, ["x: expected a torch.Tensor", "list"], x=only([1.0])),
        bad("x vector", ValueError, ["x: expected at least 3 axes", "(6,)"], x=lambda x: x[0, 0, 0]),
        bad(
            "a smaller shape",
            ValueError,
            ["shape: cannot pad", "(6, 6, 6)", "(8, 8, 4)"],
            shape=only((8, 8, 4)),
        ),
    ],
    realspace.crop: [
        *bad_shapes("shape", "(D, H, W)"),
        bad("x list", TypeError, ["x: expected a torch.Tensor", "list"], x=only([1.0])),
        bad("x vector", ValueError, ["x: expected at least 3 axes", "(6,)"], x=lambda x: x[0, 0, 0]),
        bad(
            "a larger shape",
            ValueError,
            ["shape: cannot crop", "(6, 6, 6)", "(4, 4, 7)"],
            shape=only((4, 4, 7)),
        ),
    ],
    realspace.to_spectrum: [
        *bad_boxes("x", "[..., D, H, W]", 3),
        *[
            bad(f"dims {dims!r}", ValueError, ["dims: expected", repr(dims)], dims=only(dims))
            for dims in (0, 4, -1, None, "3", (3,))
        ],
    ],
    realspace.from_spectrum: [
        *bad_shapes("shape", "(D, H, W)"),
        bad("spectrum None", TypeError, ["spectrum: expected a torch.Tensor"], spectrum=only(None)),
        bad(
            "spectrum real",
            TypeError,
            ["spectrum: expected torch.complex64", "float32"],
            spectrum=lambda x: x.real,
        ),
        bad(
            "a shape of another width",
            ValueError,
            ["shape: (6, 6, 8)", "(6, 6, 5)", "spectrum has (6, 6, 4)"],
            shape=only((6, 6, 8)),
        ),
        bad(
            "a shape of more axes",
            ValueError,
            ["shape: (6, 6, 6)", "(6, 6, 4)", "spectrum has (6, 4)"],
            spectrum=lambda x: x[0, 0],
        ),
    ],
    realspace.prepare: [
        *CORRECTIONS,
        *INTERPOLATIONS,
        *[p for p in POSES_AND_OPTIONS if set(p.values[0]) == {"oversampling"}],
        *bad_boxes("reconstruction", "[..., D, H, W]", 3),
        bad(
            "a box that is not padded to a whole one",
            ValueError,
            ["oversampling: expected", "pads 6 points", "whole number", "1.4"],
            oversampling=only(1.4),
        ),
    ],
    realspace.gridding_blur: [
        *CORRECTIONS,
        *INTERPOLATIONS,
        bad("a shorter padded", ValueError, ["padded: expected", "(8,)"], padded=only((8,))),
        bad("a number for padded", ValueError, ["padded: expected", "8"], padded=only(8)),
        bad("a number for shape", ValueError, ["shape: expected", "6"], shape=only(6)),
    ],
    realspace.correct_gridding: [
        *CORRECTIONS,
        *INTERPOLATIONS,
        bad("x list", TypeError, ["x: expected a torch.Tensor", "list"], x=only([1.0])),
        bad("x integer", TypeError, ["x: expected", "int64"], x=lambda x: x.long()),
        bad("x vector", ValueError, ["x: expected", "(6,)"], x=lambda x: x[0, 0]),
    ],
}


@pytest.mark.parametrize("function", VALID, ids=lambda f: f.__name__)
def test_the_call_that_is_spoilt_below_is_valid(function):
    function(**VALID[function]())


CALLS = [(function, parameters) for function, several in BAD.items() for parameters in several]


@pytest.mark.parametrize(
    ("function", "changes", "error", "words"),
    [pytest.param(function, *p.values, id=f"{function.__name__}: {p.id}") for function, p in CALLS],
)
def test_what_was_expected_and_what_came_is_said(function, changes, error, words):
    arguments = VALID[function]()
    for name, change in changes.items():
        arguments[name] = change(arguments[name])
    tensors = [x for x in arguments.values() if isinstance(x, torch.Tensor) and x.device.type == "cpu"]
    copies, versions = [x.clone() for x in tensors], [x._version for x in tensors]
    with pytest.raises(error) as caught:
        function(**arguments)
    for word in words:
        assert word in str(caught.value)
    assert [x._version for x in tensors] == versions
    for x, copy in zip(tensors, copies):
        torch.testing.assert_close(x, copy, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "curve", [torch.ones(()), torch.ones(0), torch.ones(1)], ids=["scalar", "empty", "one"]
)
def test_a_crossing_needs_shells(curve):
    """Beyond the mean, that is at least one."""
    with pytest.raises(ValueError) as caught:
        realspace.fsc_crossing(curve)
    assert "curve: expected" in str(caught.value) and str(tuple(curve.shape)) in str(caught.value)
