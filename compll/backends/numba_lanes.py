"""Lanes for Numba: vectors of WIDTH elements as LLVM vectors, and the operators on them.

Numba's own loops vectorise by luck, so kernels say what they mean: a value of type `Float` is one LLVM
vector, `a + b` one LLVM instruction on it.  Scalars are lanes of width 1 (`f32`, `i64`, ...), for they
follow the same rules, which are the language's and neither Python's nor Numba's.  Nothing here is fast-math:
LLVM contracts and reorders nothing that does not say it may.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils, types
from numba.core.registry import cpu_target
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model, typeof_impl

WIDTH = 32
TILE, LANES, ROWS = 1024, 128, 8
BLOCKS = LANES // WIDTH
BITS = {
    "bool": 1,
    "f16": 16,
    "bf16": 16,
    "f32": 32,
    "i8": 8,
    "i16": 16,
    "i32": 32,
    "i64": 64,
    "u8": 8,
    "u16": 16,
    "u32": 32,
    "u64": 64,
}

Builder = Any  # llvmlite's IRBuilder and Value: it has no type hints
Value = Any


class Lanes(types.Type):
    """The type of `width` values of one kind (a key of BITS); of one, if width is 1.

    The kinds `f16` and `bf16` are bits in memory: nothing is computed with them.
    """

    def __init__(self, kind: str, width: int = 1) -> None:
        """Name the type."""
        self.kind, self.width = kind, width
        super().__init__(name=f"lanes({kind} x {width})")

    def of(self, kind: str) -> Lanes:
        """Return the type of as many values of another kind."""
        return Lanes(kind, self.width)

    @property
    def llvm(self) -> Any:
        """The LLVM type."""
        one = ir.FloatType() if self.kind == "f32" else ir.IntType(BITS[self.kind])
        return one if self.width == 1 else ir.VectorType(one, self.width)

    @property
    def signed(self) -> bool:
        """Whether values are signed integers."""
        return self.kind.startswith("i")

    def constant(self, value: float | int | bool) -> Value:
        """Return a constant, the same in all lanes."""
        return ir.Constant(self.llvm, value if self.width == 1 else [value] * self.width)


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, manager: Any, kind: Lanes) -> None:
        super().__init__(manager, kind, kind.llvm)


@typeof_impl.register(Lanes)
def _typeof(value: Lanes, _: object) -> Any:
    return types.TypeRef(value)


Float, Int32, UInt32, Int64, UInt64, Mask = (
    Lanes(k, WIDTH) for k in ("f32", "i32", "u32", "i64", "u64", "bool")
)
f32, i32, u32, i64, u64, bit1 = (Lanes(k) for k in ("f32", "i32", "u32", "i64", "u64", "bool"))
i8, i16, u8, u16, f16, bf16 = (Lanes(k) for k in ("i8", "i16", "u8", "u16", "f16", "bf16"))

# --- how operators are made ---------------------------------------------------------------------------

Emit = Callable[[Builder, Lanes, Sequence[Value]], Value]
Rule = Callable[[Lanes], Lanes]


def call(builder: Builder, name: str, result: Any, *args: Value) -> Value:
    """Call an LLVM intrinsic by its full name."""
    function = ir.FunctionType(result, [a.type for a in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, function, name), args)


def has(feature: str) -> bool:
    """Whether the processor that is compiled for has a feature, as LLVM names it."""
    _, _, features = cpu_target.target_context.codegen().magic_tuple()
    return f"+{feature}" in features.split(",")


def suffix(kind: Lanes) -> str:
    """Return how LLVM's intrinsics spell a type."""
    one = "f32" if kind.kind == "f32" else f"i{BITS[kind.kind]}"
    return one if kind.width == 1 else f"v{kind.width}{one}"


def lanes_operator(key: Any, result: Rule, emit: Emit) -> None:
    """Give a Python operator its meaning on lanes of one type."""

    class Typed(AbstractTemplate):
        def generic(self, args: Any, kws: Any) -> Any:  # noqa: ARG002
            return (
                signature(result(args[0]), *args)
                if all(a == args[0] for a in args) and isinstance(args[0], Lanes)
                else None
            )

    infer_global(key)(Typed)
    for arity in (1, 2):
        lower_builtin(key, *[Lanes] * arity)(lambda _, builder, sig, args: emit(builder, sig.args[0], args))


