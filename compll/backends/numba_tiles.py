"""Tiles for Numba: memory, packing, random numbers and the one order of reduction, on lanes.

An address is an `int64`.  `live` says how many of the lanes exist: the constant `WHOLE` inside a tile that
is full, a number at a ragged end, where only these lanes are read and written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.core.imputils import lower_constant
from numba.core.typing import signature
from numba.extending import intrinsic, models, register_model, typeof_impl

from compll.backends.numba_convert import broadcast
from compll.backends.numba_lanes import (
    BITS,
    LANES,
    TILE,
    WIDTH,
    Builder,
    Value,
    call,
    resize,
)
from compll.backends.numba_lanes import Lanes as LanesType

I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
shared = njit(nogil=True, error_model="numpy")
constants = njit(forceinline=True, nogil=True, error_model="numpy")  # compiled by LLVM for arguments it knows
inner = njit(inline="always", nogil=True, error_model="numpy")  # compiled into the kernels that call it


class Whole:
    """That all lanes exist."""


class _WholeType(types.Type):
    def __init__(self) -> None:
        super().__init__(name="whole")


WHOLE = Whole()
_whole = _WholeType()
register_model(_WholeType)(models.OpaqueModel)


@typeof_impl.register(Whole)
def _typeof(value: Whole, _: object) -> Any:  # noqa: ARG001
    return _whole


@lower_constant(_WholeType)
def _constant(context: Any, *_: object) -> Value:
    return context.get_dummy_value()


def is_whole(live: Any) -> bool:
    """Whether the type of `live` says that all lanes exist."""
    return bool(live == _whole)


# --- memory -------------------------------------------------------------------------------------------


def _pointer(b: Builder, base: Value, elements: Value, bits: int, what: Any) -> Value:
    """Emit the pointer to element `elements` (of so many bits each) behind the address `base`."""
    offset = (
        b.mul(elements, ir.Constant(I64, bits)) if bits % 8 else b.mul(elements, ir.Constant(I64, bits // 8))
    )
    if bits % 8:
        offset = b.lshr(offset, ir.Constant(I64, 3))
    place = b.gep(b.inttoptr(base, I8.as_pointer()), [offset], source_etype=I8)
    return b.bitcast(place, what.as_pointer())


def _iota(kind: LanesType) -> Value:
    return ir.Constant(kind.llvm, list(range(kind.width)))


def existing(context: Any, b: Builder, live: Value, have: Any, width: int) -> Value:
    """Emit the condition that a lane is one of the first `live`."""
    count = context.cast(b, live, have, types.int64)
    zero, most = ir.Constant(I64, 0), ir.Constant(I64, width)
    count = b.select(b.icmp_signed("<", count, zero), zero, count)
    count = b.trunc(b.select(b.icmp_signed(">", count, most), most, count), I32)
    limit = broadcast(b, count, LanesType("i32", width))
    return b.icmp_signed("<", _iota(LanesType("i32", width)), limit)


def _copy(b: Builder, to: Value, source: Value, size: Value) -> None:
    pointer = I8.as_pointer()
    cgutils.raw_memcpy(b, b.bitcast(to, pointer), b.bitcast(source, pointer), size, 1)


def _read(b: Builder, place: Value, what: Any, size: Callable[[], Value] | None) -> Value:
    """Emit a load; of a ragged end only `size()` bytes, the others are 0."""
    if size is None:
        return b.load(place, align=1)
    buffer = cgutils.alloca_once(b, what)
    b.store(ir.Constant(what, None), buffer)
    _copy(b, buffer, place, size())
    return b.load(buffer)


def _write(b: Builder, place: Value, x: Value, size: Callable[[], Value] | None) -> None:
    """Emit a store; at a ragged end only of `size()` bytes."""
    if size is None:
        b.store(x, place, align=1)
        return
    buffer = cgutils.alloca_once(b, x.type)
    b.store(x, buffer)
    _copy(b, place, buffer, size())


def _bytes(b: Builder, live: Value, kind: Any, bits: int) -> Callable[[], Value] | None:
    """Return what emits the number of bytes that `live` elements of so many bits take; None if all live."""
    if kind == _whole:
        return None
    return lambda: b.lshr(
        b.add(b.mul(live, ir.Constant(I64, bits)), ir.Constant(I64, 7)), ir.Constant(I64, 3)
    )


def as_i64(context: Any, b: Builder, sig: Any, values: Sequence[Value]) -> list[Value]:
    """Cast every integer argument to 64 bits."""
    return [
        context.cast(b, v, t, types.int64) if isinstance(t, types.Integer) else v
        for t, v in zip(sig.args, values, strict=True)
    ]


def _loader(ahead: int) -> Any:
    """Return the function that loads lanes, and fetches those `ahead` elements on into the cache."""

    @intrinsic
    def load(_: Any, want: Any, stored: Any, base: Any, at: Any, live: Any) -> Any:
        out, store = want.instance_type, stored.instance_type
        raw = LanesType(store.kind, out.width)
        bits = BITS[store.kind]

        def emit(context: Any, b: Builder, sig: Any, values: Sequence[Value]) -> Value:
            _, _, base_, at_, live_ = as_i64(context, b, sig, values)
            for line in range(0, WIDTH * bits // 8 if ahead and live == _whole else 0, 64):
                later = b.add(base_, ir.Constant(I64, ahead * bits // 8 + line))
                place = _pointer(b, later, at_, bits, I8)
                call(b, "llvm.prefetch.p0", ir.VoidType(), place, I32(0), I32(3), I32(1))
            x = _read(b, _pointer(b, base_, at_, bits, raw.llvm), raw.llvm, _bytes(b, live_, live, bits))
            return resize(b, x, raw, out)

        return signature(out, want, stored, base, at, live), emit

    return load


# load(T, S, base, at, live): lanes of type T from elements of type S, from element `at` on.  A tile is walked
# lane by lane, down its rows, which no processor foresees: `stream` has the next tile fetched meanwhile.
load, stream = _loader(0), _loader(TILE)


@intrinsic
def store(_: Any, stored: Any, base: Any, at: Any, x: Any, live: Any) -> Any:
    """Store lanes as elements of type `stored`, from element `at` on."""
    raw = LanesType(stored.instance_type.kind, x.width)

    def emit(context: Any, b: Builder, sig: Any, values: Sequence[Value]) -> Value:
        _, base_, at_, x_, live_ = as_i64(context, b, sig, values)
        bits = BITS[raw.kind]
        _write(
            b, _pointer(b, base_, at_, bits, raw.llvm), resize(b, x_, x, raw), _bytes(b, live_, live, bits)
        )
        return context.get_dummy_value()

    return signature(types.none, stored, base, at, x, live), emit


@intrinsic
def buffer_of(_: Any, kind: Any) -> Any:
    """Return the address of memory for LANES elements, of the function that asks."""
    element = kind.instance_type.llvm

    def emit(context: Any, b: Builder, _s: Any, _v: Any) -> Value:  # noqa: ARG001
        place = cgutils.alloca_once(b, ir.ArrayType(element, LANES))
        place.align = 64
        return b.ptrtoint(place, I64)

    return signature(types.int64, kind), emit


@intrinsic(prefer_literal=True)
def memory(_: Any, kind: Any, count: Any) -> Any:
    """Return the address of memory for so many elements, of the function that asks."""
    whole = ir.ArrayType(kind.instance_type.llvm, count.literal_value)

    def emit(_c: Any, b: Builder, _s: Any, _v: Any) -> Value:
        return b.ptrtoint(cgutils.alloca_once(b, whole), I64)

    return signature(types.int64, kind, count), emit


@intrinsic(prefer_literal=True)
def per_block(
    _: Any, want: Any, stored: Any, base: Any, at: Any, size: Any, first: Any, live: Any, step: Any
) -> Any:
    """Return lanes from element `at` on, of vectors with one value for each block of `size` elements.

    The first value is that of block `first`; lanes that do not exist read one that does.  Lanes begin at
    multiples of WIDTH from a multiple of `step` on.
    """
    out, one = want.instance_type, LanesType(stored.instance_type.kind)
    several, aligned = size.literal_value, step.literal_value % WIDTH == 0
    single = aligned and several % WIDTH == 0

    def emit(context: Any, b: Builder, sig: Any, values: Sequence[Value]) -> Value:
        _, _, base_, at_, size_, first_, live_, _ = as_i64(context, b, sig, values)
        zero = ir.Constant(I64, 0)

        def read(lane: int) -> Value:
            place = b.add(at_, ir.Constant(I64, lane))
            if live != _whole:
                place = b.select(b.icmp_signed("<", ir.Constant(I64, lane), live_), place, at_)
                place = b.select(b.icmp_signed("<", zero, live_), place, b.mul(first_, size_))
            block = b.sub(b.udiv(place, size_), first_)
            x = b.load(_pointer(b, base_, block, BITS[one.kind], one.llvm), align=1)
            return resize(b, x, one, LanesType(out.kind))

        if single:
            return broadcast(b, read(0), out)
        if aligned and live == _whole and WIDTH % several == 0:
            stored_, wanted = (LanesType(kind.kind, WIDTH // several) for kind in (one, out))
            block = b.sub(b.udiv(at_, size_), first_)
            x = b.load(_pointer(b, base_, block, BITS[one.kind], stored_.llvm), align=1)
            order = ir.Constant(ir.VectorType(I32, WIDTH), [lane // several for lane in range(WIDTH)])
            x = resize(b, x, stored_, wanted)
            return b.shuffle_vector(x, ir.Constant(x.type, ir.Undefined), order)
        lanes = ir.Constant(out.llvm, ir.Undefined)
        for lane in range(WIDTH):
            lanes = b.insert_element(lanes, read(lane), ir.Constant(I32, lane))
        return lanes

    return signature(out, want, stored, base, at, size, first, live, step), emit


@intrinsic
def clear(_: Any, begin: Any, end: Any) -> Any:
    """Write 0 from one address to another."""

    def emit(context: Any, b: Builder, sig: Any, values: Sequence[Value]) -> Value:
        begin_, end_ = as_i64(context, b, sig, values)
        cgutils.memset(b, b.inttoptr(begin_, I8.as_pointer()), b.sub(end_, begin_), 0)
        return context.get_dummy_value()

    return signature(types.none, begin, end), emit


@intrinsic
def keep(_: Any, live: Any, new: Any, old: Any) -> Any:
    """Return the new value in lanes that exist, the old one in others."""

    def emit(context: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        return v[1] if live == _whole else b.select(existing(context, b, v[0], live, new.width), v[1], v[2])

    return signature(new, live, new, old), emit


@intrinsic
def left(_: Any, count: Any, at: Any) -> Any:
    """Return how many lanes exist from element `at` on of a tile of `count` elements."""

    def emit(context: Any, b: Builder, sig: Any, values: Sequence[Value]) -> Value:
        if count == _whole:
            return values[0]
        all_, at_ = as_i64(context, b, sig, values)
        zero, most = ir.Constant(I64, 0), ir.Constant(I64, WIDTH)
        rest = b.sub(all_, at_)
        rest = b.select(b.icmp_signed("<", rest, zero), zero, rest)
        return b.select(b.icmp_signed(">", rest, most), most, rest)

    return signature(_whole if count == _whole else types.int64, count, at), emit


@intrinsic
def positions(_: Any, start: Any) -> Any:
    """Return `start` + 0, 1, 2, ... as Int64 lanes."""
    out = LanesType("i64", WIDTH)

    def emit(context: Any, b: Builder, sig: Any, values: Sequence[Value]) -> Value:
        return b.add(broadcast(b, as_i64(context, b, sig, values)[0], out), _iota(out))

    return signature(out, start), emit


# --- sub-byte fields: element i has bits i*w .. i*w+w-1 of the little-endian bit string -----------------


def _repeated(bits: int, every: int) -> int:
    return sum(bits << at for at in range(0, 64, every))


def _steps(w: int) -> list[tuple[int, int, int]]:
    """Return shift, mask kept and mask moved of the three steps from 8 bytes of w bits to 8 * w bits."""
    out = []
    for pair in (1, 2, 4):
        low = _repeated((1 << pair * w) - 1, pair * 16)
        out.append((pair * (8 - w), low, (low << pair * w) & (2**64 - 1)))
    return out


def _shuffled(b: Builder, x: Value, order: list[int]) -> Value:
    """Emit the bytes of `x` in another order; byte number len(x) is 0."""
    picks = ir.Constant(ir.VectorType(I32, len(order)), order)
    return b.shuffle_vector(x, ir.Constant(x.type, None), picks)


def _groups(w: int) -> list[int]:
    """Return which bytes of WIDTH / 8 words of 64 bits hold w * 8 bits each."""
    return [8 * group + byte for group in range(WIDTH // 8) for byte in range(w)]


_BYTES, _WORDS = ir.VectorType(I8, WIDTH), ir.VectorType(I64, WIDTH // 8)


def _all(word: int) -> Value:
    return ir.Constant(_WORDS, [word] * (WIDTH // 8))


@intrinsic(prefer_literal=True)
def pack(_: Any, width: Any, base: Any, at: Any, codes: Any, live: Any) -> Any:
    """Store codes of so many bits (the low bits of lanes, or a condition), from element `at` on."""
    w = width.literal_value

    def emit(context: Any, b: Builder, sig: Any, values: Sequence[Value]) -> Value:
        _, base_, at_, x, live_ = as_i64(context, b, sig, values)
        there = None if live == _whole else existing(context, b, live_, types.int64, WIDTH)
        if codes.kind == "bool" and w == 1:
            raw = b.bitcast(x if there is None else b.and_(x, there), ir.IntType(WIDTH))
        else:
            x = b.zext(x, _BYTES) if codes.kind == "bool" else resize(b, x, codes, LanesType("u8", WIDTH))
            if there is not None:
                x = b.select(there, x, ir.Constant(_BYTES, None))
            x = b.bitcast(x, _WORDS)
            for shift, kept, moved in _steps(w):
                x = b.or_(b.and_(x, _all(kept)), b.and_(b.lshr(x, _all(shift)), _all(moved)))
            raw = _shuffled(b, b.bitcast(x, _BYTES), _groups(w))
        _write(b, _pointer(b, base_, at_, w, raw.type), raw, _bytes(b, live_, live, w))
        return context.get_dummy_value()

    return signature(types.none, width, base, at, codes, live), emit


@intrinsic(prefer_literal=True)
def unpack(_: Any, width: Any, base: Any, at: Any, live: Any) -> Any:
    """Load codes of so many bits as Int32 lanes, from element `at` on."""
    w = width.literal_value
    out = LanesType("i32", WIDTH)

    def emit(context: Any, b: Builder, sig: Any, values: Sequence[Value]) -> Value:
        _, base_, at_, live_ = as_i64(context, b, sig, values)
        what = ir.IntType(WIDTH) if w == 1 else ir.VectorType(I8, WIDTH // 8 * w)
        raw = _read(b, _pointer(b, base_, at_, w, what), what, _bytes(b, live_, live, w))
        if w == 1:
            return b.zext(b.bitcast(raw, ir.VectorType(ir.IntType(1), WIDTH)), out.llvm)
        places = {byte: at for at, byte in enumerate(_groups(w))}
        x = _shuffled(b, raw, [places.get(byte, WIDTH // 8 * w) for byte in range(WIDTH)])
        x = b.bitcast(x, _WORDS)
        for shift, kept, moved in reversed(_steps(w)):
            x = b.or_(b.and_(x, _all(kept)), b.shl(b.and_(x, _all(moved)), _all(shift)))
        return b.zext(b.bitcast(x, _BYTES), out.llvm)

    return signature(out, width, base, at, live), emit


@intrinsic(prefer_literal=True)
def unpack_any(_: Any, width: Any, base: Any, at: Any, live: Any) -> Any:
    """Do what `unpack` does where the first code may begin inside a byte."""
    w = width.literal_value
    out = LanesType("i32", WIDTH)

    def emit(context: Any, b: Builder, sig: Any, values: Sequence[Value]) -> Value:
        _, base_, at_, live_ = as_i64(context, b, sig, values)
        lanes = ir.Constant(out.llvm, ir.Undefined)
        for lane in range(WIDTH):
            place = b.add(at_, ir.Constant(I64, lane))
            if live != _whole:
                place = b.select(b.icmp_signed("<", ir.Constant(I64, lane), live_), place, at_)
                place = b.select(b.icmp_signed(">", live_, ir.Constant(I64, 0)), place, ir.Constant(I64, 0))
            bit = b.mul(place, ir.Constant(I64, w))
            begin, last = (b.lshr(x, ir.Constant(I64, 3)) for x in (bit, b.add(bit, ir.Constant(I64, w - 1))))
            shift = b.trunc(b.and_(bit, ir.Constant(I64, 7)), I32)
            low, high = (
                b.zext(b.load(b.inttoptr(b.add(base_, x), I8.as_pointer())), I32) for x in (begin, last)
            )
            both = b.or_(low, b.shl(high, I32(8)))  # the same byte twice does no harm: its bits are cut off
            code = b.and_(b.lshr(both, shift), I32((1 << w) - 1))
            lanes = b.insert_element(lanes, code, ir.Constant(I32, lane))
        return lanes

    return signature(out, width, base, at, live), emit
