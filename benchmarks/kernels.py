"""How fast are the generated kernels? Each operation beside its bound, and beside NumPy and PyTorch.

    python benchmarks/kernels.py                 everything: some 20 minutes on a quiet machine
    python benchmarks/kernels.py --quick         2^20 elements, one thread, a few codecs: one to two minutes
    python benchmarks/kernels.py --codecs int8   one or several of them
    python benchmarks/kernels.py --resume        go on with a run that was interrupted
    python benchmarks/kernels.py --backend numba --against cpp     another backend, and how it compares

Bounds and rounds are those of `compll bench` (compll/tools/bench.py). Writes kernels.md, kernels.json and
kernels.png to benchmarks/results/; for another backend than cpp kernels-BACKEND.md and so on.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import composed
import kernels_report
import numpy as np
import overhead
import selection
import torch
from rich.progress import track

import compll
from compll.tools import bench, bound

SIZES, THREADS = (2**20, 2**24, 2**27), (1, 2)
COMPOSED_SIZES = (2**20, 2**24)
ALLOCATORS = {
    "default": {},
    "raised": {"MALLOC_MMAP_THRESHOLD_": str(2**40), "MALLOC_TRIM_THRESHOLD_": str(2**40)},
}
RESULTS = Path(__file__).parent / "results"


def sources(*, quick: bool) -> dict[str, str | Path]:
    """Return what is measured: the codecs of a fixed rate, and selections by threshold."""
    fixed = [name for name in compll.algorithms() if compll.compile(name, "interp").info.exact_size]
    if quick:
        fixed = [name for name in fixed if name in composed.CODECS]
    return {
        **{name: name for name in fixed},
        **{label: selection.selection(label) for label in selection.CUTS},
    }


class Journal:
    """Rows as they are measured, so that an interrupted run can go on."""

    def __init__(self, path: Path, *, resume: bool) -> None:
        self.path = path
        if not resume:
            path.unlink(missing_ok=True)
        lines = path.read_text().splitlines() if path.is_file() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]

    def add(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")

    def has(self, **what: Any) -> bool:
        return any(all(row.get(k) == v for k, v in what.items()) for row in self.rows)


@dataclass(frozen=True)
class Subject:
    """A codec, its operations, and what rows call them; `other` is the same on another backend."""

    codec: str
    made: bench.Made
    operations: tuple[str, ...]
    labels: dict[str, str]
    other: bench.Made | None


def subjects(found: dict[str, str | Path], backend: str, against: str) -> Iterator[Subject]:
    """Compile each codec, and it with error feedback if it has none of its own.

    One is yielded when the one before is done with: libraries keep their scratch, which may be gigabytes.
    """
    for name, source in found.items():
        plain = bench.make(source, backend)
        other = bench.make(source, against) if against else None
        yield Subject(name, plain, plain.operations, {}, other)
        if not plain.codec.info.feedback:
            added = bench.make(source, backend, error_feedback=True)
            other = bench.make(source, against, error_feedback=True) if against else None
            yield Subject(name, added, ("encode",), {"encode": "feedback"}, other)


def measure_kernels(given: argparse.Namespace, journal: Journal) -> None:
    sizes, threads = (SIZES[:1], THREADS[:1]) if given.quick else (SIZES, THREADS)
    wanted = [name for name in given.codecs.split(",") if name]
    found = {k: v for k, v in sources(quick=given.quick).items() if not wanted or k in wanted}
    todo = (  # those of one size share a gradient
        (n, s, t) for n in sizes for s in subjects(found, given.backend, given.against) for t in threads
    )
    for n, subject, count in track(todo, "kernels", total=2 * len(found) * len(sizes) * len(threads)):
        operations = [
            op
            for op in subject.operations
            if not journal.has(
                kind="kernel",
                codec=subject.codec,
                operation=subject.labels.get(op, op),
                n=n,
                threads=count,
            )
        ]
        if not operations:
            continue
        others = bench.calls(subject.other.codec, n, count, operations)[0] if subject.other else None
        for row, taken in bench.measure(
            subject.made, n, count, operations, given.seconds, labels=subject.labels, others=others
        ):
            of_other = taken.ratio("other", "kernel") if others else None
            journal.add({"kind": "kernel", **asdict(row), "codec": subject.codec, "of_other": of_other})


def measure_composed(given: argparse.Namespace, journal: Journal) -> None:
    sizes, threads = (COMPOSED_SIZES[:1], THREADS[:1]) if given.quick else (COMPOSED_SIZES, THREADS)
    todo = [(n, t, a) for n in sizes for t in threads for a in ALLOCATORS]
    for n, count, allocator in track(todo, "NumPy and PyTorch"):
        if journal.has(kind="composed", n=n, threads=count, allocator=allocator):
            continue
        command = [sys.executable, composed.__file__, "--elements", str(n), "--threads", str(count)]
        done = subprocess.run(
            [*command, "--seconds", str(given.seconds)],
            env=os.environ | ALLOCATORS[allocator],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        for row in json.loads(done.stdout):
            journal.add({"kind": "composed", "allocator": allocator, **row})


def measure_overhead(given: argparse.Namespace, journal: Journal) -> None:
    wanted = given.codecs.split(",") if given.codecs else [*compll.algorithms()]
    names = [name for name in wanted if name in (composed.CODECS if given.quick else compll.algorithms())]
    for name in track(names, "calls and compiling"):
        if not journal.has(kind="overhead", codec=name):
            journal.add({"kind": "overhead", **asdict(overhead.measure(name))})


def machine_seconds() -> float:
    """Processor seconds that all processes of the machine have used since it started."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle, waiting = ticks[3], ticks[4]
    return (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def own_seconds() -> float:
    """Processor seconds of this process and those that it has waited for."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def conditions(given: argparse.Namespace) -> dict[str, str]:
    shown = {
        "backend": given.backend,
        "against": given.against,
        "codecs": given.codecs,
        "seconds": given.seconds,
    }
    options = [f"--{name} {value}" for name, value in shown.items() if value] + ["--quick"] * given.quick
    models = [x for x in Path("/proc/cpuinfo").read_text().splitlines() if x.startswith("model name")]
    return {
        "command": " ".join(["python benchmarks/kernels.py", *options]),
        "processor": models[0].split(":")[1].strip() if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "last-level cache": f"{bound.cache_bytes() / 2**20:.0f} MiB",
        "backend": given.backend,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backend", default="cpp")
    parser.add_argument("--against", default="", help="another backend, measured in the same rounds")
    parser.add_argument("--seconds", type=float, default=0.3, help="for each of the cases")
    parser.add_argument("--codecs", default="", help="only these, by commas")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder to write to")
    given = parser.parse_args()
    name = "kernels" if given.backend == "cpp" else f"kernels-{given.backend}"
    given.output.mkdir(parents=True, exist_ok=True)
    journal = Journal(given.output / f"{name}.partial.jsonl", resume=given.resume)
    taken = conditions(given)
    machine, own, start = machine_seconds(), own_seconds(), time.perf_counter()
    measure_kernels(given, journal)
    if given.backend == "cpp":
        measure_composed(given, journal)
        measure_overhead(given, journal)
    wall = time.perf_counter() - start
    busy = machine_seconds() - machine - (own_seconds() - own)
    taken["cores busy with other work meanwhile"] = f"{busy / wall:.2f}"
    taken["seconds"] = f"{wall:.0f}"
    rows = {
        kind: [r for r in journal.rows if r["kind"] == kind] for kind in ("kernel", "composed", "overhead")
    }
    table = kernels_report.markdown(rows, taken, given.against)
    (given.output / f"{name}.json").write_text(json.dumps({"conditions": taken, **rows}, indent=1) + "\n")
    (given.output / f"{name}.md").write_text(table)
    kernels_report.draw(rows, given.output / f"{name}.png")
    journal.path.unlink()
    print(table)


if __name__ == "__main__":
    main()
