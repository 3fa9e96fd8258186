"""Results that are either there, whole, or not there: written under a temporary name, and renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Optional, Union

PathLike = Union[str, "os.PathLike[str]"]


class OutputError(Exception):
    """A result cannot be written where it was asked for; the message says why, and what would help."""


@contextmanager
def new_folder(path: PathLike, marker: str, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which appears under its name when the block ends, and not at all if the block raises.

    `marker` names a file that the block writes. Only a folder with such a file, or an empty one, is overwritten.
    """
    path = Path(path)
    _check_replaceable(path, marker, overwrite)
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.absolute().parent))
    except OSError as error:
        raise OutputError(f"cannot write the folder {path}: {error.strerror or error}") from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        _check_replaceable(path, marker, overwrite)  # again: this may have taken long
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}-old-", dir=path.absolute().parent))
            os.replace(path, old / path.name)
            os.replace(temporary, path)
            shutil.rmtree(old)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise OutputError(f"cannot write the folder {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_new(
    paths: Sequence[PathLike], overwrite: bool = False, inputs: Sequence[Optional[PathLike]] = ()
) -> None:
    """An error, before any work, if one of the files could not be written, or is one of the inputs."""
    read = {Path(path).resolve() for path in inputs if path is not None}
    for path in map(Path, paths):
        try:
            if path.is_dir():
                raise OutputError(f"{path} is a folder; name a file")
            if path.resolve() in read:
                raise OutputError(f"{path} is an input; name another")
            if path.exists() and not overwrite:
                raise OutputError(f"{path} exists; name another, or replace it with --overwrite")
            tempfile.TemporaryFile(dir=_existing_parent(path)).close()
        except OSError as error:
            raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def check_space(path: PathLike, needed: float) -> None:
    """An error, before any work, if the disk of a file has not as many bytes free."""
    try:
        free = shutil.disk_usage(_existing_parent(Path(path))).free
    except OSError:
        return
    if free < needed:
        raise OutputError(
            f"{path} will take {needed / 2**30:.2f} GiB, and its disk has {free / 2**30:.2f} GiB free"
        )


@contextmanager
def new_files(paths: Sequence[PathLike], overwrite: bool = False) -> Iterator[list[Path]]:
    """Names to write under; the files get their own names when the block ends, and are removed if it raises."""
    final = [Path(path) for path in paths]
    check_new(final, overwrite)
    temporary = [path.with_name(f".{os.getpid()}-{path.name}") for path in final]
    made = [folder for path in final for folder in path.absolute().parents if not folder.exists()]
    try:
        for path in final:
            path.absolute().parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        check_new(final, overwrite)  # again: this may have taken long
        for written, path in zip(temporary, final):
            os.replace(written, path)
    except OSError as error:
        raise OutputError(f"cannot write {', '.join(map(str, final))}: {error.strerror or error}") from error
    finally:
        for path in temporary:
            path.unlink(missing_ok=True)
        for folder in made:
            with suppress(OSError):  # those with a result in them stay
                folder.rmdir()


def _existing_parent(path: Path) -> Path:
    """The innermost folder around a path that is there; a file in its place fails where it is used."""
    return next(folder for folder in path.absolute().parents if folder.exists())


def _check_replaceable(path: Path, marker: str, overwrite: bool) -> None:
    if not path.exists() or (path.is_dir() and not any(path.iterdir())):
        return
    if not path.is_dir():
        raise OutputError(f"{path} is a file; name a folder that is not there yet")
    if not overwrite:
        raise OutputError(f"the folder {path} exists; name another, or replace it with --overwrite")
    if not (path / marker).is_file():
        raise OutputError(
            f"the folder {path} holds something else, no {marker}: it is not overwritten; name another"
        )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
