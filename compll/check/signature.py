"""Which functions of the files are the codec, and what their formals mean."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from compll import ir
from compll import syntax as s
from compll.check.values import Abandon, Reporter
from compll.errors import ParameterError, Span, did_you_mean
from compll.types import NAMED, Elem, arithmetic, convert, dtype, limits

DECLARED = ("unbiased", "no_hop", "drops")
RESERVED = ("backend", "error_feedback")
Values = Mapping[str, float | int | bool]


@dataclass(frozen=True)
class Signature:
    """An encode or decode function with the meaning of its formals."""

    program: s.Program
    function: s.Function
    codec: str
    op: str
    gradient: str
    compressed: str
    states: tuple[str, ...]
    key: str
    params: tuple[s.Formal, ...]
    declared: frozenset[str]


def find_codec(programs: Sequence[s.Program], report: Reporter) -> tuple[Signature | None, Signature | None]:
    """Find `<Name>Encode` and `<Name>Decode` in one file, or one in each of two."""
    found: dict[str, Signature] = {}
    for program in programs:
        for function in program.functions:
            op = next((op for op in ("Encode", "Decode") if function.name.endswith(op)), None)
            if op is None or function.name == op:
                continue
            if op in found:
                first = found[op].function
                report.error(
                    f"a second {op} function, '{function.name}'",
                    function.span,
                    note=f"the first is '{first.name}' at {first.span.file}:{first.span.line}",
                    hint="a codec is one pair <Name>Encode, <Name>Decode",
                )
                continue
            try:
                found[op] = _signature(program, function, op, report)
            except Abandon:
                continue
    encode, decode = found.get("Encode"), found.get("Decode")
    if not found and not report.diagnostics:
        report.error(
            "no codec in this file",
            programs[0].span,
            hint="write 'void <Name>Encode(float* gradient, uint8* compressed)' and '<Name>Decode'",
        )
    if encode and decode and encode.codec != decode.codec:
        a, b = encode.function.name, decode.function.name
        report.error(
            f"'{a}' and '{b}' are not a pair", decode.function.span, hint=f"name it '{a[:-6]}Decode'"
        )
    return encode, decode


def _signature(program: s.Program, f: s.Function, op: str, report: Reporter) -> Signature:
    want = [("float", True), ("uint8", True)]
    shape = "float* gradient, uint8* compressed"
    if op == "Decode":
        want, shape = want[::-1], "uint8* compressed, float* gradient"
    begins = [(a.type.name, a.type.vector) for a in f.formals[:2] if a.role == ""]
    if begins != want or f.type.name != "void":
        raise report.error(
            f"'{f.name}' does not begin as {'an Encode' if op == 'Encode' else 'a Decode'} does",
            f.span,
            hint=f"write 'void {f.name}({shape}, ...)'",
        )
    first, second, *rest = f.formals
    gradient, compressed = (first, second) if op == "Encode" else (second, first)
    for name in {a.name for a in f.formals if [b.name for b in f.formals].count(a.name) > 1}:
        report.error(f"two formals are called '{name}'", f.span)
    declared = set()
    for attribute in f.attributes:
        if attribute.name not in DECLARED or op == "Decode":
            where = "before a Decode" if attribute.name in DECLARED else ""
            hint = (
                did_you_mean(attribute.name, DECLARED)
                or "before an Encode stand [[unbiased]], [[no_hop]], [[drops]]"
            )
            report.error(f"unknown attribute '{attribute.name}' {where}".rstrip(), attribute.span, hint=hint)
        declared.add(attribute.name)
    params = []
    for a in rest:
        if a.role == "state" and (op == "Decode" or a.type.name != "float" or not a.type.vector):
            report.error("a state is a 'state float* name' of Encode", a.span)
        elif a.role == "state" and a.name == "gradient":
            report.error(
                "a state cannot be called 'gradient' unless the gradient is", a.span, hint="rename the state"
            )
        elif a.role and (a.attributes or a.default is not None):
            report.error(f"'{a.name}' takes neither a default nor attributes", a.span)
        elif a.role == "shared" and (a.type.name != "uint64" or a.type.vector):
            report.error("the shared key is a 'shared uint64 name'", a.span)
        elif a.role == "" and (a.type.vector or a.type.name == "void"):
            report.error(
                f"the hyper-parameter '{a.name}' is no scalar",
                a.span,
                hint="state vectors are written 'state float* name'",
            )
        elif a.role == "" and a.name in RESERVED:
            report.error(f"'{a.name}' is an argument of compile() and cannot be a parameter", a.span)
        elif a.role == "":
            params.append(a)
    states = tuple(a.name for a in rest if a.role == "state")
    key = next((a.name for a in rest if a.role == "shared"), "")
    name = f.name[: -len(op)].lower()
    return Signature(
        program,
        f,
        name,
        op.lower(),
        gradient.name,
        compressed.name,
        states,
        key,
        tuple(params),
        frozenset(declared),
    )


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
        if a.name != "range" or len(a.args) != 2:
            raise report.error("a parameter's attribute is [[range(low, high)]]", a.span)
        low, high = (_literal(x, elem, report) for x in a.args)
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
    own = {p.name for p in sig.params}
    for node in nodes(sig.program):
        inside: list[s.Expr] = []
        if isinstance(node, s.TypeName) and node.width is not None:
            inside.append(node.width)
        if isinstance(node, s.Call) and node.name == "chunk":
            inside.extend(node.args[1:])
        if isinstance(node, s.If) and is_static(node.condition, own):
            inside.append(node.condition)
        for e in inside:
            yield from (n.name for n in nodes(e) if isinstance(n, s.Name) and n.name in own)


def is_static(condition: s.Expr, params: set[str]) -> bool:
    """Whether a condition has only parameters and literals."""
    return all(
        isinstance(n, s.Integer | s.Number | s.Truth | s.Unary | s.Binary | s.Conditional)
        or (isinstance(n, s.Name) and n.name in params)
        for n in nodes(condition)
    )


def nodes(node: object) -> Iterator[s.Node]:
    """Yield every syntax node under `node`, in source order."""
    waiting = [node]
    while waiting:
        x = waiting.pop()
        if isinstance(x, tuple):
            waiting.extend(reversed(x))
        elif isinstance(x, s.Node):
            yield x
            waiting.extend(getattr(x, f.name) for f in reversed(fields(x)))


def random_sites(program: s.Program) -> dict[Span, int]:
    """Number what draws random numbers, in source order.

    `random`, `stochastic_round` and a `sample` without key are numbered together, in the file; samples with
    a key apart, from 0 in Encode and again in Decode.
    """
    private = [n for n in nodes(program) if isinstance(n, s.Call) and _draws(n) and not _is_keyed(n)]
    numbered = {n.span: i for i, n in enumerate(sorted(private, key=_place))}
    for f in program.functions:
        keyed = [n for n in nodes(f.body) if isinstance(n, s.Call) and _is_keyed(n)]
        numbered |= {n.span: i for i, n in enumerate(sorted(keyed, key=_place))}
    return numbered


def _draws(call: s.Call) -> bool:
    return call.name in ("random", "stochastic_round", "sample")


def _is_keyed(call: s.Call) -> bool:
    return call.name == "sample" and len(call.args) == 3


def _place(node: s.Node) -> tuple[int, int]:
    return node.span.line, node.span.column
