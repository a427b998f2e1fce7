"""Intervals hold every value, edge values too; the block codecs need no lanes of 64 bits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "fuzz"))

import fuzz_expressions
from compll_cases import write

from compll import codec as api
from compll import driver, ir
from compll.emit import cpp
from compll.emit.ranges import Ranges
from compll.evaluate import Environment, evaluate
from compll.passes import fuse
from compll.types import FLOAT, INT, INT8

N = 400
EDGES = [0.0, -0.0, 1.0, -1.0, 0.5, 1e-45, -1e-45, 3e38, -3e38, np.inf, -np.inf, np.nan, 2.0**31, -(2.0**63)]


def values(r: np.random.Generator) -> np.ndarray:
    """Return floats of every size, edges among them."""
    any_bits = r.integers(0, 2**32, N, np.uint32).view(np.float32)
    plain = r.normal(0, 10, N).astype(np.float32)
    some = np.where(r.random(N) < 0.5, any_bits, plain)
    return np.where(r.random(N) < 0.3, r.choice(np.array(EDGES, np.float32), N), some).astype(np.float32)


def ordered(x: np.ndarray) -> np.ndarray:
    """Return integers that are ordered as floats are, -0 before 0."""
    bits = x.astype(np.float32).view(np.int32).astype(np.int64)
    return np.where(bits >= 0, bits, -(bits & 0x7FFFFFFF) - 1)


def holds(ranges: Ranges, e: ir.Expr, found: np.ndarray) -> bool:
    """Whether the interval of an expression has all the values that were found."""
    have = ranges.of(e)
    if e.type != FLOAT:
        return all(have.low <= int(x) <= have.high for x in found)
    real = found[~np.isnan(found)]
    low, high = (int(ordered(np.array([x]))[0]) for x in (have.low, have.high))
    return (have.nan or len(real) == len(found)) and bool(
        ((low <= ordered(real)) & (ordered(real) <= high)).all()
    )


@pytest.mark.parametrize("seed", range(40))
def test_an_interval_holds_every_value_of_every_subexpression(seed: int) -> None:
    f = driver.load([write(fuzz_expressions.generated(seed))], {}).encode
    r = np.random.default_rng(seed)
    scalars = {"total": np.float32(r.choice(EDGES)), "count": np.int64(r.integers(-5, 2**40))}
    vectors = {"gradient": values(r), "memory": values(r), "small": r.integers(-128, 128, N)}
    env = Environment(N, {"ratio": 0.75, "whole": -3}, vectors, scalars, seed=7)
    ranges = Ranges({"gradient": FLOAT, "memory": FLOAT, "small": INT8})
    bodies = [b.body for b in f.body if isinstance(b, ir.Map) and b.name.startswith("v")]
    assert bodies
    for e in {x for body in bodies for x in ir.walk(body)}:
        found = evaluate(e, env, np.arange(N))
        assert holds(ranges, e, found), (e, ranges.of(e), found)


def test_known_intervals() -> None:
    x, size = ir.Read("gradient", ir.Position(), FLOAT), 448.0
    r = Ranges({"gradient": FLOAT})
    bounded = ir.apply("min", ir.apply("abs", x), ir.const(size, FLOAT))
    assert (r.of(bounded).low, r.of(bounded).high, r.of(bounded).nan) == (0.0, 448.0, True)
    whole = ir.as_elem(ir.apply("round", bounded), INT)
    assert (r.of(whole).low, r.of(whole).high) == (0, 448)
    bits = ir.apply(">>", ir.apply("float_bits", bounded), ir.const(23, ir.apply("float_bits", x).type))
    assert r.of(bits).high == 255
    assert not r.narrow(ir.as_elem(x, INT))


@pytest.mark.parametrize("name", ["int8", "int4", "fp8", "mxfp4"])
def test_block_codecs_need_no_lanes_of_64_bits(name: str) -> None:
    text = cpp.source(driver.unit_of(driver.load(api.find(name), {}).checked))
    assert "Int32" in text
    assert "Int64" not in text


@pytest.mark.parametrize(
    ("clamped", "narrow"),
    [
        ("min(max(int(gradient[i]), -7), 7)", True),
        ("max(min(int(gradient[i]), 7), -7)", True),
        ("clamp(int(gradient[i]), -2147483648, 2147483647)", True),
        ("clamp(int(gradient[i]), -2147483649, 7)", False),
        ("max(int(gradient[i]), -7)", False),
    ],
)
def test_a_conversion_that_is_clamped_is_one_to_32_bits(clamped: str, narrow: bool) -> None:
    text = f"""
void CutEncode(float* gradient, uint8* compressed) {{
    int* v = map(range(gradient.size), [&](int i) -> int {{ return {clamped}; }});
    compressed = concat(v);
}}
void CutDecode(uint8* compressed, float* gradient) {{
    int* v;
    extract(compressed, v);
    gradient = map(range(gradient.size), [&](int i) -> float {{ return v[i]; }});
}}
"""
    f = fuse(driver.load([write(text)], {}).encode)
    found = {
        x.to.name for b in f.body for e in ir.expressions(b) for x in ir.walk(e) if isinstance(x, ir.Convert)
    }
    assert ("int32" in found) == narrow
