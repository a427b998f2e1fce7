"""The part of a loop that goes block by block: reductions, and values that are the same for a whole block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

from compll import ir
from compll.emit.expressions import ScalarWriter
from compll.emit.loops import Emitter, Lanes, besides, made_of, one_a_block
from compll.emit.pieces import MOST_KEPT, TILE, BlockText, Stage, Values
from compll.types import BOOL, FLOAT

DRAWS = (ir.Random, ir.StochasticRound)


def block_of_fields(emitter: Emitter, b: ir.Pass) -> int:
    """Return the size of the blocks whose values a loop reads, where these go into lanes together; else 0."""
    dialect = emitter.dialect
    if not dialect.block_lanes:
        return 0
    bodies = [s.body for s in b.sinks if s.length == b.length]
    reads = [x for e in bodies for x in ir.walk(e) if isinstance(x, ir.Read)]
    sizes = {one_a_block(emitter, x, b.length) for x in reads}
    fitting = [
        size for size in sizes if size and size % dialect.blocks_of == 0 and math.lcm(size, TILE) <= MOST_KEPT
    ]
    return min(fitting, default=0)


def told_by(s: ir.Sink, b: ir.Pass) -> ir.Reduce | ir.BlockReduce | None:
    """Return the reduction of a loop whose results are finite if and only if what a sink checks is."""
    for r in b.sinks if isinstance(s, ir.Finite) else ():
        if not isinstance(r, ir.Reduce | ir.BlockReduce) or r.combine.type != FLOAT:
            continue
        greater = ir.apply("max", ir.Scalar("a", FLOAT), ir.Scalar("b", FLOAT))
        greatest = r.combine.body == greater and r.init == ir.const(0.0, FLOAT)
        if greatest and r.length == s.length and r.body == ir.apply("abs", s.body):
            return r
    return None


class BlockLanes(Lanes):
    """A loop over the blocks of a span: in each lane another block, in its turn."""

    def __init__(self, emitter: Emitter, blocks: Blocks) -> None:
        """Write what reads the reductions of `blocks`, and vectors of one value a block."""
        super().__init__(emitter, ir.Pass(ir.blocks(blocks.b.length, blocks.size), ()), None)
        self.made = blocks.made

    def read(self, e: ir.Read | ir.Search, lanes: str) -> str:
        """Return the lanes of a vector; of a reduction they wait in the span."""
        if isinstance(e, ir.Read) and e.vector in self.made and self.own(e):
            self.loads[e.vector] = self.emitter.load_blocks(e.vector, e.type)
            return f"v_{e.vector}"
        return super().read(e, lanes)

    def own(self, e: ir.Read) -> bool:
        """Whether a vector is read along with the loop; packed ones are read like any other."""
        if e.vector in self.made:
            return e.position == ir.Position()
        return super().own(e) and not self.emitter.vectors[e.vector].packed

    @property
    def start(self) -> str:
        """The position of the first lane: a span may begin with any block."""
        return ""

    def of_block(self, e: ir.Read) -> bool:  # noqa: ARG002
        """Whether a read is of one value for many lanes: none is."""
        return False


class Blocks:
    """The block-wise part of a loop: reductions in stages, values of a block, stores of one a block."""

    def __init__(self, emitter: Emitter, b: ir.Pass, size: int) -> None:
        """Find the reductions of the loop; its blocks have `size` elements."""
        self.emitter, self.b, self.size = emitter, b, size
        self.reduces = [s for s in b.sinks if isinstance(s, ir.BlockReduce)]
        self.made = {s.name for s in self.reduces}
        self.hoisted: dict[ir.Expr, str] = {}
        self.told: list[str] = []  # reductions that tell whether what they reduce is finite
        self.span = self.whole_span()
        self.kept = {e: f"kept{at}" for at, e in enumerate(self.worth_keeping())}
        self.scalar = ScalarWriter(emitter.place, emitter.dialect, self.read, emitter.dialect.block_index())

    def read(self, e: ir.Read | ir.Search, operand: str) -> str:
        """Return where the block's own reduction is held, or an element of another vector."""
        if isinstance(e, ir.Read) and e.vector in self.made:
            return self.emitter.block_value(f"r_{e.vector}", e.type)
        return self.emitter.read_at(e, operand)

    def whole_span(self) -> int:
        """Return how many elements are worked on at once: whole blocks and tiles, lanes full of blocks."""
        span, dialect = math.lcm(self.size, TILE), self.emitter.dialect
        while dialect.block_lanes and span < dialect.width * self.size and 2 * span <= MOST_KEPT:
            span *= 2
        return span

    def lanes(self, e: ir.Expr, lanes: str, known: frozenset[str] | None) -> str | None:
        """Return the lanes of an expression that is the same for a whole block, worked out once a block.

        A loop that reduces blocks can have it if no other reductions are needed than those `known`.
        """
        if not isinstance(e, ir.Apply | ir.Convert) or e.type == BOOL or not self.same_in_block(e):
            return None
        if known is not None and not (self.emitter.dialect.block_lanes and self.needs(e) <= known):
            return None
        name = self.hoisted.setdefault(e, f"h{len(self.hoisted)}")
        if known is not None:
            return self.emitter.splat(lanes, e.type, self.emitter.block_value(name, e.type))
        return self.emitter.spread(name, e.type, self.size, lanes)

    def same_in_block(self, e: ir.Expr) -> bool:
        """Whether an expression has one value a block, which costs more to work out than to read."""
        return made_of(e, self.is_of_block, self.size)

    def is_of_block(self, x: ir.Read) -> bool:
        """Whether a read finds a reduction of the block, or another vector's value that lanes can hold."""
        if x.vector in self.made:
            return ir.block_of(x.position) == self.size
        fits = self.emitter.dialect.block_lanes and self.span <= MOST_KEPT
        return fits and one_a_block(self.emitter, x, self.b.length) == self.size

    def worth_keeping(self) -> list[ir.Expr]:
        """Return what reductions and stores both need, and what costs more than to keep it in the cache.

        That is what decodes packed codes or looks into tables, as a hop does.
        """
        if not self.emitter.dialect.keeps or self.span > MOST_KEPT:
            return []
        stored = [
            s.body for s in self.b.sinks if not isinstance(s, ir.BlockReduce) and s.length == self.b.length
        ]
        wanted = {x for e in stored for x in ir.walk(e)}
        found: list[ir.Expr] = []

        def visit(e: ir.Expr) -> None:
            inside = [x for x in ir.walk(e) if x != e and self.is_dear(x)]
            if e in wanted and self.is_dear(e) and not any(x in besides(stored, e) for x in inside):
                found.append(e)
            else:
                for child in ir.children(e):
                    visit(child)

        for s in self.reduces:
            visit(s.body)
        return list(dict.fromkeys(found))

    def is_dear(self, e: ir.Expr) -> bool:
        """Whether an expression decodes; of what draws or reads reductions nothing is kept."""
        parts = list(ir.walk(e))
        reads = [x for x in parts if isinstance(x, ir.Read)]
        if any(x.vector in self.made for x in reads) or any(isinstance(x, DRAWS) for x in parts):
            return False
        fields = [x for x in reads if x.vector in self.emitter.places or x.vector in self.emitter.tables]
        return bool(fields) and isinstance(e, ir.Apply) and e.type == FLOAT

    def text(self) -> BlockText:
        """Return the block-wise part; called when the loop's elements have been written."""
        stages = tuple(self.stages())
        emitter, stores = self.emitter, self.stores
        text = BlockText(self.size, self.span, tuple(self.kept.values()), stages)
        if emitter.dialect.block_lanes:
            return replace(text, values=tuple(self.values(stages)))
        return replace(
            text,
            hoisted=tuple(
                (emitter.dialect.scalar(e.type), name, self.scalar.text(self.by_block(e)))
                for e, name in self.hoisted.items()
            ),
            stores=tuple(emitter.store_block(s, self.scalar.text(s.body)) for s in stores),
        )

    @property
    def stores(self) -> list[ir.Store]:
        """The stores of one value a block."""
        return [s for s in self.b.sinks if isinstance(s, ir.Store) and s.length != self.b.length]

    def by_block(self, e: ir.Expr) -> ir.Expr:
        """Return an expression of the elements of a block as one of the block's number."""
        return ir.rewrite(e, lambda x: ir.Position() if ir.block_of(x) == self.size else None)

    def values(self, stages: Sequence[Stage]) -> Iterator[Values]:
        """Yield what is worked out of blocks before each stage, as early as possible, and behind the last."""
        left, known = dict(self.hoisted), set[str]()
        for stage in (*stages, None):
            ready = {e: name for e, name in left.items() if self.needs(e) <= known}
            left = {e: name for e, name in left.items() if e not in ready}
            lanes = BlockLanes(self.emitter, self)
            hoisted = []
            for e, name in ready.items():
                value = self.by_block(e)
                hoisted.append((lanes.writer.lane_type(value), name, lanes.writer.write(value)))
            stores = [self.emitter.store_blocks(s, lanes.writer) for s in self.stores if stage is None]
            told = [ir.Read(name, ir.Position(), FLOAT) for name in self.told if stage is None]
            finite = tuple(lanes.writer.write(e) for e in told)
            yield Values(
                uniforms=lanes.declarations(),
                loads=tuple(lanes.loads.values()),
                position=lanes.writer.position,
                lines=tuple(lanes.writer.lines),
                hoisted=tuple(hoisted),
                stores=tuple(stores),
                finite=finite,
            )
            known |= {r.name for r in stage.reductions} if stage else set()

    def stages(self) -> Iterator[Stage]:
        """Yield the reductions in an order in which each finds those that it reads."""
        left = list(self.reduces)
        done: set[str] = set()
        written: set[ir.Expr] = set()
        while left:
            ready = [s for s in left if self.needs(s.body) <= done]
            lanes = Lanes(self.emitter, self.b, self, frozenset(done))
            reductions = [self.emitter.reduction(s, lanes.writer) for s in ready]
            inside = {x for s in ready for x in ir.walk(s.body)}
            kept = [(name, lanes.writer.write(e)) for e, name in self.kept.items() if e in inside - written]
            written |= inside
            yield Stage(
                uniforms=lanes.declarations(),
                unpacks=lanes.unpacks(),
                loads=tuple(lanes.loads.values()),
                position=lanes.writer.position,
                lines=tuple(lanes.writer.lines),
                reductions=tuple(reductions),
                kept=tuple(kept),
            )
            done |= {s.name for s in ready}
            left = [s for s in left if s not in ready]

    def needs(self, e: ir.Expr) -> set[str]:
        """Return the reductions of the same block that an expression reads."""
        return {x.vector for x in ir.walk(e) if isinstance(x, ir.Read) and x.vector in self.made}
