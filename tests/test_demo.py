"""The demo does what it says, leaves all of its folder or nothing, and explains what it cannot do."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import mrcfile
import pytest
import torch

from torch_projectors import demo, forward_project, realspace, rotations
from torch_projectors.__main__ import main
from torch_projectors.demo.molecule import Molecule
from torch_projectors.demo.refinement import Poses
from torch_projectors.outputs import OutputError, new_folder

# Small, and with little noise, so that it takes seconds.
SMALL = {"size": 32, "images": 250, "snr": 10.0, "degrees": 5.0, "pixels": 2.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return demo.run(output=str(tmp_path_factory.mktemp("demo") / "new" / "results"), **SMALL)


def test_refinement_recovers_poses_and_map(folder):
    """Errors fall to a tenth at 64 pixels. At half the size, an angle moves the rim by half as much."""
    results = json.loads((folder / "results.json").read_text())["results"]
    assert results["refined"]["degrees_median"] <= results["disturbed"]["degrees_median"] / 5
    assert results["refined"]["pixels_median"] <= results["disturbed"]["pixels_median"] / 10
    reached = {name: result["fsc_crossing_cycles_per_box"] for name, result in results.items()}
    assert reached["disturbed"] < 0.8 * reached["true"] <= reached["refined"]
    assert results["true"]["degrees_median"] == pytest.approx(0, abs=1e-3)


def test_folder_holds_maps_picture_and_numbers_and_nothing_is_left_beside_it(folder):
    names = {
        "demo.png",
        "results.json",
        "truth.mrc",
        "disturbed_poses.mrc",
        "refined_poses.mrc",
        "true_poses.mrc",
    }
    assert {path.name for path in folder.iterdir()} == names
    assert list(folder.parent.iterdir()) == [folder]
    with mrcfile.open(folder / "truth.mrc") as file:
        truth = torch.from_numpy(file.data.copy())
        assert file.voxel_size.x == 1
    with mrcfile.open(folder / "true_poses.mrc") as file:
        assert realspace.fsc(torch.from_numpy(file.data.copy()), truth)[1] > 0.95
    facts = json.loads((folder / "results.json").read_text())
    assert facts["options"] == {**SMALL, "seed": 0}
    assert (folder / "demo.png").read_bytes()[:4] == b"\x89PNG"


def test_molecule_images_are_projections_of_its_map():
    """In the closed form and through the operators, below half of Nyquist, where interpolation errs by 1 percent."""
    generator = torch.Generator().manual_seed(3)
    molecule = Molecule.fold(32, atoms=20, generator=generator)
    poses = Poses(rotations.random(5, generator=generator), torch.randn(5, 2, generator=generator))
    density = molecule.map(32)
    assert density.sum() == pytest.approx(20, rel=1e-5)
    spectrum = realspace.prepare(density, 3, "cubic", 3)
    ours = forward_project(spectrum, *poses, (32, 32), "cubic", 3, fourier_radius_cutoff=8)
    exact = realspace.to_spectrum(molecule.images(*poses, 32), 2)
    exact = exact * (ours != 0)
    assert (ours - exact).norm() <= 0.01 * exact.norm()


def test_common_motion_of_the_map_is_not_counted():
    generator = torch.Generator().manual_seed(0)
    true = Poses(rotations.random(30, generator=generator), torch.randn(30, 2, generator=generator))
    turn, move = rotations.random(generator=generator), torch.tensor([1.0, -2.0, 3.0])
    moved = Poses(turn @ true.rotations, true.shifts + ((turn @ true.rotations).mT @ move)[:, :2])
    found = moved.in_frame_of(true)
    # Rounding of 30 sums of numbers of order 1, through a decomposition and a least-squares solution.
    tolerance = 100 * torch.finfo(torch.float32).eps
    assert (found.rotations - true.rotations).abs().max() <= tolerance
    assert (found.shifts - true.shifts).abs().max() <= 10 * tolerance
    assert torch.linalg.det(found.rotations).allclose(torch.ones(30))


def run(*arguments, cwd):
    command = [sys.executable, "-m", "torch_projectors", "demo", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--size", "3"], ["--size", "at least 16", "3"]),
        (["--images", "0"], ["--images", "at least 20", "0"]),
        (["--snr", "0"], ["--snr", "> 0", "0"]),
        (["--snr", "nan"], ["--snr", "> 0", "nan"]),
        (["--degrees", "-1"], ["--degrees", "at least 0", "-1"]),
        (["--pixels", "inf"], ["--pixels", "inf"]),
        (["--device", "nonsense"], ["--device", "'nonsense'"]),
    ],
)
def test_bad_options_are_named(arguments, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["demo", *arguments]) == 2
    message = capsys.readouterr().err
    assert all(word in message for word in words)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", demo.NEEDS)
def test_missing_package_names_the_extra(name, tmp_path, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n, *rest: None if n == name else find(n, *rest))
    monkeypatch.chdir(tmp_path)
    assert main(["demo"]) == 2
    message = capsys.readouterr().err
    assert name in message and "torch-projectors[demo]" in message


def test_existing_folder_is_kept_before_any_work(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    for options in ([], ["--overwrite"]):
        assert main(["demo", "-o", str(tmp_path / "mine"), *options]) == 2
        assert str(tmp_path / "mine") in capsys.readouterr().err
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "all of it"
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_unwritable_place_is_named(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "file", tmp_path / "file" / "below"):
        assert main(["demo", "-o", str(place)]) == 2
        assert str(place) in capsys.readouterr().err
    assert (tmp_path / "file").read_text() == ""


def test_interrupt_leaves_nothing(tmp_path):
    command = [sys.executable, "-m", "torch_projectors", "demo", "-o", str(tmp_path / "out")]
    flags = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP} if os.name == "nt" else {}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **flags)
    deadline = time.monotonic() + 120
    while not list(tmp_path.iterdir()):  # the temporary folder shows that work has begun
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal.CTRL_BREAK_EVENT if os.name == "nt" else signal.SIGINT)
    _, message = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in message and "Traceback" not in message
    assert not list(tmp_path.iterdir())


def test_module_runs_as_a_command(tmp_path):
    finished = run("--help", cwd=tmp_path)
    assert finished.returncode == 0 and "example:" in finished.stdout
    assert run("--nonsense", cwd=tmp_path).returncode == 2


class TestNewFolder:
    def fill(self, path, text="new", **options):
        with new_folder(path, "marker", **options) as folder:
            (folder / "marker").write_text(text)

    def test_appears_at_the_end(self, tmp_path):
        with new_folder(tmp_path / "a", "marker") as folder:
            (folder / "marker").write_text("new")
            assert not (tmp_path / "a").exists()
        assert (tmp_path / "a" / "marker").read_text() == "new"
        assert list(tmp_path.iterdir()) == [tmp_path / "a"]

    def test_does_not_appear_if_the_block_raises(self, tmp_path):
        with pytest.raises(ZeroDivisionError), new_folder(tmp_path / "a", "marker") as folder:
            (folder / "marker").write_text(str(1 / 0))
        assert not list(tmp_path.iterdir())

    def test_replaces_only_its_own(self, tmp_path):
        self.fill(tmp_path / "a", "old")
        with pytest.raises(OutputError, match="--overwrite"):
            self.fill(tmp_path / "a")
        self.fill(tmp_path / "a", overwrite=True)
        assert (tmp_path / "a" / "marker").read_text() == "new"
        (tmp_path / "a" / "marker").rename(tmp_path / "a" / "other")
        with pytest.raises(OutputError, match="something else"):
            self.fill(tmp_path / "a", overwrite=True)
        assert list(tmp_path.iterdir()) == [tmp_path / "a"]

    def test_fills_an_empty_folder(self, tmp_path):
        (tmp_path / "a").mkdir()
        self.fill(tmp_path / "a")
        assert (tmp_path / "a" / "marker").exists()

    @pytest.mark.skipif(os.name == "nt", reason="permissions as POSIX has them")
    def test_has_the_permissions_of_any_new_folder(self, tmp_path):
        self.fill(tmp_path / "a")
        (tmp_path / "b").mkdir()
        assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode

    def test_is_not_lost_where_one_appears_meanwhile(self, tmp_path):
        with pytest.raises(OutputError, match="exists"), new_folder(tmp_path / "a", "marker"):
            (tmp_path / "a").mkdir()
            (tmp_path / "a" / "theirs").write_text("")
        assert [path.name for path in Path(tmp_path / "a").iterdir()] == ["theirs"]
