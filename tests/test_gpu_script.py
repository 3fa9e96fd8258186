"""benchmarks.gpu, which runs where there is a GPU: what it makes of stages that fail, hang or cannot start."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from benchmarks import gpu, speed
from benchmarks.gpu import Stage

PASSED = "tests/test_a.py::test_one[x y] PASSED [ 50%]"


def python(program: str) -> list[str]:
    return [sys.executable, "-c", program]


@pytest.fixture
def run(tmp_path):
    """Runs stages; returns whether all is well, and the document."""

    def run(*stages: Stage, skip: tuple[str, ...] = (), seconds: float = 60) -> tuple[bool, dict]:
        path = tmp_path / "found.json"
        good = gpu.carry_out_all(
            list(stages),
            list(skip),
            time.monotonic() + seconds,
            tmp_path / "log",
            lambda x: gpu.write(path, x),
        )
        assert [f.name for f in tmp_path.glob("*found*")] == ["found.json"]
        return good, json.loads(path.read_text())

    return run


def test_stages_go_on_after_one_that_fails_hangs_or_cannot_start(run) -> None:
    good, found = run(
        Stage("fails", {"fails": python("import sys; print('so it is'); sys.exit(3)")}, 30, needs=""),
        Stage("hangs", {"hangs": python("import time; time.sleep(60)")}, 5, needs=""),
        Stage("missing", {"missing": ["/nowhere/program"]}, 30, needs=""),
        Stage("needy", {"needy": python("")}, 30, needs="fails"),
        Stage("works", {"works": python("print('done')")}, 30, needs=""),
    )
    assert not good
    assert (found["fails"]["returned"], found["fails"]["last_line"]) == (3, "so it is")
    assert found["hangs"]["out_of_time"]
    assert found["hangs"]["seconds"] < 30
    assert "nowhere" in found["missing"]["last_line"]
    assert found["needy"]["left_out"] == "fails failed"
    assert found["works"]["ok"]


def test_what_is_left_out_on_purpose_is_no_failure(run) -> None:
    good, found = run(
        Stage("build", {"build": python("import sys; sys.exit(1)")}, 30, needs=""),
        Stage("absent", {}, 30),
        Stage("works", {"works": python("")}, 30),
        skip=("build",),
    )
    assert good
    assert "left_out" in found["build"]
    assert found["works"]["ok"]


def test_a_stage_without_time_left_is_a_failure(run) -> None:
    good, found = run(Stage("late", {"late": python("")}, 30, reserve=58, needs=""))
    assert not good
    assert found["late"]["left_out"] == "no time left"


def test_tests_are_counted_also_of_a_process_that_is_stopped(run) -> None:
    program = f"import time; print('collected 7 items / 4 deselected / 3 selected'); print({PASSED!r}, flush=True); "
    good, found = run(
        Stage("suite", {"a": python(program + "time.sleep(60)"), "b": python(program)}, 6, needs="")
    )
    assert not good
    assert (found["suite"]["passed"], found["suite"]["not_run"]) == (2, 4)
    assert found["suite"]["processes"]["a"]["out_of_time"]
    assert "out_of_time" not in found["suite"]["processes"]["b"]


def test_every_file_with_tests_over_backends_is_in_the_suite() -> None:
    (suite,) = [stage for stage in gpu.stages(Path(), None) if stage.name == "suite"]
    assert {"test_adjoint.py", "test_brute_force.py", "test_realspace.py", "test_gradients.py"} <= set(
        suite.commands
    )
    assert "test_cuda_host.py" not in suite.commands


def test_the_page_of_speed_shows_what_was_measured_on_a_device(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(speed, "GPU_RESULTS", tmp_path / "gpu.json")
    assert speed.cuda()["device"] == "Not measured yet."
    problem = {"geometry": "3-2", "interpolation": "linear", "box": 256, "batch": 8, "poses": 2048}
    times = [
        {
            **problem,
            "operation": "forward",
            "seconds": 1.0,
            "projections_per_s": 16384.0,
            "of_published": 1.5,
        },
        {**problem, "box": 512, "left_out": "no time left"},
    ]
    machine = dict.fromkeys(("device", "cuda", "torch", "backend"), "x")
    gpu.write(speed.GPU_RESULTS, {"stages": {}, "machine": machine, "times": times})
    last = speed.cuda()["device"].splitlines()[-1]
    assert last == "| gather | linear | 256 | 8 | 2048 | 16.4 | 1.50 |"
