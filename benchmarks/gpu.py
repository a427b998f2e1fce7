"""The CUDA kernels on a GPU: are they bit-equal, and how fast are they? Run it by benchmarks/gpu.sh.

First every operation is compared with the interpreter. Then the kernels of one call, and a copy of the
gradient from one place of the device to another, are timed by events, in turns, and the medians compared.
Rates count the gradient's float32 bytes, 4n, for every operation; the copy reads and writes 4n.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import compll
from compll.errors import BackendError
from compll.types import FLOAT

if TYPE_CHECKING:
    from collections.abc import Callable

CODECS: tuple[tuple[str, dict[str, int]], ...] = (
    ("onebit", {}),
    *(("terngrad", {"bitwidth": w}) for w in (1, 2, 3, 4, 8)),
    *((name, {}) for name in ("dgc", "graddrop", "topk", "randomk", "sidco", "mxfp4")),
)
SIZES = (0, 1, 127, 1025, 70_001, 2**20 + 3)
OPERATIONS = ("encode", "decode", "decode_add")
RESULT = Path(__file__).parent / "results" / "gpu.md"


class Recorded:
    """The launches of one call, to be made again, with the memory that they use."""

    def __init__(self, codec: compll.Codec, call: Callable[[], object]) -> None:
        device: Any = codec._library.of(FLOAT).device  # type: ignore[attr-defined]
        self.launch, self.launches, self.memory = device.launch, [], []
        empty = device.empty
        device.launch = lambda *a: (self.launches.append(a), self.launch(*a))
        device.empty = lambda n: self.memory.append(empty(n)) or self.memory[-1]
        try:
            call()
        finally:
            del device.launch, device.empty

    def __call__(self) -> None:
        for arguments in self.launches:
            self.launch(*arguments)


def operations(codec: compll.Codec, gradient: Any) -> dict[str, Callable[[], object]]:
    """Return a call of each operation on arrays that are there already."""
    n = len(gradient)
    state = codec.new_state(n) or None
    payload = codec.encode(gradient, seed=7, state=state)
    room = type(payload)((codec.max_bytes(n),), payload.dtype)
    out, total = gradient.copy(), gradient.copy()
    return {
        "encode": lambda: codec.encode(gradient, seed=7, state=state, out=room),
        "decode": lambda: codec.decode(payload, n, out=out, shared_seed=7),
        "decode_add": lambda: codec.decode_add(payload, total, 0.5, shared_seed=7),
    }


def check(cupy: Any) -> int:
    """Compare with the interpreter; return how many results were compared.

    Raises:
        SystemExit: one of them differs.

    """
    compared = 0
    for name, params in CODECS:
        gpu, meant = (compll.compile(name, backend, **params) for backend in ("cuda", "interp"))
        for n in SIZES:
            g = np.random.default_rng(n).standard_normal(n).astype(np.float32)
            states = [c.new_state(n) or None for c in (gpu, meant)]
            on_gpu, here = cupy.asarray(g), g.copy()
            p, q = gpu.encode(on_gpu, seed=7, state=states[0]), meant.encode(here, seed=7, state=states[1])
            pairs = {"payload": (p, q)}
            pairs["decode"] = (gpu.decode(p, n, shared_seed=7), meant.decode(q, n, shared_seed=7))
            added = (
                c.decode_add(p, x, 0.3, shared_seed=7) for c, p, x in ((gpu, p, on_gpu), (meant, q, here))
            )
            pairs["decode_add"] = tuple(added)
            pairs |= {k: (states[0][k], states[1][k]) for k in states[1] or {}}
            for what, (a, b) in pairs.items():
                if a.get().tobytes() != b.tobytes():
                    sys.exit(f"gpu.py: {what} of {name} {params} differs from the interpreter at n = {n}")
                compared += 1
    return compared


def milliseconds(cupy: Any, call: Callable[[], object]) -> float:
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    call()
    end.record()
    end.synchronize()
    return float(cupy.cuda.get_elapsed_time(start, end))


def measure(cupy: Any, n: int, seconds: float) -> list[tuple[str, str, float, float]]:
    """Return (codec, operation, median ms, median ms of the copy) for each."""
    gradient = cupy.random.standard_normal(n, dtype=np.float32)
    other = cupy.empty_like(gradient)
    rows = []
    for name, params in CODECS:
        codec = compll.compile(name, "cuda", **params)
        for operation, call in operations(codec, gradient).items():
            kernels = Recorded(codec, call)
            times: list[tuple[float, float]] = []
            while sum(map(sum, times)) < 1000 * seconds:
                copy = milliseconds(cupy, lambda: cupy.copyto(other, gradient))
                times.append((milliseconds(cupy, kernels), copy))
            half = times[len(times) // 10 :]  # the first tenth warms up
            label = " ".join([name, *(f"{v} bits" for v in params.values())])
            rows.append((label, operation, *(statistics.median(t) for t in zip(*half, strict=True))))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--elements", type=int, default=2**26)
    parser.add_argument("--seconds", type=float, default=1.0, help="for each operation")
    options = parser.parse_args()
    try:
        compll.compile("onebit", "cuda")
    except BackendError as e:
        sys.exit(f"gpu.py: {e}")
    cupy = importlib.import_module("cupy")
    compared = check(cupy)
    rows = measure(cupy, options.elements, options.seconds)
    gpu = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    lines = [
        "# CUDA kernels",
        "",
        f"{gpu}, CUDA {cupy.cuda.runtime.runtimeGetVersion()}, {options.elements:,} elements, "
        f"{datetime.now(UTC):%Y-%m-%d}; by `benchmarks/gpu.sh`.",
        f"{compared} payloads, states and decoded vectors were bit-equal with the interpreter.",
        "",
        "| codec | operation | ms | GB/s of gradient | x device copy |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {codec} | {operation} | {ms:.3f} | {4e-6 * options.elements / ms:.0f} | {copy / ms:.2f} |"
            for codec, operation, ms, copy in rows
        ),
    ]
    RESULT.write_text("\n".join(lines) + "\n", "utf-8")
    print(*lines, sep="\n")


if __name__ == "__main__":
    main()
