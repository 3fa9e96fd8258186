"""C and C++: the examples run as their READMEs say, and torch_projectors.h does what the Python functions do."""

from __future__ import annotations

import functools
import os
import re
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import cuda_on_host
import pytest
import torch
from test_batching import LEADING

from torch_projectors import backward_project, forward_project, plugins, use_backend
from torch_projectors.cases import CASES
from torch_projectors.geometry import INTERPOLATION_CODES

EXAMPLES = Path(__file__).parents[1] / "examples"
GRADIENTS = ("friedel", "stored")

# By its entry point: from the root of the checkout, an import finds a directory of that name.
pytestmark = pytest.mark.skipif(
    "cpu" not in plugins._backends, reason="torch-projectors-cpu is not installed"
)


def need(*programs: str) -> None:
    if sys.platform == "win32":
        pytest.skip("the commands are those of a Unix shell")
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}")


def need_libtorch() -> None:
    need("bash", "cmake", "c++")
    if plugins.torch_version() < (2, 10):
        pytest.skip("torch before 2.10 lacks the C interface that the ops are registered through in C++")


def run(command: list[str], folder: Path, **environment: str) -> str:
    path = [str(EXAMPLES.parent), os.environ.get("PYTHONPATH", "")]
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    if os.environ.get("TORCH_PROJECTORS_WERROR") == "1":
        environment.update(CFLAGS="-Werror", CXXFLAGS="-Werror")
    result = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, f"exit {result.returncode}: {result.stdout[-6000:]}"
    return result.stdout


def follow_readme(example: str, folder: Path) -> str:
    """Run the one block of commands of an example's README, in a copy, with this Python."""
    shutil.copytree(EXAMPLES / example, folder / example)
    (commands,) = re.findall(
        r"^```bash\n(.*?)^```$", (EXAMPLES / example / "README.markdown").read_text(), re.M | re.S
    )
    python = folder / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return run(
        ["bash", "-euo", "pipefail", "-c", commands],
        folder / example,
        PATH=os.pathsep.join([str(python.parent), os.environ["PATH"]]),
    )


def test_the_c_examples_find_a_point_where_it_belongs(tmp_path):
    need("bash", "cc")
    output = follow_readme("c", tmp_path)
    assert len(re.findall("^torch-projectors-cpu .*: point within [0-9.]+e-1[5-9]", output, re.M)) == 2, (
        output
    )


def test_the_libtorch_example_agrees_with_python(tmp_path):
    need_libtorch()
    assert follow_readme("libtorch", tmp_path).endswith("agreed\n")


# The header's functions as ops of torch, for Python to call.
MODULE = """
#include <torch/library.h>

#include "torch_projectors.h"

namespace tp = torch_projectors;

using Shape = std::vector<int64_t>;
using MaybeTensor = std::optional<at::Tensor>;

tp::Options options(Shape projection_shape, Shape reconstruction_shape, int64_t interpolation, double oversampling,
                    std::optional<double> cutoff, int64_t gradient) {
  return {projection_shape, reconstruction_shape, tp::Interpolation(interpolation),
          oversampling,     cutoff,               tp::Gradient(gradient)};
}

TORCH_LIBRARY(torch_projectors_header, library) {
  library.def("load", [](const std::string& path, const std::string& device) {
    tp::load(path, at::Device(device).type());
  });
  library.def("forward_project",
              [](const at::Tensor& x, const at::Tensor& rotations, const MaybeTensor& shifts, Shape a, Shape b,
                 int64_t i, double o, std::optional<double> c, int64_t g) {
                return tp::forward_project(x, rotations, shifts, options(a, b, i, o, c, g));
              });
  library.def("backward_project",
              [](const at::Tensor& x, const at::Tensor& rotations, const MaybeTensor& shifts,
                 const MaybeTensor& weights, Shape a, Shape b, int64_t i, double o, std::optional<double> c,
                 int64_t g) {
                return tp::backward_project(x, rotations, shifts, weights, options(a, b, i, o, c, g));
              });
}
"""
MODULE_BUILD = """
cmake_minimum_required(VERSION 3.18)
project(header CXX)
find_package(Torch REQUIRED)
add_library(header SHARED header.cpp)
target_include_directories(header PRIVATE ${INCLUDE})
target_link_libraries(header PRIVATE ${TORCH_LIBRARIES})
# Another standard than the example is compiled for.
target_compile_features(header PRIVATE cxx_std_20)
target_compile_options(header PRIVATE -Wall -Wextra)
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    """The compiled module's path."""
    need_libtorch()
    import torch_projectors_cpu

    folder = tmp_path_factory.mktemp("header")
    (folder / "header.cpp").write_text(MODULE)
    (folder / "CMakeLists.txt").write_text(MODULE_BUILD)
    prefix, include = torch.utils.cmake_prefix_path, torch_projectors_cpu.include_path()
    run(["cmake", ".", f"-DCMAKE_PREFIX_PATH={prefix}", f"-DINCLUDE={include}"], folder)
    run(["cmake", "--build", "."], folder)
    (path,) = folder.glob("libheader.*")
    return str(path)


