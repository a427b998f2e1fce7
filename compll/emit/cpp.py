"""Fused IR -> the pieces of a C++ library, as data for the templates in `templates/cpp/`."""

from __future__ import annotations

import math
from collections.abc import Iterator

from compll import ir
from compll.backends import Unit
from compll.emit import headers, render
from compll.emit.blocks import Blocks, block_of_fields, told_by
from compll.emit.divisions import multiply_instead
from compll.emit.expressions import CPP, LANES, Dialect, LaneWriter, ScalarWriter
from compll.emit.loops import Lanes, read_lanes
from compll.emit.pieces import (
    TILE,
    Combine,
    FieldText,
    Kept,
    Operation,
    Packed,
    PassText,
    Reduction,
    Step,
)
from compll.emit.ranges import Ranges, scalar_type
from compll.emit.texts import FRAMES, Texts
from compll.ir_text import function_text
from compll.ops import COMBINES
from compll.passes import fuse
from compll.types import FLOAT, INT, alignment, scalar_bytes

ARGUMENTS = ("a", "b")  # of what a reduction combines by; the names of a program are others


def source(unit: Unit) -> str:
    """Return the C++ source of a codec's library."""
    layout, counts = unit.functions[0].layout, unit.functions[0].counts
    named = {c.name for c in counts}
    writer = ScalarWriter(lambda name: f"c.{name}_" if name in named else f"p.{name}_")
    run_time = [p for p in unit.params if not p.static]
    return render(
        "cpp/library.cpp.j2",
        codec=unit.codec,
        gradient=CPP.stored(unit.element),
        suffix=unit.suffix,
        static=[p.name for p in unit.params if p.static],
        params=[(scalar_type(p.elem), p.name) for p in run_time],
        fields=[field_text(f, writer) for f in layout],
        counts=[(c.name, writer.text(c.most)) for c in counts],
        operations=[Emitter(f).operation() for f in unit.functions],
    )


def field_text(f: ir.Field, writer: ScalarWriter) -> FieldText:
    """Return alignment and size of a payload field."""
    if f.length is None:
        return FieldText(f.name, alignment(f.elem, False), str(scalar_bytes(f.elem)))
    length = f"greater<int64_t>(0, {writer.text(f.length)})"
    size = f"({length} * {f.elem.bits} + 7) / 8" if f.elem.packed else f"{length} * {scalar_bytes(f.elem)}"
    return FieldText(f.name, 16, size)


