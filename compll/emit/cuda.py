"""Fused IR -> one CUDA C++ source, and the launches that an operation takes, as data.

The passes are those of the C++ emitter; a lane is a plain number here.  What differs is how a tile's results
are stored, and that an operation is a list of kernels: between passes, scalars are worked out on the device.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from compll import ir
from compll.backends import Unit
from compll.emit import headers, render
from compll.emit.cpp import Emitter, field_text
from compll.emit.expressions import Dialect, ScalarWriter, not_built
from compll.emit.pieces import TILE, Operation, PassText, Step
from compll.emit.ranges import scalar_type
from compll.ops import INTEGERS
from compll.types import Elem

WRAPPING = {
    "+": "wrap_add({0}, {1})",
    "-": "wrap_subtract({0}, {1})",
    "*": "wrap_multiply({0}, {1})",
    "neg": "wrap_negate({0})",
}
OWN_HEADER = re.compile(r'^#include "(\w+\.cuh)"\n', re.M)


class CudaDialect(Dialect):
    """CUDA C++: sums of signed integers must wrap, which its compilers do not promise."""

    backend = "cuda"

    def operator(self, op: str, elem: Elem) -> str:
        """Return the text of an operator on an arithmetic type."""
        return WRAPPING[op] if op in WRAPPING and elem in INTEGERS else super().operator(op, elem)


CUDA = CudaDialect()


@dataclass(frozen=True)
class Launch:
    """One launch: a kernel, and what its grid goes over: "items" (a block each) or "tiles" (a warp each)."""

    kernel: str
    over: str


@dataclass(frozen=True)
class Scratch:
    """What a pass over a vector needs beside the frame.

    `reductions` of tile results; for blocks, `slots` of one value a block, and for blocks beyond a tile
    `parts` of tile results for each span of blocks.  `text` and `size` say the same, in C and in Python.
    """

    length: ir.Expr
    reductions: int
    block: int = 1
    span: int = 1
    slots: int = 0
    parts: int = 0

    @property
    def text(self) -> str:
        """Return the bytes as C, for `length` elements."""
        terms = [f"{self.reductions} * partial_bytes(tiles_of(length))"] if self.reductions else []
        if self.slots:
            terms.append(f"{self.slots} * level_bytes(blocks_of(length, {self.block}))")
        if self.parts:
            spans = f"blocks_of(length, {self.span})"
            terms.append(f"{spans} * {self.parts} * partial_bytes(tiles_of({self.block}))")
        return " + ".join(terms)

    def size(self, length: int) -> int:
        """Return the bytes for `length` elements."""
        blocks, spans = -(-length // self.block), -(-length // self.span)
        tiles, tiles_of_block = -(-length // TILE), -(-self.block // TILE)
        return (
            self.reductions * _partial_bytes(tiles)
            + self.slots * _level_bytes(blocks)
            + spans * self.parts * _partial_bytes(tiles_of_block)
        )


def _level_bytes(count: int) -> int:
    return -(-count * 8 // 64) * 64


def _partial_bytes(tiles: int) -> int:
    return _level_bytes(tiles) + _level_bytes(-(-tiles // TILE))


@dataclass(frozen=True)
class Generated:
    """What a codec becomes: its source, the launches of each operation in order, and its need of scratch."""

    source: str
    launches: Mapping[str, tuple[Launch, ...]]
    frame_bytes: int
    scratch: tuple[Scratch, ...]

    @property
    def counts(self) -> dict[str, tuple[int, int]]:
        """How many launches an operation takes, and how many of them go over the elements."""
        return {op: (len(xs), sum(x.over == "tiles" for x in xs)) for op, xs in self.launches.items()}


@dataclass(frozen=True)
class Output:
    """A vector that a pass writes element by element: the type that it is stored as, and its beginning."""

    name: str
    type: str
    place: str


@dataclass(frozen=True)
class Loop(PassText):
    """One pass over memory, by a warp a tile, or a warp a span of blocks."""

    outputs: tuple[Output, ...] = ()
    scratch: str = ""

    @property
    def slots(self) -> tuple[tuple[str, str], ...]:
        """Type and name of what is kept of each block."""
        stages = self.block.stages if self.block else ()
        reductions = tuple((r.type, f"r_{r.name}") for stage in stages for r in stage.reductions)
        return reductions + tuple(h[:2] for h in (self.block.hoisted if self.block else ()))

    @property
    def most_reductions(self) -> int:
        """The reductions of the stage that has most of them."""
        return max((len(s.reductions) for s in self.block.stages), default=0) if self.block else 0

    @property
    def known(self) -> int:
        """The elements of a whole block where they are quads, up to a tile, else 0."""
        size = self.block.size if self.block else 0
        return size if size % 4 == 0 and size <= TILE else 0


@dataclass(frozen=True)
class Kernel:
    """One kernel: a pass over tiles, or what one thread an item does before and between the passes."""

    name: str
    over: str
    begins: bool = False
    pass_: PassText | None = None
    folds: PassText | None = None
    lines: tuple[Step, ...] = field(default=())


def generate(unit: Unit) -> Generated:
    """Return the CUDA form of a codec.

    Raises:
        BackendError: the program uses something that this backend does not build yet.

    """
    emitters = [CudaEmitter(f) for f in unit.functions]
    operations = [(e, e.operation()) for e in emitters]
    kernels = {o.op: tuple(_kernels(unit.codec, o)) for _, o in operations}
    frame = max(e.frame_bytes() for e in emitters)
    writer = ScalarWriter(lambda name: f"p.{name}_", CUDA)
    source = render(
        "cuda/library.cu.j2",
        codec=unit.codec,
        gradient=CUDA.stored(unit.element),
        suffix=unit.suffix,
        static=[p.name for p in unit.params if p.static],
        params=[(scalar_type(p.elem), p.name) for p in unit.params if not p.static],
        fields=[field_text(f, writer) for f in unit.functions[0].layout],
        operations=[vars(o) | {"kernels": kernels[o.op]} for _, o in operations],
        kernels=[k.name for op in kernels.values() for k in op],
        frame_bytes=frame,
    )
    launches = {op: tuple(Launch(k.name, k.over) for k in ks) for op, ks in kernels.items()}
    return Generated(source, launches, frame, tuple(s for e in emitters for s in e.scratch))


def source(unit: Unit) -> str:
    """Return the CUDA C++ source of a codec's library."""
    return generate(unit).source


