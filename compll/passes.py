"""Typed IR -> fused IR, as one list of named passes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from compll import ir
from compll.carry import carry_selected
from compll.ir_verify import verify
from compll.lower import GRADIENT, is_random, lower_selections, sure
from compll.tabulate import tabulate
from compll.types import FLOAT, INT, INT32, limits

NAMED = (
    *(ir.Let, ir.Map, ir.Reduce, ir.BlockReduce, ir.Get, ir.Table),
    *(ir.Filter, ir.TopK, ir.Sort, ir.Scatter),
)


def drop_unused(f: ir.Function) -> ir.Function:
    """Remove scalars, vectors and reductions that nothing which is written depends on."""
    kept: list[ir.Binding] = []
    used: set[str] = set()
    for b in reversed(f.body):
        if isinstance(b, NAMED) and not _makes(b) & used:
            continue
        kept.append(b)
        used.update(_names(ir.expressions(b)))
    return replace(f, body=tuple(reversed(kept)))


def _makes(b: ir.Binding) -> set[str]:
    """Return the names that a binding gives."""
    names = {b.count} if isinstance(b, ir.Filter) else set()
    return names | ({b.name} if isinstance(b, NAMED) else set())


def fuse_maps(f: ir.Function) -> ir.Function:
    """Put a map's body where the map is read: at the reader's own position, at its block i / B, or elsewhere.

    Bodies are pure, so a map with several readers is computed in each pass that needs it.  What draws random
    numbers stays where it is read elsewhere, for they belong to the position; so does what is large, and
    what would not notice a position out of range.
    """
    maps: dict[str, ir.Map] = {}
    lengths = {field.name: field.length for field in f.fields_read if field.length is not None}
    lengths |= dict.fromkeys((GRADIENT, *f.states), ir.Size())
    filtered: dict[ir.Expr, ir.Expr] = {}  # how many a filter finds -> among how many

    def fused(e: ir.Expr, length: ir.Expr | None) -> ir.Expr:
        def inline(node: ir.Expr) -> ir.Expr | None:
            m = maps.get(node.vector) if isinstance(node, ir.Read) else None
            if m is None or not isinstance(node, ir.Read):
                return None
            if node.position == ir.Position() and m.length == length:
                return m.body
            if is_random(m.body):
                return None
            body = ir.rewrite(m.body, lambda x: node.position if x == ir.Position() else None)
            block = ir.block_of(node.position)
            if block and length is not None and m.length == ir.blocks(length, block):
                return body
            if m.body.size > LARGE or not any(lengths.get(v) == m.length for v in _read_for_sure(m.body)):
                return None
            if length is not None and filtered.get(length) == m.length:
                return body
            some = ir.apply(">", m.length, ir.const(0, INT))  # an empty vector reads 0
            return ir.apply("select", some, body, ir.const(0, body.type))

        return ir.rewrite(e, inline)

    body: list[ir.Binding] = []
    for b in f.body:
        match b:
            case ir.Map():
                maps[b.name] = replace(b, body=fused(b.body, b.length))
                body.append(maps[b.name])
            case ir.Reduce(_, combine) | ir.BlockReduce(_, combine):
                combine = replace(combine, body=fused(combine.body, None))
                body.append(replace(b, combine=combine, body=fused(b.body, b.length)))
            case ir.Store() | ir.Finite() | ir.Sort():
                body.append(replace(b, body=fused(b.body, b.length)))
            case ir.Filter(_, count, length, holds, limit):
                filtered[ir.Scalar(count, INT)] = length
                limit = None if limit is None else fused(limit, None)
                body.append(replace(b, body=fused(holds, length), limit=limit))
            case ir.TopK(_, length, x, k):
                body.append(replace(b, body=fused(x, length), k=fused(k, None)))
            case ir.Scatter(_, _, length, base, count, index, value):
                index, value = fused(index, count), fused(value, count)
                body.append(replace(b, base=fused(base, length), index=index, value=value))
            case ir.Ascends(index, count, _, _):
                body.append(replace(b, index=fused(index, count)))
            case ir.Patch(_, _, length, index, value):
                body.append(replace(b, index=fused(index, length), body=fused(value, length)))
            case ir.Let() | ir.Put():
                body.append(replace(b, value=fused(b.value, None)))
            case _:
                body.append(b)
    return drop_unused(replace(f, body=tuple(body)))


def narrow_conversions(f: ir.Function) -> ir.Function:
    """Convert to 32 bits what is clamped to fewer: lanes of 64 bits cost twice as much, and more.

    Conversions saturate, so min(max(int(x), -7), 7) is the same of int32(x).
    """

    def narrow(e: ir.Expr) -> ir.Expr | None:
        match e:
            case ir.Apply(
                ("min" | "max") as outer,
                (ir.Apply(("min" | "max") as inner, (ir.Convert(x, to, _), a), _), b),
                _,
            ) if outer != inner and to == INT and x.type == FLOAT and _is_int32(a) and _is_int32(b):
                return ir.apply(outer, ir.apply(inner, ir.as_elem(x, INT32), a), b)
        return None

    return replace(f, body=tuple(ir.rewrite_binding(b, narrow) for b in f.body))


def _is_int32(e: ir.Expr) -> bool:
    low, high = limits(INT32)
    return isinstance(e, ir.Const) and low <= e.value <= high


LARGE = 64
"""Operations of a map that is rather stored than worked out again wherever it is read."""


def _read_for_sure(e: ir.Expr) -> Iterator[str]:
    """Yield the vectors that an expression reads at its own position, whatever its conditions are."""
    return (x.vector for x in sure(e) if isinstance(x, ir.Read) and x.position == ir.Position())


def form_passes(f: ir.Function) -> ir.Function:
    """Group reductions and stores into loops over memory.

    A reduction or store belongs to the first pass in which all that it uses is known; those of one pass and
    one length share a loop.  What a block is reduced to is known in the same pass, to the elements of that
    block and to the stores of one value a block.  A state is stored no earlier than the last pass that
    reads it, since the old and the new state may be the same memory.  The payload's fields are stored when
    its counts are known, for only then their places are.  What checks that the gradient is finite has no
    pass of its own where another one reads as many elements.
    """
    place, by_block = _places(f)
    body: list[ir.Binding] = []
    for level in range(max(place.values(), default=0) + 1):
        here = [at for at in place if place[at] == level]
        body.extend(f.body[at] for at in here if not isinstance(f.body[at], SINKS))
        body.extend(_loops(f, [at for at in here if isinstance(f.body[at], SINKS)], by_block))
    return replace(f, body=tuple(body))


def store_blocks(f: ir.Function) -> ir.Function:
    """Store what blocks are reduced to for those who read it in another pass than that of the reduction."""
    place, _ = _places(f)
    kept: dict[int, dict[str, str]] = {}  # reader -> vectors that it reads, and where they are stored
    body: list[ir.Binding] = []
    for at, b in enumerate(f.body):
        names = kept.get(at, {})

        def elsewhere(x: ir.Expr, names: dict[str, str] = names) -> ir.Expr | None:
            return (
                replace(x, vector=names[x.vector]) if isinstance(x, ir.Read) and x.vector in names else None
            )

        b = ir.rewrite_binding(b, elsewhere) if names else b
        body.append(b)
        if not isinstance(b, ir.BlockReduce):
            continue
        readers = {o: r for o, r in enumerate(f.body) if b.name in _names(ir.expressions(r))}
        outside = [
            o
            for o, r in readers.items()
            if not (isinstance(r, SINKS) and place[o] == place[at] and _goes_with(r, b))
        ]
        if outside:
            stored = b.name + "_stored"
            for o in outside:
                kept.setdefault(o, {})[b.name] = stored
            value = ir.Read(b.name, ir.Position(), b.combine.type)
            body.append(
                ir.Store(ir.Target("vector", stored), value.type, ir.blocks(b.length, b.block), value)
            )
    return replace(f, body=tuple(body))


def _places(f: ir.Function) -> tuple[dict[int, int], dict[int, int]]:
    """Return, by index in the body, the pass of each sink, or the passes that run before a scalar is known.

    And the block that its loop must go by, for those that reduce blocks or read what a block is reduced to.
    """
    known: dict[str, int] = {}  # scalar -> number of passes that must have run before it is known
    made: dict[str, tuple[int, ir.BlockReduce]] = {}  # block vector -> its pass
    vectors: dict[str, int] = {}  # any other vector that is made -> passes that must have run before
    place: dict[int, int] = {}  # index in the body -> pass (sinks) or passes before it (scalars)
    by_block: dict[int, int] = {}  # index in the body -> the block that its loop must go by
    for at, b in enumerate(f.body):
        names = set(_names(ir.expressions(b)))
        sources = [made[name] for name in names & made.keys()]
        inside = {source.block for _, source in sources if _goes_with(b, source)}
        joins = len(inside) == 1  # a loop goes by blocks of one size
        level = max((max(known.get(name, 0), vectors.get(name, 0)) for name in names), default=0)
        for there, source in sources:
            level = max(level, there if joins and _goes_with(b, source) else there + 1)
        if joins:
            (by_block[at],) = inside
        place[at] = level
        if isinstance(b, ir.Let | ir.Get):
            known[b.name] = level
        elif isinstance(b, ir.Reduce):
            known[b.name] = level + 1
        elif isinstance(b, ir.BlockReduce):
            made[b.name] = level, b
            by_block[at] = b.block
        elif isinstance(b, ir.Nth):
            known[b.name] = level
        elif isinstance(b, ir.Compact | ir.Select | ir.Arrange):
            vectors[b.name] = level
            if isinstance(b, ir.Compact):
                known[b.count] = level
                vectors |= {name: level for name, _ in b.carried}
        elif isinstance(b, ir.Keep):
            vectors |= dict.fromkeys((b.name, *(name for name, _ in b.carried)), level + 1)
        elif isinstance(b, ir.Store) and b.target.kind == "vector":
            vectors[b.target.name] = level + 1
        elif isinstance(b, ir.Patch) and b.target.kind == "vector":
            vectors[b.target.name] = max(level, vectors[b.target.name]) + 1
    laid_out = max((known[c.name] for c in f.counts if c.name in known), default=0)
    for at, b in enumerate(f.body):
        if isinstance(b, ir.Put) or (isinstance(b, ir.Store) and b.target.kind == "field"):
            place[at] = max(place[at], laid_out)
    _write_last(f, place, by_block)
    for at, b in enumerate(f.body):
        if isinstance(b, ir.Finite):
            others = [
                place[other]
                for other, s in enumerate(f.body)
                if isinstance(s, SINKS) and s != b and s.length == b.length and place[other] >= place[at]
            ]
            place[at] = min(others, default=place[at])
    return place, by_block


def _write_last(f: ir.Function, place: dict[int, int], by_block: Mapping[int, int]) -> None:
    """Put what is written over its own input into the last pass that reads that, or behind; then the patches.

    So are states, whose new value may take the place of the old one, and the output that is added to.  A loop
    may read the elements that it stores, and no other loop that runs at the same level.  Nor may one that
    could find a position out of range, since then every state stays as it is.
    """
    stored = [
        at for at, b in enumerate(f.body) if isinstance(b, ir.Store) and b.target.kind in ("state", "output")
    ]
    own = {*f.states} if f.writes_payload else {*f.states, GRADIENT}
    last = max((place[at] for at in stored), default=0)
    for at, b in enumerate(f.body):
        if not isinstance(b, SINKS) or at in stored:
            continue
        reads = [x for e in ir.expressions(b) for x in ir.walk(e) if isinstance(x, ir.Read)]
        by = {by_block[o] for o, level in place.items() if level == place[at] and o in by_block}
        along = b.length == ir.Size() and len(by) <= 1
        if any(_elsewhere(x) for x in reads):
            last = max(last, place[at] + 1)
        elif any(x.vector in own for x in reads):
            last = max(last, place[at] + (not along))
    place.update(dict.fromkeys(stored, last))
    levels = {b.target: place[at] for at, b in enumerate(f.body) if isinstance(b, ir.Store)}
    for at, b in enumerate(f.body):
        if isinstance(b, ir.Patch):
            place[at] = max(place[at], levels.get(b.target, -1) + 1)


def _elsewhere(e: ir.Expr) -> bool:
    return isinstance(e, ir.Read) and e.position != ir.Position() and not ir.block_of(e.position)


SINKS = (ir.Store, ir.Reduce, ir.BlockReduce, ir.Patch, ir.Finite, ir.Keep)


def _goes_with(b: ir.Binding, source: ir.BlockReduce) -> bool:
    """Whether a binding can stand in the loop that reduces `source`'s blocks.

    It is a sink that has the same positions and reads the vector at i / B, or stores one value a block, of
    whole bytes and without random numbers, which belong to a tile; and what is reduced by block itself has
    blocks of that size.
    """
    if not isinstance(b, SINKS) or (isinstance(b, ir.BlockReduce) and b.block != source.block):
        return False
    positions = {
        x.position
        for e in ir.expressions(b)
        for x in ir.walk(e)
        if isinstance(x, ir.Read) and x.vector == source.name
    }
    if b.length == source.length:
        return all(ir.block_of(p) == source.block for p in positions)
    return (
        isinstance(b, ir.Store)
        and b.length == ir.blocks(source.length, source.block)
        and positions == {ir.Position()}
        and not b.elem.packed
        and not is_random(b.body)
    )


def _loops(f: ir.Function, here: Sequence[int], by_block: Mapping[int, int]) -> Iterator[ir.Pass]:
    """Yield the loops of one pass: by block where a block is reduced, else one for each length."""
    loops: dict[tuple[ir.Expr, int], list[ir.Sink]] = {}
    for at in here:  # loops by block first, so that the others of their length can join them
        b = f.body[at]
        if isinstance(b, ir.BlockReduce):
            loops.setdefault((b.length, b.block), [])
    for at in here:
        b = f.body[at]
        assert isinstance(b, SINKS)
        block = by_block.get(at, 0)
        fitting = [
            (length, size)
            for length, size in loops
            if (size == block or not block)
            and (length == b.length or (size and block and b.length == ir.blocks(length, size)))
        ]
        loops.setdefault(fitting[0] if fitting else (b.length, 0), []).append(b)
    for (length, block), sinks in loops.items():
        yield ir.Pass(length, tuple(sinks), block)


PASSES: tuple[Callable[[ir.Function], ir.Function], ...] = (
    drop_unused,
    fuse_maps,
    narrow_conversions,
    tabulate,
    lower_selections,
    carry_selected,
    store_blocks,
    form_passes,
)


def fuse(f: ir.Function, *, without: Sequence[str] = ()) -> ir.Function:
    """Run all passes but those that a backend does without, verifying the function after each."""
    verify(f, "check")
    for run in PASSES:
        if run.__name__ not in without:
            f = verify(run(f), run.__name__)
    return f


def _names(es: Iterable[ir.Expr]) -> Iterator[str]:
    for e in es:
        for node in ir.walk(e):
            if isinstance(node, ir.Scalar):
                yield node.name
            elif isinstance(node, ir.Read):
                yield node.vector
            elif isinstance(node, ir.Search):
                yield node.table
