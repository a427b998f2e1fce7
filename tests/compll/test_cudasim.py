"""The simulator runs what a GPU would: every fiber order, grid and alignment gives the interpreter's bits.

And what it is for: it reports threads that can never meet, and runs under the sanitizers.
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compll_cases import LABELS, encode, gradient, same_bits, write
from test_blocks import PROGRAM as BLOCKS
from test_differential import generated
from test_language import FREE, KEYWORDS, LEVELS

import compll
from compll import build as builder
from compll import codec as api
from compll import driver
from compll.backends import Unit, cudasim, launches, pack_parameters
from compll.emit import cuda
from compll.errors import BackendError, ParameterError, PayloadError

SIZES = (0, 1, 3, 127, 129, 1023, 1024, 1025, 4096 * 3 + 5)
MIXED = """
void MixedEncode(float* gradient, uint8* compressed, state float* memory, float ratio = 0.75) {
    float* x = gradient * ratio + memory;
    float most = reduce(abs(x), greater);
    int8* whole = stochastic_round(x / most * 100);
    uint<5>* code = map(range(x.size), [&](int i) -> uint<5> { return i * 7 + random<int>(0, 9); });
    bool* up = x > 0;
    int64* wide = map(range(x.size), [&](int i) -> int64 { return i << 40; });
    compressed = concat(up, most, whole, code, wide);
    memory = x - gradient;
}
void MixedDecode(uint8* compressed, float* gradient) {
    float most; bool* up; int8* whole; uint<5>* code; int64* wide;
    extract(compressed, up, most, whole, code, wide);
    gradient = map(range(gradient.size), [&](int i) -> float {
        return (up[i] ? most : -most) * whole[i] + code[i] + (wide[i] >> 40);
    });
}
"""
ELEMENTARY = """
void ElementaryEncode(float* gradient, uint8* compressed) {
    compressed = concat(exp(gradient), exp2(gradient), log(gradient), log2(gradient));
}
void ElementaryDecode(uint8* compressed, float* gradient) {
    float* e; float* p; float* l; float* b;
    extract(compressed, e, p, l, b);
    gradient = e + p + l + b;
}
"""
OWN = {
    "levels": LEVELS,
    "free": FREE,
    "keywords": KEYWORDS,
    "mixed": MIXED,
    "blocks": BLOCKS,
    "elementary": ELEMENTARY,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("onebit", {}),
    *(("terngrad", {"bitwidth": w}) for w in range(1, 9)),
    ("levels", {"bitwidth": 3}),
    ("free", {}),
    ("keywords", {}),
    ("mixed", {}),
    ("elementary", {}),
    ("int8", {}),
    ("qsgd", {}),
    *(("blocks", {"size": size}) for size in (7, 48, 100, 1024, 1025, 3000)),
]


@functools.cache
def program(name: str, **params: Any) -> driver.Program:
    return driver.load(api.find(name if name in compll.algorithms() else str(write(OWN[name]))), params)


@functools.cache
def unit(name: str, **params: Any) -> Unit:
    return driver.unit_of(program(name, **params).checked)


@functools.cache
def simulated(name: str, order: str = "ascending", **params: Any) -> api.Codec:
    return api.Codec(program(name, **params), cudasim.build(unit(name, **params), order))


@functools.cache
def meant(name: str, **params: Any) -> api.Codec:
    whole = program(name, **params)
    return api.Codec(whole, driver.build(whole.checked, "interp"))


def differences(a: api.Codec, b: api.Codec, g: np.ndarray) -> list[str]:
    """Return what two codecs do not do alike: payload, new state, decoded values, and these added."""
    n = len(g)
    (p, old), (q, new) = encode(a, g), encode(b, g)
    added = [gradient("mixed", n, seed=4) for _ in range(2)]
    for codec, out in zip((a, b), added, strict=True):
        codec.decode_add(p, out, -0.7)
    alike = {
        "payload": same_bits(p, q),
        "state": all(same_bits(old[k], new[k]) for k in old),
        "decode": same_bits(a.decode(p, n), b.decode(p, n)),
        "decode_add": same_bits(*added),
    }
    return [what for what, equal in alike.items() if not equal]


@pytest.mark.parametrize("order", cudasim.ORDERS)
@pytest.mark.parametrize(("name", "params"), CASES, ids=lambda x: x if isinstance(x, str) else str(x))
def test_kernels_are_bit_equal_with_the_meaning_in_every_order_of_threads(
    name: str, params: dict[str, Any], order: str
) -> None:
    a, b = meant(name, **params), simulated(name, order, **params)
    for n in SIZES:
        for label in LABELS if n < 1025 else ("normal", "mixed"):
            assert differences(a, b, gradient(label, n)) == [], (n, label)


@pytest.mark.parametrize("name", ["onebit", "terngrad"])
def test_tile_results_beyond_one_tile_are_reduced_in_the_one_order(name: str) -> None:
    g = gradient("normal", 1024 * 1024 + 1024 * 3 + 7)
    a, b = compll.compile(name, "cpp"), compll.compile(name, "cudasim")
    assert b.backend == "cudasim"
    assert differences(a, b, g) == []


@pytest.mark.parametrize("offset", [1, 2, 3, 4])
def test_vectors_may_begin_at_any_element(offset: int) -> None:
    n = 2100
    for name in ("onebit", "mixed"):
        a, b = meant(name), simulated(name)
        whole = gradient("normal", n + 8)
        before = [gradient("normal", n + 8, seed=2) for _ in range(2)]
        key = next(iter(a.new_state(0)))
        payloads = [
            c.encode(whole[offset : offset + n], seed=3, state={key: s[offset : offset + n]})
            for c, s in zip((a, b), before, strict=True)
        ]
        assert same_bits(*payloads)
        assert same_bits(*before)
        room = np.full(n + 8, 7, np.float32)
        b.decode(payloads[0], n, out=room[offset : offset + n])
        assert same_bits(room[offset : offset + n], a.decode(payloads[0], n))
        assert (np.delete(room, range(offset, offset + n)) == 7).all()


def test_a_vector_that_begins_inside_an_element_is_refused() -> None:
    g = np.zeros(41, np.uint8)[1:].view(np.float32)
    with pytest.raises(BackendError, match=r"gradient begins in the middle of an element.*copy it first"):
        simulated("terngrad", bitwidth=2).encode(g, seed=1)


def test_nothing_is_written_beside_the_payload_and_padding_is_zero() -> None:
    a, b = meant("terngrad", bitwidth=3), simulated("terngrad", bitwidth=3)
    for n in (0, 1, 5, 1029):
        out = np.full(b.max_bytes(n) + 64, 0xAA, np.uint8)
        payload = b.encode(gradient("normal", n), seed=1, out=out)
        assert same_bits(payload, a.encode(gradient("normal", n), seed=1))
        assert (out[len(payload) :] == 0xAA).all()


def test_a_batch_of_any_lengths_gives_what_single_calls_give() -> None:
    lengths = (0, 5000, 1, 1024, 70000, 129)
    for name in ("onebit", "mixed"):
        codec = simulated(name)
        key = next(iter(codec.new_state(0)))
        grads = [gradient("normal", n) for n in lengths]
        states = [codec.new_state(n) for n in lengths]
        items = [
            api.Item(grad=g, seed=k, state=s) for k, (g, s) in enumerate(zip(grads, states, strict=True))
        ]
        results = codec.batch("encode", items)
        for k, (g, result) in enumerate(zip(grads, results, strict=True)):
            state = codec.new_state(len(g))
            assert same_bits(result.value, codec.encode(g, seed=k, state=state))
            assert same_bits(states[k][key], state[key])
        out = [
            api.Item(payload=r.value, out=np.empty(n, np.float32))
            for r, n in zip(results, lengths, strict=True)
        ]
        for r, n, decoded in zip(results, lengths, codec.batch("decode", out), strict=True):
            assert same_bits(decoded.value, codec.decode(r.value, n))
        assert codec.batch("encode", []) == []


def test_every_grid_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    codec = simulated("terngrad", bitwidth=4)
    items = [api.Item(grad=gradient("normal", n), seed=n) for n in (20_000, 7, 9000)]
    want = [r.value for r in codec.batch("encode", items)]
    for x, y in ((1, 1), (2, 2), (3, 65535)):
        monkeypatch.setattr(launches, "MOST_X", x)
        monkeypatch.setattr(launches, "MOST_Y", y)
        assert all(same_bits(r.value, w) for r, w in zip(codec.batch("encode", items), want, strict=True))


def test_what_is_not_finite_is_told_for_each_item() -> None:
    grads = [gradient("normal", 3000) for _ in range(3)]
    grads[1][2999] = np.nan
    results = simulated("terngrad", bitwidth=2).batch("encode", [api.Item(grad=g, seed=1) for g in grads])
    assert [r.finite for r in results] == [True, False, True]


def test_a_payload_of_another_width_is_refused_and_nothing_is_written() -> None:
    two, four = simulated("terngrad", bitwidth=2), simulated("terngrad", bitwidth=4)
    payload = four.encode(gradient("normal", 64), seed=1)
    payload[0] = 3
    out = np.full(64, 7, np.float32)
    with pytest.raises(PayloadError, match="bitwidth = 3, and this codec has 4"):
        four.decode(payload, 64, out=out)
    assert (out == 7).all()
    with pytest.raises(PayloadError, match="it has 48 bytes, and 64 elements take 32"):
        two.decode(payload, 64)


def test_launches_over_the_elements_are_one_more_than_the_chain_of_reductions() -> None:
    for name, passes in (("onebit", 2), ("terngrad", 2), ("int8", 1), ("qsgd", 1)):
        lists = cuda.generate(unit(name)).launches
        over = {op: [x.over for x in xs] for op, xs in lists.items()}
        assert {op: kinds.count("tiles") for op, kinds in over.items()} == {
            "encode": passes,
            "decode": 1,
            "decode_add": 1,
        }


def test_python_and_the_headers_agree_on_the_rule_of_launches() -> None:
    text = "".join(cuda.runtime().values())
    for name in ("TILE_THREADS", "ITEM_THREADS", "WARP", "MOST_X", "MOST_Y"):
        (value,) = re.findall(rf"\b{name} = ([\d< ]+)[,;]", text)
        low, _, shift = value.partition("<<")
        assert getattr(launches, name) == int(low) << int(shift or 0), name
    item = re.sub("//.*", "", text.partition("struct compll_item {")[2].partition("\n}")[0])
    assert re.findall(r"(\w+)[,;]", item) == list(launches.ITEM.names or ())


# --- the C ABI ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params"),
    [("onebit", {}), ("mixed", {}), ("terngrad", {"bitwidth": 5}), ("blocks", {"size": 3000})],
)
def test_the_c_functions_launch_the_same_kernels(name: str, params: dict[str, Any]) -> None:
    codec, one = simulated(name, **params), unit(name, **params)
    library, n = codec._library, 5000
    assert isinstance(library, launches.LaunchLibrary)
    raw = library.device.library  # type: ignore[attr-defined]
    host_params = pack_parameters(one.params, codec._values)
    where = ctypes.c_void_p(host_params.ctypes.data)
    for ask in ("max_bytes", "scratch_bytes"):
        getattr(raw, f"{one.codec}_{ask}").restype = ctypes.c_int64
    scratch_bytes = getattr(raw, f"{one.codec}_scratch_bytes")
    for size in (0, 1, 1024, 1025, 2**31 + 5):
        assert scratch_bytes(ctypes.c_int64(size), where) == library.scratch_bytes(size, codec._values)
    assert getattr(raw, f"{one.codec}_max_bytes")(ctypes.c_int64(n), where) == codec.max_bytes(n)

    g = gradient("normal", n)
    want, state = encode(codec, g)
    old = {k: np.linspace(-0.5, 0.5, n, dtype=np.float32) for k in state}
    out = cudasim.aligned_empty(codec.max_bytes(n))
    scratch = cudasim.aligned_empty(library.scratch_bytes(n, codec._values))
    pointers = np.array([v.ctypes.data for v in old.values()], np.uint64)
    item = np.zeros(1, launches.ITEM)
    item["gradient"], item["payload"], item["scratch"] = (x.ctypes.data for x in (g, out, scratch))
    item["state"] = item["new_state"] = pointers.ctypes.data
    item["n"], item["capacity"], item["seed"] = n, len(out), 7
    call = getattr(raw, f"{one.codec}_encode_f32")
    assert call(ctypes.c_void_p(item.ctypes.data), ctypes.c_int64(1), ctypes.c_int64(n), where, None) == 0
    assert (item["status"][0], item["length"][0]) == (0, len(want))
    assert same_bits(out, want)
    assert all(same_bits(old[k], state[k]) for k in state)
    item["capacity"] = len(out) - 1
    call(ctypes.c_void_p(item.ctypes.data), ctypes.c_int64(1), ctypes.c_int64(n), where, None)
    assert item["status"][0] == -3


# --- what the simulator finds ----------------------------------------------------------------------------

HEAD = """#include "compll.cuh"
extern "C" __global__ void probe(compll_item* items, int64_t, const void*) {
    float* x = items->gradient;
    const int t = threadIdx.x;
"""
FLAWS = {
    "if (t % 2) __syncwarp();": "others of its group wait in another call|deadlock",
    "if (t < 16) x[t] = __shfl_xor_sync(compll::ALL, x[t], 1);": "deadlock in block 0: 16 threads wait",
    "if (t < 8) __syncthreads(); else __syncwarp();": "deadlock|wait in another call",
    "x[t] = __shfl_sync(0xffu, x[t], 1);": "__shfl_sync of thread 8 in block 0: the mask leaves out the lane",
    "x[t] = __shfl_xor_sync(0xffu << (t / 8 * 8), x[t], 8);": "it reads a lane that is not in the mask",
}


def run_probe(body: str, order: str = "ascending", threads: int = 32) -> np.ndarray:
    """Run one kernel by `threads` threads on their own numbers, and return what became of these."""
    library = builder.library("probe", HEAD + body + "\n}\n", cuda.runtime(), cudasim.FLAGS)
    x = np.arange(threads, dtype=np.float32)
    item = np.zeros(1, launches.ITEM)
    item["gradient"] = x.ctypes.data
    grid = launches.Grid(1, 1, threads)
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


def test_the_exchanges_of_a_warp_mean_what_cuda_says() -> None:
    lanes = np.arange(64)
    for body, want in {
        "x[t] = __shfl_sync(compll::ALL, x[t], 5);": lanes // 32 * 32 + 5,
        "x[t] = __shfl_down_sync(compll::ALL, x[t], 3);": np.where(lanes % 32 < 29, lanes + 3, lanes),
        "x[t] = __shfl_xor_sync(compll::ALL, x[t], 4);": lanes ^ 4,
        "x[t] = __ballot_sync(compll::ALL, t % 32 == 3 || t == 40);": np.where(lanes < 32, 8, 264),
        "x[t] = __any_sync(compll::ALL, t == 40);": lanes // 32,
        "if (t < 40) { __syncthreads(); x[t] = 63; }": np.where(lanes < 40, 63, lanes),
    }.items():
        for order in cudasim.ORDERS:
            assert run_probe(body, order, 64).tolist() == want.tolist(), (body, order)


SANITIZED = """
import sys
import numpy as np
from compll import codec, driver
from compll.backends import cudasim, Call

beyond = int(sys.argv[1])
for name, params in (("int8", {}), (sys.argv[2], {}))[: 1 if beyond else 2]:
    program = driver.load(codec.find(name), params)
    unit = driver.unit_of(program.checked)
    library = cudasim.build(unit, "scattered", tuple(cudasim.SANITIZERS))
    simulated, meant = codec.Codec(program, library), codec.compile(name, "interp", **params)
    for n in (0, 1, 129, 2049):
        g = np.random.default_rng(n).standard_normal(n).astype(np.float32)
        g[:5] = np.array([np.nan, np.inf, -np.inf, 3e38, 1e-45], np.float32)[:n]
        states = [c.new_state(n) for c in (simulated, meant)]
        p, q = (c.encode(g, seed=1, state=s or None) for c, s in zip((simulated, meant), states))
        assert p.tobytes() == q.tobytes()
        assert all(states[0][k].tobytes() == states[1][k].tobytes() for k in states[0])
        assert simulated.decode(p, n).tobytes() == meant.decode(p, n).tobytes()
        sums = [c.decode_add(p, np.ones(n, np.float32), 0.3) for c in (simulated, meant)]
        assert sums[0].tobytes() == sums[1].tobytes()
if beyond:
    payload = np.zeros(simulated.max_bytes(5000 + beyond), np.uint8)
    library.run("encode", [Call(5000 + beyond, np.zeros(5000, np.float32), payload)], {}, 1)
print("all right")
"""


def sanitized(beyond: int) -> subprocess.CompletedProcess[str]:
    compiler = builder.knobs.compiler()
    asan = subprocess.run(
        [compiler, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    environment = os.environ | {
        "LD_PRELOAD": str(Path(asan.stdout.strip()).resolve()),
        "ASAN_OPTIONS": "detect_leaks=0,detect_stack_use_after_return=0",
    }
    return subprocess.run(
        [sys.executable, "-c", SANITIZED, str(beyond), str(write(generated(4)))],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )


def test_kernels_run_clean_under_the_address_and_undefined_behaviour_sanitizers() -> None:
    done = sanitized(0)
    assert (done.returncode, done.stdout.strip()) == (0, "all right"), done.stderr[-3000:]


def test_the_sanitizers_see_a_read_beyond_the_gradient() -> None:
    done = sanitized(4)
    assert done.returncode != 0
    assert "AddressSanitizer: heap-buffer-overflow" in done.stderr
    assert "all right" not in done.stdout


def test_an_unknown_backend_is_told_with_the_known_ones() -> None:
    with pytest.raises(BackendError, match=r"no backend 'cudasin'.*cudasim"):
        compll.compile("onebit", "cudasin")
    with pytest.raises(ParameterError, match="needs seed"):
        simulated("terngrad", bitwidth=2).encode(np.zeros(3, np.float32))