def lanes_function(name: str, arity: int, result: Rule, emit: Emit) -> Any:
    """Return a function on lanes whose last argument gives the type (a `select` begins with a mask)."""

    def build(typing: object, *args: Any) -> Any:  # noqa: ARG001
        if not all(isinstance(a, Lanes) for a in args):
            return None
        return signature(result(args[-1]), *args), lambda _, builder, sig, values: emit(
            builder, sig.args[-1], values
        )

    return make_intrinsic(name, arity, build)


def make_intrinsic(name: str, arity: int, build: Callable[..., Any]) -> Any:
    """Return the intrinsic of so many arguments that `build` types and emits."""
    names = ", ".join("abcdef"[:arity])
    scope: dict[str, Any] = {"build": build}
    exec(f"def {name}(typing, {names}): return build(typing, {names})", scope)  # Numba reads the signature
    return intrinsic(prefer_literal=True)(scope[name])


def same(kind: Lanes) -> Lanes:
    """An operator's result has the type of its operands."""
    return kind


def mask(kind: Lanes) -> Lanes:
    """An operator's result is a condition."""
    return kind.of("bool")


def counted(kind: Lanes) -> Lanes:
    """The type of small numbers: `i32` lanes, an `i64` scalar."""
    return kind.of("i64" if kind.width == 1 else "i32")


def resize(b: Builder, x: Value, have: Lanes, want: Lanes) -> Value:
    """Emit a conversion between integers, from or to float, that hold the value; or of floats to 16 bits."""
    if have.kind == want.kind:
        return x
    if have.kind in ("f16", "bf16"):
        return _widened(b, x, have)
    if want.kind in ("f16", "bf16"):
        return _rounded(b, x, have, want)
    if want.kind == "f32":
        return (b.sitofp if have.signed else b.uitofp)(x, want.llvm)
    if have.kind == "f32":
        return (b.fptosi if want.signed else b.fptoui)(x, want.llvm)
    if BITS[want.kind] < BITS[have.kind]:
        return b.trunc(x, want.llvm)
    if BITS[want.kind] == BITS[have.kind]:
        return x
    return (b.sext if have.signed else b.zext)(x, want.llvm)


def _widened(b: Builder, x: Value, have: Lanes) -> Value:
    """Emit the float32 that a half or bfloat16 is; as templates/cpp/half.h does it."""
    u, f = have.of("u32"), have.of("f32")
    if have.kind == "f16" and has("f16c"):
        return b.fpext(b.bitcast(x, _half(have)), f.llvm)
    code = b.zext(x, u.llvm)
    if have.kind == "bf16":
        return b.bitcast(b.shl(code, u.constant(16)), f.llvm)
    sign = b.shl(b.and_(code, u.constant(0x8000)), u.constant(16))
    rest = b.shl(b.and_(code, u.constant(0x7FFF)), u.constant(13))
    exponent = b.and_(rest, u.constant(0x0F800000))
    denormal = b.fsub(b.bitcast(b.add(rest, u.constant(113 << 23)), f.llvm), f.constant(2.0**-14))
    top = b.icmp_unsigned("==", exponent, u.constant(0x0F800000))
    magnitude = b.select(top, b.or_(rest, u.constant(0x7F800000)), b.add(rest, u.constant(112 << 23)))
    none = b.icmp_unsigned("==", exponent, u.constant(0))
    return b.bitcast(b.or_(sign, b.select(none, b.bitcast(denormal, u.llvm), magnitude)), f.llvm)


def _half(kind: Lanes) -> Any:
    return ir.HalfType() if kind.width == 1 else ir.VectorType(ir.HalfType(), kind.width)


