"""Particles: the rows of a STAR file, as RELION writes it, with the images that they name."""

from __future__ import annotations

import linecache
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Optional

import numpy as np
import torch
from torch import Tensor

from .. import conventions
from ..ctf import LIMITS, Ctf
from ..errors import InputError, first_line
from ..extras import need
from .mrc import PathLike
from .stacks import Stacks

ANGLES = ("rlnAngleRot", "rlnAngleTilt", "rlnAnglePsi")
ORIGINS_ANGSTROM = ("rlnOriginXAngst", "rlnOriginYAngst")
ORIGINS_PIXELS = ("rlnOriginX", "rlnOriginY")
DEFOCUS = ("rlnDefocusU", "rlnDefocusV", "rlnDefocusAngle")
# Of the microscope: in the optics table, or with every particle in files before RELION 3.1.
MICROSCOPE = ("rlnVoltage", "rlnSphericalAberration", "rlnAmplitudeContrast")
# What a model of images would have, and this one has not.
NOT_APPLIED = (
    "rlnBeamTiltX",
    "rlnBeamTiltY",
    "rlnOddZernike",
    "rlnEvenZernike",
    "rlnMagMat00",
    "rlnMtfFileName",
)


class Particles:
    """P particles: poses, parameters of the transfer function, and the images, read when they are asked for.

    Made by `Particles.read`. An index selects particles, and is a tensor of integers.

    Attributes:
        table, optics: the rows as they stand in the file (pandas.DataFrame); optics is None before RELION 3.1.
        pixel_size: of the images, in Å; all particles have the same.
        shape: of the images, (H, W).
        stacks, files, places: the stacks of images; of each particle its stack, and its place in that from 0.
    """

    def __init__(
        self,
        path: PathLike,
        table: Any,
        optics: Any = None,
        images: Optional[PathLike] = None,
        pixel_size: Optional[float] = None,
        block: str = "particles",
        with_images: bool = True,
    ) -> None:
        self.path, self.table, self.optics, self.block = Path(path), table, optics, block
        self._images, self._with_images = images, with_images
        if len(table) == 0:
            raise InputError(f"{path}: expected particles, got a table without rows")
        if pixel_size is not None and not 0 < pixel_size < math.inf:
            raise InputError(f"{path}: expected a pixel size > 0, got {pixel_size:g} Å")
        if with_images:
            self._find_stacks()
        self.pixel_size = self._pixel_size(with_images) if pixel_size is None else pixel_size

    @classmethod
    def read(
        cls,
        path: PathLike,
        *,
        images: Optional[PathLike] = None,
        pixel_size: Optional[float] = None,
        with_images: bool = True,
    ) -> Particles:
        """The particles of a STAR file of RELION 3.0, or 3.1 and later with its optics groups.

        Args:
            path: the STAR file.
            images: the folder that names of stacks are relative to. By default the current one, where RELION runs, or
                the folder of the STAR file, or one of those that it lies in: the first that has the first stack.
            pixel_size: in Å, in place of that in the file.
            with_images: False for poses alone; then the pixel size may be None.
        """
        if not Path(path).is_file():
            raise InputError(f"{path}: there is no such file")
        tables = _read_tables(path)
        needed = "rlnImageName" if with_images else ANGLES[0]
        fitting = [name for name, table in tables.items() if needed in table]
        if not fitting:
            found = ", ".join(f"data_{name} ({', '.join(map(str, table))})" for name, table in tables.items())
            what = "which names the images" if with_images else "the orientations"
            raise InputError(f"{path}: no column {needed}, {what}; found {found or 'no table'}")
        name = "particles" if "particles" in fitting else fitting[0]
        return cls(path, tables[name], tables.get("optics"), images, pixel_size, name, with_images)

    def __len__(self) -> int:
        return len(self.table)

    def _find_stacks(self) -> None:
        names = self.table["rlnImageName"].astype(str)
        parts = names.str.rpartition("@")
        number = (
            need("pandas")
            .to_numeric(parts[0].where(parts[1] == "@", "1"), errors="coerce")
            .to_numpy(np.float64)
        )
        missing = self.table["rlnImageName"].isna() | (parts[2] == "")
        bad = np.flatnonzero(
            ~((number >= 1) & (number < 2**31) & (number == np.floor(number))) | missing.to_numpy()
        )
        if len(bad):
            raise InputError(
                f"{self.path}: rlnImageName: expected names like 000001@folder/stack.mrcs, got {names.iloc[bad[0]]!r} "
                f"in row {bad[0] + 1}"
            )
        codes, stacks = need("pandas").factorize(parts[2])
        self.files = torch.from_numpy(codes.astype(np.int64))
        self.places = torch.from_numpy(number.astype(np.int64) - 1)
        folder = self._folder(str(stacks[0]))
        self.stacks = Stacks([folder / name for name in stacks])

    def _folder(self, stack: str) -> Path:
        if self._images is not None:
            return Path(self._images)
        found, above = _found_from(self.path, stack), _found_from(self.path, stack, with_current=False)
        if found is not None and above is not None and not (found / stack).samefile(above / stack):
            raise InputError(
                f"{self.path}: {stack} is in the current folder and in {above}, and they are two files; --images says "
                "in which folder its images are"
            )
        return found or Path()

    @property
    def shape(self) -> tuple[int, int]:
        return self.stacks.header(int(self.files[0])).shape[1:]

    def numbers(self, column: str, default: Optional[float] = None) -> Tensor:
        """A column `[P]` in float64, taken from the optics group of each particle where the table lacks it."""
        if default is not None and self._missing([column]):
            return torch.full((len(self),), default, dtype=torch.float64)
        given = self._values(column)
        values = need("pandas").to_numeric(given, errors="coerce").to_numpy(np.float64)
        bad = np.flatnonzero(~np.isfinite(values))
        if len(bad):
            raise InputError(
                f"{self.path}: {column}: expected numbers, got {given.iloc[bad[0]]} in row {bad[0] + 1}"
            )
        return torch.from_numpy(values.copy())

    def _values(self, column: str) -> Any:
        """A column as it stands, of the table or of the optics group of each particle."""
        self.require([column])
        if column in self.table:
            return self.table[column]
        if "rlnOpticsGroup" not in self.table or "rlnOpticsGroup" not in self.optics:
            raise InputError(self._lacks(["rlnOpticsGroup"], f" in both tables, to find {column} by"))
        groups = self.optics["rlnOpticsGroup"]
        if groups.duplicated().any():
            twice = groups[groups.duplicated()].iloc[0]
            raise InputError(
                f"{self.path}: data_optics: expected each rlnOpticsGroup once, got {twice} again"
            )
        of_particles = self.table["rlnOpticsGroup"]
        unknown = np.flatnonzero(~of_particles.isin(groups))
        if len(unknown):
            raise InputError(
                f"{self.path}: rlnOpticsGroup: expected one of data_optics ({', '.join(map(str, groups))}), got "
                f"{of_particles.iloc[unknown[0]]} in row {unknown[0] + 1}"
            )
        return of_particles.map(self.optics.set_index("rlnOpticsGroup")[column])

    def has(self, columns: Iterable[str]) -> bool:
        return not self._missing(columns)

    def _missing(self, columns: Iterable[str]) -> list[str]:
        optics = () if self.optics is None else self.optics.columns
        return [name for name in columns if name not in self.table and name not in optics]

    def _lacks(self, columns: Sequence[str], instead: str = "") -> str:
        have = ", ".join(map(str, self.table.columns))
        groups = "" if self.optics is None else f"; data_optics: {', '.join(map(str, self.optics.columns))}"
        return f"{self.path}: no column {', '.join(columns)}{instead}; it has {have}{groups}"

    def require(self, columns: Sequence[str], instead: str = "") -> None:
        """An error that names the columns which are missing, and what would do instead."""
        missing = self._missing(columns)
        if missing:
            raise InputError(self._lacks(missing, instead))

    def _pixel_size(self, with_images: bool) -> Optional[float]:
        if self.has(["rlnImagePixelSize"]):
            sizes = self.numbers("rlnImagePixelSize")
        elif self.has(["rlnDetectorPixelSize", "rlnMagnification"]):
            sizes = 1e4 * self.numbers("rlnDetectorPixelSize") / self.numbers("rlnMagnification")
        elif not with_images:
            return None
        else:
            size = self.stacks.header(int(self.files[0])).pixel_size
            if not size > 0:
                raise InputError(
                    self._lacks(
                        ["rlnImagePixelSize"],
                        ", nor rlnDetectorPixelSize with rlnMagnification, and no "
                        "pixel size in the header of the first stack: give one with --pixel-size",
                    )
                )
            return size
        wrong = sizes[~((sizes > 0) & (sizes < math.inf))]
        if len(wrong):
            raise InputError(f"{self.path}: expected pixel sizes > 0, got {wrong[0].item():g} Å")
        if (sizes.max() - sizes.min()) > 1e-4 * sizes.max():
            found = ", ".join(f"{size:g}" for size in sizes.unique().tolist()[:5])
            raise InputError(
                f"{self.path}: expected images of one pixel size, got {found} Å; rescale the images of all optics "
                "groups to one, or take the groups apart"
            )
        return sizes[0].item()

    def poses(self) -> tuple[Tensor, Tensor]:
        """Rotations `[P, 3, 3]`, and shifts `[P, 2]` in pixels, in float64."""
        self.require(ANGLES, " (the orientations)")
        angles = torch.stack([self.numbers(name) for name in ANGLES], -1)
        # Either pair; without both, particles are centred.
        for names, unit in ((ORIGINS_ANGSTROM, self.pixel_size), (ORIGINS_PIXELS, 1.0)):
            missing = self._missing(names)
            if len(missing) == 1:
                raise InputError(self._lacks(missing, f", which goes with {names[missing[0] == names[0]]}"))
            if not missing:
                origins = torch.stack([self.numbers(name) for name in names], -1)
                return conventions.from_relion(angles, origins, self._known(unit))
        return conventions.from_relion(angles)

    def _known(self, pixel_size: Optional[float]) -> float:
        if pixel_size is None:
            raise InputError(
                self._lacks(["rlnImagePixelSize"], ", and so no unit of origins in Å: give a pixel size")
            )
        return pixel_size

    def ctf(self) -> Ctf:
        """Parameters of the transfer function, `[P]` each."""
        self.require(
            [*DEFOCUS[:2], *MICROSCOPE],
            " (the transfer function); --no-ctf goes without, for images that have none",
        )
        u, v = (self.numbers(name) for name in DEFOCUS[:2])
        voltage, cs, contrast = (self.numbers(name) for name in MICROSCOPE)
        for name, values, limits in (
            (MICROSCOPE[0], voltage, LIMITS["voltage"]),
            (MICROSCOPE[2], contrast, LIMITS["amplitude_contrast"]),
        ):
            wrong = values[(values < limits[0]) | (values > limits[1])]
            if len(wrong):
                expected = " to ".join(f"{limit:g}" for limit in limits)
                raise InputError(f"{self.path}: {name}: expected {expected}, got {wrong[0].item():g}")
        return Ctf(
            u,
            v,
            self.numbers("rlnDefocusAngle", 0.0),
            voltage,
            cs,
            contrast,
            self.numbers("rlnPhaseShift", 0.0),
            self.numbers("rlnCtfBfactor", 0.0),
            self.numbers("rlnCtfScalefactor", 1.0),
        )

    def premultiplied(self) -> bool:
        """Whether the images are already multiplied by their transfer function."""
        flags = self.numbers("rlnCtfDataAreCtfPremultiplied", 0.0)
        if not (flags == flags[0]).all():
            raise InputError(
                f"{self.path}: expected rlnCtfDataAreCtfPremultiplied to be the same for all particles"
            )
        return bool(flags[0])

    def not_applied(self) -> list[str]:
        """Columns that say of the images what this library does not model."""
        found = [name for name in NOT_APPLIED if self.has([name])]
        return [name for name in found if name == "rlnMtfFileName" or self._is_set(name)]

    def _is_set(self, column: str) -> bool:
        source = self.table if column in self.table else self.optics
        if column == "rlnMagMat00":
            return bool((source[column] != 1).any())
        return bool(source[column].astype(str).ne("0").any()) and bool((source[column] != 0).any())

    def groups(self, column: str) -> tuple[Tensor, list[str]]:
        """The group `[P]` of each particle by the values of a column, and their names."""
        codes, names = need("pandas").factorize(self._values(column), use_na_sentinel=False)
        return torch.from_numpy(codes.astype(np.int64)), [str(name) for name in names]

    def images(self, index: Tensor) -> Tensor:
        """Images `[n, H, W]` in float32."""
        return self.stacks.read(self.files[index], self.places[index])

    def same_images(self) -> Tensor:
        """A number `[P]` for each particle, from 0 on: the same for those of the same image."""
        place = self.files * (int(self.places.max()) + 1) + self.places
        return place.unique(return_inverse=True)[1]

    def problems(self, expanded: bool = False) -> dict[int, str]:
        """Particles whose image is not there, or is there twice: of each its index and what is wrong.

        expanded: images may be there twice, at several poses.
        """
        found: dict[int, str] = {}
        last = torch.zeros(len(self.stacks.paths), dtype=torch.int64)
        last.scatter_reduce_(0, self.files, self.places, "amax")
        shape = order = None
        for file, place in enumerate(last.tolist()):
            problem = self.stacks.problem(file, place, shape)
            if problem is None:
                shape = shape or self.stacks.header(file).shape[1:]
                continue
            if order is None:
                order = torch.argsort(self.files, stable=True)
                ends = torch.bincount(self.files, minlength=len(last)).cumsum(0).tolist()
            rows = order[ends[file - 1] if file else 0 : ends[file]]
            if self.stacks.problem(file, 0, shape) is None:  # some of its images are there
                rows = rows[self.places[rows] >= self.stacks.header(file).shape[0]]
            found.update(dict.fromkeys(rows.tolist(), problem))
        if expanded:
            return found
        image = self.same_images()
        if int(image.max()) + 1 < len(self):
            order = torch.argsort(image, stable=True)
            again = torch.zeros(len(self), dtype=torch.bool)
            again[order[1:]] = image[order[1:]] == image[order[:-1]]
            for row in torch.nonzero(again).flatten().tolist():
                name = self.table["rlnImageName"].iloc[row]
                found.setdefault(
                    row,
                    f"{self.path}: {name} is there more than once; --expanded takes images at several poses",
                )
        return found

    def at(self, index: Tensor) -> Particles:
        """Some of the particles."""
        rows = self.table.iloc[index.numpy()].reset_index(drop=True)
        return self._replaced(rows)

    def with_poses(self, rotations: Tensor, shifts: Tensor) -> Particles:
        """The same particles at other poses: rotations `[P, 3, 3]`, shifts `[P, 2]` in pixels."""
        table = self.table.copy()
        angles, origins = conventions.to_relion(rotations, shifts)
        columns = dict(zip(ANGLES, angles.unbind(-1)))
        in_pixels = self.has(ORIGINS_PIXELS)
        if in_pixels:
            columns.update(zip(ORIGINS_PIXELS, origins.unbind(-1)))
        if not in_pixels or self.has(ORIGINS_ANGSTROM):
            columns.update(zip(ORIGINS_ANGSTROM, (origins * self._known(self.pixel_size)).unbind(-1)))
        for name, values in columns.items():
            table[name] = values.cpu().numpy()
        return self._replaced(table)

    def _replaced(self, table: Any) -> Particles:
        return Particles(
            self.path, table, self.optics, self._images, self.pixel_size, self.block, self._with_images
        )

    def write(self, path: PathLike) -> None:
        """A STAR file of the tables as they are; of images that could not be found from there, with their paths."""
        tables = {} if self.optics is None else {"optics": self.optics}
        table = self._named_from(Path(path)) if self._with_images else self.table
        need("starfile").write({**tables, self.block: table}, path)

    def _named_from(self, star: Path) -> Any:
        """The table, with names of images by which they are found from a STAR file."""
        first = self.stacks.paths[int(self.files[0])]
        name = str(self.table["rlnImageName"].iloc[0]).rpartition("@")[2]
        folder = _found_from(star, name)
        if not first.is_file() or (folder is not None and (folder / name).samefile(first)):
            return self.table
        paths = [path_to_write(path) for path in self.stacks.paths]
        names = [
            f"{place + 1:06d}@{paths[file]}" for file, place in zip(self.files.tolist(), self.places.tolist())
        ]
        return self.table.assign(rlnImageName=names)


