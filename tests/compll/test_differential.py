"""Every backend writes the same bits as the interpreter: shipped algorithms, own ones, generated ones."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from compll_cases import LABELS, compiled, encode, gradient, same_bits
from test_language import FREE, KEYWORDS, LEVELS

import compll

SIZES = (0, 1, 15, 16, 17, 127, 129, 1023, 1024, 1025, 4096 * 3 + 5)


def pair(name: str, **params: Any) -> tuple[compll.Codec, compll.Codec]:
    if name in compll.algorithms():
        return compll.compile(name, "interp", **params), compll.compile(name, "cpp", **params)
    text = {"levels": LEVELS, "free": FREE, "keywords": KEYWORDS}[name]
    return compiled(text, "interp", **params), compiled(text, "cpp", **params)


def equal(a: compll.Codec, b: compll.Codec, g: np.ndarray, threads: int) -> None:
    n = len(g)
    (p, old), (q, new) = encode(a, g), encode(b, g, threads=threads)
    assert same_bits(p, q)
    for k in old:
        assert same_bits(old[k], new[k])
        assert np.isfinite(new[k]).all()
    assert same_bits(a.decode(p, n), b.decode(p, n))
    added = [gradient("mixed", n, seed=4) for _ in range(2)]
    for codec, out in zip((a, b), added, strict=True):
        codec.decode_add(p, out, -0.7)
    assert same_bits(*added)


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("onebit", {}),
        *(("terngrad", {"bitwidth": w}) for w in (1, 2, 3, 8)),
        ("levels", {"bitwidth": 3}),
        ("free", {}),
        ("keywords", {}),
    ],
)
def test_codecs_are_bit_equal(name: str, params: dict[str, int], threads: int) -> None:
    a, b = pair(name, **params)
    for n in SIZES:
        for label in LABELS if n < 2000 else ("normal", "mixed"):
            equal(a, b, gradient(label, n), threads)


@pytest.mark.parametrize("name", ["onebit", "terngrad"])
def test_large_gradients_are_bit_equal_at_every_thread_count(name: str) -> None:
    a, b = pair(name)
    g = gradient("normal", 300_001)
    want = encode(a, g)
    for threads in (1, 2, 3, 4, 16):
        got = encode(b, g, threads=threads)
        assert same_bits(got[0], want[0])
        assert all(same_bits(got[1][k], want[1][k]) for k in want[1])


# --- generated programs ------------------------------------------------------------------------------

UNARY = {
    "float": ["-{}", "abs({})", "floor({})", "round({})", "sqrt({})"],
    "int": ["-{}", "~{}", "abs({})", "sign({})", "popcount({})"],
    "uint32": ["-{}", "~{}", "abs({})", "max({},7)"],
    "uint64": ["-{}", "~{}", "abs({})", "min({},7)"],
}
INTEGER = [
    "{}+{}",
    "{}-{}",
    "{}*{}",
    "{}/{}",
    "{}%{}",
    "{}&{}",
    "{}|{}",
    "{}^{}",
    "{}<<({}&7)",
    "{}>>({}&63)",
    "min({},{})",
    "max({},{})",
]
BINARY = {
    "float": ["{}+{}", "{}-{}", "{}*{}", "{}/{}", "min({},{})", "max({},{})"],
    "int": INTEGER,
    "uint32": INTEGER,
    "uint64": INTEGER,
}
Leaves = Mapping[str, Sequence[str]]
LEAVES: Leaves = {
    "float": ("gradient[i]", "memory[i]", "ratio", "0.25", "-3.0", "1e-40", "total", "random<float>(-1, 2)"),
    "int": [
        "i",
        "whole",
        "7",
        "-1",
        "1000000007",
        "gradient.size",
        "count",
        "random<int>(-9,100)",
        "small[i]",
    ],
    "uint32": (
        "cast<uint32>(i)",
        "cast<uint32>(gradient[i])",
        "cast<uint32>(4000000000)",
        "bitcast<uint32>(memory[i])",
    ),
    "uint64": ("cast<uint64>(i)", "cast<uint64>(gradient[i])", "cast<uint64>(18000000000000000000)"),
}
PAIR: Leaves = {
    "float": ("x", "y", "0.25", "-3.0"),
    "int": ("7", "-1", "cast<int>(x)"),
    "uint32": ("cast<uint32>(y)", "bitcast<uint32>(x)"),
    "uint64": ("cast<uint64>(y)", "cast<uint64>(7)"),
}


def expression(r: random.Random, kind: str, depth: int, leaves: Leaves = LEAVES) -> str:
    """Return a well-typed expression of the position i."""
    if depth == 0 or r.random() < 0.1:
        return r.choice(leaves[kind])

    def sub(k: str) -> str:
        return expression(r, k, depth - 1, leaves)

    other = r.choice([k for k in LEAVES if k != kind])
    match r.randrange(7):
        case 0:
            return "(" + r.choice(UNARY[kind]).format(f"({sub(kind)})") + ")"
        case 1:
            narrow = r.choice(("int8", "uint8", "int16", "int32", "uint4", "int"))
            return f"cast<{narrow if kind == 'int' else kind}>({sub(other)})"
        case 2:
            compare = r.choice(("<", "<=", ">", ">=", "==", "!="))
            k = r.choice(list(LEAVES))
            return f"({sub(k)} {compare} {sub(k)} ? {sub(kind)} : {sub(kind)})"
        case 3 if kind == "int":
            either = f"{sub('int')} < {sub('int')} || isnan({sub('float')})"
            return f"(({sub('float')} > {sub('float')}) + ({either}))"
        case 3 if kind == "float":
            return f"stochastic_round({sub('float')})"
        case _:
            return "(" + r.choice(BINARY[kind]).format(f"({sub(kind)})", f"({sub(kind)})") + ")"


def generated(seed: int) -> str:
    r = random.Random(seed)
    kinds = [
        r.choice(("float", "int", "int8", "uint16", "uint32", "uint<3>", "uint<5>", "bool", "float"))
        for _ in range(4)
    ]
    lines = []
    for at, kind in enumerate(kinds):
        source = "float" if kind in ("float", "bool") else r.choice(("float", "int"))
        lines.append(
            f"    {kind}* v{at} = map(range(gradient.size),"
            f" [&](int i) -> {kind} {{ return {expression(r, source, 3)}; }});"
        )
    combine = expression(r, "float", 3, PAIR).replace("stochastic_round(", "floor(")
    names = ", ".join(f"v{k}" for k in range(4))
    declared = "\n".join(f"    {kind}* v{k};" for k, kind in enumerate(kinds))
    return f"""