@pytest.fixture(scope="module")
def header(module):
    """The header's functions, with Python's arguments."""
    torch.ops.load_library(module)
    ops = torch.ops.torch_projectors_header

    def tail(
        projections, reconstruction, interpolation="linear", oversampling=1.0, cutoff=None, gradient="friedel"
    ):
        shapes = [list(shape or ()) for shape in (projections, reconstruction)]
        code = INTERPOLATION_CODES.get(interpolation, 2)
        return (*shapes, code, oversampling, cutoff, [*GRADIENTS, gradient].index(gradient))

    def forward(
        x,
        rotations,
        shifts=None,
        output_shape=None,
        *,
        reconstruction_shape=None,
        fourier_radius_cutoff=None,
        **options,
    ):
        arguments = tail(output_shape, reconstruction_shape, cutoff=fourier_radius_cutoff, **options)
        return ops.forward_project(x, rotations, shifts, *arguments)

    def backward(
        x,
        rotations,
        shifts=None,
        reconstruction_shape=None,
        *,
        weights=None,
        projection_shape=None,
        fourier_radius_cutoff=None,
        **options,
    ):
        arguments = tail(projection_shape, reconstruction_shape, cutoff=fourier_radius_cutoff, **options)
        volume, weight_volume = ops.backward_project(x, rotations, shifts, weights, *arguments)
        assert (weight_volume is None) == (weights is None)
        return volume if weights is None else (volume, weight_volume)

    return SimpleNamespace(forward_project=forward, backward_project=backward)


python = SimpleNamespace(forward_project=forward_project, backward_project=backward_project)


def same(actual, expected):
    # The same sums in another order: some hundred float64 epsilons, of numbers up to some ten.
    for a, e in zip(actual, expected):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


def with_derivatives(functions, tensors, options, volume_shape, image_shape, along):
    """Both functions' results on (volume, images, weights, rotations, shifts), their gradients for all of these, and
    those of the gradients for data."""
    leaves = [x if x is None else x.clone().requires_grad_() for x in tensors]
    volume, images, weights, rotations, shifts = leaves
    projections = functions.forward_project(
        volume, rotations, shifts, image_shape, reconstruction_shape=volume_shape, **options
    )
    results = (
        projections,
        *functions.backward_project(
            images, rotations, shifts, volume_shape, weights=weights, projection_shape=image_shape, **options
        ),
    )
    loss = sum((x * a).abs().square().sum() for x, a in zip(results, along(results)))
    present = [x for x in leaves if x is not None]
    gradients = torch.autograd.grad(loss, present, create_graph=True)
    steepness = sum(g.abs().square().sum() for g in gradients[:3])
    return [*results, *gradients, *torch.autograd.grad(steepness, present)]


