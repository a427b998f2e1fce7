"""Every operator and function of the table on edge values, on every backend, against plain Python."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import product
from typing import Any

import numpy as np
import pytest
from compll_cases import both, compiled, fields

from compll.ops import OPS

f32 = np.float32
FLOATS = [0.0, -0.0, 1.0, -1.0, 0.5, -0.5, 1.5, 2.5, -2.5, 3.7, -3.7, 1e-45, -1e-45, 1e-38, 8388609.5, 1e30]
FLOATS += [3.4e38, -3.4e38, math.inf, -math.inf, math.nan, 2.0**31, -(2.0**31), 2.0**63]
INTS = [
    0,
    1,
    -1,
    2,
    -2,
    3,
    7,
    -7,
    31,
    32,
    63,
    64,
    65,
    127,
    -128,
    255,
    2**31 - 1,
    2**31,
    -(2**31),
    -(2**31) - 1,
]
INTS += [2**32, 2**62, 2**63 - 1, -(2**63), -(2**63) + 1]
UINTS = [0, 1, 2, 3, 7, 31, 32, 33, 63, 64, 2**31 - 1, 2**31, 2**32 - 1]


def wrap(x: int, bits: int, signed: bool) -> int:
    x %= 1 << bits
    return x - (1 << bits) if signed and x >> (bits - 1) else x


def quotient(a: int, b: int) -> int:
    if b == 0:
        return 0
    q = abs(a) // abs(b)
    return q if (a < 0) == (b < 0) else -q


def shift_left(a: int, n: int, bits: int) -> int:
    return 0 if n >= bits else a << max(n, 0)


def shift_right(a: int, n: int, bits: int) -> int:
    return (-1 if a < 0 else 0) if n >= bits else a >> max(n, 0)


def integer_meanings(bits: int) -> dict[str, Callable[..., Any]]:
    """Name -> meaning on exact integers, before the result wraps."""
    return {
        "+": lambda a, b: a + b,
        "-": lambda a, b: a - b,
        "*": lambda a, b: a * b,
        "/": quotient,
        "%": lambda a, b: a - quotient(a, b) * b if b else 0,
        "&": lambda a, b: a & b,
        "|": lambda a, b: a | b,
        "^": lambda a, b: a ^ b,
        "<<": lambda a, b: shift_left(a, b, bits),
        ">>": lambda a, b: shift_right(a, b, bits),
        "neg": lambda a: -a,
        "~": lambda a: ~a,
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        "abs": abs,
        "min": min,
        "max": max,
        "floor": lambda a: a,
        "ceil": lambda a: a,
        "round": lambda a: a,
        "sign": lambda a: (a > 0) - (a < 0),
        "popcount": lambda a: bin(a % (1 << bits)).count("1"),
    }


def half_even(x: Any) -> Any:
    if not math.isfinite(x):
        return x
    return f32(math.copysign(round(float(x)), x))


def whole(f: Callable[[float], int]) -> Callable[[Any], Any]:
    return lambda x: f32(math.copysign(f(float(x)), x)) if math.isfinite(x) else x


FLOAT_MEANINGS: dict[str, Callable[..., Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "neg": lambda a: -a,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
    "==": lambda a, b: a == b,
    "!=": lambda a, b: a != b,
    "abs": lambda a: f32(math.copysign(a, 1)),
    "min": lambda a, b: a if a < b or a != a else b,
    "max": lambda a, b: a if a > b or a != a else b,
    "floor": whole(math.floor),
    "ceil": whole(math.ceil),
    "round": half_even,
    "sqrt": lambda a: f32(math.nan) if a < 0 or a != a else f32(math.copysign(math.sqrt(float(a)), a)),
    "sign": lambda a: int(a > 0) - int(a < 0),
    "isnan": math.isnan,
    "float_bits": lambda a: 0x7FC00000 if a != a else int(f32(a).view(np.uint32)),
}
LOGICAL: dict[str, Callable[..., Any]] = {
    "&&": lambda a, b: bool(a) and bool(b),
    "||": lambda a, b: bool(a) or bool(b),
    "!": lambda a: not a,
}
RELATIONS = ("<", "<=", ">", ">=", "==", "!=")
SPELLED = {
    "neg": "-{0}",
    "~": "~{0}",
    "!": "!{0}",
    "float_bits": "bitcast<uint32>({0})",
    "bits_float": "bitcast<float>({0})",
}


def spelled(op: str, arity: int, a: str = "a", b: str = "b") -> str:
    if op in SPELLED:
        return SPELLED[op].format(a)
    return f"{op}({a})" if arity == 1 else f"{op}({a}, {b})" if op.isalpha() else f"{a} {op} {b}"


def bits_of(x: Any) -> bytes:
    x = f32(x)
    return (f32(np.nan) if x != x else x).tobytes()


NUMPY = {"int": "i8", "uint32": "u4", "uint64": "u8", "float": "f4", "bool": "u1"}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_every_float_operator_on_every_pair_of_edges() -> None:
    pairs = np.array(list(product(FLOATS, FLOATS)), f32)
    grad = pairs.reshape(-1)
    n = len(pairs)
    ops = [op for op in OPS if op in FLOAT_MEANINGS]

    def gives(op: str) -> str:
        gives_ = OPS[op].gives
        return str(gives_) if gives_ is not None else "float"

    # pairs are read from the gradient and the state, so that cpp reads at the element's own position
    lines = "\n".join(f"    {gives(op)}* v{k} = {spelled(op, OPS[op].arity)};" for k, op in enumerate(ops))
    program = own(lines, [gives(op) for op in ops])
    a, b = grad[::2].copy(), grad[1::2].copy()
    want = [
        [FLOAT_MEANINGS[op](*((x,) if OPS[op].arity == 1 else (x, y))) for x, y in zip(a, b, strict=True)]
        for op in ops
    ]
    run_own(program, ops, [gives(op) for op in ops], a, b, want)
    assert n == len(a)


def own(lines: str, kinds: list[str], before: str = "") -> str:
    """Return a program over `a` (the gradient) and `b` (a state) that stores v0, v1, ..."""
    names = ", ".join(f"v{k}" for k in range(len(kinds)))
    declared = "\n".join(f"    {kind}* v{k};" for k, kind in enumerate(kinds))
    return f"""
