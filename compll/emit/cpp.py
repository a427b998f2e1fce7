"""Fused IR -> the pieces of a C++ library, as data for the templates in `templates/cpp/`."""

from __future__ import annotations

from collections.abc import Iterator

from compll import ir
from compll.backends import Unit
from compll.emit import headers, render
from compll.emit.blocks import Blocks, block_of_fields, told_by
from compll.emit.divisions import multiply_instead
from compll.emit.expressions import CPP, LANES, Dialect, LaneWriter, ScalarWriter
from compll.emit.loops import Lanes, read_lanes, within_a_block
from compll.emit.pieces import TILE, Combine, FieldText, Load, Operation, Packed, PassText, Reduction, Step
from compll.emit.ranges import Ranges, scalar_type
from compll.emit.selections import Selections
from compll.ir_text import function_text
from compll.ops import COMBINES
from compll.passes import fuse
from compll.types import BOOL, FLOAT, INT, Elem, alignment, arithmetic, scalar_bytes

FRAMES = {"encode": "Encode", "decode": "Decode", "decode_add": "DecodeAdd", "hop": "Hop"}
LANES_OF_A_ROW = 128
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


class Emitter(Selections):
    """Turns one function into an `Operation`.

    The analysis is for every target that works on lanes; the methods under "texts" spell C++.
    """

    dialect: Dialect = CPP

    def __init__(self, typed: ir.Function) -> None:
        self.f = fuse(typed)
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
            case ir.Pass():
                return Step("pass", loop=self.loop(b))
        raise AssertionError(b)

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

    def stored_lanes(self, s: ir.Store, writer: LaneWriter) -> str:
        """Return the lanes of what is stored in whole bytes."""
        value = writer.write(s.body)
        if s.elem == BOOL:
            value = f"bit({value})"
        return (
            self.dialect.canonical(value)
            if s.elem == FLOAT and s.target.kind in ("field", "output")
            else value
        )

    def bits_place(self, target: ir.Target) -> str:
        """Return where packed codes are stored; a field and a vector in scratch may have the same name."""
        return f"k.{'v' if target.kind == 'vector' else 'f'}_{target.name}"

    def patch(self, s: ir.Patch, writer: LaneWriter) -> str:
        """Return the statement that stores lanes at the positions of an index."""
        value = writer.write(s.body)
        if s.elem == FLOAT and s.target.kind == "output":
            value = self.dialect.canonical(value)
        return f"scatter<FULL>({self.target(s)}, {writer.write(s.index, 'Int64')}, {value}, live);"

    # --- texts ----------------------------------------------------------------------------------

    def place(self, name: str) -> str:
        """Return where a named scalar lives."""
        if name in (ir.SCALE, ir.SHARED_SEED):
            return f"k.{name[1:]}"
        return f"p.{name}_" if name in self.params else f"k.{name}_"

    def member(self, name: str, elem: Elem) -> str:
        """Return the declaration of a scalar of the frame."""
        return f"{scalar_type(elem)} {name}_;"

    def assign(self, name: str, elem: Elem, text: str) -> str:
        """Return the statement that keeps a scalar."""
        self.scalars.append(self.member(name, elem))
        return f"k.{name}_ = {text};"

    def put(self, name: str, elem: Elem, text: str) -> str:
        """Return the statement that writes a scalar field."""
        return f"put<{self.dialect.stored(elem)}>({self.field_place(name)}, {text});"

    def get(self, name: str, elem: Elem) -> str:
        """Return the value of a scalar field."""
        mask = f" & {(1 << elem.bits) - 1}" if elem.packed else " != 0" if elem == BOOL else ""
        return f"get<{self.dialect.stored(elem)}>({self.field_place(name)}){mask}"

    def field_place(self, name: str) -> str:
        """Return where a scalar field lies, of the payload that is read or of the one that is written."""
        payload = "item.source" if self.f.op == "hop" and name in self.places else "item.payload"
        return f"{payload} + at.{self.places.get(name, name)}_"

    def unequal(self, a: str, b: str) -> str:
        """Return the condition that two scalars differ."""
        return f"{a} != {b}"

    def functor_name(self, combine: str) -> str:
        """Return a new name for what a reduction combines by."""
        named = "".join(part.capitalize() for part in combine.split("_"))
        return f"{FRAMES[self.f.op]}{named}Of{len(self.combines)}"

    def functor_object(self, combine: Combine) -> str:
        """Return what combines: it holds the frame and the parameters if it captures something of them."""
        return f"{combine.name}{{{'k, p' if combine.captures else ''}}}"

    def splat(self, lanes: str, kind: Elem, text: str) -> str:
        """Return a scalar in all lanes."""
        return f"splat<Mask>(-int32_t({text}))" if kind == BOOL else f"splat<{lanes}>({text})"

    def load(self, vector: str, block: int = 0) -> Load:  # noqa: ARG002
        """Return where the lanes of a vector come from."""
        elem = self.vectors[vector]
        kind = arithmetic(elem)
        lanes = {"float": "Float", "uint32": "UInt32", "uint64": "UInt64"}.get(kind.name, "Int32")
        if kind == INT and elem.bits > 32:
            lanes = "Int64"
        if elem.packed:
            return Load(vector, "Int32", self.where(vector), True, False, elem.bits)
        return Load(vector, lanes, self.where(vector), False, elem == BOOL)

    def vector(self, name: str) -> str:
        """Return where the gradient or a state lies."""
        return f"k.s_{name}" if name in self.f.states else f"k.{name}"

    def block_value(self, name: str, kind: Elem) -> str:  # noqa: ARG002
        """Return a value of the block at work."""
        return f"b.{name}[j]"

    def spread(self, name: str, kind: Elem, size: int, lanes: str) -> str:  # noqa: ARG002
        """Return the lanes of a value of each block of `size` elements."""
        if size % 16:
            value = f"b.{name}[uint64_t(tile * TILE + at + j) / {size} - b.first]"
            return f"each<{lanes}>([&](int j) {{ return {value}; }})"
        place = f"uint64_t(tile * TILE + at) / {size} - b.first"
        if LANES_OF_A_ROW % size == 0:  # what compilers know of a row, they need not work out
            place = f"own + row * {LANES_OF_A_ROW // size} + block * WIDTH / {size}"
        elif TILE % size == 0 or size % TILE == 0:
            place = "own" if size >= TILE else f"own + row / {size // LANES_OF_A_ROW}"
        return f"splat<{lanes}>(b.{name}[{place}])"

    def kept_lanes(self, name: str) -> str:
        """Return the lanes of what the reductions of blocks have kept."""
        return f"load<Float, true>(b.{name} + (tile * TILE - b.begin) + at, WIDTH)"

    def store_block(self, s: ir.Store, value: str) -> str:
        """Return the statement that stores one value of the block at work, where that is no lane."""
        kind = self.dialect.stored(s.elem)
        if s.target.kind == "vector":
            return f"k.v_{s.target.name}[b.first + j] = {value};"
        return f"put<{kind}>(k.f_{s.target.name} + (b.first + j) * sizeof({kind}), {value});"

    def store_blocks(self, s: ir.Store, writer: LaneWriter) -> str:
        """Return the statement that stores lanes of one value a block."""
        return f"store<FULL>({self.target(s)} + b.first + j, {self.stored_lanes(s, writer)}, live);"

    def field_of_block(self, e: ir.Read, size: int, lanes: str, block: int = 0) -> str:
        """Return the lanes of a field that has one value for each block of `size` elements."""
        if within_a_block(size, block, self.dialect.width):
            return f"splat<{lanes}>({self.value_of_field(e, size, block)})"
        place = self.value_of_field(e, size, block, " + (j < live ? j : 0)")
        return f"each<{lanes}>([&](int j) {{ return {place}; }})"

    def value_of_field(self, e: ir.Read, size: int, block: int = 0, lane: str = "") -> str:
        """Return one value of such a field."""
        kind = self.dialect.stored(self.vectors[e.vector])
        at = f"uint64_t({'first' if block else 'tile * TILE'} + at{lane}) / {size}"
        if e.vector in self.places:
            return f"get<{kind}>(k.f_{e.vector} + {at} * sizeof({kind}))"
        return f"k.v_{e.vector}[{at}]"

    def store_packed(self, s: ir.Store, value: str, *, is_mask: bool) -> str:
        """Return the statement that stores codes of a packed field."""
        if s.elem.bits == 1:
            mask = value if is_mask else f"ne({value}, Int32{{}})"
            return f"put_bits(o_{s.target.name} + at / 8, FULL ? {mask} : {mask} & first_lanes(live));"
        code = f"bit({value})" if is_mask else value
        place = f"o_{s.target.name} + at / 8 * {s.elem.bits}"
        return f"put_codes<{s.elem.bits}>({place}, FULL ? {code} : {code} & first_lanes(live));"

    def store_plain(self, s: ir.Store, value: str) -> str:
        """Return the statement that stores lanes of whole bytes."""
        return f"store<FULL>({self.target(s)} + tile * TILE + at, {value}, live);"

    def target(self, s: ir.Store | ir.Patch) -> str:
        """Return the beginning of what is stored to."""
        name = s.target.name
        return {
            "state": f"k.new_{name}",
            "output": "k.gradient",
            "field": f"reinterpret_cast<{self.dialect.stored(s.elem)}*>(k.f_{name})",
            "vector": f"k.v_{name}",
        }[s.target.kind]


def runtime() -> dict[str, str]:
    """Return the headers that generated source includes, by name."""
    return headers("cpp")