CHOSEN = [case for case in CASES if case.interpolation == "linear" or case.name == "rectangular"]


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("case", CHOSEN, ids=str)
def test_the_header_has_the_values_and_derivatives_of_python(header, case, gradient):
    volume, images, weights, rotations, shifts = case.inputs()
    if len(rotations) == 1:  # without leading dimensions
        rotations = rotations[0]
    options = {
        "interpolation": case.interpolation,
        "oversampling": case.oversampling,
        "fourier_radius_cutoff": case.geometry.cutoff,
        "gradient": gradient,
    }

    def along(results):
        generator = torch.Generator().manual_seed(0)
        return [torch.randn(x.shape, generator=generator, dtype=torch.float64) for x in results]

    arguments = (
        (volume, images, weights, rotations, shifts),
        options,
        case.volume_shape,
        case.image_shape,
        along,
    )
    with use_backend("reference"):
        expected = with_derivatives(python, *arguments)
    same(with_derivatives(header, *arguments), expected)
    options.update(weights=weights, projection_shape=case.image_shape)
    undifferentiated = header.backward_project(images, rotations, shifts, case.volume_shape, **options)
    same(undifferentiated, expected[1:3])


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_one_gradient_at_a_time_is_that_of_python(header, weighted, shifted):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, dtype=torch.float64):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    volume, images = [normal(*shape, 4, dtype=torch.complex128) for shape in ((6, 6), (2, 6))]
    weights = (
        torch.rand(2, 6, 4, generator=generator, dtype=torch.float64).requires_grad_() if weighted else None
    )
    rotations, shifts = normal(2, 3, 3), normal(2, 2) if shifted else None

    def gradients(functions):
        results = functions.backward_project(images, rotations, shifts, weights=weights)
        results = results if weighted else (results,)
        inserted = sum(x.abs().square().sum() for x in results)
        seen = functions.forward_project(volume, rotations, shifts).abs().square().sum()
        pairs = [(seen, (volume, rotations, shifts)), (inserted, (images, weights, rotations, shifts))]
        return [
            torch.autograd.grad(loss, leaf, retain_graph=True)[0]
            for loss, leaves in pairs
            for leaf in leaves
            if leaf is not None
        ]

    same(gradients(header), gradients(python))


# The last takes dimensions round, which is not undone by doing it again.
@pytest.mark.parametrize(("lead", "turned", "moved"), [*LEADING, ((2,), (3, 4, 1, 2), (2,))], ids=str)
def test_leading_dimensions_broadcast_in_the_header_as_in_python(header, lead, turned, moved):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape, dtype=torch.float64):
        return torch.randn(*shape, generator=generator, dtype=dtype).requires_grad_()

    volume = normal(*lead, 6, 6, 4, dtype=torch.complex128)
    rotations, shifts = normal(*turned, 3, 3), normal(*moved, 2)
    count = torch.broadcast_shapes(turned[-1:], moved[-1:])[0]
    for poses in {1, count}:
        images = normal(*lead, poses, 6, 4, dtype=torch.complex128)
        weights = torch.rand(images.shape, generator=generator, dtype=torch.float64).requires_grad_()
        leaves = (volume, images, weights, rotations, shifts)

        def outputs(functions, images=images, weights=weights, leaves=leaves):
            results = (
                functions.forward_project(volume, rotations, shifts),
                *functions.backward_project(images, rotations, shifts, weights=weights),
            )
            return [*results, *torch.autograd.grad(sum(x.abs().square().sum() for x in results), leaves)]

        same(outputs(header), outputs(python))