void OwnEncode(float* a, uint8* compressed, state float* b) {{
{before}{lines}
    compressed = concat({names});
    b = b;
}}
void OwnDecode(uint8* compressed, float* gradient) {{
{declared}
    extract(compressed, {names});
    gradient = map(range(gradient.size), [&](int i) -> float {{ return 0.0; }});
}}
"""


def run_own(
    program: str, ops: list[str], kinds: list[str], a: np.ndarray, b: np.ndarray, want: list[list[Any]]
) -> None:
    for codec in both(program):
        payload = codec.encode(a, state={"b": b.copy()})
        columns = fields(payload, [NUMPY[k] for k in kinds], len(a))
        for op, column, kind, answers in zip(ops, columns, kinds, want, strict=True):
            for x, y, got, answer in zip(a, b, column, answers, strict=True):
                right = bits_of(got) == bits_of(answer) if kind == "float" else int(got) == int(answer)
                assert right, (codec.backend, op, x, y, got, answer)


def chosen(name: str, values: list[int], kind: str, by: str) -> str:
    """Return a declaration of the vector `name` that picks values[k] where `by` is k."""

    def written(v: int) -> str:
        if kind != "int":
            return f"cast<{kind}>({v})"
        return str(v) if v > -(2**63) else "(-9223372036854775807 - 1)"

    e = written(values[-1])
    for k, v in reversed(list(enumerate(values[:-1]))):
        e = f"{by} == {k} ? {written(v)} : ({e})"
    return f"    {kind}* {name} = {e};\n"


@pytest.mark.parametrize(
    ("kind", "bits", "values"),
    [("int", 64, INTS), ("uint32", 32, UINTS), ("uint64", 64, [*UINTS, 2**32, 2**63 - 1, 2**63, 2**64 - 1])],
)
def test_every_integer_operator_on_every_pair_of_edges(kind: str, bits: int, values: list[int]) -> None:
    meanings = integer_meanings(bits)
    ops = [op for op in OPS if op in meanings]

    def gives(op: str) -> str:
        return str(OPS[op].gives or kind)

    before = chosen("x", values, kind, "a") + chosen("y", values, kind, "b")
    spellings = [spelled(op, OPS[op].arity, "x", "y") for op in ops]
    lines = "\n".join(
        f"    {gives(op)}* v{k} = {s};" for k, (op, s) in enumerate(zip(ops, spellings, strict=True))
    )
    pairs = list(product(range(len(values)), repeat=2))
    a, b = (np.array(column, f32) for column in zip(*pairs, strict=True))
    want = []
    for op in ops:
        answers = []
        for i, j in pairs:
            operands = (values[i],) if OPS[op].arity == 1 else (values[i], values[j])
            answers.append(
                wrap(
                    int(meanings[op](*operands)),
                    1 if gives(op) == "bool" else bits,
                    kind == "int" and gives(op) != "bool",
                )
            )
        want.append(answers)
    run_own(own(lines, [gives(op) for op in ops], before), ops, [gives(op) for op in ops], a, b, want)


def test_the_narrow_integer_types_compute_as_int() -> None:
    """C++ may use 32-bit lanes where intervals prove it enough: the results must not show it."""
    values = [0, 1, -1, 127, -128, 100, -100, 5, 8]
    meanings = integer_meanings(64)
    ops = [op for op in OPS if op in meanings]
    kinds = ["bool" if op in RELATIONS else "int" for op in ops]
    lines = "    int8* x = a;\n    int32* y = b;\n"
    for k, op in enumerate(ops):
        s = spelled(op, OPS[op].arity, "x", "y")
        lines += f"    {kinds[k]}* v{k} = {s};\n"
    wide = [0, 1, -1, 31, 32, 64, 2**31 - 128, -(2**31), 8]
    pairs = list(product(values, wide))
    a, b = (np.array(column, f32) for column in zip(*pairs, strict=True))
    pairs = [(x, max(-(2**31), min(2**31 - 1, int(f32(y))))) for x, y in pairs]
    want = [
        [
            wrap(int(meanings[op](*(p[: OPS[op].arity]))), 1 if kinds[k] == "bool" else 64, kinds[k] == "int")
            for p in pairs
        ]
        for k, op in enumerate(ops)
    ]
    run_own(own(lines, kinds), ops, kinds, a, b, want)


def test_logic_select_clamp_and_bit_casts() -> None:
    lines = """
    bool* v0 = a > 0 && b > 0;
    bool* v1 = a > 0 || b > 0;
    bool* v2 = !(a > 0);
    float* v3 = a > b ? a : b;
    float* v4 = clamp(a, -1, b);
    float* v5 = bitcast<float>(bitcast<uint32>(a) & 0xff800000);
    bool* v6 = (a > 0) == (b > 0);
    bool* v7 = a && b;
    float* v8 = bitcast<float>(0x3f800000) + a;
    int* v9 = (a > 0) + (b > 0) * 2;
