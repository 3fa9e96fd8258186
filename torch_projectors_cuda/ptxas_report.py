"""What ptxas makes of the kernels: registers, stack, spills and shared memory, as a table, and as JSON to keep.

python ptxas_report.py [architectures, such as 80 90] [--all] [--json FILE]

By default for all architectures that the library is built for, and showing float32 complex kernels alone. Needs nvcc,
no GPU. Fails where kernels spill registers that project volumes to images in float32, linear or cubic, or are their
transposes or gradients.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent

KERNEL = re.compile(
    r"NS_\d+(?P<kernel>[A-Z]\w*?)I(?:NS_\d+(?P<interpolation>Nearest|Linear|Cubic)E)?(?P<scalar>[fd])"
    r"(?:Li(?P<volume>\d)E)?(?:Li(?P<image>\d)E)?(?:Lb(?P<real>[01])E)?"
)
USAGE = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<architecture>\w+)'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def builder() -> Any:
    """setup.py, which knows the compiler and the architectures."""
    spec = importlib.util.spec_from_file_location("torch_projectors_cuda_setup", HERE / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def compiled(nvcc: str, core: Path, architecture: str, scalar: str) -> str:
    """What ptxas says."""
    with tempfile.TemporaryDirectory() as folder:
        command = [nvcc, "-O3", "-std=c++17", f"-DSCALAR={scalar}", f"-I{core / 'include'}", "-Xptxas", "-v"]
        command += [f"-gencode=arch=compute_{architecture},code=sm_{architecture}"]
        command += ["-cubin", str(HERE / "csrc" / "kernels.cu"), "-o", str(Path(folder, "kernels.cubin"))]
        run = subprocess.run(command, capture_output=True, text=True)
    if run.returncode:
        raise SystemExit(run.stderr)
    return run.stderr


def usage(said: str) -> list[dict[str, Any]]:
    """A row for each kernel."""
    rows = []
    for found in USAGE.finditer(said):
        kernel = KERNEL.search(found["name"])
        if kernel is None:  # Empty, or a kernel of the toolkit
            continue
        dims = [n for n in (kernel["volume"], kernel["image"]) if n]
        shared = re.search(r"(\d+) bytes smem", found["rest"])
        rows.append(
            {
                "architecture": found["architecture"],
                "kernel": kernel["kernel"],
                "dims": "->".join(f"{n}D" for n in dims),
                "interpolation": (kernel["interpolation"] or "").lower(),
                "scalar": {"f": "float32", "d": "float64"}[kernel["scalar"]],
                "real": kernel["real"] == "1",
                "registers": int(found["registers"]),
                "stack": int(found["stack"]),
                "spill_stores": int(found["stores"]),
                "spill_loads": int(found["loads"]),
                "shared": int(shared[1]) if shared else 0,
            }
        )
    return rows


def must_not_spill(row: dict[str, Any]) -> bool:
    main = row["dims"] == "3D->2D" and row["interpolation"] in ("linear", "cubic")
    return main and row["scalar"] == "float32" and not row["real"]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("architectures", nargs="*")
    parser.add_argument("--all", action="store_true", help="show float64 and real kernels too")
    parser.add_argument("--json", type=Path, help="write all rows there")
    options = parser.parse_args()

    setup = builder()
    nvcc = setup.find_nvcc()
    chosen = options.architectures or [a for a in setup.architectures(nvcc) if a.isdigit()]
    rows = []
    for architecture in chosen:
        for scalar in ("float", "double"):
            rows += usage(compiled(nvcc, setup.CORE, architecture, scalar))
    if len(rows) < 50 * len(chosen):
        raise SystemExit(f"expected the report of over 50 kernels for each architecture, found {len(rows)}")
    rows.sort(
        key=lambda r: (int(r["architecture"]), *(str(r[k]) for k in ("scalar", "real", "kernel", "dims")))
    )

    names = ("architecture", "kernel", "dims", "interpolation", "scalar", "real")
    numbers = ("registers", "stack", "spill_stores", "spill_loads", "shared")
    line = "{:<12} {:<17} {:<7} {:<13} {:<8} {:<5} {:>9} {:>6} {:>12} {:>11} {:>6}"
    print(line.format(*names, *numbers))
    for row in rows:
        if options.all or (row["scalar"] == "float32" and not row["real"]):
            print(line.format(*(str(row[n]) for n in (*names, *numbers))))
    if options.json:
        version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=True).stdout
        release = re.search(r"release ([\d.]+)", version)[1]
        lines = ",\n".join(f"  {json.dumps(row)}" for row in rows)
        options.json.write_text(f'{{"nvcc": "{release}", "kernels": [\n{lines}\n]}}\n')

    spilled = [r for r in rows if must_not_spill(r) and r["spill_stores"] + r["spill_loads"]]
    for row in spilled:
        print(f"spills: {row}", file=sys.stderr)
    return 1 if spilled else 0


if __name__ == "__main__":
    sys.exit(main())
