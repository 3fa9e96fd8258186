"""The kernels of torch-projectors-cuda, compiled for the host: blocks one after another, threads of a block in turn.

python tests/cuda_on_host.py FOLDER compiles the library, and prints its path.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parents[1]
PLUGIN = ROOT / "torch_projectors_cuda"
COMPILER = next(filter(shutil.which, filter(None, [os.environ.get("CXX"), "c++", "g++", "clang++"])), None)
POSSIBLE = COMPILER is not None and sys.platform != "win32" and PLUGIN.is_dir()


def build(folder: Path) -> Path:
    """Compiles the library into a folder."""
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    defines = {"TORCH_PROJECTORS_HOST": "1", "TORCH_PROJECTORS_VERSION": "0"}
    defines["TORCH_PROJECTORS_CUDA_ARCHITECTURES"] = "host"
    folders = [PLUGIN / "csrc", PLUGIN / "include", ROOT / "torch_projectors" / "include"]
    flags += [f"-D{name}={value}" for name, value in defines.items()] + [f"-I{f}" for f in folders]

    def compiled(source: str, scalar: str) -> Path:
        result = folder / f"{source}.{scalar}.o"
        define = [f"-DSCALAR={scalar}"] if scalar else []
        path = PLUGIN / "csrc" / source
        subprocess.run([COMPILER, *flags, *define, "-x", "c++", "-c", path, "-o", result], check=True)
        return result

    sources = [("kernels.cu", "float"), ("kernels.cu", "double"), ("api.cu", ""), ("torch_ops.cpp", "")]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, *zip(*sources)))
    path = folder / "libtorch_projectors_cuda_host.so"
    subprocess.run([COMPILER, "-shared", *objects, "-ldl", "-o", path], check=True)
    return path


def package(path: Path, name: str = "torch_projectors_cuda_on_host") -> ModuleType:
    """The plugin's Python package from the checkout, on that library and host memory."""
    forget(name)
    source = PLUGIN / "src" / "torch_projectors_cuda"
    folders = [str(source), str(ROOT / "torch_projectors" / "compiled")]
    spec = importlib.util.spec_from_file_location(
        name, source / "__init__.py", submodule_search_locations=folders
    )
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.library.LIBRARY.use(ctypes.CDLL(str(path)))
    kernels = importlib.import_module(f"{name}.older_torch").KERNELS
    kernels.device, kernels.stream = "cpu", lambda device: 0
    return module


def forget(name: str = "torch_projectors_cuda_on_host") -> None:
    for module in [module for module in sys.modules if module.partition(".")[0] == name]:
        del sys.modules[module]


if __name__ == "__main__":
    print(build(Path(sys.argv[1])))
