"""Fused IR -> the pieces of a Python module for Numba, as data for the templates in `templates/numba/`.

The analysis is the one of the C++ emitter; here stands what Python spells differently.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from compll import ir
from compll.backends import Unit
from compll.emit import render
from compll.emit.cpp import Emitter
from compll.emit.expressions import LANES, Dialect, LaneWriter
from compll.emit.numba_selections import NumbaSelections
from compll.emit.pieces import CHUNK, Combine, FieldText, Load, Operation, PassText, Reduction, Step
from compll.emit.positions import Bits
from compll.emit.ranges import Interval
from compll.types import BOOL, FLOAT, INT, Elem, alignment, arithmetic, dtype, scalar_bytes

SCALARS = {"float": "f32", "int": "i64", "uint32": "u32", "uint64": "u64", "bool": "bit1"}
KEPT = {
    "Float": "f32",
    "Int32": "i64",
    "Int64": "i64",
    "UInt32": "u32",
    "UInt64": "u64",
}  # in memory
ONE = {"Float": "f32", "Int32": "i32", "Int64": "i64", "UInt32": "u32", "UInt64": "u64"}  # lanes -> a lane


class Python(Dialect):
    """How the functions of `compll.backends.numba_runtime` are called."""

    backend = "numba"
    clears = False
    width = 32

    def number(self, e: ir.Const) -> str:
        """Return a constant: a decimal with all digits is the same float32."""
        if e.type == BOOL:
            return str(bool(e.value))
        return repr(float(e.value)) if e.type == FLOAT else str(int(e.value))

    def literal(self, e: ir.Const) -> str:
        """Return a constant as a scalar of its type."""
        return self.splat(self.scalar(e.type), e)

    def splat(self, lanes: str, e: ir.Const) -> str:
        """Return a constant in all lanes."""
        return f"splat({lanes}, {self.number(e)})"

    def zero(self, kind: str) -> str:
        """Return 0 of a type of scalars or lanes."""
        return f"splat({kind}, 0)"

    def call(self, function: str, kind: str, *args: str) -> str:
        """Return a call of a function that is told the type of its result."""
        return f"{function.removesuffix('_one')}({', '.join((kind, *args))})"

    def declare(self, kind: str, name: str, text: str) -> str:  # noqa: ARG002
        """Return the statement that names a value."""
        return f"{name} = {text}"

    def scalar(self, elem: Elem) -> str:
        """Return the type of scalars in which values of `elem` are computed with."""
        return SCALARS[arithmetic(elem).name]

    def stored(self, elem: Elem) -> str:
        """Return the type of one element in memory."""
        kinds = {"float": "f", "bfloat": "bf", "int": "i"}
        return f"{kinds.get(elem.kind, 'u')}{max(8, elem.bits)}"

    def start(self, *, stage: bool) -> str:  # noqa: ARG002
        """Return the position of the first lane at work."""
        return "start + at"

    def first(self, start: str, bits: Bits) -> str:
        """Return what becomes of the position of the first lane."""
        keep, flip = bits.rest(self.width)
        return f"(({start} & {keep}) ^ {flip}) + {bits.distance}"

    def order(self, bits: Bits) -> str:
        """Return the bits of the lanes' numbers that are kept, and those that are flipped."""
        return f"{bits.keep & self.width - 1}, {bits.flip & self.width - 1}"

    def known_bits(self, start: str, bits: Bits) -> str:
        """Return lanes of what becomes of their positions, which 32 bits hold."""
        return f"numbered(Int32, {self.first(start, bits)}, {self.order(bits)})"

    def declare_length(self, name: str, text: str) -> str:
        """Return the statement that names a length."""
        return f"{name} = native({text})"

    def size(self) -> str:
        """Return the number of elements of the gradient."""
        return "one(k.n)"

    def block_index(self) -> str:
        """Return the number of the block at work."""
        return "one(block0 + j)"

    def canonical(self, x: str) -> str:
        """Return the bits of a float as they are stored."""
        return f"float_bits({x})"

    def live(self) -> str:
        """Return which of the lanes at work there are."""
        return "first_lanes(live)"

    def lazy(self, op: str, texts: Sequence[str]) -> str:
        """Return a condition on scalars that evaluates no more than it has to."""
        a, b = texts[0], texts[1]
        if op == "select":
            return f"({b} if native({a}) else {texts[2]})"
        return f"({b} if native({a}) else {a})" if op == "&&" else f"({a} if native({a}) else {b})"

    def random_row(self, name: str) -> str:
        """Return the random bits of the lanes at work, of those that a tile holds under a name."""
        return f"row_of({name}, row)"

    def bounds(self, interval: Interval, elem: Elem) -> tuple[str, str]:  # noqa: ARG002
        """Return the ends of an interval of integers that are converted to a type."""
        return str(int(interval.low)), str(int(interval.high))


