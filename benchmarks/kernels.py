"""How fast are the generated kernels? Each against memcpy, and the same algorithm composed from NumPy.

    python benchmarks/kernels.py [--backend cpp] [--against none] [--seconds 1.0]

Everything is timed interleaved in one run: a round calls memcpy, the kernel and the NumPy composition once
each (small sizes: many times), and medians over the rounds are compared, so that a disturbance hits all of
them. Rates count the gradient's float32 bytes, 4n, for every operation. An encoder reads 4n and writes
little, memcpy reads and writes 4n: more than 1 x memcpy is possible.

`--against` measures another backend in the same rounds.  Writes benchmarks/results/kernels.md and
kernels.json, for another backend than cpp kernels-BACKEND.md and .json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich.progress import track

import compll
from compll.codec import Item

if TYPE_CHECKING:
    from collections.abc import Callable

    from compll.codec import Codec

SIZES = (2**14, 2**20, 2**24)
THREADS = (1, 2)
ALGORITHMS = ("terngrad", "onebit")
OPERATIONS = ("encode", "decode", "decode_add", "hop")
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One measurement: seconds are medians for one call."""

    algorithm: str
    operation: str
    elements: int
    threads: int
    seconds: float
    memcpy_seconds: float
    numpy_seconds: float
    other_seconds: float | None = None

    @property
    def gigabytes(self) -> float:
        return 4 * self.elements / self.seconds / 1e9

    @property
    def of_memcpy(self) -> float:
        return self.memcpy_seconds / self.seconds

    @property
    def of_numpy(self) -> float:
        return self.numpy_seconds / self.seconds

    @property
    def of_other(self) -> str:
        return f" {self.other_seconds / self.seconds:.2f} |" if self.other_seconds else ""


class NumpyTernGrad:
    """TernGrad with 2 bits as users write it with NumPy: stochastic rounding, four values a byte."""

    def __init__(self, grad: np.ndarray) -> None:
        self.rng = np.random.default_rng(0)
        self.grad = grad
        self.payload = self.encode()

    def encode(self) -> tuple[np.float32, np.float32, np.ndarray]:
        low, high = self.grad.min(), self.grad.max()
        gap = (high - low) / np.float32(3)
        noise = self.rng.random(self.grad.size, dtype=np.float32)
        q = np.minimum((self.grad - low) / gap + noise, 3).astype(np.uint8).reshape(-1, 4)
        return low, gap, q[:, 0] | q[:, 1] << 2 | q[:, 2] << 4 | q[:, 3] << 6

    def decode(self) -> np.ndarray:
        low, gap, packed = self.payload
        q = np.stack([packed & 3, packed >> 2 & 3, packed >> 4 & 3, packed >> 6], axis=1).reshape(-1)
        return q * gap + low


class NumpyOnebit:
    """Onebit with two means and error feedback as users write it with NumPy."""

    def __init__(self, grad: np.ndarray) -> None:
        self.grad = grad
        self.residual = np.zeros_like(grad)
        self.payload = self.encode()

    def encode(self) -> tuple[np.float32, np.float32, np.ndarray]:
        x = self.grad + self.residual
        positive = x >= 0
        up, down = x[positive].mean(), x[~positive].mean()
        self.residual = x - np.where(positive, up, down)
        return up, down, np.packbits(positive, bitorder="little")

    def decode(self) -> np.ndarray:
        up, down, packed = self.payload
        return np.where(np.unpackbits(packed, bitorder="little"), up, down)


def calls(codec: Codec, algorithm: str, n: int, threads: int) -> dict[str, tuple[Callable, Callable]]:
    """For each operation: the generated kernel, called as the runtime calls it, and the NumPy composition."""
    grad = np.random.default_rng(1).standard_normal(n, dtype=np.float32)
    out, numpy_out = np.zeros(n, np.float32), np.zeros(n, np.float32)
    encode = Item(
        grad=grad,
        out=np.empty(codec.max_bytes(n), np.uint8),
        seed=7,
        state=codec.new_state(n),
        new_state=codec.new_state(n),
    )
    payload = codec.batch("encode", [encode], threads=threads)[0].value.copy()
    decode = Item(payload=payload, out=out, shared_seed=7)
    hop = replace(encode, payload=payload, shared_seed=7)
    composed = {"terngrad": NumpyTernGrad, "onebit": NumpyOnebit}[algorithm](grad)

    def numpy_decode_add() -> None:
        np.add(numpy_out, composed.decode(), out=numpy_out)

    def numpy_hop() -> None:
        composed.grad = np.add(grad, composed.decode(), out=numpy_out)
        composed.encode()

    return {
        "encode": (lambda: codec.batch("encode", [encode], threads=threads), composed.encode),
        "decode": (lambda: codec.batch("decode", [decode], threads=threads), composed.decode),
        "decode_add": (lambda: codec.batch("decode_add", [decode], threads=threads), numpy_decode_add),
        "hop": (lambda: codec.batch("hop", [hop], threads=threads), numpy_hop),
    }


