"""exp, exp2, log and log2 for Numba: `compll/elementary.py`, operation by operation, as LLVM instructions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from compll import elementary as e
from compll.backends.numba_lanes import Builder, Lanes, Value, call, lanes_function, same, suffix


class Emitted:
    """A value of a kernel, with the operators of NumPy's arrays that the formulas need."""

    def __init__(self, b: Builder, kind: Lanes, value: Value) -> None:
        """Hold an LLVM value of a type of lanes."""
        self.b, self.kind, self.value = b, kind, value

    def like(self, x: Any) -> Value:
        """Return the LLVM value of an operand: a value, or a constant of this one's type."""
        if isinstance(x, Emitted):
            return x.value
        return self.kind.constant(float(x) if self.kind.kind == "f32" else int(x))

    def then(self, name: str, *args: Any) -> Emitted:
        """Emit one instruction on this value and others."""
        name = f"f{name}" if self.kind.kind == "f32" else name
        return Emitted(self.b, self.kind, getattr(self.b, name)(self.value, *map(self.like, args)))

    def __add__(self, x: Any) -> Emitted:
        """Emit a sum."""
        return self.then("add", x)

    __radd__ = __add__  # addition is commutative, but for the NaN that it returns

    def __sub__(self, x: Any) -> Emitted:
        """Emit a difference."""
        return self.then("sub", x)

    def __mul__(self, x: Any) -> Emitted:
        """Emit a product."""
        return self.then("mul", x)

    def shifted(self, left: bool, by: int) -> Emitted:
        """Emit a shift: left, or right with copies of the sign."""
        return self.then("shl" if left else "ashr", by)

    def where(self, op: str, limit: Any, yes: Any, no: Any) -> Emitted:
        """Emit `self op limit ? yes : no`; `op` "uno" asks whether this is NaN."""
        compare = self.b.fcmp_unordered if op == "uno" else self.b.fcmp_ordered
        some: Emitted = yes if isinstance(yes, Emitted) else no
        condition = compare(op, self.value, self.value if op == "uno" else self.like(limit))
        return Emitted(self.b, some.kind, self.b.select(condition, some.like(yes), some.like(no)))

    def view(self, kind: str) -> Emitted:
        """Emit the same bits as another type."""
        other = self.kind.of(kind)
        if {kind, self.kind.kind} <= {"i32", "u32"}:
            return Emitted(self.b, other, self.value)
        return Emitted(self.b, other, self.b.bitcast(self.value, other.llvm))

    def converted(self, kind: str) -> Emitted:
        """Emit a conversion between float and int32."""
        other = self.kind.of(kind)
        convert = self.b.fptosi if kind == "i32" else self.b.sitofp
        return Emitted(self.b, other, convert(self.value, other.llvm))

    def rounded(self) -> Emitted:
        """Emit the nearest integer."""
        name = f"llvm.rint.{suffix(self.kind)}"
        return Emitted(self.b, self.kind, call(self.b, name, self.kind.llvm, self.value))


def _polynomial(x: Emitted, coefficients: Sequence[Any]) -> Emitted:
    value: Emitted = x * coefficients[-1] + coefficients[-2]
    for c in coefficients[-3::-1]:
        value = value * x + c
    return value


def _top(x: Emitted) -> Emitted:
    return x.view("u32").then("and_", e.TOP).view("f32")


def _two_to(n: Emitted) -> Emitted:
    return (n + 127).shifted(True, 23).view("f32")


def _power(x: Emitted, r: Emitted, rest: Emitted, n: Emitted) -> Emitted:
    p = (r + ((r * r) * _polynomial(r, e.EXP) + rest)) + 1
    whole = x.where("uno", x, 0, n).converted("i32")
    half = whole.shifted(False, 1)
    return x.where("uno", x, x, (p * _two_to(half)) * _two_to(whole - half))


def _clip(x: Emitted, low: float, high: float) -> Emitted:
    return x.where(">", high, high, x.where("<", low, low, x))


def _exp(x: Emitted) -> Emitted:
    y = _clip(x, -104, 89)
    n = (y * e.LOG2E).rounded()
    high, low = y - n * e.LN2_HIGH, n * e.LN2_LOW
    r = high - low
    return _power(x, r, (high - r) - low, n)


def _exp2(x: Emitted) -> Emitted:
    y = _clip(x, -151, 128)
    n = y.rounded()
    f = y - n
    top = _top(f)
    a, b = top * e.LN2_TOP, top * e.LN2_REST + (f - top) * e.LN2
    r = a + b
    return _power(x, r, (a - r) + b, n)


def _split(x: Emitted) -> tuple[Emitted, Emitted]:
    tiny = 2.0**-126
    bits = x.where("<", tiny, x * 2.0**23, x).view("u32")
    n = (bits - e.SQRT_HALF).view("i32").shifted(False, 23)
    m = (bits - n.view("u32").shifted(True, 23)).view("f32")
    less = x.where("<", tiny, n - 23, n)
    return m - 1, less.converted("f32")


def _at_the_edges(x: Emitted, value: Emitted) -> Emitted:
    known = x.where("uno", x, x, x.where("<", 0, float("nan"), value))
    return x.where("==", 0, float("-inf"), x.where("==", float("inf"), x, known))


def _log(x: Emitted) -> Emitted:
    f, n = _split(x)
    square = f * f
    t = ((f * square) * _polynomial(f, e.LOG) + n * e.LN2_LOW) - square * 0.5
    return _at_the_edges(x, (f + t) + n * e.LN2_HIGH)


def _log2(x: Emitted) -> Emitted:
    f, n = _split(x)
    square = f * f
    half = square * 0.5
    high = _top(f - half)
    low = ((f - high) - half) + (f * square) * _polynomial(f, e.LOG)
    parts = (low + high) * e.LOG2E_REST + low * e.LOG2E_TOP
    return _at_the_edges(x, (parts + high * e.LOG2E_TOP) + n)


def _function(name: str, formula: Callable[[Emitted], Emitted]) -> Any:
    return lanes_function(name, 1, same, lambda b, kind, v: formula(Emitted(b, kind, v[0])).value)


exp_, exp2_, log_, log2_ = (_function(f"{f.__name__[1:]}_", f) for f in (_exp, _exp2, _log, _log2))
