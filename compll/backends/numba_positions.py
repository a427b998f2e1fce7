"""Computed positions for Numba: gather, scatter, search, single elements, and the counts of a payload.

`k` is the frame: an element that is out of range reads 0, and `k.outside` says that it was asked for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.typing import signature
from numba.extending import intrinsic

from compll.backends.numba_convert import any_, broadcast, native, splat, widen
from compll.backends.numba_lanes import (
    BITS,
    WIDTH,
    Builder,
    Int32,
    Int64,
    Lanes,
    Mask,
    Value,
    both,
    call,
    has,
    i64,
    less,
    negation,
    resize,
    shift_right,
    suffix,
    u8,
    u32,
)
from compll.backends.numba_tiles import WHOLE, as_i64, existing, inner, is_whole, load, shared, store, unpack

I32, I64 = ir.IntType(32), ir.IntType(64)
EVERY = ir.Constant(Mask.llvm, [1] * WIDTH)


@intrinsic
def first_lanes(_: Any, live: Any) -> Any:
    """Return which lanes exist."""

    def emit(context: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        return EVERY if is_whole(live) else existing(context, b, v[0], live, WIDTH)

    return signature(Mask, live), emit


@intrinsic
def within(_: Any, at: Any, n: Any) -> Any:
    """Return whether Int64 lanes are positions of a vector of n elements."""

    def emit(context: Any, b: Builder, sig: Any, v: Sequence[Value]) -> Value:
        at_, n_ = as_i64(context, b, sig, v)
        most = b.select(b.icmp_signed("<", n_, I64(0)), I64(0), n_)
        return b.icmp_unsigned("<", at_, broadcast(b, most, at))

    return signature(Mask, at, n), emit


def _places(b: Builder, base: Value, at: Value, there: Value, one: Lanes) -> Value:
    """Emit the pointers to elements; those that must not be touched lead to memory of the function."""
    spare = cgutils.alloca_once(b, I64)
    b.store(I64(0), spare)
    size = ir.Constant(Int64.llvm, [BITS[one.kind] // 8] * WIDTH)
    place = b.add(broadcast(b, base, Int64), b.mul(at, size))
    place = b.select(there, place, broadcast(b, b.ptrtoint(spare, I64), Int64))
    return b.inttoptr(place, ir.VectorType(one.llvm.as_pointer(), WIDTH))


def _gather(b: Builder, base: Value, at: Value, there: Value, one: Lanes) -> Value:
    """Emit the elements at positions; 0 where not `there`."""
    raw = Lanes(one.kind, WIDTH)
    places = _places(b, base, at, there, one)
    name = f"llvm.masked.gather.{suffix(raw)}.v{WIDTH}p0"
    return call(b, name, raw.llvm, places, I32(1), EVERY, raw.constant(0))


@intrinsic
def gathered(_: Any, want: Any, stored: Any, base: Any, at: Any, there: Any) -> Any:
    """Return lanes of type `want` from the elements of type `stored` at positions; 0 where not `there`."""
    out, one = want.instance_type, stored.instance_type

    def emit(context: Any, b: Builder, sig: Any, v: Sequence[Value]) -> Value:
        _, _, base_, at_, there_ = as_i64(context, b, sig, v)
        return resize(b, _gather(b, base_, at_, there_, one), Lanes(one.kind, WIDTH), out)

    return signature(out, want, stored, base, at, there), emit


@inner
def gather(want: Any, stored: Any, base: Any, n: Any, at: Any, asked: Any, k: Any) -> Any:
    """Return the elements of a vector at computed positions."""
    there = within(at, n)
    if any_(both(asked, negation(there))):
        k.outside = 1
    return gathered(want, stored, base, at, there)


ROW = Lanes("i32", 16)  # what one instruction looks into
MOST_PICKED = 16 * ROW.width  # entries of a table that are found faster in registers than in the cache


def _rows(b: Builder, base: Value, count: int) -> list[Value]:
    """Emit a table of `count` entries of 32 bits as registers; behind its end the last entry repeats."""
    rows = []
    for first in range(0, count, ROW.width):
        some = ir.VectorType(I32, min(ROW.width, count - first))
        x = b.load(b.inttoptr(b.add(base, I64(4 * first)), some.as_pointer()), align=4)
        rows.append(_part(b, x, 0) if some.count < ROW.width else x)
    return rows


def _part(b: Builder, x: Value, first: int) -> Value:
    """Emit 16 elements from number `first` on; behind its end the last repeats."""
    order = [min(i, x.type.count - 1) for i in range(first, first + ROW.width)]
    return b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), ir.Constant(ROW.llvm, order))


def _pick(b: Builder, rows: Sequence[Value], at: Value, turns: Sequence[Value]) -> Value:
    """Emit entries of rows, a power of two of them, at the low bits of `at`.

    One instruction looks into two rows; of more, into the half that the first of the `turns` tells.
    """
    if len(rows) > 2:
        half = len(rows) // 2
        high, low = (_pick(b, part, at, turns[1:]) for part in (rows[half:], rows[:half]))
        return b.select(turns[0], high, low)
    name = "permvar.si" if len(rows) == 1 else "vpermi2var.d"
    found = []
    for first in range(0, WIDTH, ROW.width):
        args = rows[0], _part(b, at, first), *rows[1:]
        found.append(call(b, f"llvm.x86.avx512.{name}.512", ROW.llvm, *args))
    return b.shuffle_vector(*found, ir.Constant(Int32.llvm, list(range(WIDTH))))


@intrinsic(prefer_literal=True)
def lookup(_: Any, want: Any, stored: Any, base: Any, count: Any, at: Any) -> Any:
    """Return the entries of a table of `count` at Int32 positions that are in range."""
    out, one, entries = want.instance_type, stored.instance_type, count.literal_value
    raw = Lanes(one.kind, WIDTH)

    def emit(context: Any, b: Builder, sig: Any, v: Sequence[Value]) -> Value:
        _, _, base_, _, at_ = as_i64(context, b, sig, v)
        if has("avx512f") and BITS[one.kind] == 32 and entries <= MOST_PICKED:
            bits = (entries - 1).bit_length()
            rows = _rows(b, base_, entries)
            rows += rows[-1:] * (max(1, (1 << bits) // ROW.width) - len(rows))
            tells = [b.and_(at_, Int32.constant(1 << bit)) for bit in reversed(range(bits))]
            turns = [b.icmp_unsigned("!=", tell, Int32.constant(0)) for tell in tells]
            found = b.bitcast(_pick(b, rows, at_, turns), raw.llvm)
        else:
            found = _gather(b, base_, b.sext(at_, Int64.llvm), EVERY, one)
        return resize(b, found, raw, out)

    return signature(out, want, stored, base, count, at), emit


@intrinsic(prefer_literal=True)
def search_tree(_: Any, kind: Any, base: Any, levels: Any, x: Any) -> Any:
    """Return how many entries are below x, in lanes of 32 bits; the table is a tree of so many levels.

    Its node 1 is the root, 2 i and 2 i + 1 are below i: at the end of the way down stands the count.
    """
    out, depth = kind.instance_type, levels.literal_value

    def emit(context: Any, b: Builder, sig: Any, v: Sequence[Value]) -> Value:
        _, base_, _, x_ = as_i64(context, b, sig, v)
        picked, node, turns = has("avx512f") and 1 << depth <= MOST_PICKED, Int32.constant(1), list[Value]()
        rows = _rows(b, base_, 1 << depth) if picked else []
        for level in range(depth):
            if picked:
                own = rows[(1 << level) // ROW.width : max(1, (2 << level) // ROW.width)]
                entry = b.bitcast(_pick(b, own, node, turns), x.llvm)
            else:
                entry = _gather(b, base_, b.zext(node, Int64.llvm), EVERY, Lanes(x.kind))
            turns.append(less(b, x, (entry, x_)))
            node = b.add(b.shl(node, Int32.constant(1)), b.zext(turns[-1], Int32.llvm))
        return resize(b, b.sub(node, Int32.constant(1 << depth)), Int32, out)

    return signature(out, kind, base, levels, x), emit


@inner
def gather_bits(width: Any, base: Any, n: Any, at: Any, asked: Any, k: Any) -> Any:
    """Return the codes of a packed vector at computed positions, as Int32 lanes."""
    there = within(at, n)
    if any_(both(asked, negation(there))):
        k.outside = 1
    first = at * splat(Int64, width)
    last = first + splat(Int64, width - 1)  # in the same byte or in the next one
    low = gathered(Int32, u8, base, shift_right(first, splat(Int64, 3)), there)
    high = gathered(Int32, u8, base, shift_right(last, splat(Int64, 3)), there)
    two = low | shift_left_8(high)
    return shift_right(two, widen(Int32, first & splat(Int64, 7))) & splat(Int32, (1 << width) - 1)


# A position whose bits are kept and flipped as constants say: `keep` and `flip` are of the lanes' numbers.
far, far_bits = shared(gather.py_func), shared(gather_bits.py_func)


@intrinsic(prefer_literal=True)
def numbered(_: Any, want: Any, first: Any, keep: Any, flip: Any) -> Any:
    """Return `first` + what becomes of the lanes' numbers."""
    out = want.instance_type
    order = [lane & keep.literal_value ^ flip.literal_value for lane in range(WIDTH)]

    def emit(context: Any, b: Builder, sig: Any, v: Sequence[Value]) -> Value:
        begin = resize(b, as_i64(context, b, sig, v)[1], i64, Lanes(out.kind))
        return b.add(broadcast(b, begin, out), ir.Constant(out.llvm, order))

    return signature(out, want, first, keep, flip), emit


