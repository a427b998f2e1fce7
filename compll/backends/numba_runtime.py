"""What generated Numba source imports: lanes, tiles, and here random numbers and the entry.

Philox4x32-10 (Salmon et al., SC'11), keyed by the seed, counted by element and call.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

import numpy as np
from llvmlite import ir
from numba.core import types
from numba.core.typing import signature
from numba.extending import intrinsic

from compll.backends.numba_convert import *  # noqa: F403
from compll.backends.numba_convert import broadcast, splat
from compll.backends.numba_elementary import *  # noqa: F403
from compll.backends.numba_jobs import loop, record, step  # noqa: F401  # for what is generated
from compll.backends.numba_kept import *  # noqa: F403
from compll.backends.numba_lanes import *  # noqa: F403
from compll.backends.numba_lanes import (
    LANES,
    ROWS,
    TILE,
    WIDTH,
    Builder,
    Lanes,
    UInt32,
    Value,
    call,
    suffix,
    u32,
)
from compll.backends.numba_positions import *  # noqa: F403
from compll.backends.numba_reduce import *  # noqa: F403
from compll.backends.numba_tiles import *  # noqa: F403
from compll.backends.numba_tiles import WHOLE, inner, load

nan, inf = np.nan, np.inf
OK, OUT_OF_RANGE, REFUSED, BAD_BUFFER, NEEDS_MEMORY = 0, -1, -2, -3, -4
I8, I32, I64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)


# --- random numbers -----------------------------------------------------------------------------------


def _multiply(b: Builder, kind: Lanes, x: Value, by: int) -> tuple[Value, Value]:
    """Emit the high and the low word of the 64-bit products x * by, even and odd lanes apart."""
    n = kind.width
    if n == 1:
        product = b.mul(b.zext(x, I64), ir.Constant(I64, by))
        return b.trunc(b.lshr(product, ir.Constant(I64, 32)), I32), b.trunc(product, I32)
    pairs = ir.VectorType(I64, n // 2)
    low, high, factor = (ir.Constant(pairs, [c] * (n // 2)) for c in (2**32 - 1, 32, by))
    x = b.bitcast(x, pairs)
    even = b.bitcast(b.mul(b.and_(x, low), factor), kind.llvm)
    odd = b.bitcast(b.mul(b.lshr(x, high), factor), kind.llvm)
    order = [place for j in range(0, n, 2) for place in (j, n + j)]

    def mix(shift: int) -> Value:
        picks = ir.Constant(ir.VectorType(I32, n), [place + shift for place in order])
        return b.shuffle_vector(even, odd, picks)

    return mix(1), mix(0)


def _philox(b: Builder, kind: Lanes, seed: Value, p: Value, site: Value, part: int) -> list[Value]:
    """Emit the four words of `kind` for elements from lane number p (64 bits) on."""
    ramp = ir.Constant(kind.llvm, list(range(kind.width)) if kind.width > 1 else 0)
    high = ir.Constant(I64, 32)
    c = [
        b.add(broadcast(b, b.trunc(p, I32), kind), ramp),  # never carries: lanes start at a multiple of WIDTH
        broadcast(b, b.trunc(b.lshr(p, high), I32), kind),
        broadcast(b, b.trunc(site, I32), kind),
        kind.constant(part),
    ]
    k0, k1 = b.trunc(seed, I32), b.trunc(b.lshr(seed, high), I32)
    for _ in range(10):
        h0, l0 = _multiply(b, kind, c[0], 0xD2511F53)
        h1, l1 = _multiply(b, kind, c[2], 0xCD9E8D57)
        c = [
            b.xor(b.xor(h1, c[1]), broadcast(b, k0, kind)),
            l1,
            b.xor(b.xor(h0, c[3]), broadcast(b, k1, kind)),
            l0,
        ]
        k0 = b.add(k0, ir.Constant(I32, 0x9E3779B9))
        k1 = b.add(k1, ir.Constant(I32, 0xBB67AE85))
    return c


def _rows(halves: bool) -> Any:
    """Return the function that fills a buffer with the random bits of WIDTH lanes in a tile's rows."""

    @intrinsic
    def fill(_: Any, base: Any, seed: Any, site: Any, tile: Any, lane: Any) -> Any:
        def emit(context: Any, b: Builder, sig: Any, values: Sequence[Value]) -> Value:
            base_, seed_, site_, tile_, lane_ = (
                context.cast(b, v, t, types.int64) for v, t in zip(values, sig.args, strict=True)
            )
            p = b.add(b.mul(tile_, ir.Constant(I64, LANES)), lane_)
            words = [
                w for part in range(1 if halves else 2) for w in _philox(b, UInt32, seed_, p, site_, part)
            ]
            if halves:
                low, shift = UInt32.constant(0xFFFF), UInt32.constant(16)
                words = [half for w in words for half in (b.and_(w, low), b.lshr(w, shift))]
            for row, word in enumerate(words):
                at = b.add(base_, ir.Constant(I64, row * WIDTH * 4))
                b.store(word, b.inttoptr(at, UInt32.llvm.as_pointer()), align=64)
            return context.get_dummy_value()

        return signature(types.none, base, seed, site, tile, lane), emit

    return fill


