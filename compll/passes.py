"""Typed IR -> fused IR, as one list of named passes; and the operations that the compiler derives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from compll import ir
from compll.ir_verify import verify
from compll.types import FLOAT

GRADIENT = "gradient"


def drop_unused(f: ir.Function) -> ir.Function:
    """Remove scalars, maps and reductions that nothing which is written depends on."""
    kept: list[ir.Binding] = []
    used: set[str] = set()
    for b in reversed(f.body):
        if isinstance(b, ir.Let | ir.Map | ir.Reduce | ir.Get) and b.name not in used:
            continue
        kept.append(b)
        used.update(_names(ir.expressions(b)))
    return replace(f, body=tuple(reversed(kept)))


def fuse_maps(f: ir.Function) -> ir.Function:
    """Put a map's body where the map is read at the reader's own position.

    Bodies are pure, so a map with several readers is computed in each pass that needs it.  A map that is
    read at any other position, or in a loop of another length, stays.
    """
    maps: dict[str, ir.Map] = {}

    def fused(e: ir.Expr, length: ir.Expr) -> ir.Expr:
        def inline(node: ir.Expr) -> ir.Expr | None:
            if isinstance(node, ir.Read) and node.position == ir.Position() and node.vector in maps:
                m = maps[node.vector]
                return m.body if m.length == length else None
            return None

        return ir.rewrite(e, inline)

    body: list[ir.Binding] = []
    for b in f.body:
        match b:
            case ir.Map():
                maps[b.name] = replace(b, body=fused(b.body, b.length))
                body.append(maps[b.name])
            case ir.Store() | ir.Reduce():
                body.append(replace(b, body=fused(b.body, b.length)))
            case _:
                body.append(b)
    return drop_unused(replace(f, body=tuple(body)))


def form_passes(f: ir.Function) -> ir.Function:
    """Group reductions and stores into loops over memory.

    A reduction or store belongs to the first pass in which all scalars that it uses are known; those of
    one pass and one length share a loop.  A state is stored no earlier than the last pass that reads it,
    since the old and the new state may be the same memory.
    """
    known: dict[str, int] = {}  # scalar -> number of passes that must have run before it is known
    place: dict[int, int] = {}  # index in the body -> pass (sinks) or passes before it (scalars)
    for at, b in enumerate(f.body):
        level = max((known.get(name, 0) for name in _names(ir.expressions(b))), default=0)
        place[at] = level
        if isinstance(b, ir.Let | ir.Get):
            known[b.name] = level
        elif isinstance(b, ir.Reduce):
            known[b.name] = level + 1
    for at, b in enumerate(f.body):
        if isinstance(b, ir.Store) and b.target.kind == "state":
            readers = [
                place[other]
                for other, r in enumerate(f.body)
                if isinstance(r, ir.Store | ir.Reduce) and b.target.name in _names(ir.expressions(r))
            ]
            place[at] = max([place[at], *readers])
    body: list[ir.Binding] = []
    for level in range(max(place.values(), default=0) + 1):
        here = [b for at, b in enumerate(f.body) if place[at] == level]
        body.extend(b for b in here if not isinstance(b, ir.Store | ir.Reduce))
        loops: dict[ir.Expr, list[ir.Store | ir.Reduce]] = {}
        for b in here:
            if isinstance(b, ir.Store | ir.Reduce):
                loops.setdefault(b.length, []).append(b)
        body.extend(ir.Pass(length, tuple(sinks)) for length, sinks in loops.items())
    return replace(f, body=tuple(body))


PASSES: tuple[Callable[[ir.Function], ir.Function], ...] = (drop_unused, fuse_maps, form_passes)


def fuse(f: ir.Function) -> ir.Function:
    """Run all passes, verifying the function after each."""
    verify(f, "check")
    for run in PASSES:
        f = verify(run(f), run.__name__)
    return f


def decode_add(decode: ir.Function) -> ir.Function:
    """Derive out[i] = out[i] + (scale * decoded[i]) from a typed Decode."""
    body: list[ir.Binding] = []
    for b in decode.body:
        if isinstance(b, ir.Store) and b.target.kind == "output":
            old = ir.Read(GRADIENT, ir.Position(), FLOAT)
            b = replace(b, body=ir.apply("+", old, ir.apply("*", ir.Param(ir.SCALE, FLOAT), b.body)))
        body.append(b)
    return replace(decode, op="decode_add", vectors=((GRADIENT, FLOAT), *decode.vectors), body=tuple(body))


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


def _names(es: Iterable[ir.Expr]) -> Iterator[str]:
    for e in es:
        for node in ir.walk(e):
            if isinstance(node, ir.Scalar):
                yield node.name
            elif isinstance(node, ir.Read):
                yield node.vector
