"""The CUDA kernels on a GPU: are they bit-equal, and how fast are they? Run it by benchmarks/gpu.sh.

First all kernels are compiled. Then for one codec after the other, those of simple kernels first: their
registers are noted; every operation is compared with another backend bit for bit, also as a replayed graph
and on PyTorch's tensors; a call on one element is timed; then each operation beside a copy of the gradient
from one place of the device to another, in turns, and the medians are compared. Rates count the gradient's
float32 bytes, 4n, for every operation; the copy reads and writes 4n. What has been found is written after
each codec, so that a run that is stopped leaves it.

`--backend cudasim` goes the same way without a GPU, to try this program; its times mean nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gpu_checks
import numpy as np
from gpu_machines import Machine, machine_of

import compll
from compll.errors import BackendError
from compll.types import HALF, dtype

if TYPE_CHECKING:
    from collections.abc import Callable

RESULTS = Path(__file__).parent / "results"
FIRST = (  # they need every kind of kernel; where time is short the others are left out
    *("int8", "int4", "fp8", "mxfp4", "qsgd", "tbq", "onebit", "terngrad"),
    *("randomk", "topk", "sidco", "graddrop", "dgc", "hadamard4", "nvfp4"),
)
CODECS: tuple[tuple[str, dict[str, int]], ...] = (
    *((name, {}) for name in FIRST),
    *(("terngrad", {"bitwidth": w}) for w in (1, 3, 4, 8)),
    *((name, {}) for name in compll.algorithms() if name not in FIRST),
)


def label(name: str, params: dict[str, int]) -> str:
    return " ".join([name, *(f"{v} bits" for v in params.values())])


def operations(machine: Machine, codec: compll.Codec, gradient: Any) -> dict[str, Callable[[], Any]]:
    """Return a call of each operation on arrays that are there already, which waits for nothing."""
    n = len(gradient)
    state = codec.new_state(n, like=gradient) or None
    payload, hopped = machine.bytes(codec.max_bytes(n)), machine.bytes(codec.max_bytes(n))
    out, total = machine.like(gradient), machine.like(gradient)
    payload = codec.encode(gradient, seed=7, state=state, out=payload)
    room = machine.bytes(codec.max_bytes(n))
    found: dict[str, Callable[[], Any]] = {
        "encode": lambda: codec.encode(gradient, seed=7, state=state, out=room),
        "decode": lambda: codec.decode(payload, n, out=out, shared_seed=7, wait=False),
        "decode_add": lambda: codec.decode_add(payload, total, 0.5, shared_seed=7, wait=False),
    }
    if codec.info.hop:
        found["hop"] = lambda: codec.hop(
            payload, gradient, seed=7, shared_seed=7, scale=0.5, state=state, out=hopped
        )
    return found


class Report:
    """What has been found, written to gpu.json and gpu.md at each step."""

    def __init__(self, options: argparse.Namespace, machine: Machine) -> None:
        self.folder, self.sizes = options.results, options.check
        self.end = time.monotonic() + options.limit
        self.found: dict[str, Any] = {
            "machine": machine.description(),
            "date": f"{datetime.now(UTC):%Y-%m-%d}",
            "complete": False,
            "kernels": {},
            "compared": 0,
            "differences": [],
            "small": [],
            "rates": [],
        }

    def late(self) -> bool:
        return time.monotonic() > self.end

    def write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "gpu.json").write_text(json.dumps(self.found, indent=1) + "\n", "utf-8")
        (self.folder / "gpu.md").write_text(markdown(self.found), "utf-8")


def markdown(found: dict[str, Any]) -> str:
    kernels = found["kernels"]
    used = [k for ks in kernels.values() for k in ks.values()]
    registers = (
        f"{len(used)} kernels take at most {max(k['registers'] for k in used)} registers and "
        f"{max(k['local_bytes'] for k in used)} bytes of local memory a thread, and "
        f"{max(k['shared_bytes'] for k in used)} bytes of shared memory a block."
        if used
        else "What a kernel takes is not known here."
    )
    lines = [
        "# CUDA kernels",
        "",
        f"{found['machine']}, {found['date']}; by `benchmarks/gpu.sh`"
        f"{'' if found['complete'] else ', **which was stopped before its end**'}.",
        f"{found['compared']} payloads, states and decoded vectors were compared with another backend, and "
        f"{len(found['differences'])} differed. {registers}",
        "",
        *(f"- differs: {x}" for x in found["differences"]),
        "",
        "One element: a call from Python until it returns, and as a replayed graph, launches included.",
        "",
        "| codec | operation | launches | call, us | graph, us |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {r['codec']} | {r['operation']} | {r['launches']} | {r['call_us']:.1f} | "
            f"{r['graph_us']:.1f} |"
            for r in found["small"]
        ),
        "",
        "Time on the device, as a replayed graph, beside the device's own copy of the gradient.",
        "",
        "| codec | operation | elements | ms | GB/s of gradient | x device copy |",
        "| --- | --- | --- | --- | --- | --- |",
        *(
            f"| {r['codec']} | {r['operation']} | {r['elements']:,} | {r['ms']:.4f} | "
            f"{4e-6 * r['elements'] / r['ms']:.0f} | {r['copy_ms'] / r['ms']:.2f} |"
            for r in found["rates"]
        ),
    ]
    return "\n".join(lines) + "\n"


def build(
    machine: Machine, chosen: list[tuple[str, dict[str, int]]], against: str
) -> list[tuple[str, compll.Codec, compll.Codec]]:
    """Compile all codecs by both backends, for gradients of both types, at once."""
    made = [compll.compile(name, machine.backend, **params) for name, params in chosen]
    with ThreadPoolExecutor() as pool:
        loads = [pool.submit(machine.load, codec) for codec in made]
        meant = list(pool.map(lambda c: reference(against, *c), chosen))
        for load in loads:
            load.result()
    return [(label(*c), codec, other) for c, codec, other in zip(chosen, made, meant, strict=True)]


def reference(against: str, name: str, params: dict[str, int]) -> compll.Codec:
    codec = compll.compile(name, against, **params)
    codec._library.of(dtype(HALF))
    return codec


def check(machine: Machine, name: str, codecs: tuple[compll.Codec, compll.Codec], report: Report) -> None:
    """Compare a codec; what is raised is a difference too, so that the others are still tried."""
    differing = report.found["differences"]
    before = len(differing)
    try:
        for found in gpu_checks.differences(machine, *codecs, report.sizes):
            report.found["compared"] += 1
            if found:
                differing.append(f"{name}: {found}")
    except Exception as e:
        differing.append(f"{name}: {e!r}")
    print(f"{name:16} compared, {len(differing) - before} differ", flush=True)


def recorded(machine: Machine, name: str, call: Callable[[], Any], report: Report) -> Callable[[], Any]:
    """Return a call as a graph, or as it is if it cannot be one, which is noted."""
    try:
        return machine.recorded(call)
    except Exception as e:
        report.found["differences"].append(f"{name} cannot be captured: {e!r}")
        return call


def measure_small(machine: Machine, name: str, codec: compll.Codec, report: Report) -> None:
    """Time a call on one element: what launches cost."""
    gradient = machine.array(np.ones(1, np.float32))
    for operation, call in operations(machine, codec, gradient).items():
        launches = codec.info.launches.get(operation, (0, 0))[0]
        row = {"codec": name, "operation": operation, "launches": launches}
        row["call_us"] = 1e3 * machine.milliseconds_of_calls(call, 50)
        replay = recorded(machine, f"{name} {operation}", call, report)
        row["graph_us"] = 1e3 * machine.milliseconds(replay, 50)
        report.found["small"].append(row)


def measure(machine: Machine, name: str, codec: compll.Codec, report: Report, n: int, seconds: float) -> None:
    """Time every operation and the copy in turns."""
    gradient = machine.array(np.random.default_rng(5).standard_normal(n, dtype=np.float32))
    other = machine.like(gradient)
    copy = machine.recorded(lambda: machine.copy(other, gradient))
    for operation, call in operations(machine, codec, gradient).items():
        if report.late():
            return
        replay = recorded(machine, f"{name} {operation}", call, report)
        times: list[tuple[float, float]] = []
        began = time.monotonic()
        while len(times) < 5 or time.monotonic() - began < seconds:
            times.append((machine.milliseconds(replay, 1), machine.milliseconds(copy, 1)))
        kept = times[len(times) // 10 :]  # the first tenth warms up
        ms, copy_ms = (statistics.median(t) for t in zip(*kept, strict=True))
        report.found["rates"].append(
            {"codec": name, "operation": operation, "elements": n, "ms": ms, "copy_ms": copy_ms}
        )
        print(f"{name:16} {operation:10} {n:>11,}  {ms:9.4f} ms  {copy_ms / ms:5.2f} x copy", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--backend", choices=("cuda", "cudasim"), default="cuda")
    parser.add_argument("--against", default="cpp", help="the backend that results are compared with")
    parser.add_argument("--codecs", nargs="+", help="of the shipped ones; default: all")
    parser.add_argument("--check", type=int, nargs="+", default=[0, 1, 127, 1025, 70_001, 2**20 + 3])
    parser.add_argument("--elements", type=int, nargs="+", default=[2**20, 2**24, 2**27])
    parser.add_argument("--seconds", type=float, default=0.3, help="for each operation and size")
    parser.add_argument("--limit", type=float, default=540, help="seconds after which nothing new is begun")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    try:
        machine = machine_of(options.backend)
    except BackendError as e:
        sys.exit(f"gpu.py: {e}")
    report = Report(options, machine)
    chosen = [c for c in CODECS if options.codecs is None or c[0] in options.codecs]
    print(f"{machine.description()}: compiling {len(chosen)} codecs", flush=True)
    with machine.stream():
        for name, codec, meant in build(machine, chosen, options.against):
            if report.late():
                break
            report.found["kernels"][name] = machine.kernels(codec)
            check(machine, name, (codec, meant), report)
            measure_small(machine, name, codec, report)
            for n in options.elements:
                measure(machine, name, codec, report, n, options.seconds)
                machine.free()
            report.write()
    report.found["complete"] = not report.late()
    report.write()
    print((options.results / "gpu.md").read_text("utf-8"))
    if report.found["differences"]:
        sys.exit("gpu.py: results differ")


if __name__ == "__main__":
    main()
