"""What the simulator is for: it reports threads that can never meet, and runs under the sanitizers."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from compll_cases import same_bits, write
from fuzz_expressions import generated
from test_cudasim import SELECTING

from compll import build as builder
from compll.backends import cudasim, launches
from compll.emit import cuda
from compll.errors import BackendError

HEAD = """#include "compll.cuh"
extern "C" __global__ void probe(compll_item* items, int64_t, const void*) {
    float* x = static_cast<float*>(items->gradient);
    const int t = threadIdx.x;
"""
FLAWS = {
    "if (t % 2) __syncwarp();": "others of its group wait in another call|deadlock",
    "if (t < 16) x[t] = __shfl_xor_sync(compll::ALL, x[t], 1);": "deadlock in block 0: 16 threads wait",
    "if (t < 8) __syncthreads(); else __syncwarp();": "deadlock|wait in another call",
    "x[t] = __shfl_sync(0xffu, x[t], 1);": "__shfl_sync of thread 8 in block 0: the mask leaves out the lane",
    "if (t < 16) x[t] = __match_any_sync(compll::ALL, t);": "deadlock in block 0: 16 threads wait",
    "x[t] = __shfl_xor_sync(0xffu << (t / 8 * 8), x[t], 8);": "it reads a lane that is not in the mask",
}


def run_probe(body: str, order: str = "ascending", threads: int = 32) -> np.ndarray:
    """Run one kernel by `threads` threads on their own numbers, and return what became of these."""
    library = builder.library("probe", HEAD + body + "\n}\n", cuda.runtime(), cudasim.FLAGS)
    x = np.arange(threads, dtype=np.float32)
    item = np.zeros(1, launches.ITEM)
    item["gradient"] = x.ctypes.data
    grid = launches.Grid(1, threads)
    cudasim.Simulator(library, order).launch("probe", grid, item.ctypes.data, 1, 0)
    return x


@pytest.mark.parametrize("flaw", FLAWS)
def test_threads_that_cannot_meet_are_an_error_and_no_hang(flaw: str) -> None:
    with pytest.raises(BackendError, match=f"probe: .*({FLAWS[flaw]})"):
        run_probe(flaw)


def test_a_missing_barrier_shows_in_some_order_of_threads() -> None:
    neighbour = "const float y = x[(t + 1) % 64]; {barrier} x[t] = y;"
    want = np.roll(np.arange(64, dtype=np.float32), -1)
    right, wrong = (neighbour.format(barrier=b) for b in ("__syncthreads();", ""))
    assert all(same_bits(run_probe(right, order, 64), want) for order in cudasim.ORDERS)
    assert not all(same_bits(run_probe(wrong, order, 64), want) for order in cudasim.ORDERS)


def test_memory_of_a_block_is_shared_by_its_threads_and_holds_nothing_at_first() -> None:
    body = (
        "COMPLL_SHARED(int, seen, 2); {first} __syncthreads();"
        "atomicAdd(seen, t % 3); __syncthreads(); x[t] = seen[0];"
    )
    clears = body.replace("{first}", "if (t == 0) seen[0] = 0;")
    for order in cudasim.ORDERS:
        assert run_probe(clears, order, 64).tolist() == [63] * 64
        assert run_probe(body.replace("{first}", ""), order, 64)[0] < 0  # every byte of it was 0xA5


def test_atomics_return_what_was_there_and_leave_what_they_should() -> None:
    for call, want in {
        "atomicAdd(&seen[0], t + 1)": 7 + 64 * 65 // 2,
        "atomicMin(&seen[0], 40 - t)": 40 - 63,
        "atomicMin(&seen[0], t + 9)": 7,
        "atomicCAS(&seen[0], 7, t == 5 ? 12 : 7)": 12,
    }.items():
        body = (
            "COMPLL_SHARED(int, seen, 1); if (t == 0) seen[0] = 7; __syncthreads();"
            f"const int old = {call}; x[t] = old; __syncthreads(); if (t == 0) x[0] = seen[0];"
        )
        for order in cudasim.ORDERS:
            assert run_probe(body, order, 64)[0] == want, (call, order)


def test_the_exchanges_of_a_warp_mean_what_cuda_says() -> None:
    lanes = np.arange(64)
    for body, want in {
        "x[t] = __shfl_sync(compll::ALL, x[t], 5);": lanes // 32 * 32 + 5,
        "x[t] = __shfl_down_sync(compll::ALL, x[t], 3);": np.where(lanes % 32 < 29, lanes + 3, lanes),
        "x[t] = __shfl_up_sync(compll::ALL, x[t], 3);": np.where(lanes % 32 > 2, lanes - 3, lanes),
        "x[t] = __shfl_xor_sync(compll::ALL, x[t], 4);": lanes ^ 4,
        "x[t] = __popc(__match_any_sync(compll::ALL, t % 32 / 5));": np.where(lanes % 32 < 30, 5, 2),
        "x[t] = __ffs(int(__match_any_sync(compll::ALL, x[t] < 40)));": np.where(lanes < 40, 1, 9),
        "x[t] = __ballot_sync(compll::ALL, t % 32 == 3 || t == 40);": np.where(lanes < 32, 8, 264),
        "x[t] = __any_sync(compll::ALL, t == 40);": lanes // 32,
        "if (t < 40) { __syncthreads(); x[t] = 63; }": np.where(lanes < 40, 63, lanes),
    }.items():
        for order in cudasim.ORDERS:
            assert run_probe(body, order, 64).tolist() == want.tolist(), (body, order)


SANITIZED = """
import sys
import numpy as np
from compll_cases import OneLibrary
from compll import codec, driver
from compll.backends import cudasim, Call
from compll.types import FLOAT, HALF, dtype

beyond = int(sys.argv[1])
noise, outcomes = np.random.default_rng(5), set()
own = sys.argv[3]
todo = (("int8", FLOAT), (sys.argv[2], FLOAT), (own, FLOAT), ("onebit", HALF))
for name, element in todo[: 1 if beyond else 4]:
    program = driver.load(codec.find(name), {})
    unit, kind = driver.unit_of(program.checked, element), dtype(element)
    library = cudasim.build(unit, "scattered", tuple(cudasim.SANITIZERS))
    simulated, meant = codec.Codec(program, OneLibrary(program, library)), codec.compile(name, "interp")
    for n in (0, 1, 129, 2049):
        g = np.random.default_rng(n).standard_normal(n).astype(kind)
        with np.errstate(over="ignore"):
            g[:5] = np.array([np.nan, np.inf, -np.inf, 3e38, 1e-45], np.float32)[:n]
        states = [c.new_state(n) for c in (simulated, meant)]
        p, q = (c.encode(g, seed=1, state=s or None) for c, s in zip((simulated, meant), states))
        assert p.tobytes() == q.tobytes()
        assert all(states[0][k].tobytes() == states[1][k].tobytes() for k in states[0])
        outs = [c.decode(p, n, dtype=kind) for c in (simulated, meant)]
        assert outs[0].tobytes() == outs[1].tobytes()
        sums = [c.decode_add(p, np.ones(n, kind), 0.3) for c in (simulated, meant)]
        assert sums[0].tobytes() == sums[1].tobytes()
        for _ in range(20 if name == own else 0):  # what comes from elsewhere may have any bytes
            bad = codec.arrays.aligned_empty(len(p))
            bad[:] = p
            bad[noise.integers(0, min(len(bad), 64), 2)] = noise.integers(0, 256, 2, np.uint8)
            outcomes.add(library.run("decode", [Call(n, np.ones(n, np.float32), bad)], {}, 1)[0].status)
if beyond:
    payload = np.zeros(simulated.max_bytes(5000 + beyond), np.uint8)
    library.run("encode", [Call(5000 + beyond, np.zeros(5000, np.float32), payload)], {}, 1)
print("all right", *sorted(outcomes))
"""


def sanitized(beyond: int) -> subprocess.CompletedProcess[str]:
    compiler = builder.knobs.compiler()
    asan = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    environment = os.environ | {
        "LD_PRELOAD": str(Path(asan.stdout.strip()).resolve()),
        "ASAN_OPTIONS": "detect_leaks=0,detect_stack_use_after_return=0",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]),
    }
    return subprocess.run(
        [sys.executable, "-c", SANITIZED, str(beyond), str(write(generated(4))), str(write(SELECTING))],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_kernels_run_clean_under_the_address_and_undefined_behaviour_sanitizers() -> None:
    done = sanitized(0)
    assert (done.returncode, done.stdout.strip()) == (0, "all right -3 -2 0"), done.stderr[-3000:]


def test_the_sanitizers_see_a_read_beyond_the_gradient() -> None:
    done = sanitized(4)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert "all right" not in done.stdout
