"""Errors as data, and the one place that turns them into text.

A diagnostic says what is wrong, where, and how to mend it.  The compiler collects all diagnostics of a
file and raises them together as one `CompileError`.
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of source text; lines and columns count from 1, the end column is exclusive."""

    file: str
    line: int
    column: int
    end_line: int
    end_column: int


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One complaint, an error or a warning: message and place, a label under the carets, a note, a hint."""

    message: str
    span: Span
    label: str = ""
    note: str = ""
    hint: str = ""
    severity: Literal["error", "warning"] = "error"


class CompileError(Exception):
    """A `.pse` program is wrong.  `diagnostics` holds every error that was found, in source order."""

    def __init__(self, diagnostics: Iterable[Diagnostic], sources: Mapping[str, str]) -> None:
        """Keep the diagnostics sorted by place and without repetitions; `sources` maps file to text."""
        self.diagnostics = in_order(diagnostics)
        self.sources = dict(sources)
        super().__init__(render_all(self.diagnostics, self.sources))


class CompileWarning(UserWarning):
    """A `.pse` program compiles and hardly means what it says.  `diagnostics` holds what is odd, in order."""

    def __init__(self, diagnostics: Iterable[Diagnostic], sources: Mapping[str, str]) -> None:
        """Keep the diagnostics sorted by place and without repetitions; `sources` maps file to text."""
        self.diagnostics = in_order(diagnostics)
        super().__init__(render_all(self.diagnostics, sources))


class PayloadError(ValueError):
    """Bytes that are no payload of this codec for this number of elements."""


class ParameterError(ValueError):
    """An argument of a codec that does not fit: a parameter, seed, state or buffer."""


class BackendError(RuntimeError):
    """A backend that cannot be used here, such as C++ without a compiler."""


def in_order(diagnostics: Iterable[Diagnostic]) -> tuple[Diagnostic, ...]:
    """Return diagnostics sorted by place and without repetitions."""
    ordered = sorted(set(diagnostics), key=lambda d: (d.span.file, d.span.line, d.span.column, d.message))
    return tuple(ordered)


def render_all(diagnostics: Iterable[Diagnostic], sources: Mapping[str, str]) -> str:
    """Format diagnostics, one after the other; `sources` maps file to text."""
    return "\n".join(render(d, sources.get(d.span.file, "")) for d in diagnostics)


def render(diagnostic: Diagnostic, source: str) -> str:
    """Format one diagnostic: `file:line:column: severity: message`, source line, carets, note and hint."""
    span = diagnostic.span
    out = [f"{span.file}:{span.line}:{span.column}: {diagnostic.severity}: {diagnostic.message}"]
    lines = source.split("\n")  # as the parser counts; splitlines() would also cut at a form feed
    if 1 <= span.line <= len(lines):
        text = "".join(c if c.isprintable() else " " for c in lines[span.line - 1]).rstrip()
        end = span.end_column if span.end_line == span.line else len(text) + 1
        carets = "^" * max(1, min(end, len(text) + 1) - span.column)
        gutter = str(span.line)
        label = f" {diagnostic.label}" if diagnostic.label else ""
        out.append(f" {gutter} | {text}")
        out.append(f" {' ' * len(gutter)} | {' ' * (span.column - 1)}{carets}{label}")
    if diagnostic.note:
        out.append(f"  note: {diagnostic.note}")
    if diagnostic.hint:
        out.append(f"  hint: {diagnostic.hint}")
    return "\n".join(out)


def unknown_type(name: str, span: Span, known: Iterable[str]) -> Diagnostic:
    """Return the complaint about a type that is not there."""
    hint = did_you_mean(name, known) or "the types are " + ", ".join(sorted(known))
    return Diagnostic(f"unknown type '{name}'", span, hint=hint)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return `did you mean 'x'?` for the known word nearest to `word`, or an empty string."""
    near = difflib.get_close_matches(word, sorted(set(known)), n=1, cutoff=0.6)
    return f"did you mean '{near[0]}'?" if near else ""
