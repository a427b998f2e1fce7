"""Conversions for Numba: to all lanes, between types, from and to numbers of Numba's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.core.typing import signature
from numba.extending import intrinsic

from compll.backends.numba_lanes import (
    BITS,
    Builder,
    Lanes,
    Value,
    isnan,
    less,
    make_intrinsic,
    more,
    resize,
)


def broadcast(b: Builder, x: Value, want: Lanes) -> Value:
    """Emit the same value in all lanes."""
    if want.width == 1:
        return x
    one = b.insert_element(ir.Constant(want.llvm, ir.Undefined), x, ir.Constant(ir.IntType(32), 0))
    zeros = ir.Constant(ir.VectorType(ir.IntType(32), want.width), None)
    return b.shuffle_vector(one, ir.Constant(want.llvm, ir.Undefined), zeros)


def _typed(name: str, arity: int, emit: Callable[[Any, Builder, Lanes, Any, Sequence[Value]], Value]) -> Any:
    """Return a function whose first argument names the type (of lanes) of its result."""

    def build(typing: object, kind: Any, *args: Any) -> Any:  # noqa: ARG001
        want = kind.instance_type
        return signature(want, kind, *args), lambda context, b, sig, v: emit(
            context, b, want, sig.args[1:], v[1:]
        )

    return make_intrinsic(name, arity + 1, build)


def _splat(context: Any, b: Builder, want: Lanes, args: Any, v: Sequence[Value]) -> Value:
    have, x = args[0], v[0]
    one = Lanes(want.kind)
    if isinstance(have, Lanes):
        x = resize(b, x, have, one)
    elif want.kind == "f32":
        x = context.cast(b, x, have, types.float32)
    elif want.kind != "bool":
        x = context.cast(b, x, have, types.Integer(f"{'int' if one.signed else 'uint'}{BITS[one.kind]}"))
    else:
        x = context.cast(b, x, have, types.boolean)
    return broadcast(b, x, want)


def _widen(_: Any, b: Builder, want: Lanes, args: Any, v: Sequence[Value]) -> Value:
    return resize(b, v[0], args[0], want)


def _saturate(_: Any, b: Builder, want: Lanes, args: Any, v: Sequence[Value]) -> Value:
    have, low, high = args[0], args[1].literal_value, args[2].literal_value
    x = v[0]
    if have.kind == "f32":
        lowest, highest = have.constant(float(low)), have.constant(float(high))
        if low:
            x = b.select(isnan(b, have, [x]), have.constant(0.0), x)
        x = b.select(b.fcmp_ordered(">", x, lowest), x, lowest)
        convert = b.fptosi if want.signed else b.fptoui
        if high <= 1 << 24:  # a float: clamp there, then convert
            return convert(b.select(b.fcmp_ordered(">", x, highest), highest, x), want.llvm)
        # Else all ones; as a float it is 1 more.  LLVM's own saturating conversion works lane by lane.
        return b.select(b.fcmp_ordered(">=", x, highest), want.constant(high), convert(x, want.llvm))
    bits = BITS[have.kind]
    least, most = (-(1 << bits - 1), (1 << bits - 1) - 1) if have.signed else (0, (1 << bits) - 1)
    if low > least:
        bound = have.constant(low)
        x = b.select(less(b, have, (x, bound)), bound, x)
    if high < most:
        bound = have.constant(high)
        x = b.select(more(b, have, (x, bound)), bound, x)
    return resize(b, x, have, want)


splat = _typed("splat", 1, _splat)  # from a Python number or a scalar
widen = _typed("widen", 1, _widen)
saturate = _typed("saturate", 3, _saturate)  # to the limits that are given; NaN gives 0


@intrinsic
def through(_: Any, stored: Any, x: Any) -> Any:
    """Return floats as they are once they have been stored with 16 bits."""
    short = x.of(stored.instance_type.kind)

    def emit(_c: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        return resize(b, resize(b, v[1], x, short), short, x)

    return signature(x, stored, x), emit


_NATIVE = {
    "f32": types.float32,
    "i64": types.int64,
    "u32": types.uint32,
    "u64": types.uint64,
    "bool": types.boolean,
    "i32": types.int32,
}


@intrinsic
def native(_: Any, x: Any) -> Any:
    """Return a scalar as a number of Numba's."""
    return signature(_NATIVE[x.kind], x), lambda _c, _b, _s, v: v[0]


@intrinsic
def first(_: Any, x: Any) -> Any:
    """Return lane 0 as a scalar."""
    zero = ir.Constant(ir.IntType(32), 0)
    return signature(Lanes(x.kind), x), lambda _c, b, _s, v: b.extract_element(v[0], zero)


@intrinsic
def any_(_: Any, x: Any) -> Any:
    """Return whether a condition holds in any lane, as a boolean of Numba's."""

    def emit(_c: Any, b: Builder, _s: Any, v: Sequence[Value]) -> Value:
        whole = b.bitcast(v[0], ir.IntType(x.width))
        return b.icmp_unsigned("!=", whole, ir.Constant(whole.type, 0))

    return signature(types.boolean, x), emit
