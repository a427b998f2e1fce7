"""Selections as Python for Numba: the steps and vectors of `compll.backends.numba_selection`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from compll import ir
from compll.emit.pieces import Buffer, Step
from compll.emit.positions import Bits
from compll.emit.selections import BINS, PARTS, Selections
from compll.types import BOOL, FLOAT, INT, Elem, arithmetic, dtype, limits

Vectors = list[tuple[str, str]]
POSITIONS = "i8"
FEW = 2  # entries that are compared one by one


@dataclass(frozen=True)
class Join:
    """The loop that joins what a pass kept, in parts of `granule` tiles: positions, and values there."""

    name: str
    kept: str
    granule: int
    index: str
    carried: tuple[tuple[str, str], ...]


class NumbaSelections(Selections):
    """Spells scratch vectors and what works on them.  A vector is its address, a member of the frame `k`."""

    trees: dict[str, tuple[ir.Expr, ...]]
    joins: list[Join]

    def lowered(self, b: ir.Lowered) -> Iterator[Step]:
        """Yield the steps of what a selection became: what it needs and gives is in the frame."""
        match b:
            case ir.Compact(name, count, kept, length, limit, carried):
                granule = self.granules[kept.vector]
                values = tuple((vector, read.vector) for vector, read in carried)
                join = Join(f"{self.f.op}_join{len(self.joins)}", kept.vector, granule, name, values)
                self.joins.append(join)
                yield from self.asked(length, limit or length)
                yield Step("line", f"k.result = sums_before(k.{kept.vector}_found, k.length, {granule})")
                yield Step("selection", f"({join.name}, {granule})")
                self.scalars.append(self.member(count, INT))
                yield Step("line", f"k.{count}_ = kept_in_all(k)")
                yield from self.counted(count)
            case ir.Select(name, keys, length, k, _, block):
                tiles = ir.apply("*", one_more(self.tiles_of(length)), ir.const(2, INT))
                work = self.memory(f"{name}_work", ir.apply("+", tiles, ir.const(PARTS * BINS, INT)))
                quarter = ir.apply("/", self.most_of(length), ir.const(4, INT))
                near = [
                    self.memory(f"{name}_near_bits", ir.blocks(self.most_of(length), 64), "u8"),
                    self.memory(f"{name}_near_at", quarter),
                    self.memory(f"{name}_near_keys", quarter, code(keys.type)),
                ]
                vectors = [self.held(keys), (f"v_{name}", POSITIONS), work, *near]
                yield from self.selection("select_least", vectors, length, k, block)
            case ir.Arrange(name, keys, values, length, block):
                most = self.most_of(length)
                spares = [self.memory(f"{name}_{r.vector}", most, code(r.type)) for r in (keys, values)]
                vectors = [self.held(keys), self.held(values), *spares]
                yield from self.selection("arrange", vectors, length, length, block)
                self.alias(name, values.vector, code(values.type))
            case ir.Nth(name, keys, values, length, rank):
                vectors = [self.held(keys), self.memory(f"{name}_bins", ir.const(BINS, INT))]
                yield from self.selection("nth", vectors, length, rank)
                self.scalars.append(self.member(name, values.type))
                yield Step("line", f"k.{name}_ = native({self.element(values.vector, 'one(k.result)')})")
            case ir.Ascends(ir.Read(index), count, length, checked):
                args = ", ".join(f"native({self.scalar.text(e)})" for e in (count, length))
                status = "REFUSED" if checked else "OUT_OF_RANGE"
                yield Step("refusal", f"not ascends(k.v_{index}, {args})", status=status)

    def selection(
        self, function: str, vectors: Vectors, length: ir.Expr, rank: ir.Expr, block: int = 0
    ) -> Iterator[Step]:
        """Yield the steps of a call of a function on members of the frame with NumPy types."""
        yield from self.asked(length, rank)
        named = ", ".join(f'("{v}", "{t}")' for v, t in vectors)
        yield Step("selection", f'Selection("{function}", ({named}), {block})')

    def asked(self, length: ir.Expr, rank: ir.Expr) -> Iterator[Step]:
        """Yield the steps that tell a selection of how many elements it is to select how many, or which."""
        yield Step("line", f"k.length = native({self.scalar.text(length)})")
        yield Step("line", f"k.rank = native({self.scalar.text(rank)})")

    def held(self, e: ir.Read) -> tuple[str, str]:
        """Return member and type of a vector that a pass has stored."""
        return f"v_{e.vector}", code(e.type)

    # --- sizes ----------------------------------------------------------------------------------

    def reserve(self, member: str, kind: str, most: ir.Expr) -> None:
        """Reserve scratch memory under a member of the frame; `kind` ends in the bits of an element."""
        text = f"max(0, native({self.scalar.text(most)}))"
        self.buffers.append(Buffer(member, str(int(kind[1:]) // 8), text, most))

    def memory(self, member: str, most: ir.Expr, kind: str = POSITIONS) -> tuple[str, str]:
        """Reserve memory that one selection works in, of a type of NumPy; return its member and type."""
        self.reserve(member, f"i{8 * int(kind[1:])}", most)
        return member, kind

    # --- reads at computed positions ------------------------------------------------------------

    def where(self, vector: str) -> str:
        """Return the address of a vector."""
        if vector in self.tables:
            return f"{self.f.op}_{vector}.ctypes.data"
        if vector in self.stored_vectors:
            return f"k.v_{vector}"
        return f"k.f_{vector}" if vector in self.places else self.vector(vector)

    def gather(self, e: ir.Read, lanes: str, position: str, asked: str) -> str:
        """Return the lanes of a vector at computed positions; 0 where they are out of range."""
        elem = self.vectors[e.vector]
        args = f"{self.where(e.vector)}, native({self.length_text(e.vector)}), {position}, {asked}, k"
        if elem.packed:
            return f"gather_bits({elem.bits}, {args})"
        if elem == BOOL:
            return f"ne(gather(Int32, u8, {args}), splat(Int32, 0))"
        return f"gather({lanes}, {self.dialect.stored(elem)}, {args})"

    def near(self, e: ir.Read, lanes: str, length: str, start: str, bits: Bits, asked: str) -> str:
        """Return the lanes of a vector at positions that a load gives in some order; 0 where out of range."""
        elem, first = self.vectors[e.vector], self.dialect.first(start, bits)
        args = f"{self.where(e.vector)}, {length}, {first}, {self.dialect.order(bits)}, {asked}, k"
        if elem.packed:
            return f"near_codes({elem.bits}, {args})"
        return f"near({lanes}, {self.dialect.stored(elem)}, {args})"

    def near_one(self, e: ir.Read, lanes: str, length: str, first: str, size: int, asked: str) -> str:
        """Return element `first` / `size` in all lanes; 0 if it is out of range."""
        stored = self.dialect.stored(self.vectors[e.vector])
        return (
            f"near_one({lanes}, {stored}, {self.where(e.vector)}, {length}, ({first}) // {size}, {asked}, k)"
        )

    def lookup(self, e: ir.Read, lanes: str, position: str) -> str:
        """Return the lanes of a table at positions of 32 bits that are in range."""
        stored = self.dialect.stored(self.vectors[e.vector])
        count = len(self.tables[e.vector].values)
        return f"lookup({lanes}, {stored}, {self.where(e.vector)}, {count}, {position})"

    def read_at(self, e: ir.Read | ir.Search, operand: str) -> str:
        """Return one element of a vector, or what a search in a table gives, as a scalar."""
        return self.search(e, "i64", operand) if isinstance(e, ir.Search) else self.element(e.vector, operand)

    def element(self, vector: str, position: str) -> str:
        """Return the element of a vector at a scalar position."""
        elem = self.vectors[vector]
        args = f"{self.where(vector)}, native({self.length_text(vector)}), {position}, k"
        if elem.packed:
            return f"read_bits({elem.bits}, {args})"
        if elem == BOOL:
            return f"ne(read_at(i64, u8, {args}), splat(i64, 0))"
        return f"read_at({self.dialect.scalar(elem)}, {self.dialect.stored(elem)}, {args})"

    def search(self, e: ir.Search, kind: str, arg: str) -> str:
        """Return how many entries of a table are below, in scalars or lanes."""
        table = self.tables[e.table]
        if kind == "i64" or arithmetic(table.elem).bits != 32 or len(table.values) <= FEW:
            return f"search({kind}, {self.f.op}_{e.table}, {arg})"
        self.trees[e.table] = tree = as_tree(table)
        levels = len(tree).bit_length() - 1
        return f"search_tree({kind}, {self.f.op}_{e.table}_tree.ctypes.data, {levels}, {arg})"

    def table_texts(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Return type, name and entries of the tables, and of the trees that are searched."""
        named = {name: (t.elem, t.values) for name, t in self.tables.items()}
        named |= {f"{name}_tree": (self.tables[name].elem, tree) for name, tree in self.trees.items()}
        return tuple(
            (code(elem), f"{self.f.op}_{name}", tuple(map(self.entry, values)))
            for name, (elem, values) in named.items()
        )

    def entry(self, e: ir.Expr) -> str:
        """Return one entry of a table, a constant."""
        assert isinstance(e, ir.Const)
        return self.dialect.number(e)


def as_tree(table: ir.Table) -> tuple[ir.Expr, ...]:
    """Return a table as a binary tree: node 1 is the root, 2 i and 2 i + 1 are below i; node 0 is nothing.

    What is missing at the end is below nothing.
    """
    levels = len(table.values).bit_length()
    never = ir.const(math.nan if table.elem == FLOAT else limits(table.elem)[1], table.elem)
    nodes: list[ir.Expr] = [never]
    for level in range(levels):
        places = (((2 * i + 1) << (levels - 1 - level)) - 1 for i in range(1 << level))
        nodes += [table.values[at] if at < len(table.values) else never for at in places]
    return tuple(nodes)


def one_more(count: ir.Expr) -> ir.Expr:
    """Return count + 1."""
    return ir.apply("+", count, ir.const(1, INT))


def code(elem: Elem) -> str:
    """Return NumPy's code of the type in which values of `elem` are computed with."""
    return dtype(arithmetic(elem)).str[1:]