def test_shapes_that_are_not_told_are_those_of_python(header):
    normal = functools.partial(torch.randn, dtype=torch.complex128)
    eye = {2: torch.eye(2), 3: torch.eye(3)}
    for columns in (1, 2, 3, 4):
        for n in (1, 2, 5, 6, 7):
            for oversampling in (1.0, 1.25, 2.0):  # with halves to round
                for dims in (2, 3):
                    box = (n,) * (dims - 1)
                    arguments = (normal(*box, columns), eye[dims])
                    same(
                        [header.forward_project(*arguments, oversampling=oversampling)],
                        [python.forward_project(*arguments, oversampling=oversampling)],
                    )
                    arguments = (normal(n, columns), eye[dims])
                    same(
                        [header.backward_project(*arguments, oversampling=oversampling)],
                        [python.backward_project(*arguments, oversampling=oversampling)],
                    )


def test_one_matrix_is_one_pose_and_layouts_and_precision_of_poses_do_not_matter(header):
    volume = torch.randn(4, 6, 6, dtype=torch.complex128).mT.conj()
    rotation = torch.linalg.qr(torch.randn(3, 3))[0].mT
    images = torch.randn(4, 6, 2, dtype=torch.complex128).permute(2, 1, 0)
    for shift in (None, torch.randn(2), torch.randn(5, 2)):
        for functions in (header, python):
            assert functions.forward_project(volume, rotation, shift).dim() == (
                3 if shift is not None and shift.dim() == 2 else 2
            )
        same(
            [header.forward_project(volume, rotation, shift), header.backward_project(images[0], rotation)],
            [python.forward_project(volume, rotation, shift), python.backward_project(images[0], rotation)],
        )


def test_arguments_stay_as_they_are_and_nothing_is_recorded_without_need(header):
    volume, images = (
        torch.randn(6, 6, 4, dtype=torch.complex128),
        torch.randn(2, 6, 4, dtype=torch.complex128),
    )
    weights, rotations = torch.rand(2, 6, 4, dtype=torch.float64), torch.randn(2, 3, 3, dtype=torch.float64)
    tensors = (volume, images, weights, rotations)
    before = [x.clone() for x in tensors]
    rotations.requires_grad_()
    with torch.no_grad():
        results = (
            header.forward_project(volume, rotations),
            *header.backward_project(images, rotations, weights=weights),
        )
    assert not any(x.requires_grad for x in results)
    results = (
        header.forward_project(volume, rotations),
        *header.backward_project(images, rotations, weights=weights),
    )
    assert all(x.requires_grad for x in results)
    torch.autograd.grad(sum(x.abs().square().sum() for x in results), rotations)
    assert all(torch.equal(a, b) for a, b in zip(tensors, before))


def test_what_the_header_cannot_differentiate_is_an_error(header):
    volume = torch.randn(6, 6, 4, dtype=torch.complex128, requires_grad=True)
    rotations = torch.randn(2, 3, 3, dtype=torch.float64, requires_grad=True)
    shifts = torch.randn(2, 2, dtype=torch.float64, requires_grad=True)

    def loss(volume, rotations, shifts):
        return header.forward_project(volume, rotations, shifts).abs().square().sum()

    gradients = torch.autograd.grad(
        loss(volume, rotations, shifts), (volume, rotations, shifts), create_graph=True
    )
    for gradient in gradients[1:]:
        with pytest.raises(
            RuntimeError, match="gradient of rotations or shifts cannot be differentiated again"
        ):
            torch.autograd.grad(gradient.sum(), (volume, rotations, shifts), retain_graph=True)
    # Those for data of the same call can.
    assert torch.autograd.grad(gradients[0].abs().square().sum(), rotations)[0].any()

    def inserted(images, rotations, shifts):
        return header.backward_project(images, rotations, shifts)[0].abs().square().sum()

    images = torch.randn(2, 6, 4, dtype=torch.complex128)
    for function, data in ((loss, volume), (inserted, images)):
        arguments = [x.detach() for x in (data, rotations, shifts)]
        for i, x in enumerate(arguments):
            with torch.autograd.forward_ad.dual_level():
                dual = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
                with pytest.raises(RuntimeError, match="jvp is not implemented"):
                    function(*arguments[:i], dual, *arguments[i + 1 :])
            with pytest.raises(RuntimeError, match="functorch"):
                torch.func.grad(function, argnums=i)(*arguments)


