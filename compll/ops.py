"""The operator table: for each scalar operator its type rule, its NumPy meaning, its C text, an example.

A new scalar function is one entry here.  The NumPy meaning works on arrays of one arithmetic type; the C
text names a function of the runtime header (or an operator) that is overloaded for scalars and lanes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from compll import elementary
from compll.types import BOOL, FLOAT, INT, UINT32, UINT64, Array, Elem, canonical

INTEGERS = (INT, UINT32, UINT64)


@dataclass(frozen=True, slots=True)
class Op:
    """One scalar operator.

    `takes` lists the arithmetic types of its unified operands; `gives` is the result's type, or None for
    the operands' type.  `c` is the text for C++ and CUDA with `{0}`, `{1}`, ... for the operands.
    """

    name: str
    arity: int
    takes: tuple[Elem, ...]
    gives: Elem | None
    meaning: Callable[..., Array]
    c: str
    example: str


def _wrap(f: Callable[..., Array]) -> Callable[..., Array]:
    def quiet(*args: Array) -> Array:
        with np.errstate(all="ignore"):
            return f(*args)

    return quiet


def _greater(a: Array, b: Array) -> Array:
    return np.where((a > b) | (a != a), a, b)


def _smaller(a: Array, b: Array) -> Array:
    return np.where((a < b) | (a != a), a, b)


def _divide(a: Array, b: Array) -> Array:
    if a.dtype.kind == "f":
        return np.divide(a, b)
    if a.dtype.kind == "u":
        return np.where(b == 0, 0, a // np.where(b == 0, 1, b)).astype(a.dtype)
    plain = np.where((b == 0) | (b == -1), 1, b)
    quotient = a // plain
    quotient = quotient + ((a - quotient * plain != 0) & ((a < 0) != (plain < 0)))
    return np.where(b == 0, 0, np.where(b == -1, -a, quotient)).astype(a.dtype)


def _remainder(a: Array, b: Array) -> Array:
    return np.where(b == 0, 0, a - _divide(a, b) * b).astype(a.dtype)


def _shift_left(a: Array, count: Array) -> Array:
    width = a.dtype.itemsize * 8
    some = np.clip(count, 0, width - 1).astype(a.dtype)
    return np.where(count >= width, 0, a << some).astype(a.dtype)


def _shift_right(a: Array, count: Array) -> Array:
    width = a.dtype.itemsize * 8
    some = np.clip(count, 0, width - 1).astype(a.dtype)
    gone = np.where(a < 0, -1, 0) if a.dtype.kind == "i" else 0
    return np.where(count >= width, gone, a >> some).astype(a.dtype)


def _same_if_integer(f: Callable[[Array], Array]) -> Callable[[Array], Array]:
    return _wrap(lambda x: f(x) if x.dtype.kind == "f" else x)


def _sign(x: Array) -> Array:
    return (x > 0).astype(np.int64) - (x < 0).astype(np.int64)


def _popcount(x: Array) -> Array:
    unsigned = x.view(np.uint64) if x.dtype.kind == "i" else x
    return np.asarray(np.bitwise_count(unsigned).astype(np.int64))


def _select(c: Array, a: Array, b: Array) -> Array:
    return np.where(c, a, b)


def _float_bits(x: Array) -> Array:
    return np.asarray(canonical(x)).view(np.uint32)


def _bits_float(x: Array) -> Array:
    return np.asarray(x).view(np.float32)


_NUMBERS = (INT, UINT32, UINT64, FLOAT)
_ANY = (BOOL, *_NUMBERS)

OPS: dict[str, Op] = {
    op.name: op
    for op in (
        Op("+", 2, _NUMBERS, None, _wrap(np.add), "{0} + {1}", "x + 1"),
        Op("-", 2, _NUMBERS, None, _wrap(np.subtract), "{0} - {1}", "x - 1"),
        Op("*", 2, _NUMBERS, None, _wrap(np.multiply), "{0} * {1}", "x * 2"),
        Op("/", 2, _NUMBERS, None, _wrap(_divide), "divide({0}, {1})", "x / 2"),
        Op("%", 2, INTEGERS, None, _wrap(_remainder), "remainder({0}, {1})", "i % 8"),
        Op("&", 2, INTEGERS, None, np.bitwise_and, "{0} & {1}", "i & 7"),
        Op("|", 2, INTEGERS, None, np.bitwise_or, "{0} | {1}", "i | 8"),
        Op("^", 2, INTEGERS, None, np.bitwise_xor, "{0} ^ {1}", "i ^ 1"),
        Op("<<", 2, INTEGERS, None, _wrap(_shift_left), "shift_left({0}, {1})", "1 << i"),
        Op(">>", 2, INTEGERS, None, _wrap(_shift_right), "shift_right({0}, {1})", "i >> 1"),
        Op("neg", 1, _NUMBERS, None, _wrap(np.negative), "-{0}", "-x"),
        Op("~", 1, INTEGERS, None, np.invert, "~{0}", "~i"),
        Op("<", 2, _NUMBERS, BOOL, np.less, "lt({0}, {1})", "x < 0"),
        Op("<=", 2, _NUMBERS, BOOL, np.less_equal, "le({0}, {1})", "x <= 0"),
        Op(">", 2, _NUMBERS, BOOL, np.greater, "gt({0}, {1})", "x > 0"),
        Op(">=", 2, _NUMBERS, BOOL, np.greater_equal, "ge({0}, {1})", "x >= 0"),
        Op("==", 2, _ANY, BOOL, np.equal, "eq({0}, {1})", "i == 0"),
        Op("!=", 2, _ANY, BOOL, np.not_equal, "ne({0}, {1})", "i != 0"),
        Op("&&", 2, (BOOL,), BOOL, np.logical_and, "both({0}, {1})", "x > 0 && x < 1"),
        Op("||", 2, (BOOL,), BOOL, np.logical_or, "either({0}, {1})", "x < 0 || x > 1"),
        Op("!", 1, (BOOL,), BOOL, np.logical_not, "negation({0})", "!isnan(x)"),
        Op("select", 3, _ANY, None, _select, "select({0}, {1}, {2})", "x > 0 ? x : 0"),
        Op("abs", 1, _NUMBERS, None, _wrap(np.abs), "absolute({0})", "abs(x)"),
        Op("min", 2, _NUMBERS, None, _smaller, "smaller({0}, {1})", "min(x, 1)"),
        Op("max", 2, _NUMBERS, None, _greater, "greater({0}, {1})", "max(x, 0)"),
        Op("floor", 1, _NUMBERS, None, _same_if_integer(np.floor), "floor_({0})", "floor(x)"),
        Op("ceil", 1, _NUMBERS, None, _same_if_integer(np.ceil), "ceil_({0})", "ceil(x)"),
        Op("round", 1, _NUMBERS, None, _same_if_integer(np.rint), "round_({0})", "round(x)"),
        Op("sqrt", 1, (FLOAT,), FLOAT, _wrap(np.sqrt), "sqrt_({0})", "sqrt(abs(x))"),
        Op("exp", 1, (FLOAT,), FLOAT, _wrap(elementary.exp), "exp_({0})", "exp(x)"),
        Op("exp2", 1, (FLOAT,), FLOAT, _wrap(elementary.exp2), "exp2_({0})", "exp2(x)"),
        Op("log", 1, (FLOAT,), FLOAT, _wrap(elementary.log), "log_({0})", "log(x)"),
        Op("log2", 1, (FLOAT,), FLOAT, _wrap(elementary.log2), "log2_({0})", "log2(x)"),
        Op("sign", 1, _NUMBERS, INT, _sign, "sign({0})", "sign(x)"),
        Op("isnan", 1, (FLOAT,), BOOL, np.isnan, "isnan_({0})", "isnan(x)"),
        Op("popcount", 1, INTEGERS, INT, _popcount, "popcount({0})", "popcount(i)"),
        Op("float_bits", 1, (FLOAT,), UINT32, _float_bits, "float_bits({0})", "bitcast<uint32>(x)"),
        Op("bits_float", 1, (UINT32,), FLOAT, _bits_float, "bits_float({0})", "bitcast<float>(0x3f800000)"),
    )
}
FUNCTIONS = frozenset(
    [
        "abs",
        "min",
        "max",
        "floor",
        "ceil",
        "round",
        "sqrt",
        "exp",
        "exp2",
        "log",
        "log2",
        "sign",
        "isnan",
        "popcount",
    ]
)  # those that a program calls by name; `clamp(x, lo, hi)` is min(max(x, lo), hi)
COMBINES = {"add": "+", "smaller": "min", "greater": "max"}  # reduce's named functions


def identity(combine: str, elem: Elem) -> float | int:
    """Return the identity of `add`, `smaller` or `greater` on an arithmetic type."""
    if combine == "add":
        return 0
    if elem is FLOAT:
        return np.inf if combine == "smaller" else -np.inf
    low, high = {INT: (-(2**63), 2**63 - 1), UINT32: (0, 2**32 - 1), UINT64: (0, 2**64 - 1)}[elem]
    return high if combine == "smaller" else low
