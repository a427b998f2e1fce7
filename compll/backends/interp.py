"""The interpreter: NumPy over the IR, slow and plain.  It defines what a program means.

It runs the typed form as well as the fused one; the tests compare the two after every pass.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from compll import ir
from compll.backends import NO_LAUNCHES, NOT_FINITE, OK, OUT_OF_RANGE, REFUSED, Call, Outcome, Unit, Values
from compll.backends.selection import Refused, elements, lowered, patch, select
from compll.errors import PayloadError
from compll.evaluate import Environment, evaluate
from compll.passes import drop_unused
from compll.payload import count_bytes, extents, read_counts, total_bytes
from compll.rng import LANES, ROWS, TILE
from compll.types import Array, arithmetic, dtype, from_bytes, to_bytes, widened


class InterpLibrary:
    """A codec run by the interpreter."""

    backend, launches = "interp", NO_LAUNCHES

    def __init__(self, unit: Unit) -> None:
        """Keep the typed functions, without what they compute and do not use: no error can come of that."""
        self.functions = {f.op: drop_unused(f) for f in unit.functions}

    def run(self, op: str, calls: Sequence[Call], values: Values, threads: int) -> list[Outcome]:
        """Run one operation on every item; `threads` changes nothing."""
        del threads
        return [interpret(self.functions[op], call, values) for call in calls]


def build(unit: Unit) -> InterpLibrary:
    """Return a library; there is nothing to build."""
    return InterpLibrary(unit)


def interpret(f: ir.Function, call: Call, values: Values) -> Outcome:
    """Run one function, typed or fused, on one item."""
    params = dict(values) | {ir.SCALE: call.scale, ir.SHARED_SEED: call.shared_seed}
    given = {} if f.op == "decode" else {"gradient": widened(call.gradient), **call.state}
    env = Environment(call.n, params, given, seed=call.seed)
    raw: dict[str, Array] = {}  # the fields of payloads, as bytes
    if f.fields_read:
        source = call.payload if call.source is None else call.source
        try:
            counts = read_counts(f, source, call.n, values)
        except PayloadError:
            return Outcome(REFUSED, 0)
        env.scalars = {name: np.asarray(count, np.int64) for name, count in counts.items()}
        places = extents(f.fields_read, call.n, values, counts)
        if len(source) != total_bytes(places):
            return Outcome(REFUSED, 0)
        for place in places:
            raw[place.name] = source[place.offset : place.offset + place.size]
            if place.count is not None:
                env.vectors[place.name] = from_bytes(raw[place.name], place.elem, place.count)
    writes: dict[str, Array] = {}  # to states and to the output
    try:
        _run(f.body, env, raw, call, writes)
    except Refused:
        return Outcome(REFUSED, 0)
    if env.out_of_range and call.n:  # of an empty gradient every element reads 0, and nobody asks for it
        return Outcome(OUT_OF_RANGE, 0)
    length = _assemble(f, env, raw, call, values) if f.writes_payload else len(call.payload)
    for name, value in writes.items():
        _memory(name, call)[...] = value
    return Outcome(OK if env.finite else NOT_FINITE, length)


def _memory(name: str, call: Call) -> Array:
    """Return the memory of the caller that a state or the output is written to."""
    return call.new_state.get(name, call.gradient)


def _assemble(f: ir.Function, env: Environment, raw: dict[str, Array], call: Call, values: Values) -> int:
    """Put counts and fields at their places; gaps are 0.  Return the payload's length."""
    counts = {c.name: int(env.scalars[c.name]) for c in f.counts}
    places = extents(f.layout, call.n, values, counts)
    call.payload[: total_bytes(places)] = 0
    for at, count in enumerate(counts.values()):
        size = count_bytes(call.n)
        call.payload[at * size : (at + 1) * size] = np.frombuffer(count.to_bytes(size, "little"), np.uint8)
    for place in places:
        call.payload[place.offset : place.offset + place.size] = raw[place.name][: place.size]
    return total_bytes(places)


