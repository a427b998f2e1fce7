"""Fused IR -> one CUDA C++ source, and the launches that an operation takes, as data.

The passes are those of the C++ emitter; a lane is a plain number here.  What differs is how a tile's results
are stored, and that an operation is a list of kernels: between passes, scalars are worked out on the device.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

from compll import ir
from compll.backends import Unit
from compll.emit import headers, render
from compll.emit.cpp import Emitter, field_text
from compll.emit.cuda_selections import CudaSelections
from compll.emit.expressions import Dialect, ScalarWriter
from compll.emit.pieces import TILE, Buffer, PassText, Step
from compll.emit.ranges import scalar_type
from compll.ops import INTEGERS
from compll.types import INT, Elem

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
    # the latter two take registers: a table is one, and without divisions more rows are in flight at once
    without = ("carry_selected", "tabulate", "multiply_instead")
    clears = False
    keeps = False
    block_lanes = False
    plain: ClassVar[Mapping[str, str]] = {}

    def live(self) -> str:
        """Return that the lane at work is there: others leave the loop."""
        return "true"

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
class Generated:
    """What a codec becomes: its source, and of each operation the launches in order and the scratch.

    `table_writer` is the kernel that writes the table of items before them.  `fallible` names the operations
    that can find a position out of range, or refuse one.
    """

    source: str
    launches: Mapping[str, tuple[Launch, ...]]
    frame_bytes: int
    buffers: Mapping[str, tuple[Buffer, ...]]
    table_writer: str
    fallible: frozenset[str]

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
    gathers: bool = False

    @property
    def rolled(self) -> bool:
        """Whether its rows stay a loop: a read elsewhere is long, and there are no codes held by row."""
        return self.gathers and not self.packs and not self.unpacks

    @property
    def slots(self) -> tuple[tuple[str, str], ...]:
        """Type and name of what is kept of each block."""
        stages = self.block.stages if self.block else ()
        reductions = tuple((r.type, f"r_{r.name}") for stage in stages for r in stage.reductions)
        return reductions + tuple(h[:2] for h in (self.block.hoisted if self.block else ()))

    @property
    def known(self) -> int:
        """The elements of a whole block where they are quads, up to a tile, else 0."""
        size = self.block.size if self.block else 0
        return size if size % 4 == 0 and size <= TILE else 0


@dataclass(frozen=True)
class Kernel:
    """One kernel.

    Over tiles it is a pass (kind "pass"), or calls by the warps that share out the tiles ("tiles", "check":
    those that change nothing but the status, and so go into one kernel).  Over items it is what the threads
    of a block do before, between and after such kernels: steps of one thread, or by all threads together the
    folding of the reductions of a pass ("fold") or a call ("block").
    """

    name: str
    over: str
    steps: tuple[Step, ...]

    @property
    def together(self) -> tuple[tuple[Step, ...], ...]:
        """The steps over an item, parted where its threads meet."""
        alone = itertools.groupby(self.steps, lambda s: id(s) if s.kind in ("fold", "block") else 0)
        return tuple(tuple(steps) for _, steps in alone)


def generate(unit: Unit) -> Generated:
    """Return the CUDA form of a codec."""
    emitters = [CudaEmitter(f) for f in unit.functions]
    operations = [(e, e.operation()) for e in emitters]
    kernels = {o.op: tuple(_kernels(f"{unit.codec}_{o.op}", o.steps)) for _, o in operations}
    frame = max(e.frame_bytes() for e in emitters)
    counts = unit.functions[0].counts
    named = {c.name for c in counts}
    writer = ScalarWriter(lambda name: f"c.{name}_" if name in named else f"p.{name}_", CUDA)
    table_writer = f"{unit.codec}_write_table"
    source = render(
        "cuda/library.cu.j2",
        codec=unit.codec,
        table_writer=table_writer,
        gradient=CUDA.stored(unit.element),
        suffix=unit.suffix,
        static=[p.name for p in unit.params if p.static],
        params=[(scalar_type(p.elem), p.name) for p in unit.params if not p.static],
        fields=[field_text(f, writer) for f in unit.functions[0].layout],
        counts=[(c.name, writer.text(c.most)) for c in counts],
        operations=[vars(o) | {"kernels": kernels[o.op]} for _, o in operations],
        kernels=[k.name for op in kernels.values() for k in op],
        frame_bytes=frame,
    )
    launches = {op: tuple(Launch(k.name, k.over) for k in ks) for op, ks in kernels.items()}
    buffers = {o.op: o.buffers for _, o in operations}
    fallible = frozenset(o.op for e, o in operations if e.fallible)
    return Generated(source, launches, frame, buffers, table_writer, fallible)


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


OVER_TILES = ("pass", "tiles", "check")


def _kernels(prefix: str, steps: Iterable[Step]) -> Iterator[Kernel]:
    """Yield an operation's kernels: those over tiles, and over items one that begins and what is between."""
    then, own = "begin", [Step("begin")]
    calls = itertools.count()
    for kind, some in itertools.groupby(steps, lambda s: s.kind if s.kind in OVER_TILES else ""):
        if not kind:
            own += some
            continue
        for together in [tuple(some)] if kind == "check" else ((step,) for step in some):
            if own:
                yield Kernel(f"{prefix}_{then}", "items", tuple(own))
            loop = together[0].loop
            if loop:
                label = loop.name.rpartition("_")[2]
                then = label.replace("pass", "then")
            else:
                label = f"{re.split('[(<]', together[0].text)[0]}{next(calls)}"
                then = f"after_{label}"
            yield Kernel(f"{prefix}_{label}", "tiles", together)
            own = [Step("fold", loop=loop)] if loop and loop.reductions else []
    if own:
        yield Kernel(f"{prefix}_{then}", "items", tuple(own))


