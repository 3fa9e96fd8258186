"""Builds one shared library for every Python. What can be declared is in pyproject.toml."""

import os
import re
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools.errors import CompileError, LinkError, PlatformError
from setuptools.modified import newer_group

HERE = Path(__file__).resolve().parent
PACKAGE = "torch_projectors_cpu"

# In a checkout the core lies beside this directory; in a source distribution there is a copy of what it shares.
CORE = next(c for c in (HERE.parent / "torch_projectors", HERE / "core") if (c / "compiled").is_dir())
sys.path.insert(0, str(CORE / "compiled"))
import building  # noqa: E402

UNIX = "-O3 -std=c++17 -fPIC -fvisibility=hidden -fopenmp-simd -fno-math-errno -fno-trapping-math -DNDEBUG"
WARNINGS = "-Wall -Wextra -Wno-psabi"
MICROSOFT = "/O2 /std:c++17 /EHsc /W3 /wd4068"
# Vector instructions, for Unix compilers and Microsoft's. The first level is what the platform always has. Linkers
# keep the first copy of an inline function, so levels are linked in this order.
X86 = {
    "baseline": ("-march=x86-64", ""),
    "avx2": ("-mavx2 -mfma -mbmi2", "/arch:AVX2"),
    "avx512": (
        "-mavx512f -mavx512dq -mavx512vl -mavx512bw -mfma -mbmi2 -mprefer-vector-width=256",
        "/arch:AVX512",
    ),
}
ANY = {"baseline": ("", "")}

ADVICE = (
    "torch-projectors-cpu was not built: {}. It needs a C++17 compiler (Debian, Ubuntu: apt install g++; macOS: "
    "xcode-select --install; Windows: Build Tools for Visual Studio). Without, torch-projectors alone does the "
    "same in plain PyTorch, slower."
)


class BuildLibrary(building.BuildLibrary):
    def build_extension(self, extension):
        try:
            self._build(extension)
        except PlatformError as error:  # Microsoft's compiler is not there
            raise SystemExit(ADVICE.format(error)) from None
        except (CompileError, LinkError):
            raise SystemExit(ADVICE.format("the compiler failed, as said above")) from None

    def _build(self, extension):
        microsoft = self.compiler.compiler_type == "msvc"
        if microsoft:
            self.compiler.initialize()
        else:
            self._own_flags()
        x86 = re.search("(x86_64|amd64)$", self.plat_name.replace("-", "_"))
        levels = X86 if x86 else ANY
        defines = [("TORCH_PROJECTORS_VERSION", building.VERSION)]
        defines += [(f"TORCH_PROJECTORS_{level.upper()}", "1") for level in levels if level != "baseline"]
        # (source, level, macros, flags)
        always = levels["baseline"][microsoft]
        jobs = [("api.cpp", "", defines, always), ("torch_ops.cpp", "", [], always)]
        jobs += [
            ("kernels.cpp", level, [("LEVEL", level)], flags[microsoft]) for level, flags in levels.items()
        ]
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            objects = list(pool.map(self._compile, *zip(*jobs)))
        self._link(objects, Path(self.get_ext_fullpath(extension.name)).resolve())

    def _own_flags(self):
        """Drops the flags that Python was compiled with, for some slow loops down; finds out if there is a compiler."""
        for name in ("compiler_so", "compiler_so_cxx"):
            command = getattr(self.compiler, name, None)
            if command:
                own = [x for x in command if not re.match("-([OgfWD]|std=|m(?!acosx))", x)]
                setattr(self.compiler, name, own)
        if shutil.which(own[0]) is None:
            raise PlatformError(f"{own[0]} was not found")
        for name in ("linker_so", "linker_so_cxx"):
            command = getattr(self.compiler, name, None)
            if command and sys.platform == "darwin":
                text = (
                    " ".join(command)
                    .replace("-bundle", "-dynamiclib")
                    .replace("-undefined dynamic_lookup", "")
                )
                setattr(self.compiler, name, text.split())

    def _compile(self, source, level, macros, flags):
        microsoft = self.compiler.compiler_type == "msvc"
        arguments = f"{MICROSOFT if microsoft else f'{UNIX} {WARNINGS}'} {flags}".split()
        if os.environ.get("TORCH_PROJECTORS_WERROR") == "1":
            arguments.append("/WX" if microsoft else "-Werror")
        if not microsoft:
            arguments += [*os.environ.get("CPPFLAGS", "").split(), *os.environ.get("CXXFLAGS", "").split()]
        sources, folder = [os.path.join("csrc", source)], os.path.join(self.build_temp, level)
        built = self.compiler.object_filenames(sources, output_dir=folder)
        if not self.force and not newer_group([__file__, *sources, *building.headers(HERE)], built[0]):
            return built[0]
        self.compiler.compile(
            sources,
            output_dir=folder,
            macros=[("TORCH_PROJECTORS_CPU_BUILD", "1"), *macros],
            include_dirs=["include", str(CORE / "include")],
            extra_postargs=arguments,
        )
        return built[0]

    def _link(self, objects, library):
        arguments = []
        if sys.platform == "darwin":
            arguments = [f"-Wl,-install_name,@rpath/{library.name}", f"-Wl,-exported_symbol,_{PACKAGE}_*"]
        elif self.compiler.compiler_type == "msvc":
            arguments = [f"/IMPLIB:{library.with_suffix('.lib')}"]
        elif self.compiler.compiler_type == "unix":
            arguments = [
                "-pthread",
                "-ldl",
                f"-Wl,-soname,{library.name}",
                f"-Wl,{self.version_script(PACKAGE)}",
            ]
            if not re.search(r"(^| )-g", os.environ.get("CXXFLAGS", "")):
                arguments.append("-Wl,-s")
        library.parent.mkdir(parents=True, exist_ok=True)
        self.compiler.link_shared_object(objects, str(library), extra_postargs=arguments, target_lang="c++")


if __name__ == "__main__":
    building.run(HERE, PACKAGE, BuildLibrary)
