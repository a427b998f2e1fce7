"""From files to a program and a library: the stages of the compiler in their order."""

from __future__ import annotations

import importlib
import importlib.resources
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from compll import build as builder
from compll import ir, knobs, passes
from compll import syntax as s
from compll.backends import Call, Library, Outcome, Unit, Values
from compll.check import Checked, Header, check, header
from compll.errors import (
    BackendError,
    CompileError,
    CompileWarning,
    Diagnostic,
    ParameterError,
    PayloadError,
    Span,
    did_you_mean,
)
from compll.parse import parse
from compll.payload import read_scalar
from compll.properties import Info, infer
from compll.types import FLOAT, Array, Elem

__all__ = [
    "Program",
    "algorithms",
    "build",
    "check_files",
    "did_you_mean",
    "find",
    "load",
    "parse_files",
    "program_of",
    "unit_of",
]

Source = str | Path | tuple[str | Path, str | Path]
BACKENDS = ("cpp", "numba", "cuda", "cudasim", "interp")


def algorithms() -> dict[str, Path]:
    """Return the shipped algorithms: name -> path of the `.pse` file."""
    folder = importlib.resources.files("compll") / "algorithms"  # importing it would hide this function
    paths = [Path(str(f)) for f in folder.iterdir() if f.name.endswith(".pse")]
    return {p.stem: p for p in sorted(paths)}


def find(source: Source) -> tuple[Path, ...]:
    """Return the files that `compile`'s source means.

    Raises:
        ParameterError: there is no such algorithm or file.

    """
    if isinstance(source, tuple):
        return tuple(path for part in source for path in find(Path(part)))
    if isinstance(source, str) and not source.endswith(".pse"):
        shipped = algorithms()
        if source not in shipped:
            hint = did_you_mean(source, shipped)
            raise ParameterError(
                f"there is no algorithm '{source}' ({', '.join(shipped)}){'; ' + hint if hint else ''}; "
                "a program of your own is named by its path, ending in .pse"
            )
        return (shipped[source],)
    path = Path(source)
    if not path.is_file():
        raise ParameterError(f"there is no file '{path}'")
    return (path,)


@dataclass(frozen=True)
class Program:
    """A checked codec with both functions, its properties, and the operations derived from them."""

    checked: Checked
    info: Info

    @property
    def encode(self) -> ir.Function:
        """The typed Encode."""
        return cast("ir.Function", self.checked.encode)

    @property
    def decode(self) -> ir.Function:
        """The typed Decode."""
        return cast("ir.Function", self.checked.decode)

    def decode_of(self, raw: Array, n: int) -> ir.Function:
        """Return the typed Decode for these bytes, which may say of what width they are.

        Raises:
            PayloadError: no payload of this codec is of that width.

        """
        width = self.checked.width
        if width is None:
            return self.decode
        found = read_scalar(self.decode, width.field, raw, n, self.checked.values)
        if found == self.checked.values[width.parameter]:
            return self.decode
        if found not in width.others:
            able = sorted({*width.others, self.checked.values[width.parameter]})
            raise PayloadError(
                f"{self.checked.codec}: the payload says that '{width.field}' is {found}; "
                f"it can be {', '.join(map(str, able))}"
            )
        return cast("ir.Function", width.others[found].decode)


def parse_files(paths: Sequence[Path]) -> tuple[list[s.Program], dict[str, str]]:
    """Read and parse files; return their trees and their texts by name.

    Raises:
        CompileError: with the syntax errors of all files.
        ParameterError: a file cannot be read as text.

    """
    sources: dict[str, str] = {}
    programs: list[s.Program] = []
    errors: list[Diagnostic] = []
    for path in paths:
        try:
            sources[str(path)] = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ParameterError(f"cannot read '{path}': {e}") from e
        try:
            programs.append(parse(sources[str(path)], str(path)))
        except RecursionError:
            errors.append(_too_deep(str(path)))
        except CompileError as e:
            errors.extend(e.diagnostics)
    if errors:
        raise CompileError(errors, sources)
    return programs, sources


def _too_deep(file: str) -> Diagnostic:
    return Diagnostic(
        "expressions nest too deeply in this file",
        Span(file, 1, 1, 1, 2),
        hint="divide them into variables",
    )


def header_of(paths: Sequence[Path]) -> Header:
    """Return what the files hold, without values of parameters."""
    return _header(*parse_files(paths))


def _header(programs: Sequence[s.Program], sources: Mapping[str, str]) -> Header:
    try:
        return header(programs, sources)
    except RecursionError:
        raise CompileError([_too_deep(file) for file in sources], sources) from None


def _check(
    programs: Sequence[s.Program], sources: Mapping[str, str], given: Values, *, error_feedback: bool
) -> Checked:
    try:
        checked = check(programs, sources, given)
        if error_feedback:
            if checked.encode is not None and passes.has_feedback(checked.encode):
                raise ParameterError(
                    f"{checked.codec} has error feedback of its own (its state "
                    f"'{checked.encode.states[0]}'): leave error_feedback=True away"
                )
            checked = check(programs, sources, given, error_feedback=True)
    except RecursionError:
        raise CompileError([_too_deep(file) for file in sources], sources) from None
    if checked.warnings:  # told at the line that called `compile`: compile, load, _check
        warnings.warn(CompileWarning(checked.warnings, sources), stacklevel=4)
    return checked


