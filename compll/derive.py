"""Operations that the compiler makes of a codec's own two: typed IR from typed IR."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from compll import ir
from compll.lower import GRADIENT, is_random
from compll.passes import drop_unused, fuse
from compll.types import FLOAT, Elem

ELEMENTWISE = (ir.Get, ir.Guard, ir.Let, ir.Map, ir.Table, ir.Store)


def decode_add(decode: ir.Function) -> ir.Function:
    """Derive out[i] = out[i] + (scale * decoded[i]) from a typed Decode.

    Where Decode is a scatter over 0, only the positions that it names are touched: that is the definition.
    """
    sparse = _scattered(decode)
    body: list[ir.Binding] = []

    def added(position: ir.Expr, value: ir.Expr) -> ir.Expr:
        scaled = ir.apply("*", ir.Param(ir.SCALE, FLOAT), value)
        return ir.apply("+", ir.Read(GRADIENT, position, FLOAT), scaled)

    for b in decode.body:
        if not (isinstance(b, ir.Store) and b.target.kind == "output"):
            body.append(b)
        elif sparse is None:
            body.append(replace(b, body=added(ir.Position(), b.body)))
        else:
            body.append(ir.Ascends(sparse.index, sparse.count, sparse.length, sparse.checked))
            total = added(sparse.index, sparse.value)
            body.append(ir.Patch(b.target, b.elem, sparse.count, sparse.index, total))
    vectors = ((GRADIENT, FLOAT), *decode.vectors)
    return drop_unused(replace(decode, op="decode_add", vectors=vectors, body=tuple(body)))


def hop(encode: ir.Function, decode: ir.Function) -> ir.Function | None:
    """Derive encode(scale * (gradient + decode(received))) from a typed Encode and Decode.

    Decode's bindings come first, under names of their own, and each read of the gradient becomes the scaled
    sum; the passes then put the decoding where the sum is read, so that no decoded vector is ever stored.
    None where it would have to be, or where the two payloads may differ in layout: such a hop is composed.
    """
    if encode.counts or decode.counts or not all(isinstance(b, ELEMENTWISE) for b in decode.body):
        return None
    if any(is_random(e) for b in decode.body for e in ir.expressions(b)):
        return None
    taken = _names(encode)
    own = {name: _fresh(f"received_{name}", taken) for name in _names(decode)}
    vector = _fresh("received", taken)
    body: list[ir.Binding] = []
    for b in decode.body:
        new = _renamed(b, own)
        if isinstance(new, ir.Store):
            new = ir.Map(vector, FLOAT, new.length, new.body)
        body.append(new)

    def summed(e: ir.Expr) -> ir.Expr | None:
        if not (isinstance(e, ir.Read) and e.vector == GRADIENT):
            return None
        total = ir.apply("+", e, ir.Read(vector, e.position, FLOAT))
        return ir.apply("*", ir.Param(ir.SCALE, FLOAT), total)

    body += [ir.rewrite_binding(b, summed) for b in encode.body]
    received = tuple(replace(x, name=own[x.name]) for x in decode.layout)
    f = replace(
        encode,
        op="hop",
        vectors=(*encode.vectors, *((x.name, x.elem) for x in received if x.length is not None)),
        received=received,
        body=tuple(body),
    )
    kept = ir.Target("vector", vector)
    sinks = (s for b in fuse(f).body if isinstance(b, ir.Pass) for s in b.sinks)
    return None if any(isinstance(s, ir.Store) and s.target == kept for s in sinks) else f


def _names(f: ir.Function) -> set[str]:
    """Return all names that a function gives to vectors, scalars, tables and fields."""
    given = {getattr(b, what, None) for b in f.body for what in ("name", "count")}
    known = {x.name for x in f.layout} | {x.name for x in f.params} | {name for name, _ in f.vectors}
    return known | {x for x in given if isinstance(x, str)}


def _fresh(wish: str, taken: set[str]) -> str:
    while wish in taken:
        wish += "_"
    taken.add(wish)
    return wish


def _renamed(b: ir.Binding, own: Mapping[str, str]) -> ir.Binding:
    """Return a binding under other names, as `own` has them."""

    def rename(e: ir.Expr) -> ir.Expr | None:
        if isinstance(e, ir.Scalar):
            return replace(e, name=own[e.name])
        if isinstance(e, ir.Read):
            return replace(e, vector=own[e.vector])
        return replace(e, table=own[e.table]) if isinstance(e, ir.Search) else None

    new: dict[str, Any] = {x: own[getattr(b, x)] for x in ("name", "field") if hasattr(b, x)}
    return replace(ir.rewrite_binding(b, rename), **new)


def for_gradients_of(f: ir.Function, elem: Elem) -> ir.Function:
    """Return a typed operation on gradients stored as `elem`: widened where read, rounded where written."""
    body = [
        replace(b, elem=elem) if isinstance(b, ir.Store | ir.Patch) and b.target.kind == "output" else b
        for b in f.body
    ]
    vectors = tuple((name, elem if name == GRADIENT else kind) for name, kind in f.vectors)
    return replace(f, vectors=vectors, body=tuple(body))


def is_sparse(decode: ir.Function) -> bool:
    """Whether Decode is a scatter over 0 by positions that it reads from the payload."""
    scatter = _scattered(decode)
    return scatter is not None and scatter.checked


def _scattered(decode: ir.Function) -> ir.Scatter | None:
    """Return the scatter over 0 that a Decode is, if it is one and nothing is done to its result."""
    made = {b.name: b for b in decode.body if isinstance(b, ir.Map | ir.Scatter)}
    for store in decode.body:
        if isinstance(store, ir.Store) and store.target.kind == "output":
            e = store.body
            while isinstance(e, ir.Read) and e.position == ir.Position() and e.vector in made:
                b = made[e.vector]
                if isinstance(b, ir.Scatter):
                    return b if b.base == ir.const(0, FLOAT) else None
                e = b.body
    return None


def has_feedback(encode: ir.Function) -> bool:
    """Whether Encode keeps what its payload loses.

    The form is x = gradient + residual, residual = x - decode(compressed), under any names.
    """
    maps = {b.name: b.body for b in encode.body if isinstance(b, ir.Map)}

    def resolve(e: ir.Expr, until: str = "") -> ir.Expr:
        while isinstance(e, ir.Read) and e.position == ir.Position() and e.vector in maps:
            if e.vector == until:
                return e
            e = maps[e.vector]
        return e

    for b in encode.body:
        if not (isinstance(b, ir.Store) and b.target.kind == "state"):
            continue
        match resolve(b.body, encode.decoded):
            case ir.Apply("select", (_, kept, _), _):
                match resolve(kept, encode.decoded):
                    case ir.Apply("-", (x, ir.Read(vector, _, _)), _) if vector == encode.decoded:
                        sides = {GRADIENT, b.target.name}
                        match resolve(x):
                            case ir.Apply("+", (ir.Read(one, _, _), ir.Read(two, _, _)), _) if {
                                one,
                                two,
                            } == sides:
                                return True
    return False
