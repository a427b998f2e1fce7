"""Expressions of the IR: pure scalars, equal by value; how they are made, walked and rebuilt."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

from compll.ops import OPS
from compll.types import BOOL, INT, Elem, arithmetic, convert, dtype

SCALE, SHARED_SEED = "@scale", "@shared_seed"  # arguments of a call; no program can spell these names


class Expr:
    """A scalar expression; `type` is its arithmetic type or bool.  Nodes are equal by value."""

    type: Elem

    @cached_property
    def key(self) -> bytes:
        """Digest of the whole expression, made once a node: programs share subexpressions."""
        h = hashlib.blake2b(type(self).__name__.encode(), digest_size=16)
        for f in fields(self):  # type: ignore[arg-type]
            h.update(_digest(getattr(self, f.name)))
        return h.digest()

    @cached_property
    def size(self) -> int:
        """How many operations this is when written out; shared ones count each time."""
        return 1 + sum(c.size for c in children(self))

    @cached_property
    def depth(self) -> int:
        """How deep operations nest."""
        return 1 + max((c.depth for c in children(self)), default=0)

    def __hash__(self) -> int:
        """Return the cached hash."""
        return hash(self.key)

    def __eq__(self, other: object) -> bool:
        """Compare digests: programs share subexpressions, so walking both would take exponential time."""
        return self is other or (isinstance(other, Expr) and self.key == other.key)


@dataclass(frozen=True, eq=False)
class Const(Expr):
    """A constant; `value` is a Python number that its type represents exactly."""

    value: float | int | bool
    type: Elem

    @cached_property
    def key(self) -> bytes:
        """Digest the value's bytes: zeros of different sign are told apart, and NaN equals itself."""
        bits = np.asarray(self.value, dtype(self.type)).tobytes()
        return hashlib.blake2b(b"Const" + _digest(self.type) + bits, digest_size=16).digest()


@dataclass(frozen=True, eq=False)
class Size(Expr):
    """The number n of elements of the gradient."""

    type: Elem = INT


@dataclass(frozen=True, eq=False)
class Position(Expr):
    """The position i of the element that a map, reduce or store works on."""

    type: Elem = INT


@dataclass(frozen=True, eq=False)
class Scalar(Expr):
    """A named scalar: a `Let`, a `Reduce`, a field that was read, or an argument of a combine function."""

    name: str
    type: Elem


@dataclass(frozen=True, eq=False)
class Param(Expr):
    """A run-time hyper-parameter, the `shared_seed`, or an argument of the call (`SCALE`, `SHARED_SEED`)."""

    name: str
    type: Elem


@dataclass(frozen=True, eq=False)
class Read(Expr):
    """`vector[position]`, widened; out of range it reads 0 and sets the status."""

    vector: str
    position: Expr
    type: Elem


@dataclass(frozen=True, eq=False)
class Apply(Expr):
    """An operator of `ops.OPS` on unified operands.  `select`, `&&` and `||` are lazy in what they read."""

    op: str
    args: tuple[Expr, ...]
    type: Elem


@dataclass(frozen=True, eq=False)
class Convert(Expr):
    """The argument as element type `to` would store it, widened again."""

    arg: Expr
    to: Elem
    type: Elem


@dataclass(frozen=True, eq=False)
class Random(Expr):
    """`random<T>(low, high)`: the word of this element at call site `site`; `keyed`: from the shared seed."""

    site: int
    low: Expr
    high: Expr
    type: Elem
    keyed: bool = False


@dataclass(frozen=True, eq=False)
class Search(Expr):
    """How many entries of an ascending table are below the argument."""

    table: str
    arg: Expr
    type: Elem = INT


@dataclass(frozen=True, eq=False)
class StochasticRound(Expr):
    """`stochastic_round(x)` at call site `site`."""

    site: int
    arg: Expr
    type: Elem


def _digest(value: object) -> bytes:
    """Return bytes that tell one field of a node from another."""
    if isinstance(value, Expr):
        return value.key
    if isinstance(value, tuple):
        return b"(" + b"".join(_digest(v) for v in value) + b")"
    return repr(value).encode() + b"\0"


# --- construction and traversal -------------------------------------------------------------------


def const(value: Any, elem: Elem) -> Const:
    """Return a constant of an arithmetic type, converted by the rules of the language."""
    kind = arithmetic(elem)
    with np.errstate(over="ignore"):  # a literal beyond float32 is an infinity
        return Const(convert(np.asarray(value, dtype(kind)), elem).item(), kind)


def apply(op: str, *args: Expr) -> Expr:
    """Return `op` on operands of one type, folded if they are constants."""
    entry = OPS[op]
    kind = entry.gives or args[-1].type
    if all(isinstance(a, Const) for a in args):
        values = [np.asarray(a.value, dtype(a.type)) for a in args if isinstance(a, Const)]
        return Const(entry.meaning(*values).item(), kind)
    if op == "!=" and args[1] == Const(0, INT) and isinstance(args[0], Convert) and args[0].arg.type is BOOL:
        return args[0].arg  # a bit that was made from a condition, asked whether it is set
    return Apply(op, args, kind)


def as_elem(value: Expr, elem: Elem) -> Expr:
    """Return `value` as element type `elem` would hold it, widened; nothing to do for its own type."""
    if elem == value.type or (isinstance(value, Convert) and value.to == elem):
        return value
    if isinstance(value, Const):
        return const(convert(np.asarray(value.value, dtype(value.type)), elem).item(), elem)
    return Convert(value, elem, arithmetic(elem))


def blocks(length: Expr, block: int) -> Expr:
    """Return how many blocks a vector of this length has; the last one may be shorter."""
    return apply("/", apply("+", length, const(block - 1, INT)), const(block, INT))


def block_of(e: Expr) -> int:
    """Return B if `e` is i / B, the block of the element at position i; else 0."""
    if isinstance(e, Apply) and e.op == "/" and e.args[0] == Position() and isinstance(e.args[1], Const):
        return int(e.args[1].value)
    return 0


def children(e: Expr) -> tuple[Expr, ...]:
    """Return the direct operands of an expression."""
    if isinstance(e, Apply):
        return e.args
    if isinstance(e, Random):
        return (e.low, e.high)
    if isinstance(e, Read):
        return (e.position,)
    if isinstance(e, Convert | StochasticRound | Search):
        return (e.arg,)
    return ()


def walk(e: Expr) -> Iterator[Expr]:
    """Yield every distinct node of an expression, operands first."""
    seen: set[Expr] = set()

    def visit(node: Expr) -> Iterator[Expr]:
        if node not in seen:
            seen.add(node)
            for child in children(node):
                yield from visit(child)
            yield node

    yield from visit(e)


def rewrite(e: Expr, change: Callable[[Expr], Expr | None]) -> Expr:
    """Rebuild an expression bottom-up; `change` returns the new node, or None to keep it."""
    done: dict[Expr, Expr] = {}

    def visit(node: Expr) -> Expr:
        if node not in done:
            new = node
            if isinstance(node, Apply):
                new = apply(node.op, *(visit(a) for a in node.args))
            elif isinstance(node, Random):
                new = replace(node, low=visit(node.low), high=visit(node.high))
            elif isinstance(node, Read):
                new = replace(node, position=visit(node.position))
            elif isinstance(node, Convert):
                new = as_elem(visit(node.arg), node.to)
            elif isinstance(node, StochasticRound | Search):
                new = replace(node, arg=visit(node.arg))
            changed = change(new)
            done[node] = new if changed is None else changed
        return done[node]

    return visit(e)