VOLUME, IMAGES = torch.zeros(6, 6, 4, dtype=torch.complex64), torch.zeros(2, 6, 4, dtype=torch.complex64)
ROTATIONS, SHIFTS = torch.eye(3).expand(2, 3, 3), torch.zeros(2, 2)

# Function, what is wrong, and how the message begins.
WRONG = [
    (
        "forward_project",
        {"x": torch.zeros(6, 6, 4)},
        "reconstruction: expected a half spectrum, ComplexFloat or ComplexDouble",
    ),
    ("forward_project", {"x": torch.zeros(4, dtype=torch.complex64)}, "reconstruction: expected a non-empty"),
    (
        "forward_project",
        {"x": torch.zeros(0, 6, 4, dtype=torch.complex64)},
        "reconstruction: expected a non-empty",
    ),
    ("forward_project", {"rotations": torch.eye(4)}, "rotations: expected matrices"),
    ("forward_project", {"rotations": torch.zeros(2, 2, 3)}, "rotations: expected matrices"),
    ("forward_project", {"rotations": ROTATIONS.half()}, "rotations: expected Float or Double"),
    ("forward_project", {"rotations": ROTATIONS.to("meta")}, "rotations: expected a tensor on cpu"),
    ("forward_project", {"rotations": ROTATIONS * torch.nan}, "rotations: expected finite values"),
    ("forward_project", {"shifts": SHIFTS + torch.inf}, "shifts: expected finite values"),
    ("forward_project", {"shifts": torch.zeros(2, 3)}, "shifts: expected [..., P, 2]"),
    ("forward_project", {"shifts": torch.zeros(3, 2)}, "leading dimensions and P do not broadcast"),
    (
        "forward_project",
        {"x": VOLUME.expand(3, 6, 6, 4), "rotations": ROTATIONS.expand(2, 2, 3, 3)},
        "leading dimensions",
    ),
    ("forward_project", {"output_shape": (6,)}, "projection_shape: expected a real-space shape"),
    ("forward_project", {"output_shape": (6, 0)}, "projection_shape: expected a real-space shape"),
    (
        "forward_project",
        {"reconstruction_shape": (6, 6)},
        "reconstruction_shape: expected a real-space shape",
    ),
    (
        "forward_project",
        {"reconstruction_shape": (6, 6, 8)},
        "reconstruction_shape: [6, 6, 8] has a half spectrum",
    ),
    ("forward_project", {"interpolation": "quintic"}, "interpolation: expected nearest, linear or cubic"),
    ("forward_project", {"oversampling": 0.5}, "oversampling: expected a finite number >= 1"),
    ("forward_project", {"oversampling": torch.nan}, "oversampling: expected a finite number >= 1"),
    ("forward_project", {"fourier_radius_cutoff": 0.0}, "fourier_radius_cutoff: expected a number > 0"),
    ("forward_project", {"gradient": "full"}, "gradient: expected friedel or stored"),
    ("backward_project", {"x": IMAGES.real}, "projections: expected a half spectrum"),
    (
        "backward_project",
        {"x": torch.zeros(3, 6, 4, dtype=torch.complex64)},
        "leading dimensions",
    ),
    ("backward_project", {"projection_shape": (6, 8)}, "projection_shape: [6, 8] has a half spectrum"),
    (
        "backward_project",
        {"reconstruction_shape": (6, 6)},
        "reconstruction_shape: expected a real-space shape",
    ),
    ("backward_project", {"weights": torch.zeros(2, 6, 4).double()}, "weights: expected Float, got Double"),
    ("backward_project", {"weights": torch.zeros(1, 6, 4)}, "weights: expected the shape of projections"),
    ("backward_project", {"weights": torch.full((2, 6, 4), -1.0)}, "weights: expected values >= 0, got -1"),
    (
        "backward_project",
        {"weights": torch.full((2, 6, 4), torch.nan)},
        "weights: expected values >= 0, got",
    ),
    ("backward_project", {"oversampling": 1e300}, ""),  # left to whatever serves the op
]