void RandomEncode(float* gradient, uint8* compressed, state float* memory,
                  float ratio = 0.75, int whole = -3) {{
    float total = reduce(gradient, add);
    int count = reduce(gradient > 0, add);
    int8* small = gradient * 50;
{chr(10).join(lines)}
    float odd = reduce(v0, 0.5, [&](float x, float y) -> float {{ return {combine}; }});
    compressed = concat(odd, {names});
    memory = map(range(gradient.size), [&](int i) -> float {{ return {expression(r, "float", 3)}; }});
}}
void RandomDecode(uint8* compressed, float* gradient) {{
    float odd;
{declared}
    extract(compressed, odd, {names});
    gradient = map(range(gradient.size), [&](int i) -> float {{ return v0[i] + odd; }});
}}
"""


@pytest.mark.parametrize("seed", range(24))
def test_generated_programs_are_bit_equal(seed: int) -> None:
    text = generated(seed)
    a, b = compiled(text, "interp"), compiled(text, "cpp")
    for n, label in (
        (0, "normal"),
        (1, "mixed"),
        (1100, "mixed"),
        (2500, "normal"),
        (300, "denormal"),
        (300, "huge"),
    ):
        equal(a, b, gradient(label, n), 2)
    other = [c.with_params(ratio=-2.5, whole=2**40) for c in (a, b)]
    equal(*other, gradient("mixed", 1500), 1)


@pytest.mark.parametrize("offset", [1, 3])
def test_gradients_states_and_outputs_may_begin_anywhere(offset: int) -> None:
    a, b = pair("onebit")
    whole, memory = gradient("normal", 2500), gradient("normal", 2500, seed=2)
    states = [{"residual": memory.copy()[offset : offset + 2100]} for _ in range(2)]
    payloads = [c.encode(whole[offset : offset + 2100], state=s) for c, s in zip((a, b), states, strict=True)]
    assert same_bits(*payloads)
    assert same_bits(states[0]["residual"], states[1]["residual"])
    room = np.full(2500, 7, np.float32)
    b.decode(payloads[0], 2100, out=room[offset : offset + 2100])
    assert same_bits(room[offset : offset + 2100], a.decode(payloads[0], 2100))
    assert (room[:offset] == 7).all()
    assert (room[offset + 2100 :] == 7).all()


def test_the_thread_s_own_flags_are_set_aside_and_restored() -> None:
    a, b = pair("terngrad", bitwidth=8)
    g = gradient("denormal", 200_000)
    want = a.encode(g, seed=1)
    half = torch.tensor([1e-40])
    assert torch.set_flush_denormal(True)
    try:
        for threads in (1, 2):
            assert same_bits(b.encode(g, seed=1, threads=threads), want)
        assert (half * 0.5).item() == 0  # still flushed, as the thread had asked
    finally:
        torch.set_flush_denormal(False)
