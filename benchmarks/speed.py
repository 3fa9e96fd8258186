"""The tables of docs/speed.md, from results/cpu_report.json and, beside torch-fourier-slice, results/cpu.json; of CUDA,
from results/cuda_ptxas.json and, where there is one, results/gpu.json, which benchmarks.gpu writes.

`python -m benchmarks.speed` writes them into the page.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Callable

from .tables import aligned, markdown, rewrite

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "cpu_report.json"
PEER_RESULTS = ROOT / "benchmarks" / "results" / "cpu.json"
PTXAS_RESULTS = ROOT / "benchmarks" / "results" / "cuda_ptxas.json"
GPU_RESULTS = ROOT / "benchmarks" / "results" / "gpu.json"
PAGE = ROOT / "docs" / "speed.md"

PEER = "torch-fourier-slice"  # among the parts of the report

Row = dict[str, Any]
Rows = list[list[str]]
NAMES = {"forward": "gather", "backward": "scatter", "gradient": "gradient"}


def short(x: float) -> str:
    return f"{x:.3g}" if x < 100 else f"{x:.0f}"


def tenths(x: float) -> str:
    return f"{round(x, 1) + 0.0:.1f}"  # and no -0.0


def ms(row: Row, seconds: dict[str, float]) -> str:
    return short(1e3 * seconds["median"] / row["poses"])


PLACE = ["operation", "box", "poses"]


def place(row: Row) -> list[str]:
    return [NAMES[row["operation"]], str(row["box"]), str(row["poses"])]


def grouped(rows: Sequence[Row], *names: str) -> Iterator[tuple[tuple[Any, ...], list[Row]]]:
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple([row[name] for name in names]), []).append(row)
    yield from groups.items()


def threads(rows: Sequence[Row]) -> Rows:
    numbers = [name for name in rows[0]["seconds"] if name.isdigit()]
    times = ["1 thread" if n == "1" else f"{n} threads" for n in numbers]
    table = [[*PLACE, *times, "faster", "apart", "ns/pixel"]]
    for r in rows:
        ns = 1e9 * r["seconds"][numbers[-1]]["median"] / (r["poses"] * r["pixels"])
        times = [ms(r, r["seconds"][n]) for n in numbers]
        alone = f"{r['apart']:.2f}" if "apart" in r else ""
        table.append([*place(r), *times, f"{r['ratio']:.2f}", alone, short(ns)])
    return table


def peer(rows: Sequence[Row]) -> Rows:
    table = [[*PLACE, "ours", "torch-fourier-slice", "faster", "of roof", "kernel"]]
    for r in rows:
        if "peer" in r:
            times = [short(r[name]["median_ms_per_projection"]) for name in ("no_shifts", "peer")]
            roof = [f"{r[name]:.2f}" if name in r else "" for name in ("of_roof", "kernel_of_roof")]
            table.append([*place(r), *times, f"{r['ratio']:.1f}", *roof])
    return table


def interpolation(rows: Sequence[Row]) -> Rows:
    names = ["linear", "cubic"]
    times = [[ms(r, r["seconds"][name]) for name in names] for r in rows]
    return [
        [*PLACE, *names, "slower"],
        *[[*place(r), *t, f"{r['ratio']:.2f}"] for r, t in zip(rows, times)],
    ]


def geometry(rows: Sequence[Row]) -> Rows:
    names = {"3-2": "volume to image", "3-3": "volume to volume", "2-2": "image to image"}
    head = ["geometry", "box", "poses", "samples", "MB read"]
    table = [[*head, *NAMES.values(), "ratio of gathers"]]
    for (g, box, poses), of in grouped(rows, "geometry", "box", "poses"):
        samples, size = poses * of[0]["pixels"], of[0]["volume_bytes"] / 1e6
        times = [short(r["ns_per_sample"]) for r in of]
        ratio = f"{of[0]['ratio']:.2f}"
        table.append([names[g], str(box), str(poses), f"{samples:,}", f"{size:.2f}", *times, ratio])
    return table


def call(rows: Sequence[Row]) -> Rows:
    table = [[*PLACE, "whole call", "kernel", "rest"]]
    for r in rows:
        whole, rest = 1e6 * r["seconds"]["public"]["median"], r["above_kernel_us"]
        table.append([*place(r), *[f"{x:.1f}" for x in (whole, whole - rest, rest)]])
    return table


def memory(rows: Sequence[Row]) -> Rows:
    table = [["operation", "box", *[f"{n} poses" for n in sorted({r["poses"] for r in rows})]]]
    for (operation, box), of in grouped(rows, "operation", "box"):
        table.append([NAMES[operation], str(box), *[tenths(r["beyond_mb"]) for r in of]])
    return table


def scaling(rows: Sequence[Row]) -> Rows:
    table = [["box", "poses", *NAMES.values()]]
    for (_, box, poses), of in grouped(rows, "along", "box", "poses"):
        table.append([str(box), str(poses), *[ms(r, r["seconds"]) for r in of]])
    return table


def by_environment(rows: Sequence[Row]) -> Rows:
    names = list(rows[0]["seconds"])
    precisions = len({r["dtype"] for r in rows}) > 1
    head = ["precision"] if precisions else []
    table = [[*head, "interpolation", *PLACE, *names, *[f"faster, {name}" for name in names[1:]]]]
    for r in rows:
        times = [ms(r, r["seconds"][name]) for name in names]
        faster = [f"{r['ratio'][name]:.2f}" for name in names[1:]]
        head = [r["dtype"]] if precisions else []
        table.append([*head, r["interpolation"], *place(r), *times, *faster])
    return table


def large(results: dict[str, Any]) -> Rows:
    poses = sorted({r["poses"] for r in results["times"]})
    held = f"GB held, {poses[0]} poses"
    table = [["operation", "box", "volume", *[f"ms, {n} poses" for n in poses], held, "MB beyond"]]
    for (operation, box, oversampling), of in grouped(results["times"], "operation", "box", "oversampling"):
        m = results["memory"].get(operation)
        sizes = [f"{m['baseline_mb'] / 1e3:.2f}", tenths(m["beyond_mb"])] if m else ["", ""]
        times = [ms(r, r["seconds"]) for r in of]
        table.append([NAMES[operation], str(box), str(round(box * oversampling)), *times, *sizes])
    return table


def checks(results: dict[str, Any]) -> Rows:
    names = {
        "projections": "error of a component of a projection, at most",
        "shifts": "error of a gradient of shifts, at most",
        "rotations": "error of a gradient of rotations, at most",
        "adjoint": "error of the adjoint identity",
        "weights": "error of the sum of the weight volume",
    }
    found = results["checks"]
    furthest = ["furthest byte of the volume that was read", f"{found['furthest_byte']:,}"]
    errors = [[text, f"{found[name]:.0e}"] for name, text in names.items()]
    return [["check", "found"], furthest, *errors]


# By name: title, part of the results, and the table of that.
TABLES: dict[str, tuple[str, str, Callable[[Any], Rows]]] = {
    "threads": ("ms by projection, by number of threads", "threads", threads),
    "peer": ("ms by projection, ours without shifts beside torch-fourier-slice", PEER, peer),
    "interpolation": ("ms by projection, by interpolation", "interpolation", interpolation),
    "geometry": ("ns by sample, and that by volume to image", "geometry", geometry),
    "call": ("microseconds of a small call", "call", call),
    "memory": ("peak MB beyond inputs and outputs", "memory", memory),
    "scaling": ("ms by projection, along the box and along the poses", "scaling", scaling),
    "levels": ("ms by projection, by level of vector instructions", "levels", by_environment),
    "kept": ("ms by projection, with memory that is kept", "kept", by_environment),
    "large": ("a large volume: ms by projection, and memory", "large", large),
    "checks": ("checks of a large volume", "large", checks),
}


def tables(document: dict[str, Any]) -> dict[str, Rows]:
    """Of all parts that were measured."""
    return {
        name: table(document[part]["results"])
        for name, (_, part, table) in TABLES.items()
        if part in document
    }


def show(document: dict[str, Any]) -> None:
    for name, rows in tables(document).items():
        print(f"{TABLES[name][0]}\n\n{aligned(rows)}\n")


def where(document: dict[str, Any]) -> Rows:
    """Parts that were measured alike share a row."""
    parts: dict[tuple[str, ...], list[str]] = {}
    for part, measured in document.items():
        m, s = measured["machine"], measured["settings"]
        values = [m["cpu"], m["cores"], m["threads"], m["backend"], m["torch"], s["repeats"]]
        commit = m["commit"] or ""
        parts.setdefault((*map(str, values), commit[:9] + commit[40:]), []).append(part)  # and -dirty
    head = ["parts", "processor", "cores", "threads", "backend", "PyTorch", "rounds", "commit"]
    return [head, *[[", ".join(names), *values] for values, names in parts.items()]]


KERNELS = {"Project": "gather", "Backproject": "scatter", "OwnedBackproject": "scatter, deterministic"}
KERNELS["Gradients"] = "gradient"


def registers(kernels: Sequence[Row]) -> Rows:
    """Of the float32 kernels between volumes and images, by architecture, what ptxas reports."""
    main = [
        k
        for k in kernels
        if k["kernel"] in KERNELS
        and (k["dims"], k["scalar"], k["real"]) == ("3D->2D", "float32", False)
        and k["interpolation"] != "nearest"
    ]
    chosen = sorted({k["architecture"] for k in main}, key=int)
    found = {(k["kernel"], k["interpolation"], k["architecture"]): k for k in main}
    table = [["operation", "interpolation", *[f"{a[:-1]}.{a[-1]}" for a in chosen], "bytes spilt"]]
    for kernel, operation in KERNELS.items():
        for interpolation in ("linear", "cubic"):
            each = [found[kernel, interpolation, a] for a in chosen]
            spilt = sum(k["spill_stores"] + k["spill_loads"] for k in each)
            table.append([operation, interpolation, *[str(k["registers"]) for k in each], str(spilt)])
    return table


def device(times: Sequence[Row]) -> Rows:
    """Of benchmarks.gpu: slices of volumes, all poses, linear and cubic."""
    head = ["operation", "interpolation", "box", "batch", "poses", "thousands a second", "of published"]
    table = [head]
    for r in times:
        if "seconds" in r and r["geometry"] == "3-2" and r["poses"] == 2048:
            peer = f"{r['of_published']:.2f}" if "of_published" in r else ""
            setting = [
                NAMES[r["operation"]],
                r["interpolation"],
                *[str(r[n]) for n in ("box", "batch", "poses")],
            ]
            table.append([*setting, short(r["projections_per_s"] / 1e3), peer])
    return table


def cuda() -> dict[str, str]:
    """What the page shows of the CUDA backend."""
    found = {"ptxas": markdown(registers(json.loads(PTXAS_RESULTS.read_text())["kernels"]))}
    document = json.loads(GPU_RESULTS.read_text()) if GPU_RESULTS.exists() else {}
    found["device"] = "Not measured yet."
    if document.get("times"):
        m = document["machine"]
        about = f"On {m['device']}, CUDA {m['cuda']}, PyTorch {m['torch']}, backend {m['backend']}."
        found["device"] = f"{about}\n\n{markdown(device(document['times']))}"
    return found


def texts(document: dict[str, Any]) -> dict[str, str]:
    """What the page shows, by name."""
    found = {name: markdown(rows) for name, rows in tables(document).items()}
    quick = [part for part, measured in document.items() if measured["settings"]["quick"]]
    note = f"**Placeholders, of small sizes and no worth: {', '.join(quick)}.**" if quick else ""
    return {
        "note": note,
        **dict.fromkeys(TABLES, "Not measured yet."),
        **found,
        "where": markdown(where(document)),
        **cuda(),
    }


def committed() -> dict[str, Any]:
    """All results, by part."""
    document = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    return {**document, PEER: json.loads(PEER_RESULTS.read_text())}


if __name__ == "__main__":
    rewrite(PAGE, texts(committed()))
