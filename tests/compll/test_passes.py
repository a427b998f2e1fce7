"""Passes keep the meaning, and fusion reads memory seldom; broken IR is caught; texts are fresh."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from compll_cases import gradient, same_bits, write
from test_language import FREE, KEYWORDS, LEVELS

from compll import codec as api
from compll import driver, generate, ir, passes
from compll.backends import Call
from compll.backends.interp import interpret
from compll.ir_text import function_text
from compll.ir_verify import InternalError, verify
from compll.types import FLOAT, INT

SOURCES = {"onebit": {}, "terngrad": {"bitwidth": 3}, "levels": {"bitwidth": 5}, "free": {}, "keywords": {}}
OWN = {"levels": LEVELS, "free": FREE, "keywords": KEYWORDS}


@functools.cache
def program(name: str) -> driver.Program:
    path = api.algorithms()[name] if name not in OWN else write(OWN[name])
    return driver.load([path], SOURCES[name])


def functions(name: str) -> list[ir.Function]:
    return list(driver.unit_of(program(name).checked).functions)


def run(f: ir.Function, n: int, payload: np.ndarray) -> tuple[np.ndarray, ...]:
    """Interpret a function; return all that it wrote."""
    grad = gradient("mixed", n)
    state = {k: np.linspace(-1, 1, n, dtype=np.float32) for k in f.states}
    new = {k: np.zeros(n, np.float32) for k in f.states}
    raw = payload.copy()
    source = payload.copy() if f.op == "hop" else None
    interpret(f, Call(n, grad, raw, 7, 9, 0.5, state, new, source), program_values[f.codec])
    return raw, grad, *new.values()


program_values = {program(name).checked.codec: program(name).checked.values for name in SOURCES}


@pytest.mark.parametrize("name", SOURCES)
def test_every_pass_keeps_every_bit(name: str) -> None:
    n = 1100
    codec = api.Codec(program(name), driver.build(program(name).checked, "interp"))
    payload = np.zeros(codec.max_bytes(n), np.uint8)
    payload = run(functions(name)[0], n, payload)[0]  # what decode then reads
    for f in functions(name):
        start = payload if f.op != "encode" else np.full_like(payload, 0xAA)
        want = run(f, n, start)
        for one in passes.PASSES:
            f = verify(one(f), one.__name__)
            assert all(same_bits(a, b) for a, b in zip(run(f, n, start), want, strict=True)), one.__name__


def loops(name: str, op: str) -> list[ir.Pass]:
    f = next(f for f in functions(name) if f.op == op)
    return [b for b in passes.fuse(f).body if isinstance(b, ir.Pass)]


@pytest.mark.parametrize(
    ("name", "encode", "decode"), [("onebit", 2, 1), ("terngrad", 2, 1), ("levels", 2, 1), ("free", 2, 1)]
)
def test_memory_is_passed_over_as_seldom_as_possible(name: str, encode: int, decode: int) -> None:
    assert len(loops(name, "encode")) == encode
    assert len(loops(name, "decode")) == decode
    assert len(loops(name, "decode_add")) == decode


@pytest.mark.parametrize("name", ["terngrad", "levels"])
def test_both_reductions_share_one_pass_and_map_and_pack_another(name: str) -> None:
    first, second = loops(name, "encode")
    assert [type(s) for s in first.sinks] == [ir.Reduce, ir.Reduce, ir.Finite]
    (store,) = second.sinks
    assert isinstance(store, ir.Store)
    assert store.elem.packed


def test_a_state_is_stored_in_the_last_pass_that_reads_it() -> None:
    first, second = loops("onebit", "encode")
    assert {s.target.kind for s in second.sinks if isinstance(s, ir.Store)} == {"state"}
    assert {s.target.kind for s in first.sinks if isinstance(s, ir.Store)} == {"field"}


def test_nothing_that_is_not_used_is_computed() -> None:
    text = """
