"""Intervals of expressions: where 32 bits prove to be enough, lanes are 32 bits wide."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from compll import ir
from compll.ops import OPS
from compll.types import BOOL, FLOAT, INT, Array, Elem, arithmetic, convert, dtype, limits

MANY = 1 << 62
LONGEST = 1 << 24  # entries of a table
NAN_BITS = 0x7FC00000
MONOTONE = frozenset(["+", "-", "*", "/", "min", "max", "neg", "floor", "ceil", "round", "sqrt"])  # of floats


@dataclass(frozen=True, slots=True)
class Interval:
    """The least and the greatest value; of floats, -0 is below 0, and `nan` says whether one may be NaN."""

    low: float
    high: float
    nan: bool = False

    def has_zero(self) -> bool:
        """Whether 0 or -0 may be among the values."""
        return self.low <= 0 <= self.high

    def has_infinity(self) -> bool:
        """Whether an infinity may be among the values."""
        return math.isinf(self.low) or math.isinf(self.high)

    def is_positive(self) -> bool:
        """Whether no value is less than 0, and none is -0."""
        return _key(self.low) >= 0


REALS = Interval(-math.inf, math.inf, nan=True)
NOTHING_BUT_NAN = Interval(math.inf, -math.inf, nan=True)  # an empty interval besides


def full(elem: Elem) -> Interval:
    """Return all values of an element type."""
    return REALS if arithmetic(elem) == FLOAT else Interval(*limits(elem))


class Ranges:
    """Intervals of expressions, given the element types of the vectors that they read."""

    def __init__(self, vectors: Mapping[str, Elem], entries: Mapping[str, int] = {}) -> None:
        """Begin with nothing known but the vectors' types, and how many entries tables have."""
        self.vectors, self.entries = vectors, entries
        self.done: dict[ir.Expr, Interval] = {}

    def narrow(self, e: ir.Expr) -> bool:
        """Whether every value of an `int` expression fits 32 signed bits."""
        return self.fits(e, -(2**31), 2**31 - 1)

    def fits(self, e: ir.Expr, low: int, high: int) -> bool:
        """Whether every value of an integer expression lies from `low` to `high`."""
        have = self.of(e)
        return low <= have.low and have.high <= high

    def of(self, e: ir.Expr) -> Interval:
        """Return an interval that holds every value of `e`; what may wrap around may be anything."""
        if e not in self.done:
            found, whole = self._of(e), full(e.type)
            inside = e.type == FLOAT or (whole.low <= found.low and found.high <= whole.high)
            self.done[e] = found if inside else whole
        return self.done[e]

    def _of(self, e: ir.Expr) -> Interval:
        match e:
            case ir.Const(value, kind) if kind != FLOAT:
                return Interval(int(value), int(value))
            case ir.Const(value, _):
                return NOTHING_BUT_NAN if value != value else Interval(float(value), float(value))
            case ir.Size() | ir.Position():
                return Interval(0, MANY)
            case ir.Read(vector, _, kind) if kind != FLOAT:
                have = full(self.vectors[vector])
                return Interval(min(have.low, 0), have.high)  # 0 is what a read out of range gives
            case ir.Convert(arg, to, kind) if arg.type != BOOL:
                return _converted(self.of(arg), arg.type, to, kind)
            case ir.Convert():
                return Interval(0, 1)
            case ir.Search(table, _):
                return Interval(0, self.entries.get(table, LONGEST))
            case ir.StochasticRound(_, arg, _):
                x = self.of(arg)
                return Interval(_floor(x.low), _floor(x.high) + 1.0, x.nan)
            case ir.Apply("select", args, _):
                return _union(self.of(a) for a in args[1:])
            case ir.Apply(op, args, kind) if args[0].type == FLOAT:
                return _of_floats(op, [self.of(a) for a in args], kind)
            case ir.Apply(op, args, kind) if args[0].type != BOOL:
                return _of_integers(op, [self.of(a) for a in args], kind)
        return full(e.type)


# --- floats -------------------------------------------------------------------------------------------


def _ordered(x: float) -> int:
    """Return an integer that is ordered as floats are, -0 before 0."""
    bits = int(np.float32(x).view(np.int32))
    return bits if bits >= 0 else -(bits & 0x7FFFFFFF) - 1


def _hull(values: Array, *, nan: bool) -> Interval:
    """Return the interval of some floats."""
    if np.isnan(values).any():
        return REALS
    ends = sorted((float(v) for v in values.reshape(-1)), key=_ordered)
    return Interval(ends[0], ends[-1], nan)


def _floor(x: float) -> float:
    return float(np.floor(np.float32(x)))