def launches_text(unit: Unit) -> str:
    """Return the launches of each operation, one a line: what the grid goes over, and the kernel."""
    made = generate(unit)
    lines = []
    for op, launches in made.launches.items():
        every, over = made.counts[op]
        lines += [f"{op}: {every} launches, {over} of them over the elements"]
        lines += [f"  {x.over:5} {x.kernel}" for x in launches]
    return "\n".join(lines) + "\n"


def runtime() -> dict[str, str]:
    """Return the headers that generated source includes, by name."""
    shared = {f"{name}.cuh": headers("cpp")[f"{name}.h"] for name in ("elementary", "half")}
    return headers("cuda") | shared


def self_contained(text: str) -> str:
    """Return source with the runtime put in where it is included, once each: NVRTC looks into no folder."""
    files, seen = runtime(), set[str]()

    def put_in(found: re.Match[str]) -> str:
        name = found[1]
        if name in seen:
            return ""
        seen.add(name)
        return OWN_HEADER.sub(put_in, files[name].replace("#pragma once\n", ""))

    return OWN_HEADER.sub(put_in, text)


def _kernels(codec: str, o: Operation) -> Iterator[Kernel]:
    """Yield an operation's kernels: one that begins, and for each pass one over tiles and what follows it."""
    prefix = f"{codec}_{o.op}"
    name, folds, lines = f"{prefix}_begin", None, list[Step]()
    begins = True
    for step in (*o.steps, None):
        if step is not None and step.loop is None:
            lines.append(step)
            continue
        if begins or folds is not None or lines:
            yield Kernel(name, "items", begins, None, folds, tuple(lines))
        if step is None or step.loop is None:
            return
        at = o.passes.index(step.loop)
        yield Kernel(f"{prefix}_pass{at}", "tiles", pass_=step.loop)
        name, folds, lines = f"{prefix}_then{at}", step.loop if step.loop.reductions else None, []
        begins = False


class CudaEmitter(Emitter):
    """Turns one function into an `Operation` whose passes store quads of a row."""

    dialect = CUDA

    def __init__(self, typed: ir.Function) -> None:
        super().__init__(typed)
        self.refuse_stored()
        self.outputs: list[Output] = []
        self.scratch: list[Scratch] = []

    def gather(self, e: ir.Read, lanes: str, position: str, asked: str) -> str:
        """Refuse a read at a computed position."""
        del lanes, position, asked
        raise not_built(e, self.dialect)

    def read_at(self, e: ir.Read | ir.Search) -> str:
        """Refuse a read of one element."""
        raise not_built(e, self.dialect)

    def frame_bytes(self) -> int:
        """Return a bound of the size of the frame: no member of it has more than 8 bytes."""
        vectors = sum(x.length is not None for x in (*self.f.layout, *self.f.received))
        members = 5 + vectors + 2 * len(self.f.states) + len(self.scalars)
        return -(-8 * members // 64) * 64

    def loop(self, b: ir.Pass) -> PassText:
        """Return one pass over memory, with the vectors that it writes."""
        self.outputs = []
        plain = super().loop(b)
        loop = Loop(**vars(plain), outputs=tuple(self.outputs))
        need = Scratch(b.length, len(loop.reductions))
        if loop.block:
            parts = loop.most_reductions if loop.block.size > TILE else 0
            need = replace(
                need, block=loop.block.size, span=loop.block.span, slots=len(loop.slots), parts=parts
            )
        loop = replace(loop, scratch=need.text)
        self.scratch.append(need)
        self.passes[-1] = loop
        return loop

    def store_packed(self, s: ir.Store, value: str, *, is_mask: bool) -> str:  # noqa: ARG002
        """Return the statement that keeps a code until its tile is packed."""
        return f"o_{s.target.name}.put(row, block, uint32_t({value}));"

    def store_plain(self, s: ir.Store, value: str) -> str:
        """Return the statement that keeps an element until its row is stored."""
        name = s.target.name
        stored = self.dialect.stored(s.elem)
        place = {
            "state": f"k.new_{name}",
            "output": "k.gradient",
            "field": f"reinterpret_cast<{stored}*>(k.f_{name})",
        }[s.target.kind]
        output = Output(f"{s.target.kind}_{name}", stored, place)
        self.outputs.append(output)
        return f"o_{output.name}.at[block] = static_cast<{stored}>({value});"
