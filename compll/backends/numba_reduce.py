"""The one order of reduction for Numba: 8 rows of 128 lanes a tile, in order; lanes by halves; then tiles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core.typing import signature
from numba.extending import intrinsic

from compll.backends.numba_convert import first
from compll.backends.numba_lanes import BLOCKS, LANES, ROWS, TILE, WIDTH, Builder, Value
from compll.backends.numba_tiles import WHOLE, buffer_of, constants, inner, keep, left, load, shared, store

I32 = ir.IntType(32)


@intrinsic(prefer_literal=True)
def down(_: Any, x: Any, by: Any) -> Any:
    """Return lanes moved down by so many places."""

    def emit(_c: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        order = [(j + by.literal_value) % WIDTH for j in range(WIDTH)]
        return b.shuffle_vector(
            v[0], ir.Constant(x.llvm, ir.Undefined), ir.Constant(ir.VectorType(I32, WIDTH), order)
        )

    return signature(x, x, by), emit


@intrinsic(prefer_literal=True)
def in_turns(_: Any, x: Any, y: Any, of: Any, upper: Any) -> Any:
    """Return the lower, or upper, halves of runs of 2 `of` lanes, of x and y in turns."""
    width = of.literal_value

    def emit(_c: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        runs = [
            run % 2 * WIDTH + (run // 2 * 2 + upper.literal_value) * width for run in range(WIDTH // width)
        ]
        order = [run + lane for run in runs for lane in range(width)]
        return b.shuffle_vector(v[0], v[1], ir.Constant(ir.VectorType(I32, WIDTH), order))

    return signature(x, x, y, of, upper), emit


@intrinsic(prefer_literal=True)
def closed_up(_: Any, x: Any, of: Any, upper: Any) -> Any:
    """Return the lower, or upper, halves of runs of 2 `of` lanes, one behind the other; then they repeat."""
    width = of.literal_value

    def emit(_c: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        runs = [(run * 2 + upper.literal_value) * width % WIDTH for run in range(WIDTH // width)]
        order = [run + lane for run in runs for lane in range(width)]
        none, picks = ir.Constant(x.llvm, ir.Undefined), ir.Constant(ir.VectorType(I32, WIDTH), order)
        return b.shuffle_vector(v[0], none, picks)

    return signature(x, x, of, upper), emit


def reduction(f: Any) -> tuple[Any, Any, Any, Any, Any]:
    """Return the functions that reduce lanes in memory, tile results, and lanes of many blocks by `f`.

    They hold `f` as a name of theirs: as an argument Numba could not keep the kernel in its cache.  It takes
    lanes, how many of them are there, and the frame, of which it may read something: it must be asked for
    nothing that the order of reduction does not ask for.
    """

    @constants
    def fold_far(kind: Any, stored: Any, lanes: Any, count: Any, k: Any) -> Any:
        """Return what halves leave of LANES values in memory, of which `count` are there: WIDTH of them."""
        w = LANES // 2
        while w >= WIDTH:
            for j in range(0, w, WIDTH):
                a = load(kind, stored, lanes, j, WHOLE)
                b = load(kind, stored, lanes, j + w, WHOLE)
                live = left(count - w, j)
                store(stored, lanes, j, keep(live, f(a, b, live, k), a), WHOLE)
            w //= 2
        return load(kind, stored, lanes, 0, WHOLE)

    def fold(kind: Any, stored: Any, lanes: Any, count: Any, k: Any) -> Any:
        """Return f over LANES values in memory by halves: lane j < w becomes f(a[j], a[j + w]).

        Lanes from `count` on are absent and skipped.
        """
        a = fold_far(kind, stored, lanes, count, k)
        live = min(count - 16, 16)
        a = keep(live, f(a, down(a, 16), live, k), a)
        live = min(count - 8, 8)
        a = keep(live, f(a, down(a, 8), live, k), a)
        live = min(count - 4, 4)
        a = keep(live, f(a, down(a, 4), live, k), a)
        live = min(count - 2, 2)
        a = keep(live, f(a, down(a, 2), live, k), a)
        live = min(count - 1, 1)
        a = keep(live, f(a, down(a, 1), live, k), a)
        return first(a)

    fold_any, fold_known = shared(fold), constants(fold)

    @shared
    def reduce_tiles(kind: Any, stored: Any, values: Any, count: Any, k: Any) -> Any:
        """Return `count` > 0 scalars in memory reduced by the same rule; they are overwritten."""
        lanes = buffer_of(stored)
        while count > 1:
            tiles = (count + TILE - 1) // TILE
            for tile in range(tiles):
                rest = min(count - tile * TILE, TILE)
                for block in range(BLOCKS):
                    a = load(kind, stored, values, tile * TILE + block * WIDTH, left(rest, block * WIDTH))
                    for row in range(1, ROWS):
                        at = row * LANES + block * WIDTH
                        live = left(rest, at)
                        x = load(kind, stored, values, tile * TILE + at, live)
                        a = keep(live, f(a, x, live, k), a)
                    store(stored, lanes, block * WIDTH, a, WHOLE)
                store(stored, values, tile, fold_any(kind, stored, lanes, rest, k), WHOLE)
            count = tiles
        return load(stored, stored, values, 0, WHOLE)

    @inner
    def pairs(kind: Any, stored: Any, rows: Any, count: Any, of: Any, k: Any) -> None:
        """Halve the lanes of rows in memory: two rows become one, or one is closed up."""
        for j in range(max(count // 2, 1)):
            a = load(kind, stored, rows, j * WIDTH, WHOLE)
            if count > 1:
                b = load(kind, stored, rows, (j + count // 2) * WIDTH, WHOLE)
                a = f(in_turns(a, b, of, 0), in_turns(a, b, of, 1), WIDTH, k)
            else:
                a = f(closed_up(a, of, 0), closed_up(a, of, 1), WIDTH, k)
            store(stored, rows, j * WIDTH, a, WHOLE)

    @constants
    def fold_rows(kind: Any, stored: Any, rows: Any, live: Any, count: Any, k: Any) -> Any:
        """Return in lane j what WIDTH lanes are folded to, row j in memory, for `live` rows.

        There is room for `count`, a power of two; rows that are not there are made equal to the first one.
        """
        for j in range(live, count):
            store(stored, rows, j * WIDTH, load(kind, stored, rows, 0, WHOLE), WHOLE)
        pairs(kind, stored, rows, count, 16, k)
        pairs(kind, stored, rows, count // 2, 8, k)
        pairs(kind, stored, rows, count // 4, 4, k)
        pairs(kind, stored, rows, count // 8, 2, k)
        pairs(kind, stored, rows, count // 16, 1, k)
        return load(kind, stored, rows, 0, WHOLE)

    return fold_any, fold_known, reduce_tiles, fold_far, fold_rows
