"""The command `casync`: look at schedules, measure the runtime."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from casync import bench as benchmark
from casync.picture import LEGEND, draw, totals
from casync.topologies import even_nodes, names, topology
from casync.verify import verify

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Compressed gradient synchronization.")

MOST_DRAWN = 64


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


def main() -> None:
    """Entry point of the console script."""
    app()