random_words, random_halves = _rows(False), _rows(True)


@intrinsic
def rows_buffer(_: Any) -> Any:
    """Return the address of memory for WIDTH 32-bit lanes of ROWS rows, of the function that asks."""

    def emit(_c: Any, b: Builder, _s: Any, _v: Any) -> Value:
        with b.goto_entry_block():
            place = b.alloca(ir.ArrayType(UInt32.llvm, ROWS))
            place.align = 64
        return b.ptrtoint(place, I64)

    return signature(types.int64), emit


@inner
def row_of(rows: Any, row: Any) -> Any:
    """Return a row of such a buffer."""
    return load(UInt32, u32, rows, row * WIDTH, WHOLE)


@intrinsic
def random_word(_: Any, seed: Any, site: Any) -> Any:
    """Return the word of element 0, a scalar."""

    def emit(context: Any, b: Builder, sig: Any, values: Sequence[Value]) -> Value:
        seed_, site_ = (context.cast(b, v, t, types.int64) for v, t in zip(values, sig.args, strict=True))
        return _philox(b, u32, seed_, ir.Constant(I64, 0), site_, 0)[0]

    return signature(u32, seed, site), emit


@inner
def random_half(seed: Any, site: Any) -> Any:
    """Return the half of element 0, a scalar."""
    return random_word(seed, site) & splat(u32, 0xFFFF)


