"""Whether a function that reduces means the same in any order: tried on random values, for a warning."""

from __future__ import annotations

import numpy as np

from compll import ir
from compll.evaluate import Environment, evaluate
from compll.types import FLOAT, Array, Elem, arithmetic, convert, dtype

TRIES = 200


def odd_example(body: ir.Expr, elem: Elem) -> str:
    """Return values for which f(a, b), `body` over values of `elem`, is not commutative or not associative.

    Empty if none were found.  Floats are compared with a tolerance: rounding is no fault of f.
    """
    kind = arithmetic(elem)
    nodes = tuple(ir.walk(body))
    rng = np.random.default_rng(1)
    scalars = {x.name: _some(rng, 1, x.type)[0] for x in nodes if isinstance(x, ir.Scalar)}
    params = {x.name: _some(rng, 1, x.type)[0].item() for x in nodes if isinstance(x, ir.Param)}
    a, b, c = (convert(_some(rng, TRIES, kind), elem) for _ in range(3))

    def f(x: Array, y: Array) -> Array:
        env = Environment(1000, params, scalars=scalars | {"a": x, "b": y})
        return np.asarray(evaluate(body, env, np.zeros(TRIES, np.int64)), dtype(kind))

    for swapped, left, right, text in (
        (True, f(a, b), f(b, a), "f({0}, {1}) is {3} and f({1}, {0}) is {4}"),
        (False, f(f(a, b), c), f(a, f(b, c)), "f(f({0}, {1}), {2}) is {3} and f({0}, f({1}, {2})) is {4}"),
    ):
        differ = np.flatnonzero(~_same(left, right))
        if differ.size:
            at = differ[0]
            what = "commutative" if swapped else "associative"
            values = (f"{x[at]:g}" for x in (a, b, c, left, right))
            return f"not {what}: {text.format(*values)}"
    return ""


def _some(rng: np.random.Generator, count: int, kind: Elem) -> Array:
    low = -20 if kind == FLOAT or kind.kind == "int" else 0
    whole = rng.integers(low, 20, count)
    return np.asarray(whole / 4 if kind == FLOAT else whole, dtype(kind))


def _same(x: Array, y: Array) -> Array:
    return np.isclose(x, y, rtol=1e-3, atol=1e-3, equal_nan=True) if x.dtype.kind == "f" else x == y
