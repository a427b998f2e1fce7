"""Commands that run codecs: `run` tries one in every way, `bench` measures the speed of some."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import Progress, SpinnerColumn, TextColumn, track
from rich.table import Table

from compll import codec as api
from compll import driver
from compll.check.parameters import Values
from compll.cli.options import AsJson, Feedback, Params, Sources, codecs, values, words
from compll.errors import BackendError, ParameterError
from compll.tools import bench as speed
from compll.tools import plot as picture
from compll.tools import trial
from compll.types import written

MOST_SEED = 2**64 - 1


def run(
    sources: Sources,
    n: Annotated[int, typer.Option("-n", min=0, help="elements of the longest gradient")] = 100_000,
    seed: Annotated[int, typer.Option(min=0, max=MOST_SEED, help="of gradients and damage")] = 1,
    backend: Annotated[
        str, typer.Option(help=f"all | auto | {' | '.join(driver.BACKENDS)}; several by commas")
    ] = "all",
    param: Params = None,
    error_feedback: Feedback = False,
    payloads: Annotated[int, typer.Option(min=0, help="damaged payloads to decode")] = 2000,
    plot: Annotated[
        Path | None, typer.Option(help="draw decoded against original values, and errors, to this file")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try a codec in every way that the library's own tests know; exit code 1 if anything fails."""
    source = trial.source_of(sources)
    options = trial.Options(values(param), error_feedback, trial.backends(words(backend)), n, seed, payloads)
    found: trial.Trial | None = None
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("compiling")
        for step in trial.run(source, options):
            if isinstance(step, str):
                progress.update(task, description=step)
            else:
                found = step
    assert found is not None
    if plot is not None:
        picture.draw(api.compile(source, "auto", error_feedback=error_feedback, **dict(options.params)), plot)
    if as_json:
        told = {**dataclasses.asdict(found), "failures": found.failures}
        print(json.dumps(told, indent=2))
    else:
        _report(found, Console())
    if found.failures:
        raise typer.Exit(1)


def _report(found: trial.Trial, console: Console) -> None:
    params = ", ".join(f"{k}={written(v)}" for k, v in found.params.items())
    console.print(f"[bold]{found.codec}({params})[/]  {', '.join(found.properties)}", highlight=False)
    table = _table("backend", "gradients", "results", "threads", "against the interpreter", right=(1, 2))
    for c in found.comparisons:
        answer = "bit-equal" if not c.differences else f"[red]{len(c.differences)} DIFFER[/]"
        threads = ", ".join(map(str, c.threads))
        table.add_row(c.backend, str(c.gradients), str(c.results), threads, answer)
    for a in found.absent:
        table.add_row(a.backend, "-", "-", "-", f"[dim]not here: {escape(a.reason)}[/]")
    if table.rows:
        console.print(table)
    table = _table("check", "", "found")
    for check in found.checks:
        table.add_row(check.claim, _mark(check.passed), escape(check.found))
    for f in found.fuzzes:
        told = f.wrong or f"{f.decoded:,} decoded, {f.refused:,} refused, nothing else"
        table.add_row(f"damaged payloads on {f.backend}", _mark(not f.wrong), told)
    console.print(table)
    table = _table("gradient", "n", "bytes", "ratio", "|error|/|g|", "cosine", right=(1, 2, 3, 4, 5))
    for g in found.fidelity:
        numbers = (f"{g.n:,}", f"{g.payload_bytes:,}", f"{g.ratio:.1f}", f"{g.error:.3g}", f"{g.cosine:.3f}")
        table.add_row(g.gradient, *numbers)
    console.print(table)
    speeds = [f"{r.operation} {1e6 * r.seconds:.0f} us ({r.gigabytes:.1f} GB/s)" for r in found.times]
    if speeds:
        first = found.times[0]
        where = f"{first.backend}, 1 thread, {first.n:,} elements"
        console.print(f"{where}: {', '.join(speeds)}", highlight=False)
    for failure in found.failures:
        console.print(f"[red]FAILED[/] {escape(failure)}", highlight=False)
    if not found.failures:
        console.print("[green]everything that it claims holds[/]")


