"""The interpreter's selections: filter, topk, sort, scatter, as the language's reference words them."""

from __future__ import annotations

import numpy as np

from compll import ir
from compll.evaluate import Environment, evaluate
from compll.types import Array, dtype, to_bytes


class Refused(Exception):  # noqa: N818 - a decoder's answer, turned into a status by the interpreter
    """A payload that this program did not make: a parameter, a count or an index does not fit."""


def elements(body: ir.Expr, length: ir.Expr, env: Environment) -> Array:
    """Return `body` at the positions 0 .. length-1."""
    return evaluate(body, env, np.arange(integer(length, env), dtype=np.int64))


def integer(e: ir.Expr, env: Environment) -> int:
    """Return a size: an integer, at least 0."""
    return max(0, int(evaluate(e, env)))


def select(b: ir.Selection, env: Environment) -> None:
    """Run one selection; its results are entered into the environment."""
    match b:
        case ir.Filter(name, count, length, body, limit):
            _filter(name, count, elements(body, length, env), limit, env)
        case ir.TopK(name, length, body, k, block):
            first = order(elements(body, length, env), descending=True)
            env.vectors[name] = _first(first, k, block, env)
        case ir.Sort(name, length, body, key, descending, block):
            values = elements(body, length, env)
            inner = Environment(env.n, env.params, env.vectors, env.scalars | {"a": values})
            keys = evaluate(key, inner, np.zeros(len(values), np.int64))
            env.out_of_range |= inner.out_of_range
            places = _by_block(order(keys, descending=descending), len(values), block, lambda part: part)
            env.vectors[name] = values[places]
        case ir.Scatter():
            env.vectors[b.name] = scatter(b, env)


def lowered(b: ir.Lowered, env: Environment) -> None:
    """Run what a selection became on the vectors that were stored for it."""
    match b:
        case ir.Compact(name, count, mask, length, limit, carried):
            _filter(name, count, elements(mask, length, env), limit, env)
            for vector, read in carried:
                env.vectors[vector] = env.vectors[read.vector][env.vectors[name]]
        case ir.Select(name, keys, length, k, _, block):
            first = np.argsort(elements(keys, length, env), kind="stable")
            env.vectors[name] = _first(first, k, block, env)
        case ir.Arrange(name, keys, values, length, block):
            env.vectors[name] = _arranged(keys, values, length, block, env)
        case ir.Nth(name, keys, values, length, rank):
            env.vectors[name] = _arranged(keys, values, length, 0, env)
            env.scalars[name] = evaluate(ir.Read(name, rank, values.type), env)
        case ir.Ascends(index, count, length, checked):
            if not _ascends(elements(index, count, env), integer(length, env)):
                if checked:
                    raise Refused
                env.out_of_range = True


def _filter(name: str, count: str, holds: Array, limit: ir.Expr | None, env: Environment) -> None:
    """Enter the first positions where a condition holds, and how many they are."""
    found = np.flatnonzero(holds).astype(np.int64)
    env.vectors[name] = found if limit is None else found[: integer(limit, env)]
    env.scalars[count] = np.asarray(len(env.vectors[name]), np.int64)


def _first(ordered: Array, k: ir.Expr, block: int, env: Environment) -> Array:
    """Return the first k of ordered positions, of each block if there is one, ascending."""
    most = integer(k, env)
    return _by_block(ordered, len(ordered), block, lambda part: np.sort(part[:most]))


def _arranged(keys: ir.Read, values: ir.Read, length: ir.Expr, block: int, env: Environment) -> Array:
    by = np.argsort(elements(keys, length, env), kind="stable")
    places = _by_block(by, len(by), block, lambda part: part)
    return np.asarray(elements(values, length, env)[places])


def patch(b: ir.Patch, out: Array, env: Environment) -> Array:
    """Return what was stored with the values at their positions; those out of range are left out."""
    index, value = elements(b.index, b.length, env), elements(b.body, b.length, env)
    if b.target.kind != "vector":
        value = to_bytes(value, b.elem).view(out.dtype)
    inside = (index >= 0) & (index < len(out))
    out = out.copy()
    out[index[inside]] = value[inside]
    return out


def _ascends(index: Array, length: int) -> bool:
    inside = len(index) == 0 or (index[0] >= 0 and index[-1] < length)
    return bool(inside and (np.diff(index) > 0).all())


def order(values: Array, *, descending: bool) -> Array:
    """Return the positions in the total order -0 < +0 < ... < NaN, or its reverse; equal ones by position."""
    if values.dtype.kind == "f":
        bits = np.where(np.isnan(values), np.float32(np.nan), values).astype(np.float32).view(np.int32)
        keys = np.where(bits < 0, bits ^ np.int32(0x7FFFFFFF), bits).astype(np.int64)
        keys = np.where(np.isnan(values), np.int64(2**31), keys)
    else:
        keys = values
    return np.argsort(~keys if descending else keys, kind="stable")


def _by_block(ordered: Array, length: int, block: int, take: object) -> Array:
    """Give the ordered positions of each block to `take`, one block after the other; 0: one block of all."""
    assert callable(take)
    if not block:
        return np.asarray(take(ordered))
    parts = [take(ordered[ordered // block == b]) for b in range(-(-length // block))]
    return np.concatenate([np.zeros(0, np.int64), *parts])


def scatter(b: ir.Scatter, env: Environment) -> Array:
    """Return the base with the values at their positions.

    Raises:
        Refused: the index came from a payload and is not strictly ascending below the length.

    """
    out = np.array(elements(b.base, b.length, env), dtype(b.base.type))
    index, value = elements(b.index, b.count, env), elements(b.value, b.count, env)
    if not _ascends(index, len(out)):
        if b.checked:
            raise Refused
        env.out_of_range = True
        return out
    out[index] = value
    return out
