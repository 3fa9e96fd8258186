"""Builds one shared library for every Python, by nvcc. What can be declared is in pyproject.toml."""

import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools.modified import newer_group

HERE = Path(__file__).resolve().parent
PACKAGE = "torch_projectors_cuda"

# In a checkout the core lies beside this directory; in a source distribution there is a copy of what it shares.
CORE = next(c for c in (HERE.parent / "torch_projectors", HERE / "core") if (c / "compiled").is_dir())
sys.path.insert(0, str(CORE / "compiled"))
import building  # noqa: E402

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


class BuildLibrary(building.BuildLibrary):
    def build_extension(self, extension):
        nvcc = find_nvcc()
        chosen = architectures(nvcc)
        common = ["-O3", "-std=c++17", "-Iinclude", f"-I{CORE / 'include'}", f"-D{PACKAGE.upper()}_BUILD=1"]
        common += [flag for option in HOST.split() for flag in ("-Xcompiler", option)]
        if os.environ.get("TORCH_PROJECTORS_WERROR") == "1":
            common += ["-Werror=all-warnings", "-Xcompiler", "/WX" if WINDOWS else "-Werror"]
        device = code_flags(chosen)
        about = [f"-DTORCH_PROJECTORS_VERSION={building.VERSION}"]
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
            for option in (f"-soname={library.name}", self.version_script(PACKAGE), "-s"):
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
        if self.force or not same or newer_group([__file__, path, *building.headers(HERE)], built):
            self._run(command)
            record.write_text("\n".join(command))
        return built

    @staticmethod
    def _run(command):
        try:
            subprocess.run(command, check=True)
        except (OSError, subprocess.CalledProcessError):
            raise SystemExit(ADVICE.format("nvcc failed, as said above")) from None


if __name__ == "__main__":
    building.run(HERE, PACKAGE, BuildLibrary)
