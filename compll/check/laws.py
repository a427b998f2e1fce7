"""Whether the function of a reduction is commutative and associative, by trial on random values.

The method: f(a, b) is compared with f(b, a), and f(f(a, b), c) with f(a, f(b, c)), on some hundred triples.
Integers are compared exactly, on small values and on the whole range of f's argument type.  Floats are drawn
from the integers -8 .. 8, on which sums and products are exact, and from a normal distribution; the results
may differ by rounding, relative to the largest of the numbers that meet.  NaN and infinity are not tried.
What f captures (scalars, vectors, run-time parameters) is drawn too, several times over; a law counts as
broken if it is broken for each draw, so that f is not blamed for captured values that may never come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from compll import ir
from compll.evaluate import Environment, evaluate
from compll.types import Array, Elem, arithmetic, convert, dtype, limits

TRIPLES, DRAWS = 200, 3
LENGTH = 1000  # of the gradient, and of captured vectors
ROUNDING, ROUNDING_16 = 1e-4, 2.0**-5  # of float32, and where 16-bit floats are in between
LAWS = ("commutative", "associative")


def broken(combine: ir.Combine, own: Elem, tables: Mapping[str, ir.Table]) -> str:
    """Return the law that a function of `a` and `b` breaks, with an example if it captures nothing; else "".

    Args:
        combine: the function; its body has `a` and `b` as scalars.
        own: the type of its arguments.
        tables: the tables of constants that it may read.

    """
    nodes = list(ir.walk(combine.body))
    captures = any(isinstance(x, ir.Param | ir.Read) for x in nodes) or any(
        isinstance(x, ir.Scalar) and x.name not in ("a", "b") for x in nodes
    )
    draws = [_Trial(combine, own, tables, nodes, seed) for seed in range(DRAWS if captures else 1)]
    for law in LAWS:
        examples = [draw.example(law) for draw in draws]
        if all(examples):
            return law if captures else f"{law}: {examples[0]}"
    return ""


class _Trial:
    """One function with one draw of what it captures, and values to apply it to."""

    def __init__(
        self,
        combine: ir.Combine,
        own: Elem,
        tables: Mapping[str, ir.Table],
        nodes: Sequence[ir.Expr],
        seed: int,
    ) -> None:
        self.combine = combine
        rng = np.random.default_rng(seed)
        self.a, self.b, self.c = (_draw(rng, own, TRIPLES) for _ in range(3))
        narrow = any(
            isinstance(x, ir.Convert) and x.to.kind in ("float", "bfloat") and x.to.bits == 16 for x in nodes
        )
        self.rounding = ROUNDING_16 if narrow else ROUNDING
        self.env = Environment(
            LENGTH, {x.name: _draw(rng, x.type, 1)[0] for x in nodes if isinstance(x, ir.Param)}
        )
        self.env.scalars = {x.name: _draw(rng, x.type, 1)[0] for x in nodes if isinstance(x, ir.Scalar)}
        self.env.vectors = {x.vector: _draw(rng, x.type, LENGTH) for x in nodes if isinstance(x, ir.Read)}
        for name, table in tables.items():
            entries = [v.value for v in table.values if isinstance(v, ir.Const)]
            self.env.vectors[name] = np.asarray(entries, dtype(arithmetic(table.elem)))

    def f(self, a: Array, b: Array) -> Array:
        self.env.scalars |= {"a": a, "b": b}
        return evaluate(self.combine.body, self.env, np.arange(TRIPLES))

    def example(self, law: str) -> str:
        """Return values on which a law is broken, as a person writes it; "" if there are none."""
        a, b, c = self.a, self.b, self.c
        left, right = self.f(a, b), self.f(b, a)
        form = "f({a}, {b}) is {left}, and f({b}, {a}) is {right}"
        if law == "associative":
            left, right = self.f(left, c), self.f(a, self.f(b, c))
            form = "f(f({a}, {b}), {c}) is {left}, and f({a}, f({b}, {c})) is {right}"
        wrong = self.differ(left, right)
        if not wrong.any():
            return ""
        at = int(np.argmax(wrong))
        shown = {"a": a[at], "b": b[at], "c": c[at], "left": left[at], "right": right[at]}
        return form.format(**{k: f"{v:.6g}" if v.dtype.kind == "f" else str(v) for k, v in shown.items()})

    def differ(self, left: Array, right: Array) -> Array:
        """Return where two results are not the same number."""
        if left.dtype.kind != "f":
            return np.asarray(left != right)
        meeting = np.array([self.a, self.b, self.c, left, right], np.float64)
        size = np.abs(meeting).max(axis=0)
        with np.errstate(invalid="ignore"):
            far = np.abs(meeting[3] - meeting[4]) > self.rounding * size
        return np.asarray(np.isfinite(size) & far)


def _draw(rng: np.random.Generator, elem: Elem, count: int) -> Array:
    """Return random values of an element type, widened: first small integers, then others among them."""
    small = rng.integers(-8, 9, count)
    kept = (np.arange(count) < count // 2) | (rng.random(count) < 0.5)
    if elem.kind in ("float", "bfloat"):
        return convert(np.where(kept, small, rng.standard_normal(count)).astype(np.float32), elem)
    low, high = limits(elem)
    wide = rng.integers(low, high, count, dtype=dtype(elem), endpoint=True)
    near = np.clip(small, max(low, -8), min(high, 8)).astype(dtype(elem))
    return convert(np.where(kept, near, wide), elem)
