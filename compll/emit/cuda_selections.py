"""What selections become on CUDA: kernels over tiles, and what one thread block does between them."""

from __future__ import annotations

from collections.abc import Iterator

from compll import ir
from compll.emit.pieces import Step
from compll.emit.ranges import scalar_type
from compll.emit.selections import BINS, Selections
from compll.types import INT, Elem

DIGIT = 11
"""Bits of a key that one round of a selection by rank looks at: `BINS` counters."""
RUN, RUN_DIGIT = 4096, 8
"""A round of a sort moves so many elements a warp, by a digit of so many bits."""


class CudaSelections(Selections):
    """Spells what works on scratch vectors.

    The calls are those of `selection.cuh` and `sort.cuh`.  They are put off into launches: step kinds "tiles"
    and "check" are calls by warps that share out the tiles of an item, and "block" is one by all threads of
    the block on an item.
    """

    fallible: bool

    def lowered(self, b: ir.Lowered) -> Iterator[Step]:
        """Yield the steps of what a selection became."""
        match b:
            case ir.Compact(name, count, mask, length, limit):
                first = self.work(f"{name}_first", "int64_t", self.tiles_of(length))
                bits = f"k.v_{mask.vector}, {self.scalar.text(length)}, {first}"
                most = "INT64_MAX" if limit is None else self.scalar.text(limit)
                self.scalars.append(self.member(count, INT))
                yield Step("tiles", f"count_bits(part, {bits})")
                yield Step("block", f"count_first({first}, {self.scalar.text(length)}, {most}, k.{count}_)")
                yield from self.counted(count)
                yield Step("tiles", f"write_bits(part, {bits}, k.{count}_, k.v_{name})")
            case ir.Select(name, keys, length, k, _, block) if block:
                args = f"k.v_{keys.vector}, {self.scalar.text(length)}, {self.scalar.text(k)}, {block}"
                yield Step("tiles", f"select_blocks(part, {args}, k.v_{name})")
            case ir.Select(name, keys, length, k, _, _):
                size = self.scalar.text(length)
                rank = f"smaller<int64_t>({self.scalar.text(k)}, {size}) - 1"
                yield from self.ranked(name, keys, length, rank)
                yield Step("block", f"sums_before(k.{name}_below, tiles_of({size}))")
                yield Step("block", f"sums_before(k.{name}_equal, tiles_of({size}))")
                args = f"k.v_{keys.vector}, {size}, k.{name}_rank, k.{name}_below, k.{name}_equal"
                yield Step("tiles", f"write_least(part, {args}, k.v_{name})")
            case ir.Nth(name, keys, values, length, rank):
                self.fallible = True
                size = self.scalar.text(length)
                self.scalars.append(self.member(name, values.type))
                yield from self.ranked(name, keys, length, self.scalar.text(rank))
                args = f"k.v_{keys.vector}, k.v_{values.vector}, {size}, k.{name}_rank, k.{name}_equal"
                yield Step("block", f"find_ranked({args}, k.{name}_, k.outside)")
            case ir.Arrange(name, keys, values, length, block):
                yield from self.arranged(name, keys, values, length, block)
                self.alias(name, values.vector, scalar_type(values.type))
            case ir.Ascends(ir.Read(index), count, length, checked):
                self.fallible = True
                args = f"k.v_{index}, {self.scalar.text(count)}, {self.scalar.text(length)}"
                wrong = "REFUSED" if checked else "OUT_OF_RANGE"
                yield Step("check", f"ascends(part, {args}, item.status, {wrong})")

    def ranked(self, name: str, keys: ir.Read, length: ir.Expr, rank: str) -> Iterator[Step]:
        """Find the key of a rank digit by digit; count in each tile the keys below it and equal to it."""
        size, at = self.scalar.text(length), self.work(f"{name}_rank", "Rank", ir.const(1, INT))
        bins = self.work(f"{name}_bins", "uint64_t", ir.const(BINS, INT))
        below, equal = (
            self.work(f"{name}_{what}", "int64_t", self.tiles_of(length)) for what in ("below", "equal")
        )
        yield Step("block", f"begin_rank({at}, {bins}, {rank}, {size})")
        for left in range(_bits(keys.type), 0, -DIGIT):
            yield Step("tiles", f"count_digits<{left}>(part, k.v_{keys.vector}, {size}, {at}, {bins})")
            yield Step("block", f"pick_digit<{left}>({at}, {bins})")
        yield Step("tiles", f"count_ranked(part, k.v_{keys.vector}, {size}, {at}, {below}, {equal})")

    def arranged(
        self, name: str, keys: ir.Read, values: ir.Read, length: ir.Expr, block: int
    ) -> Iterator[Step]:
        """Sort by digits, the lowest first: in each block by one warp, or all, run by run."""
        size, most = self.scalar.text(length), self.most_of(length)
        spare_keys = self.work(f"{name}_spare_keys", scalar_type(keys.type), most)
        spare = self.work(f"{name}_spare", scalar_type(values.type), most)
        have, other = f"k.v_{keys.vector}, k.v_{values.vector}", f"{spare_keys}, {spare}"
        if block:
            yield Step("tiles", f"arrange_blocks(part, {have}, {other}, {size}, {block})")
            return
        rows = ir.apply("+", ir.blocks(most, RUN), ir.const(1, INT))  # of counts: of each run, and of all
        first = self.work(f"{name}_first", "int64_t", ir.apply("*", rows, ir.const(1 << RUN_DIGIT, INT)))
        for shift in range(0, _bits(keys.type), RUN_DIGIT):  # an even number of times: they end in place
            yield Step("tiles", f"count_runs(part, {have.partition(',')[0]}, {size}, {shift}, {first})")
            yield Step("tiles", f"sum_runs(part, {size}, {first})")
            yield Step("block", f"sums_before({first} + DIGITS * runs_of({size}), DIGITS)")
            yield Step("tiles", f"move_runs(part, {have}, {other}, {size}, {shift}, {first})")
            have, other = other, have


def _bits(key: Elem) -> int:
    return 64 if key == INT else key.bits
