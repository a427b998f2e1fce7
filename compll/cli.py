"""The `compll` command."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from compll import arrays, catalogue, driver, generate, knobs, pictures, report
from compll import build as builder
from compll import codec as api
from compll.check.parameters import Values
from compll.emit import cpp
from compll.errors import BackendError, CompileError, CompileWarning, ParameterError, PayloadError
from compll.types import FLOAT

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="CompLL: compile gradient compression algorithms."
)

Sources = Annotated[
    list[str], typer.Argument(help="a shipped algorithm's name, a .pse file, or two files of one codec")
]
Params = Annotated[list[str] | None, typer.Option("--param", "-p", help="name=value, may be repeated")]
Feedback = Annotated[bool, typer.Option("--error-feedback", help="add a residual to the codec")]
Gradient = Annotated[str, typer.Option("--dtype", help=f"of gradients: {' | '.join(arrays.GRADIENT)}")]


def main() -> None:
    """Run the command; what the user did wrong ends in a message and exit code 1, never in a traceback."""
    try:
        with _warnings_as_messages():
            app()
    except (CompileError, ParameterError, PayloadError, BackendError, IndexError, OSError) as e:
        print(e if isinstance(e, CompileError) else f"compll: {e}", file=sys.stderr)
        sys.exit(1)


@contextmanager
def _warnings_as_messages() -> Iterator[None]:
    """Print what the compiler warns of as it prints errors, each once: variants of a codec repeat it."""
    told: set[str] = set()
    with warnings.catch_warnings():
        usual = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
            if not isinstance(message, CompileWarning):
                usual(message, category, *place, **more)
            elif str(message) not in told:
                told.add(str(message))
                print(message, file=sys.stderr)

        warnings.simplefilter("always", CompileWarning)
        warnings.showwarning = show
        yield


def _codecs(sources: list[str]) -> list[tuple[Path, ...]]:
    """Return the files of each codec: a file with one function belongs to the file with its other one."""
    groups: list[tuple[Path, ...]] = []
    halves: dict[str, int] = {}
    for path in (path for source in sources for path in api.find(source)):
        head = driver.header_of([path])
        if head.codec in halves and head.has_encode != head.has_decode:
            groups[halves.pop(head.codec)] += (path,)
            continue
        if head.has_encode != head.has_decode:
            halves[head.codec] = len(groups)
        groups.append((path,))
    return groups


def _values(params: list[str] | None) -> Values:
    values: dict[str, float | int | bool] = {}
    for item in params or []:
        name, equals, text = item.partition("=")
        if not equals:
            raise ParameterError(f"--param {item}: write name=value")
        if text in ("true", "false"):
            values[name] = text == "true"
            continue
        try:
            values[name] = int(text, 0)
        except ValueError:
            try:
                values[name] = float(text)
            except ValueError:
                raise ParameterError(f"--param {item}: '{text}' is no number") from None
    return values


@app.command()
def check(sources: Sources, param: Params = None) -> None:
    """Check a program and report all its errors at once."""
    for paths in _codecs(sources):
        for checked in driver.check_files(paths, _values(param)):
            found = [f.op for f in (checked.encode, checked.decode) if f]
            print(f"{checked.label}: {' and '.join(found)} {'are' if len(found) > 1 else 'is'} right")


@app.command()
def build(
    sources: Sources,
    param: Params = None,
    error_feedback: Feedback = False,
    dtype: Gradient = "float32",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="copy source and library there")
    ] = None,
) -> None:
    """Generate and compile the C++ library; a width without default is built for every value."""
    for paths in _codecs(sources):
        for checked in driver.check_files(paths, _values(param), error_feedback=error_feedback):
            start = time.perf_counter()
            unit = driver.unit_of(checked, arrays.element(dtype))
            path = builder.library_path(checked.codec, cpp.source(unit), cpp.runtime())
            seconds = time.perf_counter() - start
            if output is not None:
                label = [checked.codec, *(f"{k}{v}" for k, v in checked.values.items())]
                label += [unit.suffix] if unit.element != FLOAT else []
                target = output / "-".join(label)
                target.mkdir(parents=True, exist_ok=True)
                for file in (path, *path.parent.glob("*.cpp"), *path.parent.glob("*.h")):
                    shutil.copy2(file, target)
                path = target / path.name
            print(f"{checked.label}: {path} ({seconds:.2f} s)")


@app.command()
def show(
    sources: Sources,
    emit: Annotated[str, typer.Option(help=" | ".join(generate.STAGES))] = "fused",
    param: Params = None,
    error_feedback: Feedback = False,
    dtype: Gradient = "float32",
) -> None:
    """Print a program at one stage of the compiler; `--dtype` is for its sources."""
    if emit not in generate.STAGES:
        hint = driver.did_you_mean(emit, generate.STAGES)
        raise ParameterError(
            f"--emit {emit}: the stages are {', '.join(generate.STAGES)}{'; ' + hint if hint else ''}"
        )
    for paths in _codecs(sources):
        checked = driver.check_files(paths, _values(param), error_feedback=error_feedback)[0]
        print(generate.stage(emit, driver.parse_files(paths)[0], checked, arrays.element(dtype)))


@app.command()
def run(
    sources: Sources,
    n: Annotated[int, typer.Option("-n", min=0, help="elements of the gradient")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, max=2**64 - 1, help="seed of gradient and noise")] = 7,
    backend: Annotated[str, typer.Option(help=" | ".join(("auto", *driver.BACKENDS)))] = "auto",
    param: Params = None,
    error_feedback: Feedback = False,
) -> None:
    """Encode and decode gradients; compare a backend with the interpreter, bit for bit."""
    if len(sources) > 2:
        raise ParameterError("`compll run` takes one codec: a name, a file, or the two files of a pair")
    source: driver.Source = sources[0] if len(sources) == 1 else (sources[0], sources[1])
    values = dict(_values(param))
    codec = api.compile(source, backend, error_feedback=error_feedback, **values)
    reference = api.compile(source, "interp", error_feedback=error_feedback, **values)
    cases = report.run(codec, reference, n, seed)
    table = Table(title=f"{codec!r} against the interpreter")
    for heading, justify in (
        ("gradient", "left"),
        ("n", "right"),
        ("bytes", "right"),
        ("ratio", "right"),
        ("|error|/|g|", "right"),
        ("bits", "left"),
    ):
        table.add_column(heading, justify=justify)  # type: ignore[arg-type]
    for c in cases:
        table.add_row(
            c.label,
            f"{c.n:,}",
            f"{c.payload_bytes:,}",
            f"{c.ratio:.1f}",
            f"{c.relative_error:.3g}",
            "equal" if c.equal else "DIFFER",
        )
    console = Console()
    console.print(table)
    told = {k: getattr(codec.info, k) for k in ("exact_size", *catalogue.PROPERTIES, "nonfinite")}
    console.print("  ".join(f"{k}: {v}" for k, v in told.items()))
    if not all(c.equal for c in cases):
        raise BackendError(
            f"{codec.backend} and the interpreter differ; this is a bug of the compiler: please report it"
        )


@app.command()
def algorithms(
    as_json: Annotated[bool, typer.Option("--json", help="print everything as JSON")] = False,
    as_markdown: Annotated[bool, typer.Option("--markdown", help="print docs/algorithms.md")] = False,
    into: Annotated[Path | None, typer.Option("--pictures", help="draw what each decodes to, there")] = None,
) -> None:
    """List the shipped algorithms: parameters, length, payload, properties and backends."""
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
    table = Table(*catalogue.HEADINGS)
    for e in found:
        table.add_row(*catalogue.row(e))
    Console().print(table)


@app.command("generate")
def generate_(
    fresh: Annotated[bool, typer.Option("--check", help="change nothing; fail when a file is stale")] = False,
    folder: Annotated[Path, typer.Option(help="where the files are")] = Path("generated"),
) -> None:
    """Write `generated/`, the compiler's output for every shipped algorithm."""
    if not fresh:
        for path in generate.write(folder):
            print(path)
        return
    diff = generate.differences(folder)
    if diff:
        print(diff)
        raise ParameterError(f"'{folder}' is stale: run `compll generate`")


@app.command()
def env() -> None:
    """Show what the compiler finds on this machine."""
    table = Table(show_header=False)
    command = knobs.compiler()
    try:
        found = builder.compiler_version(command)
    except BackendError as e:
        found = f"not there: {e}"
    try:
        numba_found = importlib.metadata.version("numba")
    except importlib.metadata.PackageNotFoundError:
        numba_found = "not there: pip install 'compll[numba]'"
    rows = {
        "C++ compiler (COMPLL_CXX)": f"{command}: {found}",
        "Numba": numba_found,
        "CPU": next(
            (x.partition(":")[2].strip() for x in builder.cpu().splitlines() if x.startswith("model name")),
            "unknown",
        ),
        "threads (COMPLL_THREADS)": str(knobs.threads()),
        "backend (COMPLL_BACKEND)": knobs.backend(),
        "cache (COMPLL_CACHE)": str(knobs.cache_dir()),
    }
    for row in rows.items():
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    main()