def _of_floats(op: str, args: list[Interval], kind: Elem) -> Interval:
    """Return the interval of an operator on floats: rounding is monotone, so the ends give the ends."""
    nan = any(a.nan for a in args)
    match op, args:
        case "float_bits", [x]:
            if _ordered(x.low) < 0:
                return full(kind)
            ends = [int(np.float32(v).view(np.uint32)) for v in (x.low, x.high)]
            return Interval(ends[0], max(ends[1], NAN_BITS if nan else 0))
        case "abs", [x]:
            most = max(abs(x.low), abs(x.high))
            return Interval(0.0 if x.low <= 0 <= x.high else min(abs(x.low), abs(x.high)), most, nan)
        case "sqrt", [x] if x.low < 0:
            return REALS
        case "*", [x, y] if (x.has_infinity() and y.has_zero()) or (x.has_zero() and y.has_infinity()):
            return REALS  # 0 * inf is NaN
        case "/", [x, y] if (x.has_infinity() and y.has_infinity()) or y.has_zero():
            return REALS
        case _ if op in MONOTONE:
            corners = np.array(list(itertools.product(*((a.low, a.high) for a in args))), np.float32)
            return _hull(OPS[op].meaning(*corners.T), nan=nan)
        case "sign", _:
            return Interval(-1, 1)
        case (("exp" | "exp2"), _):
            return Interval(0.0, math.inf, nan)
    return full(kind)


# --- integers -----------------------------------------------------------------------------------------


def _of_integers(op: str, args: list[Interval], kind: Elem) -> Interval:
    """Return the interval of an operator on integers, as if they had any number of bits."""
    ends = [(int(a.low), int(a.high)) for a in args]
    match op, ends:
        case "bits_float", [(_, b)]:
            if b > 0x7F800000:
                return REALS
            return _hull(np.array(ends[0], np.uint32).view(np.float32), nan=False)
        case "+", [(a, b), (c, d)]:
            return Interval(a + c, b + d)
        case "-", [(a, b), (c, d)]:
            return Interval(a - d, b - c)
        case "*", [(a, b), (c, d)]:
            corners = (a * c, a * d, b * c, b * d)
            return Interval(min(corners), max(corners))
        case "neg", [(a, b)]:
            return Interval(-b, -a)
        case "~", [(a, b)] if kind == INT:
            return Interval(~b, ~a)
        case "abs", [(a, b)]:
            return Interval(0 if a <= 0 <= b else min(abs(a), abs(b)), max(abs(a), abs(b)))
        case "/", [(a, b), (c, d)]:
            if a >= 0 and c > 0:
                return Interval(a // d, b // c)
            most = max(abs(a), abs(b))
            return Interval(-most, most)
        case "%", [(a, b), (c, d)]:
            most = max(abs(c), abs(d), 1) - 1
            return Interval(-most if a < 0 else 0, most if b > 0 else 0)
        case "&", [(a, b), (c, d)] if a >= 0 or c >= 0:
            return Interval(0, min(x for low, x in ((a, b), (c, d)) if low >= 0))
        case (("|" | "^"), [(a, b), (c, d)]) if a >= 0 and c >= 0:
            return Interval(0, (1 << max(b, d).bit_length()) - 1)
        case (("<<" | ">>"), [(a, b), (c, d)]) if d < kind.bits:
            counts = max(c, 0), max(d, 0)
            shifted = [x << n if op == "<<" else x >> n for x in (a, b) for n in counts]
            return Interval(min(shifted), max(shifted))
        case "min", [(a, b), (c, d)]:
            return Interval(min(a, c), min(b, d))
        case "max", [(a, b), (c, d)]:
            return Interval(max(a, c), max(b, d))
        case (("floor" | "ceil" | "round"), [(a, b)]):
            return Interval(a, b)
        case "sign", _:
            return Interval(-1, 1)
        case "popcount", _:
            return Interval(0, 64)
    return full(kind)


# --- of all types ---------------------------------------------------------------------------------------


def _union(intervals: Iterable[Interval]) -> Interval:
    found = list(intervals)
    low, high = min((x.low for x in found), key=_key), max((x.high for x in found), key=_key)
    return Interval(low, high, any(x.nan for x in found))


def _key(x: float) -> int:
    return _ordered(x) if isinstance(x, float) else x


def _converted(x: Interval, have: Elem, to: Elem, kind: Elem) -> Interval:
    """Return the interval of a conversion, which is monotone; NaN becomes the integer 0."""
    if kind == BOOL:
        return Interval(0, 1)
    if have == FLOAT and kind != FLOAT:
        low, high = (convert(np.asarray(v, np.float32), to).item() for v in (x.low, x.high))
        return Interval(min(low, 0) if x.nan else low, max(high, 0) if x.nan else high)
    if kind == FLOAT:
        ends = [convert(np.asarray(v, dtype(have)), to).item() for v in (x.low, x.high)]
        return Interval(ends[0], ends[1], x.nan)
    low, high = limits(to)
    return Interval(min(max(x.low, low), high), max(min(x.high, high), low))


def scalar_type(elem: Elem) -> str:
    """Return the C type in which values of `elem` are computed with."""
    names = {"float": "float", "int": "int64_t", "uint32": "uint32_t", "uint64": "uint64_t", "bool": "bool"}
    return names[arithmetic(elem).name]