def path_to_write(path: Path) -> str:
    """Of a file, for a table: relative to the current folder, where RELION runs, if the file is below that."""
    absolute, here = path.absolute(), Path.cwd()
    return (absolute.relative_to(here) if here in absolute.parents else absolute).as_posix()


def _found_from(star: Path, stack: str, with_current: bool = True) -> Optional[Path]:
    """The folder that names of stacks in a STAR file are relative to: the current one, the file's, or one above."""
    above = star.absolute().parent
    folders = ([Path()] if with_current else []) + [above, *above.parents]
    return next((folder for folder in folders if (folder / stack).is_file()), None)


def _read_tables(path: PathLike) -> dict[str, Any]:
    """The blocks of a STAR file by name; one that is no loop is a table of one row."""
    starfile, pandas = need("starfile"), need("pandas")
    try:
        blocks = starfile.read(path, always_dict=True)
    except Exception as error:  # what it raises for a file that is none is up to it
        linecache.clearcache()  # through which it reads, and would read the same again
        raise InputError(
            f"{path}: expected a STAR file; {type(error).__name__}: {first_line(error)}"
        ) from error
    tables = {
        name: block if isinstance(block, pandas.DataFrame) else pandas.DataFrame([block or {}])
        for name, block in blocks.items()
    }
    for name, table in tables.items():
        if table.columns.duplicated().any():
            twice = table.columns[table.columns.duplicated()][0]
            raise InputError(f"{path}: data_{name}: expected each column once, got {twice} again")
    return tables
