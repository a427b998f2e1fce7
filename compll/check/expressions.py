"""Typing of expressions: every expression of the language becomes a value over the IR.

A scalar operator on vectors works element by element.  Operands are unified by the rules of LANGUAGE
("Types and arithmetic"): a literal takes the other side's type, a float with an integer gives float, and a
mix of signed and unsigned is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from compll import ir
from compll import syntax as s
from compll.check.values import (
    Abandon,
    Broken,
    FunctionValue,
    Range,
    Record,
    Reporter,
    ScalarValue,
    Scope,
    Unset,
    Value,
    VectorValue,
    describe,
    positions,
    real,
)
from compll.errors import Span, did_you_mean, unknown_type
from compll.ops import COMBINES, FUNCTIONS, OPS
from compll.types import BOOL, FLOAT, INT, NAMED, UINT32, UINT64, Elem, arithmetic, limits, uint

SELECTIONS = ("filter", "topk", "sort", "sample", "gather", "scatter", "search")
OPERATORS = (
    *("map", "reduce", "range", "chunk", "concat", "extract", "decode", "stochastic_round"),
    *SELECTIONS,
)
CALLED = ("clamp", "random", "cast", "bitcast")  # written as calls, too, and no functions of one value


WIDTHS = "make it a hyper-parameter, or a variable of Decode that extract reads and Encode knows"


class Context(Protocol):
    """What typing an expression needs to know of the function that it stands in."""

    report: Reporter
    scope: Scope
    static: Mapping[str, float | int | bool]
    indexed: list[tuple[str, ir.Expr, Span]]

    def call(self, e: s.Call) -> Value:
        """Type a call of a vector operator, or run a function of the program on scalars."""

    def table(self, e: s.Table) -> Value:
        """Type a table of constants."""

    def width_to_read(self, e: s.Name) -> ScalarValue:
        """Return the value of a variable that stands as a width before the payload has been read."""


def expression(c: Context, e: s.Expr) -> Value:
    """Return the value of an expression; raises `Abandon` after reporting what is wrong with it."""
    match e:
        case s.Integer(value=value):
            return _integer(c, value, e.span)
        case s.Number(text=text):
            return real(float(text))
        case s.Truth(value=value):
            return ScalarValue(ir.const(value, BOOL), BOOL)
        case s.Name():
            return _name(c, e)
        case s.Unary():
            return _unary(c, e)
        case s.Binary():
            return _binary(c, e)
        case s.Conditional():
            condition = operand(c, e.condition)
            then, otherwise = operand(c, e.then), operand(c, e.otherwise)
            return lift(c, e.span, lambda x, a, b: select(c, e.span, x, a, b), condition, then, otherwise)
        case s.Member():
            return _member(c, e)
        case s.Index():
            return _index(c, e)
        case s.Lambda():
            raise c.report.error("a lambda stands here, where a value is needed", e.span)
        case s.Table():
            return c.table(e)
        case s.Call():
            return _call(c, e)
    raise AssertionError(e)


def operand(c: Context, e: s.Expr) -> ScalarValue | VectorValue:
    """Type an expression that must be a scalar or a vector."""
    value = expression(c, e)
    if isinstance(value, Range):
        return positions(value)
    if not isinstance(value, ScalarValue | VectorValue):
        raise c.report.error(f"a scalar or a vector is needed here, not {describe(value)}", e.span)
    return value


def scalar(c: Context, e: s.Expr, what: str) -> ScalarValue:
    """Type an expression that must be a scalar."""
    value = expression(c, e)
    if not isinstance(value, ScalarValue):
        raise c.report.error(f"{what} is a scalar, not {describe(value)}", e.span)
    return value


def element_type(c: Context, t: s.TypeName) -> Elem:
    """Return the element type that is written, with the width of `uint<...>` worked out."""
    if t.width is None:
        if t.name == "void":
            raise c.report.error("nothing can have the type void here", t.span)
        if t.name not in NAMED:
            c.report.diagnostics.append(unknown_type(t.name, t.span, NAMED))
            raise Abandon
        return NAMED[t.name]
    read = c.scope.find(t.width.name) if isinstance(t.width, s.Name) else None
    if read is not None and isinstance(read.value, Unset) and isinstance(t.width, s.Name):
        width = c.width_to_read(t.width)
    else:
        width = scalar(c, t.width, "a width")
    if not isinstance(width.expr, ir.Const):
        raise c.report.error(
            "the width of uint<...> must be known to the compiler", t.width.span, hint=WIDTHS
        )
    if not (isinstance(width.expr.value, int) and 1 <= width.expr.value <= 8):
        raise c.report.error(f"uint<{width.expr.value}>: a width is 1 to 8 bits", t.width.span)
    return uint(width.expr.value)


def lift(
    c: Context, span: Span, f: Callable[..., ScalarValue], *args: ScalarValue | VectorValue
) -> ScalarValue | VectorValue:
    """Apply a function of scalars; on vectors, element by element."""
    vectors = [a for a in args if isinstance(a, VectorValue)]
    if not vectors:
        return f(*args)
    same_length(c, span, vectors)
    scalars = [ScalarValue(a.body, a.elem) if isinstance(a, VectorValue) else a for a in args]
    result = f(*scalars)
    return VectorValue(result.elem, vectors[0].length, result.expr)


def same_length(c: Context, span: Span, vectors: list[VectorValue]) -> None:
    """Report vectors of different length."""
    if any(v.length != vectors[0].length for v in vectors):
        lengths = " and ".join(dict.fromkeys(length_text(v.length) for v in vectors))
        raise c.report.error(f"vectors of different length meet: {lengths}", span)


def length_text(e: ir.Expr) -> str:
    """Return a length as a person would write it."""
    match e:
        case ir.Size():
            return "gradient.size"
        case ir.Const(value, _):
            return str(value)
        case ir.Scalar(name, _) | ir.Param(name, _):
            return name
        case ir.Apply("+" | "-" | "*" | "/" | "%" as op, (a, b), _):
            return f"({length_text(a)} {op} {length_text(b)})"
        case ir.Apply(op, (a, b), _):
            return f"{op}({length_text(a)}, {length_text(b)})"
        case ir.Apply(op, (a,), _):
            return f"{op}({length_text(a)})"
        case _:
            return type(e).__name__.lower()


def as_type(value: ScalarValue, elem: Elem) -> ScalarValue:
    """Convert a scalar to an element type."""
    if value.elem == elem and not value.literal:
        return value
    return ScalarValue(ir.as_elem(value.expr, elem), elem)


def truth(value: ScalarValue) -> ir.Expr:
    """Return a condition: numbers are true unless 0."""
    if value.expr.type is BOOL:
        return value.expr
    return ir.apply("!=", value.expr, ir.const(0, value.expr.type))


def unify(c: Context, span: Span, *values: ScalarValue) -> list[ir.Expr]:
    """Bring operands to one arithmetic type."""
    numbers = [as_type(v, INT) if v.expr.type is BOOL else v for v in values]
    firm = {v.expr.type for v in numbers if not v.literal} or {v.expr.type for v in numbers}
    if FLOAT in firm:
        target = FLOAT
    elif len(firm) == 1:
        target = next(iter(firm))
    elif firm == {UINT32, UINT64}:
        target = UINT64
    else:
        raise c.report.error(
            f"signed and unsigned integers meet: {' and '.join(sorted(str(t) for t in firm))}",
            span,
            hint="cast one side, for example int(x) or cast<uint64>(x)",
        )
    out = []
    for v in numbers:
        if v.literal and isinstance(v.expr, ir.Const) and target.kind != "float":
            low, high = limits(target)
            if not low <= v.expr.value <= high:
                raise c.report.error(f"the literal {v.expr.value} does not fit {target}", span)
        out.append(ir.as_elem(v.expr, target))
    return out


def select(c: Context, span: Span, condition: ScalarValue, a: ScalarValue, b: ScalarValue) -> ScalarValue:
    """Return `condition ? a : b`."""
    if a.expr.type is BOOL and b.expr.type is BOOL:
        return ScalarValue(ir.apply("select", truth(condition), a.expr, b.expr), BOOL)
    x, y = unify(c, span, a, b)
    return ScalarValue(ir.apply("select", truth(condition), x, y), x.type, a.literal and b.literal)


def operate(c: Context, span: Span, op: str, *values: ScalarValue) -> ScalarValue:
    """Apply an operator of the table to scalars of any types."""
    entry = OPS[op]
    if entry.takes == (BOOL,):
        return ScalarValue(ir.apply(op, *(truth(v) for v in values)), BOOL)
    if op in ("<<", ">>"):
        value, count = (unify(c, span, v)[0] for v in values)
        args = [value, ir.as_elem(count, value.type)] if count.type.kind != "float" else [value, count]
    else:
        args = unify(c, span, *values)
    if entry.takes == (FLOAT,):
        args = [ir.as_elem(a, FLOAT) for a in args]
    for a in args:
        if a.type not in entry.takes:
            raise c.report.error(f"'{op}' does not take a value of type {a.type}", span, hint="cast it first")
    if op in ("/", "%") and isinstance(args[1], ir.Const) and args[1].value == 0:
        hint = "an infinity is written inf" if args[1].type is FLOAT else ""
        raise c.report.error("division by the constant 0", span, hint=hint)
    result = ir.apply(op, *args)
    return ScalarValue(result, result.type, all(v.literal for v in values) and result.type is INT)


def _name(c: Context, e: s.Name) -> Value:
    variable = c.scope.find(e.name)
    if variable is None:
        if e.name in ("nan", "inf"):
            return real(float(e.name))
        if c.scope.find_function(e.name) or e.name in FUNCTIONS or e.name in COMBINES:
            raise c.report.error(
                f"the function '{e.name}' is no value", e.span, hint=f"call it: {e.name}(...)"
            )
        records = [(r, v.value) for r, v in c.scope.variables() if isinstance(v.value, Record)]
        members = {name: f"{r}.{name}" for r, value in records for name in value.members}
        hint = did_you_mean(members.get(e.name, e.name), {*c.scope.visible(), *members.values()})
        raise c.report.error(f"unknown name '{e.name}'", e.span, hint=hint)
    if isinstance(variable.value, Unset):
        raise c.report.error(f"'{e.name}' is used before it is assigned", e.span)
    if isinstance(variable.value, Broken):
        raise Abandon
    return variable.value


def function(c: Context, e: s.Expr) -> FunctionValue:
    """Type an argument that must be a function: a lambda, or the name of one."""
    if isinstance(e, s.Lambda):
        return FunctionValue("the lambda", e, c.scope)
    if isinstance(e, s.Name):
        own = c.scope.find_function(e.name)
        if own is not None:
            return own
        if e.name in COMBINES or e.name in FUNCTIONS:
            return FunctionValue(e.name, None, None)
        if e.name in (*OPERATORS, *CALLED):
            hint = f"put the call into a lambda: [&](float x) -> float {{ return {e.name}(...); }}"
            raise c.report.error(f"'{e.name}' cannot be given as a function", e.span, hint=hint)
        known = {*COMBINES, *FUNCTIONS, *(name for scope in c.scope.chain() for name in scope.functions)}
        raise c.report.error(f"unknown function '{e.name}'", e.span, hint=did_you_mean(e.name, known))
    raise c.report.error("a function is needed here: a lambda, or the name of one", e.span)


def _integer(c: Context, value: int, span: Span) -> ScalarValue:
    if not -(2**63) <= value < 2**64:
        raise c.report.error("this number does not fit 64 bits", span)
    kind = INT if value < 2**63 else UINT64
    return ScalarValue(ir.const(value, kind), kind, literal=True)


def _unary(c: Context, e: s.Unary) -> Value:
    if e.op == "-" and isinstance(e.arg, s.Integer):
        return _integer(c, -e.arg.value, e.span)
    value = operand(c, e.arg)
    if e.op == "+":
        return value
    op = {"-": "neg", "!": "!", "~": "~"}[e.op]
    return lift(c, e.span, lambda x: operate(c, e.span, op, x), value)


def _binary(c: Context, e: s.Binary) -> Value:
    relations = ("<", "<=", ">", ">=")
    if e.op in relations and isinstance(e.left, s.Binary) and e.left.op in relations:
        raise c.report.error("comparisons are not chained", e.span, hint="write a < b && b < c")
    left, right = operand(c, e.left), operand(c, e.right)
    return lift(c, e.span, lambda a, b: operate(c, e.span, e.op, a, b), left, right)


def _member(c: Context, e: s.Member) -> Value:
    output = c.scope.find(e.value.name) if isinstance(e.value, s.Name) else None
    if (
        output is not None
        and isinstance(output.value, Unset)
        and output.value.length is not None
        and e.name == "size"
    ):
        return ScalarValue(output.value.length, INT)
    value = expression(c, e.value)
    if isinstance(value, Record):
        if e.name not in value.members:
            hint = did_you_mean(e.name, value.members) or "it has " + ", ".join(value.members)
            raise c.report.error(f"{describe(value)} has no member '{e.name}'", e.span, hint=hint)
        return value.members[e.name].value
    if e.name != "size" or not isinstance(value, VectorValue):
        raise c.report.error(f"{describe(value)} has no '.{e.name}'", e.span, hint="a vector has '.size'")
    return ScalarValue(value.length, INT)


def _index(c: Context, e: s.Index) -> Value:
    value = expression(c, e.vector)
    if not isinstance(value, VectorValue) or value.name is None:
        hint = "give it a name: float* x = ...;" if isinstance(value, VectorValue) else ""
        raise c.report.error(
            f"only a vector that has a name can be indexed, not {describe(value)}", e.span, hint=hint
        )
    position = scalar(c, e.position, "an index")
    if position.expr.type.kind == "float":
        raise c.report.error("an index is an integer", e.position.span, hint="write int(...) around it")
    place = ir.as_elem(position.expr, INT)
    c.indexed.append((value.name, place, e.span))
    return ScalarValue(ir.Read(value.name, place, arithmetic(value.elem)), value.elem)


def _call(c: Context, e: s.Call) -> Value:
    if e.name == "cast" and e.type is not None:
        _arity(c, e, 1)
        if e.type.vector:
            raise c.report.error(
                "a cast names the type of one element", e.type.span, hint="leave the '*' away"
            )
        elem = element_type(c, e.type)
        return lift(c, e.span, lambda x: as_type(x, elem), operand(c, e.args[0]))
    if e.name == "bitcast" and e.type is not None:
        _arity(c, e, 1)
        return lift(c, e.span, lambda x: _bitcast(c, e, x), operand(c, e.args[0]))
    if e.name == "clamp":
        _arity(c, e, 3)
        return lift(
            c,
            e.span,
            lambda x, low, high: operate(c, e.span, "min", operate(c, e.span, "max", x, low), high),
            *(operand(c, a) for a in e.args),
        )
    if e.name in FUNCTIONS and c.scope.find_function(e.name) is None:
        _arity(c, e, OPS[e.name].arity)
        return lift(c, e.span, lambda *x: operate(c, e.span, e.name, *x), *(operand(c, a) for a in e.args))
    return c.call(e)


def _bitcast(c: Context, e: s.Call, x: ScalarValue) -> ScalarValue:
    to = element_type(c, e.type) if e.type else INT
    ops = {(FLOAT, UINT32): "float_bits", (UINT32, FLOAT): "bits_float"}
    value = as_type(x, UINT32) if x.literal and to is FLOAT else x
    op = ops.get((value.expr.type, to))
    if op is None:
        raise c.report.error(
            f"bitcast<{to}> does not take a value of type {value.elem}",
            e.span,
            hint="it goes between float and uint32; cast to one of them first",
        )
    return ScalarValue(ir.apply(op, value.expr), to)


def _arity(c: Context, e: s.Call, count: int) -> None:
    if len(e.args) != count:
        some = "1 argument" if count == 1 else f"{count} arguments"
        raise c.report.error(f"'{e.name}' takes {some}, not {len(e.args)}", e.span)