PYTHON = Python()


def source(unit: Unit) -> str:
    """Return the Python source of a codec's module."""
    return render(
        "numba/library.py.j2",
        codec=unit.codec,
        one=ONE,
        kept_as=KEPT,
        wide={one: lanes for lanes, one in ONE.items()},
        static=[p.name for p in unit.params if p.static],
        operations=[NumbaEmitter(f).pieces() for f in unit.functions],
    )


@dataclass(frozen=True)
class Segment:
    """What one step does: it ends the loop before, goes on, and says how many tiles its own `work` has.

    That is the text of a loop, over memory if it has a `loop`, with the tiles that one thread takes at least;
    or of a selection.
    """

    folds: tuple[Reduction, ...]
    steps: tuple[Step, ...]
    loop: PassText | None = None
    work: str = ""
    tiles: str = "OK"


class NumbaEmitter(NumbaSelections, Emitter):
    """Spells an operation in Python.  `k` is its frame, a record; scalars in it are numbers of Numba's."""

    dialect = PYTHON

    def __init__(self, typed: ir.Function) -> None:
        """Begin with no functions to combine by, and no trees to search."""
        super().__init__(typed)
        self.trees, self.joins = {}, []
        self.functors: list[tuple[ir.Combine, bool, str]] = []

    def pieces(self) -> tuple[NumbaEmitter, Operation, list[FieldText], list[tuple[str, str]], list[Segment]]:
        """Return what the template lays out."""
        o = self.operation()
        return self, o, self.fields(), self.counts(), list(self.segments(o.steps))

    def segments(self, steps: Sequence[Step]) -> Iterator[Segment]:
        """Yield the parts of an operation between its loops and selections."""
        before: PassText | None = None
        lines: list[Step] = []
        for step in (*steps, None):
            if step is not None and step.kind not in ("pass", "selection"):
                lines.append(step)
                continue
            folds = before.reductions if before else ()
            if step is None:
                if folds or lines:
                    yield Segment(folds, tuple(lines))
                return
            work, tiles = step.text, "tiles_of(k.length)"
            if step.loop:
                block = step.loop.block
                work = f"({step.loop.name}, {block.chunk if block else CHUNK})"
                tiles = f"(max(k.length, 0) + {block.span - 1}) // {block.span}" if block else tiles
            yield Segment(folds, tuple(lines), step.loop, work, tiles)
            before, lines = step.loop, []

    def loop(self, b: ir.Pass) -> PassText:
        """Return one loop over memory, or that it sets memory to 0."""
        text = super().loop(b)
        match b.sinks:
            case (ir.Store() as s,) if self.clears(s):
                self.passes[-1] = text = replace(text, clears=(self.target(s), scalar_bytes(s.elem)))
        return text

    def counts(self) -> list[tuple[str, str]]:
        """Return the names of the payload's counts, and the most that each can be."""
        return [(c.name, f"native({self.scalar.text(c.most)})") for c in self.f.counts]

    def run_time(self) -> list[tuple[str, str]]:
        """Return names and NumPy types of the run-time parameters."""
        return [(p.name, str(dtype(arithmetic(p.elem)))) for p in self.f.params if not p.static]

    def fields(self) -> list[FieldText]:
        """Return the places of the payload's fields."""
        out = []
        for field in self.f.layout:
            if field.length is None:
                out.append(FieldText(field.name, alignment(field.elem, False), str(scalar_bytes(field.elem))))
                continue
            count = f"max(0, native({self.scalar.text(field.length)}))"
            size = (
                f"({count} * {field.elem.bits} + 7) // 8"
                if field.elem.packed
                else f"{count} * {scalar_bytes(field.elem)}"
            )
            out.append(FieldText(field.name, 16, size))
        return out

    def place(self, name: str) -> str:
        """Return a scalar of the frame."""
        if name in (ir.SCALE, ir.SHARED_SEED):
            return f"one(k.{name[1:]})"
        return f"one(k.p_{name})" if name in self.params else f"one(k.{name}_)"

    def member(self, name: str, elem: Elem) -> str:
        """Return a member of the frame's record."""
        return f'("{name}_", "{dtype(arithmetic(elem))}")'

    def assign(self, name: str, elem: Elem, text: str) -> str:
        """Return the statement that keeps a scalar."""
        self.scalars.append(self.member(name, elem))
        return f"k.{name}_ = native({text})"

    def written(self, elem: Elem, value: str) -> tuple[str, str]:
        """Return type and text of a value as a payload holds it: canonical floats are bits."""
        return ("u32", self.dialect.canonical(value)) if elem == FLOAT else (self.dialect.stored(elem), value)

    def put(self, name: str, elem: Elem, text: str) -> str:
        """Return the statement that writes a scalar field."""
        kind, value = self.written(elem, text)
        return f"store({kind}, k.payload + k.at_{name}, 0, {value}, WHOLE)"

    def get(self, name: str, elem: Elem) -> str:
        """Return the value of a scalar field."""
        kind = "i64" if elem == BOOL else self.dialect.scalar(elem)
        payload = "k.source" if self.f.op == "hop" else "k.payload"
        raw = f"load({kind}, {self.dialect.stored(elem)}, {payload} + k.at_{self.places[name]}, 0, WHOLE)"
        if elem == BOOL:
            return f"ne({raw}, splat(i64, 0))"
        return f"{raw} & splat({kind}, {(1 << elem.bits) - 1})" if elem.packed else raw

    def unequal(self, a: str, b: str) -> str:
        """Return the condition that two scalars differ."""
        return f"native(ne({a}, {b}))"

    def block_value(self, name: str, kind: Elem) -> str:
        """Return a value of the block at work."""
        own = self.dialect.scalar(kind)
        return f"load({own}, {own}, b_{name}, j, WHOLE)"

    def spread(self, name: str, kind: Elem, size: int, lanes: str) -> str:
        """Return the lanes of a value of each block of `size` elements."""
        own = self.dialect.scalar(kind)
        return f"per_block({lanes}, {own}, b_{name}, start + at, {size}, block0, live, WIDTH)"

    def kept_lanes(self, name: str) -> str:
        """Return the lanes of what the reductions of blocks have kept."""
        return f"load(Float, f32, {name}, start + at - begin, WHOLE)"

    def load_blocks(self, vector: str, kind: Elem) -> Load:
        """Return how the reductions of blocks are loaded, a block a lane."""
        lanes, own = LANES[kind.name], self.dialect.scalar(kind)
        return Load(vector, lanes, f"load({lanes}, {own}, b_r_{vector}, at, WHOLE)", True, False)

    def store_blocks(self, s: ir.Store, writer: LaneWriter) -> str:
        """Return the statement that stores lanes of one value a block."""
        value = self.stored_lanes(s, writer)
        return f"store({self.kept(s)}, {self.target(s)}, start + at, {value}, live)"

    def store_block(self, s: ir.Store, value: str) -> str:
        """Return the statement that stores one value of the block at work."""
        kind = self.dialect.stored(s.elem)
        if s.target.kind == "field":
            kind, value = self.written(s.elem, value)
        return f"store({kind}, {self.target(s)}, block0 + j, {value}, WHOLE)"

    def field_of_block(self, e: ir.Read, size: int, lanes: str, block: int = 0) -> str:
        """Return the lanes of a field that has one value for each block of `size` elements."""
        elem = self.vectors[e.vector]
        base, within = self.where(e.vector), block or "WIDTH"
        args = f"{self.dialect.stored(elem)}, {base}, start + at, {size}, 0, live, {within}"
        if elem == BOOL:
            return f"ne(per_block(Int32, {args}), splat(Int32, 0))"
        return f"per_block({lanes}, {args})"

    def value_of_field(self, e: ir.Read, size: int, block: int = 0, lane: str = "") -> str:  # noqa: ARG002
        """Return one value of such a field."""
        kind = self.dialect.stored(self.vectors[e.vector])
        place = f"min(start + at, k.length - 1) // {size}"  # lanes that do not exist read what does
        return f"load({self.dialect.scalar(e.type)}, {kind}, {self.where(e.vector)}, {place}, WHOLE)"

    def functor(self, combine: ir.Combine, *, positive: bool = False) -> str:
        """Return the name of what a reduction combines by; equal ones are compiled once."""
        for *have, name in self.functors:
            if have == [combine, positive]:
                return name
        self.functors.append((combine, positive, super().functor(combine, positive=positive)))
        return self.functors[-1][-1]

    def functor_object(self, combine: Combine) -> str:
        """Return the name of a function: every one takes the frame."""
        return combine.name

    def functor_name(self, combine: str) -> str:
        """Return the name of what a reduction combines by."""
        return f"{self.f.op}_{combine}_{len(self.combines)}"

    def splat(self, lanes: str, kind: Elem, text: str) -> str:  # noqa: ARG002
        """Return a scalar in all lanes."""
        return f"splat({lanes}, {text})"

    def load(self, vector: str, block: int = 0) -> Load:
        """Return how the lanes of a vector are loaded."""
        elem = self.vectors[vector]
        kind = arithmetic(elem)
        lanes = LANES[kind.name] if kind != INT or elem.bits > 32 else "Int32"
        base = self.where(vector)
        if elem.packed:
            unpack = "unpack" if block * elem.bits % 8 == 0 else "unpack_any"
            return Load(vector, lanes, f"{unpack}({elem.bits}, {base}, start + at, live)", True, False)
        if elem == BOOL:
            text = f"ne(stream(Int32, u8, {base}, start + at, live), splat(Int32, 0))"
            return Load(vector, "Mask", text, False, False)
        text = f"stream({lanes}, {self.dialect.stored(elem)}, {base}, start + at, live)"
        return Load(vector, lanes, text, False, False)

    def store_packed(self, s: ir.Store, value: str, *, is_mask: bool) -> str:  # noqa: ARG002
        """Return the statement that packs codes."""
        return f"pack({s.elem.bits}, {self.bits_place(s.target)}, start + at, {value}, live)"

    def store_plain(self, s: ir.Store, value: str) -> str:
        """Return the statement that stores lanes; canonical floats are bits."""
        return f"store({self.kept(s)}, {self.target(s)}, start + at, {value}, live)"

    def patch(self, s: ir.Patch, writer: LaneWriter) -> str:
        """Return the statement that stores lanes at the positions of an index."""
        value = writer.write(s.body)
        if s.elem == FLOAT and s.target.kind == "output":
            value = self.dialect.canonical(value)
        index = writer.write(s.index, "Int64")
        return f"scatter({self.kept(s)}, {self.target(s)}, {index}, {value}, live)"

    def kept(self, s: ir.Store | ir.Patch) -> str:
        """Return the type in which an element is stored: a float that leaves the program as its bits."""
        stored = self.dialect.stored(s.elem)
        return "u32" if s.elem == FLOAT and s.target.kind in ("field", "output") else stored

    def target(self, s: ir.Store | ir.Patch) -> str:
        """Return the address of what is stored to."""
        name = s.target.name
        return {
            "state": f"k.new_{name}",
            "output": "k.gradient",
            "field": f"k.f_{name}",
            "vector": f"k.v_{name}",
        }[s.target.kind]
