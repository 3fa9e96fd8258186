"""Builds one shared library for every Python, by nvcc. What can be declared is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py
from setuptools.command.sdist import sdist
from setuptools.modified import newer_group

HERE = Path(__file__).resolve().parent
PACKAGE = "torch_projectors_cuda"

# What the core shares: in a checkout it lies beside this directory, in a source distribution there is a copy.
CHECKOUT = HERE.parent / "torch_projectors"
CORE = CHECKOUT if (CHECKOUT / "include").is_dir() else HERE / "core"
VERSION = re.search(r'^VERSION = "(.+)"$', (CORE / "version.py").read_text(), re.MULTILINE)[1]
if CORE == CHECKOUT:
    shutil.copyfile(HERE.parent / "LICENSE", HERE / "LICENSE")

# Machine code for these, as far as nvcc knows them, and PTX of the last one for what comes later.
ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
ASKED = "TORCH_PROJECTORS_CUDA_ARCHITECTURES"

WINDOWS = sys.platform == "win32"
HOST = "/O2 /EHsc /W3 /MD" if WINDOWS else "-fPIC -fvisibility=hidden -Wall -Wextra"

ADVICE = (
    "torch-projectors-cuda was not built: {}. It needs NVIDIA's CUDA toolkit 11.8 or later (nvcc on PATH, or CUDA_HOME "
    "set) and a C++17 compiler; without, torch-projectors alone does the same in plain PyTorch, slower."
)


def find_nvcc():
    asked = [os.environ.get("CUDACXX")]
    asked += [f and os.path.join(f, "bin", "nvcc") for f in map(os.environ.get, ("CUDA_HOME", "CUDA_PATH"))]
    for candidate in list(filter(None, asked))[:1] or ["nvcc", "/usr/local/cuda/bin/nvcc"]:
        if found := shutil.which(candidate):
            return found
    raise SystemExit(ADVICE.format(f"{candidate} was not found"))


def architectures(nvcc):
    """Those to build for, as "90" or "90+PTX"."""
    if asked := os.environ.get(ASKED):
        chosen = re.split(r"[\s,;]+", asked.strip())
        for architecture in chosen:
            if not re.fullmatch(r"native|\d{2,3}[af]?(\+PTX)?", architecture):
                raise SystemExit(
                    f"{ASKED}: expected numbers as in '80 90+PTX', or 'native', got '{architecture}'"
                )
        return chosen
    run = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True)
    known = [a for a in ARCHITECTURES if f"compute_{a}" in run.stdout.split()]
    if not known:
        raise SystemExit(ADVICE.format(f"{nvcc} knows none of the architectures {ARCHITECTURES}"))
    return [str(a) for a in known] + [f"{known[-1]}+PTX"]


def code_flags(chosen):
    flags = []
    for architecture in chosen:
        number, _, ptx = architecture.partition("+")
        code = "compute" if ptx else "sm"
        flags.append(
            "-arch=native" if number == "native" else f"-gencode=arch=compute_{number},code={code}_{number}"
        )
    return flags


class BuildLibrary(build_ext):
    def get_ext_filename(self, name):
        prefix, suffix = ("", ".dll") if WINDOWS else ("lib", ".so")
        *packages, name = name.split(".")
        return os.path.join(*packages, prefix + name + suffix)

    def build_extension(self, extension):
        nvcc = find_nvcc()
        chosen = architectures(nvcc)
        common = ["-O3", "-std=c++17", "-Iinclude", f"-I{CORE / 'include'}", f"-D{PACKAGE.upper()}_BUILD=1"]
        common += [flag for option in HOST.split() for flag in ("-Xcompiler", option)]
        if os.environ.get("TORCH_PROJECTORS_WERROR") == "1":
            common += ["-Werror=all-warnings", "-Xcompiler", "/WX" if WINDOWS else "-Werror"]
        device = code_flags(chosen)
        about = [f"-DTORCH_PROJECTORS_VERSION={VERSION}"]
        about += [f"-DTORCH_PROJECTORS_CUDA_ARCHITECTURES={' '.join(chosen)}"]
        jobs = [
            ("kernels.cu", "float", ["-DSCALAR=float", *device]),
            ("kernels.cu", "double", ["-DSCALAR=double", *device]),
            ("api.cu", "", [*about, *device]),
            ("torch_ops.cpp", "", []),
        ]
        with ThreadPoolExecutor(int(os.environ.get("MAX_JOBS") or os.cpu_count())) as pool:
            objects = list(pool.map(lambda job: self._compile([nvcc, *common], *job), jobs))
        library = Path(self.get_ext_fullpath(extension.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        link = [nvcc, "-shared", "-cudart", "static", *device, *objects, "-o", str(library)]
        if not WINDOWS:
            exports = Path(self.build_temp, "exports.map")
            exports.write_text(f"{{ global: {PACKAGE}_*; local: *; }};\n")
            for option in (f"-soname={library.name}", f"--version-script={exports}", "-s"):
                link += ["-Xlinker", option]
        self._run(link)

    def _compile(self, nvcc, source, name, arguments):
        path = os.path.join("csrc", source)
        folder = Path(self.build_temp, name)
        folder.mkdir(parents=True, exist_ok=True)
        built = str(folder / f"{source}{'.obj' if WINDOWS else '.o'}")
        command = [*nvcc, *arguments, "-c", path, "-o", built]
        # What it was built by, beside it: architectures change from call to call.
        record = Path(f"{built}.txt")
        same = record.exists() and record.read_text() == "\n".join(command)
        headers = [*HERE.glob("csrc/*.h"), *HERE.glob("include/*.h"), *CORE.glob("include/*/*.h")]
        if self.force or not same or newer_group([__file__, path, *map(str, headers)], built):
            self._run(command)
            record.write_text("\n".join(command))
        return built

    @staticmethod
    def _run(command):
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError):
            raise SystemExit(ADVICE.format("nvcc failed, as said above")) from None


class BuildPackage(build_py):
    def run(self):
        super().run()
        if not self.editable_mode:  # there the header is used where it is
            for header in Path("include").iterdir():
                self.copy_file(str(header), self._place(header))

    def get_outputs(self, include_bytecode=1):
        own = [] if self.editable_mode else [self._place(header) for header in Path("include").iterdir()]
        return [*super().get_outputs(include_bytecode), *own]

    def _place(self, header):
        folder = Path(self.build_lib, PACKAGE, "include")
        folder.mkdir(parents=True, exist_ok=True)
        return str(folder / header.name)


class SourceWithCore(sdist):
    def make_release_tree(self, base_dir, files):
        super().make_release_tree(base_dir, files)
        core = Path(base_dir, "core")
        shutil.copytree(CORE / "include", core / "include", dirs_exist_ok=True)
        shutil.copyfile(CORE / "version.py", core / "version.py")


class AnyPythonWheel(bdist_wheel):
    def get_tag(self):
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        version=VERSION,
        # Its sources are named in BuildLibrary.
        ext_modules=[Extension(f"{PACKAGE}.{PACKAGE}", [])],
        cmdclass={
            "bdist_wheel": AnyPythonWheel,
            "build_ext": BuildLibrary,
            "build_py": BuildPackage,
            "sdist": SourceWithCore,
        },
    )