void LazyEncode(float* g, uint8* c) { float unused = reduce(g, add); float* w = g * unused; c = concat(g); }
void LazyDecode(uint8* c, float* g) { float* v; extract(c, v); g = v; }
"""
    checked = driver.load([write(text)], {}).checked
    assert checked.encode is not None
    (only,) = passes.fuse(checked.encode).body
    assert [type(s) for s in only.sinks] == [ir.Store, ir.Finite]  # type: ignore[union-attr]


def encode_of(name: str) -> ir.Function:
    return functions(name)[0]


def with_body(f: ir.Function, *bindings: ir.Binding) -> ir.Function:
    return replace(f, body=bindings)


ONE = ir.const(1, FLOAT)
G = ir.Read("gradient", ir.Position(), FLOAT)
ADD = ir.Combine("add", ir.apply("+", ir.Scalar("a", FLOAT), ir.Scalar("b", FLOAT)), FLOAT)
SUM = ir.Reduce("s", ADD, ONE, ir.Size(), G)
BROKEN = {
    "scalar defined twice": (ir.Let("x", ONE), ir.Let("x", ONE)),
    "scalar used before it is defined": (ir.Let("x", ir.Scalar("y", FLOAT)),),
    "scalar of another type": (ir.Let("x", ONE), ir.Let("y", ir.Scalar("x", INT))),
    "unknown parameter": (ir.Let("x", ir.Param("nothing", FLOAT)),),
    "unknown vector": (ir.Let("x", ir.Read("nothing", ir.Position(), FLOAT)),),
    "float position": (ir.Let("x", ir.Read("gradient", ONE, FLOAT)),),
    "vector defined twice": (ir.Map("v", FLOAT, ir.Size(), G), ir.Map("v", FLOAT, ir.Size(), G)),
    "map of another type": (ir.Map("v", INT, ir.Size(), G),),
    "operands of two types": (ir.Let("x", ir.Apply("+", (ONE, ir.const(1, INT)), FLOAT)),),
    "too few operands": (ir.Let("x", ir.Apply("+", (ONE,), FLOAT)),),
    "select without a condition": (ir.Let("x", ir.Apply("select", (ONE, ONE, ONE), FLOAT)),),
    "a result of another type": (ir.Let("x", ir.Apply("<", (ONE, ONE), FLOAT)),),
    "reduce of another type": (replace(SUM, init=ir.const(1, INT)),),
    "unknown field": (ir.Put("nothing", FLOAT, ONE),),
    "unknown state": (ir.Store(ir.Target("state", "nothing"), FLOAT, ir.Size(), G),),
    "unknown field that is read": (ir.Get("x", "nothing", FLOAT),),
    "a pass of two lengths": (ir.Pass(ir.Size(), (replace(SUM, length=ir.const(3, INT)),)),),
    "a reduction used in its own pass": (
        ir.Pass(ir.Size(), (SUM, replace(SUM, name="t", init=ir.Scalar("s", FLOAT)))),
    ),
}


@pytest.mark.parametrize("what", BROKEN)
def test_the_verifier_catches_broken_ir(what: str) -> None:
    with pytest.raises(InternalError, match=r"onebit.encode after a test"):
        verify(with_body(encode_of("onebit"), *BROKEN[what]), "a test")
    verify(with_body(encode_of("onebit"), SUM), "a test")


def test_generated_is_fresh() -> None:
    root = Path(__file__).resolve().parents[2]
    assert generate.differences(root / "generated") == "", "run `compll generate`"


def test_a_stale_a_missing_and_a_strange_file_are_reported_and_written_anew(tmp_path: Path) -> None:
    target = tmp_path / "generated"
    made = [name for name, text in generate.texts() if isinstance(text, str)]
    assert generate.write(target) == [target / name for name in made]
    assert generate.write(target) == []
    (target / "onebit" / "onebit.ir").write_text("stale\n")
    (target / "terngrad" / "terngrad.cpp").unlink()
    (target / "onebit" / "strange.cpp").write_text("int x;\n")
    diff = generate.differences(target)
    for name in ("onebit/onebit.ir", "terngrad/terngrad.cpp", "onebit/strange.cpp"):
        assert name in diff
    assert "-stale" in diff
    assert len(generate.write(target)) == 3
    assert generate.differences(target) == ""


def test_texts_of_large_formulas_stay_small() -> None:
    squares = "".join(f"    float* v{k + 1} = v{k} * v{k} + v{k};\n" for k in range(30))
    text = f"""
void SquaresEncode(float* g, uint8* c) {{
    float* v0 = g;
{squares}    c = concat(v30);
}}
void SquaresDecode(uint8* c, float* g) {{ float* v; extract(c, v); g = v; }}
"""
    checked = driver.load([write(text)], {}).checked
    assert checked.encode is not None
    assert len(function_text(passes.fuse(checked.encode))) < 5000
    codec = api.compile(write(text), "interp")
    assert len(codec.info.fingerprint) == 64
    want = g = np.linspace(-1, 0, 300, dtype=np.float32)
    for _ in range(30):
        want = want * want + want
    assert same_bits(codec.encode(g).view(np.float32), want)
