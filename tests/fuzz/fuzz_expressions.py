"""Well-typed expressions, and programs of four fields made of them, from a seed."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

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
Leaves = Mapping[str, Sequence[str]]  # of each type; the first one is no constant
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
    "int": ("cast<int>(x)", "7", "-1"),
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
            op, left, right = r.choice(BINARY[kind]), sub(kind), sub(kind)
            if op in ("{}/{}", "{}%{}"):  # by the constant 0 is an error of the program
                right += f" + 0 * {leaves[kind][0]}"
            return "(" + op.format(f"({left})", f"({right})") + ")"


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
