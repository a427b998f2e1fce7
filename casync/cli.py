"""The command `casync`: look at schedules and traces, measure the runtime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

import compll
from casync import bench as benchmark
from casync import checkup, timeline
from casync.check import GRADIENTS
from casync.control import MismatchError, RankFailure
from casync.launch import LaunchError, RendezvousError
from casync.listing import read_gradients
from casync.picture import LEGEND, draw, totals
from casync.plan import Plan
from casync.topologies import even_nodes, names, topology
from casync.verify import verify

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Compressed gradient synchronization.")

MOST_DRAWN = 64
CHECKED = ("onebit", "topk")


@app.command()
def show(
    name: Annotated[str, typer.Argument(metavar="TOPOLOGY", help=f"One of {', '.join(names())}.")],
    ranks: Annotated[int, typer.Option("-n", "--ranks", min=1, max=MOST_DRAWN, help="How many ranks.")] = 4,
    partitions: Annotated[
        int, typer.Option("-k", "--partitions", min=1, max=MOST_DRAWN, help="How many partitions to draw.")
    ] = 1,
    per_node: Annotated[
        int, typer.Option("-g", "--per-node", min=1, max=MOST_DRAWN, help="How many ranks share a node.")
    ] = 2,
) -> None:
    """Print a topology's schedule, checked: each rank's tasks from left to right."""
    try:
        module = topology(name)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    owners = [module.owner(p, ranks) for p in range(partitions)]
    schedule = module.schedule(ranks, owners, even_nodes(ranks, per_node))
    verify(schedule, partitions)
    console = Console()
    for table in draw(schedule, partitions):
        console.print(table)
        console.print()
    console.print(LEGEND, highlight=False, soft_wrap=True)
    console.print(
        f"{ranks} ranks, {partitions} partitions: {totals(schedule)}", highlight=False, soft_wrap=True
    )


@app.command()
def bench(
    ranks: Annotated[int, typer.Option("-n", "--ranks", min=1, max=16, help="How many ranks.")] = 2,
    steps: Annotated[int, typer.Option(min=1, help="Steps to measure.")] = 100,
    transport: Annotated[
        list[str] | None, typer.Option(help="loopback, zmq; again for more. Default: both.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Write a page of results there, too.")] = None,
) -> None:
    """Measure tasks a second and CPU a task of the executor, with small gradients."""
    transports = transport or list(benchmark.TRANSPORTS)
    for name in transports:
        if name not in benchmark.TRANSPORTS:
            raise typer.BadParameter(
                f"no transport {name!r} between threads; there are: {', '.join(benchmark.TRANSPORTS)}"
            )
    console = Console()
    table = Table("transport", "topology", "codec", "tasks a step", "tasks/s", "CPU us a task")
    costs = []
    cases = benchmark.cases(ranks, steps, transports)
    for case in track(cases, "measuring", console=Console(stderr=True), transient=True):
        cost = benchmark.measure(case)
        costs.append(cost)
        table.add_row(
            case.transport,
            case.topology,
            case.codec or "none",
            f"{cost.tasks // case.steps}",
            f"{cost.tasks_per_second:,.0f}",
            f"{cost.cpu_microseconds_per_task:.0f}",
        )
    console.print(table)
    if output is not None:
        output.write_text(benchmark.markdown(costs), encoding="utf-8")
        console.print(f"wrote {output}")


@app.command()
def trace(
    folder: Annotated[Path, typer.Argument(help="Where a job with CASYNC_TRACE wrote its traces.")],
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="The merged trace. [default: FOLDER/merged.json]")
    ] = None,
) -> None:
    """Merge the ranks' traces for chrome://tracing or Perfetto, and tell where a step's time goes."""
    path = output or folder / "merged.json"
    try:
        traces = timeline.read(folder)
        path.write_text(json.dumps(timeline.merged(traces)), encoding="utf-8")
    except timeline.TraceError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{path}: cannot be written: {error.strerror}; name another with --output")
    found = [each for of_rank in traces for each in timeline.breakdowns(of_rank)]
    console = Console()
    if found:
        console.print(timeline.table(found))
        for line in timeline.critical(found):
            console.print(line, highlight=False, soft_wrap=True)
    missing = sorted(set(range(traces[0].ranks)) - {each.rank for each in traces})
    if missing:
        _note(f"no file of rank {', '.join(map(str, missing))}: copy theirs into {folder} and merge again")
    if any(each.cut for each in traces):
        _note("the trace is cut off: it had too many events; set CASYNC_TRACE_STEPS lower")
    console.print(f"wrote {path}: open it in chrome://tracing or https://ui.perfetto.dev", soft_wrap=True)


@app.command()
def check(
    codec: Annotated[
        list[str] | None,
        typer.Option(help="A shipped name or a .pse file; again for more. [default: onebit, topk]"),
    ] = None,
    topology_: Annotated[
        list[str] | None, typer.Option("--topology", help="Again for more. [default: all]")
    ] = None,
    down: Annotated[str | None, typer.Option(help="A codec for sums. [default: each gradient's own]")] = None,
    plan: Annotated[Path | None, typer.Option(help="A plan that `secopa plan` wrote; needs --input.")] = None,
    input_: Annotated[
        Path | None, typer.Option("--input", help="The gradients, `name,elements` a line. [default: a few]")
    ] = None,
    ranks: Annotated[
        int | None,
        typer.Option("-n", "--ranks", min=1, max=64, help="Ranks, without a launcher. [default: 4]"),
    ] = None,
) -> None:
    """Check codecs in topologies: allowed? proved? do a few steps give all ranks the same bits?

    Alone, the ranks are threads of this process. Under horovodrun, mpirun or torchrun they are the job's, and
    the links between them are measured: `horovodrun -np 2 -H host1,host2 casync check`.

    Exit code 0: all that is allowed holds. 1: something does not, the job failed, or a codec is not allowed
    in a topology that was named. 2: the command line is wrong.
    """
    console = Console()
    try:
        wish = _wish(codec, topology_, down, plan, input_)
        where = checkup.place()
        if where.size > 1 and ranks is not None:
            raise typer.BadParameter("--ranks: the launcher says how many there are; leave it out")
        if where.size == 1:
            nodes = even_nodes(ranks or 4, 2)
            verdicts = checkup.alone(wish, nodes)
            title = f"{ranks or 4} ranks in this process, two a node; a step of all of them:"
        else:
            rank, job = checkup.join(wish, where)
            nodes, verdicts, title = job.nodes, list(job.verdicts), "a step of all ranks:"
            if rank == 0:
                console.print(checkup.ranks_table(job))
    except (LaunchError, RendezvousError, RankFailure, MismatchError, ValueError) as error:
        _fail(str(error))
    if where.rank == 0:
        console.print(checkup.verdicts_table(verdicts, title))
        for line in (*checkup.choices(wish, nodes), *checkup.reasons(verdicts)):
            console.print(line, highlight=False, soft_wrap=True)
    refused = topology_ and any(each.refused for each in verdicts)
    if refused or any(each.faults for each in verdicts):
        raise typer.Exit(1)


def _wish(
    codecs: list[str] | None,
    topologies: list[str] | None,
    down: str | None,
    plan: Path | None,
    listed: Path | None,
) -> checkup.Wish:
    """What the options of `check` ask for. Raises what reading files and compiling codecs raises."""
    if plan is not None and listed is None:
        raise typer.BadParameter("a plan does not say how many elements gradients have: give --input, too")
    for name in topologies or ():
        if name not in names():
            raise typer.BadParameter(f"unknown topology {name!r}: it is one of {', '.join(names())}")
    return checkup.Wish(
        tuple(compll.compile(name) for name in codecs or CHECKED),
        tuple(topologies or ()),
        GRADIENTS if listed is None else read_gradients(listed),
        None if plan is None else Plan.load(plan),
        None if down is None else compll.compile(down),
    )


def _note(text: str) -> None:
    typer.echo(f"note: {text}", err=True)


def _fail(text: str) -> NoReturn:
    typer.echo(f"error: {text}", err=True)
    raise typer.Exit(1)


def main() -> None:
    """Entry point of the console script."""
    app()
