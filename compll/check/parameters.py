"""Hyper-parameters: one set by name over both functions, their values, and which of them are static."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from compll import ir
from compll import syntax as s
from compll.check.signature import Signature, nodes
from compll.check.values import Abandon, Reporter
from compll.errors import ParameterError, did_you_mean
from compll.types import NAMED, Elem, arithmetic, convert, dtype, limits

Values = Mapping[str, float | int | bool]


def parameters(signatures: Sequence[Signature], report: Reporter) -> tuple[ir.Parameter, ...]:
    """Return the hyper-parameters of both functions as one set by name."""
    found: dict[str, tuple[ir.Parameter, s.Formal]] = {}
    static = {name for sig in signatures for name in _static_names(sig)}
    for sig in signatures:
        for formal in sig.params:
            try:
                p = _parameter(formal, formal.name in static, report)
            except Abandon:
                continue
            first = found.setdefault(p.name, (p, formal))[0]
            if (first.elem, first.default, first.range) != (p.elem, p.default, p.range):
                report.error(
                    f"the parameter '{p.name}' differs between Encode and Decode",
                    formal.span,
                    note="type, default and range must agree; it is one parameter",
                )
    return tuple(p for p, _ in found.values())


def _parameter(formal: s.Formal, static: bool, report: Reporter) -> ir.Parameter:
    if formal.type.name not in NAMED:
        raise report.error(f"a parameter cannot have the type '{formal.type.name}<...>'", formal.type.span)
    elem = NAMED[formal.type.name]
    default = _literal(formal.default, elem, report) if formal.default is not None else None
    bounds = None
    for a in formal.attributes:
        if a.name != "range" or len(a.args) != 2 or elem.kind == "bool":
            hint = "[[range(low, high)]] may stand before a parameter that is a number"
            raise report.error(f"[[{a.name}]] does not belong here", a.span, hint=hint)
        low, high = (_literal(x, elem, report) for x in a.args)
        if not low <= high:
            raise report.error(
                f"nothing is from {low} to {high}", a.span, hint="the lower bound stands first"
            )
        bounds = (low, high)
    parameter = ir.Parameter(formal.name, elem, default, bounds, static)
    if default is not None:
        try:
            check_value(parameter, default)
        except ParameterError as e:
            raise report.error(f"the default does not fit: {e}", formal.span) from e
    return parameter


def _literal(e: s.Expr, elem: Elem, report: Reporter) -> float | int | bool:
    sign = 1
    while isinstance(e, s.Unary) and e.op in "+-":
        sign, e = (-sign if e.op == "-" else sign), e.arg
    if isinstance(e, s.Integer):
        return float(sign * min(e.value, 2**1023)) if arithmetic(elem).kind == "float" else sign * e.value
    if isinstance(e, s.Number) and arithmetic(elem).kind == "float":
        return sign * float(e.text)
    if isinstance(e, s.Truth) and elem.kind == "bool":
        return e.value
    if isinstance(e, s.Name) and e.name == "inf" and arithmetic(elem).kind == "float":
        return sign * math.inf
    raise report.error(f"this must be a literal of type {elem}", e.span)


def check_value(p: ir.Parameter, value: object) -> float | int | bool:
    """Return a parameter's value as its type holds it.

    Raises:
        ParameterError: the value is of another kind, or outside the type or the declared range.

    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) != (p.elem.kind == "bool") or not isinstance(value, int | float):
        raise ParameterError(
            f"{p.name} = {value!r}: it must be {'a' if p.elem.kind == 'float' else 'an'} {p.elem}"
        )
    if p.elem.kind in ("int", "uint"):
        low, high = limits(p.elem)
        if not low <= value <= high or int(value) != value:
            raise ParameterError(
                f"{p.name} = {value!r}: the type {p.elem} holds the integers {low} to {high}"
            )
        value = int(value)
    if p.range is not None and not p.range[0] <= value <= p.range[1]:
        raise ParameterError(f"{p.name} = {value!r}: it must be from {p.range[0]} to {p.range[1]}")
    if p.elem.kind in ("float", "bfloat") and 2**128 <= abs(value) < math.inf:
        raise ParameterError(f"the value of {p.name} is too large for {p.elem}")
    with np.errstate(over="ignore"):
        return convert(np.asarray(value, dtype(arithmetic(p.elem))), p.elem).item()  # type: ignore[no-any-return]


def choose(codec: str, params: Sequence[ir.Parameter], given: Values) -> dict[str, float | int | bool]:
    """Return the value of every parameter: what was given, else the default.

    Raises:
        ParameterError: an unknown name, a value that does not fit, or a parameter without a value.

    """
    names = [p.name for p in params]
    for name in given:
        if name not in names:
            known = ", ".join(names) or "none"
            hint = did_you_mean(name, names)
            raise ParameterError(
                f"{codec} has no parameter '{name}' (it has: {known}){'; ' + hint if hint else ''}"
            )
    chosen = {}
    for p in params:
        value = given.get(p.name, p.default)
        if value is None:
            raise ParameterError(
                f"{codec} needs a value for '{p.name}', which has no default: "
                f"give {p.name}=... to compile(), or --param {p.name}=... on the command line"
            )
        chosen[p.name] = check_value(p, value)
    return chosen


def _static_names(sig: Signature) -> Iterator[str]:
    """Yield the parameters that stand in a type, in chunk or in a static `if`: kernels specialise to them."""
    given = _given(sig.program)
    for node in nodes(sig.program):
        if isinstance(node, s.TypeName):
            yield from _made_of(node.width, sig, given)
        if isinstance(node, s.Call) and node.name == "chunk":
            yield from _made_of(node.args[1:], sig, given)
        if isinstance(node, s.If) and _is_static(node.condition, sig):
            yield from _made_of(node.condition, sig, {})


def width_names(sig: Signature) -> Iterator[str]:
    """Yield the parameters that a width is made of."""
    given = _given(sig.program)
    for node in nodes(sig.program):
        if isinstance(node, s.TypeName):
            yield from _made_of(node.width, sig, given)


def _given(program: s.Program) -> dict[str, list[s.Expr]]:
    """Return what each variable of a file is ever given, whatever block it stands in."""
    given: dict[str, list[s.Expr]] = {}
    for n in nodes(program):
        if isinstance(n, s.Declarator | s.Assignment) and n.value is not None:
            given.setdefault(n.name, []).append(n.value)
    return given


def _made_of(e: object, sig: Signature, given: dict[str, list[s.Expr]]) -> Iterator[str]:
    """Yield the parameters in an expression, and in what its variables are `given`."""
    followed: set[str] = set()
    rest = [e]
    while rest:
        for n in nodes(rest.pop()):
            if name := sig.parameter(n):
                yield name
            elif isinstance(n, s.Name) and n.name in given and n.name not in followed:
                followed.add(n.name)
                rest.append(tuple(given[n.name]))


def _is_static(condition: s.Expr, sig: Signature) -> bool:
    """Whether a condition has only parameters and literals."""
    return all(
        isinstance(n, s.Integer | s.Number | s.Truth | s.Unary | s.Binary | s.Conditional)
        or sig.parameter(n)
        or (isinstance(n, s.Name) and n.name == sig.record)
        for n in nodes(condition)
    )
