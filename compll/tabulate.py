"""Tables in the place of formulas that decode a code of few bits, where working them out takes longer."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import replace

import numpy as np

from compll import ir
from compll.evaluate import Environment, evaluate
from compll.types import FLOAT, INT, Array, Elem, arithmetic, dtype, limits


def worth(bits: int) -> int:
    """Return so many operations as take longer than to look up the value of a code.

    16 entries are picked within a register; of 256 one is picked from each eighth, or all from the cache.
    """
    return 8 if bits <= 4 else 20


def tabulate(f: ir.Function) -> ir.Function:
    """Look up what depends on nothing but an own element of at most 8 bits, if it is dear."""
    tables = {b.name: b for b in f.body if isinstance(b, ir.Table)}
    elems = {name: elem for name, elem in f.vectors if elem.kind in ("int", "uint") and elem.bits <= 8}
    seen: set[ir.Expr] = set()
    every = (e for b in f.body for e in ir.expressions(b))
    found = dict.fromkeys(x for e in every for x in _decoding(e, elems, tables, seen))
    if not found:
        return f
    known = Environment(0, {}, {name: _entries(t.elem, t.values) for name, t in tables.items()})
    body = list(f.body)
    for number, e in enumerate(sorted(found, key=lambda e: e.size, reverse=True)):
        code = _code(e, elems, tables)
        assert code is not None
        table = _table(f"decoded{number}", e, code, elems[code.vector], known)
        if table is not None:
            low, _ = limits(elems[code.vector])
            at = ir.apply("-", code, ir.const(low, INT)) if low else code
            read = ir.Read(table.name, at, FLOAT)
            body = [table, *(ir.rewrite_binding(b, {e: read}.get) for b in body)]
    return replace(f, body=tuple(body))


def _decoding(
    e: ir.Expr, elems: Mapping[str, Elem], tables: Collection[str], seen: set[ir.Expr]
) -> Iterator[ir.Expr]:
    """Yield the largest parts of an expression that decode a code, where they were not `seen` yet."""
    if e in seen:
        return
    seen.add(e)
    code = _code(e, elems, tables) if e.type == FLOAT else None
    if code is not None:
        operations = sum(isinstance(x, ir.Apply | ir.Convert) for x in ir.walk(e))
        if operations > worth(elems[code.vector].bits):
            yield e
        return
    for child in ir.children(e):
        yield from _decoding(child, elems, tables, seen)


def _code(e: ir.Expr, elems: Mapping[str, Elem], tables: Collection[str]) -> ir.Read | None:
    """Return the one element that an expression depends on; None if it depends on anything else."""
    parts = list(ir.walk(e))
    reads = [x for x in parts if isinstance(x, ir.Read) and x.vector not in tables]
    inner = {ir.Position(), *reads}
    pure = (ir.Apply, ir.Convert, ir.Search, ir.Const, ir.Read)
    if len(reads) != 1 or any(x not in inner and not isinstance(x, pure) for x in parts):
        return None
    (code,) = reads
    lone = all(ir.Position() not in ir.children(x) for x in parts if x != code)
    return code if lone and code.position == ir.Position() and code.vector in elems else None


def _table(name: str, e: ir.Expr, code: ir.Read, elem: Elem, known: Environment) -> ir.Table | None:
    """Return the values of an expression for all codes; None if one of them reads out of range."""
    low, high = limits(elem)
    codes = np.arange(low, high + 1, dtype=dtype(arithmetic(elem)))
    env = Environment(0, {}, known.vectors | {code.vector: codes})
    values = evaluate(e, env, np.arange(len(codes), dtype=np.int64))
    return None if env.out_of_range else ir.Table(name, FLOAT, tuple(ir.const(v, FLOAT) for v in values))


def _entries(elem: Elem, values: tuple[ir.Expr, ...]) -> Array:
    return np.array([v.value for v in values if isinstance(v, ir.Const)], dtype(arithmetic(elem)))