def _rounded(b: Builder, x: Value, have: Lanes, to: Lanes) -> Value:
    """Emit the bits of the nearest half or bfloat16; as templates/cpp/half.h does it."""
    u = have.of("u32")
    bits = b.bitcast(x, u.llvm)
    nan = b.fcmp_unordered("uno", x, x)
    if to.kind == "f16" and has("f16c"):
        return b.select(nan, to.constant(0x7E00), b.bitcast(b.fptrunc(x, _half(to)), to.llvm))

    def even(whole: Value, drop: int, base: int) -> Value:
        """Emit `whole` less `base` without its lowest bits, rounded to nearest even."""
        odd = b.and_(b.lshr(whole, u.constant(drop)), u.constant(1))
        half = u.constant(((1 << drop - 1) - 1 - base) & 0xFFFFFFFF)
        return b.lshr(b.add(b.add(whole, half), odd), u.constant(drop))

    if to.kind == "bf16":
        return b.trunc(b.select(nan, u.constant(0x7FC0), even(bits, 16, 0)), to.llvm)
    magnitude = b.and_(bits, u.constant(0x7FFFFFFF))
    half = b.fadd(b.bitcast(magnitude, have.llvm), have.constant(0.5))  # rounds to the least denormal
    denormal = b.sub(b.bitcast(half, u.llvm), u.constant(126 << 23))
    small = b.icmp_unsigned("<", magnitude, u.constant(113 << 23))
    code = b.select(small, denormal, even(magnitude, 13, 112 << 23))
    code = b.select(b.icmp_unsigned("<", magnitude, u.constant(143 << 23)), code, u.constant(0x7C00))
    sign = b.and_(b.lshr(bits, u.constant(16)), u.constant(0x8000))
    return b.trunc(b.select(nan, u.constant(0x7E00), b.or_(sign, code)), to.llvm)


# --- arithmetic ---------------------------------------------------------------------------------------


def _arithmetic(f: str) -> Emit:
    return lambda b, t, v: getattr(b, f"f{f}" if t.kind == "f32" else f)(*v)


