"""The account of a run: what synchronization has cost, in all and by gradient; as a table or as JSON."""

from __future__ import annotations

import io
import json
import logging
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from casync.control import name_ranks

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from casync.compute import Compute
    from casync.metrics import Cost, Stats
    from casync.probe import Probe

log = logging.getLogger("casync")

TABLE = "table"
MOST_ROWS = 40
"""Rows of a table: the gradients that took most time. JSON has all."""
WIDTH = 130


@dataclass(frozen=True)
class Line:
    """One gradient, or a bucket of uncompressed ones. Norms are this rank's, and may be None: not known.

    norm: of the gradient, as last looked at (`casync.probe`). residual: of what error feedback holds back of
    it on this rank now. error: the residual over the norm; without error feedback, the norm of what encoding
    loses over that of what is encoded.
    """

    cost: Cost
    norm: float | None = None
    residual: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class Report:
    """One rank's account of one optimizer. rank: by the job's numbers, as are those of its group, if any.

    ranks: how many share the optimizer.
    """

    rank: int
    ranks: int
    topology: str
    totals: Stats
    lines: tuple[Line, ...]
    group: tuple[int, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The report as JSON holds it: times in seconds, sizes in bytes, over the whole run."""
        gradients = [
            {"gradient": line.cost.gradient}
            | asdict(line.cost)
            | {"ratio": line.cost.ratio, "norm": line.norm, "residual": line.residual, "error": line.error}
            for line in self.lines
        ]
        return {
            "rank": self.rank,
            "ranks": self.ranks,
            "group": list(self.group) or None,
            "topology": self.topology,
            "totals": asdict(self.totals) | {"ratio": self.totals.ratio},
            "gradients": gradients,
        }

    def table(self) -> Table:
        """The report for people: bytes and milliseconds are those of a step."""
        steps = max(1, self.totals.steps)
        of = name_ranks(self.group) if self.group else self.ranks
        table = Table(
            title=f"casync: rank {self.rank} of {of}, topology {self.topology}, "
            f"{self.totals.steps} steps; a step costs:",
            title_justify="left",
            box=SIMPLE_HEAD,
        )
        table.add_column("gradient", overflow="fold")
        table.add_column("codec")
        for name in ("elements", "bytes sent", "ratio", "encode\nms", "decode\nms", "wait\nms", "error"):
            table.add_column(name, justify="right", no_wrap=True)
        lines = sorted(self.lines, key=_seconds, reverse=True)
        shown = lines if len(lines) <= MOST_ROWS else lines[: MOST_ROWS - 1]
        for line in shown:
            cost = line.cost
            table.add_row(
                cost.gradient,
                cost.codec,
                f"{cost.elements:,}",
                *_figures(cost, max(1, cost.steps)),
                "-" if line.error is None else f"{line.error:.3g}",
            )
        if len(shown) < len(lines):
            table.add_row(f"and {len(lines) - len(shown)} more", *7 * [""])
        table.add_section()
        elements = sum(line.cost.elements for line in self.lines)
        table.add_row("all", "", f"{elements:,}", *_figures(self.totals, steps), "")
        return table

    def __str__(self) -> str:
        """The table as text."""
        out = io.StringIO()
        Console(file=out, width=WIDTH).print(self.table())
        return "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())


def _seconds(line: Line) -> float:
    return line.cost.encode_seconds + line.cost.decode_seconds + line.cost.wait_seconds


def _figures(cost: Cost | Stats, steps: int) -> list[str]:
    times = (cost.encode_seconds, cost.decode_seconds, cost.wait_seconds)
    return [
        f"{cost.bytes_sent / steps:,.0f}",
        f"{cost.ratio:.1f}",
        *(f"{1e3 * seconds / steps:.3f}" for seconds in times),
    ]


def lines(costs: Sequence[Cost], compute: Compute, probe: Probe | None) -> tuple[Line, ...]:
    """A line for each cost; norm and residual are None where the gradient has another codec by now."""
    residuals: dict[str, float] = {}
    for held in compute.feedback.held():
        if held.residual is not None:
            square = float(np.linalg.norm(held.values[held.residual])) ** 2
            residuals[held.gradient] = (residuals.get(held.gradient, 0.0) ** 2 + square) ** 0.5
    seen = {} if probe is None else probe.norms
    errors = {} if probe is None else probe.errors
    found = []
    for cost in costs:
        norms = {name: seen[name] for name in cost.members if name in seen}
        lost = {n: errors[n, cost.codec] * norms[n] for n in norms if (n, cost.codec) in errors}
        codec = compute.codecs.get(cost.members[0])
        norm = residual = None
        error = _over(_root(lost.values()), _root(norms[name] for name in lost))
        if codec is not None and codec.info.name == cost.codec:
            norm = _root(norms.values())
            residual = _root(residuals[name] for name in cost.members if name in residuals)
        if residual is not None:
            error = _over(residual, norm)
        found.append(Line(cost, _finite(norm), _finite(residual), _finite(error)))
    return tuple(found)


def _root(values: Iterable[float]) -> float | None:
    """The norm of what has these norms; None of nothing."""
    squares = [value * value for value in values]
    return math.sqrt(math.fsum(squares)) if squares else None


def _over(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def deliver(where: str, rank: int, reports: Sequence[Report]) -> None:
    """Print the reports of a rank's optimizers (`where` is TABLE), or write them to a file.

    Rank 0 alone does, unless `{rank}` in the file's name gives each rank one of its own. That a file cannot
    be written is logged.
    """
    if not reports or (rank != 0 and "{rank}" not in where):
        return
    if where == TABLE:
        print("".join(f"{report}\n" for report in reports), end="", flush=True)
        return
    path = Path(where.replace("{rank}", str(rank)))
    text = json.dumps([report.as_dict() for report in reports], indent=1, allow_nan=False) + "\n"
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        log.warning("casync: the report cannot be written to %s: %s", path, error.strerror)
