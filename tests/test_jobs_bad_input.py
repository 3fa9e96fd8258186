"""What a user may get wrong, or a machine lack, ends a command with one line, and leaves files as they were."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import mrcfile
import pytest
import starfile
import torch
from particles import write_data

from torch_projectors import __main__, outputs
from torch_projectors.__main__ import main
from torch_projectors.extras import EXTRAS
from torch_projectors.files import Particles, StackWriter, read_map, write_map
from torch_projectors.insertion import Insertion
from torch_projectors.jobs import fsc, memory, plots, project, reconstruct, record
from torch_projectors.jobs.batches import Source

COUNT, BOX, PIXEL_SIZE = 60, 24, 2.0


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_data(folder, COUNT, BOX, pixel_size=PIXEL_SIZE, defocus=(8000.0, 12000.0))
    return folder


@pytest.fixture
def folder(original, tmp_path, monkeypatch):
    """The current folder, with a copy of the data."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def contents(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in sorted(folder.rglob("*"))}


@pytest.fixture
def refused(folder, capsys):
    """Runs a command that has to fail, with a last line that has all of the parts, and nothing else changed."""

    def run(command, *parts, kept=()):
        command = command.split()
        before = contents(folder)
        capsys.readouterr()
        assert main(command) == 2
        lines = capsys.readouterr().err.splitlines()
        assert [line for line in lines if line.startswith(f"{command[0]}: ")] == lines[-1:]
        for part in parts:
            assert part in lines[-1]
        after = contents(folder)
        assert {path.name for path in set(after) - set(before) if path.suffix != ".pt"} == set(kept)
        assert all(after[path] == content for path, content in before.items())

    return run


@pytest.fixture
def undrawn(monkeypatch):
    """Pictures take longer than all the rest."""
    for name in ("draw_fsc", "draw_refinement"):
        monkeypatch.setattr(plots, name, lambda path, *rest: path.touch())


@pytest.fixture
def edit(folder):
    """Changes the STAR file by a function of its tables, or one of its columns."""

    def change(function=None, **columns):
        tables = starfile.read(folder / "images.star")
        for name, values in columns.items():
            tables["particles"][name] = values
        if function is not None:
            function(tables)
        starfile.write(tables, folder / "images.star")

    return change


def replaced(column, row, value):
    """What puts a value into a row of a column of particles."""

    def change(tables):
        values = tables["particles"][column].astype(object)
        values[row] = value
        tables["particles"][column] = values

    return change


def dropped(table, column):
    return lambda tables: tables.update({table: tables[table].drop(columns=column)})


PROJECT = "project map.mrc -o new.mrcs --count 10"
STAR = "project map.mrc --star images.star -o new.mrcs"
RECONSTRUCT = "reconstruct images.star -o new.mrc --oversampling 1"
FSC = "fsc map.mrc map.mrc"
REFINE = "refine images.star --map map.mrc -o new.star --degrees 1 --pixels 1"
JOBS = [PROJECT, RECONSTRUCT, REFINE, f"{FSC} -o new.png"]
# What is left of a job that fails while it writes its results.
KEPT = {RECONSTRUCT: ["new.mrc.partial"], REFINE: ["new.star.partial"]}