class Emitter(Texts):
    """Turns one function into an `Operation`.

    The analysis is for every target that works on lanes; `Texts` spells C++.
    """

    dialect: Dialect = CPP

    def __init__(self, typed: ir.Function) -> None:
        self.f = fuse(typed, without=self.dialect.without)
        self.vectors = dict(self.f.vectors) | dict.fromkeys(self.f.states, FLOAT)
        fields = (*self.f.layout, *self.f.received)
        self.lengths = {field.name: field.length for field in fields if field.length is not None}
        self.lengths |= dict.fromkeys(("gradient", *self.f.states), ir.Size())
        places = zip(self.f.fields_read, self.f.layout, strict=False)
        self.places = {own.name: there.name for own, there in places}  # fields of the payload that is read
        self.scalar = ScalarWriter(self.place, self.dialect, self.read_at)
        self.params = {p.name for p in self.f.params}
        self.combines: list[Combine] = []
        self.passes: list[PassText] = []
        self.scalars: list[str] = []
        self.to_count = {c.name for c in self.f.counts} if self.f.writes_payload else set()
        if not self.f.writes_payload:
            self.scalars += [self.member(c.name, INT) for c in self.f.counts]
        self.find_stored()
        made = {
            s.name: s.combine.type
            for b in self.f.body
            if isinstance(b, ir.Pass)
            for s in b.sinks
            if isinstance(s, ir.BlockReduce)
        }
        self.vectors |= made
        if "multiply_instead" not in self.dialect.without:
            self.f = multiply_instead(self.f, self.ranges())

    def ranges(self) -> Ranges:
        """Return the intervals of expressions, of which none is known yet."""
        return Ranges(self.vectors, {name: len(t.values) for name, t in self.tables.items()})

    def operation(self) -> Operation:
        """Return the whole operation."""
        f = self.f
        steps = [step for b in f.body for step in self.steps(b)]
        return Operation(
            op=f.op,
            frame=FRAMES[f.op],
            comment=tuple(function_text(f).splitlines()),
            vector_fields=tuple(field.name for field in f.layout if field.length is not None),
            received=tuple((x.name, self.places[x.name]) for x in f.received),
            writes_payload=f.writes_payload,
            states=f.states,
            scalars=tuple(self.scalars),
            combines=tuple(self.combines),
            passes=tuple(self.passes),
            steps=tuple(steps),
            buffers=tuple(self.buffers),
            tables=self.table_texts(),
        )

    def steps(self, b: ir.Binding) -> Iterator[Step]:
        """Yield the statements of one binding; the payload is laid out when its last count is known."""
        match b:
            case ir.Compact() | ir.Select() | ir.Arrange() | ir.Nth() | ir.Ascends():
                yield from self.lowered(b)
            case ir.Table():
                return
            case _:
                yield self.step(b)
        if isinstance(b, ir.Let):
            yield from self.counted(b.name)

    def step(self, b: ir.Binding) -> Step:
        """Return one statement."""
        match b:
            case ir.Let(name, value):
                text = self.scalar.text(value)
                return Step("line", self.assign(name, value.type, text))
            case ir.Put(name, elem, value):
                return Step("line", self.put(name, elem, self.scalar.text(value)))
            case ir.Get(name, source_field, elem):
                return Step("line", self.assign(name, elem, self.get(source_field, elem)))
            case ir.Guard(_, read, expected):
                return Step("guard", self.unequal(self.scalar.text(read), self.scalar.text(expected)))
            case ir.Pass(length, (ir.Store() as s,)) if self.dialect.clears and self.clears(s):
                return Step("line", f"clear({self.target(s)}, {self.scalar.text(length)}, threads);")
            case ir.Pass():
                return Step("pass", loop=self.loop(b))
        raise AssertionError(b)

    @staticmethod
    def clears(s: ir.Sink) -> bool:
        """Whether a store does nothing but set memory to 0, where nothing can stop it."""
        match s:
            case ir.Store(body=ir.Const(value, _)):
                zero = value == 0 and math.copysign(1, value) > 0
                return zero and not s.elem.packed and s.target.kind in ("output", "vector")
        return False

    # --- passes ---------------------------------------------------------------------------------

    def loop(self, b: ir.Pass) -> PassText:
        """Return one loop over memory."""
        size = b.block or block_of_fields(self, b)
        block = Blocks(self, b, size) if size else None
        lanes = Lanes(self, b, block)
        told = [told_by(s, b) if self.dialect.block_lanes else None for s in b.sinks]
        finite = [
            lanes.writer.write(s.body)
            for s, r in zip(b.sinks, told, strict=True)
            if isinstance(s, ir.Finite) and r is None
        ]
        if block:
            block.told = [r.name for r in told if isinstance(r, ir.BlockReduce)]
        reductions = [self.reduction(s, lanes.writer) for s in b.sinks if isinstance(s, ir.Reduce)]
        packs: list[Packed] = []
        keeps = tuple(self.keep(s, lanes.writer) for s in b.sinks if isinstance(s, ir.Keep))
        stores = [
            self.store(s, lanes.writer, packs) if isinstance(s, ir.Store) else self.patch(s, lanes.writer)
            for s in b.sinks
            if isinstance(s, ir.Store | ir.Patch) and s.length == b.length
        ]
        text = PassText(
            name=f"{self.f.op}_pass{len(self.passes)}",
            block=block.text() if block and (b.block or block.hoisted) else None,
            length=self.scalar.text(b.length),
            uniforms=lanes.declarations(),
            unpacks=lanes.unpacks(),
            packs=tuple(packs),
            keeps=keeps,
            random=tuple(draw for _, draw in sorted(lanes.writer.draws.items())),
            reductions=tuple(reductions),
            loads=tuple(lanes.loads.values()),
            position=lanes.writer.position,
            lines=tuple(lanes.writer.lines),
            stores=tuple(stores),
            finite=tuple(finite),
            told=tuple(r.name for r in told if isinstance(r, ir.Reduce)),
            stops=any(isinstance(s, ir.Store) and s.target.kind == "state" for s in b.sinks),
        )
        for r in text.reductions:
            self.reserve(f"{r.name}_tiles", r.type, self.tile_results(self.most_of(b.length)))
        self.passes.append(text)
        return text

    def tile_results(self, length: ir.Expr) -> ir.Expr:
        """Return how many results of tiles there is room for while so many elements are reduced."""
        return ir.blocks(length, TILE)

    @staticmethod
    def named(combine: ir.Combine) -> bool:
        """Whether a reduction is by `add`, `smaller` or `greater` of the language, not by a program's own."""
        a, b = (ir.Scalar(x, combine.type) for x in ARGUMENTS)
        return combine.name in COMBINES and combine.body == ir.apply(COMBINES[combine.name], a, b)

    def reduction(self, s: ir.Reduce | ir.BlockReduce, writer: LaneWriter) -> Reduction:
        """Return one reduction of a loop."""
        kind = s.combine.type
        lanes = writer.lane_type(s.body)
        if kind == INT:
            most = 2**31 // (TILE if s.combine.name == "add" else 1) - 1
            narrow = self.named(s.combine) and writer.ranges.fits(s.body, -most, most)
            lanes = "Int32" if narrow else "Int64"
        value = writer.write(s.body, lanes)
        parts = writer.ranges.of(s.body), writer.ranges.of(s.init)
        functor = self.functor(s.combine, positive=all(p.is_positive() for p in parts))
        if isinstance(s, ir.Reduce):
            self.scalars.append(self.member(s.name, kind))
        return Reduction(s.name, lanes, self.dialect.scalar(kind), functor, self.scalar.text(s.init), value)

    def functor(self, combine: ir.Combine, *, positive: bool = False) -> str:
        """Register what a reduction combines by; return what is called with two values.

        `positive`: neither of them has the sign bit set, unless it is a NaN.
        """
        name = self.functor_name(combine.name)
        kind, body = combine.type, combine.body

        def place(x: str) -> str:
            return x if x in ARGUMENTS else self.place(x)

        scalar = ScalarWriter(place, self.dialect, self.read_at).text(body)
        if self.named(combine):
            if positive and combine.name == "greater" and kind == FLOAT:
                scalar = self.dialect.greater_of_positives("a", "b")
            self.combines.append(Combine(name, "", scalar, "", (), "", captures=False))
            return self.functor_object(self.combines[-1])

        def uniform(e: ir.Expr, lanes: str) -> str:
            if isinstance(e, ir.Scalar) and e.name in ARGUMENTS:
                return e.name
            return self.splat(lanes, e.type, self.scalar.text(e))

        writer = LaneWriter(
            self.ranges(),
            lambda e, lanes: read_lanes(self, e, lanes, writer),
            uniform,
            dialect=self.dialect,
            elsewhere=lambda _: True,
        )
        lanes = LANES[kind.name]
        result = writer.write(body, lanes)
        captures = any(
            isinstance(x, ir.Param | ir.Size | ir.Read)
            or (isinstance(x, ir.Scalar) and x.name not in ARGUMENTS)
            for x in ir.walk(body)
        )
        self.combines.append(
            Combine(name, self.dialect.scalar(kind), scalar, lanes, tuple(writer.lines), result, captures)
        )
        return self.functor_object(self.combines[-1])

    def store(self, s: ir.Store, writer: LaneWriter, packs: list[Packed]) -> str:
        """Return the statement that stores lanes."""
        value = writer.write(s.body)
        if s.elem.packed:
            packs.append(Packed(s.target.name, s.elem.bits, self.bits_place(s.target)))
            return self.store_packed(s, value, is_mask=writer.lane_type(s.body) == "Mask")
        return self.store_plain(s, self.stored_lanes(s, writer))

    def keep(self, s: ir.Keep, writer: LaneWriter) -> Kept:
        """Return what a loop keeps of the elements where something holds."""
        values = tuple((name, writer.write(e)) for name, e in s.carried)
        return Kept(s.name, self.granules[s.name], writer.write(s.body), values)

    def patch(self, s: ir.Patch, writer: LaneWriter) -> str:
        """Return the statement that stores lanes at the positions of an index."""
        value = writer.write(s.body)
        if s.elem == FLOAT and s.target.kind == "output":
            value = self.dialect.canonical(value)
        return f"scatter<FULL>({self.target(s)}, {writer.write(s.index, 'Int64')}, {value}, live);"


def runtime() -> dict[str, str]:
    """Return the headers that generated source includes, by name."""
    return headers("cpp")