def _compare(op: str) -> Emit:
    def emit(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
        if t.kind == "f32":
            return (b.fcmp_unordered if op == "!=" else b.fcmp_ordered)(op, *v)
        return (b.icmp_signed if t.signed else b.icmp_unsigned)(op, *v)

    return emit


less, more, _eq, _ne = (_compare(op) for op in ("<", ">", "==", "!="))


def _divide(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
    x, y = v
    if t.kind == "f32":
        return b.fdiv(x, y)
    zero = _eq(b, t, (y, t.constant(0)))
    if not t.signed:
        return b.select(zero, t.constant(0), b.udiv(x, b.select(zero, t.constant(1), y)))
    minus = _eq(b, t, (y, t.constant(-1)))
    plain = b.sdiv(x, b.select(b.or_(zero, minus), t.constant(1), y))
    return b.select(zero, t.constant(0), b.select(minus, b.neg(x), plain))


def _remainder(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
    x, y = v
    return b.select(_eq(b, t, (y, t.constant(0))), t.constant(0), b.sub(x, b.mul(_divide(b, t, v), y)))


def _shift(left: bool) -> Emit:
    def emit(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
        x, count = v
        none = t.constant(0)
        if t.signed:
            count = b.select(less(b, t, (count, none)), none, count)
        gone = b.icmp_unsigned(">=", count, t.constant(BITS[t.kind]))
        some = b.select(gone, none, count)
        if left:
            return b.select(gone, none, b.shl(x, some))
        if not t.signed:
            return b.select(gone, none, b.lshr(x, some))
        return b.ashr(x, b.select(gone, t.constant(BITS[t.kind] - 1), count))

    return emit


def _prefer(better: Emit) -> Emit:
    def emit(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
        found = b.select(better(b, t, v), *v)  # one instruction, which of a NaN and another gives the other
        return b.select(isnan(b, t, v), v[0], found) if t.kind == "f32" else found

    return emit


def _negate(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
    return b.fneg(v[0]) if t.kind == "f32" else b.neg(v[0])


def _absolute(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
    if t.kind == "f32":
        return call(b, f"llvm.fabs.{suffix(t)}", t.llvm, v[0])
    return b.select(less(b, t, (v[0], t.constant(0))), b.neg(v[0]), v[0]) if t.signed else v[0]


def _rounding(name: str) -> Emit:
    return lambda b, t, v: call(b, f"llvm.{name}.{suffix(t)}", t.llvm, v[0]) if t.kind == "f32" else v[0]


def _bit(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
    return b.zext(v[0], counted(t).llvm)


def _sign(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
    zero = t.constant(0)
    return b.sub(_bit(b, t, [more(b, t, (v[0], zero))]), _bit(b, t, [less(b, t, (v[0], zero))]))


def _popcount(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
    ones = call(b, f"llvm.ctpop.{suffix(t)}", t.llvm, v[0])
    return resize(b, ones, t.of(f"u{BITS[t.kind]}"), counted(t))


def isnan(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:  # noqa: ARG001
    """Emit the condition that a float is no number."""
    return b.fcmp_unordered("uno", v[0], v[0])


def _float_bits(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
    """Emit the bits of a float, one pattern for every NaN.

    Floats are stored as these bits: to LLVM all NaNs are one value, and it drops a selection between two.
    """
    bits = t.of("u32")
    return b.select(isnan(b, t, v), bits.constant(0x7FC00000), b.bitcast(v[0], bits.llvm))


def _bits_float(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
    return b.bitcast(v[0], t.of("f32").llvm)


def _magnitude(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
    bits = t.of("u32")
    return b.and_(b.bitcast(v[0], bits.llvm), bits.constant(0x7FFFFFFF))


def _greater_of_positives(b: Builder, t: Lanes, v: Sequence[Value]) -> Value:
    """Emit the greater of floats without sign bits, or the NaN: their bits are ordered as they are."""
    bits = t.of("u32")
    return b.bitcast(_prefer(more)(b, bits, [b.bitcast(x, bits.llvm) for x in v]), t.llvm)


for _key, _emit in (
    (operator.add, _arithmetic("add")),
    (operator.sub, _arithmetic("sub")),
    (operator.mul, _arithmetic("mul")),
    (operator.and_, _arithmetic("and_")),
    (operator.or_, _arithmetic("or_")),
    (operator.xor, _arithmetic("xor")),
    (operator.neg, _negate),
    (operator.invert, _arithmetic("not_")),
):
    lanes_operator(_key, same, _emit)

lt, le, gt, ge, eq, ne = (
    lanes_function(name, 2, mask, _compare(op))
    for name, op in (("lt", "<"), ("le", "<="), ("gt", ">"), ("ge", ">="), ("eq", "=="), ("ne", "!="))
)
both = lanes_function("both", 2, same, _arithmetic("and_"))
either = lanes_function("either", 2, same, _arithmetic("or_"))
negation = lanes_function("negation", 1, same, _arithmetic("not_"))
select = lanes_function("select", 3, same, lambda b, _, v: b.select(*v))
divide = lanes_function("divide", 2, same, _divide)
remainder = lanes_function("remainder", 2, same, _remainder)
shift_left = lanes_function("shift_left", 2, same, _shift(True))
shift_right = lanes_function("shift_right", 2, same, _shift(False))
over = lanes_function("over", 2, same, lambda b, t, v: b.select(more(b, t, v), *v))  # of NaN the other
under = lanes_function("under", 2, same, lambda b, t, v: b.select(less(b, t, v), *v))
greater = lanes_function("greater", 2, same, _prefer(more))
greater_of_positives = lanes_function("greater_of_positives", 2, same, _greater_of_positives)
smaller = lanes_function("smaller", 2, same, _prefer(less))
absolute = lanes_function("absolute", 1, same, _absolute)
floor_ = lanes_function("floor_", 1, same, _rounding("floor"))
ceil_ = lanes_function("ceil_", 1, same, _rounding("ceil"))
round_ = lanes_function("round_", 1, same, _rounding("rint"))
sqrt_ = lanes_function("sqrt_", 1, same, _rounding("sqrt"))
isnan_ = lanes_function("isnan_", 1, mask, isnan)
bit = lanes_function("bit", 1, counted, _bit)
sign = lanes_function("sign", 1, counted, _sign)
popcount = lanes_function("popcount", 1, counted, _popcount)
float_bits = lanes_function("float_bits", 1, lambda t: t.of("u32"), _float_bits)
bits_of = lanes_function(  # where there is no NaN
    "bits_of", 1, lambda t: t.of("u32"), lambda b, t, v: b.bitcast(v[0], t.of("u32").llvm)
)
bits_float = lanes_function("bits_float", 1, lambda t: t.of("f32"), _bits_float)
magnitude = lanes_function("magnitude", 1, lambda t: t.of("u32"), _magnitude)
not_finite = lanes_function(  # of a magnitude
    "not_finite", 1, mask, lambda b, t, v: b.icmp_unsigned(">=", v[0], t.constant(0x7F800000))
)
