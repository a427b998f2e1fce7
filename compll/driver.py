"""From files to a program and a library: the stages of the compiler in their order."""

from __future__ import annotations

import functools
import importlib
import importlib.resources
import importlib.util
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from compll import build as builder
from compll import cache, derive, ir, knobs
from compll import syntax as s
from compll.arrays import GPU, HOST
from compll.backends import Call, Library, Outcome, Unit, Values
from compll.check import Checked, Header, check, header
from compll.errors import (
    BackendError,
    CompileError,
    CompileWarning,
    Diagnostic,
    ParameterError,
    Span,
    did_you_mean,
)
from compll.parse import parse
from compll.pending import Pending
from compll.properties import Info, infer, why_no_hop
from compll.types import FLOAT, GRADIENTS, Elem, dtype

if TYPE_CHECKING:
    from compll.backends.launches import LaunchLibrary, Started

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
FLOAT32 = dtype(FLOAT)
STORED = {dtype(elem): elem for elem in GRADIENTS}  # what holds a gradient -> its element type
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

    def decode_for(self, width: int) -> ir.Function:
        """Return the typed Decode for payloads of a width; 0: the codec's own."""
        of = self.checked.width
        return cast("ir.Function", of.others[width].decode) if of and width else self.decode

    @functools.cached_property
    def fuses_hop(self) -> bool:
        """Whether backends have the hop as one operation."""
        return any(f.op == "hop" for f in unit_of(self.checked).functions)


def parse_files(paths: Sequence[Path]) -> tuple[list[s.Program], dict[str, str]]:
    """Read and parse files; return their trees and their texts by name.

    Raises:
        CompileError: with the syntax errors of all files.
        ParameterError: a file cannot be read as text.

    """
    sources = read_files(paths)
    return _parse(paths, sources), sources


def read_files(paths: Sequence[Path]) -> dict[str, str]:
    """Return the texts of files by name.

    Raises:
        ParameterError: a file cannot be read as text.

    """
    sources: dict[str, str] = {}
    for path in paths:
        try:
            sources[str(path)] = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as e:
            raise ParameterError(f"cannot read '{path}': {e}") from e
    return sources


def _parse(paths: Sequence[Path], sources: Mapping[str, str]) -> list[s.Program]:
    programs: list[s.Program] = []
    errors: list[Diagnostic] = []
    for name in map(str, paths):
        try:
            programs.append(parse(sources[name], name))
        except RecursionError:
            errors.append(_too_deep(name))
        except CompileError as e:
            errors.extend(e.diagnostics)
    if errors:
        raise CompileError(errors, sources)
    return programs


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
            if checked.encode is not None and derive.has_feedback(checked.encode):
                raise ParameterError(
                    f"{checked.codec} has error feedback of its own (its state "
                    f"'{checked.encode.states[0]}'): leave error_feedback=True away"
                )
            checked = check(programs, sources, given, error_feedback=True)
    except RecursionError:
        raise CompileError([_too_deep(file) for file in sources], sources) from None
    return checked


def _warn(checked: Checked, sources: Mapping[str, str]) -> None:
    if checked.warnings:  # told at the line that called `compile`: compile, load, _warn
        warnings.warn(CompileWarning(checked.warnings, sources), stacklevel=4)


def load(paths: Sequence[Path], params: Values, *, error_feedback: bool = False) -> Program:
    """Parse, check and describe a codec that has both functions; what was loaded before is remembered."""
    sources = read_files(paths)
    given = [(name, type(value), value) for name, value in sorted(params.items())]
    key = cache.key(list(map(str, paths)), sources, given, error_feedback)

    def make() -> Program:
        checked = _check(_parse(paths, sources), sources, params, error_feedback=error_feedback)
        return program_of(_known(checked, key), error_feedback=error_feedback)

    program = cache.remembered("programs", key, make)
    _warn(program.checked, sources)
    return program


def _known(checked: Checked, key: str) -> Checked:
    """Return a codec with its key, and those for its other widths with theirs."""
    if checked.width is None:
        return replace(checked, key=key)
    others = {w: replace(other, key=cache.key(key, w)) for w, other in checked.width.others.items()}
    return replace(checked, key=key, width=replace(checked.width, others=others))


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
    made = [_check(programs, sources, v, error_feedback=error_feedback) for v in variants(head, given)]
    for checked in made:
        _warn(checked, sources)
    return made


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
    encode, decode = checked.encode, checked.decode
    functions = [f for f in (encode, decode) if f is not None]
    if decode is not None:
        functions.append(derive.decode_add(decode))
        hop = None if why_no_hop(checked) else derive.hop(encode, decode)
        functions += [hop] if hop else []
    functions = [derive.for_gradients_of(f, element) for f in functions]
    return Unit(checked.codec, tuple(functions), checked.params, element, _key_of(checked, element))