@intrinsic
def random_float(_: Any, kind: Any, word: Any, low: Any, high: Any) -> Any:
    """Return low + (high - low) * a number below 1 of 24 bits."""

    def emit(_c: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        _, w, lo, hi = v
        unit = b.sitofp(b.lshr(w, word.constant(8)), low.llvm)  # below 2^31
        return b.fadd(lo, b.fmul(b.fsub(hi, lo), b.fmul(unit, low.constant(2.0**-24))))

    return signature(low, kind, word, low, high), emit


@intrinsic
def random_int(_: Any, word: Any, low: Any, high: Any) -> Any:
    """Return low + the high part of word * (high - low), a product of 96 bits."""

    def emit(_c: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        w, (lo, hi) = b.zext(v[0], low.llvm), v[1:]
        span, by = b.sub(hi, lo), low.constant(32)
        upper = b.mul(w, b.ashr(span, by))
        lower = b.lshr(b.mul(w, b.and_(span, low.constant(2**32 - 1))), by)
        return b.add(lo, b.add(upper, lower))

    return signature(low, word, low, high), emit


@intrinsic
def stochastic_round(_: Any, half: Any, x: Any) -> Any:
    """Return floor(x), or one more with the probability of what is cut."""

    def emit(_c: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        whole = call(b, f"llvm.floor.{suffix(x)}", x.llvm, v[1])
        unit = b.fmul(b.fadd(b.sitofp(v[0], x.llvm), x.constant(0.5)), x.constant(2.0**-16))
        more = b.fcmp_ordered(">", b.fsub(v[1], whole), unit)
        return b.fadd(whole, b.select(more, x.constant(1.0), x.constant(0.0)))

    return signature(x, half, x), emit


# --- entry --------------------------------------------------------------------------------------------

_NATIVES = {
    types.float32: "f32",
    types.int64: "i64",
    types.int32: "i32",
    types.uint32: "u32",
    types.uint64: "u64",
    types.boolean: "bool",
}


@intrinsic
def one(_: Any, x: Any) -> Any:
    """Return a number of Numba's as a scalar."""
    return signature(Lanes(_NATIVES[x]), x), lambda _c, _b, _s, v: v[0]


KEEPS_DENORMALS, SSE = 0x1F80, platform.machine() in ("x86_64", "AMD64")


@intrinsic
def set_flags(_: Any, flags: Any) -> Any:
    """Set how the thread rounds (nearest) and that it keeps denormals; return what was set before."""

    def emit(context: Any, b: Builder, sig: Any, v: Sequence[Value]) -> Value:
        if not SSE:
            return context.cast(b, v[0], sig.args[0], types.int64)
        with b.goto_entry_block():
            place = b.alloca(I32)
        pointer = b.bitcast(place, I8.as_pointer())
        call(b, "llvm.x86.sse.stmxcsr", ir.VoidType(), pointer)
        saved = b.load(place)
        b.store(context.cast(b, v[0], sig.args[0], types.int32), place)
        call(b, "llvm.x86.sse.ldmxcsr", ir.VoidType(), pointer)
        return b.zext(saved, I64)

    return signature(types.int64, flags), emit


@dataclass(frozen=True)
class Selection:
    """What works on vectors in scratch memory between two loops: a function of `numba_selection`.

    `vectors` are members of the frame, with NumPy types.  What else it needs and its result are in the frame.
    """

    function: str
    vectors: tuple[tuple[str, str], ...]
    block: int = 0


@dataclass(frozen=True)
class Kernels:
    """One operation: its frame, what runs before each loop and after the last, and the loops.

    A loop comes with how many tiles (or spans of whole blocks and tiles) one thread takes at least; a
    selection may stand in its place.
    """

    frame: np.dtype[Any]
    steps: list[Any]
    loops: list[tuple[Any, int] | Selection]

    @functools.cached_property
    def table(self) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Rows for `numba_team.go_on`: what runs before, the loop, the tiles that a thread takes at least.

        Without a loop that address is 0, and the number behind it says whether Python has something to do.
        """
        rows = []
        for before, work in zip_longest(self.steps, self.loops):
            kernel, least = work if isinstance(work, tuple) else (None, int(work is not None))
            rows.append((before.address, kernel.address if kernel else 0, least))
        return np.array(rows, np.int64)


HEADER = (
    ("step", "i8"),  # the number of the next one
    ("tiles", "i8"),  # of its loop; below 0: not known yet
    ("n", "i8"),
    ("seed", "u8"),
    ("shared_seed", "u8"),
    ("scale", "f4"),
    ("bad", "i4"),
    ("gradient", "i8"),
    ("payload", "i8"),
    ("capacity", "i8"),
    ("source", "i8"),  # the payload that a hop decodes
    ("source_length", "i8"),
    ("scratch", "i8"),
    ("room", "i8"),  # bytes of scratch memory; where that is too little, the first step says what it needs
    ("outside", "i8"),  # whether an element was asked for that is out of range
    ("length", "i8"),  # of the loop or the selection that runs next
    ("rank", "i8"),  # how many, or the how-manieth, a selection selects
    ("result", "i8"),  # of the selection that has run
    ("end", "i8"),  # length of the payload
)


def frame_type(
    params: list[tuple[str, str]],
    states: list[str],
    fields: list[str],
    received: list[str],
    vectors: list[str],
    scalars: list[tuple[str, str]],
) -> np.dtype[Any]:
    """Return the record that holds all that an operation knows; addresses and offsets are int64.

    The caller sets what HEADER has, the old and new states and the parameters, in this order.
    """
    addresses = [*(f"s_{x}" for x in states), *(f"new_{x}" for x in states)]
    places = [*(f"at_{x}" for x in fields), *(f"f_{x}" for x in (*fields, *received)), *vectors]
    given = [*HEADER, *((x, "i8") for x in addresses), *params]
    return np.dtype([*given, *((x, "i8") for x in places), *scalars], align=True)


@inner
def align(at: Any, to: Any) -> Any:
    """Return the next multiple of `to`."""
    return (at + to - 1) // to * to


@inner
def tiles_of(length: Any) -> Any:
    """Return how many tiles hold so many elements."""
    return (max(length, 0) + TILE - 1) // TILE