class CudaEmitter(CudaSelections, Emitter):
    """Turns one function into an `Operation` whose passes store quads of a row."""

    dialect = CUDA

    def __init__(self, typed: ir.Function) -> None:
        super().__init__(typed)
        self.outputs: list[Output] = []
        self.gathers = self.fallible = False

    def frame_bytes(self) -> int:
        """Return a bound of the size of the frame: no member of it has more than 8 bytes."""
        vectors = len(self.f.layout) + len(self.f.received)
        members = 7 + vectors + 2 * len(self.f.states) + len(self.scalars) + len(self.buffers)
        return -(-8 * members // 64) * 64

    def field_place(self, name: str) -> str:
        """Return where a scalar field lies."""
        return f"k.f_{name}"

    def where(self, vector: str) -> str:
        """Return where a vector begins; a table is an object that has its elements."""
        return super().where(vector) + ("{}" if vector in self.tables else "")

    def tile_results(self, length: ir.Expr) -> ir.Expr:
        """Return the room for the results of tiles, and of the tiles of those (reduce.cuh)."""
        tiles = ir.blocks(length, TILE)
        levels = [ir.apply("*", ir.blocks(x, 16), ir.const(16, INT)) for x in (tiles, ir.blocks(tiles, TILE))]
        return ir.apply("+", *levels)

    def loop(self, b: ir.Pass) -> PassText:
        """Return one pass over memory, with the vectors that it writes."""
        self.outputs, self.gathers = [], False
        plain = super().loop(b)
        loop = Loop(**vars(plain), outputs=tuple(self.outputs), gathers=self.gathers)
        if loop.block:
            length, size = self.most_of(b.length), loop.block.size
            for kind, name in loop.slots:
                self.reserve(f"{loop.name}_{name}", kind, ir.blocks(length, size))
            parts = self.tile_results(ir.const(size, INT))
            for r in (r for stage in loop.block.stages for r in stage.reductions if size > TILE):
                spans = ir.blocks(length, loop.block.span)
                self.reserve(f"{r.name}_parts", r.type, ir.apply("*", spans, parts))
        self.passes[-1] = loop
        return loop

    def gather(self, e: ir.Read, lanes: str, position: str, asked: str) -> str:
        """Return an element at a computed position."""
        self.gathers = self.fallible = True
        return super().gather(e, lanes, position, asked)

    def lookup(self, e: ir.Read, lanes: str, position: str) -> str:
        """Return an entry of a table at a position that is in range."""
        return f"lookup<{lanes}>({self.where(e.vector)}, {position})"

    def search(self, e: ir.Search, kind: str, arg: str) -> str:
        """Return how many entries of a table are below."""
        return f"search<{kind}>({self.where(e.table)}, {len(self.tables[e.table].values)}, {arg})"

    def read_at(self, e: ir.Read | ir.Search, operand: str) -> str:
        """Return one element of a vector, or what a search in a table gives, as a scalar."""
        self.fallible = self.fallible or isinstance(e, ir.Read)
        return super().read_at(e, operand)

    def store_packed(self, s: ir.Store, value: str, *, is_mask: bool) -> str:  # noqa: ARG002
        """Return the statement that keeps a code until its tile is packed."""
        return f"o_{s.target.name}.put(row, block, uint32_t({value}));"

    def store_plain(self, s: ir.Store, value: str) -> str:
        """Return the statement that keeps an element until its row is stored."""
        stored = self.dialect.stored(s.elem)
        output = Output(f"{s.target.kind}_{s.target.name}", stored, self.target(s))
        self.outputs.append(output)
        return f"o_{output.name}.at[block] = static_cast<{stored}>({value});"

    def spread(self, name: str, kind: Elem, size: int, lanes: str) -> str:  # noqa: ARG002
        """Return the lanes of a value of each block of `size` elements."""
        one, lane = size % 16 == 0, "" if size % 16 == 0 else " + j"
        value = f"b.{name}[uint64_t(tile * TILE + at{lane}) / {size} - b.first]"
        return f"splat<{lanes}>({value})" if one else f"each<{lanes}>([&](int j) {{ return {value}; }})"
