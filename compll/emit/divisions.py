"""Divisions by powers of two become multiplications, which are several times as fast and give the same bits.

x / 2^k and x * 2^-k round the same number, where both powers are floats; and zeros, infinities and NaN come
out the same if the inverse of 0 is an infinity and the other way round.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from compll import ir
from compll.emit.expressions import MANTISSA
from compll.emit.ranges import Ranges
from compll.types import FLOAT, UINT32

BOTH_NORMAL = range(1, 254)  # exponents, as stored, whose negative is that of a normal number too
SUM = 254  # of the stored exponents of 2^k and 2^-k
LEAST = -127  # of the exponents whose negative is one of a float


def multiply_instead(f: ir.Function, ranges: Ranges) -> ir.Function:
    """Rewrite the divisions of a fused function whose divisor is a power of two, whatever the data are.

    The inverse is a division again where it is worked out once for many elements: of a block, or of the loop.
    """

    def changed(e: ir.Expr) -> ir.Expr | None:
        match e:
            case ir.Apply("/", (x, y), kind) if kind == FLOAT and not isinstance(x, ir.Const):
                inverse = _inverse(y, ranges)
                return None if inverse is None else ir.apply("*", x, inverse)
        return None

    return replace(f, body=tuple(ir.rewrite_binding(b, changed) for b in f.body))


def _inverse(y: ir.Expr, ranges: Ranges) -> ir.Expr | None:
    match y:
        case ir.Apply("bits_float", (ir.Apply("<<", (ir.Convert(k, to, _), ir.Const(count, _)), _),), _) if (
            to == UINT32 and count == MANTISSA and ranges.fits(k, BOTH_NORMAL.start, BOTH_NORMAL.stop - 1)
        ):
            exponent = ir.as_elem(ir.apply("-", ir.const(SUM, k.type), k), to)
            return ir.apply("bits_float", ir.apply("<<", exponent, ir.const(count, UINT32)))
    return ir.apply("/", ir.const(1.0, FLOAT), y) if _same_for_many(y) and _is_power(y) else None


def _same_for_many(e: ir.Expr) -> bool:
    """Whether an expression depends on the block of an element at most."""
    for x in _parts(e, lambda x: () if isinstance(x, ir.Read) else ir.children(x)):
        if isinstance(x, ir.Position | ir.Random | ir.StochasticRound | ir.Search):
            return False
        if isinstance(x, ir.Read) and ir.block_of(x.position) <= 1:
            return False
    return True


def _is_power(e: ir.Expr) -> bool:
    """Whether an expression is 0, a power of two whose inverse is a float, an infinity or NaN."""
    return all(_chosen(x) or _is_power_itself(x) for x in _parts(e, _chosen))


def _chosen(e: ir.Expr) -> tuple[ir.Expr, ...]:
    """Return the expressions of which this one is one, but for the sign."""
    match e:
        case ir.Apply("select", (_, a, b), kind) if kind == FLOAT:
            return a, b
        case ir.Apply(("min" | "max" | "neg" | "abs"), args, kind) if kind == FLOAT:
            return args
    return ()


def _is_power_itself(e: ir.Expr) -> bool:
    match e:
        case ir.Const(value, kind) if kind == FLOAT:
            mantissa, exponent = math.frexp(value)
            return not math.isfinite(value) or (abs(mantissa) in (0, 0.5) and exponent > LEAST)
        case ir.Apply("bits_float", (ir.Apply("<<", (_, ir.Const(count, _)), _),), _):
            return int(count) >= MANTISSA
    return False


def _parts(e: ir.Expr, below: Callable[[ir.Expr], Iterable[ir.Expr]]) -> Iterator[ir.Expr]:
    """Yield an expression and what is below it, each once: large formulas share their parts."""
    seen: set[ir.Expr] = set()
    waiting = [e]
    while waiting:
        x = waiting.pop()
        if x not in seen:
            seen.add(x)
            yield x
            waiting += below(x)