def _run(
    body: Sequence[ir.Binding],
    env: Environment,
    raw: dict[str, Array],
    call: Call,
    writes: dict[str, Array],
) -> None:
    """Run bindings in order; `writes` is what states and output hold in the end, as they are in memory."""
    for b in body:
        match b:
            case ir.Let(name, value):
                env.scalars[name] = evaluate(value, env)
            case ir.Map(name, _, length, value):
                env.vectors[name] = elements(value, length, env)
            case ir.Reduce(name):
                env.scalars[name] = reduce(b, env)
            case ir.BlockReduce(name):
                env.vectors[name] = reduce_blocks(b, env)
            case ir.Filter() | ir.TopK() | ir.Sort() | ir.Scatter():
                select(b, env)
            case ir.Compact() | ir.Select() | ir.Arrange() | ir.Nth() | ir.Ascends():
                lowered(b, env)
            case ir.Patch(ir.Target(kind, name)):
                if kind == "vector":
                    env.vectors[name] = patch(b, env.vectors[name], env)
                else:
                    writes[name] = patch(b, writes.get(name, _memory(name, call)), env)
            case ir.Table(name, elem, values):
                env.vectors[name] = np.array([evaluate(v, env) for v in values], dtype(arithmetic(elem)))
            case ir.Keep(name, length, value, carried):
                env.vectors[name] = elements(value, length, env)
                env.vectors |= {vector: elements(e, length, env) for vector, e in carried}
            case ir.Finite(length, value):
                env.finite = env.finite and bool(np.isfinite(elements(value, length, env)).all())
            case ir.Put(field, elem, value):
                raw[field] = to_bytes(evaluate(value, env), elem)
            case ir.Get(name, field, elem):
                env.scalars[name] = from_bytes(raw[field], elem, 1)[0]
            case ir.Guard(_, read, expected):
                if evaluate(read, env) != evaluate(expected, env):
                    raise Refused
            case ir.Store(target, elem, length, value):
                stored = elements(value, length, env)
                if target.kind == "vector":
                    env.vectors[target.name] = np.array(stored)
                elif target.kind == "field":
                    raw[target.name] = to_bytes(stored, elem)
                else:
                    memory = _memory(target.name, call)
                    writes[target.name] = to_bytes(stored, elem).view(memory.dtype)
            case ir.Pass(_, sinks, _):
                _run(sinks, env, raw, call, writes)


def reduce(b: ir.Reduce, env: Environment) -> Array:
    """Return f(init, tree(v)), or init if v is empty (LANGUAGE: "The one order of reduction")."""
    values = np.array(elements(b.body, b.length, env))
    init = evaluate(b.init, env)
    if not len(values):
        return init
    return combine(b.combine, env, init, tree(b.combine, values[None], len(values), env)[0])


def reduce_blocks(b: ir.BlockReduce, env: Environment) -> Array:
    """Return f(init, tree(block)) for every block; the last one may be shorter."""
    values = np.array(elements(b.body, b.length, env))
    whole = len(values) // b.block * b.block
    parts = [values[:whole].reshape(-1, b.block), values[whole:].reshape(1, -1)]
    reduced = [tree(b.combine, part, part.shape[1], env) for part in parts if part.size]
    if not reduced:
        return values
    return combine(b.combine, env, evaluate(b.init, env), np.concatenate(reduced))


def combine(f: ir.Combine, env: Environment, a: Array, b: Array, there: Array | None = None) -> Array:
    """Return f(a, b), element by element; `there` tells which elements there are, by default all."""
    x, y = np.broadcast_arrays(a, b)
    inner = Environment(env.n, env.params, env.vectors, env.scalars | {"a": x, "b": y})
    result = evaluate(f.body, inner, np.zeros(x.shape, np.int64), there)
    env.out_of_range |= inner.out_of_range
    return np.asarray(result, dtype(f.type))


def tree(f: ir.Combine, values: Array, count: int, env: Environment) -> Array:
    """Reduce each row of `values`, `count` > 0 elements long.

    Tiles of 8 rows x 128 lanes, rows in order, lanes by halves; then the tiles' results, by the same rule.
    """
    vectors = len(values)
    while True:
        tiles = -(-count // TILE)
        padded = np.zeros((vectors, tiles * TILE), values.dtype)
        padded[:, :count] = values
        grid = padded.reshape(vectors, tiles, ROWS, LANES)
        there = (np.arange(tiles * TILE) < count).reshape(1, tiles, ROWS, LANES)
        lanes, filled = grid[:, :, 0].copy(), there[:, :, 0]
        for row in range(1, ROWS):
            present = there[:, :, row]
            lanes = np.where(present, combine(f, env, lanes, grid[:, :, row], present), lanes)
        width = LANES // 2
        while width:
            both = filled[..., width : 2 * width]
            folded = combine(f, env, lanes[..., :width], lanes[..., width : 2 * width], both)
            lanes, filled = np.where(both, folded, lanes[..., :width]), filled[..., :width]
            width //= 2
        values, count = lanes[..., 0], tiles
        if tiles == 1:
            return np.asarray(values[:, 0])
