"""Fused IR -> the pieces of a C++ library, as data for the templates in `templates/cpp/`."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from compll import ir
from compll.backends import Unit
from compll.emit import headers, render
from compll.emit.expressions import LANES, LaneWriter, ScalarWriter, not_built, not_built_type
from compll.emit.ranges import Ranges, scalar_type, storage
from compll.errors import BackendError
from compll.ir_text import function_text
from compll.ops import COMBINES
from compll.passes import fuse
from compll.types import BOOL, FLOAT, INT, Elem, alignment, arithmetic, scalar_bytes

TILE = 1024


@dataclass(frozen=True)
class Combine:
    """The functor of a reduction, for scalars and for lanes; a named one (`add`) is for every lane type."""

    name: str
    type: str
    scalar: str
    lanes: str
    lines: tuple[str, ...]
    result: str


@dataclass(frozen=True)
class Reduction:
    """A reduction of one pass: accumulator lanes, tile results, and the scalar that it ends in."""

    name: str
    lanes: str
    type: str
    combine: str
    init: str
    value: str


@dataclass(frozen=True)
class Load:
    """The lanes of one vector: where they come from."""

    name: str
    lanes: str
    source: str
    whole: bool
    is_bool: bool


@dataclass(frozen=True)
class Packed:
    """Codes of a sub-byte field, held in bytes for one tile."""

    name: str
    width: int


@dataclass(frozen=True)
class Stage:
    """The reductions of a block that need no other one of the same block: one loop over its elements."""

    uniforms: tuple[str, ...]
    loads: tuple[Load, ...]
    position: bool
    lines: tuple[str, ...]
    reductions: tuple[Reduction, ...]


@dataclass(frozen=True)
class BlockText:
    """What a loop by block does with a block before its elements are stored.

    `span` elements are worked on at once: whole blocks and whole tiles, `most` blocks.  `hoisted` are
    values that are the same for a whole block; `stores` write one value a block.
    """

    size: int
    span: int
    stages: tuple[Stage, ...]
    hoisted: tuple[tuple[str, str, str], ...]
    stores: tuple[str, ...]

    @property
    def most(self) -> int:
        """How many blocks are in a span."""
        return self.span // self.size

    @property
    def known(self) -> int:
        """The elements of a whole block where the compiler may know them: a multiple of 16, up to a tile."""
        return self.size if self.size % 16 == 0 and self.size <= TILE else 0

    @property
    def chunk(self) -> int:
        """How many spans a thread takes at once."""
        return max(1, 64 * TILE // self.span)


@dataclass(frozen=True)
class PassText:
    """One loop over memory; by block if it has a `block`."""

    name: str
    block: BlockText | None
    length: str
    uniforms: tuple[str, ...]
    unpacks: tuple[Packed, ...]
    packs: tuple[Packed, ...]
    random: tuple[tuple[str, int], ...]
    reductions: tuple[Reduction, ...]
    loads: tuple[Load, ...]
    position: bool
    lines: tuple[str, ...]
    stores: tuple[str, ...]
    checks_finite: bool


@dataclass(frozen=True)
class Step:
    """One statement of an operation: `kind` is line, guard or pass."""

    kind: str
    text: str = ""
    loop: PassText | None = None


@dataclass(frozen=True)
class FieldText:
    """The place of one payload field."""

    name: str
    align: int
    size: str


@dataclass(frozen=True)
class Operation:
    """One operation with its frame, combine functors, loops and steps."""

    op: str
    frame: str
    comment: tuple[str, ...]
    members: tuple[str, ...]
    vector_fields: tuple[str, ...]
    states: tuple[str, ...]
    scalars: tuple[str, ...]
    combines: tuple[Combine, ...]
    passes: tuple[PassText, ...]
    steps: tuple[Step, ...]
    scratch: tuple[tuple[str, int], ...] = field(default=())


def source(unit: Unit) -> str:
    """Return the C++ source of a codec's library.

    Raises:
        BackendError: the program uses something that this backend does not build yet.

    """
    layout = unit.functions[0].layout
    writer = ScalarWriter(lambda name: f"p.{name}_")
    run_time = [p for p in unit.params if not p.static]
    return render(
        "cpp/library.cpp.j2",
        codec=unit.codec,
        static=[p.name for p in unit.params if p.static],
        params=[(scalar_type(p.elem), p.name) for p in run_time],
        fields=[_field(f, writer) for f in layout],
        operations=[_Emitter(f).operation() for f in unit.functions],
    )


def _field(f: ir.Field, writer: ScalarWriter) -> FieldText:
    if f.length is None:
        return FieldText(f.name, alignment(f.elem, False), str(scalar_bytes(f.elem)))
    length = f"greater<int64_t>(0, {writer.text(f.length)})"
    size = f"({length} * {f.elem.bits} + 7) / 8" if f.elem.packed else f"{length} * {scalar_bytes(f.elem)}"
    return FieldText(f.name, 16, size)


def _no_read(e: ir.Read, lanes: str) -> str:
    del lanes
    raise not_built(e)


class _Emitter:
    """Turns one function into an `Operation`."""

    def __init__(self, typed: ir.Function) -> None:
        self.f = fuse(typed)
        self.vectors = dict(self.f.vectors) | dict.fromkeys(self.f.states, FLOAT)
        self.lengths = {field.name: field.length for field in self.f.layout if field.length is not None}
        self.lengths |= dict.fromkeys(("gradient", *self.f.states), ir.Size())
        self.checked = self.f.op != "encode"  # whether the gradient's values have been checked to be finite
        self.scalar = ScalarWriter(self.place)
        self.params = {p.name for p in self.f.params}
        self.combines: list[Combine] = []
        self.passes: list[PassText] = []
        self.scalars: list[str] = []
        self.members: list[str] = []

    def place(self, name: str) -> str:
        if name in (ir.SCALE, ir.SHARED_SEED):
            return f"k.{name[1:]}"
        return f"p.{name}_" if name in self.params else f"k.{name}_"

    def operation(self) -> Operation:
        f = self.f
        body = list(f.body)
        if not self.checked and not any(isinstance(b, ir.Pass) and b.length == ir.Size() for b in body):
            body.append(ir.Pass(ir.Size(), ()))
        steps = [self.step(b) for b in body]
        return Operation(
            op=f.op,
            frame={"encode": "Encode", "decode": "Decode", "decode_add": "DecodeAdd"}[f.op],
            comment=tuple(function_text(f).splitlines()),
            members=tuple(self.members),
            vector_fields=tuple(field.name for field in f.layout if field.length is not None),
            states=f.states,
            scalars=tuple(self.scalars),
            combines=tuple(self.combines),
            passes=tuple(self.passes),
            steps=tuple(steps),
            scratch=tuple((p.length, len(p.reductions)) for p in self.passes if p.reductions),
        )

    def define(self, name: str, elem: Elem) -> str:
        self.scalars.append(f"{scalar_type(elem)} {name}_;")
        return f"k.{name}_"

    def step(self, b: ir.Binding) -> Step:
        match b:
            case ir.Let(name, value):
                return Step("line", f"{self.define(name, value.type)} = {self.scalar.text(value)};")
            case ir.Put(name, elem, value):
                text = self.scalar.text(value)
                return Step("line", f"put<{self.stored(elem)}>(item.payload + at.{name}_, {text});")
            case ir.Get(name, source_field, elem):
                mask = f" & {(1 << elem.bits) - 1}" if elem.packed else " != 0" if elem == BOOL else ""
                text = f"get<{self.stored(elem)}>(item.payload + at.{source_field}_){mask}"
                return Step("line", f"{self.define(name, elem)} = {text};")
            case ir.Guard(_, read, expected):
                return Step("guard", f"{self.scalar.text(read)} != {self.scalar.text(expected)}")
            case ir.Pass():
                return Step("pass", loop=self.loop(b))
            case ir.Map(name, elem):
                raise not_built(ir.Read(name, ir.Size(), arithmetic(elem)))
        raise AssertionError(b)

    @staticmethod
    def stored(elem: Elem) -> str:
        if elem.bits == 16 and elem.kind in ("float", "bfloat"):
            raise not_built_type(elem)
        return storage(elem)

    # --- passes ---------------------------------------------------------------------------------

    def loop(self, b: ir.Pass) -> PassText:
        block = _Block(self, b) if b.block else None
        lanes = _Lanes(self, b, block)
        checks_finite = not self.checked and b.length == ir.Size()
        if checks_finite:
            self.checked = True
            lanes.loads["gradient"] = self.load("gradient")
        reductions = [self.reduction(s, lanes.writer) for s in b.sinks if isinstance(s, ir.Reduce)]
        packs: list[Packed] = []
        stores = [
            self.store(s, lanes.writer, packs)
            for s in b.sinks
            if isinstance(s, ir.Store) and s.length == b.length
        ]
        text = PassText(
            name=f"{self.f.op}_pass{len(self.passes)}",
            block=block.text() if block else None,
            length=self.scalar.text(b.length),
            uniforms=lanes.declarations(),
            unpacks=tuple(Packed(v, self.vectors[v].bits) for v in lanes.loads if self.vectors[v].packed),
            packs=tuple(packs),
            random=tuple((kind, site) for site, kind in sorted(lanes.writer.sites.items())),
            reductions=tuple(reductions),
            loads=tuple(lanes.loads.values()),
            position=lanes.writer.position,
            lines=tuple(lanes.writer.lines),
            stores=tuple(stores),
            checks_finite=checks_finite,
        )
        self.passes.append(text)
        return text

    @staticmethod
    def splat(lanes: str, kind: Elem, text: str) -> str:
        return f"splat<Mask>(-int32_t({text}))" if kind == BOOL else f"splat<{lanes}>({text})"

    def load(self, vector: str) -> Load:
        elem = self.vectors[vector]
        kind = arithmetic(elem)
        lanes = {"float": "Float", "uint32": "UInt32", "uint64": "UInt64"}.get(kind.name, "Int32")
        if kind == INT and elem.bits > 32:
            lanes = "Int64"
        if elem.packed:
            return Load(vector, "Int32", f"c_{vector}", True, False)
        known = dict(self.f.vectors)
        is_field = vector in known and vector in {x.name for x in self.f.layout}
        place = (
            f"reinterpret_cast<const {self.stored(elem)}*>(k.f_{vector})" if is_field else self.vector(vector)
        )
        return Load(vector, lanes, place, False, elem == BOOL)

    def vector(self, name: str) -> str:
        return f"k.s_{name}" if name in self.f.states else f"k.{name}"

    @staticmethod
    def named(combine: ir.Combine) -> bool:
        """Whether a reduction is by `add`, `smaller` or `greater` of the language, not by a program's own."""
        a, b = (ir.Scalar(x, combine.type) for x in "ab")
        return combine.name in COMBINES and combine.body == ir.apply(COMBINES[combine.name], a, b)

    def reduction(self, s: ir.Reduce | ir.BlockReduce, writer: LaneWriter) -> Reduction:
        kind = s.combine.type
        lanes = writer.lane_type(s.body)
        if kind == INT:
            low, high = writer.ranges.of(s.body)
            growth = TILE if s.combine.name == "add" else 1
            lanes = (
                "Int32" if self.named(s.combine) and max(abs(low), abs(high)) * growth < 2**31 else "Int64"
            )
        value = writer.write(s.body, lanes)
        functor = self.functor(s)
        if isinstance(s, ir.Reduce):
            self.scalars.append(f"{scalar_type(kind)} {s.name}_;")
            self.members.append(f"{scalar_type(kind)}* {s.name}_tiles;")
        return Reduction(s.name, lanes, scalar_type(kind), functor, self.scalar.text(s.init), value)

    def functor(self, s: ir.Reduce | ir.BlockReduce) -> str:
        def argument(name: str) -> str:
            if name in ("a", "b"):
                return name
            raise BackendError(
                f"the cpp backend does not build the use of '{name}' inside the function that the reduction "
                f"'{s.name}' combines by yet; backend='interp' runs it"
            )

        name = "".join(part.capitalize() for part in s.combine.name.split("_")) + f"Of{len(self.combines)}"
        kind, body = s.combine.type, s.combine.body
        scalar = ScalarWriter(argument).text(body)
        if self.named(s.combine):
            self.combines.append(Combine(name, "", scalar, "", (), ""))
            return name
        writer = LaneWriter(Ranges({}), _no_read, lambda e, _: argument(getattr(e, "name", "gradient.size")))
        lanes = LANES[kind.name]
        result = writer.write(body, lanes)
        self.combines.append(Combine(name, scalar_type(kind), scalar, lanes, tuple(writer.lines), result))
        return name

    def store(self, s: ir.Store, writer: LaneWriter, packs: list[Packed]) -> str:
        value = writer.write(s.body)
        name = s.target.name
        if s.elem.packed:
            packs.append(Packed(name, s.elem.bits))
            code = value if writer.lane_type(s.body) != "Mask" else f"bit({value})"
            return f"store<true>(o_{name} + at, FULL ? {code} : {code} & first_lanes(live), WIDTH);"
        if s.elem == BOOL:
            value = f"bit({value})"
        if arithmetic(s.elem) == FLOAT and s.target.kind != "state":
            value = f"canonical({value})"
        place = {
            "state": f"k.new_{name}",
            "output": "k.gradient",
            "field": f"reinterpret_cast<{self.stored(s.elem)}*>(k.f_{name})",
        }[s.target.kind]
        return f"store<FULL>({place} + tile * TILE + at, {value}, live);"


