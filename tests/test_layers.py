"""Imports go one way, frameworks stay in the files that are about them, and files stay small."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
OURS = ("compll", "casync", "secopa")
MOST_LINES = 420

# compll from the bottom to the top: a module imports from its own row and from the rows above it.
COMPLL = (
    {"errors", "knobs", "cache", "types", "rng", "elementary", "arrays"},
    {"ops", "syntax", "syntax_text", "parse", "ir", "ir_text", "ir_verify"},
    {"check", "lower", "carry", "tabulate", "passes", "derive", "properties", "evaluate", "payload"},
    {"emit", "backends", "build"},
    {"pending", "driver", "items", "runner", "codec"},
    {"", "algorithms", "generate", "catalogue", "pictures"},
    {"tools"},
    {"cli", "__main__"},
)

# What a package sees of the others. "" is the package itself.
SEES = {
    "compll": {},
    "casync": {"compll": {"", "codec"}},
    "secopa": {"compll": None, "casync": None},  # everything
}

# A framework -> the only files that may import it.
NUMBA = {
    "compll/backends/numba.py",
    *(f"compll/backends/numba_{part}.py" for part in ("convert", "elementary", "jobs", "kept", "lanes")),
    *(f"compll/backends/numba_{part}.py" for part in ("positions", "reduce", "runtime", "selection")),
    *(f"compll/backends/numba_{part}.py" for part in ("team", "tiles")),
}
TORCH = {
    "casync/exchange.py",
    "casync/transports/nccl.py",
    *(f"casync/engines/{name}.py" for name in ("horovod", "torch")),
    *(
        f"casync/torch/{part}.py"
        for part in ("__init__", "ddp", "gradients", "job", "optimizer", "parameters", "places", "state")
    ),
    "casync/torch/torchrun.py",
}
FRAMEWORKS = {
    "torch": TORCH,
    "tensorflow": {"casync/tensorflow.py"},
    "mxnet": {"casync/mxnet.py"},
    "numba": NUMBA,
    "llvmlite": NUMBA,
    "cupy": {"casync/exchange.py", "casync/gpu.py", "compll/backends/cuda.py"},
    "mpi4py": {"casync/engines/mpi.py", "casync/transports/mpi.py"},
    "horovod": {"casync/engines/horovod.py"},
}


def module_of(path: Path) -> str:
    """Return the dotted name of a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and dotted name of every module that a file imports, for type checking included."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                inside = path.relative_to(ROOT).parts[: -node.level]
                base = ".".join([*inside, base]).rstrip(".")
            for alias in node.names:
                folder = ROOT.joinpath(*base.split("."), alias.name)
                is_module = folder.with_suffix(".py").is_file() or (folder / "__init__.py").is_file()
                yield node.lineno, f"{base}.{alias.name}" if is_module else base


def room(module: str) -> str:
    """Return the part of a package that a module belongs to: compll.backends.cpp -> backends."""
    return [*module.split("."), ""][1]


def level(module: str) -> int:
    """Return the row of COMPLL that a module stands in."""
    rows = [number for number, rooms in enumerate(COMPLL) if room(module) in rooms]
    assert rows, f"{module} has no layer: give its room a row in COMPLL"
    return rows[0]


def is_allowed(importer: str, imported: str) -> bool:
    """Whether the layers let one of our modules import another."""
    here, there = importer.split(".")[0], imported.split(".")[0]
    if here == there:
        return here != "compll" or level(imported) <= level(importer)
    seen = SEES[here].get(there, set())
    return seen is None or room(imported) in seen


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def test_imports_go_one_way() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module_of(path)} must not import {name}"
        for path in sources(*OURS)
        for line, name in imports_of(path)
        if name.split(".")[0] in OURS and not is_allowed(module_of(path), name)
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("compll.types", "compll.ops", False),
        ("compll.ops", "compll.types", True),
        ("compll.codec", "compll.cli", False),
        ("compll.codec", "casync.plan", False),
        ("casync.plan", "compll.codec", True),
        ("casync.plan", "compll.knobs", False),
        ("casync.plan", "secopa.cost", False),
        ("secopa.cost", "casync.plan", True),
        ("secopa.cost", "compll.ir", True),
    ],
)
def test_rule_tells_allowed_from_forbidden(importer: str, imported: str, allowed: bool) -> None:
    assert is_allowed(importer, imported) is allowed


def test_imports_are_resolved_to_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "compll").mkdir()
    (tmp_path / "compll" / "knobs.py").touch()
    source = tmp_path / "casync" / "x.py"
    source.parent.mkdir()
    source.write_text(
        "import compll.ir\nfrom compll import knobs, compile\nfrom . import y\ndef f(): import torch.nn\n"
    )
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    assert list(imports_of(source)) == [
        (1, "compll.ir"),
        (2, "compll.knobs"),
        (2, "compll"),
        (3, "casync"),
        (4, "torch.nn"),
    ]


def test_frameworks_are_imported_only_where_they_are_the_subject() -> None:
    wrong = [
        f"{name}:{line}: {framework} belongs in {', '.join(sorted(homes))}"
        for path in sources(*OURS)
        for line, module in imports_of(path)
        for framework, homes in FRAMEWORKS.items()
        if module.split(".")[0] == framework and (name := str(path.relative_to(ROOT))) not in homes
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_loads_no_framework() -> None:
    homes = {module_of(ROOT / home) for files in FRAMEWORKS.values() for home in files}
    modules = sorted(
        name
        for path in sources(*OURS)
        if (name := module_of(path)) not in homes and not name.endswith("__main__")
    )
    program = (
        f"import importlib, sys\nfor name in {modules}: importlib.import_module(name)\n"
        f"print(sorted(set(sys.modules) & {set(FRAMEWORKS)}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


def test_files_are_small() -> None:
    folders = (*OURS, "tests", "examples", "scripts", "benchmarks")
    templates = [path for path in (ROOT / "templates").rglob("*") if path.suffix in (".j2", ".h", ".cuh")]
    long = [
        f"{path.relative_to(ROOT)}: {lines} lines, more than {MOST_LINES}: give it one responsibility"
        for path in [*sources(*folders), *templates]
        if (lines := len(path.read_text().splitlines())) > MOST_LINES
    ]
    assert not long, "\n".join(long)
