"""Backends as they are installed: distributions with an entry point, each program in a process of its own."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable

import pytest
import torch

import torch_projectors
from torch_projectors import ops, plugins

TESTS = pathlib.Path(__file__).parent
BROKEN = ["missing_library", "misspelt", "no_hooks", "raising", "register_fails", "wrong_abi"]

PRELUDE = """
import sys
import warnings

import torch

from torch_projectors import backends, backward_project, forward_project, set_backend, use_backend

torch.manual_seed(0)
volume = torch.randn(6, 6, 4, dtype=torch.complex128)
rotations = torch.linalg.qr(torch.randn(2, 3, 3, dtype=torch.float64))[0]
shifts = torch.randn(2, 2, dtype=torch.float64)


def loaded(name):
    return sys.modules.get("torch_projectors_test_" + name)


def loss(volume, rotations, shifts):
    return forward_project(volume, rotations, shifts).abs().square().sum()


def leaves():
    return [x.clone().requires_grad_() for x in (volume, rotations, shifts)]


def same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


def raises(kind, function, *words):
    try:
        function()
    except kind as error:
        for word in words:
            assert word in str(error), f"{word!r} is not in: {error}"
        return
    raise AssertionError(f"no {kind.__name__}")
"""

Install = Callable[[list[str]], pathlib.Path]


@pytest.fixture(scope="session")
def install(tmp_path_factory: pytest.TempPathFactory) -> Install:
    """Installs the named distributions of `plugins/` together, once, and returns where."""
    # Not imported, nor their modules looked for: to look for pip keeps setuptools from replacing distutils.
    installed = {d.metadata["Name"] for d in importlib.metadata.distributions()}
    if not {"pip", "setuptools"} <= installed:
        pytest.skip("needs pip and setuptools to install backends")
    # Builds write beside the sources.
    sources = shutil.copytree(TESTS / "plugins", tmp_path_factory.mktemp("plugins") / "sources")
    sites: dict[tuple[str, ...], pathlib.Path] = {}

    def install(names: list[str]) -> pathlib.Path:
        key = tuple(names)
        if key not in sites:
            site = sources.parent / f"site_{len(sites)}"
            options = "--quiet --no-deps --no-build-isolation --no-index --disable-pip-version-check --target"
            pip = [sys.executable, "-m", "pip", "install", *options.split()]
            subprocess.run(
                [*pip, str(site), *[str(sources / name) for name in names]], check=True, timeout=120
            )
            sites[key] = site
        return sites[key]

    return install


@pytest.fixture(scope="session")
def good(install: Install) -> pathlib.Path:
    return install(["good"])


@pytest.fixture(scope="session")
def broken(install: Install) -> pathlib.Path:
    return install(BROKEN)


def run(program: str, *sites: pathlib.Path, disable: str = "") -> None:
    """Run a program that sees the given sites. What else is installed stays out of it."""
    others = [name for name in plugins._backends if name not in ("good", "slow", *BROKEN)]
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (*sites, TESTS.parent)))
    environment[plugins.DISABLE] = ",".join(filter(None, [disable, *others]))
    result = subprocess.run(
        [sys.executable, "-c", PRELUDE + textwrap.dedent(program)],
        env=environment,
        cwd=TESTS,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_backends_are_listed_on_import_and_loaded_by_the_first_op_that_may_use_them(good):
    program = """
    from torch_projectors import plugins

    assert plugins._backends["good"].status == "found"
    with use_backend("reference"):
        expected = forward_project(volume, rotations, shifts)
        expected_volume = backward_project(expected, rotations, shifts)
    assert not loaded("good")

    same(forward_project(volume, rotations, shifts), expected)
    assert plugins._backends["good"].status == "loaded"
    assert loaded("good").calls == {"forward_project": 1}
    same(backward_project(expected, rotations, shifts), expected_volume)
    assert loaded("good").calls == {"forward_project": 1, "backward_project": 1}
    """
    run(program, good)


def test_the_bare_op_loads_backends_and_runs_on_them(good):
    program = """
    images = torch.randn(1, 2, 6, 4, dtype=torch.complex128)
    pose = [rotations[None], shifts[None]]
    geometry = [(6, 6, 6), (6, 6), 1, 1.0, 3.0, False]
    calls = {
        "forward_project": [volume[None], *pose, *geometry],
        "backward_project": [images, images.abs(), *pose, *geometry],
        "project_gradients": [volume[None], images, *pose, *geometry, True, True, True, True],
    }
    assert not loaded("good")
    for name, arguments in calls.items():
        expected = getattr(torch.ops.torch_projectors_reference, name)(*arguments)
        same(getattr(torch.ops.torch_projectors, name)(*arguments), expected)
        assert loaded("good").calls.pop(name) == 1
        assert not loaded("good").calls
    """
    run(program, good)


def test_gradients_are_computed_by_the_backend_of_the_result(good):
    program = """
    def gradients(forward, backward):
        x = leaves()
        with use_backend(forward):
            value = loss(*x)
        with use_backend(backward):
            return torch.autograd.grad(value, x)

    expected = gradients("reference", "reference")
    same(gradients("reference", "auto"), expected)
    assert not loaded("good")
    same(gradients("auto", "auto"), expected)
    assert loaded("good").calls == {"forward_project": 1, "project_gradients": 1}
    same(gradients("reference", "good"), expected)
    assert loaded("good").calls == {"forward_project": 1, "project_gradients": 1}
    same(gradients("good", "reference"), expected)
    assert loaded("good").calls == {"forward_project": 2, "project_gradients": 2}

    def second_gradients(forward):
        x = leaves()
        with use_backend(forward):
            value = loss(*x)
        first = torch.autograd.grad(value, x, create_graph=True)
        return torch.autograd.grad(sum(g.abs().square().sum() for g in first), x)

    loaded("good").calls.clear()
    expected = second_gradients("reference")
    assert not loaded("good").calls
    same(second_gradients("good"), expected)
    assert loaded("good").calls["project_gradients"] > 1
    """
    run(program, good)


def test_compiled_functions_run_on_the_backend(good):
    program = """
    def gradients(function):
        x = leaves()
        return torch.autograd.grad(function(*x), x)

    with use_backend("reference"):
        expected = gradients(loss)
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    same(gradients(compiled), expected)
    assert loaded("good").calls == {"forward_project": 1, "project_gradients": 1}

    with use_backend("reference"):
        same(gradients(compiled), expected)
    assert loaded("good").calls == {"forward_project": 1, "project_gradients": 1}
    same(gradients(compiled), expected)
    assert loaded("good").calls == {"forward_project": 2, "project_gradients": 2}

    set_backend("reference")
    same(gradients(compiled), expected)
    assert loaded("good").calls == {"forward_project": 2, "project_gradients": 2}
    set_backend("auto")
    same(gradients(compiled), expected)
    assert loaded("good").calls == {"forward_project": 3, "project_gradients": 3}
    """
    run(program, good)


@pytest.mark.skipif(
    plugins.torch_version() < (2, 5), reason="torch 2.4 traces no context managers but its own"
)
def test_a_region_in_a_compiled_function_chooses_there(good):
    program = """
    @torch.compile(fullgraph=True, backend="aot_eager")
    def both(volume, rotations):
        with use_backend("reference"):
            first = forward_project(volume, rotations)
        with use_backend("good"):
            second = forward_project(volume, rotations)
        return first, second

    for calls in (1, 2):
        first, second = both(volume, rotations)
        same(first, second)
        assert loaded("good").calls == {"forward_project": calls}
    forward_project(volume, rotations)
    assert loaded("good").calls == {"forward_project": 3}
    """
    run(program, good)


def test_the_innermost_of_the_open_choices_counts(good):
    program = """
    def calls():
        before = sum(loaded("good").calls.values())
        forward_project(volume, rotations)
        return sum(loaded("good").calls.values()) - before

    def fail_in_region():
        with use_backend("reference"):
            1 / 0

    forward_project(volume, rotations)
    assert calls() == 1
    set_backend("reference")
    assert calls() == 0
    with use_backend("good"):
        assert calls() == 1
        with use_backend("reference") as region:
            assert region.name == "reference"
            assert calls() == 0
            with use_backend("auto"):
                assert calls() == 1
            assert calls() == 0
        assert calls() == 1
        raises(ZeroDivisionError, fail_in_region)
        assert calls() == 1
    assert calls() == 0
    set_backend("good")
    assert calls() == 1

    # Regions of two generators or threads may close in the order in which they were opened.
    first, second = use_backend("reference"), use_backend("good")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert calls() == 1
    second.__exit__(None, None, None)
    set_backend("reference")
    first, second, third = use_backend("good"), use_backend("reference"), use_backend("reference")
    first.__enter__()
    second.__enter__()
    third.__enter__()
    second.__exit__(None, None, None)
    assert calls() == 0
    third.__exit__(None, None, None)
    assert calls() == 1
    first.__exit__(None, None, None)
    assert calls() == 0

    # One region can be entered again, also inside itself.
    region = use_backend("good")
    with region, use_backend("reference"), region:
        assert calls() == 1
    with region:
        with use_backend("reference"):
            with region:
                assert calls() == 1
            assert calls() == 0
        assert calls() == 1
    assert calls() == 0
    """
    run(program, good)


def test_choices_that_cannot_be_met_are_errors_and_change_nothing(good, broken):
    program = """
    from torch_projectors import plugins

    warnings.simplefilter("ignore")
    set_backend("good")
    for choose in (set_backend, use_backend):
        raises(ValueError, lambda: choose("gold"), "'gold'", "'auto'", "'reference'", "'good'", "'raising'")
        raises(RuntimeError, lambda: choose("raising"), "'raising'", "failed", "ImportError: this module wants")
        raises(RuntimeError, lambda: choose("wrong_abi"), "'wrong_abi'", "failed", "ABI 999")
        raises(RuntimeError, lambda: choose("no_hooks"), "'no_hooks'", "disabled", plugins.DISABLE)
    forward_project(volume, rotations)
    assert loaded("good").calls == {"forward_project": 1}

    elsewhere = [x.to("meta") for x in (volume, rotations)]
    raises(ValueError, lambda: forward_project(*elsewhere), "'good'", "cpu", "meta")
    with use_backend("auto"):
        assert forward_project(*elsewhere).shape == (2, 6, 4)
    """
    run(program, good, broken, disable="no_hooks")


def test_a_broken_backend_costs_one_warning_that_says_how_to_silence_it(broken):
    program = """
    import torch_projectors

    reasons = REASONS
    with use_backend("reference"):
        expected = forward_project(volume, rotations, shifts)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        same(forward_project(volume, rotations, shifts), expected)
        forward_project(volume, rotations, shifts)
        torch.autograd.grad(loss(*leaves()), leaves(), allow_unused=True)
        found = backends()
    assert len(caught) == len(reasons), [str(w.message) for w in caught]
    for name, reason in reasons.items():
        (message,) = [str(w.message) for w in caught if repr(name) in str(w.message)]
        distribution = "torch-projectors-test-" + name.replace("_", "-")
        for word in (reason, distribution, "reference", "TORCH_PROJECTORS_DISABLE=" + name):
            assert word in message, f"{word!r} is not in: {message}"
        assert found[name].status == "failed"
        assert reason in found[name].reason
    assert all(issubclass(w.category, torch_projectors.plugins.BackendWarning) for w in caught)
    assert loaded("wrong_abi").registrations == []
    for op in ("forward_project", "backward_project", "project_gradients"):
        assert not torch._C._dispatch_has_kernel_for_dispatch_key("torch_projectors::" + op, "CPU")
    """
    reasons = {
        "missing_library": "libnowhere.so",
        "misspelt": "torch_projectors_registre",
        "no_hooks": "lacks the hooks torch_projectors_backend and torch_projectors_register",
        "raising": "ImportError: this module wants another compiler",
        "register_fails": f"no kernels for torch {'.'.join(torch.__version__.split('.')[:2])} on this machine",
        "wrong_abi": f"built for ABI 999 of torch_projectors, and this one has ABI {plugins.ABI}",
    }
    assert sorted(reasons) == BROKEN
    run(program.replace("REASONS", repr(reasons)), broken)


def test_a_good_backend_loads_beside_broken_ones_and_all_are_reported(good, broken):
    program = """
    import torch_projectors

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = backends()
    broken = BROKEN
    assert len(caught) == len(broken)
    assert {name for name, backend in found.items() if backend.status == "failed"} == set(broken)
    assert all(found[name].reason and found[name].version for name in broken)

    backend = found["good"]
    assert (backend.name, backend.status, backend.device, backend.reason) == ("good", "loaded", "cpu", "")
    assert (backend.distribution, backend.version) == ("torch-projectors-test-good", "1.0+described")
    backend = next(iter(found.values()))
    assert (backend.name, backend.status, backend.device, backend.reason) == ("reference", "loaded", "any", "")
    assert backend.version == torch_projectors.__version__
    forward_project(volume, rotations)
    assert loaded("good").calls == {"forward_project": 1}
    """
    run(program.replace("BROKEN", repr(BROKEN)), broken, good)


def test_a_warning_that_is_raised_as_an_error_keeps_no_other_backend_from_loading(good, broken):
    program = """
    warnings.simplefilter("error", UserWarning)
    raises(UserWarning, lambda: forward_project(volume, rotations), "cannot be used")
    assert all(backend.status != "found" for backend in backends().values())
    forward_project(volume, rotations)
    assert loaded("good").calls == {"forward_project": 1}
    """
    run(program, broken, good)


@pytest.mark.parametrize("disable", ["all", "raising, good"])
def test_disabled_backends_are_neither_loaded_nor_warned_of(good, install, disable):
    program = """
    warnings.simplefilter("error")
    found = backends()
    forward_project(volume, rotations)
    for name in ("good", "raising"):
        assert found[name].status == "disabled"
        assert "TORCH_PROJECTORS_DISABLE" in found[name].reason
        assert not loaded(name)
        raises(RuntimeError, lambda: use_backend(name), name, "disabled by TORCH_PROJECTORS_DISABLE")
    """
    run(program, good, install(["raising"]), disable=disable)


def test_of_a_backend_that_is_listed_twice_the_first_is_loaded_once(good, tmp_path):
    program = """
    import importlib.metadata

    from torch_projectors import plugins

    distributions = list(importlib.metadata.distributions(path=sys.path))
    listed = [p for d in distributions for p in d.entry_points if p.group == plugins.GROUP and p.name == "good"]
    assert len(listed) == 3
    warnings.simplefilter("error")
    assert [name for name in backends() if name == "good"] == ["good"]
    assert backends()["good"].status == "loaded"
    assert backends()["good"].distribution == "torch-projectors-test-good"
    forward_project(volume, rotations)
    assert loaded("good").calls == {"forward_project": 1}
    """
    again = shutil.copytree(good, tmp_path / "again")
    renamed = tmp_path / "renamed" / "other_name-1.0.dist-info"
    shutil.copytree(next(good.glob("*.dist-info")), renamed)
    metadata = renamed / "METADATA"
    metadata.write_text(metadata.read_text().replace("torch-projectors-test-good", "other-name"))
    run(program, good, again, renamed.parent)


def test_a_second_backend_for_a_device_is_refused(good, install):
    program = """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        states = backends()
    of_cpu = {name: states[name] for name in ("good", "slow")}
    assert sorted(b.status for b in of_cpu.values()) == ["failed", "loaded"]
    (served,) = [name for name, b in of_cpu.items() if b.status == "loaded"]
    (refused,) = [b for b in of_cpu.values() if b.status == "failed"]
    assert f"{served!r} already serves cpu tensors" in refused.reason
    assert [refused.name in str(w.message) for w in caught] == [True]
    """
    run(program, good, install(["slow"]))


def test_the_first_ops_of_many_threads_wait_for_a_backend_that_itself_calls_ops(install):
    program = """
    import threading
    from concurrent.futures import ThreadPoolExecutor

    warnings.simplefilter("error")
    with use_backend("reference"):
        expected = forward_project(volume, rotations, shifts)
    start = threading.Barrier(8)

    def project(i):
        start.wait()
        return backends()["slow"].status, forward_project(volume, rotations, shifts)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(project, range(8)))
    for status, images in results:
        assert status == "loaded"
        same(images, expected)
    assert len(loaded("slow").registrations) == 1
    before, after = loaded("slow").projections
    same(before, after)
    """
    run(program, install(["slow"]))


@pytest.mark.parametrize("name", ops.SCHEMAS)
def test_schemas_are_those_that_backends_are_built_against(name):
    for namespace in (ops.NAMESPACE, ops.REFERENCE_NAMESPACE):
        schema = getattr(getattr(torch.ops, namespace), name).default._schema
        assert str(schema) == f"{namespace}::{name}{ops.SCHEMAS[name]}"


def test_the_reference_is_always_there():
    backend = torch_projectors.backends()["reference"]
    assert (backend.status, backend.device, backend.version) == (
        "loaded",
        "any",
        torch_projectors.__version__,
    )