class TestOptions:
    @pytest.mark.parametrize("command", [*__main__.JOBS, "info", "demo", "verify"])
    def test_help_has_an_example_and_every_option(self, command, capsys):
        with pytest.raises(SystemExit) as stop:
            main([command, "--help"])
        text = capsys.readouterr().out
        assert stop.value.code == 0
        assert "example" in text and f"torch-projectors {command} " in text
        assert command in ("info", "demo", "verify") or "--overwrite" in text

    @pytest.mark.parametrize(
        ("command", "part"),
        [
            ("", "COMMAND"),
            ("nonsense", "nonsense"),
            ("project map.mrc", "-o"),
            ("reconstruct -o new.mrc", "STAR"),
            ("fsc map.mrc", "OTHER"),
            ("info --nonsense", "--nonsense"),
            *((f"{job} --nonsense", "--nonsense") for job in JOBS),
            (f"{PROJECT} --count many", "--count"),
            (f"{PROJECT} --defocus 1000", "--defocus"),
            (f"{RECONSTRUCT} --policy best", "radial"),
            (f"{RECONSTRUCT} --interpolation best", "cubic"),
        ],
    )
    def test_command_lines_that_are_none(self, folder, capsys, command, part):
        before = contents(folder)
        with pytest.raises(SystemExit) as stop:
            main(command.split())
        assert stop.value.code == 2 and part in capsys.readouterr().err
        assert contents(folder) == before

    @pytest.mark.parametrize(
        ("command", "parts"),
        [
            (f"{PROJECT} --count 0", ("--count", "at least 1", "got 0")),
            (f"{PROJECT} --shifts -1", ("--shifts", ">= 0", "got -1")),
            (f"{PROJECT} --snr 0", ("--snr", "> 0", "got 0")),
            (f"{PROJECT} --snr nan", ("--snr", "got nan")),
            (f"{PROJECT} --box 4", ("--box", "8 to 24", "got 4")),
            (f"{PROJECT} --box 100", ("--box", "8 to 24", "got 100")),
            (f"{PROJECT} --pixel-size 0", ("pixel size", "--pixel-size")),
            (f"{PROJECT} --oversampling 0.5", ("--oversampling", "at least 1", "got 0.5")),
            (f"{PROJECT} --oversampling nan", ("--oversampling", "got nan")),
            (f"{PROJECT} --oversampling 1.01", ("--oversampling", "24", "got 1.01")),
            (f"{PROJECT} --ctf", ("--ctf", "--star", "--defocus")),
            (f"{PROJECT} --defocus 2000 1000", ("--defocus", "got 2000 1000")),
            (f"{PROJECT} --defocus 1000 inf", ("--defocus", "inf")),
            (f"{PROJECT} --defocus 1000 2000 --voltage 0", ("--voltage", "got 0")),
            (f"{PROJECT} --defocus 1000 2000 --amplitude-contrast 2", ("--amplitude-contrast", "got 2")),
            (f"{PROJECT} --device nowhere", ("--device", "'nowhere'")),
            (f"{STAR} --defocus 1000 2000", ("--defocus", "--star", "--ctf")),
            (f"{RECONSTRUCT} --oversampling 0.5", ("--oversampling", "1 to 3", "got 0.5")),
            (f"{RECONSTRUCT} --oversampling nan", ("--oversampling", "got nan")),
            (f"{RECONSTRUCT} --box 4", ("--box", "8 to 24", "got 4")),
            (f"{RECONSTRUCT} --box 25", ("--box", "8 to 24", "got 25")),
            (f"{RECONSTRUCT} --pixel-size 0", ("pixel size > 0", "got 0")),
            (f"{RECONSTRUCT} --point-group X1", ("point", "X1")),
            (f"{RECONSTRUCT} --noise-by rlnNothing", ("rlnNothing", "rlnAngleRot")),
            (f"{RECONSTRUCT} --checkpoint-minutes 0", ("--checkpoint-minutes", "> 0", "got 0")),
            (f"{RECONSTRUCT} --device nowhere", ("--device", "'nowhere'")),
            (f"{RECONSTRUCT} --device meta", ("--device", "'meta'")),
            (f"{REFINE} --degrees -1", ("--degrees", "> 0", "got -1")),
            (f"{REFINE} --prior-pixels inf", ("--prior-pixels", "> 0", "got inf")),
            (f"{REFINE} --resolution 1", ("--resolution", "4", "12 Å", "got 1")),
            (f"{REFINE} --oversampling 1.01", ("--oversampling", "24", "got 1.01")),
            (f"{REFINE} --checkpoint-minutes -1", ("--checkpoint-minutes", "> 0", "got -1")),
            (f"{REFINE} --noise-by rlnNothing", ("rlnNothing", "rlnAngleRot")),
            (f"{PROJECT} --seed -1", ("--seed", "from 0", "got -1")),
            (f"{RECONSTRUCT} --seed 99999999999999999999", ("--seed", "2^63")),
            (f"{FSC} --seed -1", ("--seed", "got -1")),
            (f"{FSC} --device nowhere", ("--device", "'nowhere'")),
            (f"{FSC} --pixel-size 0", ("--pixel-size", "got 0")),
        ],
    )
    def test_values_that_cannot_be(self, refused, command, parts):
        refused(command, *parts)


