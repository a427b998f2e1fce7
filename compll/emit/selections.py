"""Selections as text: scratch vectors and their sizes, what works on them, reads at computed positions."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator

from compll import ir
from compll.emit.expressions import Dialect, ScalarWriter
from compll.emit.pieces import CHUNK, TILE, Buffer, Step
from compll.emit.positions import Bits
from compll.emit.ranges import scalar_type
from compll.types import BOOL, INT, UINT8, UINT32, Elem, arithmetic

BINS = 2048
PARTS = 16
"""A radix selection counts digits of 11 bits, in so many parts of a vector at once."""


class Selections(ABC):
    """The part of an emitter that is about scratch vectors.  The texts are C++; others override them."""

    dialect: Dialect
    f: ir.Function
    vectors: dict[str, Elem]
    lengths: dict[str, ir.Expr]
    places: dict[str, str]
    scalar: ScalarWriter
    scalars: list[str]
    to_count: set[str]

    def find_stored(self) -> None:
        """Enter the vectors in scratch memory, and the tables: their types and lengths."""
        self.stored_vectors: dict[str, Elem] = {}
        self.tables: dict[str, ir.Table] = {}
        self.lets = {b.name: b.value for b in self.f.body if isinstance(b, ir.Let)}
        self.most = {c.name: c.most for c in self.f.counts}
        self.buffers: list[Buffer] = []
        self.granules: dict[str, int] = {}  # what a loop keeps -> tiles of one part of it
        for b in self.f.body:
            match b:
                case ir.Pass(_, sinks, block):
                    for s in sinks:
                        if isinstance(s, ir.Store) and s.target.kind == "vector":
                            self.enter(s.target.name, s.elem, s.length)
                        elif isinstance(s, ir.Keep):
                            self.enter_kept(s, block)
                case ir.Compact(name, count, _, length, limit, carried):
                    self.most[count] = length if limit is None else _clamped(limit, length)
                    for vector, elem in ((name, INT), *((v, read.type) for v, read in carried)):
                        self.enter(vector, elem, ir.Scalar(count, INT))
                case ir.Select(name, _, _, _, count, _):
                    self.enter(name, INT, count)
                case ir.Arrange(name, _, values, length, _):
                    self.vectors[name], self.lengths[name] = values.type, length
                    self.stored_vectors[name] = values.type
                case ir.Table(name, elem, values):
                    self.vectors[name], self.lengths[name] = elem, ir.const(len(values), INT)
                    self.tables[name] = b

    def enter(self, name: str, elem: Elem, length: ir.Expr) -> None:
        """Enter one vector, and reserve memory for the most elements that it can have."""
        self.vectors[name], self.lengths[name] = elem, length
        self.stored_vectors[name] = elem
        size, kind = self.bound(length), self.dialect.stored(elem)
        if elem.packed:  # of bits, whole words
            words = ir.blocks(ir.apply("*", size, ir.const(elem.bits, INT)), 64)
            size, kind = ir.apply("*", words, ir.const(8, INT)), self.dialect.stored(UINT8)
        self.reserve(f"v_{name}", kind, size)

    def enter_kept(self, s: ir.Keep, block: int) -> None:
        """Reserve memory for what a loop keeps: a part for each stretch that one thread goes through."""
        span = math.lcm(block or TILE, TILE)
        granule = self.granules[s.name] = max(CHUNK * TILE // span, 1) * span // TILE
        parts, room = self.parts_of(s.length, granule)
        self.reserve(f"{s.name}_found", self.dialect.stored(INT), parts)
        self.reserve(f"{s.name}_at", self.dialect.stored(UINT32), room)
        for name, e in s.carried:
            self.reserve(f"{name}_kept", self.dialect.scalar(e.type), room)

    def reserve(self, member: str, kind: str, most: ir.Expr) -> None:
        """Reserve scratch memory for so many elements under a member of the frame."""
        self.buffers.append(Buffer(member, kind, self.scalar.text(most), most))

    # --- sizes that the host knows ----------------------------------------------------------------

    def bound(self, e: ir.Expr) -> ir.Expr:
        """Return the most that a length can be, from n and parameters: the checker takes no other lengths."""
        most = self._limit(e, most=True)
        assert most is not None, f"a length without bound: {e}"
        return most

    def _limit(self, e: ir.Expr, *, most: bool) -> ir.Expr | None:
        """Return what an integer is at most, or at least; None if nobody knows."""
        host = self._host(e)
        if host is not None:
            return host
        match e:
            case ir.Scalar(name, _) if name in self.most:
                return self.bound(self.most[name]) if most else ir.const(0, INT)
            case ir.Scalar(name, _) if name in self.lets:
                return self._limit(self.lets[name], most=most)
            case ir.Apply(("min" | "max") as op, args, _):
                known = [x for x in (self._limit(a, most=most) for a in args) if x is not None]
                enough = 1 if most == (op == "min") else 2
                return ir.apply(op, *known) if len(known) == 2 else known[0] if len(known) == enough else None
            case ir.Apply(("+" | "-") as op, (a, b), _):
                sides = self._limit(a, most=most), self._limit(b, most=most == (op == "+"))
                return None if sides[0] is None or sides[1] is None else ir.apply(op, sides[0], sides[1])
            case ir.Apply(("*" | "/") as op, (a, ir.Const(value, _) as b), _) if value > 0:
                side = self._limit(a, most=most)
                return None if side is None else ir.apply(op, side, b)
        return None

    def _host(self, e: ir.Expr) -> ir.Expr | None:
        """Return an expression of n and parameters alone, with the names of scalars put in."""

        def put_in(x: ir.Expr) -> ir.Expr | None:
            return self._host(self.lets[x.name]) if isinstance(x, ir.Scalar) and x.name in self.lets else None

        whole = ir.rewrite(e, put_in)
        known = (ir.Const, ir.Param, ir.Size, ir.Apply, ir.Convert)
        return whole if all(isinstance(x, known) for x in ir.walk(whole)) else None

    # --- what works on scratch vectors ------------------------------------------------------------

    def lowered(self, b: ir.Lowered) -> Iterator[Step]:
        """Yield the statements of what a selection became."""
        match b:
            case ir.Compact(name, count, kept, length, limit, carried):
                most = "INT64_MAX" if limit is None else self.scalar.text(limit)
                args = f"{self.scalar.text(length)}, {most}, k.{kept.vector}_found, threads"
                args += f", k.v_{name}, k.{kept.vector}_at"
                args += "".join(f", k.v_{vector}, k.{read.vector}_kept" for vector, read in carried)
                self.scalars.append(self.member(count, INT))
                yield Step("line", f"k.{count}_ = join<{self.granules[kept.vector]}>({args});")
                yield from self.counted(count)
            case ir.Select(name, keys, length, k, _, block):
                args = f"k.v_{keys.vector}, {self.scalar.text(length)}, {self.scalar.text(k)}"
                if block:
                    yield Step("line", f"select_in_blocks({args}, {block}, k.v_{name}, threads);")
                    return
                tiles = ir.apply("*", self.tiles_of(length), ir.const(2, INT))
                size = ir.apply("+", tiles, ir.const(PARTS * BINS, INT))
                work = self.work(f"{name}_work", "int64_t", size)
                args += f", k.v_{name}, {work}, {self.sampled(name, keys, length)}, threads"
                yield Step("line", f"select_least({args});")
            case ir.Arrange(name, keys, values, length, block):
                key, value = scalar_type(keys.type), scalar_type(values.type)
                spare_keys = self.work(f"{name}_spare_keys", key, self.most_of(length))
                spare = self.work(f"{name}_spare", value, self.most_of(length))
                args = f"{spare_keys}, {spare}, {self.scalar.text(length)}, {block}, threads"
                yield Step("line", f"arrange(k.v_{keys.vector}, k.v_{values.vector}, {args});")
                self.alias(name, values.vector, value)
            case ir.Nth(name, keys, values, length, rank):
                self.scalars.append(self.member(name, values.type))
                args = f"{self.scalar.text(length)}, {self.scalar.text(rank)}, k.outside"
                yield Step("line", f"k.{name}_ = nth(k.v_{keys.vector}, k.v_{values.vector}, {args});")
            case ir.Ascends(ir.Read(index), count, length, checked):
                args = f"k.v_{index}, {self.scalar.text(count)}, {self.scalar.text(length)}"
                yield Step("refusal", f"!ascends({args})", status="REFUSED" if checked else "OUT_OF_RANGE")

    def sampled(self, name: str, keys: ir.Read, length: ir.Expr) -> str:
        """Reserve memory for those keys that may be among the least: parts to keep them in, and a quarter."""
        key, parts, room = scalar_type(keys.type), *self.parts_of(length, CHUNK)
        quarter = ir.apply("/", self.most_of(length), ir.const(4, INT))
        kept = ("found", "int64_t", parts), ("places", "uint32_t", room), ("kept", key, room)
        joined = ("at", "int64_t", quarter), ("keys", key, quarter)
        members = [self.work(f"{name}_near_{what}", kind, most) for what, kind, most in (*kept, *joined)]
        return f"Near<{key}>{{{', '.join(members)}}}"

    def parts_of(self, length: ir.Expr, granule: int) -> tuple[ir.Expr, ir.Expr]:
        """Return how many parts of so many tiles there are, and the room for what is kept in them."""
        most = self.most_of(length)
        parts = ir.blocks(most, granule * TILE)
        return parts, ir.apply("+", most, ir.apply("*", parts, ir.const(self.dialect.width, INT)))

    def counted(self, name: str) -> Iterator[Step]:
        """Lay the payload out when the last of its counts is known."""
        if name in self.to_count:
            self.to_count.remove(name)
            if not self.to_count:
                yield Step("layout")

    def work(self, member: str, kind: str, most: ir.Expr) -> str:
        """Reserve memory that one selection works in; return how it is named."""
        self.reserve(member, kind, most)
        return f"k.{member}"

    def most_of(self, length: ir.Expr) -> ir.Expr:
        """Return the most elements that a vector can have."""
        return ir.apply("max", self.bound(length), ir.const(0, INT))

    def tiles_of(self, length: ir.Expr) -> ir.Expr:
        """Return the most tiles that a vector can have."""
        return ir.blocks(self.most_of(length), TILE)

    def alias(self, name: str, of: str, kind: str) -> None:
        """Give what has been sorted in its place a name of its own."""
        self.buffers.append(Buffer(f"v_{name}", kind, f"k.v_{of}"))

    # --- reads at computed positions --------------------------------------------------------------

    def where(self, vector: str) -> str:
        """Return where a vector begins."""
        elem = self.vectors[vector]
        if vector in self.tables:
            return f"{self.f.op}_{vector}"
        if vector in self.stored_vectors:
            return f"k.v_{vector}"
        if vector in self.places:
            return (
                f"k.f_{vector}"
                if elem.packed
                else f"reinterpret_cast<const {self.dialect.stored(elem)}*>(k.f_{vector})"
            )
        return self.vector(vector)

    def gather(self, e: ir.Read, lanes: str, position: str, asked: str) -> str:
        """Return the lanes of a vector at computed positions; 0 where they are out of range."""
        elem = self.vectors[e.vector]
        args = f"{self.where(e.vector)}, {self.length_text(e.vector)}, {position}, {asked}, k.outside"
        if elem.packed:
            return f"gather_bits<{lanes}, {elem.bits}>({args})"
        if elem == BOOL:
            return f"ne(gather<Int32>({args}), Int32{{}})"
        return f"gather<{lanes}>({args})"

    def near(self, e: ir.Read, lanes: str, length: str, start: str, bits: Bits, asked: str) -> str:
        """Return the lanes of a vector at positions that a load gives in some order; 0 where out of range."""
        first, order = self.dialect.first(start, bits), self.dialect.order(bits)
        args = f"{self.where(e.vector)}, {length}, {first}, {order}, {asked}, k.outside"
        elem = self.vectors[e.vector]
        return f"near_codes<{lanes}, {elem.bits}>({args})" if elem.packed else f"near<{lanes}>({args})"

    def near_one(self, e: ir.Read, lanes: str, length: str, first: str, size: int, asked: str) -> str:
        """Return element `first` / `size` in all lanes; 0 if it is out of range."""
        return f"near_one<{lanes}>({self.where(e.vector)}, {length}, ({first}) / {size}, {asked}, k.outside)"

    def lookup(self, e: ir.Read, lanes: str, position: str) -> str:
        """Return the lanes of a table at positions of 32 bits that are in range."""
        return f"lookup<{lanes}, {self.where(e.vector)}>({position})"

    def read_at(self, e: ir.Read | ir.Search, operand: str) -> str:
        """Return one element of a vector, or what a search in a table gives, as a scalar."""
        if isinstance(e, ir.Search):
            return self.search(e, "int64_t", operand)
        elem = self.vectors[e.vector]
        args = f"{self.where(e.vector)}, {self.length_text(e.vector)}, {operand}, k.outside"
        if elem.packed:
            return f"read_bits<{elem.bits}>({args})"
        kind = scalar_type(arithmetic(elem))
        return f"(read_at<uint8_t>({args}) != 0)" if elem == BOOL else f"read_at<{kind}>({args})"

    def length_text(self, vector: str) -> str:
        """Return how many elements a vector has."""
        return self.scalar.text(self.lengths[vector])

    def search(self, e: ir.Search, kind: str, arg: str) -> str:
        """Return how many entries of a table are below, in scalars or lanes."""
        return f"search<{kind}, {self.where(e.table)}>({arg})"

    def table_texts(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Return type, name and entries of the tables."""
        return tuple(
            (scalar_type(t.elem), f"{self.f.op}_{name}", tuple(self.scalar.text(v) for v in t.values))
            for name, t in self.tables.items()
        )

    # --- of the emitter ---------------------------------------------------------------------------

    @abstractmethod
    def member(self, name: str, elem: Elem) -> str:
        """Return the declaration of a scalar of the frame."""

    @abstractmethod
    def vector(self, name: str) -> str:
        """Return where the gradient or a state lies."""


def _clamped(limit: ir.Expr, length: ir.Expr) -> ir.Expr:
    return ir.apply("min", ir.apply("max", limit, ir.const(0, INT)), length)
