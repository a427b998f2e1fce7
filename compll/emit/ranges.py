"""Intervals of integer expressions: where 32 bits prove to be enough, lanes are 32 bits wide."""

from __future__ import annotations

from collections.abc import Mapping

from compll import ir
from compll.types import BOOL, INT, Elem, arithmetic, limits

Interval = tuple[int, int]
FULL: Interval = limits(INT)
MANY = 1 << 62
LONGEST = 1 << 24  # entries of a table


class Ranges:
    """Intervals of `int` expressions, given the element types of the vectors that they read."""

    def __init__(self, vectors: Mapping[str, Elem]) -> None:
        """Begin with nothing known but the vectors' types."""
        self.vectors = vectors
        self.done: dict[ir.Expr, Interval] = {}

    def narrow(self, e: ir.Expr) -> bool:
        """Whether every value of an `int` expression fits 32 signed bits."""
        low, high = self.of(e)
        return low >= -(2**31) and high < 2**31

    def of(self, e: ir.Expr) -> Interval:
        """Return an interval that holds every value of `e`."""
        if e not in self.done:
            low, high = self._of(e)
            self.done[e] = (low, high) if FULL[0] <= low and high <= FULL[1] else FULL
        return self.done[e]

    def _of(self, e: ir.Expr) -> Interval:
        match e:
            case ir.Const(value, kind) if kind in (INT, BOOL):
                return int(value), int(value)
            case ir.Size() | ir.Position():
                return 0, MANY
            case ir.Read(vector, _, kind) if kind == INT:
                low, high = limits(self.vectors[vector])
                return min(low, 0), high
            case ir.Convert(arg, to, kind) if kind == INT:
                low, high = limits(to)
                if arg.type == BOOL:
                    return 0, 1
                if arg.type == INT:
                    a, b = self.of(arg)
                    return min(max(a, low), high), max(min(b, high), low)
                return low, high
            case ir.Search():
                return 0, LONGEST
            case ir.Apply(op, args, kind) if kind == INT:
                return self._apply(op, [self.of(a) if a.type == INT else FULL for a in args])
        return (0, 1) if e.type == BOOL else FULL

    def _apply(self, op: str, args: list[Interval]) -> Interval:
        match op, args:
            case "+", [(a, b), (c, d)]:
                return a + c, b + d
            case "-", [(a, b), (c, d)]:
                return a - d, b - c
            case "*", [(a, b), (c, d)]:
                corners = (a * c, a * d, b * c, b * d)
                return min(corners), max(corners)
            case "neg", [(a, b)]:
                return -b, -a
            case "abs", [(a, b)]:
                return (0 if a <= 0 <= b else min(abs(a), abs(b))), max(abs(a), abs(b))
            case "/", [(a, b), _]:
                most = max(abs(a), abs(b))
                return -most, most
            case "%", [(a, b), (c, d)]:
                most = max(abs(c), abs(d), 1) - 1
                return (-most if a < 0 else 0), (most if b > 0 else 0)
            case "&", [(a, b), (c, d)] if a >= 0 or c >= 0:
                return 0, min(x for low, x in ((a, b), (c, d)) if low >= 0)
            case "min", [(a, b), (c, d)]:
                return min(a, c), min(b, d)
            case "max", [(a, b), (c, d)]:
                return max(a, c), max(b, d)
            case "select", [_, (a, b), (c, d)]:
                return min(a, c), max(b, d)
            case (("floor" | "ceil" | "round"), [same]):
                return same
            case "sign", _:
                return -1, 1
            case "popcount", _:
                return 0, 64
        return FULL


def scalar_type(elem: Elem) -> str:
    """Return the C type in which values of `elem` are computed with."""
    names = {"float": "float", "int": "int64_t", "uint32": "uint32_t", "uint64": "uint64_t", "bool": "bool"}
    return names[arithmetic(elem).name]
