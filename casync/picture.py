"""Draws a schedule: a table a partition, a row a rank, time from left to right."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from rich.table import Table

from casync.primitives import Decode, Encode, Merge, Recv, Reduce, Schedule, Send, Task
from casync.verify import levels

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

LEGEND = (
    "E encode   H hop: decode, add, encode   M merge   D decode   >r send to rank r   <r receive from it\n"
    "P encode as plain float32   S add a payload's own values   R round their sum\n"
    "* an average is scaled here: into the final payload, which every rank decodes, or (D*) from the sum"
)


def draw(schedule: Schedule, partitions: int) -> Iterator[Table]:
    """One table a partition. Tasks in one column may run at the same time."""
    level = levels(schedule)
    for p in range(partitions):
        cells: dict[tuple[int, int], list[str]] = defaultdict(list)
        for rank, tasks in enumerate(schedule):
            for task in tasks:
                if task.partition == p:
                    cells[rank, level[rank, task.id]].append(_cell(task))
        table = Table(title=f"partition {p}", title_justify="left", box=None, pad_edge=False)
        table.add_column("rank", justify="right")
        columns = sorted({column for _, column in cells})
        for step, _ in enumerate(columns):
            table.add_column(str(step))
        for rank in range(len(schedule)):
            table.add_row(str(rank), *(" ".join(cells[rank, column]) for column in columns))
        yield table


def _cell(task: Task) -> str:
    match task:
        case Encode():
            kind = "P" if task.exact else "R" if task.direct else "E" if task.received is None else "H"
            return kind + "*" * task.final
        case Merge():
            return "S" if task.direct else "M"
        case Decode():
            return "D" if task.payload is not None else "D*"
        case Send(peer=peer):
            return f">{peer}"
        case Recv(peer=peer):
            return f"<{peer}"
        case Reduce():
            return "A"


def totals(schedule: Schedule) -> str:
    """How many tasks of each kind, all ranks together; plain payloads are neither encoded nor decoded."""
    tasks = [task for of_rank in schedule for task in of_rank]
    counts = {
        "messages": sum(isinstance(t, Send) for t in tasks),
        "encodes": sum(isinstance(t, Encode) and not (t.exact or t.direct) for t in tasks),
        "decodes": sum(_decodes(t, of_rank) for of_rank in schedule for t in of_rank),
        "steps one after the other": 1 + max(levels(schedule).values(), default=-1),
    }
    return ", ".join(f"{count} {what}" for what, count in counts.items())


def _decodes(task: Task, of_rank: Sequence[Task]) -> bool:
    match task:
        case Encode(received=int()) | Decode(payload=int()):
            return True
        case Merge(payload=int(payload), direct=False):
            source = of_rank[payload]
            return not (isinstance(source, Encode | Recv) and source.exact)
        case _:
            return False
