"""Carry values along with the positions that a filter selects, so that nobody has to fetch them afterwards.

What is read at the selected positions alone was in a register when they were found.  Later it lies far apart
in memory; and a state could not be stored before everybody had read the old one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from compll import ir
from compll.lower import GRADIENT, along, at_index, own
from compll.types import BOOL, FLOAT, INT


def carry_selected(f: ir.Function) -> ir.Function:
    """Let passes keep selected positions and values, where they would store a bit for every position."""
    body = list(f.body)
    lengths: dict[str, ir.Expr] = dict.fromkeys((GRADIENT, *f.states), ir.Size())
    for compact in [b for b in f.body if isinstance(b, ir.Compact)]:
        at = next(i for i, b in enumerate(body) if _is_mask(b, compact))
        mask = body[at]
        assert isinstance(mask, ir.Store)
        holds = ir.apply("!=", mask.body, ir.const(0, INT))
        kept = f"{compact.name}_kept"
        values: dict[ir.Expr, tuple[str, ir.Expr]] = {}  # at the selected positions -> name, at all positions
        known = set(ir.walk(holds))
        readers = [
            b for b in body[at:] if isinstance(b, ir.Sink) and b.length == ir.Scalar(compact.count, INT)
        ]
        seen: set[ir.Expr] = set()
        for e in (e for b in readers for e in ir.expressions(b)):
            for x, everywhere in _carried(e, compact, lengths, known, seen):
                values.setdefault(x, (f"{kept}{len(values)}", everywhere))
        body[at] = ir.Keep(kept, compact.length, holds, tuple((f"{v}_all", e) for v, e in values.values()))
        new = {x: own(name, FLOAT) for x, (name, _) in values.items()}
        for i, b in enumerate(body):
            if b is compact:
                carried = tuple((name, own(f"{name}_all", FLOAT)) for name, _ in values.values())
                body[i] = replace(compact, mask=own(kept, BOOL), carried=carried)
            elif b in readers:
                body[i] = ir.rewrite_binding(b, new.get)
    return replace(f, body=tuple(body))


def _is_mask(b: ir.Binding, compact: ir.Compact) -> bool:
    return isinstance(b, ir.Store) and b.target == ir.Target("vector", compact.mask.vector)


def _carried(
    e: ir.Expr,
    compact: ir.Compact,
    lengths: Mapping[str, ir.Expr],
    known: set[ir.Expr],
    seen: set[ir.Expr],
) -> Iterator[tuple[ir.Expr, ir.Expr]]:
    """Yield the largest parts of an expression that can be carried, and what they are at all positions.

    That is what the pass knows since the condition is made of it, and what it can read on its way.  What was
    `seen` is left out: large formulas have the same parts in many places.
    """
    if e in seen:
        return
    seen.add(e)
    everywhere = at_index(e, own(compact.name, INT)) if e.type == FLOAT else None
    if everywhere is not None and along(everywhere):
        reads = [x for x in ir.walk(everywhere) if isinstance(x, ir.Read)]
        on_its_way = reads == [everywhere] and lengths.get(reads[0].vector) == compact.length
        if on_its_way or (reads and everywhere in known):
            yield e, everywhere
            return
    for child in ir.children(e):
        yield from _carried(child, compact, lengths, known, seen)