def memcpys(n: int, threads: int, pool: ThreadPoolExecutor) -> list[Callable[[], object]]:
    """Ways to copy 4n bytes with so many threads; the fastest counts (small ones gain nothing by threads)."""
    source, target = np.ones(n, np.float32), np.zeros(n, np.float32)
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))

    def split() -> None:
        list(pool.map(lambda part: np.copyto(*part), parts))

    whole = [lambda: np.copyto(target, source)]
    return whole if threads == 1 else [*whole, split]


def seconds_each(functions: list[Callable[[], object]], budget: float) -> list[float]:
    """Median seconds of a call of each function, interleaved round by round for `budget` seconds in all."""
    repeats = []
    for function in functions:
        function()
        start = time.perf_counter()
        function()
        once = time.perf_counter() - start
        repeats.append(max(1, round(1e-3 / once)))
    rounds: list[list[float]] = []
    begin = time.perf_counter()
    while len(rounds) < 7 or time.perf_counter() - begin < budget:
        row = []
        for function, repeat in zip(functions, repeats, strict=True):
            start = time.perf_counter()
            for _ in range(repeat):
                function()
            row.append((time.perf_counter() - start) / repeat)
        rounds.append(row)
    return [statistics.median(column) for column in zip(*rounds, strict=True)]


def measure(codecs: dict[str, Codec], others: dict[str, Codec], budget: float) -> list[Row]:
    cases = [(a, n, t, op) for a in codecs for n in SIZES for t in THREADS for op in OPERATIONS]
    rows = []
    with ThreadPoolExecutor(max(THREADS)) as pool:
        for algorithm, n, threads, operation in track(cases, description="measuring"):
            kernel, composed = calls(codecs[algorithm], algorithm, n, threads)[operation]
            other = [
                calls(c, algorithm, n, threads)[operation][0] for a, c in others.items() if a == algorithm
            ]
            copies = memcpys(n, threads, pool)
            times = seconds_each([kernel, composed, *copies, *other], budget)
            copy, rest = min(times[2 : 2 + len(copies)]), times[2 + len(copies) :]
            rows.append(Row(algorithm, operation, n, threads, times[0], copy, times[1], *rest))
    return rows


def machine_seconds() -> float:
    """Processor seconds that all processes of the machine have used since it started."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]
    idle, waiting = ticks[3], ticks[4]
    return (sum(ticks) - idle - waiting) / os.sysconf("SC_CLK_TCK")


def conditions(codecs: dict[str, Codec]) -> dict[str, str]:
    models = [
        line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")
    ]
    return {
        "processor": models[0].split(":")[1].strip() if models else platform.machine(),
        "cores": str(len(os.sched_getaffinity(0))),
        "backend": ", ".join(sorted({codec.backend for codec in codecs.values()})),
        "codecs": ", ".join(f"{name} {codec.info.fingerprint[:12]}" for name, codec in codecs.items()),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def markdown(rows: list[Row], taken: dict[str, str], against: str) -> str:
    column = f" x {against} |" if against else ""
    lines = [
        "# Kernels",
        "",
        "Written by `python benchmarks/kernels.py`. GB/s of float32 gradient (4n bytes a call); medians,",
        "interleaved with memcpy of the same 4n bytes (with 2 threads: the faster of one and two copying",
        "threads) and with the same algorithm composed from NumPy (one thread, as users write it).",
        "Where other work keeps the cores busy, figures for more than one thread say nothing.",
        "",
        *(f"- {key}: {value}" for key, value in taken.items()),
        "",
        "| algorithm | operation | elements | threads | GB/s | x memcpy | memcpy GB/s | x NumPy | us |"
        + column,
        "|---|---|---|---|---|---|---|---|---|" + ("---|" if against else ""),
    ]
    for row in rows:
        copy = 4 * row.elements / row.memcpy_seconds / 1e9
        lines.append(
            f"| {row.algorithm} | {row.operation} | 2^{row.elements.bit_length() - 1} | {row.threads} "
            f"| {row.gigabytes:.2f} | {row.of_memcpy:.2f} | {copy:.1f} | {row.of_numpy:.1f} "
            f"| {row.seconds * 1e6:.1f} |{row.of_other}"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--backend", default="cpp")
    parser.add_argument("--against", default="", help="another backend, measured in the same rounds")
    parser.add_argument("--seconds", type=float, default=1.0, help="for each of the cases")
    arguments = parser.parse_args()
    codecs = {name: compll.compile(name, backend=arguments.backend) for name in ALGORITHMS}
    against = {n: compll.compile(n, backend=arguments.against) for n in ALGORITHMS if arguments.against}
    taken = conditions(codecs)
    machine, own, start = machine_seconds(), time.process_time(), time.perf_counter()
    rows = measure(codecs, against, arguments.seconds)
    others = machine_seconds() - machine - (time.process_time() - own)
    taken["cores busy with other work meanwhile"] = f"{others / (time.perf_counter() - start):.2f}"
    RESULTS.mkdir(exist_ok=True)
    data = {"conditions": taken, "rows": [asdict(row) for row in rows]}
    name = "kernels" if arguments.backend == "cpp" else f"kernels-{arguments.backend}"
    table = markdown(rows, taken, arguments.against)
    (RESULTS / f"{name}.json").write_text(json.dumps(data, indent=1) + "\n")
    (RESULTS / f"{name}.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