class _Lanes:
    """A lane writer for one loop, with what it loads and the scalars that it splats."""

    def __init__(self, emitter: _Emitter, b: ir.Pass, block: _Block | None, *, stage: bool = False) -> None:
        self.emitter, self.b, self.block, self.stage = emitter, b, block, stage
        self.loads: dict[str, Load] = {}
        self.uniforms: dict[tuple[str, str], tuple[str, str]] = {}  # (scalar, lanes) -> name, declaration
        of_block = block.lanes if block and not stage else lambda e, lanes: None  # noqa: ARG005
        self.writer = LaneWriter(Ranges(emitter.vectors), self.read, self.uniform, of_block)

    def declarations(self) -> tuple[str, ...]:
        return tuple(line for _, line in self.uniforms.values())

    def read(self, e: ir.Read, lanes: str) -> str:
        emitter, b = self.emitter, self.b
        if e.position != ir.Position():
            return self.read_block(e, lanes)
        if emitter.lengths.get(e.vector) != b.length or (self.stage and emitter.vectors[e.vector].packed):
            raise not_built(e)
        self.loads.setdefault(e.vector, emitter.load(e.vector))
        return f"v_{e.vector}"

    def read_block(self, e: ir.Read, lanes: str) -> str:
        """Read at i / B: what this loop has reduced the block to, or a field of one value a block."""
        size = ir.block_of(e.position)
        if self.block and e.vector in self.block.made:
            if self.stage:
                return f"splat<{lanes}>(b.r_{e.vector}[j])"
            return self.block.spread(f"b.r_{e.vector}", lanes)
        elem = self.emitter.vectors.get(e.vector)
        length = self.emitter.lengths.get(e.vector)
        if not size or elem is None or elem.packed or self.stage or length != ir.blocks(self.b.length, size):
            raise not_built(e)
        if e.vector not in {f.name for f in self.emitter.f.layout}:
            raise not_built(e)
        kind = self.emitter.stored(elem)
        get = f"get<{kind}>(k.f_{e.vector} + {{}} * sizeof({kind}))"
        if size % 16 == 0:
            return f"splat<{lanes}>({get.format(f'((tile * TILE + at) / {size})')})"
        place = get.format(f"((tile * TILE + at + (j < live ? j : 0)) / {size})")
        return f"each<{lanes}>([&](int j) {{ return {place}; }})"

    def uniform(self, e: ir.Expr, lanes: str) -> str:
        text = self.emitter.scalar.text(e)
        if (text, lanes) not in self.uniforms:
            name = "u_" + text[2:].removesuffix("_") + ("" if lanes == "Float" else f"_{lanes}")
            if name in (taken for taken, _ in self.uniforms.values()):
                name += f"_{len(self.uniforms)}"
            line = f"const {lanes} {name} = {self.emitter.splat(lanes, e.type, text)};"
            self.uniforms[text, lanes] = name, line
        return self.uniforms[text, lanes][0]