class TestMaps:
    @pytest.mark.parametrize(
        ("command", "path"),
        [
            ("project bad.mrc -o new.mrcs", "bad.mrc"),
            ("fsc map.mrc bad.mrc -o new.png", "bad.mrc"),
            (f"{FSC} --mask bad.mrc", "bad.mrc"),
            (f"{RECONSTRUCT} --mask bad.mrc", "bad.mrc"),
            ("info bad.mrc", "bad.mrc"),
        ],
    )
    def test_files_that_hold_none(self, refused, folder, command, path):
        refused(command, path, "no such file")
        (folder / path).write_text("some text " * 200)
        refused(command, path, "expected an MRC file")
        (folder / path).write_bytes((folder / "map.mrc").read_bytes()[:-4])
        refused(command, path, "cut short", "24 x 24 x 24")
        if command.split()[0] != "info":
            values = torch.full((BOX,) * 3, float("inf")).numpy().tobytes()
            (folder / path).write_bytes((folder / "map.mrc").read_bytes()[: -len(values)] + values)
            refused(command, path, "finite", str(BOX**3))

    def test_a_map_that_has_no_pixel_size_or_equal_axes(self, refused, folder):
        write_map(folder / "bad.mrc", torch.rand(BOX, BOX, BOX), 0.0)
        refused("project bad.mrc -o new.mrcs", "bad.mrc", "--pixel-size")
        write_map(folder / "bad.mrc", torch.rand(8, 10, 12), 1.0)
        refused("project bad.mrc -o new.mrcs", "equal axes", "12 x 10 x 8")

    def test_maps_that_differ_in_box_or_sampling(self, refused, folder):
        write_map(folder / "other.mrc", torch.rand(BOX, BOX, BOX), 1.5 * PIXEL_SIZE)
        refused("fsc map.mrc other.mrc", "same pixel size", "2 and 3", "--pixel-size")
        write_map(folder / "other.mrc", torch.rand(BOX, BOX, 20), PIXEL_SIZE)
        refused("fsc map.mrc other.mrc", "same box", "24 x 24 x 24 and 20 x 24 x 24")
        refused(f"{FSC} --mask other.mrc", "other.mrc", "24 x 24 x 24", "20 x 24 x 24")
        refused(f"{RECONSTRUCT} --mask other.mrc", "other.mrc", "24")

    def test_a_map_of_other_sampling_than_the_images(self, refused, folder):
        write_map(folder / "map.mrc", torch.rand(20, 20, 20), PIXEL_SIZE)
        refused(REFINE, "map.mrc", "24 pixels", "got 20 x 20 x 20")
        write_map(folder / "map.mrc", torch.rand(BOX, BOX, BOX), 2.5)
        refused(REFINE, "map.mrc", "2 Å, got 2.5 Å", "--pixel-size")

    def test_a_map_without_anything_in_it(self, refused, folder):
        write_map(folder / "map.mrc", torch.full((BOX, BOX, BOX), 0.5), PIXEL_SIZE)
        refused(REFINE, "map.mrc", "something in it", "0.5 everywhere")

    def test_maps_without_anything_in_them(self, refused, folder):
        write_map(folder / "flat.mrc", torch.ones(BOX, BOX, BOX), PIXEL_SIZE)
        refused("fsc map.mrc flat.mrc", "flat.mrc", "1 everywhere")

    def test_masks_of_other_values(self, refused, folder):
        for value, got in ((2.0, "2"), (0.0, "0")):
            write_map(folder / "mask.mrc", torch.full((BOX,) * 3, value), PIXEL_SIZE)
            for command in (FSC, RECONSTRUCT):
                refused(f"{command} --mask mask.mrc", "mask.mrc", "0 to 1", f"got {got} to {got}")


