"""The checker: syntax trees -> typed IR, with all errors of the files at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compll import ir
from compll import syntax as s
from compll.check.body import Body
from compll.check.signature import Signature, Values, choose, find_codec, parameters
from compll.check.values import Abandon, Reporter
from compll.errors import CompileError, Diagnostic, ParameterError, in_order
from compll.types import written

__all__ = ["Checked", "check", "header"]


@dataclass(frozen=True)
class Checked:
    """A codec's typed functions; one of them is None when the files have only the other."""

    codec: str
    encode: ir.Function | None
    decode: ir.Function | None
    params: tuple[ir.Parameter, ...]
    values: Mapping[str, float | int | bool]
    declared: frozenset[str]
    keyed: bool
    warnings: tuple[Diagnostic, ...]

    @property
    def label(self) -> str:
        """The codec with the values of its parameters, such as `terngrad(bitwidth=2)`."""
        return f"{self.codec}({', '.join(f'{k}={written(v)}' for k, v in self.values.items())})"


@dataclass(frozen=True)
class Header:
    """What can be known of a codec before its parameters have values."""

    codec: str
    has_encode: bool
    has_decode: bool
    params: tuple[ir.Parameter, ...]


def header(programs: Sequence[s.Program], sources: Mapping[str, str]) -> Header:
    """Return name, functions and hyper-parameters.

    Raises:
        CompileError: the signatures are wrong.

    """
    report = Reporter()
    encode, decode, params = _signatures(programs, report, sources)
    known = encode or decode
    return Header(known.codec if known else "", encode is not None, decode is not None, params)


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
    static = {p.name: values[p.name] for p in params if p.static}
    if error_feedback:
        _may_add_feedback(encode, decode)
    typed: list[ir.Function | None] = [None, None]
    try:
        if encode is not None:
            typed[0] = Body(encode, report, static, params, decoder=decode, feedback=error_feedback).finish()
        if decode is not None:
            fields = typed[0].layout if typed[0] else None
            if typed[0] is None or typed[0].layout:  # without a layout Encode is broken and has said so
                counts = typed[0].counts if typed[0] else ()
                typed[1] = Body(decode, report, static, params, fields=fields, counts=counts).finish()
    except Abandon:
        pass
    if report.diagnostics:
        raise CompileError(report.diagnostics, sources)
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
    )


def _may_add_feedback(encode: Signature | None, decode: Signature | None) -> None:
    if encode is None or decode is None:
        raise ParameterError("error_feedback=True needs both Encode and Decode")
    if "residual" in encode.states:
        raise ParameterError(
            f"{encode.codec} has a state 'residual' of its own: "
            "leave error_feedback=True away, or rename the state"
        )
