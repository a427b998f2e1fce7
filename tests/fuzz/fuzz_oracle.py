"""What the compiler may answer to any text: a codec, or errors of ours.  Everything else is a finding."""

from __future__ import annotations

import signal
import tempfile
import traceback
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import numpy as np

from compll import ir
from compll.backends import Unit
from compll.check import Checked, check, header
from compll.codec import Codec
from compll.driver import build, check_files, program_of, unit_of
from compll.emit import cpp, cuda, numba
from compll.errors import CompileError, ParameterError, PayloadError
from compll.evaluate import host_int
from compll.ir_text import function_text
from compll.parse import parse
from compll.passes import fuse

FILE = "fuzz.pse"
SIZES = (0, 1, 37, 300)
EMITTERS = {"cpp": cpp.source, "numba": numba.source, "cuda": cuda.source}
LARGEST = 20_000  # elements of a vector in a program that is run
SECONDS = 10.0


class TooLong(BaseException):
    """The compiler did not answer in time; no `except Exception` may catch this."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TooLong after so many seconds of this process's own time (other processes do not count)."""

    def late(_number: int, _frame: FrameType | None) -> None:
        raise TooLong(f"no answer after {seconds:g} s")

    before = signal.signal(signal.SIGVTALRM, late)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@dataclass(frozen=True)
class Finding:
    """An answer that may not be: its signature tells findings apart, `detail` is for the reader."""

    signature: str
    detail: str


def examine(text: str, *, backends: Sequence[str] = tuple(EMITTERS), run: bool = False) -> str | Finding:
    """Give a text to every stage of the compiler; return the outcome's name, or what was found.

    Args:
        text: a `.pse` file.
        backends: those whose source is made, if the program is right.
        run: also encode and decode with the interpreter.

    """
    try:
        with time_limit(SECONDS), warnings.catch_warnings():
            warnings.simplefilter("error", RuntimeWarning)
            return compile_all(text, backends, run=run)
    except (Exception, TooLong) as e:
        frame = traceback.extract_tb(e.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.name}" if not isinstance(e, TooLong) else "time"
        return Finding(f"{type(e).__name__} at {place}", traceback.format_exc())


def compile_all(text: str, backends: Sequence[str], *, run: bool) -> str:
    """Return the outcome of all stages; what is no outcome is raised."""
    try:
        checked = checked_file(text)
    except CompileError as e:
        is_sane(e, text)
        return "CompileError"
    except ParameterError as e:
        assert str(e), "an error without a message"
        return "ParameterError"
    outcome = "right"
    functions = [f for f in (checked.encode, checked.decode) if f is not None]
    for f in functions:
        function_text(f)
        function_text(fuse(f))
    if checked.encode is not None:
        unit = unit_of(checked)
        for name in backends:
            assert EMITTERS[name](unit)
        if checked.decode is not None and run:
            run_interpreter(checked, unit)
            outcome += ", run"
    return outcome


def checked_file(text: str) -> Checked:
    """Parse and check a file; a hyper-parameter without default gets a value that fits."""
    try:
        tree = parse(text, FILE)
        params = header([tree], {FILE: text}).params
        given = {p.name: (p.range or (2, 2))[0] for p in params if p.default is None}
        return check([tree], {FILE: text}, given)
    except RecursionError:  # the driver answers this one, and only it
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / FILE
            path.write_text(text, "utf-8")
            return check_files([path], {})[0]


def is_sane(e: CompileError, text: str) -> None:
    """Raise AssertionError unless every diagnostic says something about a place in the file."""
    lines = text.split("\n")
    assert e.diagnostics, "no diagnostic"
    for d in e.diagnostics:
        span = d.span
        assert d.message.strip(), "a diagnostic without a message"
        assert Path(span.file).name == FILE, span
        assert 1 <= span.line <= len(lines) + 1, span
        assert 1 <= span.column <= len([*lines, ""][span.line - 1]) + 2, span
        assert (span.end_line, span.end_column) >= (span.line, span.column), span
        assert f"{span.file}:{span.line}:{span.column}: " in str(e)
        assert d.message in str(e)


def run_interpreter(checked: Checked, unit: Unit) -> None:
    """Encode and decode some gradients; the codec may refuse indices and payloads, and nothing else."""
    codec = Codec(program_of(checked), build(checked, "interp"))
    rng = np.random.default_rng(0)
    for n in SIZES:
        if any(largest(f, n, checked) > LARGEST for f in unit.functions):
            continue
        g = rng.standard_normal(n).astype(np.float32)
        state = codec.new_state(n)
        try:
            payload = codec.encode(g, seed=1, state=state or None)
        except (IndexError, ParameterError):
            continue
        assert len(payload) <= codec.max_bytes(n)
        assert all(np.isfinite(s).all() for s in state.values())
        for changed in (payload, payload[:-1], rng.integers(0, 256, len(payload), dtype=np.uint8)):
            try:
                assert len(codec.decode(changed, n, shared_seed=1)) == n
                codec.decode_add(changed, np.zeros(n, np.float32), 0.5, shared_seed=1)
            except PayloadError as e:
                assert str(e), "an error without a message"


def largest(f: ir.Function, n: int, checked: Checked) -> int:
    """Return the most elements that a vector of a function has, as far as n decides that."""
    lengths = [b.length for b in f.body if hasattr(b, "length")]
    lengths += [field.length for field in f.layout if field.length is not None]
    known = [e for e in lengths if not any(isinstance(x, ir.Scalar) for x in ir.walk(e))]
    return max((host_int(e, n, checked.values) for e in known), default=0)
