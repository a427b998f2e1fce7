"""What an emitter spells in C++: places, scalars and lanes of a generated operation; others override it."""

from __future__ import annotations

from compll import ir
from compll.emit.expressions import LANES, LaneWriter
from compll.emit.loops import within_a_block
from compll.emit.pieces import TILE, Combine, Load
from compll.emit.ranges import scalar_type
from compll.emit.selections import Selections
from compll.types import BOOL, FLOAT, INT, Elem, arithmetic

FRAMES = {"encode": "Encode", "decode": "Decode", "decode_add": "DecodeAdd", "hop": "Hop"}
LANES_OF_A_ROW = 128


class Texts(Selections):
    """The part of an emitter that spells statements and values.  The texts are C++."""

    params: set[str]
    combines: list[Combine]

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

    def load_blocks(self, vector: str, kind: Elem) -> Load:
        """Return where the reductions of blocks are, a block a lane."""
        return Load(vector, LANES[kind.name], f"b.r_{vector}", True, False)

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
