"""Maps, stacks and tables are read as others write them, and written as others read them; bad ones are explained."""

from __future__ import annotations

import gzip
import re
import shutil
import sys
import warnings

import mrcfile
import numpy as np
import pandas
import pytest
import starfile
import torch

from torch_projectors import conventions
from torch_projectors.errors import InputError
from torch_projectors.files import Particles, Stacks, StackWriter, read_map, read_mask, write_map
from torch_projectors.files.mrc import read_header

MODES = [np.int8, np.int16, np.uint16, np.float16, np.float32]


def values_of(dtype, *shape):
    """Values that every mode holds exactly."""
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype) % 100


def fails(call, *parts):
    """The call raises an InputError, of one line that has all of the parts."""
    with pytest.raises(InputError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


class TestMaps:
    def test_round_trip(self, tmp_path):
        density = torch.randn(4, 5, 6, generator=torch.Generator().manual_seed(0))
        write_map(tmp_path / "a.mrc", density, 1.25, ["made by a test", "in two lines"])
        again, pixel_size = read_map(tmp_path / "a.mrc")
        assert torch.equal(again, density) and pixel_size == 1.25
        assert [x.strip() for x in read_header(tmp_path / "a.mrc").labels[1:]] == [
            "made by a test",
            "in two lines",
        ]
        assert mrcfile.validate(tmp_path / "a.mrc")
        with mrcfile.open(tmp_path / "a.mrc") as file:
            assert np.array_equal(file.data, density.numpy()) and file.is_volume()
            assert file.voxel_size.tolist() == (1.25, 1.25, 1.25)

    def test_labels_are_cut_to_what_a_header_holds(self, tmp_path):
        write_map(tmp_path / "a.mrc", torch.ones(2, 2, 2), 1.0, ["é\n" + "x" * 100] * 12)
        labels = read_header(tmp_path / "a.mrc").labels
        assert len(labels) == 10 and labels[1] == "??" + "x" * 78

    @pytest.mark.parametrize("byte_order", ["<", ">"])
    @pytest.mark.parametrize("dtype", MODES)
    def test_every_mode_and_byte_order(self, tmp_path, dtype, byte_order):
        values = values_of(dtype, 3, 4, 5)
        with mrcfile.new(tmp_path / "a.mrc") as file:
            file.set_data(values.astype(values.dtype.newbyteorder(byte_order)))
            file.set_volume()
            file.voxel_size = 2.5
        stamp = (tmp_path / "a.mrc").read_bytes()[212]
        assert stamp == (0x44 if byte_order == "<" or values.itemsize == 1 else 0x11)
        density, pixel_size = read_map(tmp_path / "a.mrc")
        assert density.dtype == torch.float32 and pixel_size == 2.5
        assert np.array_equal(density.numpy(), values.astype(np.float32))

    def test_extended_header_is_passed_over(self, tmp_path):
        values = values_of(np.float32, 3, 4, 5)
        with mrcfile.new(tmp_path / "a.mrc", values) as file:
            file.set_extended_header(np.frombuffer(bytes(range(160)), "V160"))
        assert read_header(tmp_path / "a.mrc").offset == 1184
        assert np.array_equal(read_map(tmp_path / "a.mrc")[0].numpy(), values)

    @pytest.mark.parametrize(
        "axes", [(1, 2, 3), (1, 3, 2), (2, 1, 3), (2, 3, 1), (3, 1, 2), (3, 2, 1), (0, 0, 0)]
    )
    def test_axes_in_any_order_become_z_y_x(self, tmp_path, axes):
        values = values_of(np.float32, 3, 4, 5)
        with mrcfile.new(tmp_path / "a.mrc", values) as file:
            file.header.mapc, file.header.mapr, file.header.maps = axes
        columns, rows, sections = axes if any(axes) else (1, 2, 3)
        density = read_map(tmp_path / "a.mrc")[0]
        for position in np.ndindex(3, 4, 5):
            along = dict(zip((sections, rows, columns), position))
            assert density[along[3], along[2], along[1]] == values[position]

    @pytest.mark.parametrize("size", [0.0, float("nan"), float("inf"), -1.0])
    def test_pixel_size_that_is_none_is_zero(self, tmp_path, size):
        write_map(tmp_path / "a.mrc", torch.ones(2, 2, 2), 1.0)
        with mrcfile.open(tmp_path / "a.mrc", "r+") as file:
            file.header.cella.x = size
        assert read_map(tmp_path / "a.mrc")[1] == 0

    def test_bad_files(self, tmp_path):
        path = tmp_path / "a.mrc"
        fails(lambda: read_map(path), str(path), "no such file")
        path.write_text("this is no map")
        fails(lambda: read_map(path), str(path), "expected an MRC file")
        path.write_text("this is no map either, " * 100)
        fails(lambda: read_map(path), str(path), "expected an MRC file")
        write_map(path, torch.ones(8, 8, 8), 1.0)
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        fails(lambda: read_map(path), str(path), "cut short", "8 x 8 x 8", "3072 bytes", "3071")
        path.write_bytes(whole[:12] + bytes([99]) + whole[13:])
        fails(lambda: read_map(path), str(path), "known mode, got mode 99")
        for length in (0, 1000, 1024):
            path.write_bytes(whole[:length])
            fails(lambda: read_map(path), str(path))
        path.write_bytes(gzip.compress(whole * 10))
        fails(lambda: read_map(path), str(path), "compressed")
        path.write_bytes(gzip.compress(whole)[:100])
        fails(lambda: read_map(path), str(path))

    def test_values_that_are_none(self, tmp_path):
        density = torch.ones(2, 2, 2)
        density[0, 0] = torch.tensor([float("nan"), float("inf")])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of mrcfile
            write_map(tmp_path / "a.mrc", density, 1.0)
        fails(lambda: read_map(tmp_path / "a.mrc"), "finite", "2 that are not")
        with mrcfile.new(tmp_path / "b.mrc", np.ones((2, 2, 2), np.complex64)):
            pass
        fails(lambda: read_map(tmp_path / "b.mrc"), "real", "mode 4")

    def test_a_size_beyond_all_bytes_is_no_map(self, tmp_path):
        write_map(tmp_path / "a.mrc", torch.ones(2, 2, 2), 1.0)
        raw = bytearray((tmp_path / "a.mrc").read_bytes())
        raw[:12] = np.array([2**31 - 1] * 3, "<i4").tobytes()
        (tmp_path / "a.mrc").write_bytes(raw)
        fails(lambda: read_map(tmp_path / "a.mrc"), "cut short")

    def test_an_axis_twice_is_no_order(self, tmp_path):
        write_map(tmp_path / "a.mrc", torch.ones(2, 2, 2), 1.0)
        with mrcfile.open(tmp_path / "a.mrc", "r+") as file:
            file.header.mapr = 1
        fails(lambda: read_map(tmp_path / "a.mrc"), "axes", "(1, 1, 3)")

    def test_masks_are_of_the_shape_and_from_zero_to_one(self, tmp_path):
        mask = torch.linspace(0, 1, 24).reshape(2, 3, 4)
        write_map(tmp_path / "a.mrc", mask, 1.0)
        assert torch.equal(read_mask(tmp_path / "a.mrc", (2, 3, 4)), mask)
        fails(
            lambda: read_mask(tmp_path / "a.mrc", (4, 4, 4)), "expected a mask of 4 x 4 x 4", "got 4 x 3 x 2"
        )
        for wrong in (2 * mask, mask - 1, 0 * mask):
            write_map(tmp_path / "a.mrc", wrong, 1.0)
            fails(lambda: read_mask(tmp_path / "a.mrc", (2, 3, 4)), "0 to 1", f"{wrong.max():g}")


class TestStacks:
    @pytest.fixture
    def two(self, tmp_path):
        """Paths of stacks of 7 and 5 images of 6 x 4 pixels, and all images, those of the first stack first."""
        images = torch.randn(12, 4, 6, generator=torch.Generator().manual_seed(0))
        for name, part in (("a", images[:7]), ("b", images[7:])):
            with StackWriter(tmp_path / f"{name}.mrcs", len(part), (4, 6), 1.5, ["a label"]) as stack:
                for piece in part.split(3):
                    stack.append(piece)
        return [tmp_path / "a.mrcs", tmp_path / "b.mrcs"], images

    def test_round_trip(self, two):
        paths, images = two
        for path, part in zip(paths, (images[:7], images[7:])):
            header = read_header(path)
            assert header.pixel_size == 1.5 and header.labels[-1].strip() == "a label"
            assert mrcfile.validate(path)
            with mrcfile.open(path) as file:
                assert file.is_image_stack() and np.array_equal(file.data, part.numpy())
                assert file.voxel_size.x == file.voxel_size.y == 1.5
                # Sums over 7 x 24 values in double precision, rounded to single.
                for name, value in (("dmin", part.min()), ("dmax", part.max()), ("dmean", part.mean())):
                    assert file.header[name] == pytest.approx(float(value), rel=1e-6, abs=1e-6)
                assert file.header.rms == pytest.approx(float(part.std(correction=0)), rel=1e-6)

    def test_images_in_any_order_are_those_read_one_by_one(self, two):
        paths, images = two
        stacks = Stacks(paths)
        generator = torch.Generator().manual_seed(1)
        for order in (
            torch.arange(12),
            torch.arange(11, -1, -1),
            torch.tensor([0, 1, 2, 7, 8, 3, 4, 4, 5, 5, 6, 11]),
            torch.randint(12, (40,), generator=generator),
            torch.tensor([9]),
        ):
            files, places = (order >= 7).long(), torch.where(order >= 7, order - 7, order)
            assert torch.equal(stacks.read(files, places), images[order])
        none = torch.tensor([], dtype=torch.int64)
        assert len(stacks.read(none, none)) == 0

    @pytest.mark.parametrize("dtype", MODES)
    def test_every_mode_is_read_as_single_precision(self, tmp_path, dtype):
        values = values_of(dtype, 3, 4, 5)
        with mrcfile.new(tmp_path / "a.mrcs") as file:
            file.set_data(values.astype(values.dtype.newbyteorder(">")))
            file.set_extended_header(np.frombuffer(bytes(80), "V80"))
        read = Stacks([tmp_path / "a.mrcs"]).read(torch.tensor([0, 0]), torch.tensor([2, 0]))
        assert read.dtype == torch.float32
        assert np.array_equal(read.numpy(), values[[2, 0]].astype(np.float32))

    def test_a_single_image_is_a_stack_of_one(self, tmp_path):
        with mrcfile.new(tmp_path / "a.mrc", values_of(np.float32, 4, 5)):
            pass
        read = Stacks([tmp_path / "a.mrc"]).read(torch.tensor([0]), torch.tensor([0]))
        assert np.array_equal(read[0].numpy(), values_of(np.float32, 4, 5))

    def test_writer_takes_as_many_images_of_its_shape_as_it_was_told(self, tmp_path):
        with (
            pytest.raises(ValueError, match="expected 3 images, got 2"),
            StackWriter(tmp_path / "a.mrcs", 3, (4, 6), 1.0) as stack,
        ):
            stack.append(torch.zeros(2, 4, 6))
        for wrong in ((2, 4, 6), (1, 6, 4)):
            with (
                pytest.raises(ValueError, match="expected up to 1 images"),
                StackWriter(tmp_path / "a.mrcs", 3, (4, 6), 1.0) as stack,
            ):
                stack.append(torch.zeros(2, 4, 6))
                stack.append(torch.zeros(wrong))

    def test_what_is_raised_while_writing_is_not_hidden(self, tmp_path):
        with pytest.raises(ZeroDivisionError), StackWriter(tmp_path / "a.mrcs", 3, (4, 6), 1.0):
            1 / 0  # noqa: B018

    def test_problems_are_named(self, two, tmp_path):
        stacks = Stacks([*two[0], tmp_path / "none.mrcs"])
        assert stacks.problem(0, 6) is None and stacks.problem(1, 4, (4, 6)) is None
        assert "at least 8 images, got 7" in stacks.problem(0, 7)
        assert "expected images of 4 x 6 pixels" in stacks.problem(0, 0, (6, 4))
        assert "got 6 x 4" in stacks.problem(0, 0, (6, 4))
        assert "no such file" in stacks.problem(2, 0)

    def test_images_of_another_size_are_not_read_as_those_of_the_first(self, two, tmp_path):
        with StackWriter(tmp_path / "c.mrcs", 2, (6, 4), 1.0) as stack:
            stack.append(torch.zeros(2, 6, 4))
        stacks = Stacks([two[0][0], tmp_path / "c.mrcs"])
        fails(lambda: stacks.read(torch.tensor([0, 1]), torch.tensor([0, 0])), "c.mrcs", "6 x 4", "4 x 6")

    def test_a_stack_that_shrinks_after_its_header_was_read(self, two):
        stacks = Stacks(two[0])
        stacks.header(0)
        two[0][0].write_bytes(two[0][0].read_bytes()[:-1])
        fails(lambda: stacks.read(torch.tensor([0]), torch.tensor([6])), "a.mrcs", "images 7 to 7")

    def test_images_with_axes_exchanged_are_refused(self, two):
        with mrcfile.open(two[0][0], "r+") as file:
            file.header.mapc, file.header.mapr = 2, 1
        fails(lambda: Stacks(two[0]).header(0), "a.mrcs", "(2, 1, 3)")


OPTICS = {
    "rlnOpticsGroup": [1, 2],
    "rlnVoltage": [300.0, 200.0],
    "rlnSphericalAberration": [2.7, 1.4],
    "rlnAmplitudeContrast": [0.1, 0.07],
    "rlnImagePixelSize": [1.5, 1.5],
}
ANGLES = {
    "rlnAngleRot": [10.0, 20.0, 30.0, 40.0],
    "rlnAngleTilt": [15.0, 25.0, 35.0, 45.0],
    "rlnAnglePsi": [-10.0, 0.0, 170.0, -170.0],
}
NAMES = {"rlnImageName": ["000001@a.mrcs", "000003@a.mrcs", "000002@b.mrcs", "000001@b.mrcs"]}
DEFOCUS = {
    "rlnDefocusU": [1e4, 2e4, 1.5e4, 1.2e4],
    "rlnDefocusV": [1.1e4, 1.9e4, 1.4e4, 1.2e4],
    "rlnDefocusAngle": [0.0, 30.0, 60.0, 90.0],
}
ORIGINS = [3.0, -1.5, 0.0, 0.75], [0.0, 1.5, -4.5, 1.2]
ANGSTROM = dict(zip(("rlnOriginXAngst", "rlnOriginYAngst"), ORIGINS))
PARTICLES = {**NAMES, **ANGLES, **DEFOCUS, **ANGSTROM, "rlnOpticsGroup": [1, 2, 1, 2]}
# As RELION wrote before 3.1: all in one table, pixel sizes by magnification, origins in pixels.
OLD = {
    **NAMES,
    **ANGLES,
    **DEFOCUS,
    "rlnVoltage": [300.0] * 4,
    "rlnSphericalAberration": [2.7] * 4,
    "rlnAmplitudeContrast": [0.1] * 4,
    "rlnMagnification": [40000.0] * 4,
    "rlnDetectorPixelSize": [6.0] * 4,
    "rlnOriginX": [2.0, -1.0, 0.0, 0.5],
    "rlnOriginY": [0.0, 1.0, -3.0, 0.8],
}


def write_star(path, particles=PARTICLES, optics=OPTICS, block="particles"):
    tables = {} if optics is None else {"optics": pandas.DataFrame(optics)}
    starfile.write({**tables, block: pandas.DataFrame(particles)}, path)
    return path


def without(table, *columns):
    return {name: values for name, values in table.items() if name not in columns}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Stacks a.mrcs and b.mrcs of 3 images of 4 x 4 pixels, each image constant: 0, 1, 2 and 3, 4, 5."""
    for name, first in (("a", 0), ("b", 3)):
        with StackWriter(tmp_path / f"{name}.mrcs", 3, (4, 4), 1.5) as stack:
            stack.append(torch.arange(first, first + 3.0)[:, None, None].expand(3, 4, 4))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


class TestParticles:
    def check(self, particles, voltages, cs):
        angles = torch.tensor([list(row) for row in zip(*ANGLES.values())], dtype=torch.float64)
        origins = torch.tensor(list(zip(*ORIGINS)), dtype=torch.float64)
        rotations, shifts = particles.poses()
        right = conventions.from_relion(angles, origins, 1.5)
        assert len(particles) == 4 and particles.shape == (4, 4)
        assert particles.pixel_size == pytest.approx(1.5, rel=1e-15)
        assert torch.equal(rotations, right[0])
        torch.testing.assert_close(shifts, right[1], rtol=1e-15, atol=0)
        ctf = particles.ctf()
        for values, column in zip((ctf.defocus_u, ctf.defocus_v, ctf.defocus_angle), DEFOCUS.values()):
            assert values.tolist() == column
        assert ctf.voltage.tolist() == voltages and ctf.spherical_aberration.tolist() == cs
        assert (ctf.phase_shift == 0).all() and (ctf.b_factor == 0).all() and (ctf.scale == 1).all()
        images = particles.images(torch.tensor([3, 0, 1, 2]))
        assert images[:, 0, 0].tolist() == [3, 0, 2, 4]
        assert particles.problems() == {}

    def test_with_optics_groups(self, folder):
        particles = Particles.read(write_star(folder / "x.star"))
        self.check(particles, [300, 200, 300, 200], [2.7, 1.4, 2.7, 1.4])

    @pytest.mark.parametrize("block", ["", "images", "particles"])
    def test_of_a_single_table(self, folder, block):
        particles = Particles.read(write_star(folder / "x.star", OLD, None, block))
        self.check(particles, [300] * 4, [2.7] * 4)
        assert particles.optics is None and particles.block == block

    def test_optics_that_are_no_loop(self, folder):
        table = write_star(folder / "x.star", {**PARTICLES, "rlnOpticsGroup": [1] * 4}, None).read_text()
        optics = "".join(f"_{name} {values[0]}\n" for name, values in OPTICS.items())
        (folder / "x.star").write_text(f"data_optics\n\n{optics}\n{table}")
        self.check(Particles.read(folder / "x.star"), [300] * 4, [2.7] * 4)

    def test_a_particle_that_is_no_loop(self, folder):
        lines = "".join(f"_{name} {values[1]}\n" for name, values in OLD.items())
        (folder / "x.star").write_text(f"data_particles\n\n{lines}")
        particles = Particles.read(folder / "x.star")
        assert len(particles) == 1 and particles.images(torch.tensor([0]))[0, 0, 0] == 2
        assert particles.poses()[1].tolist() == [[1.0, -1.0]]

    def test_columns_of_particles_come_before_those_of_optics(self, folder):
        path = write_star(folder / "x.star", {**PARTICLES, "rlnVoltage": [100.0, 120.0, 200.0, 300.0]})
        assert Particles.read(path).ctf().voltage.tolist() == [100, 120, 200, 300]

    def test_optional_parameters_of_the_transfer_function(self, folder):
        more = {"rlnPhaseShift": [1.0, 2, 3, 4], "rlnCtfBfactor": [5.0, 6, 7, 8]}
        optics = {**OPTICS, "rlnCtfScalefactor": [0.5, 0.25]}
        path = write_star(folder / "x.star", {**without(PARTICLES, "rlnDefocusAngle"), **more}, optics)
        ctf = Particles.read(path).ctf()
        assert (
            ctf.phase_shift.tolist() == more["rlnPhaseShift"]
            and ctf.b_factor.tolist() == more["rlnCtfBfactor"]
        )
        assert ctf.scale.tolist() == [0.5, 0.25, 0.5, 0.25] and (ctf.defocus_angle == 0).all()

    def test_without_origins_particles_are_centred(self, folder):
        particles = Particles.read(write_star(folder / "x.star", without(PARTICLES, *ANGSTROM)))
        assert torch.equal(particles.poses()[1], torch.zeros(4, 2, dtype=torch.float64))

    def test_pixel_size_of_the_header_where_the_table_has_none(self, folder):
        path = write_star(folder / "x.star", optics=without(OPTICS, "rlnImagePixelSize"))
        assert Particles.read(path).pixel_size == 1.5
        with mrcfile.open(folder / "a.mrcs", "r+") as file:
            file.voxel_size = 0
        fails(lambda: Particles.read(path), "rlnImagePixelSize", "rlnMagnification", "--pixel-size")
        assert Particles.read(path, pixel_size=2.0).pixel_size == 2
        fails(lambda: Particles.read(path, pixel_size=0.0), "pixel size > 0, got 0")

    def test_poses_alone_need_no_images(self, folder):
        path = write_star(folder / "x.star", without(PARTICLES, "rlnImageName"))
        particles = Particles.read(path, with_images=False)
        self_made = Particles.read(write_star(folder / "y.star")).poses()
        assert all(torch.equal(a, b) for a, b in zip(particles.poses(), self_made))
        path = write_star(folder / "x.star", optics=without(OPTICS, "rlnImagePixelSize"))
        particles = Particles.read(path, with_images=False)
        assert particles.pixel_size is None
        fails(particles.poses, "rlnImagePixelSize", "pixel size")

    @pytest.mark.parametrize("where", ["here", "beside", "above", "named", "absolute"])
    def test_images_are_found(self, folder, where):
        """Relative to where the program runs, to the STAR file, to a folder above it, or to the one that is named."""
        stacks = {"here": "elsewhere", "above": "", "named": "far/away", "absolute": "far"}.get(
            where, "job/1"
        )
        (folder / "job" / "1").mkdir(parents=True)
        (folder / stacks / "sub").mkdir(parents=True)
        for name in ("a.mrcs", "b.mrcs"):
            shutil.move(folder / name, folder / stacks / "sub" / name)
        prefix = str(folder / "far") + "/" if where == "absolute" else ""
        names = [name.replace("@", f"@{prefix}sub/") for name in NAMES["rlnImageName"]]
        path = write_star(folder / "job" / "1" / "x.star", {**PARTICLES, "rlnImageName": names})
        particles = Particles.read(path, images=folder / "far" / "away" if where == "named" else None)
        self.check(particles, [300, 200, 300, 200], [2.7, 1.4, 2.7, 1.4])

    def test_images_without_a_number_are_files_of_their_own(self, folder):
        for i in range(4):
            with mrcfile.new(folder / f"{i}.mrc", np.full((4, 4), float(i), np.float32)):
                pass
        path = write_star(folder / "x.star", {**PARTICLES, "rlnImageName": [f"{i}.mrc" for i in range(4)]})
        images = Particles.read(path).images(torch.tensor([2, 3, 0]))
        assert images[:, 1, 1].tolist() == [2, 3, 0]

    @pytest.mark.parametrize("old", [False, True])
    def test_other_poses_written_and_read_are_the_same(self, folder, old):
        table, optics = (OLD, None) if old else ({**PARTICLES, "rlnRandomSubset": [1, 2, 1, 2]}, OPTICS)
        particles = Particles.read(write_star(folder / "x.star", table, optics))
        rotations, shifts = particles.poses()
        moved = particles.with_poses(rotations.flip(0), shifts.flip(0) + 0.25)
        moved.write(folder / "y.star")
        again = Particles.read(folder / "y.star")
        # Files hold six decimals: half of the last in degrees, twice over, and in pixels.
        torch.testing.assert_close(again.poses()[0], rotations.flip(0), rtol=0, atol=3e-8)
        torch.testing.assert_close(again.poses()[1], shifts.flip(0) + 0.25, rtol=0, atol=1e-6)
        assert set(again.table) == set(table) and (again.optics is None) == old
        for name in set(table) - set(ANGLES) - {"rlnOriginX", "rlnOriginY", *ANGSTROM}:
            assert again.table[name].tolist() == table[name]
        assert torch.equal(particles.poses()[1], shifts), "the particles themselves are as they were"

    def test_other_poses_of_both_kinds_of_origins_agree(self, folder):
        both = {**PARTICLES, "rlnOriginX": [0.0] * 4, "rlnOriginY": [0.0] * 4}
        particles = Particles.read(write_star(folder / "x.star", both))
        rotations, shifts = particles.poses()
        table = particles.with_poses(rotations, shifts + 1).table
        for axis, expected in zip("XY", (shifts + 1).unbind(-1)):
            assert table[f"rlnOrigin{axis}"].tolist() == pytest.approx((-expected).tolist(), rel=1e-14)
            assert table[f"rlnOrigin{axis}Angst"].tolist() == pytest.approx(
                (-1.5 * expected).tolist(), rel=1e-14
            )

    def test_some_particles_are_those_of_all(self, folder):
        particles = Particles.read(write_star(folder / "x.star"))
        index = torch.tensor([3, 1])
        some = particles.at(index)
        assert len(some) == 2
        assert torch.equal(some.poses()[0], particles.poses()[0][index])
        assert torch.equal(some.images(torch.arange(2)), particles.images(index))
        assert some.ctf().voltage.tolist() == [200, 200]

    def test_groups_of_particles_by_columns_of_either_table(self, folder):
        path = write_star(folder / "x.star", optics={**OPTICS, "rlnOpticsGroupName": ["first", "second"]})
        particles = Particles.read(path)
        for column, names in (("rlnOpticsGroup", ["1", "2"]), ("rlnOpticsGroupName", ["first", "second"])):
            groups, found = particles.groups(column)
            assert groups.tolist() == [0, 1, 0, 1] and found == names
        fails(lambda: particles.groups("rlnMicrographName"), "rlnMicrographName", "rlnAngleRot")

    def test_what_is_not_modelled_is_named_where_it_is_set(self, folder):
        table = {**PARTICLES, "rlnBeamTiltX": [0.0] * 4, "rlnBeamTiltY": [0.0, 0.1, 0.0, 0.0]}
        optics = {**OPTICS, "rlnMagMat00": [1.0, 1.0], "rlnOddZernike": ["[0,0]", "[0,1]"]}
        assert Particles.read(write_star(folder / "x.star", table, optics)).not_applied() == [
            "rlnBeamTiltY",
            "rlnOddZernike",
        ]

    def test_images_multiplied_by_their_transfer_function(self, folder):
        name = "rlnCtfDataAreCtfPremultiplied"
        for flags, expected in (([1, 1], True), ([0, 0], False)):
            path = write_star(folder / "x.star", optics={**OPTICS, name: flags})
            assert Particles.read(path).premultiplied() is expected
        mixed = Particles.read(write_star(folder / "x.star", optics={**OPTICS, name: [0, 1]}))
        fails(mixed.premultiplied, name, "the same")

    def test_a_file_that_changed_is_read_anew(self, folder):
        """Also where it could not be read before."""
        path = folder / "x.star"
        path.write_text("data_particles\n\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n1@a.mrcs 1 2\n")
        fails(lambda: Particles.read(path), "STAR")
        write_star(path)
        assert len(Particles.read(path)) == 4
        write_star(path, {name: values[:2] for name, values in PARTICLES.items()})
        assert len(Particles.read(path)) == 2


def test_a_stack_that_is_in_two_places_is_asked_for(tmp_path, monkeypatch):
    for folder, value in ((tmp_path, 1.0), (tmp_path / "sub", 2.0)):
        folder.mkdir(exist_ok=True)
        with StackWriter(folder / "a.mrcs", 1, (8, 8), 1.0) as stack:
            stack.append(torch.full((1, 8, 8), value))
    path = tmp_path / "sub" / "a.star"
    path.write_text("data_particles\n\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n1@a.mrcs 0\n1@a.mrcs 0\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="two files; --images"):
        Particles.read(path)
    read = Particles.read(path, images=tmp_path / "sub")
    assert (read.images(torch.tensor([0])) == 2).all()
    monkeypatch.chdir(tmp_path / "sub")
    assert (Particles.read("a.star").images(torch.tensor([0])) == 2).all()


class TestBadTables:
    def read(self, folder, particles=PARTICLES, optics=OPTICS, **options):
        return Particles.read(write_star(folder / "x.star", particles, optics), **options)

    def test_files_that_are_no_star_files(self, folder):
        path = folder / "x.star"
        fails(lambda: Particles.read(path), str(path), "no such file")
        for content in (b"", b"hello\n"):
            path.write_bytes(content)
            fails(lambda: Particles.read(path), str(path), "no column rlnImageName", "no table")
        for content in (bytes(range(256)) * 20, (folder / "a.mrcs").read_bytes()):
            path.write_bytes(content)
            fails(lambda: Particles.read(path), str(path))
        fails(lambda: Particles.read(folder), str(folder), "no such file")

    @pytest.mark.parametrize(
        "rows", ["1@a.mrcs\n", "1@a.mrcs 1 2\n", "1@a.mrcs 1\n2@a.mrcs 1 2\n", '1@a.mrcs "1\n']
    )
    def test_rows_that_do_not_fit_the_columns(self, folder, rows):
        path = folder / "x.star"
        path.write_text(f"data_particles\n\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n{rows}")
        fails(lambda: Particles.read(path).poses(), str(path))

    def test_no_particles(self, folder):
        empty = {name: [] for name in PARTICLES}
        fails(lambda: self.read(folder, empty), "expected particles", "without rows")
        (folder / "x.star").write_text("data_particles\n\nloop_\n_rlnImageName #1\n_rlnAngleRot #2\n")
        fails(lambda: Particles.read(folder / "x.star"), "expected particles", "without rows")

    def test_a_column_twice(self, folder):
        path = folder / "x.star"
        path.write_text("data_particles\n\nloop_\n_rlnImageName #1\n_rlnImageName #2\n1@a.mrcs 1@a.mrcs\n")
        fails(lambda: Particles.read(path), "rlnImageName again")

    def test_missing_columns_are_named_with_those_that_are_there(self, folder):
        fails(
            lambda: self.read(folder, without(PARTICLES, "rlnImageName")),
            "rlnImageName",
            "data_particles",
            "rlnAngleRot",
        )
        part = without(PARTICLES, "rlnAngleTilt", "rlnDefocusU")
        particles = self.read(folder, part, without(OPTICS, "rlnVoltage"))
        fails(
            particles.poses, "no column rlnAngleTilt (the orientations)", "it has rlnImageName, rlnAngleRot"
        )
        fails(
            particles.ctf,
            "rlnDefocusU, rlnVoltage",
            "transfer function",
            "--no-ctf",
            "data_optics: rlnOpticsGroup",
        )

    def test_one_origin_of_a_pair(self, folder):
        for origins in (ANGSTROM, {"rlnOriginX": [0.0] * 4, "rlnOriginY": [1.0] * 4}):
            x, y = origins
            base = without(PARTICLES, *ANGSTROM)
            fails(self.read(folder, {**base, x: origins[x]}).poses, f"no column {y}", f"goes with {x}")
            fails(self.read(folder, {**base, y: origins[y]}).poses, f"no column {x}", f"goes with {y}")

    @pytest.mark.parametrize(
        "name",
        [
            "x@a.mrcs",
            "@a.mrcs",
            "0@a.mrcs",
            "-1@a.mrcs",
            "1.5@a.mrcs",
            "inf@a.mrcs",
            "2@",
            "NaN",
            "1e20@a.mrcs",
        ],
    )
    def test_names_of_images_that_are_none(self, folder, name):
        names = ["1@a.mrcs", "2@a.mrcs", name, "1@b.mrcs"]
        fails(
            lambda: self.read(folder, {**PARTICLES, "rlnImageName": names}),
            "rlnImageName",
            name.lower()[:2],
            "row 3",
        )

    @pytest.mark.parametrize("value", ["none", "NaN", "inf", "1,5"])
    def test_values_that_are_no_numbers(self, folder, value):
        for column, use in (("rlnAngleTilt", Particles.poses), ("rlnOriginYAngst", Particles.poses)):
            particles = self.read(folder, {**PARTICLES, column: [1.0, value, 2.0, 3.0]})
            fails(lambda use=use, particles=particles: use(particles), column, value.lower(), "row 2")
        optics = {**OPTICS, "rlnSphericalAberration": [2.7, value]}
        fails(self.read(folder, optics=optics).ctf, "rlnSphericalAberration", value.lower(), "row 2")

    def test_parameters_of_no_microscope(self, folder):
        fails(self.read(folder, optics={**OPTICS, "rlnVoltage": [300.0, 0.0]}).ctf, "rlnVoltage", "got 0")
        fails(
            self.read(folder, optics={**OPTICS, "rlnVoltage": [3e5, 3e5]}).ctf,
            "rlnVoltage",
            "10000",
            "300000",
        )
        fails(
            self.read(folder, optics={**OPTICS, "rlnAmplitudeContrast": [0.1, 7]}).ctf,
            "Contrast",
            "-1 to 1",
            "got 7",
        )

    def test_optics_groups(self, folder):
        group = "rlnOpticsGroup"
        fails(lambda: self.read(folder, {**PARTICLES, group: [1, 2, 3, 1]}), group, "1, 2", "got 3 in row 3")
        fails(lambda: self.read(folder, without(PARTICLES, group)), f"no column {group}", "rlnImagePixelSize")
        fails(
            lambda: self.read(folder, optics=without(OPTICS, group)),
            f"no column {group}",
            "rlnImagePixelSize",
        )
        fails(lambda: self.read(folder, optics={**OPTICS, group: [1, 1]}), group, "got 1 again")

    def test_pixel_sizes(self, folder):
        size = "rlnImagePixelSize"
        fails(lambda: self.read(folder, optics={**OPTICS, size: [1.5, 1.6]}), "one pixel size", "1.5, 1.6")
        fails(lambda: self.read(folder, optics={**OPTICS, size: [1.5, 0.0]}), "pixel sizes > 0", "got 0")
        fails(
            lambda: self.read(folder, {**OLD, "rlnMagnification": [0.0] * 4}, None), "pixel sizes > 0", "inf"
        )
        assert self.read(folder, optics={**OPTICS, size: [1.5, 1.6]}, pixel_size=1.5).pixel_size == 1.5

    def problems(self, folder, **columns):
        return self.read(folder, {**PARTICLES, **columns}).problems()

    def test_stacks_that_are_not_there(self, folder):
        (folder / "b.mrcs").unlink()
        found = self.problems(folder)
        assert set(found) == {2, 3} and all("b.mrcs: there is no such file" in x for x in found.values())

    def test_stacks_that_are_cut_short(self, folder):
        (folder / "b.mrcs").write_bytes((folder / "b.mrcs").read_bytes()[:-4])
        found = self.problems(folder)
        assert set(found) == {2, 3} and all("cut short" in x for x in found.values())

    def test_images_beyond_the_end_of_a_stack(self, folder):
        found = self.problems(folder, rlnImageName=["4@a.mrcs", "3@a.mrcs", "1@b.mrcs", "7@b.mrcs"])
        assert set(found) == {0, 3}
        assert "at least 4 images, got 3" in found[0] and "at least 7 images, got 3" in found[3]

    def test_stacks_of_another_size(self, folder):
        with StackWriter(folder / "b.mrcs", 3, (4, 6), 1.5) as stack:
            stack.append(torch.zeros(3, 4, 6))
        found = self.problems(folder)
        assert set(found) == {2, 3}
        assert all("expected images of 4 x 4 pixels" in x and "got 6 x 4" in x for x in found.values())

    def test_the_same_image_again(self, folder):
        found = self.problems(folder, rlnImageName=["1@a.mrcs", "1@b.mrcs", "000001@a.mrcs", "1@b.mrcs"])
        assert set(found) == {2, 3}
        assert re.search("000001@a.mrcs .*more than once", found[2])


def test_a_package_that_is_not_there_is_named_with_its_extra(folder, monkeypatch):
    path = write_star(folder / "x.star")
    for package, use in (
        ("starfile", lambda: Particles.read(path)),
        ("mrcfile", lambda: read_map(folder / "a.mrcs")),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            fails(use, package, "pip install 'torch-projectors[io]'")