def _mark(passed: bool | None) -> str:
    return {True: "[green]holds[/]", False: "[red]FAILS[/]", None: "[dim]-[/]"}[passed]


def _table(*headings: str, right: Sequence[int] = ()) -> Table:
    table = Table(*headings, box=None, pad_edge=False, header_style="bold")
    for at in right:
        table.columns[at].justify = "right"
    return table


def bench(
    sources: Sources,
    n: Annotated[str, typer.Option("--n", "-n", help="elements, several by commas")] = "2^20,2^24",
    threads: Annotated[str, typer.Option(help="several by commas")] = "1",
    backend: Annotated[str, typer.Option(help="auto | cpp | numba | interp; several by commas")] = "auto",
    operation: Annotated[
        str, typer.Option(help=f"{', '.join(speed.OPERATIONS)}; several by commas")
    ] = "encode,decode,decode_add,hop",
    param: Params = None,
    error_feedback: Feedback = False,
    seconds: Annotated[float, typer.Option(min=0, help="for each measurement")] = 0.3,
    as_json: AsJson = False,
) -> None:
    """Measure GB/s of float32 gradient, and how near that is to what memory and generator allow.

    The bound is the larger of two times, measured in the same rounds: the least bytes that the operation
    moves (inputs read once, outputs written once, what exceeds the last-level cache read again for each
    statistic that is needed first) at the rate of memcpy, which moves two bytes for each byte it copies;
    and the random generator alone. `held by` is what takes most of the time: the call, the arithmetic (the
    rate in the core's own cache), writing (memset), or the memory between them.
    """
    wanted = words(operation)
    for name in wanted:
        if name not in speed.OPERATIONS:
            hint = driver.did_you_mean(name, speed.OPERATIONS)
            raise ParameterError(
                f"there is no operation '{name}' ({', '.join(speed.OPERATIONS)}){'; ' + hint if hint else ''}"
            )
    counts = [speed.size(text) for text in words(threads)]
    sizes = [speed.size(text) for text in words(n)]
    made = []
    for name in words(backend):
        if driver.choose_backend(name) in ("cuda", "cudasim"):
            raise BackendError(f"bench measures kernels of the CPU, not {name}: see benchmarks/gpu.sh")
        for files in codecs(sources):
            source: driver.Source = files[0] if len(files) == 1 else (files[0], files[1])
            made += _measured(source, name, values(param), wanted, error_feedback=error_feedback)
    cases = [(m, op, label, size, count) for m, op, label in made for size in sizes for count in counts]
    rows = []
    console = Console(stderr=True)
    for m, op, label, size, count in track(
        cases, "measuring", console=console, transient=True, disable=not console.is_terminal
    ):
        rows += [row for row, _ in speed.measure(m, size, count, [op], seconds, labels={op: label})]
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
        return
    headings = ("codec", "operation", "n", "backend", "threads", "GB/s", "of bound", "held by", "us")
    table = _table(*headings, right=(2, 4, 5, 6, 8))
    for r in rows:
        length = f"2^{r.n.bit_length() - 1}" if r.n.bit_count() == 1 else f"{r.n:,}"
        numbers = (f"{r.gigabytes:.1f}", f"{r.of_bound:.0%}", r.cause, f"{1e6 * r.seconds:.0f}")
        table.add_row(r.codec, r.operation, length, r.backend, str(r.threads), *numbers)
    Console().print(table)


def _measured(
    source: driver.Source,
    backend: str,
    params: Values,
    wanted: Sequence[str],
    *,
    error_feedback: bool,
) -> list[tuple[speed.Made, str, str]]:
    """Return the codec for each operation that is wanted and is there: (codec, operation, its label)."""
    plain = speed.make(source, backend, params, error_feedback=error_feedback)
    found = [(plain, op, op) for op in wanted if op in plain.operations]
    if "feedback" in wanted and not plain.codec.info.feedback:
        added = speed.make(source, backend, params, error_feedback=True)
        found.append((added, "encode", "feedback"))
    return found
