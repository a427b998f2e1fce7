"""`generated/`: what the compiler makes of each shipped algorithm, checked in to be read in review."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from pathlib import Path

from compll import driver
from compll.codec import algorithms
from compll.emit import cpp, cuda, numba
from compll.ir_text import function_text
from compll.passes import fuse


def texts() -> Iterator[tuple[str, str]]:
    """Yield (file name below `generated/`, text) for every algorithm with its default parameters."""
    for name, path in algorithms().items():
        program = driver.load([path], {})
        unit = driver.unit_of(program.checked)
        title = f"# {name}, made by `compll generate` from compll/algorithms/{name}.pse; do not edit\n\n"
        yield f"{name}/{name}.ir", title + "\n".join(function_text(f) for f in unit.functions)
        yield f"{name}/{name}.fused", title + "\n".join(function_text(fuse(f)) for f in unit.functions)
        yield f"{name}/{name}.cpp", cpp.source(unit)
        yield f"{name}/{name}.py", numba.source(unit)
        yield f"{name}/{name}.cu", cuda.source(unit)


def write(folder: Path) -> list[Path]:
    """Write all texts below `folder`, remove files that are generated no more; return what changed."""
    changed = []
    wanted = {folder / name: text for name, text in texts()}
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
    wanted = {folder / name: text for name, text in texts()}
    out: list[str] = []
    for path in sorted({*wanted, *_files(folder)}):
        have = path.read_text("utf-8") if path.is_file() else ""
        name = str(path.relative_to(folder.parent))
        new = wanted.get(path, "")
        out += difflib.unified_diff(
            have.splitlines(True), new.splitlines(True), f"{name} (checked in)", f"{name} (now)"
        )
    return "".join(out)


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.glob("*/*") if p.suffix in (".ir", ".fused", ".cpp", ".cu", ".py")]
