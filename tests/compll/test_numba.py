"""Numba writes the same bits as the interpreter, builds into the cache, and says what it needs."""

from __future__ import annotations

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from compll_cases import EDGES, LABELS, compiled, encode, gradient, same_bits, write
from test_language import FREE, KEYWORDS
from test_reduction_order import PROGRAM as REDUCTIONS
from test_reduction_order import SIZES as ORDER_SIZES

import compll
from compll import driver
from compll.backends.numba import Memory

SIZES = (0, 1, 31, 32, 33, 127, 129, 1023, 1024, 1025, 4096 * 3 + 5)
LARGE = 64 * 1024 * 3 + 77  # more than one thread's share


def pair(name: str, **params: Any) -> tuple[compll.Codec, compll.Codec]:
    if name in compll.algorithms():
        return compll.compile(name, "interp", **params), compll.compile(name, "numba", **params)
    text = {"free": FREE, "keywords": KEYWORDS, "packs": PACKS, "scalars": SCALARS, "lanes": LANES}[name]
    return compiled(text, "interp", **params), compiled(text, "numba", **params)


def equal(a: compll.Codec, b: compll.Codec, g: np.ndarray, threads: int | None = None) -> None:
    n = len(g)
    (p, old), (q, new) = encode(a, g), encode(b, g, threads=threads)
    assert same_bits(p, q)
    assert all(same_bits(old[k], new[k]) for k in old)
    assert same_bits(a.decode(p, n), b.decode(p, n))
    added = [gradient("mixed", n, seed=4) for _ in range(2)]
    for codec, out in zip((a, b), added, strict=True):
        codec.decode_add(p, out, -0.7)
    assert same_bits(*added)


PACKS = (
    "void PacksEncode(float* gradient, uint8* compressed) {\n"
    + "".join(f"    uint<{w}>* v{w} = gradient * 40;\n" for w in range(1, 9))
    + "    bool* yes = gradient > 0;\n    uint1* bit = gradient > 1;\n"
    + "    compressed = concat(v1, v2, v3, v4, v5, v6, v7, v8, yes, bit);\n}\n"
    + "void PacksDecode(uint8* compressed, float* gradient) {\n"
    + "".join(f"    uint<{w}>* v{w};\n" for w in range(1, 9))
    + "    bool* yes;\n    uint1* bit;\n"
    + "    extract(compressed, v1, v2, v3, v4, v5, v6, v7, v8, yes, bit);\n"
    + "    gradient = v1 + v2 * 2 + v3 * 8 + v4 * 64 + v5 * 512 + v6 + v7 + v8 + (yes ? 1000 : bit);\n}\n"
)

# Every operator and conversion: type and expression, over two vectors that run through all pairs of edges.
OVER_LANES = {
    "sum": ("float", "a + b"),
    "less": ("float", "a - b"),
    "times": ("float", "a * b"),
    "over": ("float", "a / b"),
    "low": ("float", "min(a, b)"),
    "high": ("float", "max(a, b)"),
    "root": ("float", "sqrt(a)"),
    "down": ("float", "floor(a) + ceil(b)"),
    "near": ("float", "round(a * b)"),
    "size": ("float", "abs(-b)"),
    "cut": ("float", "bitcast<float>(bitcast<uint32>(a) & 0xff800000)"),
    "i8": ("int8", "a * 100"),
    "i16": ("int16", "b * 40000"),
    "i32": ("int32", "a * 1e9"),
    "i64": ("int", "b * 1e18"),
    "u16": ("uint16", "a * 40000"),
    "u32": ("uint32", "a * 3e9"),
    "u64": ("uint64", "b * 1e19"),
    "quotient": ("int", "i64 / i32"),
    "rest": ("int", "i64 % i32"),
    "left": ("int", "i64 << i8"),
    "back": ("int", "i64 >> i8"),
    "mixed": ("int", "(i64 ^ ~i32) | (i32 & 255)"),
    "ones": ("int", "popcount(i64) + popcount(u32) + popcount(i8)"),
    "signs": ("int", "sign(a) + sign(-i8) + sign(i64) - min(i8, 3) + abs(i64)"),
    "wraps": ("uint32", "u32 * 3 - 7"),
    "part": ("uint32", "u32 / (u32 >> 3) + (u32 << 1)"),
    "far": ("uint64", "u64 % 1000003 + u64"),
    "narrowed": ("uint32", "u64"),
    "real": ("float", "i64"),
    "natural": ("float", "u64"),
    "order": ("bool", "a < b && !(b <= 0) || isnan(b) || a == b"),
    "other": ("bool", "(a >= b) != (a > 0) || i64 >= i32 || u32 < 5 || u64 != 0"),
    "chosen": ("float", "order ? a : other ? b : 1e-40"),
    "noise": ("float", "random<float>(-1, 2) + a"),
    "dice": ("int", "random<int>(-9, 100) + i8 * 0"),
    "halves": ("float", "stochastic_round(b)"),
    "powers": ("float", "exp(a) - exp2(b)"),
    "logs": ("float", "log(a) + log2(b)"),
}
# The same on scalars, which are lanes of width 1.
OVER_SCALARS = OVER_LANES | {
    "far": ("uint64", "u64 % 1000003 + (u64 >> 3)"),
    "p": ("float", "a * ratio + whole"),
}


