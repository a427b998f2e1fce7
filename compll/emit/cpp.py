"""Fused IR -> the pieces of a C++ library, as data for the templates in `templates/cpp/`."""

from __future__ import annotations

from compll import ir
from compll.backends import Unit
from compll.emit import headers, render
from compll.emit.expressions import CPP, LANES, LaneWriter, ScalarWriter
from compll.emit.loops import Blocks, Lanes
from compll.emit.pieces import TILE, Combine, FieldText, Load, Operation, Packed, PassText, Reduction, Step
from compll.emit.ranges import Ranges, scalar_type, storage
from compll.errors import BackendError
from compll.ir_text import function_text
from compll.ops import COMBINES
from compll.passes import fuse
from compll.types import BOOL, FLOAT, INT, Elem, alignment, arithmetic, scalar_bytes


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
        fields=[field_text(f, writer) for f in layout],
        operations=[Emitter(f).operation() for f in unit.functions],
    )


def field_text(f: ir.Field, writer: ScalarWriter) -> FieldText:
    """Return alignment and size of a payload field."""
    if f.length is None:
        return FieldText(f.name, alignment(f.elem, False), str(scalar_bytes(f.elem)))
    length = f"greater<int64_t>(0, {writer.text(f.length)})"
    size = f"({length} * {f.elem.bits} + 7) / 8" if f.elem.packed else f"{length} * {scalar_bytes(f.elem)}"
    return FieldText(f.name, 16, size)


class Emitter:
    """Turns one function into an `Operation`; the CUDA emitter has another dialect and other stores."""

    dialect = CPP

    def __init__(self, typed: ir.Function) -> None:
        self.f = fuse(typed)
        self.vectors = dict(self.f.vectors) | dict.fromkeys(self.f.states, FLOAT)
        self.lengths = {field.name: field.length for field in self.f.layout if field.length is not None}
        self.lengths |= dict.fromkeys(("gradient", *self.f.states), ir.Size())
        self.checked = self.f.op != "encode"  # whether the gradient's values have been checked to be finite
        self.scalar = ScalarWriter(self.place, self.dialect)
        self.params = {p.name for p in self.f.params}
        self.combines: list[Combine] = []
        self.passes: list[PassText] = []
        self.scalars: list[str] = []
        self.members: list[str] = []

    def place(self, name: str) -> str:
        """Return where a named scalar lives."""
        if name in (ir.SCALE, ir.SHARED_SEED):
            return f"k.{name[1:]}"
        return f"p.{name}_" if name in self.params else f"k.{name}_"

    def operation(self) -> Operation:
        """Return all of it."""
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
        """Make room for a scalar in the frame, and return its place."""
        self.scalars.append(f"{scalar_type(elem)} {name}_;")
        return f"k.{name}_"

    def step(self, b: ir.Binding) -> Step:
        """Return what a binding does."""
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
            case ir.Filter() | ir.TopK() | ir.Sort() | ir.Scatter() | ir.Table():
                raise BackendError(
                    f"the {self.dialect.backend} backend does not build {type(b).__name__.lower()} "
                    f"('{b.name}') yet; backend='interp' runs it"
                )
            case ir.Map(name, elem):
                raise self.dialect.not_built(ir.Read(name, ir.Size(), arithmetic(elem)))
        raise AssertionError(b)

    def stored(self, elem: Elem) -> str:
        """Return the C type of one stored element."""
        if elem.bits == 16 and elem.kind in ("float", "bfloat"):
            raise self.dialect.not_built_type(elem)
        return storage(elem)

    # --- passes ---------------------------------------------------------------------------------

    def loop(self, b: ir.Pass) -> PassText:
        """Return one pass over memory."""
        block = Blocks(self, b) if b.block else None
        lanes = Lanes(self, b, block)
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
        """Return a scalar in all lanes."""
        return f"splat<Mask>(-int32_t({text}))" if kind == BOOL else f"splat<{lanes}>({text})"

    def load(self, vector: str) -> Load:
        """Return how a vector is read."""
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
        """Return where a vector that is no field begins."""
        return f"k.s_{name}" if name in self.f.states else f"k.{name}"

    @staticmethod
    def named(combine: ir.Combine) -> bool:
        """Whether a reduction is by `add`, `smaller` or `greater` of the language, not by a program's own."""
        a, b = (ir.Scalar(x, combine.type) for x in "ab")
        return combine.name in COMBINES and combine.body == ir.apply(COMBINES[combine.name], a, b)

    def reduction(self, s: ir.Reduce | ir.BlockReduce, writer: LaneWriter) -> Reduction:
        """Return a reduction of a pass."""
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
        """Keep what a reduction combines by, and return its name."""

        def argument(name: str) -> str:
            if name in ("a", "b"):
                return name
            raise BackendError(
                f"the {self.dialect.backend} backend does not build the use of '{name}' inside the function "
                f"that the reduction '{s.name}' combines by yet; backend='interp' runs it"
            )

        name = "".join(part.capitalize() for part in s.combine.name.split("_")) + f"Of{len(self.combines)}"
        kind, body = s.combine.type, s.combine.body
        scalar = ScalarWriter(argument, self.dialect).text(body)
        if self.named(s.combine):
            self.combines.append(Combine(name, "", scalar, "", (), ""))
            return name

        def no_read(e: ir.Read, _: str) -> str:
            raise self.dialect.not_built(e)

        def uniform(e: ir.Expr, _: str) -> str:
            return argument(getattr(e, "name", "gradient.size"))

        writer = LaneWriter(Ranges({}), no_read, uniform, self.dialect)
        lanes = LANES[kind.name]
        result = writer.write(body, lanes)
        self.combines.append(Combine(name, scalar_type(kind), scalar, lanes, tuple(writer.lines), result))
        return name

    def store(self, s: ir.Store, writer: LaneWriter, packs: list[Packed]) -> str:
        """Return the statement that stores the lanes of a vector."""
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


def runtime() -> dict[str, str]:
    """Return the headers that generated source includes, by name."""
    return headers("cpp")
