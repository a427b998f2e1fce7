"""What passes keep for Numba: positions and values where something holds, in parts of scratch memory.

A part is for `granule` tiles, which one thread goes through in order; it has room for WIDTH elements more
than can be kept.  `found` has the number of those that are kept in each part, and then their sums.  `k` is
the frame: `k.length` elements were looked at, `k.rank` are wanted at most, `k.result` is how many there are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing import signature
from numba.extending import intrinsic

from compll.backends.numba_convert import native, splat
from compll.backends.numba_lanes import TILE, WIDTH, Builder, Int64, Lanes, Value, call, has, i64, u32
from compll.backends.numba_tiles import WHOLE, as_i64, existing, inner, is_whole, left, load, shared, store

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
HALF = Lanes("u32", 16)  # what one instruction moves together
BITS = ir.IntType(WIDTH)


# --- in a pass --------------------------------------------------------------------------------------------


@intrinsic
def bits_where(_: Any, holds: Any, live: Any) -> Any:
    """Return for which lanes that exist a condition holds, as the bits of a number."""

    def emit(context: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        x = v[0] if is_whole(live) else b.and_(v[0], existing(context, b, v[1], live, WIDTH))
        return b.zext(b.bitcast(x, BITS), I64)

    return signature(types.int64, holds, live), emit


@intrinsic
def ones(_: Any, word: Any) -> Any:
    """Return how many bits of a number are set."""
    return signature(types.int64, word), lambda _c, b, _s, v: b.ctpop(v[0])


@intrinsic
def lowest(_: Any, word: Any) -> Any:
    """Return the number of the lowest bit that is set; there is one."""
    return signature(types.int64, word), lambda _c, b, _s, v: b.cttz(v[0], ir.Constant(ir.IntType(1), 1))


@intrinsic
def spill(_: Any, x: Any) -> Any:
    """Return the address of memory that holds lanes, of the function that asks."""

    def emit(_c: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        place = cgutils.alloca_once(b, v[0].type)
        b.store(v[0], place)
        return b.ptrtoint(place, I64)

    return signature(types.int64, x), emit


@inner
def put_each(base: Any, at: Any, bits: Any, x: Any) -> None:
    """Store those of 32-bit lanes whose bits are set, side by side, from element `at` on."""
    lanes, to = spill(x), at
    while bits != 0:
        store(u32, base, to, load(u32, u32, lanes, lowest(bits), WHOLE), WHOLE)
        to += 1
        bits &= bits - 1


@intrinsic
def put_together(_: Any, base: Any, at: Any, bits: Any, x: Any) -> Any:
    """Do the same with an instruction of the processor's: it overwrites WIDTH elements."""

    def emit(context: Any, b: Builder, sig: Any, v: Sequence[Value]) -> Value:
        base_, at_, bits_, _ = as_i64(context, b, sig, v)
        lanes, none = b.bitcast(v[3], ir.VectorType(I32, WIDTH)), HALF.constant(0)
        for first in range(0, WIDTH, HALF.width):
            order = ir.Constant(HALF.llvm, list(range(first, first + HALF.width)))
            own = b.trunc(b.lshr(bits_, I64(first)), ir.IntType(HALF.width))
            part = b.shuffle_vector(lanes, ir.Constant(lanes.type, ir.Undefined), order)
            which = b.bitcast(own, Lanes("bool", HALF.width).llvm)
            kept = call(b, "llvm.x86.avx512.mask.compress.v16i32", HALF.llvm, part, none, which)
            place = b.add(base_, b.mul(at_, I64(4)))
            b.store(kept, b.inttoptr(place, HALF.llvm.as_pointer()), align=4)
            at_ = b.add(at_, b.zext(b.ctpop(own), I64))
        return context.get_dummy_value()

    return signature(types.none, base, at, bits, x), emit


put = put_together if has("avx512f") else put_each


@inner
def begin_of(part: Any, granule: Any) -> Any:
    """Return where a part begins."""
    return part * (granule * TILE + WIDTH)


@inner
def kept_before(found: Any, tile: Any, granule: Any) -> Any:
    """Return how many elements a part has from the tiles before this one."""
    return native(load(i64, i64, found, tile // granule, WHOLE)) if tile % granule else 0


# --- afterwards -------------------------------------------------------------------------------------------


@inner
def parts_of(length: Any, granule: Any) -> Any:
    """Return how many parts so many elements have."""
    return (max(length, 0) + granule * TILE - 1) // (granule * TILE)


@inner
def sums_before(found: Any, length: Any, granule: Any) -> Any:
    """Make of the parts' numbers the sums of those before; return the sum of all."""
    total = 0
    for part in range(parts_of(length, granule)):
        own = native(load(i64, i64, found, part, WHOLE))
        store(i64, found, part, splat(i64, total), WHOLE)
        total += own
    return total


@inner
def kept_in_all(k: Any) -> Any:
    """Return how many elements are selected."""
    return min(k.result, max(k.rank, 0))


@inner
def kept_of(found: Any, part: Any, granule: Any, k: Any) -> Any:
    """Return where the selected elements of a part go, and how many they are."""
    at, end = native(load(i64, i64, found, part, WHOLE)), k.result
    if part + 1 < parts_of(k.length, granule):
        end = native(load(i64, i64, found, part + 1, WHOLE))
    return at, min(end, kept_in_all(k)) - at


@shared
def join_places(out: Any, at: Any, places: Any, part: Any, granule: Any, count: Any) -> None:
    """Write the positions of a part's elements: those in the part are kept."""
    begin, first = begin_of(part, granule), splat(Int64, part * granule * TILE)
    for j in range(0, count - WIDTH + 1, WIDTH):
        own = load(Int64, u32, places, begin + j, WHOLE)
        store(i64, out, at + j, own + first, WHOLE)
    done = max(count, 0) // WIDTH * WIDTH
    own = load(Int64, u32, places, begin + done, WHOLE)  # a part has room for so many
    store(i64, out, at + done, own + first, left(count, done))


@intrinsic
def copy_words(_: Any, to: Any, source: Any, count: Any) -> Any:
    """Copy so many elements of 32 bits from one address to another."""

    def emit(context: Any, b: Builder, sig: Any, v: Sequence[Value]) -> Value:
        to_, source_, count_ = as_i64(context, b, sig, v)
        pointer = I8.as_pointer()
        size = b.mul(count_, I64(4))
        cgutils.raw_memcpy(b, b.inttoptr(to_, pointer), b.inttoptr(source_, pointer), size, 1)
        return context.get_dummy_value()

    return signature(types.none, to, source, count), emit


@inner
def join_values(out: Any, at: Any, kept: Any, part: Any, granule: Any, count: Any) -> None:
    """Write the values that are kept of a part's elements."""
    if count > 0:
        copy_words(out + at * 4, kept + begin_of(part, granule) * 4, count)