class _Block:
    """The block-wise part of a loop: reductions in stages, values of a block, stores of one a block."""

    def __init__(self, emitter: _Emitter, b: ir.Pass) -> None:
        self.emitter, self.b = emitter, b
        self.reduces = [s for s in b.sinks if isinstance(s, ir.BlockReduce)]
        self.made = {s.name for s in self.reduces}
        emitter.vectors |= {s.name: s.combine.type for s in self.reduces}
        self.hoisted: dict[ir.Expr, tuple[str, str, str]] = {}
        self.scalar = ScalarWriter(emitter.place, self.read, "(b.first + j)")

    def read(self, e: ir.Read) -> str:
        if e.vector not in self.made:
            raise not_built(e)
        return f"b.r_{e.vector}[j]"

    def spread(self, array: str, lanes: str) -> str:
        """Return the lanes of an array that has one value a block."""
        size = self.b.block
        if size % 16 == 0:
            return f"splat<{lanes}>({array}[(tile * TILE + at) / {size} - b.first])"
        return f"each<{lanes}>([&](int j) {{ return {array}[(tile * TILE + at + j) / {size} - b.first]; }})"

    def lanes(self, e: ir.Expr, lanes: str) -> str | None:
        """Return the lanes of an expression that is the same for a whole block, worked out once a block."""
        if not isinstance(e, ir.Apply | ir.Convert) or e.type == BOOL or not self.same_in_block(e):
            return None
        if e not in self.hoisted:
            name = f"h{len(self.hoisted)}"
            self.hoisted[e] = scalar_type(e.type), name, self.scalar.text(e)
        return self.spread(f"b.{self.hoisted[e][1]}", lanes)

    def same_in_block(self, e: ir.Expr) -> bool:
        """Whether an expression has the block's reductions and scalars only, and one reduction at least."""
        some = False

        def fits(x: ir.Expr) -> bool:
            nonlocal some
            if isinstance(x, ir.Read):
                some = some or x.vector in self.made
                return x.vector in self.made and ir.block_of(x.position) == self.b.block
            if isinstance(x, ir.Const | ir.Scalar | ir.Param | ir.Size):
                return True
            return isinstance(x, ir.Apply | ir.Convert) and all(fits(c) for c in ir.children(x))

        return fits(e) and some

    def text(self) -> BlockText:
        """Return the block-wise part; called when the loop's elements have been written."""
        stores = []
        for s in self.b.sinks:
            if isinstance(s, ir.Store) and s.length != self.b.length:
                if s.elem.packed or s.target.kind != "field":
                    raise not_built_type(s.elem)
                kind = self.emitter.stored(s.elem)
                value = self.scalar.text(s.body)
                stores.append(f"put<{kind}>(k.f_{s.target.name} + (b.first + j) * sizeof({kind}), {value});")
        return BlockText(
            size=self.b.block,
            span=math.lcm(self.b.block, TILE),
            stages=tuple(self.stages()),
            hoisted=tuple(self.hoisted.values()),
            stores=tuple(stores),
        )

    def stages(self) -> Iterator[Stage]:
        left = list(self.reduces)
        done: set[str] = set()
        while left:
            ready = [s for s in left if not self.needs(s) - done]
            lanes = _Lanes(self.emitter, self.b, self, stage=True)
            reductions = [self.emitter.reduction(s, lanes.writer) for s in ready]
            if lanes.writer.sites:
                raise BackendError(
                    "the cpp backend does not build random numbers inside the reduction of a block yet; "
                    "backend='interp' runs it"
                )
            yield Stage(
                uniforms=lanes.declarations(),
                loads=tuple(lanes.loads.values()),
                position=lanes.writer.position,
                lines=tuple(lanes.writer.lines),
                reductions=tuple(reductions),
            )
            done |= {s.name for s in ready}
            left = [s for s in left if s not in ready]

    def needs(self, s: ir.BlockReduce) -> set[str]:
        return {x.vector for x in ir.walk(s.body) if isinstance(x, ir.Read) and x.vector in self.made}


def runtime() -> dict[str, str]:
    """Return the headers that generated source includes, by name."""
    return headers("cpp")