def program(name: str, expressions: dict[str, tuple[str, str]], star: str, arguments: str, begin: str) -> str:
    """Return a program that writes every expression, as vectors or as scalars."""
    names = ", ".join(expressions)
    lines = [f"    {kind}{star} {x} = {e};" for x, (kind, e) in expressions.items()]
    declared = [f"    {kind}{star} {x};" for x, (kind, _) in expressions.items()]
    gradient = "sum + i8 + u16 + (order ? real : natural) + u32 + u64"
    if not star:
        gradient = f"map(range(gradient.size), [&](int i) -> float {{ return {gradient}; }})"
    return "\n".join(
        [
            f"void {name}Encode(float* gradient, uint8* compressed{arguments}) {{",
            begin,
            *lines,
            f"    compressed = concat({names});\n}}",
            f"void {name}Decode(uint8* compressed, float* gradient) {{",
            *declared,
            f"    extract(compressed, {names});\n    gradient = {gradient};\n}}\n",
        ]
    )


LANES = program("Lanes", OVER_LANES, "*", ", state float* b", "    float* a = gradient;")
SCALARS = program(
    "Scalars",
    OVER_SCALARS,
    "",
    ", float ratio = 0.1, int whole = -3",
    "    float a = reduce(gradient, greater); float b = reduce(gradient, smaller);",
)


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("onebit", {}),
        *(("terngrad", {"bitwidth": w}) for w in (2, 7)),
        ("free", {}),
        ("keywords", {}),
        ("packs", {}),
        ("qsgd", {}),
        *(("int8", {"block": size}) for size in (7, 1500)),
    ],
)
def test_codecs_are_bit_equal(name: str, params: dict[str, int]) -> None:
    a, b = pair(name, **params)
    for n in SIZES:
        for label in LABELS if n < 2000 else ("normal", "mixed"):
            equal(a, b, gradient(label, n))


@pytest.mark.parametrize("block", [16, 48, 1500])
def test_hops_by_blocks_of_any_size_are_bit_equal(block: int) -> None:
    """A block is part of a vector, a vector and a rest, or a tile and a rest; the last may be shorter."""
    a, b = pair("int4", block=block)
    for n in (1, 48, 100, 1024, 4096 * 3 + 5):
        for label in ("normal", "mixed"):
            grad, received = gradient(label, n), a.encode(gradient("mixed", n, seed=4))
            item = compll.codec.Item(grad=grad, payload=received, scale=0.5)
            want, got = (codec.batch("hop", [item])[0] for codec in (a, b))
            assert same_bits(want.value, got.value), (n, label)
            assert want.finite is got.finite, (n, label)


@pytest.mark.parametrize("name", ["onebit", "terngrad", "qsgd"])
def test_large_gradients_are_bit_equal_at_every_thread_count(name: str) -> None:
    a, b = pair(name)
    for threads in (1, 2, 3, 4):
        equal(a, b, gradient("normal", LARGE), threads)


def test_every_operator_and_conversion_is_bit_equal_on_lanes() -> None:
    a, b = pair("lanes")
    values = np.concatenate([EDGES, np.array([-0.5, 1e-3, 127.5, 2.0**31, 2.0**63, 3.0, -7.25], np.float32)])
    left, right = (x.reshape(-1).copy() for x in np.meshgrid(values, values))
    for n in (len(left), 1, 40):
        states = [{"b": right[:n].copy()} for _ in range(2)]
        p, q = (c.encode(left[:n], seed=2**64 - 1, state=s) for c, s in zip((a, b), states, strict=True))
        assert same_bits(p, q)
        assert same_bits(states[0]["b"], states[1]["b"])
        assert same_bits(a.decode(p, n), b.decode(p, n))