def _key_of(checked: Checked, element: Elem) -> str:
    return checked.key and cache.key(checked.key, element.name)


class Libraries:
    """A codec's libraries: for each place of the arrays, element type of gradients, and width of a payload.

    `backends` names the backend for arrays in each place.  For float32 and the codec's own width the first is
    built at once, the others when needed: who has no GPU needs no CuPy, and ranks agree on the codec and
    never send a payload of another width.
    """

    def __init__(self, checked: Checked, backends: Mapping[str, str]) -> None:
        """Build the library for float32."""
        self.checked, self.backends = checked, backends
        self.built: dict[tuple[str, np.dtype[Any], int], Library] = {}
        self.pending = Pending()
        self.place = next(iter(backends))
        self.launches = self.of().launches

    @property
    def backend(self) -> str:
        """The backend that was built first."""
        return self.backends[self.place]

    def of(self, stored: np.dtype[Any] = FLOAT32, width: int = 0, place: str | None = None) -> Library:
        """Return the library for gradients that are stored so, and for payloads of another width."""
        key = place or self.place, stored, width
        library = self.built.get(key)
        if library is None:
            module = importlib.import_module(f"compll.backends.{self.backends[key[0]]}")
            checked = self.checked.width.others[width] if self.checked.width and width else self.checked
            element = STORED[stored]
            unit = cache.remembered("units", _key_of(checked, element), lambda: unit_of(checked, element))
            library = self.built[key] = module.build(unit)
        return library

    def parts(self, calls: Sequence[Call], place: str | None = None) -> list[tuple[Library, Sequence[int]]]:
        """Return the libraries that calls need, each with the numbers of its calls."""
        kinds = [(call.gradient.dtype, call.width) for call in calls]
        return [
            (self.of(*kind, place), [number for number, k in enumerate(kinds) if k == kind])
            for kind in dict.fromkeys(kinds)
        ]

    def run(
        self, op: str, calls: Sequence[Call], values: Values, threads: int, place: str | None = None
    ) -> list[Outcome]:
        """Run one operation on every item, those of one library together."""
        first = calls[0]
        if len(calls) == 1 or len({(call.gradient.dtype, call.width) for call in calls}) == 1:
            return self.of(first.gradient.dtype, first.width, place).run(op, calls, values, threads)
        outcomes: dict[int, Outcome] = {}
        for library, numbers in self.parts(calls, place):
            done = library.run(op, [calls[number] for number in numbers], values, threads)
            outcomes.update(zip(numbers, done, strict=True))
        return [outcomes[number] for number in range(len(calls))]

    def start(
        self, op: str, calls: Sequence[Call], values: Values, *, keep: bool
    ) -> list[tuple[Started, int]]:
        """Launch one operation on every item on a GPU; return each one's run and place in it."""
        started: dict[int, tuple[Started, int]] = {}
        for library, numbers in self.parts(calls, GPU):
            run = cast("LaunchLibrary", library).start(op, [calls[i] for i in numbers], values, keep=keep)
            started.update((number, (run, at)) for at, number in enumerate(numbers))
        return [started[number] for number in range(len(calls))]


def build(checked: Checked, backend: str = "auto") -> Libraries:
    """Compile what there is of a codec, one function or both, by a backend.

    Raises:
        BackendError: the backend is unknown, or cannot be used here.

    """
    return Libraries(checked, choose_backends(backend))


def choose_backends(backend: str) -> dict[str, str]:
    """Return the backend for arrays in each place that `auto` means here, or check the name of another.

    For arrays in host memory `auto` takes `cpp` if there is a compiler, else `numba` if that is installed;
    without both it is an error, never a silently slow run.  For arrays on a GPU it takes `cuda`.
    """
    name = knobs.backend() if backend == "auto" else backend
    if name == "auto":
        return {HOST: _fast_backend(), GPU: "cuda"}
    if name not in BACKENDS:
        hint = did_you_mean(name, BACKENDS)
        raise BackendError(
            f"there is no backend '{name}' ({', '.join(BACKENDS)}){'; ' + hint if hint else ''}"
        )
    return {GPU if name == "cuda" else HOST: name}


def choose_backend(backend: str) -> str:
    """Return the one backend that a name means: `auto` is that for arrays in host memory."""
    return next(iter(choose_backends(backend).values()))


def _fast_backend() -> str:
    try:
        builder.compiler_version(knobs.compiler())
    except BackendError:
        if importlib.util.find_spec("numba") is None:
            raise BackendError(
                f"no backend can be used: the C++ compiler '{knobs.compiler()}' is not there, nor is Numba: "
                "install g++ or name another compiler by COMPLL_CXX, or pip install 'compll[numba]', "
                "or take the slow reference by backend='interp', or backend='cuda' for arrays on a GPU alone"
            ) from None
        return "numba"
    return "cpp"
