"""From files to maps: what the commands make is what the functions beneath them give, in one process or more."""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("mrcfile")
pytest.importorskip("starfile")

import test_relion as relion
from particles import write_data

from torch_projectors import backward_project, conventions, realspace, rotations, symmetry
from torch_projectors.__main__ import main
from torch_projectors.files import Particles, StackWriter, read_map, write_map
from torch_projectors.insertion import Insertion
from torch_projectors.jobs import noise, project, reconstruct, refine
from torch_projectors.jobs.batches import Source
from torch_projectors.jobs.correlation import compare
from torch_projectors.jobs.interrupts import Interrupted

BOX = 24
EPS = torch.finfo(torch.float32).eps


def images_of(star: Path) -> torch.Tensor:
    particles = Particles.read(star)
    return particles.images(torch.arange(len(particles)))


def same(a: torch.Tensor, b: torch.Tensor, operations: float) -> None:
    assert (a - b).abs().max() <= operations * EPS * b.abs().max()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images with transfer functions and shifts, without noise."""
    return write_data(tmp_path_factory.mktemp("data"), 200, BOX, shifts=1.0, defocus=(3000.0, 8000.0))


@pytest.fixture(scope="module")
def result(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("result") / "map.mrc"
    return output, reconstruct.run(data.star, output)


class TestProject:
    @pytest.mark.skipif(not relion.RELION.is_dir(), reason="no goldens: set TORCH_PROJECTORS_GOLDENS")
    @relion.every_stack
    def test_images_at_the_poses_of_a_star_file_are_those_of_relion(self, name, n, tmp_path):
        write_map(tmp_path / "map.mrc", relion.relion_map(n), 1.0)
        star = relion.RELION / f"{name}.star"
        assert main(f"project {tmp_path}/map.mrc --star {star} -o {tmp_path}/ours.mrcs".split()) == 0
        ours = images_of(tmp_path / "ours.star").double()
        if n % 2:  # theirs lie one pixel further
            ours = ours.roll((1, 1), (-2, -1))
        theirs = relion.relion_images(name, n)[0]
        relion.assert_same_images(relion.to_half(ours, 2), relion.to_half(theirs, 2), n)

    def test_what_is_drawn_is_what_the_table_says(self, data):
        particles = Particles.read(data.star)
        turns, moves = particles.poses()
        clean = realspace.project(data.truth.double(), turns, moves, fourier_radius_cutoff=BOX / 2)
        ctf = particles.ctf().values((BOX, BOX), particles.pixel_size, dtype=torch.float64)
        expected = realspace.from_spectrum(ctf * realspace.to_spectrum(clean, 2), (BOX, BOX))
        # Six decimals of a degree and of a pixel in the table, phases of the transfer function in single precision.
        assert (images_of(data.star) - expected).abs().max() <= 1e-4 * expected.abs().max()

    def test_the_same_seed_draws_the_same_images(self, data, tmp_path):
        again = write_data(tmp_path / "again", 200, BOX, shifts=1.0, defocus=(3000.0, 8000.0))
        assert torch.equal(images_of(again.star), images_of(data.star))
        other = write_data(tmp_path / "other", 200, BOX, seed=1, shifts=1.0, defocus=(3000.0, 8000.0))
        assert not torch.equal(other.truth, data.truth)

    def test_a_star_file_gives_the_images_that_it_came_from(self, data, tmp_path):
        project.run(data.map, tmp_path / "again.mrcs", star=str(data.star), ctf=True)
        again = images_of(tmp_path / "again.star")
        assert (again - images_of(data.star)).abs().max() <= 1e-4 * again.abs().max()

    def test_names_of_images_are_relative_to_the_current_folder_if_they_are_below_it(
        self, data, tmp_path, monkeypatch
    ):
        monkeypatch.chdir(tmp_path)
        project.run(data.map, "sub/some.mrcs", count=3)
        monkeypatch.chdir(tmp_path / "sub")
        for star in ("some.star", "../sub/some.star"):
            assert Particles.read(star).table["rlnImageName"].iloc[2] == "000003@sub/some.mrcs"
            assert len(images_of(Path(star))) == 3

    def test_even_views_leave_no_gap(self, data, tmp_path):
        project.run(data.map, tmp_path / "even.mrcs", count=400, orientations="even")
        turns, _ = Particles.read(tmp_path / "even.star").poses()
        views = turns[:, :, 2]
        anywhere = torch.nn.functional.normalize(torch.randn(2000, 3, dtype=torch.float64), dim=1)
        nearest = (anywhere @ views.T).amax(1).clamp(max=1).acos()
        # Each view has 4 pi / 400 of the sphere: a cap of 0.1 radians.
        assert nearest.max() < 3 * math.sqrt(4 / 400)

    def test_noise_has_the_variance_that_was_asked_for(self, data, tmp_path):
        project.run(data.map, tmp_path / "clean.mrcs", count=100)
        project.run(data.map, tmp_path / "noisy.mrcs", count=100, snr=0.1)
        clean, noisy = (images_of(tmp_path / f"{name}.star") for name in ("clean", "noisy"))
        ratio = clean.var(dim=(-2, -1)).mean() / (noisy - clean).var()
        # Of 57,600 numbers: the deviation of a variance is sqrt(2 / n) of it.
        assert abs(ratio - 0.1) < 0.1 * 6 * math.sqrt(2 / clean.numel())

    def test_smaller_images_are_the_larger_ones_cropped_by_frequency(self, data, tmp_path):
        project.run(data.map, tmp_path / "small.mrcs", star=str(data.star), box=16)
        project.run(data.map, tmp_path / "large.mrcs", star=str(data.star))
        small, large = (
            realspace.to_spectrum(images_of(tmp_path / f"{n}.star"), 2) for n in ("small", "large")
        )
        assert Particles.read(tmp_path / "small.star").pixel_size == pytest.approx(3.0)
        inner = torch.cat([large[:, :8, :8], large[:, -7:, :8]], 1)
        ours = torch.cat([small[:, :8, :8], small[:, -7:, :8]], 1)
        y, x = torch.fft.fftfreq(24, 1 / 24)[[*range(8), *range(-7, 0)]], torch.arange(8)
        inside = y[:, None] ** 2 + x**2 < 64
        # Positions in the table have six decimals.
        assert ((ours - inner) * inside).abs().max() <= 1e-4 * inner.abs().max()


class TestReconstruct:
    def test_the_map_is_that_of_the_functions(self, data, tmp_path):
        reconstruct.run(data.star, tmp_path / "map.mrc", policy="radial", double=True)
        particles = Particles.read(data.star)
        turns, moves = particles.poses()
        images = images_of(data.star).double()
        axis = torch.arange(BOX) - BOX // 2
        outside = axis[:, None] ** 2 + axis**2 > (BOX / 2) ** 2
        spectra = realspace.to_spectrum(images - images[:, outside].mean(1)[:, None, None], 2)
        ctf = particles.ctf().values((BOX, BOX), particles.pixel_size, dtype=torch.float64)
        sums = backward_project(
            ctf * spectra, turns, moves, (2 * BOX,) * 3, oversampling=2, weights=ctf.square()
        )
        expected = realspace.reconstruct(*sums, oversampling=2, policy="radial")
        same(read_map(tmp_path / "map.mrc")[0].double(), expected, 4)  # the file is in single precision

    def test_single_precision_is_as_good(self, data, result, tmp_path):
        reconstruct.run(data.star, tmp_path / "map.mrc", double=True)
        double, single = read_map(tmp_path / "map.mrc")[0], read_map(result[0])[0]
        assert realspace.fsc(single, double)[1 : BOX // 2].min() > 0.9999

    def test_images_of_a_map_give_the_map(self, data, result):
        output, facts = result
        found, pixel_size = read_map(output)
        assert pixel_size == pytest.approx(2.0)
        assert realspace.fsc(found, data.truth)[1 : BOX // 3].min() > 0.98
        assert facts["images"] == {"in_map": 200, "left_out": 0, "halves": [100, 100]}
        assert facts["fsc"]["unmasked"][2] > 0.9
        assert json.loads(output.with_suffix(".json").read_text())["command"].startswith("torch-projectors")
        assert (output.parent / "map_fsc.png").stat().st_size > 1000
        halves = [read_map(output.parent / f"map_half{i}.mrc")[0] for i in (1, 2)]
        curve = compare(*halves).unmasked
        assert torch.tensor(facts["fsc"]["unmasked"], dtype=torch.float64) == pytest.approx(curve, abs=1e-4)

    def test_every_image_counts_once_for_each_operator(self, data, tmp_path):
        reconstruct.run(data.star, tmp_path / "map.mrc", point_group="D2", policy="radial")
        found, _ = read_map(tmp_path / "map.mrc")
        for operator in symmetry.operators("D2")[1:]:  # half turns: axes flipped about the centre
            axes = [3 - 1 - i for i in range(3) if operator[i, i] < 0]
            turned = found.flip(axes).roll([1] * len(axes), axes)
            inner = (slice(1, None),) * 3
            # The order of sums differs, and the map's edge is where the correction for gridding is largest.
            assert (turned[inner] - found[inner]).abs().max() <= 1e-4 * found.abs().max()

    @pytest.mark.parametrize("subset", [False, True])
    def test_expanded_images_are_those_of_a_point_group(self, data, tmp_path, subset):
        particles = Particles.read(data.star)
        if subset:
            particles.table["rlnRandomSubset"] = [1 + (i % 3 == 0) for i in range(len(particles))]
            particles.write(tmp_path / "images.star")
        star = tmp_path / "images.star" if subset else data.star
        facts = reconstruct.run(star, tmp_path / "group.mrc", point_group="C4")
        turns, moves = particles.poses()
        turns = symmetry.equivalent(turns, symmetry.operators("C4")).flatten(0, 1)
        rows = torch.arange(len(particles)).repeat_interleave(4)
        particles.at(rows).with_poses(turns, moves[rows]).write(tmp_path / "expanded.star")
        expanded = reconstruct.run(tmp_path / "expanded.star", tmp_path / "map.mrc", expanded=True)
        assert expanded["images"]["halves"] == [4 * n for n in facts["images"]["halves"]]
        for name in ("", "_half1", "_half2"):
            group, found = (read_map(tmp_path / f"{which}{name}.mrc")[0] for which in ("group", "map"))
            # Poses come from a file of six digits, and every entry is the sum of other roundings.
            assert (found - group).abs().max() <= 1e-4 * group.abs().max()

    def test_a_smaller_box_is_the_map_of_smaller_images(self, data, tmp_path):
        facts = reconstruct.run(data.star, tmp_path / "map.mrc", box=16)
        found, pixel_size = read_map(tmp_path / "map.mrc")
        assert found.shape == (16, 16, 16) and pixel_size == pytest.approx(3.0) and facts["box"] == 16
        smaller = realspace.to_spectrum(data.truth, 3)
        expected = torch.cat([smaller[:8], smaller[-8:]])
        expected = torch.cat([expected[:, :8], expected[:, -8:]], 1)[..., :9]
        expected = realspace.from_spectrum(expected, (16, 16, 16))
        assert realspace.fsc(found, expected)[1:6].min() > 0.98

    @pytest.fixture
    def filtered(self, data, tmp_path):
        """Maps of images that a function of the transfer function was applied to, as a column says, and of others."""

        def run(column, function):
            particles = Particles.read(data.star)
            ctf = particles.ctf().values((BOX, BOX), particles.pixel_size)
            spectra = function(ctf) * realspace.to_spectrum(images_of(data.star), 2)
            with StackWriter(tmp_path / data.stack.name, len(spectra), (BOX, BOX), 2.0) as stack:
                stack.append(realspace.from_spectrum(spectra, (BOX, BOX)))
            shutil.copy(data.star, tmp_path / "images.star")
            particles = Particles.read(tmp_path / "images.star")
            particles.optics[column] = 1
            particles.write(tmp_path / "images.star")
            reconstruct.run(tmp_path / "images.star", tmp_path / "map.mrc", policy="radial")
            reconstruct.run(data.star, tmp_path / "plain.mrc", policy="radial")
            return [read_map(tmp_path / f"{name}.mrc")[0] for name in ("map", "plain")]

        return run

    def test_images_already_multiplied_are_not_multiplied_again(self, filtered):
        a, b = filtered("rlnCtfDataAreCtfPremultiplied", lambda ctf: ctf)
        # Their levels beside the particle differ, and with them the level of the map before its correction.
        level = (a - b) * realspace.gridding_blur((BOX,) * 3, (2 * BOX,) * 3)
        same(level - level.mean() + b, b, 200 * 8)

    def test_images_whose_phases_were_flipped_lack_signs_alone(self, filtered):
        a, b = filtered("rlnCtfDataArePhaseFlipped", torch.sign)
        # Where the function is about 0 its sign is that of its rounding.
        assert realspace.fsc(a, b)[1 : BOX // 2].min() > 0.9999

    def test_a_level_beside_the_particle_makes_no_difference(self, data, tmp_path):
        images = images_of(data.star)
        with StackWriter(tmp_path / data.stack.name, len(images), (BOX, BOX), 2.0) as stack:
            stack.append(images + 8 * images.std())
        shutil.copy(data.star, tmp_path / "images.star")
        for star, name in ((data.star, "plain"), (tmp_path / "images.star", "level")):
            reconstruct.run(star, tmp_path / f"{name}.mrc", policy="radial")
        level, plain = (read_map(tmp_path / f"{name}.mrc")[0] for name in ("level", "plain"))
        same(level, plain, 200 * 8 * 8)

    def test_halves_are_those_of_the_file_if_it_has_them(self, data, tmp_path):
        particles = Particles.read(data.star)
        particles.table["rlnRandomSubset"] = [1] * 150 + [2] * 50
        particles.write(data.star.parent / "halves.star")
        facts = reconstruct.run(data.star.parent / "halves.star", tmp_path / "map.mrc")
        assert facts["images"]["halves"] == [150, 50]

    def test_noisier_groups_count_less(self, tmp_path):
        """With weights by group the map of a noisy and a quiet half is better than without."""
        data = write_data(tmp_path, 300, BOX)
        images = images_of(data.star)
        generator = torch.Generator().manual_seed(3)
        noise = torch.randn(images.shape, generator=generator) * images.std()
        noise[:150] *= 0.5
        noise[150:] *= 8
        with StackWriter(data.stack, 300, (BOX, BOX), 2.0) as stack:
            stack.append(images + noise)
        particles = Particles.read(data.star)
        particles.table["rlnMicrographName"] = ["quiet"] * 150 + ["noisy"] * 150
        particles.write(data.star)
        options = {"no_ctf": True, "policy": "radial"}
        reconstruct.run(data.star, tmp_path / "plain.mrc", **options)
        reconstruct.run(data.star, tmp_path / "weighted.mrc", noise_by="rlnMicrographName", **options)
        plain, weighted = (
            realspace.fsc(read_map(tmp_path / f"{name}.mrc")[0], data.truth)[1 : BOX // 3].mean()
            for name in ("plain", "weighted")
        )
        # Noise of 16 times the deviation for half of the images: its power falls from 128 to 0.25 of a signal's.
        assert weighted > plain + 0.05

    def test_noise_is_measured_as_the_variance_of_a_component(self, tmp_path):
        """Of white noise of deviation 3 in n x n pixels 9 n^2, whatever lies in the middle."""
        data = write_data(tmp_path, 200, BOX)
        images = 3 * torch.randn(200, BOX, BOX, generator=torch.Generator().manual_seed(2)) + 5
        images[:, 8:16, 8:16] += 40
        with StackWriter(data.stack, 200, (BOX, BOX), 2.0) as stack:
            stack.append(images)
        variance = noise.by_group(
            Source(Particles.read(data.star), with_ctf=False), torch.zeros(200).long(), False
        )
        assert variance.shape == (1, BOX // 2 + 1)
        # The least of 1,000 values in a shell: the deviation of a variance is sqrt(2 / 1000) of it, and a mean is gone.
        assert (variance / (9 * BOX**2) - 1).abs().max() < 0.3

    def test_a_mask_is_corrected_for_what_it_does_by_itself(self):
        """Maps of noise alone, in a tight soft mask: correlated by it, and not after correction."""
        generator = torch.Generator().manual_seed(0)
        axis = torch.arange(32) - 16
        radius = (axis[:, None, None] ** 2 + axis[:, None] ** 2 + axis**2).float().sqrt()
        mask = ((11 - radius) / 6).clamp(0, 1)
        common = torch.exp(-(radius**2) / 30)
        a, b = (common + 0.5 * torch.randn(32, 32, 32, generator=generator) for _ in range(2))
        curves = compare(a, b, mask)
        late = slice(8, 16)
        assert curves.corrected[late].abs().max() < 0.25
        assert curves.best is curves.corrected
        shared = (curves.masked - curves.random) / (1 - curves.random)
        assert curves.random[late].abs().max() > 0.05
        assert torch.equal(curves.corrected[late], shared[late])
        assert torch.equal(curves.corrected[1], curves.masked[1])


class TestInterruption:
    @pytest.fixture(autouse=True)
    def small_pieces(self, monkeypatch):
        monkeypatch.setattr(reconstruct, "MOST_IMAGES", 16)
        monkeypatch.setattr(refine, "MOST_IMAGES", 16)

    @pytest.fixture
    def interrupted(self, monkeypatch):
        """Asked to stop in the second batch."""
        add, calls = Insertion.add, []

        def stop(*arguments, **options):
            add(*arguments, **options)
            calls.append(None)
            if len(calls) == 3:
                signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(Insertion, "add", stop)

    def test_a_resumed_reconstruction_is_the_same_to_the_last_bit(self, data, tmp_path, request):
        reconstruct.run(data.star, tmp_path / "whole.mrc")
        request.getfixturevalue("interrupted")
        with pytest.raises(Interrupted, match="go on with --resume"):
            reconstruct.run(data.star, tmp_path / "map.mrc")
        assert sorted(path.name for path in tmp_path.glob("map*")) == ["map.mrc.partial"]
        facts = reconstruct.run(data.star, tmp_path / "map.mrc", resume=True)
        assert facts["images"]["in_map"] == 200
        for name in ("", "_half1", "_half2"):
            a, b = (read_map(tmp_path / f"{stem}{name}.mrc")[0] for stem in ("map", "whole"))
            assert torch.equal(a, b)
        assert not (tmp_path / "map.mrc.partial").exists()

    def test_a_resumed_refinement_is_the_same_to_the_last_bit(self, data, tmp_path, monkeypatch):
        options = {"map": data.map, "degrees": 1.0, "pixels": 0.5}
        refine.run(data.star, tmp_path / "whole.star", **options)
        refiner, calls = refine.Refiner.__call__, []

        def stop(*arguments, **more):
            calls.append(None)
            if len(calls) == 3:
                signal.raise_signal(signal.SIGTERM)
            return refiner(*arguments, **more)

        monkeypatch.setattr(refine.Refiner, "__call__", stop)
        with pytest.raises(Interrupted, match="48 particles"):
            refine.run(data.star, tmp_path / "part.star", **options)
        refine.run(data.star, tmp_path / "part.star", resume=True, **options)
        whole, part = (Particles.read(tmp_path / f"{name}.star").poses() for name in ("whole", "part"))
        assert torch.equal(whole[0], part[0]) and torch.equal(whole[1], part[1])


class TestRefine:
    def test_disturbed_poses_come_back(self, data, tmp_path):
        particles = Particles.read(data.star)
        turns, moves = particles.poses()
        generator = torch.Generator().manual_seed(0)
        off = math.radians(3) * torch.randn(200, 3, generator=generator, dtype=torch.float64)
        disturbed = turns @ rotations.from_vectors(off)
        moved = moves + torch.randn(200, 2, generator=generator, dtype=torch.float64)
        particles.with_poses(disturbed, moved).write(data.star.parent / "disturbed.star")
        command = (
            f"refine {data.star.parent}/disturbed.star --map {data.map} --pixels 1 -o {tmp_path}/refined.star"
        )
        assert main(command.split()) == 0
        refined, shifts = Particles.read(tmp_path / "refined.star").poses()
        angles = torch.rad2deg(rotations.angles_between(refined, turns))
        # The images have no noise; the table's decimals and the transfer function's precision remain.
        assert angles.median() < 0.05 and (shifts - moves).norm(dim=-1).median() < 0.01
        facts = json.loads((tmp_path / "refined.json").read_text())
        assert facts["score_after"]["median"] > 0.999 > facts["score_before"]["median"]
        assert facts["degrees_moved"]["median"] == pytest.approx(
            torch.rad2deg(off.norm(dim=-1)).median().item(), rel=0.05
        )

    @pytest.fixture
    def disturbed(self, data):
        """Half of a degree off, and of a pixel."""
        particles = Particles.read(data.star)
        turns, moves = particles.poses()
        generator = torch.Generator().manual_seed(5)
        off = math.radians(0.5) * torch.randn(200, 3, generator=generator, dtype=torch.float64)
        moved = moves + 0.5 * torch.randn(200, 2, generator=generator, dtype=torch.float64)
        particles.with_poses(turns @ rotations.from_vectors(off), moved).write(data.star.parent / "off.star")
        return data.star.parent / "off.star", turns

    def test_every_pose_of_expanded_images_is_refined(self, data, disturbed, tmp_path):
        star, turns = disturbed
        away, true = Particles.read(star), Particles.read(data.star)
        both = true.at(torch.arange(40) // 2)
        poses = [torch.stack(pair, 1).flatten(0, 1) for pair in zip(true.poses(), away.poses())]
        both.with_poses(*(x[:40] for x in poses)).write(tmp_path / "both.star")
        options = {"map": data.map, "pixels": 0.5, "degrees": 0.5, "expanded": True}
        refine.run(tmp_path / "both.star", tmp_path / "refined.star", **options)
        refined, _ = Particles.read(tmp_path / "refined.star").poses()
        angles = torch.rad2deg(rotations.angles_between(refined, turns[:20].repeat_interleave(2, 0)))
        assert angles[::2].median() < 0.05 and angles[1::2].median() < 0.05

    def test_levels_of_map_and_images_make_no_difference(self, data, disturbed, tmp_path):
        star, turns = disturbed
        level = data.truth + 0.3 * data.truth.max()
        write_map(tmp_path / "level.mrc", level, 2.0)
        images = images_of(data.star)
        with StackWriter(tmp_path / data.stack.name, len(images), (BOX, BOX), 2.0) as stack:
            stack.append(images + 8 * images.std())
        shutil.copy(star, tmp_path / "off.star")
        refine.run(
            tmp_path / "off.star",
            tmp_path / "refined.star",
            map=tmp_path / "level.mrc",
            pixels=0.5,
            degrees=0.5,
        )
        refined, _ = Particles.read(tmp_path / "refined.star").poses()
        assert torch.rad2deg(rotations.angles_between(refined, turns)).median() < 0.05

    def test_a_prior_does_not_depend_on_the_scale_of_images(self, data, disturbed, tmp_path):
        star, _ = disturbed
        found = []
        for scale in (1e-3, 1e3):
            folder = tmp_path / str(scale)
            folder.mkdir()
            images = images_of(data.star) + 0.1 * torch.randn(
                200, BOX, BOX, generator=torch.Generator().manual_seed(1)
            )
            with StackWriter(folder / data.stack.name, 200, (BOX, BOX), 2.0) as stack:
                stack.append(scale * images)
            shutil.copy(star, folder / "off.star")
            options = {"prior_degrees": 0.2, "prior_pixels": 0.1, "pixels": 0.5, "degrees": 0.5}
            refine.run(
                folder / "off.star",
                folder / "refined.star",
                map=data.map,
                noise_by="rlnOpticsGroup",
                **options,
            )
            found.append(Particles.read(folder / "refined.star").poses()[0])
        start, _ = Particles.read(star).poses()
        assert torch.rad2deg(rotations.angles_between(*found)).max() < 0.01
        assert torch.rad2deg(rotations.angles_between(found[0], start)).median() > 0.05

    def test_the_opposite_contrast_is_noticed(self, data, disturbed, tmp_path, capsys):
        write_map(tmp_path / "negative.mrc", -data.truth, 2.0)
        command = f"refine {disturbed[0]} --map {tmp_path}/negative.mrc -o {tmp_path}/refined.star"
        assert main(command.split()) == 2
        assert "contrast" in capsys.readouterr().err.splitlines()[-1]

    def test_images_are_found_from_the_new_table(self, data, tmp_path, monkeypatch):
        """In a folder of its own, and below the current one by a relative name."""
        refine.run(data.star, tmp_path / "refined.star", map=data.map, degrees=1.0, pixels=0.5)
        refined = Particles.read(tmp_path / "refined.star")
        assert refined.table["rlnImageName"].iloc[3] == f"000004@{data.stack.as_posix()}"
        assert torch.equal(images_of(tmp_path / "refined.star"), images_of(data.star))
        monkeypatch.chdir(data.star.parent.parent)
        Particles.read(data.star).write(tmp_path / "again.star")
        name = f"000001@{data.star.parent.name}/images.mrcs"
        assert Particles.read(tmp_path / "again.star").table["rlnImageName"].iloc[0] == name

    def test_all_else_in_the_table_stays(self, data):
        refine.run(data.star, data.star.parent / "refined.star", map=data.map, degrees=1.0, pixels=0.5)
        before, after = (Particles.read(data.star.parent / f"{name}.star") for name in ("images", "refined"))
        changed = {"rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi", "rlnOriginXAngst", "rlnOriginYAngst"}
        assert list(after.table.columns) == list(before.table.columns)
        for name in set(before.table.columns) - changed:
            assert (after.table[name] == before.table[name]).all()
        assert after.optics.equals(before.optics)


def launch(ranks: int, *arguments: str, expected: int = 0, script: str = "") -> str:
    """Under torchrun; what it says."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    program = [script] if script else ["-m", "torch_projectors"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, *program, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert (done.returncode != 0) == (expected != 0), done.stderr
    return done.stderr


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
class TestRanks:
    @pytest.mark.parametrize("ranks", [2, 4])
    def test_reconstruction_is_that_of_one_process_to_rounding(self, ranks, data, result, tmp_path):
        launch(ranks, "reconstruct", str(data.star), "-o", str(tmp_path / "map.mrc"))
        facts = json.loads((tmp_path / "map.json").read_text())
        assert facts["ranks"] == ranks and facts["images"] == result[1]["images"]
        for name in ("", "_half1", "_half2"):
            ours, theirs = (
                read_map(p.with_name(f"{p.stem}{name}.mrc"))[0] for p in (tmp_path / "map.mrc", result[0])
            )
            # Sums of 200 images in another order, divided by weights that may be small.
            same(ours, theirs, 200 * 8)
        assert not (tmp_path / "map.mrc.partial").exists()

    def test_refinement_is_that_of_one_process(self, data, tmp_path):
        options = ["--map", str(data.map), "--degrees", "1", "--pixels", "0.5"]
        launch(2, "refine", str(data.star), "-o", str(tmp_path / "two.star"), *options)
        assert main(["refine", str(data.star), "-o", str(tmp_path / "one.star"), *options]) == 0
        two, one = (Particles.read(tmp_path / f"{name}.star").poses() for name in ("two", "one"))
        assert rotations.angles_between(two[0], one[0]).max() < 1e-4
        assert (two[1] - one[1]).abs().max() < 1e-3

    def test_what_a_killed_process_leaves_is_enough_to_go_on(self, data, result, tmp_path):
        script = tmp_path / "killed.py"
        script.write_text(
            "import os, signal\n"
            "from torch_projectors import __main__\n"
            "from torch_projectors.insertion import Insertion\n"
            "from torch_projectors.jobs import reconstruct\n"
            "reconstruct.MOST_IMAGES, add, calls = 16, Insertion.add, []\n"
            "def counted(*arguments, **options):\n"
            "    add(*arguments, **options)\n"
            "    calls.append(None)\n"
            "    if os.environ['RANK'] == '1' and len(calls) == 7:\n"
            "        os.kill(os.getpid(), signal.SIGKILL)\n"
            "Insertion.add = counted\n"
            "raise SystemExit(__main__.console())\n"
        )
        command = [
            "reconstruct",
            str(data.star),
            "-o",
            str(tmp_path / "map.mrc"),
            "--checkpoint-minutes",
            "1e-9",
        ]
        said = launch(2, *command, script=str(script), expected=1)
        assert "--resume" in said
        assert not (tmp_path / "map.mrc").exists()
        kept = list((tmp_path / "map.mrc.partial").glob("*.pt"))
        assert len(kept) == 2
        script.write_text(script.read_text().replace("len(calls) == 7", "False"))
        launch(1, *command, "--resume", script=str(script))
        facts = json.loads((tmp_path / "map.json").read_text())
        assert facts["images"] == result[1]["images"]
        same(read_map(tmp_path / "map.mrc")[0], read_map(result[0])[0], 200 * 8)


def test_info_says_what_files_hold(data, result, capsys):
    assert main(["info", str(data.star), str(data.stack), str(result[0])]) == 0
    said = capsys.readouterr().out
    assert "200 particles in 1 stacks" in said and "24 x 24 x 200" in said and "24 x 24 x 24" in said


def test_fsc_of_halves_is_that_of_the_reconstruction(result, tmp_path, capsys):
    output, facts = result
    halves = [str(output.with_name(f"map_half{i}.mrc")) for i in (1, 2)]
    assert main(["fsc", *halves, "-o", str(tmp_path / "fsc.png")]) == 0
    again = json.loads((tmp_path / "fsc.json").read_text())
    assert again["resolution_angstrom"] == pytest.approx(facts["resolution_angstrom"], rel=1e-3)
    assert f"falls below 0.5 at {again['resolution_angstrom']['0.5']:.2f}" in capsys.readouterr().out


def test_even_orientations_are_rotations():
    turns = project._even(50)
    assert np.allclose(turns @ turns.mT, np.eye(3), atol=1e-14)
    assert conventions.to_relion(turns)[0].isfinite().all()
