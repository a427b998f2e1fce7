"""Selections and vectors that must exist in memory -> passes that store to scratch, and what works on it.

A filter becomes a bit vector and its compaction; topk and sort become keys, unsigned or signed integers in
the one total order, and what works on keys; a scatter becomes a dense store and a patch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from compll import ir
from compll.types import BOOL, FLOAT, INT, UINT32, Elem, arithmetic, uint

GRADIENT = "gradient"
SIGN = ir.const(1 << 31, UINT32)
MOST_RANKS = 2
"""So many elements of a sort are selected one by one; where a program reads more, everything is sorted."""


def lower_selections(f: ir.Function) -> ir.Function:
    """Give every selection, and every map that is still read, its place in scratch memory."""
    lowering = _Lowering(f)
    for at, b in enumerate(f.body):
        lowering.binding(b, f.body[at + 1 :])
    return replace(f, body=tuple(lowering.body))


def order_key(x: ir.Expr, *, descending: bool) -> ir.Expr:
    """Return an integer that orders as the language does: -0 < +0 < ... < NaN; or the reverse."""
    if x.type == BOOL:
        x = ir.as_elem(x, INT)
    if x.type == FLOAT:
        bits = ir.apply("float_bits", x)
        x = ir.apply(
            "^", bits, ir.apply("select", ir.apply(">=", bits, SIGN), ir.const(2**32 - 1, UINT32), SIGN)
        )
    if not descending:
        return x
    ones = -1 if x.type == INT else 2**x.type.bits - 1
    return ir.apply("^", x, ir.const(ones, x.type))


def sure(e: ir.Expr) -> Iterator[ir.Expr]:
    """Yield the nodes of an expression that are evaluated whatever its conditions are."""
    yield e
    lazy = isinstance(e, ir.Apply) and e.op in ("select", "&&", "||")
    for c in ir.children(e)[:1] if lazy else ir.children(e):
        yield from sure(c)


def is_random(e: ir.Expr) -> bool:
    """Whether an expression draws random numbers, which belong to the position that draws them."""
    return any(isinstance(x, ir.Random | ir.StochasticRound) for x in ir.walk(e))


def at_index(e: ir.Expr, index: ir.Expr) -> ir.Expr | None:
    """Return what an element that belongs to `index` is at the position that this names.

    None if it depends on its own place besides.
    """
    there = ir.Scalar("@there", INT)
    marked = ir.rewrite(e, lambda x: there if x == index else None)
    if is_random(marked) or any(x == ir.Position() for x in ir.walk(marked)):
        return None
    return ir.rewrite(marked, lambda x: ir.Position() if x == there else None)


def along(e: ir.Expr) -> bool:
    """Whether every read is at the own position, or at its block, so that none can be out of range."""
    reads = (x.position for x in ir.walk(e) if isinstance(x, ir.Read))
    return all(p == ir.Position() or ir.block_of(p) for p in reads)


def reads_of(e: ir.Expr, vector: str) -> Iterator[ir.Read]:
    """Yield where an expression reads a vector."""
    return (x for x in ir.walk(e) if isinstance(x, ir.Read) and x.vector == vector)


class _Lowering:
    def __init__(self, f: ir.Function) -> None:
        self.f = f
        self.body: list[ir.Binding] = []
        self.below: dict[str, ir.Expr] = {}  # vector of ascending positions -> below what they are
        self.holds: dict[str, ir.Expr] = {}  # vector of all positions where something holds -> that
        self.patched: dict[str, tuple[ir.Scatter, ir.Read]] = {}  # scatter that is never made -> its index
        self.checked: dict[ir.Expr, ir.Read] = {}  # index of a patch -> where it lies
        self.sorts: dict[str, ir.Arrange] = {}  # sort of which single elements are asked
        self.ranked: dict[ir.Expr, ir.Expr] = {}  # such an element -> the scalar that it is
        self.taken = {name for name, _ in f.vectors} | {field.name for field in f.layout}
        self.taken |= {str(getattr(b, "name", "")) for b in f.body}

    def fresh(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def vector(self, name: str, elem: Elem, length: ir.Expr, body: ir.Expr) -> ir.Read:
        """Store a vector in scratch; return how it is read at the own position."""
        self.body.append(ir.Store(ir.Target("vector", name), elem, length, body))
        return own(name, arithmetic(elem))

    def unconverted(self, e: ir.Expr) -> ir.Expr | None:
        """Return positions themselves where they went through a type that holds them."""
        if not isinstance(e, ir.Convert) or e.type != INT:
            return None
        read = e.arg.arg if isinstance(e.arg, ir.Convert) and e.to == INT else e.arg
        narrow = e.arg.to if isinstance(e.arg, ir.Convert) else e.to
        if not isinstance(read, ir.Read) or read != own(read.vector, INT) or read.vector not in self.below:
            return None
        return read if ir.Narrow(self.below[read.vector], narrow) in self.f.narrow else None

    def binding(self, b: ir.Binding, later: tuple[ir.Binding, ...]) -> None:
        b = ir.rewrite_binding(b, self.unconverted) if self.below else b
        match b:
            case ir.Map(name, _, length, body):
                self.vector(name, body.type, length, body)
            case ir.Filter(name, count, length, body, limit):
                mask = self.vector(self.fresh(name + "_mask"), uint(1), length, ir.as_elem(body, uint(1)))
                self.body.append(ir.Compact(name, count, mask, length, limit))
                self.below[name] = length
                if limit is None and not is_random(body):
                    self.holds[name] = body
            case ir.TopK(name, length, body, k, block):
                keys = self.keys(name, length, order_key(body, descending=True))
                self.body.append(ir.Select(name, keys, length, k, selected(length, k, block), block))
                self.below[name] = length
            case ir.Sort():
                self.sort(b, later)
            case ir.Scatter():
                self.scatter(b, later)
            case ir.Ascends(index, count, length, checked):
                self.checked[index] = self.positions(f"{GRADIENT}_index", index, count, length, checked)
            case ir.Patch():
                at = self.checked[b.index]
                body = ir.rewrite(b.body, {b.index: at}.get)
                self.body.append(replace(b, index=at, body=body))
            case ir.Store() if any(list(reads_of(b.body, name)) for name in self.patched):
                self.patch(b)
            case ir.Store(target, _, length, body) if target.kind == "state" and not along(body):
                value = self.vector(self.fresh(target.name + "_new"), body.type, length, body)
                self.body.append(replace(b, body=value))
            case ir.BlockReduce(name, _, _, _, length, body) if is_random(body):  # they belong to a tile
                drawn = self.vector(self.fresh(name + "_drawn"), body.type, length, body)
                self.body.append(replace(b, body=drawn))
            case ir.Let() | ir.Put():
                ranked = self.with_ranks(b.value)
                self.body.append(replace(b, value=ranked))
            case _:
                self.body.append(b)

    def keys(self, name: str, length: ir.Expr, key: ir.Expr) -> ir.Read:
        return self.vector(self.fresh(name + "_keys"), key.type, length, key)

    # --- sort: of all elements, or of those that are asked for ------------------------------------

    def sort(self, b: ir.Sort, later: tuple[ir.Binding, ...]) -> None:
        by = ir.rewrite(b.key, lambda x: b.body if x == ir.Scalar("a", b.body.type) else None)
        keys = self.keys(b.name, b.length, order_key(by, descending=b.descending))
        values = self.vector(self.fresh(b.name + "_values"), b.body.type, b.length, b.body)
        arrange = ir.Arrange(b.name, keys, values, b.length, b.block)
        reads = {r: other for other in later for e in ir.expressions(other) for r in reads_of(e, b.name)}
        single = all(
            isinstance(other, ir.Let | ir.Put) and r in sure(other.value) for r, other in reads.items()
        )
        if single and not b.block and len(reads) <= MOST_RANKS:
            self.sorts[b.name] = arrange
        else:
            self.body.append(arrange)

    def with_ranks(self, e: ir.Expr) -> ir.Expr:
        """Put scalars in the places of single elements of sorts."""
        for read in list(ir.walk(e)):
            if isinstance(read, ir.Read) and read.vector in self.sorts and read not in self.ranked:
                all_ = self.sorts[read.vector]
                name = self.fresh(all_.name + "_nth")
                rank = self.with_ranks(read.position)
                self.body.append(ir.Nth(name, all_.keys, all_.values, all_.length, rank))
                self.ranked[read] = ir.Scalar(name, read.type)
        return ir.rewrite(e, self.ranked.get)

    # --- scatter ----------------------------------------------------------------------------------

    def scatter(self, b: ir.Scatter, later: tuple[ir.Binding, ...]) -> None:
        at = self.positions(b.name + "_index", b.index, b.count, b.length, b.checked)
        if all(_stores_at_own(other, b) for other in later if b.name in _vectors(other)):
            self.patched[b.name] = b, at
            return
        self.vector(b.name, arithmetic(b.elem), b.length, b.base)
        target = ir.Target("vector", b.name)
        self.body.append(ir.Patch(target, arithmetic(b.elem), b.count, at, b.value))

    def positions(self, name: str, index: ir.Expr, count: ir.Expr, length: ir.Expr, checked: bool) -> ir.Read:
        """Return where the positions of a scatter lie, which are in order: by their making, or by a check."""
        if (
            isinstance(index, ir.Read)
            and index == own(index.vector, INT)
            and self.below.get(index.vector) == length
        ):
            return index
        stored = self.vector(self.fresh(name), INT, count, index)
        self.body.append(ir.Ascends(stored, count, length, checked))
        return stored

    def patch(self, store: ir.Store) -> None:
        """Store the base of a scatter, and patch it: what the store makes of the scattered values.

        Those are worked out before, since a new state may take the place of the old one.  There is nothing
        to patch if each position tells by itself whether it is in the index, and its value.
        """
        name = next(name for name in self.patched if name in _vectors(store))
        scatter, at = self.patched[name]
        own_value = at_index(scatter.value, at) if at.vector in self.holds else None
        if own_value is not None:
            new = ir.apply("select", self.holds[at.vector], own_value, scatter.base)
            body = ir.rewrite(store.body, lambda x: new if x == own(name, x.type) else None)
            self.binding(replace(store, body=body), ())  # whether it holds may depend on other elements
            return
        dense = ir.rewrite(store.body, lambda x: scatter.base if x == own(name, x.type) else None)

        def there(x: ir.Expr) -> ir.Expr | None:
            if x == ir.Position():
                return at
            return scatter.value if isinstance(x, ir.Read) and x.vector == name else None

        value = ir.rewrite(store.body, there)
        if any(x in (GRADIENT, *self.f.states) for x in _reads(value)):
            value = self.vector(self.fresh(store.target.name + "_patch"), value.type, scatter.count, value)
        self.body.append(replace(store, body=dense))
        self.body.append(ir.Patch(store.target, store.elem, scatter.count, at, value))


def own(vector: str, kind: Elem) -> ir.Read:
    """Return the read of a vector at the own position."""
    return ir.Read(vector, ir.Position(), kind)


def selected(length: ir.Expr, k: ir.Expr, block: int) -> ir.Expr:
    """Return how many positions a topk gives: min(k, length), or so many of each block."""

    def most(of: ir.Expr) -> ir.Expr:
        return ir.apply("min", ir.apply("max", k, ir.const(0, INT)), of)

    if not block:
        return most(length)
    size = ir.const(block, INT)
    whole, rest = (ir.apply(op, length, size) for op in "/%")
    return ir.apply("+", ir.apply("*", whole, most(size)), most(rest))


def _reads(e: ir.Expr) -> set[str]:
    return {x.vector for x in ir.walk(e) if isinstance(x, ir.Read)}


def _vectors(b: ir.Binding) -> set[str]:
    return {name for e in ir.expressions(b) for name in _reads(e)}


def _stores_at_own(b: ir.Binding, s: ir.Scatter) -> bool:
    """Whether a binding stores whole elements, each made from the scatter's element at its own position."""
    return (
        isinstance(b, ir.Store)
        and b.length == s.length
        and not b.elem.packed
        and b.target.kind in ("output", "state")
        and not is_random(b.body)
        and all(r.position == ir.Position() for r in reads_of(b.body, s.name))
    )