"""
    kinds = ["bool", "bool", "bool", "float", "float", "float", "bool", "bool", "float", "int"]
    pairs = np.array(list(product(FLOATS, FLOATS)), f32)
    a, b = pairs[:, 0].copy(), pairs[:, 1].copy()

    def low(x: Any, y: Any) -> Any:
        return x if x < y or x != x else y

    def high(x: Any, y: Any) -> Any:
        return x if x > y or x != x else y

    def cut(x: Any) -> Any:
        return np.uint32((0x7FC00000 if x != x else int(x.view(np.uint32))) & 0xFF800000).view(f32)

    meanings: list[Callable[[Any, Any], Any]] = [
        lambda x, y: LOGICAL["&&"](x > 0, y > 0),
        lambda x, y: LOGICAL["||"](x > 0, y > 0),
        lambda x, _: LOGICAL["!"](x > 0),
        lambda x, y: x if x > y else y,
        lambda x, y: low(high(x, f32(-1)), y),
        lambda x, _: cut(x),
        lambda x, y: (x > 0) == (y > 0),
        lambda x, y: bool(x != 0 and y != 0),
        lambda x, _: f32(1) + x,
        lambda x, y: int(x > 0) + 2 * int(y > 0),
    ]
    with np.errstate(all="ignore"):
        want = [[m(x, y) for x, y in zip(a, b, strict=True)] for m in meanings]
    run_own(own(lines, kinds), [f"v{k}" for k in range(len(kinds))], kinds, a, b, want)


def test_every_operator_of_the_table_is_tested_here() -> None:
    here = {*integer_meanings(64), *FLOAT_MEANINGS, *LOGICAL, "select", "bits_float"}
    here |= {"exp", "exp2", "log", "log2"}  # in test_elementary.py
    assert here == set(OPS)


SCALAR = """
void OneEncode(float* gradient, uint8* compressed) {{
    float fa = reduce(gradient, greater);
    float fb = reduce(gradient, smaller);
    int ia = fa * 1e10;
    int ib = fb;
    uint32 ua = fa;
    uint64 ub = ia;
{lines}
    compressed = concat({names});
}}
void OneDecode(uint8* compressed, float* gradient) {{
{declared}
    extract(compressed, {names});
    gradient = map(range(gradient.size), [&](int i) -> float {{ return 0.0; }});
}}
"""


def test_scalars_and_vectors_compute_the_same() -> None:
    """The scalar form of every operator, on the interpreter and in C++."""
    operands = {"float": ("fa", "fb"), "int": ("ia", "ib"), "uint32": ("ua", "ua"), "uint64": ("ub", "ub")}
    lines, names, declared = [], [], []
    for op, entry in OPS.items():
        for kind in entry.takes:
            if str(kind) not in operands or op == "select":
                continue
            a, b = operands[str(kind)]
            e = spelled(op, entry.arity, a, b)
            gives = str(entry.gives or kind)
            names.append(f"s{len(names)}")
            lines.append(f"    {gives} {names[-1]} = {e};")
            declared.append(f"    {gives} {names[-1]};")
    halves = (slice(0, 45), slice(45, None))
    for part in halves:
        text = SCALAR.format(
            lines="\n".join(lines[part]), names=", ".join(names[part]), declared="\n".join(declared[part])
        )
        interp, cpp = both(text)
        for x, y in product(FLOATS, [0.0, -1.0, 3.0, 64.0, -2.5, math.nan, 1e30]):
            grad = np.array([x, y], f32)
            assert interp.encode(grad).tobytes() == cpp.encode(grad).tobytes(), (x, y)


def test_floats_never_contract_to_a_fused_multiply_add() -> None:
    text = own("    float* v0 = a * b - 1;\n", ["float"])
    a = f32(1) + np.arange(1, 4000, dtype=f32) * f32(2**-23)
    want = [[f32(x * x) - f32(1) for x in a]]
    run_own(text, ["a * b - 1"], ["float"], a, a, want)


def test_literals_are_rounded_to_float32_once() -> None:
    text = own(
        "    float* v0 = a + 0.1;\n    float* v1 = a * 16777217;\n    float* v2 = a + 1e-46;\n", ["float"] * 3
    )
    a = np.array([0.0, 1.0], f32)
    want = [[x + f32(0.1) for x in a], [x * f32(16777217) for x in a], [x + f32(1e-46) for x in a]]
    run_own(text, ["0.1", "16777217", "1e-46"], ["float"] * 3, a, a, want)


def test_the_thread_s_flags_do_not_matter() -> None:
    """Denormals are kept, and the interpreter agrees."""
    text = own("    float* v0 = a * 0.5;\n", ["float"])
    a = (np.arange(1000) * np.float64(1.4e-45)).astype(f32)
    assert compiled(text, "cpp").encode(a, state={"b": a}).view(f32)[500] != 0
    run_own(text, ["denormal"], ["float"], a, a, [[x * f32(0.5) for x in a]])