def load(paths: Sequence[Path], params: Values, *, error_feedback: bool = False) -> Program:
    """Parse, check and describe a codec that has both functions."""
    programs, sources = parse_files(paths)
    checked = _check(programs, sources, params, error_feedback=error_feedback)
    return program_of(checked, error_feedback=error_feedback)


def variants(head: Header, given: Values) -> list[Values]:
    """Return the sets of parameters to build for.

    A width without default and without a given value is built for every value that it may have, as
    published programs leave it open; the caller then chooses.
    """
    needed = [p for p in head.params if p.default is None and p.name not in given]
    open_widths = [p for p in needed if p.name in head.widths]
    if len(open_widths) != 1:
        return [given]
    width = open_widths[0]
    low, high = width.range or (1, 8)
    return [{**given, width.name: w} for w in range(int(low), int(high) + 1)]


def check_files(paths: Sequence[Path], given: Values, *, error_feedback: bool = False) -> list[Checked]:
    """Parse and check files for every variant of their parameters; one function alone is enough."""
    programs, sources = parse_files(paths)
    head = _header(programs, sources)
    return [_check(programs, sources, v, error_feedback=error_feedback) for v in variants(head, given)]


def program_of(checked: Checked, *, error_feedback: bool = False) -> Program:
    """Return a program, if both functions are there.

    Raises:
        ParameterError: one of them is missing.

    """
    for op, f in (("Encode", checked.encode), ("Decode", checked.decode)):
        if f is None:
            raise ParameterError(
                f"{checked.codec} has no {op}: add it to the file, or give two files, one with each function"
            )
    return Program(checked, infer(checked, error_feedback=error_feedback))


def unit_of(checked: Checked, element: Elem = FLOAT) -> Unit:
    """Return what a backend compiles for gradients of an element type: the functions and those derived.

    Raises:
        ParameterError: there is no Encode, which says how the payload is laid out.

    """
    if checked.encode is None:
        raise ParameterError(
            f"{checked.codec} has a Decode alone, which can be checked and shown; "
            "to build it, give its Encode too"
        )
    functions = [f for f in (checked.encode, checked.decode) if f is not None]
    if checked.decode is not None:
        functions.append(passes.decode_add(checked.decode))
    functions = [passes.for_gradients_of(f, element) for f in functions]
    return Unit(checked.codec, tuple(functions), checked.params, element)


class Libraries:
    """A codec's libraries, one for each element type of gradients, and each width that a payload may have.

    That of float32 and the codec's own width is built at once, the others when needed: ranks agree on
    the codec and never send a payload of another width.
    """

    def __init__(self, checked: Checked, backend: str) -> None:
        """Build the library for float32."""
        self.checked, self.backend = checked, backend
        self.built: dict[tuple[Elem, int], Library] = {}
        self.of(FLOAT)

    def of(self, element: Elem, width: int = 0) -> Library:
        """Return the library for gradients of an element type, and for payloads of another width."""
        if (element, width) not in self.built:
            module = importlib.import_module(f"compll.backends.{self.backend}")
            checked = self.checked.width.others[width] if self.checked.width and width else self.checked
            self.built[element, width] = module.build(unit_of(checked, element))
        return self.built[element, width]

    def width_of(self, op: str, call: Call, values: Values) -> int:
        """Return the width of a payload that is decoded; 0 for the codec's own, or if it has none."""
        width = self.checked.width
        if width is None or self.checked.decode is None or op not in ("decode", "decode_add"):
            return 0
        found = read_scalar(self.checked.decode, width.field, call.payload, call.n, values)
        return found if found in width.others else 0

    def run(self, op: str, calls: Sequence[Call], values: Values, threads: int) -> list[Outcome]:
        """Run one operation on every item, those of one library together."""
        kinds = [(call.element, self.width_of(op, call, values)) for call in calls]
        if len(set(kinds)) <= 1:
            return self.of(*(kinds[0] if kinds else (FLOAT,))).run(op, calls, values, threads)
        outcomes: dict[int, Outcome] = {}
        for kind in dict.fromkeys(kinds):
            numbers = [number for number, k in enumerate(kinds) if k == kind]
            done = self.of(*kind).run(op, [calls[number] for number in numbers], values, threads)
            outcomes.update(zip(numbers, done, strict=True))
        return [outcomes[number] for number in range(len(calls))]


def build(checked: Checked, backend: str = "auto") -> Libraries:
    """Compile what there is of a codec, one function or both, by a backend.

    Raises:
        BackendError: the backend is unknown, or cannot be used here.

    """
    return Libraries(checked, choose_backend(backend))


def choose_backend(backend: str) -> str:
    """Return the backend that `auto` means here, or check the name of another.

    `auto` takes `cpp` if there is a compiler, else `numba` if that is installed; without both it is an
    error, never a silently slow run.
    """
    name = knobs.backend() if backend == "auto" else backend
    if name == "auto":
        return _fast_backend()
    if name not in BACKENDS:
        hint = did_you_mean(name, BACKENDS)
        raise BackendError(
            f"there is no backend '{name}' ({', '.join(BACKENDS)}){'; ' + hint if hint else ''}"
        )
    return name


def _fast_backend() -> str:
    try:
        builder.compiler_version(knobs.compiler())
    except BackendError:
        if importlib.util.find_spec("numba") is None:
            raise BackendError(
                f"no backend can be used: the C++ compiler '{knobs.compiler()}' is not there, nor is Numba: "
                "install g++ or name another compiler by COMPLL_CXX, or pip install 'compll[numba]', "
                "or take the slow reference by backend='interp'"
            ) from None
        return "numba"
    return "cpp"