def test_every_operator_and_conversion_is_bit_equal_on_scalars() -> None:
    a, b = pair("scalars")
    for x in EDGES:
        for y in (*EDGES, 3.0, 64.0, -2.5, 1e30):
            g = np.array([x, y], np.float32)
            p, q = a.encode(g, seed=5), b.encode(g, seed=5)
            assert same_bits(p, q), (x, y)
            assert same_bits(a.decode(p, 2), b.decode(p, 2)), (x, y)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_reductions_have_the_one_order(threads: int) -> None:
    a, b = compiled(REDUCTIONS, "interp"), compiled(REDUCTIONS, "numba")
    for n in (*ORDER_SIZES, 2**20 + 777):
        g = np.random.default_rng(n).standard_normal(n).astype(np.float32)
        assert same_bits(a.encode(g), b.encode(g, threads=threads)), n


def test_a_batch_and_calls_from_several_threads_give_what_single_calls_give() -> None:
    _, codec = pair("terngrad")
    grads = [gradient("normal", n) for n in (5, 100_000, 0, 70_001, 1024)] * 4
    want = [codec.encode(g, seed=k, threads=1).tobytes() for k, g in enumerate(grads)]
    items = [compll.codec.Item(grad=g, seed=k) for k, g in enumerate(grads)]
    assert [r.value.tobytes() for r in codec.batch("encode", items, threads=2)] == want
    with ThreadPoolExecutor(4) as pool:
        got = pool.map(lambda k: codec.encode(grads[k], seed=k, threads=3).tobytes(), range(len(grads)))
        assert list(got) == want


def test_bad_payloads_and_gradients_that_are_not_finite_are_told_as_elsewhere() -> None:
    _, codec = pair("terngrad")
    g = gradient("normal", 100)
    payload = codec.encode(g, seed=1)
    for bad in (payload[:-1], np.append(payload, np.uint8(0))):
        with pytest.raises(compll.PayloadError, match="100 elements take"):
            codec.decode(bad, 100)
    payload[0] = 3
    with pytest.raises(compll.PayloadError, match="bitwidth = 3"):
        codec.decode(payload, 100)
    for value, finite in ((np.nan, False), (np.inf, False), (3.4e38, True)):
        g[99] = value
        item = compll.codec.Item(grad=g, seed=1)
        assert codec.batch("encode", [item])[0].finite is finite


BESIDE_BLOCKS = """
void BesideEncode(float* gradient, uint8* compressed) {
    float* top = reduce(chunk(gradient, 48), greater);
    float sum = reduce(gradient, add);
    compressed = concat(top, sum);
}
void BesideDecode(uint8* compressed, float* gradient) {
    float* top; float sum;
    extract(compressed, top, sum);
    gradient = map(range(gradient.size), [&](int i) -> float { return top[i / 48] + sum; });
}
"""


def test_nothing_is_written_beyond_the_buffers() -> None:
    _, codec = pair("packs")
    for n in (1, 7, 33, 1030):
        room = np.full(codec.max_bytes(n) + 64, 0xA5, np.uint8)
        codec.encode(gradient("mixed", n), out=room)
        assert (room[codec.max_bytes(n) :] == 0xA5).all()
        out = np.full(n + 16, 7, np.float32)
        codec.decode(room[: codec.max_bytes(n)], n, out=out[:n])
        assert (out[n:] == 7).all()


def test_a_reduction_beside_blocks_has_room_for_all_tile_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """A span of blocks of 48 elements is three tiles, and each tile has a result."""
    a, b = (compiled(BESIDE_BLOCKS, backend) for backend in ("interp", "numba"))
    room = np.full(1064, 0xA5, np.uint8)
    room = room[-room.ctypes.data % 64 :]
    asked: list[int] = []

    def grow(_: Any, size: int) -> np.ndarray:
        asked.append(size)
        return room[:size]

    g = gradient("normal", 40_000)
    b.encode(g[:1])  # has the memory of this thread made
    monkeypatch.setattr(Memory, "grow", grow)
    assert same_bits(b.encode(g), a.encode(g))
    assert asked == [3 * 64]  # 40 results of 4 bytes
    assert (room[3 * 64 :] == 0xA5).all()


# --- builds -------------------------------------------------------------------------------------------

