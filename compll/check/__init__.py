"""The checker: syntax trees -> typed IR, with all errors of the files at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from compll import ir
from compll import syntax as s
from compll.check.body import Body
from compll.check.parameters import Values, choose, parameters, width_names
from compll.check.payload import Written
from compll.check.signature import Signature, find_codec
from compll.check.values import Abandon, Reporter
from compll.errors import CompileError, Diagnostic, ParameterError, in_order
from compll.types import written

__all__ = ["Checked", "Header", "Width", "check", "header"]


@dataclass(frozen=True)
class Checked:
    """A codec's typed functions; one of them is None when the files have only the other.

    `key` tells it from all others (`cache.key`); of one that nothing is remembered of it is empty.
    """

    codec: str
    encode: ir.Function | None
    decode: ir.Function | None
    params: tuple[ir.Parameter, ...]
    values: Mapping[str, float | int | bool]
    declared: frozenset[str]
    keyed: bool
    warnings: tuple[Diagnostic, ...]
    width: Width | None = None
    key: str = ""

    @property
    def label(self) -> str:
        """The codec with the values of its parameters, such as `terngrad(bitwidth=2)`."""
        return f"{self.codec}({', '.join(f'{k}={written(v)}' for k, v in self.values.items())})"


@dataclass(frozen=True)
class Width:
    """A width that Decode reads: the field, the hyper-parameter that Encode puts there, its other values."""

    field: str
    parameter: str
    others: Mapping[int, Checked]


@dataclass(frozen=True)
class Header:
    """What can be known of a codec before its parameters have values."""

    codec: str
    has_encode: bool
    has_decode: bool
    params: tuple[ir.Parameter, ...]
    widths: frozenset[str]  # the parameters that a width of uint<...> is made of


def header(programs: Sequence[s.Program], sources: Mapping[str, str]) -> Header:
    """Return name, functions and hyper-parameters.

    Raises:
        CompileError: the signatures are wrong.

    """
    report = Reporter()
    encode, decode, params = _signatures(programs, report, sources)
    known = encode or decode
    widths = frozenset(name for sig in (encode, decode) if sig for name in width_names(sig))
    return Header(known.codec if known else "", encode is not None, decode is not None, params, widths)


def _signatures(
    programs: Sequence[s.Program], report: Reporter, sources: Mapping[str, str]
) -> tuple[Signature | None, Signature | None, tuple[ir.Parameter, ...]]:
    encode, decode = find_codec(programs, report)
    params = parameters([sig for sig in (encode, decode) if sig], report)
    if report.diagnostics:
        raise CompileError(report.diagnostics, sources)
    return encode, decode, params


def check(
    programs: Sequence[s.Program], sources: Mapping[str, str], given: Values, *, error_feedback: bool = False
) -> Checked:
    """Check a codec for given values of its hyper-parameters.

    Args:
        programs: one file, or two files that hold one function each.
        sources: file name -> text, for messages.
        given: values of hyper-parameters; the others take their defaults.
        error_feedback: add a residual to Encode (LANGUAGE: "State, error feedback, hop").

    Raises:
        CompileError: with every error of the files.
        ParameterError: a value that does not fit, or a missing one.

    """
    report = Reporter()
    encode, decode, params = _signatures(programs, report, sources)
    values = choose((encode or decode).codec, params, given)  # type: ignore[union-attr]
    if error_feedback:
        _may_add_feedback(encode, decode)
    checked = _typed(encode, decode, params, values, report, feedback=error_feedback)
    if report.diagnostics:
        raise CompileError(report.diagnostics, sources)
    if checked.width is None:
        return checked
    others = {}
    parameter = next(p for p in params if p.name == checked.width.parameter)
    low, high = parameter.range or (1, 8)
    for width in range(max(1, int(low)), min(8, int(high)) + 1):
        aside = Reporter()  # a width for which the program is wrong is one that no payload has
        other = _typed(
            encode, decode, params, {**values, parameter.name: width}, aside, feedback=error_feedback
        )
        if not aside.diagnostics and width != values[parameter.name]:
            others[width] = replace(other, width=None)
    return replace(checked, width=replace(checked.width, others=others))


def _typed(
    encode: Signature | None,
    decode: Signature | None,
    params: tuple[ir.Parameter, ...],
    values: Values,
    report: Reporter,
    *,
    feedback: bool,
) -> Checked:
    """Type both functions for given values."""
    static = {p.name: values[p.name] for p in params if p.static}
    typed: list[ir.Function | None] = [None, None]
    width = None
    try:
        copies: list[str] = []
        if encode is not None:
            body = Body(encode, report, static, params, decoder=decode, feedback=feedback)
            typed[0], copies = body.finish(), body.copies
        if decode is not None and (typed[0] is None or typed[0].layout):
            # without a layout Encode is broken and has said so
            wrote = Written.by(typed[0]) if typed[0] else None
            body = Body(decode, report, static, params, written=wrote)
            typed[1] = decoded = body.finish()
            for at in body.read_widths.values():
                if at < len(copies) and copies[at] in static:
                    width = Width(decoded.layout[at].name, copies[at], {})
    except Abandon:
        pass
    known = encode or decode
    assert known is not None
    return Checked(
        codec=known.codec,
        encode=typed[0],
        decode=typed[1],
        params=params,
        values=values,
        declared=encode.declared if encode else frozenset(),
        keyed=any(sig.key for sig in (encode, decode) if sig),
        warnings=in_order(report.warnings),
        width=width,
    )


def _may_add_feedback(encode: Signature | None, decode: Signature | None) -> None:
    if encode is None or decode is None:
        raise ParameterError("error_feedback=True needs both Encode and Decode")
    if "residual" in encode.states:
        raise ParameterError(
            f"{encode.codec} has a state 'residual' of its own: "
            "leave error_feedback=True away, or rename the state"
        )