class TestTables:
    @pytest.mark.parametrize("command", [STAR, RECONSTRUCT, REFINE, "info images.star"])
    def test_files_that_hold_none(self, refused, folder, command):
        (folder / "images.star").write_text("hello\n")
        refused(command, "images.star", "no table")
        (folder / "images.star").unlink()
        refused(command, "images.star", "no such file")

    @pytest.mark.parametrize("command", [STAR, RECONSTRUCT, "info images.star"])
    def test_no_particles(self, refused, folder, edit, command):
        edit(lambda tables: tables.update(particles=tables["particles"].iloc[:0]))
        refused(command, "images.star", "without rows")

    @pytest.mark.parametrize(
        ("command", "table", "column", "parts"),
        [
            (STAR, "particles", "rlnAngleRot", ("the orientations",)),
            (STAR, "particles", "rlnAngleTilt", ("the orientations", "it has rlnAngleRot")),
            (f"{STAR} --ctf", "optics", "rlnVoltage", ("--no-ctf", "data_optics: rlnOpticsGroup")),
            (RECONSTRUCT, "particles", "rlnImageName", ("names the images", "rlnAngleRot")),
            (RECONSTRUCT, "particles", "rlnAnglePsi", ("the orientations", "it has rlnAngleRot")),
            (RECONSTRUCT, "particles", "rlnDefocusU", ("transfer function", "--no-ctf")),
            (REFINE, "particles", "rlnAnglePsi", ("the orientations", "it has rlnAngleRot")),
            (REFINE, "particles", "rlnDefocusU", ("transfer function", "--no-ctf")),
            (RECONSTRUCT, "particles", "rlnOpticsGroup", ("in both tables",)),
            ("info images.star", "particles", "rlnImageName", ("names the images",)),
        ],
    )
    def test_missing_columns_and_what_would_do(self, refused, edit, command, table, column, parts):
        edit(dropped(table, column))
        refused(command, f"no column {column}", *parts)

    @pytest.mark.parametrize(
        ("command", "change", "parts"),
        [
            (STAR, replaced("rlnAngleRot", 3, "much"), ("rlnAngleRot", "got much in row 4")),
            (STAR, replaced("rlnOriginXAngst", 3, "nan"), ("rlnOriginXAngst", "got nan in row 4")),
            (RECONSTRUCT, replaced("rlnAngleTilt", 0, "nan"), ("rlnAngleTilt", "got nan in row 1")),
            (RECONSTRUCT, replaced("rlnDefocusV", 9, "?"), ("rlnDefocusV", "got ? in row 10")),
            (RECONSTRUCT, replaced("rlnOpticsGroup", 5, 7), ("rlnOpticsGroup", "got 7 in row 6")),
            (RECONSTRUCT, replaced("rlnImageName", 5, "x@images.mrcs"), ("x@images.mrcs", "row 6")),
            ("info images.star", replaced("rlnImageName", 5, "0@images.mrcs"), ("0@images.mrcs", "row 6")),
        ],
    )
    def test_values_that_cannot_be(self, refused, edit, command, change, parts):
        edit(change)
        refused(command, "images.star", *parts)

    def test_pixel_sizes_that_differ(self, refused, edit):
        def two_groups(tables):
            optics = tables["optics"]
            tables["optics"] = optics.loc[[0, 0]].assign(rlnOpticsGroup=[1, 2], rlnImagePixelSize=[2.0, 2.5])
            tables["particles"]["rlnOpticsGroup"] = [1, 2] * (COUNT // 2)

        edit(two_groups)
        for command in (STAR, RECONSTRUCT, "info images.star"):
            refused(command, "one pixel size", "2, 2.5")

    def test_halves_of_which_one_is_empty(self, refused, edit):
        edit(rlnRandomSubset=1)
        refused(RECONSTRUCT, "halves", "--policy")

    def test_poses_of_angstrom_origins_without_a_pixel_size_are_for_the_images_that_are_made(
        self, folder, edit
    ):
        edit(dropped("optics", "rlnImagePixelSize"))
        assert main(STAR.split()) == 0
        made, given = (starfile.read(name)["particles"] for name in ("new.star", "images.star"))
        assert made["rlnOriginXAngst"].tolist() == pytest.approx(given["rlnOriginXAngst"].tolist(), abs=1e-6)


class TestImages:
    """Of each problem: without --skip-bad an error, and with it a map of what is left."""

    @pytest.fixture
    def skipped(self, refused, folder, undrawn):
        def run(bad, *parts, of=COUNT):
            refused(
                RECONSTRUCT,
                "images.star" if bad is None else f"{bad} of {of} particles",
                *parts,
                "--skip-bad",
            )
            assert main([*RECONSTRUCT.split(), "--skip-bad"]) == 0
            made = json.loads((folder / "new.json").read_text())
            assert made["images"]["left_out"] == bad and made["images"]["in_map"] == of - bad
            assert len(made["left_out_first"]) == min(bad, 20)
            assert torch.isfinite(read_map(folder / "new.mrc")[0]).all()
            assert main(["info", "images.star"]) == 0

        return run

    def other_stack(self, folder, edit, rows, shape=(BOX, BOX)):
        with StackWriter(folder / "other.mrcs", COUNT, shape, PIXEL_SIZE) as stack:
            stack.append(torch.rand(COUNT, *shape, generator=torch.Generator().manual_seed(0)))

        def rename(tables):
            names = tables["particles"]["rlnImageName"].tolist()
            for row in rows:
                names[row] = names[row].replace("images.mrcs", "other.mrcs")
            tables["particles"]["rlnImageName"] = names

        edit(rename)

    def test_that_are_not_there(self, skipped, folder, edit):
        self.other_stack(folder, edit, [3, 4])
        (folder / "other.mrcs").unlink()
        skipped(2, "other.mrcs: there is no such file")

    def test_of_a_stack_that_is_cut_short(self, skipped, folder, edit):
        self.other_stack(folder, edit, [3, 4])
        (folder / "other.mrcs").write_bytes((folder / "other.mrcs").read_bytes()[:-1])
        skipped(2, "other.mrcs", "cut short")

    def test_of_another_size(self, skipped, folder, edit):
        self.other_stack(folder, edit, [3, 4], (BOX, 20))
        skipped(2, "other.mrcs", "expected images of 24 x 24 pixels", "got 20 x 24")

    def test_beyond_the_end_of_their_stack(self, skipped, edit):
        edit(replaced("rlnImageName", 7, "61@images.mrcs"))
        skipped(1, "images.mrcs", "at least 61 images, got 60")

    def test_that_are_there_again(self, skipped, edit):
        edit(replaced("rlnImageName", 7, "1@images.mrcs"))
        skipped(1, "1@images.mrcs", "more than once", "--expanded")

    def test_of_which_poses_are_in_both_halves(self, refused, edit):
        edit(replaced("rlnImageName", 7, "1@images.mrcs"))
        edit(lambda tables: tables["particles"].insert(0, "rlnRandomSubset", [1] * 7 + [2] * (COUNT - 7)))
        refused(f"{RECONSTRUCT} --expanded", "one rlnRandomSubset", "1@images.mrcs")

    @pytest.mark.parametrize(("value", "part"), [(float("nan"), "not finite"), (1.0, "the same value")])
    def test_of_which_pixels_are_no_image(self, skipped, folder, value, part):
        with mrcfile.mmap(folder / "images.mrcs", "r+") as file:
            file.data[11] = value
            file.data[12] = value
        skipped(2, "000012@images.mrcs", part)

    def test_of_a_whole_piece_of_the_work(self, skipped, folder, edit, monkeypatch):
        monkeypatch.setattr(reconstruct, "MOST_IMAGES", 20)
        self.other_stack(folder, edit, range(20))
        (folder / "other.mrcs").unlink()
        with mrcfile.mmap(folder / "images.mrcs", "r+") as file:
            file.data[40:] = float("nan")
        assert main([*RECONSTRUCT.split(), "--skip-bad"]) == 0
        assert json.loads((folder / "new.json").read_text())["images"]["left_out"] == 40

    def test_of_which_none_is_left(self, refused, folder):
        (folder / "images.mrcs").unlink()
        refused(f"{RECONSTRUCT} --skip-bad", "images.mrcs", "no such file")

    @pytest.mark.parametrize("command", [RECONSTRUCT, f"{RECONSTRUCT} --policy radial", REFINE])
    def test_of_which_none_has_anything_in_it(self, refused, folder, command):
        with StackWriter(folder / "images.mrcs", COUNT, (BOX, BOX), PIXEL_SIZE) as stack:
            stack.append(torch.ones(COUNT, BOX, BOX))
        refused(f"{command} --skip-bad", "no image is left", "the same value")

    def test_that_are_not_square(self, refused, folder, edit):
        self.other_stack(folder, edit, range(COUNT), (BOX, 20))
        refused(RECONSTRUCT, "square", "20 x 24")

    def test_bad_ones_are_named_by_info(self, folder, edit, capsys):
        edit(replaced("rlnImageName", 7, "61@images.mrcs"))
        assert main(["info", "images.star", "images.mrcs", "map.mrc"]) == 0
        text = capsys.readouterr().out
        assert "1 cannot be used: " in text and "at least 61 images, got 60" in text
        assert "60 particles" in text and "24 x 24 x 60" in text and "24 x 24 x 24" in text

    def test_info_of_a_table_without_orientations(self, folder, edit, capsys):
        edit(dropped("particles", "rlnAngleTilt"))
        assert main(["info", "images.star"]) == 0
        assert "no orientations" in capsys.readouterr().out

    def test_info_of_other_files(self, refused, folder):
        (folder / "notes.txt").write_text("")
        refused("info notes.txt", "notes.txt", ".star", ".mrc")


OUTPUTS = {
    PROJECT: ("new.mrcs", "new.star", "new.json"),
    RECONSTRUCT: ("new.mrc", "new_half1.mrc", "new_half2.mrc", "new_fsc.png", "new.json"),
    REFINE: ("new.star", "new.png", "new.json"),
    f"{FSC} -o new.png": ("new.png", "new.json"),
}


class TestOutputs:
    @pytest.mark.parametrize("command", JOBS)
    def test_of_another_kind(self, refused, command):
        refused(command.replace(" -o new.", " -o new.x"), "-o", "new.x")

    @pytest.mark.parametrize("command", JOBS)
    def test_where_none_can_be(self, refused, folder, command):
        (folder / "file").write_text("")
        refused(command.replace(" -o ", " -o file/"), "cannot write", "file/new")
        refused(command.replace(" -o ", " -o file/below/"), "cannot write", "file/below/new")
        (folder / OUTPUTS[command][-1]).mkdir()
        refused(command, OUTPUTS[command][-1], "folder")

    @pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="who may write everywhere")
    @pytest.mark.parametrize("command", JOBS)
    def test_where_the_user_may_not_write(self, refused, folder, command):
        (folder / "closed").mkdir()
        (folder / "closed").chmod(0o555)
        refused(command.replace(" -o ", " -o closed/"), "cannot write", "closed/new")

    @pytest.mark.parametrize("command", JOBS)
    def test_that_exist_are_kept_unless_overwritten(self, refused, folder, command):
        for name in OUTPUTS[command]:
            (folder / name).write_text("all of it")
            refused(command, name, "exists", "--overwrite")
            (folder / name).unlink()
        for name in OUTPUTS[command]:
            (folder / name).write_text("old")
        assert main([*command.split(), "--overwrite"]) == 0
        assert all(len((folder / name).read_bytes()) > 100 for name in OUTPUTS[command])

    def test_that_are_inputs(self, refused, folder):
        shutil.copy("map.mrc", "map.mrcs")
        shutil.copy("map.mrc", "mask.png")
        refused("project map.mrcs -o map.mrcs --overwrite", "map.mrcs", "input")
        refused("project map.mrc --star images.star -o images.mrcs --overwrite", "images.star", "input")
        refused(f"{FSC} --mask mask.png -o ./mask.png --overwrite", "mask.png", "input")

    @pytest.mark.parametrize("command", JOBS)
    def test_new_folders_hold_what_came_and_nothing_else(self, folder, command):
        before = contents(folder)
        assert main(command.replace(" -o ", " -o a/b/").split()) == 0
        new = {str(path.relative_to(folder)) for path in set(contents(folder)) - set(before)}
        assert new == {"a", "a/b", *(f"a/b/{name}" for name in OUTPUTS[command])}

    @pytest.mark.parametrize("command", JOBS)
    def test_new_folders_go_with_a_run_that_fails(self, refused, undrawn, monkeypatch, command):
        monkeypatch.setattr(record, "write", full)
        kept = ["a", "b", *KEPT[command]] if command in KEPT else []
        refused(command.replace(" -o ", " -o a/b/"), "No space left on device", kept=kept)

    def test_that_are_larger_than_the_disk(self, refused, monkeypatch):
        monkeypatch.setattr(outputs.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
        gibibytes = 10**6 * BOX * BOX * 4 / 2**30
        refused(f"{PROJECT} --count 1000000", "new.mrcs", f"{gibibytes:.2f} GiB", "0.00 GiB free")

    @pytest.mark.parametrize(
        ("command", "module", "name"),
        [
            (PROJECT, StackWriter, "append"),
            (PROJECT, project, "_write_table"),
            (RECONSTRUCT, reconstruct, "write_map"),
            *((job, record, "write") for job in JOBS),
        ],
    )
    def test_that_fill_the_disk(self, refused, undrawn, monkeypatch, command, module, name):
        """What was inserted is not lost."""
        monkeypatch.setattr(module, name, full)
        kept = KEPT.get(command, [])
        refused(command, "cannot write", "new", "No space left on device", *kept, kept=kept)


def full(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


class TestMemory:
    @pytest.mark.parametrize("command", [PROJECT, RECONSTRUCT, REFINE])
    def test_that_is_too_small_for_anything(self, refused, monkeypatch, command):
        monkeypatch.setattr(memory, "available", lambda device: 2.0**20)
        refused(command, "box of 24", "GiB", "0.0 GiB are free")

    def test_that_would_do_for_less(self, refused, monkeypatch, folder):
        """What is named as fitting, fits."""
        write_map(folder / "map.mrc", torch.rand(64, 64, 64), PIXEL_SIZE)
        needed = []
        monkeypatch.setattr(memory, "available", lambda device: float("inf"))
        check = memory.check
        monkeypatch.setattr(memory, "check", lambda *a, **k: (needed.append(a[:2]), check(*a, **k)))
        command = f"{PROJECT} --oversampling 2 --box 8 --overwrite"
        assert main(command.split()) == 0
        there = needed[0][1] + 0.5 * (needed[0][0] - needed[0][1])
        monkeypatch.setattr(memory, "available", lambda device: there)
        refused(command, "--oversampling 1.5 would fit")
        assert main(command.replace("--oversampling 2", "--oversampling 1.5").split()) == 0


class TestPackages:
    @pytest.mark.parametrize(
        ("command", "package", "extra"),
        [
            (PROJECT, "mrcfile", "io"),
            (PROJECT, "starfile", "io"),
            (RECONSTRUCT, "starfile", "io"),
            (RECONSTRUCT, "matplotlib.figure", "plot"),
            (FSC, "mrcfile", "io"),
            (f"{FSC} -o new.png", "matplotlib.figure", "plot"),
            ("info map.mrc", "mrcfile", "io"),
            ("info images.star", "starfile", "io"),
        ],
    )
    def test_that_are_not_there_are_named_with_their_extra(
        self, refused, monkeypatch, command, package, extra
    ):
        monkeypatch.setitem(sys.modules, package, None)
        refused(command, package.partition(".")[0], f"pip install 'torch-projectors[{extra}]'")

    def test_are_in_the_extras_that_are_named(self):
        project_file = (Path(__file__).parents[1] / "pyproject.toml").read_text(encoding="utf-8")
        for package, extra in EXTRAS.items():
            listed = re.search(rf"^{extra} = (.*)$", project_file, re.MULTILINE)[1]
            assert re.search(rf'"{package}\b', listed) or (package == "pandas" and "starfile" in listed)


class TestInterrupts:
    """Ctrl-C at a moment is a signal that a function sends when it is called for the n-th time."""

    @pytest.fixture
    def stopped(self, folder, undrawn, monkeypatch, capsys):
        """Runs a command, stops it, and gives its message; nothing but `kept` is new."""
        monkeypatch.setattr(reconstruct, "MOST_IMAGES", 20)

        def run(command, owner, name, call=1, kept=(), number=signal.SIGINT):
            original, calls = getattr(owner, name), []

            def stopping(*arguments, **options):
                calls.append(name)
                if len(calls) == call:
                    signal.raise_signal(number)
                return original(*arguments, **options)

            before = contents(folder)
            with monkeypatch.context() as patch:
                patch.setattr(owner, name, stopping)
                patch.setattr(sys, "argv", ["torch-projectors", *command.split()])
                assert __main__.console() == 130
                assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
            after = contents(folder)
            assert all(after[path] == content for path, content in before.items())
            assert {path.name for path in set(after) - set(before) if path.suffix != ".pt"} == set(kept)
            return capsys.readouterr().err.splitlines()[-1]

        # A shell that runs the tests in the background has them ignore it.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        yield run
        signal.signal(signal.SIGINT, before)

    @pytest.mark.parametrize(
        ("command", "owner", "name", "call"),
        [
            (PROJECT, project, "read_map", 1),
            (PROJECT, project.realspace, "prepare", 1),
            (PROJECT, StackWriter, "append", 1),
            (RECONSTRUCT, Particles, "problems", 1),
            (f"{RECONSTRUCT} --noise-by rlnOpticsGroup", reconstruct.noise, "by_group", 1),
            (f"{FSC} -o new.png", fsc, "read_map", 2),
            (f"{FSC} -o new.png", record, "write", 1),
        ],
    )
    def test_before_anything_is_kept(self, stopped, command, owner, name, call):
        assert "no result was written" in stopped(command, owner, name, call)

    @pytest.mark.parametrize(
        ("owner", "name", "call"),
        [
            (Source, "ctf", 1),
            (Particles, "images", 2),
            (Insertion, "add", 1),
            (Insertion, "add", 4),
            (reconstruct, "write_map", 2),
        ],
    )
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_then_resumed_is_the_same_to_the_last_bit(self, stopped, folder, owner, name, call, number):
        command = RECONSTRUCT
        assert main(command.split()) == 0
        names = ("new.mrc", "new_half1.mrc", "new_half2.mrc")
        whole = [read_map(path)[0] for path in names]
        for path in folder.glob("new*"):
            path.unlink()
        message = stopped(command, owner, name, call, ["new.mrc.partial"], number)
        assert "interrupted" in message and "new.mrc.partial" in message and "--resume" in message
        assert main([*command.split(), "--resume"]) == 0
        assert all(torch.equal(read_map(path)[0], expected) for path, expected in zip(names, whole))
        assert not (folder / "new.mrc.partial").exists()

    def test_what_was_kept_is_for_the_same_options_and_table(self, stopped, refused, edit):
        stopped(RECONSTRUCT, Insertion, "add", 1, ["new.mrc.partial"])
        refused(RECONSTRUCT, "new.mrc.partial", "--resume")
        refused(f"{RECONSTRUCT} --resume --seed 3", "other options", "new.mrc.partial")
        edit(replaced("rlnAngleRot", 0, 1.0))
        refused(f"{RECONSTRUCT} --resume", "other files", "new.mrc.partial")

    def test_what_was_kept_and_cannot_be_read(self, stopped, refused, folder):
        stopped(RECONSTRUCT, Insertion, "add", 1, ["new.mrc.partial"])
        (kept,) = (folder / "new.mrc.partial").iterdir()
        kept.write_bytes(kept.read_bytes()[:1000])
        refused(f"{RECONSTRUCT} --resume", kept.name, "interrupted run")

    def test_what_was_kept_goes_with_overwrite(self, stopped, folder, undrawn):
        stopped(RECONSTRUCT, Insertion, "add", 1, ["new.mrc.partial"])
        assert main([*RECONSTRUCT.split(), "--overwrite"]) == 0
        assert json.loads((folder / "new.json").read_text())["images"]["in_map"] == COUNT
        assert not (folder / "new.mrc.partial").exists()

    def test_images_that_changed_are_not_added_to_what_was_kept(self, stopped, refused, folder):
        stopped(RECONSTRUCT, Insertion, "add", 1, ["new.mrc.partial"])
        os.utime(folder / "images.mrcs", ns=(0, 0))
        refused(f"{RECONSTRUCT} --resume", "other files")

    def test_with_nothing_to_resume(self, folder, undrawn, capsys):
        assert main([*RECONSTRUCT.split(), "--resume"]) == 0
        assert "from the start" in capsys.readouterr().err

    def test_with_no_room_for_what_is_kept(self, refused, monkeypatch):
        monkeypatch.setattr(torch, "save", full)
        refused(f"{RECONSTRUCT} --checkpoint-minutes 1e-9", "new.mrc.partial", "No space left on device")

    @pytest.mark.skipif(os.name == "nt", reason="signals of other processes as POSIX has them")
    def test_of_another_process(self, folder):
        """As a terminal sends it, while images are inserted."""
        script = (
            "import sys, time\n"
            "from torch_projectors import __main__\n"
            "from torch_projectors.insertion import Insertion\n"
            "from torch_projectors.jobs import reconstruct\n"
            "reconstruct.MOST_IMAGES, add = 16, Insertion.add\n"
            "Insertion.add = lambda *a, **k: (add(*a, **k), time.sleep(0.5))\n"
            "sys.exit(__main__.console())"
        )
        command = [sys.executable, "-c", script, *RECONSTRUCT.split(), "--checkpoint-minutes", "1e-9"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while not list(folder.glob("new.mrc.partial/*.pt")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(signal.SIGINT)
        _, message = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "--resume" in message.splitlines()[-1] and "Traceback" not in message
        assert [path.name for path in folder.glob("new*")] == ["new.mrc.partial"]
        assert Path("new.mrc.partial").is_dir()