SMALL = """
void SmallEncode(float* g, uint8* c) { c = concat(g); }
void SmallDecode(uint8* c, float* g) { float* v; extract(c, v); g = v; }
"""
PROBE = """
import sys, compll, numpy as np
assert "numba" not in sys.modules
codec = compll.compile(sys.argv[1], sys.argv[2])
print(codec.backend, bytes(codec.encode(np.ones(3, np.float32))).hex())
"""
WANT = "numba " + np.ones(3, np.float32).tobytes().hex()


def probe(cache: Path, backend: str = "numba", **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", PROBE, str(write(SMALL, "small")), backend]
    variables = {**os.environ, "COMPLL_CACHE": str(cache), **environment}
    return subprocess.run(command, capture_output=True, text=True, check=False, env=variables)


def test_builds_are_kept_and_a_broken_one_mends_itself(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert probe(cache).stdout.strip() == WANT
    kernels = sorted(cache.glob("small-numba-*/__pycache__/*.nbc"))
    assert len(kernels) == 8  # for each of four operations what runs before its loop, and the loop
    times = [k.stat().st_mtime_ns for k in kernels]
    assert probe(cache).stdout.strip() == WANT
    assert [k.stat().st_mtime_ns for k in kernels] == times
    kernels[0].write_bytes(kernels[0].read_bytes()[:1000])
    done = probe(cache)
    assert done.stdout.strip() == WANT, done.stderr
    assert [k.stat().st_mtime_ns for k in kernels] != times


# What some processors have instructions for: halves, tables, conversions that saturate, maxima.
PORTABLE = """
void PortableEncode(float* g, uint8* c) {
    float* border = {-1, 0, 0.5, 2};
    half* h = g;
    int* whole = map(g, [&](float x) -> int { return x * 1e10; });
    uint32* natural = g * 1e9;
    uint4* code = map(range(g.size), [&](int i) -> uint4 { return search(border, g[i]); });
    float* top = reduce(chunk(g, 16), greater);
    float* low = reduce(chunk(g, 16), smaller);
    c = concat(h, whole, natural, code, top, low);
}
void PortableDecode(uint8* c, float* g) {
    float* few = {0.5, -0.0, 3, 1e-40, 7};
    float* some = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17};
    half* h; int* whole; uint32* natural; uint4* code; float* top; float* low;
    extract(c, h, whole, natural, code, top, low);
    g = map(range(g.size), [&](int i) -> float {
        float entries = few[code[i] & 3] * some[code[i]];
        return h[i] + entries + (top[i / 16] - low[i / 16]) * (float(whole[i]) + float(natural[i]));
    });
}
"""
COMPARE = """
import sys, compll, numpy as np
from compll.backends import numba_lanes
from compll.tools.samples import EDGES, same_bits
assert not numba_lanes.has("f16c") and not numba_lanes.has("avx512f")
g = np.tile(EDGES, 30)
codecs = [compll.compile(sys.argv[1], backend) for backend in ("interp", "numba")]
a, b = (codec.encode(g) for codec in codecs)
assert same_bits(a, b)
assert same_bits(*(codec.decode(a, len(g)) for codec in codecs))
print("equal")
"""


def test_processors_without_those_instructions_get_the_same_bits(tmp_path: Path) -> None:
    variables = {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "COMPLL_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", COMPARE, str(write(PORTABLE, "portable"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | variables)
    assert done.stdout.strip() == "equal", done.stderr


def test_auto_is_numba_where_there_is_no_compiler(tmp_path: Path) -> None:
    done = probe(tmp_path / "cache", "auto", COMPLL_CXX="nonexistent-compiler")
    assert done.stdout.strip() == WANT, done.stderr


def test_a_cache_that_cannot_be_written_and_a_disabled_compiler_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert "COMPLL_CACHE" in probe(tmp_path / "file").stderr
    assert "NUMBA_DISABLE_JIT" in probe(tmp_path, NUMBA_DISABLE_JIT="1").stderr


def test_without_compiler_and_numba_the_error_names_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMPLL_CXX", "nonexistent-compiler")
    monkeypatch.setattr(driver.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(compll.BackendError, match=r"COMPLL_CXX.*pip install 'compll\[numba\]'.*interp"):
        compll.compile("onebit")


def test_without_numba_the_backend_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from compll.backends import numba

    monkeypatch.setitem(sys.modules, "numba", None)
    numba.version.cache_clear()
    try:
        with pytest.raises(compll.BackendError, match=r"pip install 'compll\[numba\]'"):
            compll.compile("onebit", "numba")
    finally:
        numba.version.cache_clear()
