"""The Numba backend writes the same bits as the interpreter, builds into the cache, and says what it needs."""

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
from compll.emit import numba as emit

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

# Every operator and conversion on lanes; both vectors run through all pairs of edges.
LANES = """
void LanesEncode(float* gradient, uint8* compressed, state float* b) {
    float* sum = gradient + b; float* less = gradient - b; float* times = gradient * b; float* over = gradient / b;
    float* low = min(gradient, b); float* high = max(gradient, b); float* root = sqrt(gradient);
    float* down = floor(gradient); float* up = ceil(gradient); float* near = round(gradient * b); float* size = abs(-b);
    float* cut = bitcast<float>(bitcast<uint32>(gradient) & 0xff800000);
    int8* narrow = gradient * 100; int16* middle = b * 40000; int32* word = gradient * 1e9; int* whole = b * 1e18;
    uint16* some = gradient * 40000; uint32* unsigned = gradient * 3e9; uint64* wide = b * 1e19;
    int* quotient = whole / word; int* rest = whole % word; int* shifted = whole << narrow; int* back = whole >> narrow;
    int* mixed = (whole ^ ~word) | (word & 255); int* ones = popcount(whole) + popcount(unsigned) + sign(whole);
    uint32* wraps = unsigned * 3 - 7; uint32* part = unsigned / (unsigned >> 3); uint64* far = wide % 1000003 + wide;
    uint32* same = wide; int* signs = sign(gradient) + sign(-narrow) - min(narrow, 3); float* real = whole; float* natural = wide;
    bool* order = gradient < b && !(b <= 0) || isnan(b) || gradient == b;
    bool* other = (gradient >= b) != (gradient > 0) || whole >= word || unsigned < 5 || wide != 0;
    float* chosen = order ? gradient : other ? b : 1e-40; int* index = map(range(gradient.size), [&](int i) -> int { return i * i; });
    float* noise = random<float>(-1, 2) + gradient; int* dice = random<int>(-9, 100); float* near_by = stochastic_round(b);
    compressed = concat(sum, less, times, over, low, high, root, down, up, near, size, cut, narrow, middle, word, whole,
        some, unsigned, wide, quotient, rest, shifted, back, mixed, ones, wraps, part, far, same, signs, real, natural,
        order, other, chosen, index, noise, dice, near_by);
    b = gradient * 0.5;
}
void LanesDecode(uint8* compressed, float* gradient) {
    float* sum; float* less; float* times; float* over; float* low; float* high; float* root; float* down; float* up;
    float* near; float* size; float* cut; int8* narrow; int16* middle; int32* word; int* whole; uint16* some;
    uint32* unsigned; uint64* wide; int* quotient; int* rest; int* shifted; int* back; int* mixed; int* ones;
    uint32* wraps; uint32* part; uint64* far; uint32* same; int* signs; float* real; float* natural; bool* order; bool* other;
    float* chosen; int* index; float* noise; int* dice; float* near_by;
    extract(compressed, sum, less, times, over, low, high, root, down, up, near, size, cut, narrow, middle, word, whole,
        some, unsigned, wide, quotient, rest, shifted, back, mixed, ones, wraps, part, far, same, signs, real, natural,
        order, other, chosen, index, noise, dice, near_by);
    gradient = sum + narrow + some + middle + (order ? real : natural) + unsigned + wide;
}
"""

# The same on scalars, which are lanes of width 1.
SCALARS = """
void ScalarsEncode(float* gradient, uint8* compressed, float p = 0.1, int q = -3, bool yes = true) {
    float a = reduce(gradient, greater); float b = reduce(gradient, smaller);
    int i = a * 1e10; int j = b; uint32 u = a * 3; uint64 w = i; int8 c = a; uint8 d = b * 7; bool f = a > b;
    float x0 = a + b * p; float x1 = a / b; float x2 = min(a, b) - max(b, p); float x3 = floor(a) + ceil(b) + round(a);
    float x4 = sqrt(abs(a)); float x5 = f && yes ? -a : b; float x6 = bitcast<float>(bitcast<uint32>(a) ^ 1);
    int y0 = i / j + i % j; int y1 = (i << j) + (i >> c) + q; int y2 = (i & j) | (i ^ ~j); int y3 = popcount(i) + sign(j) + abs(j);
    uint32 z0 = u * 3 - 7 / u; uint64 z1 = w % 10007 + (w >> 3); float z2 = w; float z3 = i; bool z4 = isnan(a) || !(i == j);
    float r0 = random<float>(a, b); int r1 = random<int>(-9, 100); float r2 = stochastic_round(b);
    compressed = concat(c, d, f, x0, x1, x2, x3, x4, x5, x6, y0, y1, y2, y3, z0, z1, z2, z3, z4, r0, r1, r2, u, w, i, j);
}
void ScalarsDecode(uint8* compressed, float* gradient) {
    int8 c; uint8 d; bool f; float x0; float x1; float x2; float x3; float x4; float x5; float x6; int y0; int y1; int y2; int y3;
    uint32 z0; uint64 z1; float z2; float z3; bool z4; float r0; int r1; float r2; uint32 u; uint64 w; int i; int j;
    extract(compressed, c, d, f, x0, x1, x2, x3, x4, x5, x6, y0, y1, y2, y3, z0, z1, z2, z3, z4, r0, r1, r2, u, w, i, j);
    gradient = map(range(gradient.size), [&](int k) -> float { return f ? x0 + c + d : z4 ? x1 : u; });
}
"""


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("onebit", {}),
        *(("terngrad", {"bitwidth": w}) for w in (1, 2, 3, 8)),
        ("free", {}),
        ("keywords", {}),
        ("packs", {}),
    ],
)
def test_codecs_are_bit_equal(name: str, params: dict[str, int]) -> None:
    a, b = pair(name, **params)
    for n in SIZES:
        for label in LABELS if n < 2000 else ("normal", "mixed"):
            equal(a, b, gradient(label, n))


@pytest.mark.parametrize("name", ["onebit", "terngrad"])
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


def test_nothing_is_written_beyond_the_buffers() -> None:
    _, codec = pair("packs")
    for n in (1, 7, 33, 1030):
        room = np.full(codec.max_bytes(n) + 64, 0xA5, np.uint8)
        codec.encode(gradient("mixed", n), out=room)
        assert (room[codec.max_bytes(n) :] == 0xA5).all()
        out = np.full(n + 16, 7, np.float32)
        codec.decode(room[: codec.max_bytes(n)], n, out=out[:n])
        assert (out[n:] == 7).all()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("half* h = g; c = concat(h);", "does not build the type half"),
        ("float* y = map(range(g.size), [&](int i) -> float { return g[0]; }); c = concat(y);", "a read of 'g"),
    ],
)
def test_what_is_not_built_is_said(body: str, words: str) -> None:
    checked = driver.check_files([write(f"void AloneEncode(float* g, uint8* c) {{ {body} }}")], {})[0]
    with pytest.raises(compll.BackendError, match=f"the numba backend.*{words}.*interp"):
        emit.source(driver.unit_of(checked))


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
    assert len(kernels) == 6  # for each operation what runs before its loop, and the loop
    times = [k.stat().st_mtime_ns for k in kernels]
    assert probe(cache).stdout.strip() == WANT
    assert [k.stat().st_mtime_ns for k in kernels] == times
    kernels[0].write_bytes(kernels[0].read_bytes()[:1000])
    done = probe(cache)
    assert done.stdout.strip() == WANT, done.stderr
    assert [k.stat().st_mtime_ns for k in kernels] != times


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
