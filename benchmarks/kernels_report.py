"""What `benchmarks/kernels.py` found, as a page and as a picture."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")
from matplotlib import pyplot as plt

OPERATIONS = ("encode", "decode", "decode_add", "hop", "feedback")
WANTED = 0.7  # of the bound
WHY = {  # of the C++ kernels that are below what is wanted: found in listings, and by leaving parts away
    "dithering, natural, qsgd, terngrad": "what is done to the random numbers comes on top of making them",
    "dynamic8": "a search among 255 numbers: eight steps in registers, some 50 instructions for 16 elements",
    "fp8, fp8e5m2, int4, int8, int8minmax, mxfp4, mxfp8": "an encode is 22 to 36 instructions for 16 "
    "elements: the greatest of the block, then of the same elements scale, clamp, round and pack",
    "hadamard4": "five passes over a vector in scratch memory, which each read two elements for one",
    "nvfp4": "two divisions an element that cannot be multiplications, and a scale of the whole vector first",
    "onebit, signsgd, tbq, efsignsgd, blocksign": "their decode writes 32 bytes for each that it reads",
    "randomk": "two 64-bit divisions a draw and a read that waits for them; its hop is three calls",
    "topk": "keys are stored, sampled and read again; what is chosen lies far apart in memory",
    "threshold 1 %, threshold 0.1 %": "decode_add waits for lines of memory that lie far apart",
}
Rows = dict[str, list[dict[str, Any]]]


def power(n: int) -> str:
    """Return a number of elements as a power of two."""
    return f"2^{n.bit_length() - 1}"


def markdown(rows: Rows, taken: dict[str, str], against: str) -> str:
    """Return the page."""
    kernels = rows["kernel"]
    lines = [
        "# Kernels",
        "",
        "Written by `python benchmarks/kernels.py`. GB/s count the float32 gradient, 4n bytes a call, in",
        "units of 10^9; figures are medians. What is compared was called in turns, in the same rounds;",
        "with several threads, a rest of 12 ms before each turn lets those of others go to sleep, and calls",
        "that are not measured wake its own.",
        "",
        "The bound of an operation is the larger of two times. Memory: the least bytes that it moves (inputs",
        "read once, outputs written once, a vector larger than the last-level cache read once more for",
        "each statistic of it that is needed first; derived from the program by `compll/tools/bound.py`),",
        "at the rate of memcpy of the gradient, which moves two bytes for each byte that it copies.",
        "Generator: the random generator alone for as many numbers. Of one and several threads the faster",
        "counts.",
        "`feedback` is the encode of `compile(..., error_feedback=True)`, for codecs without their own.",
        "Where other work keeps the cores busy, figures for more than one thread say nothing.",
        "",
        *(f"- {key}: {value}" for key, value in taken.items()),
        "",
        *(
            [f"`x {against}`: how many times as fast as that backend, in the same rounds.", ""]
            if against
            else []
        ),
        *_shares(kernels),
        *_composed(rows),
        *_overhead(rows["overhead"]),
        "## Every measurement",
        "",
        "| codec | operation | elements | threads | GB/s | of bound | limit | call | arithmetic | writing "
        f"| moved bytes / 4n | memcpy, moved GB/s | us |{f' x {against} |' if against else ''}",
        "|---|---|---|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|" + ("---:|" if against else ""),
    ]
    for r in kernels:
        causes = " | ".join(f"{r[cause] / r['seconds']:.0%}" for cause in ("call", "arithmetic", "writing"))
        lines.append(
            f"| {r['codec']} | {r['operation']} | {power(r['n'])} | {r['threads']} | {r['gigabytes']:.2f} "
            f"| {r['of_bound']:.0%} | {r['limit']} | {causes} | {r['moved'] / (4 * r['n']):.2f} "
            f"| {r['copied']:.1f} | {1e6 * r['seconds']:.0f} |"
            + (f" {r['of_other']:.2f} |" if against else "")
        )
    return "\n".join(lines) + "\n"


def _shares(kernels: list[dict[str, Any]]) -> list[str]:
    """Return the table of what each codec reaches, and the list of what is below what is wanted."""
    columns = list(dict.fromkeys((r["operation"], r["threads"]) for r in kernels))
    columns.sort(key=lambda c: (OPERATIONS.index(c[0]), c[1]))
    largest = max(r["n"] for r in kernels)
    found = {(r["codec"], r["operation"], r["threads"]): r for r in kernels if r["n"] == largest}
    lines = [
        f"## Share of the bound at {power(largest)} elements",
        "",
        "| codec |" + "".join(f" {op}, {t} |" for op, t in columns),
        "|---|" + "---:|" * len(columns),
    ]
    for codec in dict.fromkeys(r["codec"] for r in kernels):
        cells = [found.get((codec, *column)) for column in columns]
        lines.append(f"| {codec} |" + "".join(f" {r['of_bound']:.0%} |" if r else " - |" for r in cells))
    return [*lines, "", *_below(kernels)]


def _below(kernels: list[dict[str, Any]]) -> list[str]:
    """Return the table of what is below what is wanted, each with what holds it."""
    below = {(r["codec"], r["operation"], r["n"], r["threads"]): r for r in kernels if r["of_bound"] < WANTED}
    columns = sorted({(r["n"], r["threads"]) for r in kernels})
    lines = [
        f"## Below {WANTED:.0%}: {len(below)} of {len(kernels)} measurements",
        "",
        "Elements and threads above; the share of the bound, and what takes the longest of these, with its",
        "share of the operation's time (measured in the same rounds; what overlaps adds up to more than",
        "all): `call`, the same on one element; `arithmetic`, the rate at 2^16 elements, which lie in the",
        "core's own cache; `writing`, memset of the outputs (memcpy reads and writes at once); `memory`",
        "where none takes half: vectors between passes, computed positions, threads that wait for others.",
        "",
        "| codec | operation |" + "".join(f" {power(n)}, {t} |" for n, t in columns),
        "|---|---|" + "---|" * len(columns),
    ]
    for codec, operation in dict.fromkeys(key[:2] for key in below):
        cells = []
        for column in columns:
            r = below.get((codec, operation, *column))
            cells.append(f" {r['of_bound']:.0%} {_cause(r)} |" if r else " |")
        lines.append(f"| {codec} | {operation} |" + "".join(cells))
    named = {codec for codec, *_ in below if kernels[0]["backend"] == "cpp"}
    if named:
        lines += ["", "What that is:", ""]
        lines += [f"- {names}: {why}." for names, why in WHY.items() if named & set(names.split(", "))]
        lines.append(
            "- all at 2^20: gradient and result lie in the last-level cache, where memcpy is several times "
            "as fast as in memory; a bound of a few instructions for 16 elements leaves no room for work."
        )
    return [*lines, ""]


def _cause(r: dict[str, Any]) -> str:
    share = "" if r["cause"] == "memory" else f" {min(1, r[r['cause']] / r['seconds']):.0%}"
    return f"{r['cause']}{share}"


def _composed(rows: Rows) -> list[str]:
    if not rows["composed"]:
        return []
    lines = [
        "## The same, composed from NumPy and PyTorch",
        "",
        "As users write it (`benchmarks/composed.py`); how many times longer than the kernel by as many",
        "threads it takes. Once with glibc's default allocator, once with its thresholds for mmap and trim",
        "raised, so that temporaries keep their pages. The last column compares the latter with the bound of",
        "the operation: no kernel, however good, could be more times faster than that, since a composition",
        "of few and simple passes (int8, a threshold) is not further from memory's limit.",
        "",
        "| codec | operation | elements | threads | library | ms | times longer | the same, raised "
        "| raised, times the bound |",
        "|---|---|---|---:|---|---:|---:|---:|---:|",
    ]
    bounds = {(r["codec"], r["operation"], r["n"], r["threads"]): r["of_bound"] for r in rows["kernel"]}
    keys = ("codec", "operation", "n", "threads", "library")
    raised = {tuple(r[k] for k in keys): r for r in rows["composed"] if r["allocator"] == "raised"}
    for r in rows["composed"]:
        if r["allocator"] == "default":
            other = raised[tuple(r[k] for k in keys)]
            share = bounds.get(tuple(r[k] for k in keys[:4]))
            most = f"{other['slower'] / share:.1f}" if share else "-"
            lines.append(
                f"| {r['codec']} | {r['operation']} | {power(r['n'])} | {r['threads']} | {r['library']} "
                f"| {1e3 * r['seconds']:.2f} | {r['slower']:.1f} | {other['slower']:.1f} | {most} |"
            )
    return [*lines, ""]


def _overhead(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return []
    lines = [
        "## Calls and compiling",
        "",
        "A call for 64 elements, whose kernel takes next to nothing: of the library's C function, and",
        "of Python's method with `out=`, that C function included. `compll.compile` with an empty cache,",
        "and with the codec in it, in a process that has compiled before.",
        "",
        "| codec | C encode, us | decode | decode_add | Python encode, us | decode | decode_add "
        "| cold, s | cached, ms |",
        "|---|" + "---:|" * 8,
    ]
    for r in rows:
        calls = [
            f"{1e6 * r[k][op]:.2f}" for k in ("c", "python") for op in ("encode", "decode", "decode_add")
        ]
        lines.append(f"| {r['codec']} | {' | '.join(calls)} | {r['cold']:.2f} | {1e3 * r['cached']:.1f} |")
    return [*lines, ""]


def draw(rows: Rows, path: Path) -> None:
    """Draw the share of the bound of each codec and operation, by one thread at the middle size."""
    kernels = [r for r in rows["kernel"] if r["threads"] == 1]
    n = statistics.median_low(sorted({r["n"] for r in kernels}))
    found = {(r["codec"], r["operation"]): r for r in kernels if r["n"] == n}
    codecs = list(dict.fromkeys(codec for codec, _ in found))
    operations = [op for op in OPERATIONS if any(o == op for _, o in found)]
    size = (max(7.0, 0.45 * len(codecs) + 2), 2.2 * len(operations))
    figure, axes = plt.subplots(
        len(operations), 1, figsize=size, sharex=True, layout="constrained", squeeze=False
    )
    for panel, operation in zip(axes[:, 0], operations, strict=True):
        shares = [
            found[c, operation]["of_bound"] if (c, operation) in found else float("nan") for c in codecs
        ]
        panel.bar(range(len(codecs)), shares, color="tab:blue", width=0.6, label="CompLL")
        for library, marker in (("PyTorch", "k^"), ("NumPy", "ys")):
            points = [
                (codecs.index(r["codec"]), found[r["codec"], operation]["of_bound"] / r["slower"])
                for r in rows["composed"]
                if (r["library"], r["operation"], r["n"], r["threads"]) == (library, operation, n, 1)
                and r["allocator"] == "raised"
                and (r["codec"], operation) in found
            ]
            if points:
                panel.plot(*zip(*points, strict=True), marker, markersize=5, label=library)
        panel.axhline(1, color="0.6", linewidth=1)
        panel.axhline(WANTED, color="0.6", linewidth=1, linestyle=":")
        panel.set(yscale="log", ylabel=operation, ylim=(1e-3, 3))
        panel.grid(axis="y", alpha=0.3)
    axes[0, 0].legend(loc="lower right", ncols=3, fontsize="small")
    axes[-1, 0].set_xticks(range(len(codecs)), codecs, rotation=60, ha="right")
    figure.suptitle(f"Share of the bound, {power(n)} elements, 1 thread")
    figure.savefig(path, dpi=110)
    plt.close(figure)
