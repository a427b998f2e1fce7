"""Selections that keep what they find, guess what is greatest and look up codes mean what plain ones do."""

from __future__ import annotations

import numpy as np
import pytest
from compll_cases import LEVELS, both, built_for, compiled, gradient, same_bits, write

from compll import codec as api
from compll import driver, ir
from compll.passes import fuse

CHUNK = 64 * 1024  # elements that one thread goes through at once

# A filter without a limit, one with a limit, a topk, a search and a table: what is fast about all of them.
ALL = """
float value(int code) {
    int m = code % 8 + 1;
    float size = exp2(float(code / 8)) * m * m * m / sqrt(float(code * code + 3)) + (m - 3) * (m + 5);
    return code % 3 == 0 ? -size : code % 5 == 0 ? size + 1 : size;
}
void AllEncode(float* gradient, uint8* compressed, state float* residual,
               float least = 1, int most = 70000, int k = 40) {
    float* border = {-4, -3.5, -3, -2.5, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4};
    float* x = gradient + residual;
    float* top = reduce(chunk(abs(x), 100), 0, greater);
    lambda_func sent = [&](int i) -> bool { return abs(x[i]) >= least && x[i] < top[i / 100]; };
    uint32* index = filter(range(x.size), sent);
    int32* some = filter(range(x.size), [&](int i) -> bool { return x[i] > least; }, most);
    int32* first = topk(abs(x), k);
    uint8* code = map(range(x.size), [&](int i) -> uint8 { return search(border, x[i]) * 14; });
    compressed = concat(index, gather(x, index), some, gather(gradient, some), first, gather(x, first), code);
    residual = x - scatter(x.size, index, gather(x, index));
}
void AllDecode(uint8* compressed, float* gradient, int most = 70000, int k = 40) {
    uint32* index; float* v; int32* some; float* w; int32* first; float* u; uint8* code;
    extract(compressed, index, v, some, w, first, u, code);
    float* base = map(range(gradient.size), [&](int i) -> float { return value(code[i]); });
    gradient = scatter(base, index, v);
}
"""


def written(codec: api.Codec, g: np.ndarray, threads: int) -> list[np.ndarray]:
    """Return all that a call on a gradient writes."""
    n = len(g)
    state = {"residual": np.linspace(-1, 1, n, dtype=np.float32)}
    payload = codec.encode(g, state=state, threads=threads).copy()
    return [payload, codec.decode(payload, n), state["residual"]]


@pytest.mark.parametrize("n", [0, 17, 5000, CHUNK, 2 * CHUNK + 3])
def test_what_is_kept_is_what_the_interpreter_selects(n: int) -> None:
    meant, made = both(ALL)
    for least, most, k in ((1.0, 70000, 40), (0.0, 10, 1), (float("inf"), 0, 0), (-1.0, CHUNK + 1, n // 3)):
        params = {"least": least, "most": most, "k": k}
        want = written(meant.with_params(**params), gradient("mixed", n), 1)
        for threads in (1, 2, 4):
            got = written(made.with_params(**params), gradient("mixed", n), threads)
            assert all(same_bits(a, b) for a, b in zip(want, got, strict=True)), (params, threads)


@pytest.mark.parametrize("level", LEVELS)
def test_so_it_is_without_wide_instructions(level: str) -> None:
    made = built_for(level, write(ALL))
    g = gradient("mixed", CHUNK + 1001)
    want = written(compiled(ALL, "interp"), g, 1)
    assert all(same_bits(a, b) for a, b in zip(want, written(made, g, 2), strict=True))


def test_topk_is_exact_where_its_sample_misleads() -> None:
    meant, made = both(ALL)
    n = 100_000
    every = n // (n // 1024)  # that is where the sample is taken
    great = np.zeros(n, np.float32)
    great[::every] = 1e6
    small = gradient("normal", n)
    small[::every] = 0
    zeros, rising = np.zeros(n, np.float32), np.arange(n, dtype=np.float32)
    for g in (great, small, zeros, zeros * np.float32("nan"), rising):
        for k in (1, 90, 1000, n // 16, n // 2):
            want, got = (written(c.with_params(k=k), g, 2)[0] for c in (meant, made))
            assert same_bits(want, got), k


def passes(source: str, op: str) -> list[ir.Pass]:
    unit = driver.unit_of(driver.load(driver.find(source), {}).checked)
    return [b for f in unit.functions if f.op == op for b in fuse(f).body if isinstance(b, ir.Pass)]


def test_a_threshold_reads_the_gradient_once_and_stores_the_state_meanwhile() -> None:
    whole, selected = passes("threshold", "encode")
    assert {type(s) for s in whole.sinks} == {ir.Keep, ir.Store, ir.Finite}
    reads = {x.vector for e in ir.expressions(selected) for x in ir.walk(e) if isinstance(x, ir.Read)}
    assert not reads & {"gradient", "residual"}


def tables(text: str) -> list[ir.Table]:
    unit = driver.unit_of(driver.load([write(text)], {}).checked)
    return [b for f in unit.functions if f.op == "decode" for b in fuse(f).body if isinstance(b, ir.Table)]


CODED = """
void CodedEncode(float* gradient, uint8* compressed) {{
    {kind}* code = map(range(gradient.size), [&](int i) -> {kind} {{ return gradient[i] * 8; }});
    compressed = concat(code);
}}
void CodedDecode(uint8* compressed, float* gradient) {{
    {kind}* code;
    extract(compressed, code);
    float* few = {{1, 2, 3, 4, 5, 6, 7, 8}};
    gradient = map(range(gradient.size), [&](int i) -> float {{ return {value}; }});
}}
"""
DEAR = " + ".join(f"(code[i] + {k}) * {k}.5" for k in range(8))


@pytest.mark.parametrize("kind", ["uint2", "uint4", "uint<7>", "uint8", "int8"])
def test_a_dear_formula_of_a_code_is_looked_up(kind: str) -> None:
    text = CODED.format(kind=kind, value=DEAR)
    assert len(tables(text)[0].values) == 2 ** int("".join(c for c in kind if c.isdigit()))
    meant, made = both(text)
    for n in (0, 5, 3000):
        g = gradient("normal", n) * 10
        payload = meant.encode(g)
        assert same_bits(made.decode(payload, n), meant.decode(payload, n))


def test_what_is_cheap_or_reads_out_of_range_is_worked_out() -> None:
    assert not tables(CODED.format(kind="uint8", value="code[i] * 2.0"))
    text = CODED.format(kind="uint8", value=DEAR + " + few[code[i]]")
    assert [len(t.values) for t in tables(text)] == [8]
    for codec in both(text):
        assert len(codec.decode(np.full(40, 7, np.uint8), 40)) == 40
        with pytest.raises(api.PayloadError):
            codec.decode(np.full(40, 8, np.uint8), 40)
