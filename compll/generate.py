"""`generated/`: what the compiler makes of each shipped algorithm, checked in to be read in review."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from pathlib import Path

from compll import driver
from compll import syntax as s
from compll.check import Checked
from compll.codec import algorithms
from compll.emit import cpp, cuda, numba
from compll.ir_text import function_text
from compll.passes import fuse
from compll.syntax_text import tree_text
from compll.types import FLOAT, Elem

SOURCES = {"cpp": cpp.source, "cuda": cuda.source, "numba": numba.source}
SUFFIXES = {"cpp": "cpp", "cuda": "cu", "numba": "py"}
TEXTS = ("ast", "ir", "fused", "launches")
STAGES = (*TEXTS, *SOURCES)


def stage(name: str, programs: Sequence[s.Program], checked: Checked, element: Elem = FLOAT) -> str:
    """Return a program at one stage of the compiler, derived operations included.

    `element` is the type of the gradients for which sources are made.

    Raises:
        ParameterError: there is no Encode, of which sources are made.

    """
    if name == "ast":
        return "\n".join(tree_text(program) for program in programs)
    if name in SOURCES:
        return SOURCES[name](driver.unit_of(checked, element))
    if name == "launches":
        return cuda.launches_text(driver.unit_of(checked, element))
    functions = driver.unit_of(checked).functions if checked.encode else (checked.decode,)
    return "\n".join(function_text(f if name == "ir" else fuse(f)) for f in functions if f is not None)


def texts() -> Iterator[tuple[str, str]]:
    """Yield (file name below `generated/`, text) for every algorithm with its default parameters."""
    for name, path in algorithms().items():
        program = driver.load([path], {})
        unit = driver.unit_of(program.checked)
        title = f"# {name}, made by `compll generate` from compll/algorithms/{name}.pse; do not edit\n\n"
        for text in TEXTS:
            yield f"{name}/{name}.{text}", title + stage(text, driver.parse_files([path])[0], program.checked)
        for backend, source in SOURCES.items():
            yield f"{name}/{name}.{SUFFIXES[backend]}", source(unit)


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
    return {folder / name: text for name, text in texts()}


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.glob("*/*") if p.suffix[1:] in (*TEXTS, *SUFFIXES.values())]
