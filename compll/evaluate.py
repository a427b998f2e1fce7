"""Evaluation of expressions with NumPy: the meaning of the IR, element for element."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from compll import ir, rng
from compll.ops import OPS
from compll.types import FLOAT, INT, Array, Elem, convert, dtype


@dataclass
class Environment:
    """What the names in an expression stand for.  Vectors hold widened values."""

    n: int
    params: Mapping[str, float | int | bool]
    vectors: dict[str, Array] = field(default_factory=dict)
    scalars: dict[str, Array] = field(default_factory=dict)
    seed: int = 0
    out_of_range: bool = False
    finite: bool = True


def evaluate(
    e: ir.Expr, env: Environment, position: Array | None = None, active: Array | None = None
) -> Array:
    """Return the values of `e` at the positions (int64 array), or at position 0 as a 0-d array.

    `active` tells which of them the program has; it has all of them by default.
    Sets `env.out_of_range` when an element that the program really reads lies outside its vector: the
    operands of `select`, `&&` and `||` read only where their condition asks for them.
    """
    at = np.asarray(0, np.int64) if position is None else position
    asked = np.ones(at.shape, np.bool_) if active is None else active
    return np.broadcast_to(_Evaluator(env, at).value(e, asked), at.shape)


def host_int(e: ir.Expr, n: int, params: Mapping[str, float | int | bool]) -> int:
    """Return an integer that depends on n and parameters only, such as a field's length."""
    return int(evaluate(e, Environment(n, params)))


class _Evaluator:
    def __init__(self, env: Environment, position: Array) -> None:
        self.env, self.position = env, position
        self.done: dict[ir.Expr, Array] = {}

    def value(self, e: ir.Expr, active: Array) -> Array:
        """Return the value of `e`; `active` tells at which positions the program asks for it."""
        if e in self.done and not _reads(e):
            return self.done[e]
        result = self.done[e] = self.compute(e, active)
        return result

    def compute(self, e: ir.Expr, active: Array) -> Array:
        env = self.env
        match e:
            case ir.Const(value, kind):
                return np.asarray(value, dtype(kind))
            case ir.Size():
                return np.asarray(env.n, np.int64)
            case ir.Position():
                return self.position
            case ir.Scalar(name, kind):
                return np.asarray(env.scalars[name], dtype(kind))
            case ir.Param(name, kind):
                return np.asarray(env.params[name], dtype(kind))
            case ir.Read(vector, place, kind):
                return self.read(env.vectors[vector], self.value(place, active), kind, active)
            case ir.Convert(arg, to, _):
                return convert(self.value(arg, active), to)
            case ir.Random(site, low, high, kind, keyed):
                seed = int(env.params[ir.SHARED_SEED]) if keyed else env.seed
                return self.random(site, self.value(low, active), self.value(high, active), kind, seed)
            case ir.Search(table, arg, _):
                below = np.searchsorted(env.vectors[table], self.value(arg, active), side="left")
                return np.where(np.isnan(self.value(arg, active)), 0, below).astype(np.int64)
            case ir.StochasticRound(site, arg, _):
                x = self.value(arg, active)
                with np.errstate(all="ignore"):
                    whole = np.floor(x)
                    half = rng.halves(self.position, site, env.seed).astype(np.float32)
                    u = (half + np.float32(0.5)) * np.float32(2**-16)
                    return np.asarray(whole + (x - whole > u).astype(np.float32))
            case ir.Apply(op, args, _):
                return self.apply(op, args, active)
        raise AssertionError(e)

    def apply(self, op: str, args: tuple[ir.Expr, ...], active: Array) -> Array:
        meaning = OPS[op].meaning
        if op in ("select", "&&", "||"):
            first = self.value(args[0], active)
            asks = {"select": (first, ~first), "&&": (first,), "||": (~first,)}[op]
            rest = [self.value(a, active & ask) for a, ask in zip(args[1:], asks, strict=True)]
            return meaning(first, *rest)
        return meaning(*(self.value(a, active) for a in args))

    def read(self, vector: Array, place: Array, kind: Elem, active: Array) -> Array:
        inside = (place >= 0) & (place < len(vector))
        if np.any(active & ~inside):
            self.env.out_of_range = True
        if len(vector) == 0:
            return np.zeros(np.shape(place), dtype(kind))
        return np.where(inside, vector[np.where(inside, place, 0)], dtype(kind).type(0))

    def random(self, site: int, low: Array, high: Array, kind: Elem, seed: int) -> Array:
        word = rng.words(self.position, site, seed)
        with np.errstate(all="ignore"):
            if kind == FLOAT:
                u = (word >> np.uint32(8)).astype(np.float32) * np.float32(2**-24)
                return np.asarray(low + (high - low) * u)
            w, span = word.astype(np.int64), np.asarray(high - low, np.int64)
            upper, lower = span >> np.int64(32), span & np.int64(0xFFFFFFFF)
            carry = (w.astype(np.uint64) * lower.astype(np.uint64)) >> np.uint64(32)
            return np.asarray(low + (w * upper + carry.astype(np.int64)), dtype(INT))


def _reads(e: ir.Expr) -> bool:
    """Whether an expression reads at computed positions, where being asked for matters."""
    return any(isinstance(x, ir.Read) and x.position != ir.Position() for x in ir.walk(e))
