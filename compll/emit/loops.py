"""The inside of one loop: lanes and what they load, and the part that goes block by block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from compll import ir
from compll.emit.expressions import Dialect, LaneWriter, ScalarWriter
from compll.emit.pieces import Load, Packed, Reduction
from compll.emit.positions import NARROW, Bits, bits_of
from compll.emit.ranges import Ranges
from compll.types import BOOL, FLOAT, INT, Elem

if TYPE_CHECKING:
    from compll.emit.blocks import Blocks


class Emitter(Protocol):
    """What the inside of a loop needs to know of the operation that it stands in."""

    dialect: Dialect
    f: ir.Function
    vectors: dict[str, Elem]
    lengths: dict[str, ir.Expr]
    places: dict[str, str]
    tables: dict[str, ir.Table]
    stored_vectors: dict[str, Elem]
    scalar: ScalarWriter

    def ranges(self) -> Ranges:
        """Return the intervals of expressions, of which none is known yet."""

    def place(self, name: str) -> str:
        """Return where a named scalar lives."""

    def load(self, vector: str, block: int = 0) -> Load:
        """Return how a vector is loaded: of a tile, or of a block of so many elements."""

    def load_blocks(self, vector: str, kind: Elem) -> Load:
        """Return how the reductions of blocks are loaded, a block a lane."""

    def reduction(self, s: ir.Reduce | ir.BlockReduce, writer: LaneWriter) -> Reduction:
        """Write what a reduction combines."""

    def splat(self, lanes: str, kind: Elem, text: str) -> str:
        """Return the lanes of a scalar."""

    def field_of_block(self, e: ir.Read, size: int, lanes: str, block: int = 0) -> str:
        """Return the lanes of a field that has one value for each block of `size` elements.

        The lanes are those of a tile, or of a block of `block` elements.
        """

    def value_of_field(self, e: ir.Read, size: int, block: int = 0) -> str:
        """Return such a field as a scalar, where all lanes have the same value."""

    def block_value(self, name: str, kind: Elem) -> str:
        """Return a value of the block at work."""

    def kept_lanes(self, name: str) -> str:
        """Return the lanes of what the reductions of blocks have kept."""

    def spread(self, name: str, kind: Elem, size: int, lanes: str) -> str:
        """Return the lanes of a value of each block of `size` elements."""

    def store_block(self, s: ir.Store, value: str) -> str:
        """Return the statement that stores one value of the block at work, where that is no lane."""

    def store_blocks(self, s: ir.Store, writer: LaneWriter) -> str:
        """Return the statement that stores lanes of one value a block."""

    def where(self, vector: str) -> str:
        """Return where a vector begins."""

    def gather(self, e: ir.Read, lanes: str, position: str, asked: str) -> str:
        """Return the lanes of a vector at computed positions; 0 where they are out of range."""

    def near(self, e: ir.Read, lanes: str, length: str, start: str, bits: Bits, asked: str) -> str:
        """Return the lanes of a vector, from element `first` on, in another order; 0 where out of range."""

    def near_one(self, e: ir.Read, lanes: str, length: str, first: str, size: int, asked: str) -> str:
        """Return element `first` / `size` in all lanes; 0 if it is out of range."""

    def lookup(self, e: ir.Read, lanes: str, position: str) -> str:
        """Return the lanes of a table at positions of 32 bits that are in range."""

    def search(self, e: ir.Search, kind: str, arg: str) -> str:
        """Return how many entries of a table are below, in scalars or lanes."""

    def read_at(self, e: ir.Read | ir.Search, operand: str) -> str:
        """Return one element of a vector, or what a search in a table gives, as a scalar."""


def made_of(e: ir.Expr, may: Callable[[ir.Read], bool], block: int = 0) -> bool:
    """Whether an expression has only scalars, i / `block`, and reads that `may` be, one at least."""
    some = False

    def fits(x: ir.Expr) -> bool:
        nonlocal some
        if isinstance(x, ir.Read):
            some = True
            return may(x)
        if isinstance(x, ir.Const | ir.Scalar | ir.Param | ir.Size) or (block and ir.block_of(x) == block):
            return True
        return isinstance(x, ir.Apply | ir.Convert) and all(fits(c) for c in ir.children(x))

    return fits(e) and some


def is_uniform(e: ir.Expr) -> bool:
    """Whether an expression is made of scalars only, so that it is the same for every element."""
    if isinstance(e, ir.Apply | ir.Convert):
        return all(is_uniform(c) for c in ir.children(e))
    return isinstance(e, ir.Const | ir.Scalar | ir.Param | ir.Size)


def besides(es: Sequence[ir.Expr], e: ir.Expr) -> set[ir.Expr]:
    """Return all that stands in expressions elsewhere than in `e`."""
    found: set[ir.Expr] = set()
    waiting = [x for x in es if x != e]
    while waiting:
        x = waiting.pop()
        if x not in found:
            found.add(x)
            waiting.extend(child for child in ir.children(x) if child != e)
    return found


def within_a_block(size: int, block: int, width: int) -> bool:
    """Whether all `width` lanes, of a tile or of a block of `block` elements, lie in one block of `size`."""
    return size > 0 and (size == block or (size % width == 0 and block % width == 0))


def one_a_block(emitter: Emitter, e: ir.Read, length: ir.Expr) -> int:
    """Return B if a read is at i / B, of a field or numbers in scratch of one value a block; else 0."""
    size, elem = ir.block_of(e.position), emitter.vectors[e.vector]
    kept = e.vector in emitter.places or emitter.stored_vectors.get(e.vector, BOOL) != BOOL
    fits = size and kept and not elem.packed and emitter.lengths.get(e.vector) == ir.blocks(length, size)
    return size if fits else 0


def read_lanes(emitter: Emitter, e: ir.Read | ir.Search, lanes: str, writer: LaneWriter) -> str:
    """Return the lanes of a vector at computed positions, or of what a search in a table gives."""
    if isinstance(e, ir.Search):
        wide = "Int64" if e.arg.type == INT else None  # the entries need not fit narrower lanes
        return emitter.search(e, lanes, writer.write(e.arg, wide))
    if in_table(emitter, e, writer):
        return emitter.lookup(e, lanes, writer.write(e.position, "Int32"))
    return emitter.gather(e, lanes, writer.write(e.position, "Int64"), writer.asked)


def in_table(emitter: Emitter, e: ir.Read, writer: LaneWriter) -> bool:
    """Whether a read is of a table, and at an entry of it whatever the values are."""
    table = emitter.tables.get(e.vector)
    return table is not None and writer.ranges.fits(e.position, 0, len(table.values) - 1)


class Lanes:
    """A lane writer for one loop, with what it loads and the scalars that it splats."""

    def __init__(
        self, emitter: Emitter, b: ir.Pass, block: Blocks | None, known: frozenset[str] | None = None
    ) -> None:
        """Begin a loop; `known` are, for one that reduces blocks, the reductions that it finds done."""
        self.emitter, self.b, self.block, self.known = emitter, b, block, known
        self.stage = known is not None
        self.loads: dict[str, Load] = {}
        self.uniforms: dict[tuple[str, str], tuple[str, str]] = {}  # (scalar, lanes) -> name, declaration
        self.writer = LaneWriter(
            emitter.ranges(), self.read, self.uniform, self.same, emitter.dialect, self.elsewhere
        )

    def declarations(self) -> tuple[str, ...]:
        """Return the declarations of the scalars that the loop splats."""
        return tuple(line for _, line in self.uniforms.values())

    def read(self, e: ir.Read | ir.Search, lanes: str) -> str:
        """Return the lanes of a vector: at the element's own position, at its block, or gathered."""
        emitter = self.emitter
        if isinstance(e, ir.Search):
            return read_lanes(emitter, e, lanes, self.writer)
        if self.own(e):
            self.loads.setdefault(e.vector, emitter.load(e.vector, self.stage_block))
            return f"v_{e.vector}"
        if self.of_block(e):
            return self.read_block(e, lanes)
        if self.start and not in_table(emitter, e, self.writer):
            near = self.near(e, lanes)
            if near is not None:
                return near
        return read_lanes(emitter, e, lanes, self.writer)

    def near(self, e: ir.Read, lanes: str) -> str | None:
        """Return the lanes of a read that one load gives: side by side in some order, or of one block."""
        emitter, elem = self.emitter, self.emitter.vectors[e.vector]
        width, bits = emitter.dialect.width, bits_of(e.position)
        if bits is not None and elem != BOOL and not (elem.packed and bits.distance % width):
            length = self.length(e.vector)
            return emitter.near(e, lanes, length, self.start, bits, self.writer.asked)
        match e.position:
            case ir.Apply("/", (x, ir.Const(size, _)), _) if size > 0 and size % width == 0:
                bits = bits_of(x)
                if (
                    bits is not None
                    and bits.flip >= 0
                    and not bits.distance
                    and not elem.packed
                    and elem != BOOL
                ):
                    first, length = emitter.dialect.first(self.start, bits), self.length(e.vector)
                    return emitter.near_one(e, lanes, length, first, int(size), self.writer.asked)
        return None

    def length(self, vector: str) -> str:
        """Return the name of a vector's length, worked out once before the loop."""
        text = self.emitter.scalar.text(self.emitter.lengths[vector])
        name = f"length_{vector}"
        self.uniforms.setdefault((text, name), (name, self.emitter.dialect.declare_length(name, text)))
        return name

    @property
    def start(self) -> str:
        """The position of the first lane, where that is a multiple of 16 and lanes can change places."""
        if not self.emitter.dialect.block_lanes or self.stage_block % self.emitter.dialect.width:
            return ""
        return self.emitter.dialect.start(stage=self.stage)

    def own(self, e: ir.Read) -> bool:
        """Whether a vector is read along with the loop."""
        return e.position == ir.Position() and self.emitter.lengths.get(e.vector) == self.b.length

    def of_block(self, e: ir.Read) -> bool:
        """Whether a read at i / B finds what this loop has reduced, or a vector of one value a block."""
        if self.block and e.vector in self.block.made:
            return ir.block_of(e.position) == self.b.block
        return one_a_block(self.emitter, e, self.b.length) > 0

    def elsewhere(self, e: ir.Read) -> bool:
        """Whether a read has to look whether its position is in range."""
        return not (self.own(e) or self.of_block(e) or in_table(self.emitter, e, self.writer))

    def read_block(self, e: ir.Read, lanes: str) -> str:
        """Read at i / B: what this loop has reduced the block to, or a field of one value a block."""
        if self.block and e.vector in self.block.made:
            if self.stage:
                own = self.emitter.block_value(f"r_{e.vector}", e.type)
                return self.emitter.splat(lanes, e.type, own)
            return self.emitter.spread(f"r_{e.vector}", e.type, self.b.block, lanes)
        return self.emitter.field_of_block(e, ir.block_of(e.position), lanes, self.stage_block)

    def same(self, e: ir.Expr, lanes: str) -> str | None:
        """Return the lanes of what is the same in all of them and costs less as a scalar; None if it is not.

        That is what scalars give, a block's reductions, or fields that have one value a block.  And bits of
        the position that are known when this is compiled.
        """
        if isinstance(e, ir.Apply | ir.Convert) and is_uniform(e):
            return self.uniform(e, lanes)
        bits = bits_of(e) if self.start and lanes == "Int32" and isinstance(e, ir.Apply) else None
        if bits is not None and 0 <= bits.keep < NARROW and not bits.distance:
            return self.emitter.dialect.known_bits(self.start, bits)
        hoisted = self.block.lanes(e, lanes, self.known) if self.block else None
        if hoisted is None and self.block and not self.stage and e in self.block.kept:
            return self.emitter.kept_lanes(self.block.kept[e])
        if hoisted is not None or not isinstance(e, ir.Apply) or e.type != FLOAT:
            return hoisted
        if not made_of(e, self.one_for_all):
            return None
        emitter = self.emitter

        def read(x: ir.Read | ir.Search, _: str) -> str:
            assert isinstance(x, ir.Read)
            return emitter.value_of_field(x, ir.block_of(x.position), self.stage_block)

        return emitter.splat(lanes, e.type, ScalarWriter(emitter.place, emitter.dialect, read).text(e))

    def one_for_all(self, e: ir.Read) -> bool:
        """Whether a read is of a float field whose one value a block is the same for all lanes at work."""
        size = ir.block_of(e.position)
        one = within_a_block(size, self.stage_block, self.emitter.dialect.width)
        kept = self.of_block(e) and one_a_block(self.emitter, e, self.b.length) > 0
        return e.type == FLOAT and kept and one

    @property
    def stage_block(self) -> int:
        """The size of the blocks that it reduces, 0 where it goes by tiles."""
        return self.b.block if self.stage else 0

    def unpacks(self) -> tuple[Packed, ...]:
        """Return the packed vectors that are loaded."""
        emitter = self.emitter
        packed = (v for v in self.loads if emitter.vectors[v].packed)
        return tuple(Packed(v, emitter.vectors[v].bits, emitter.where(v)) for v in packed)

    def uniform(self, e: ir.Expr, lanes: str) -> str:
        """Return the lanes of a scalar, splatted once before the loop."""
        text = self.emitter.scalar.text(e)
        if (text, lanes) not in self.uniforms:
            own = getattr(e, "name", "n").removeprefix("@")
            name = f"u_{own}" + ("" if lanes == "Float" else f"_{lanes}")
            if name in (taken for taken, _ in self.uniforms.values()):
                name += f"_{len(self.uniforms)}"
            line = self.emitter.dialect.declare(lanes, name, self.emitter.splat(lanes, e.type, text))
            self.uniforms[text, lanes] = name, line
        return self.uniforms[text, lanes][0]
