"""What a call costs beyond its kernel, through the C ABI and through Python, and what compiling costs."""

from __future__ import annotations

import ctypes
import os
import statistics
import tempfile
import time
from dataclasses import dataclass
from typing import Any
from unittest import mock

import numpy as np

import compll
from compll import build as builder

CALLER = """
#include <chrono>
#include <cstdint>
using Operation = int32_t (*)(void*, int64_t, const void*, void*, int32_t, void*);
extern "C" __attribute__((visibility("default"))) double seconds_a_call(
    Operation run, void* items, int64_t count, const void* params, void* scratch, int64_t times) {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t i = 0; i < times; ++i) run(items, count, params, scratch, 1, nullptr);
    const std::chrono::duration<double> taken = std::chrono::steady_clock::now() - start;
    return taken.count() / double(times);
}
"""
TIMES = 20_000
N = 64  # so few that their kernel takes next to nothing


@dataclass(frozen=True)
class Overhead:
    """Seconds of a call for a gradient of `N` elements, by operation; and of `compll.compile`.

    `python` is the whole call with `out=`, `c` the call of the library's function within it.
    """

    codec: str
    c: dict[str, float]
    python: dict[str, float]
    cold: float
    cached: float


def caller() -> Any:
    """Return a C function that calls an operation many times."""
    function = builder.library("caller", CALLER, {}).seconds_a_call
    function.restype = ctypes.c_double
    function.argtypes = (*(ctypes.c_void_p,) * 2, ctypes.c_int64, *(ctypes.c_void_p,) * 2, ctypes.c_int64)
    return function


def in_c(codec: compll.Codec, operation: str, call: Any, run: Any) -> float:
    """Return the seconds that the C function takes, with the arguments that `call` gives it."""
    library = codec._library.of()
    entry, taken = library.operations[operation], []

    def again(items: int, count: int, params: int, scratch: int, threads: int, stream: None) -> None:
        entry(items, count, params, scratch, threads, stream)
        address = ctypes.cast(entry, ctypes.c_void_p)
        taken.extend(run(address, items, count, params, scratch, TIMES) for _ in range(5))

    with mock.patch.dict(library.operations, {operation: again}):
        call()
    return statistics.median(taken)


def in_python(call: Any) -> float:
    """Return the median seconds of a call."""
    taken = []
    for _ in range(7):
        start = time.perf_counter()
        for _ in range(TIMES // 10):
            call()
        taken.append((time.perf_counter() - start) / (TIMES // 10))
    return statistics.median(taken)


def compile_seconds(name: str) -> tuple[float, float]:
    """Return the seconds of `compll.compile` with an empty cache, and with the library in it."""
    compll.compile(name, "interp")  # reads the grammar, which a process does once
    taken = []
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, COMPLL_CACHE=folder):
        for _ in range(6):
            start = time.perf_counter()
            compll.compile(name, "cpp")
            taken.append(time.perf_counter() - start)
    return taken[0], statistics.median(taken[1:])


def measure(name: str) -> Overhead:
    """Measure a shipped codec."""
    codec, run = compll.compile(name, "cpp"), caller()
    g, out = np.linspace(-1, 1, N, dtype=np.float32), np.empty(N, np.float32)
    room = np.empty(codec.max_bytes(N), np.uint8)
    state = codec.new_state(N) or None
    made = codec.encode(g, seed=7, state=state).copy()
    calls = {
        "encode": lambda: codec.encode(g, seed=7, state=state, out=room),
        "decode": lambda: codec.decode(made, N, out=out, shared_seed=7),
        "decode_add": lambda: codec.decode_add(made, out, shared_seed=7),
    }
    c = {op: in_c(codec, op, call, run) for op, call in calls.items()}
    cold, cached = compile_seconds(name)
    return Overhead(name, c, {op: in_python(call) for op, call in calls.items()}, cold, cached)
