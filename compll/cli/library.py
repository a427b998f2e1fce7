"""Commands about what ships and what is installed: `algorithms`, `generate`, `env`."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from compll import build as builder
from compll import catalogue, knobs, pictures
from compll import generate as generated
from compll.cli.options import AsJson
from compll.errors import BackendError, ParameterError


def algorithms(
    as_json: AsJson = False,
    wide: Annotated[
        bool, typer.Option("--wide", help="parameters, lines, bytes and backends too: 160 columns")
    ] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print docs/algorithms.md")] = False,
    into: Annotated[Path | None, typer.Option("--pictures", help="draw what each decodes to, there")] = None,
) -> None:
    """List the shipped algorithms: how many times smaller their payloads are, and their properties."""
    if as_markdown:
        print(catalogue.markdown(), end="")
        return
    if into is not None:
        for path in pictures.draw(into):
            print(path)
        return
    found = catalogue.entries()
    if as_json:
        print(json.dumps([dataclasses.asdict(e) for e in found], indent=2))
        return
    if wide:
        table = Table(*catalogue.HEADINGS)
        for e in found:
            table.add_row(*catalogue.row(e))
    else:
        table = Table("name", "ratio", "size", "properties", box=None)
        table.columns[1].justify = "right"
        for e in found:
            size = "exact" if e.exact_size else "at most"
            table.add_row(e.name, str(e.ratio), size, ", ".join(e.properties))
    console = Console()
    console.print(table)
    if not wide:
        console.print(
            "ratio: float32 bytes to payload bytes. More: --wide, --json, and docs/algorithms.md.",
            style="dim",
        )


def generate(
    fresh: Annotated[bool, typer.Option("--check", help="change nothing; fail when a file is stale")] = False,
    folder: Annotated[Path, typer.Option(help="where the files are")] = Path("generated"),
) -> None:
    """Write `generated/`, the compiler's output for every shipped algorithm."""
    if not fresh:
        for path in generated.write(folder):
            print(path)
        return
    diff = generated.differences(folder)
    if diff:
        print(diff)
        raise ParameterError(f"'{folder}' is stale: run `compll generate`")
    print(f"'{folder}' is fresh")


def env(as_json: AsJson = False) -> None:
    """Show what the compiler finds on this machine."""
    command = knobs.compiler()
    try:
        found = builder.compiler_version(command)
    except BackendError as e:
        found = f"not there: {e}"
    rows = {
        "C++ compiler (COMPLL_CXX)": f"{command}: {found}",
        "Numba": _version("numba"),
        "CuPy": _version("cupy-cuda12x", "cupy-cuda13x", "cupy"),
        "CPU": next(
            (x.partition(":")[2].strip() for x in builder.cpu().splitlines() if x.startswith("model name")),
            "unknown",
        ),
        "compiled for (COMPLL_MARCH)": knobs.march(),
        "threads (COMPLL_THREADS)": str(knobs.threads()),
        "backend (COMPLL_BACKEND)": knobs.backend(),
        "cache (COMPLL_CACHE)": str(knobs.cache_dir()),
    }
    if as_json:
        print(json.dumps(rows, indent=2))
        return
    table = Table(show_header=False)
    for row in rows.items():
        table.add_row(*row)
    Console().print(table)


def _version(*names: str) -> str:
    """Return the version of the first of some distributions that is installed."""
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not there" + (": pip install 'compll[numba]'" if names == ("numba",) else "")