@pytest.mark.parametrize(("name", "wrong", "message"), WRONG)
def test_the_header_refuses_bad_input_by_name(header, name, wrong, message):
    arguments = {
        "x": VOLUME if name == "forward_project" else IMAGES,
        "rotations": ROTATIONS,
        "shifts": SHIFTS,
        **wrong,
    }
    with pytest.raises(RuntimeError) as caught:
        getattr(header, name)(**arguments)
    assert re.sub("^torch_projectors: ", "", str(caught.value)).startswith(message)


LOADING = """
import sys
import torch

module, library, core = sys.argv[1:]
if core == "with":
    import torch_projectors
torch.ops.load_library(module)
header = torch.ops.torch_projectors_header
has_kernel = torch._C._dispatch_has_kernel_for_dispatch_key
name = "torch_projectors::forward_project"


def project():
    volume = torch.ones(4, 4, 3, dtype=torch.complex64)
    return header.forward_project(volume, torch.eye(3), None, [], [], 1, 1.0, None, 0)


def message(function, *arguments):
    try:
        function(*arguments)
    except RuntimeError as error:
        return str(error)
    raise AssertionError("no error")


if core == "without":
    assert "on cpu yet; call torch_projectors::load first, with the library of torch-projectors-cpu" in message(project)
assert "nowhere.so" in message(header.load, "nowhere.so", "cpu")
assert "expected cpu or cuda, got meta" in message(header.load, library, "meta")
assert "expected the library of torch-projectors-cuda, but it has no" in message(header.load, library, "cuda")
header.load(library, "cpu")
assert has_kernel(name, "CPU")
header.load(library, "cpu")
header.load("nowhere.so", "cpu")  # there is nothing to load
assert project().shape == (4, 3)
if core == "with":
    assert torch_projectors.backends()["cpu"].status == "loaded"
    ones = torch.ones(4, 4, 3, dtype=torch.complex64)
    assert torch.equal(torch_projectors.forward_project(ones, torch.eye(3)), project())
"""


@pytest.mark.parametrize("core", ["with", "without"])
def test_the_library_is_loaded_and_registered_once_with_and_without_the_python_package(
    module, core, tmp_path
):
    from torch_projectors_cpu import library_path

    command = [sys.executable, "-c", textwrap.dedent(LOADING), module, str(library_path()), core]
    # torch says when a kernel or an op is registered again.
    assert run(command, tmp_path, TORCH_PROJECTORS_DISABLE="") == ""


ON_HOST = """
import sys
import torch

module, library = sys.argv[1:]
torch.ops.load_library(module)
header = torch.ops.torch_projectors_header
for _ in range(2):
    header.load(library, "cuda")
volume = torch.randn(4, 4, 3, dtype=torch.complex64, requires_grad=True)
images = header.forward_project(volume, torch.eye(3), None, [], [], 1, 1.0, None, 0)
inside = images.abs() > 0
assert inside.sum() > 6 and torch.equal(images[inside], volume[0][inside])
images.abs().square().sum().backward()
assert volume.grad[0].abs().sum() > 0 and not volume.grad[1:].any()
"""


@pytest.mark.skipif(not cuda_on_host.POSSIBLE, reason="expected torch_projectors_cuda beside the tests")
def test_the_header_loads_the_library_of_cuda(module, tmp_path):
    """Compiled for the host, its kernels serve CPU tensors."""
    command = [sys.executable, "-c", ON_HOST, module, str(cuda_on_host.build(tmp_path))]
    run(command, tmp_path, TORCH_PROJECTORS_DISABLE="all")