@intrinsic(prefer_literal=True)
def ordered(_: Any, x: Any, keep: Any, flip: Any) -> Any:
    """Return lanes in the order of what becomes of their numbers."""
    order = [lane & keep.literal_value ^ flip.literal_value for lane in range(WIDTH)]

    def emit(_c: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        none, picks = ir.Constant(v[0].type, ir.Undefined), ir.Constant(ir.VectorType(I32, WIDTH), order)
        return b.shuffle_vector(v[0], none, picks)

    return signature(x, x, keep, flip), emit


@inner
def near(
    want: Any, stored: Any, base: Any, n: Any, first: Any, keep: Any, flip: Any, asked: Any, k: Any
) -> Any:
    """Return the elements of a vector from `first` on in an order: one load where they are all in range."""
    if first >= 0 and first + WIDTH <= n:
        x = ordered(load(want, stored, base, first, WHOLE), keep, flip)
    else:
        x = far(want, stored, base, n, numbered(Int64, first, keep, flip), asked, k)
    return x


@inner
def near_codes(width: Any, base: Any, n: Any, first: Any, keep: Any, flip: Any, asked: Any, k: Any) -> Any:
    """Return the codes of a packed vector from `first` on in an order, as Int32 lanes."""
    if first >= 0 and first + WIDTH <= n:
        x = ordered(unpack(width, base, first, WHOLE), keep, flip)
    else:
        x = far_bits(width, base, n, numbered(Int64, first, keep, flip), asked, k)
    return x


@inner
def near_one(want: Any, stored: Any, base: Any, n: Any, at: Any, asked: Any, k: Any) -> Any:
    """Return one element of a vector in all lanes."""
    x = splat(want, 0)
    if 0 <= at < n:
        x = splat(want, load(stored, stored, base, at, WHOLE))
    elif any_(asked):
        k.outside = 1
    return x


@intrinsic
def shift_left_8(_: Any, x: Any) -> Any:
    """Return lanes times 256."""
    return signature(x, x), lambda _c, b, _s, v: b.shl(v[0], x.constant(8))


@intrinsic
def scatter(_: Any, stored: Any, base: Any, at: Any, x: Any, live: Any) -> Any:
    """Store lanes as elements of type `stored` at their positions."""
    one = stored.instance_type
    raw = Lanes(one.kind, WIDTH)

    def emit(context: Any, b: Builder, sig: Any, v: Sequence[Value]) -> Value:
        _, base_, at_, x_, live_ = as_i64(context, b, sig, v)
        there = EVERY if is_whole(live) else existing(context, b, live_, types.int64, WIDTH)
        places = _places(b, base_, at_, there, one)
        name = f"llvm.masked.scatter.{suffix(raw)}.v{WIDTH}p0"
        call(b, name, ir.VoidType(), resize(b, x_, x, raw), places, I32(1), EVERY)
        return context.get_dummy_value()

    return signature(types.none, stored, base, at, x, live), emit


@inner
def read_at(kind: Any, stored: Any, base: Any, n: Any, at: Any, k: Any) -> Any:
    """Return one element as a scalar."""
    x, i = splat(kind, 0), native(at)
    if 0 <= i < n:
        x = load(kind, stored, base, i, WHOLE)
    else:
        k.outside = 1
    return x


@inner
def read_bits(width: Any, base: Any, n: Any, at: Any, k: Any) -> Any:
    """Return one code of a packed vector as a scalar."""
    x, i = splat(i64, 0), native(at)
    if 0 <= i < n:
        first, last = i * width, i * width + width - 1
        low = native(load(i64, u8, base, first >> 3, WHOLE))
        high = native(load(i64, u8, base, last >> 3, WHOLE))
        x = splat(i64, (low | high << 8) >> (first & 7) & (1 << width) - 1)
    else:
        k.outside = 1
    return x


@intrinsic
def below(_: Any, entry: Any, x: Any) -> Any:
    """Return 1 where an entry of a table is below x, else 0; of x's width."""
    out = Lanes("i64" if x.width == 1 else "i32", x.width)

    def emit(_c: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        limit = broadcast(b, v[0], x)
        if x.kind == "f32":
            less = b.fcmp_ordered("<", limit, v[1])
        else:
            less = (b.icmp_signed if x.signed else b.icmp_unsigned)("<", limit, v[1])
        return b.zext(less, out.llvm)

    return signature(out, entry, x), emit


@inner
def search(kind: Any, table: Any, x: Any) -> Any:
    """Return how many of the ascending entries are below x, in lanes or as a scalar."""
    found = below(table[0], x)
    for entry in table[1:]:
        found = found + below(entry, x)
    return widen(kind, found)


@shared
def ascends(index: Any, count: Any, most: Any) -> Any:
    """Return whether the `count` int64 elements at an address are strictly ascending from 0 below `most`."""
    if count <= 0:
        return True
    before = native(load(i64, i64, index, 0, WHOLE))
    fits = before >= 0
    for i in range(1, count):
        own = native(load(i64, i64, index, i, WHOLE))
        fits &= before < own
        before = own
    return fits & (before < most)


# --- counts: a payload begins with them, of 4 bytes each, from 2^32 elements on of 8 ------------------------


@inner
def count_bytes(n: Any) -> Any:
    """Return the bytes of a count."""
    return 4 if n < 1 << 32 else 8


@inner
def put_count(payload: Any, number: Any, n: Any, count: Any) -> None:
    """Write a count."""
    if count_bytes(n) == 4:
        store(u32, payload, number, splat(i64, count), WHOLE)
    else:
        store(i64, payload, number, splat(i64, count), WHOLE)


@inner
def get_count(payload: Any, number: Any, n: Any) -> Any:
    """Read a count."""
    if count_bytes(n) == 4:
        return native(load(i64, u32, payload, number, WHOLE))
    return native(load(i64, i64, payload, number, WHOLE))
