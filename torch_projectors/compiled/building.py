"""What setup.py of every such backend does beside compiling: one library for every Python, and what the core shares.

In a checkout the core lies beside the backend's directory; a source distribution has a copy of what it shares, in
`core`.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist

CORE = Path(__file__).resolve().parents[1]
VERSION = re.search(r'^VERSION = "(.+)"$', (CORE / "version.py").read_text(), re.MULTILINE)[1]
# Of the core, in a source distribution.
SHARED = ("include", "compiled", "version.py")


def headers(here: Path) -> list[str]:
    """All that a source may include."""
    found = [*here.glob("csrc/*.h"), *here.glob("include/*.h"), *CORE.glob("include/*/*.h")]
    return list(map(str, found))


class BuildLibrary(build_ext):
    """Compiles one shared library; derived classes say how."""

    def get_ext_filename(self, name: str) -> str:
        prefix, suffix = {"win32": ("", ".dll"), "darwin": ("lib", ".dylib")}.get(
            sys.platform, ("lib", ".so")
        )
        *packages, name = name.split(".")
        return os.path.join(*packages, prefix + name + suffix)

    def version_script(self, package: str) -> str:
        """For the linker: inline functions, compiled for newer processors too, must not serve others in the process."""
        exports = Path(self.build_temp, "exports.map")
        exports.write_text(f"{{ global: {package}_*; local: *; }};\n")
        return f"--version-script={exports}"


class BuildPackage(build_py):
    def run(self) -> None:
        super().run()
        if not self.editable_mode:  # there the headers are used where they are
            for header in Path("include").iterdir():
                self.copy_file(str(header), self._place(header))

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        own = [] if self.editable_mode else [self._place(header) for header in Path("include").iterdir()]
        return [*super().get_outputs(include_bytecode), *own]

    def _place(self, header: Path) -> str:
        (package,) = self.packages
        folder = Path(self.build_lib, package, "include")
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / header.name)


class SourceWithCore(sdist):
    def make_release_tree(self, base_dir: str, files: list[str]) -> None:
        super().make_release_tree(base_dir, files)
        for name in SHARED:
            copy = Path(base_dir, "core", name)
            if (CORE / name).is_dir():
                shutil.copytree(
                    CORE / name, copy, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__")
                )
            else:
                shutil.copyfile(CORE / name, copy)


class AnyPythonWheel(bdist_wheel):
    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


def run(here: Path, package: str, build_library: type[BuildLibrary]) -> None:
    """Setup of the distribution in `here`, whose library is named as its one package."""
    os.chdir(here)  # from wherever it is called: paths of sources are relative
    if CORE.parent == here.parent:  # a checkout
        shutil.copyfile(CORE.parent / "LICENSE", here / "LICENSE")
    shutil.copyfile(CORE / "compiled" / "c_library.py", here / "src" / package / "c_library.py")
    shutil.copyfile(CORE / "include" / "torch_projectors.h", here / "include" / "torch_projectors.h")
    setup(
        version=VERSION,
        # Its sources are named in build_library.
        ext_modules=[Extension(f"{package}.{package}", [])],
        cmdclass={
            "bdist_wheel": AnyPythonWheel,
            "build_ext": build_library,
            "build_py": BuildPackage,
            "sdist": SourceWithCore,
        },
    )
