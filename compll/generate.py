"""`generated/`: what the compiler makes of each shipped algorithm, checked in to be read in review."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from compll import driver
from compll.backends import Unit
from compll.codec import algorithms
from compll.emit import cpp, cuda, numba
from compll.errors import BackendError
from compll.ir_text import function_text
from compll.passes import fuse

SOURCES = {"cpp": cpp.source, "cuda": cuda.source, "numba": numba.source}
SUFFIXES = {"cpp": "cpp", "cuda": "cu", "numba": "py"}


def sources(unit: Unit) -> dict[str, str | BackendError]:
    """Return for every backend the source that it makes of a codec, or why it does not build it."""
    made: dict[str, str | BackendError] = {}
    for backend, source in SOURCES.items():
        try:
            made[backend] = source(unit)
        except BackendError as e:
            made[backend] = e
    return made


def texts() -> Iterator[tuple[str, str | BackendError]]:
    """Yield (file name below `generated/`, text) for every algorithm with its default parameters.

    Where a backend does not build an algorithm, its error stands in the text's place.
    """
    for name, path in algorithms().items():
        program = driver.load([path], {})
        unit = driver.unit_of(program.checked)
        title = f"# {name}, made by `compll generate` from compll/algorithms/{name}.pse; do not edit\n\n"
        yield f"{name}/{name}.ir", title + "\n".join(function_text(f) for f in unit.functions)
        yield f"{name}/{name}.fused", title + "\n".join(function_text(fuse(f)) for f in unit.functions)
        for backend, text in sources(unit).items():
            yield f"{name}/{name}.{SUFFIXES[backend]}", text


def left_out() -> list[str]:
    """Return a line for each text that no backend makes: which, and why."""
    return [f"{name} is left out: {e}" for name, e in texts() if isinstance(e, BackendError)]


def write(folder: Path) -> list[Path]:
    """Write all texts below `folder`, remove files that are generated no more; return what changed."""
    changed = []
    wanted = _wanted(folder)
    for path, text in wanted.items():
        if not path.is_file() or path.read_text("utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
            changed.append(path)
    for path in _files(folder):
        if path not in wanted:
            path.unlink()
            changed.append(path)
    return changed


def differences(folder: Path) -> str:
    """Return a unified diff from the files below `folder` to what the compiler makes now; empty if fresh."""
    wanted = _wanted(folder)
    out: list[str] = []
    for path in sorted({*wanted, *_files(folder)}):
        have = path.read_text("utf-8") if path.is_file() else ""
        name = str(path.relative_to(folder.parent))
        new = wanted.get(path, "")
        out += difflib.unified_diff(
            have.splitlines(True), new.splitlines(True), f"{name} (checked in)", f"{name} (now)"
        )
    return "".join(out)


def _wanted(folder: Path) -> dict[Path, str]:
    return {folder / name: text for name, text in texts() if isinstance(text, str)}


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.glob("*/*") if p.suffix in (".ir", ".fused", ".cpp", ".cu", ".py")]
