"""What the demo shows at its end: one table, one plot, and the conditions under which they were made."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator, PercentFormatter
from rich.table import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLORS = {"none": "#3c3c3c", "horovod": "#9a9a9a", "terngrad": "#0b6fb8", "onebit": "#d9541a"}
STYLES = {"ring": "solid", "ps": "dashed"}
TITLES = {"none": "uncompressed", "horovod": "Horovod"}
ACCURACIES = (0.1, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)  # ticks
SMOOTH = 15  # steps over which the plotted loss is averaged
HEADERS = (
    "algorithm",
    "topology",
    "test accuracy",
    "final loss",
    "bytes sent a step and rank",
    "ratio",
    "seconds",
)


@dataclass(frozen=True)
class Outcome:
    """One training's results, as examples/train_digits.py writes them."""

    algorithm: str
    topology: str
    plan: str | None
    ranks: int
    seed: int
    epochs: int
    parameters: int
    loss: list[float]
    bytes_sent: list[int]
    bytes_are: str
    evaluations: list[dict[str, float]]
    test_accuracy: float
    final_loss: float
    seconds: float
    parameter_hash: str

    @property
    def title(self) -> str:
        """The run's name in table and plot."""
        return f"{TITLES.get(self.algorithm, self.algorithm)} ({self.topology})"

    @property
    def compressed(self) -> bool:
        """Whether a codec was at work."""
        return self.algorithm not in TITLES

    @property
    def bytes_a_step(self) -> float:
        """Bytes that a rank sent in the mean step."""
        return self.bytes_sent[-1] / len(self.bytes_sent)

    def record(self) -> dict[str, object]:
        """Return what is kept: everything, curves rounded to what a plot can show."""
        return {**asdict(self), "loss": [round(value, 5) for value in self.loss]}


def rows(outcomes: list[Outcome]) -> list[tuple[str, ...]]:
    """Return the table's cells; the ratio is that of bytes to the uncompressed ring's."""
    plain = next(outcome for outcome in outcomes if outcome.algorithm == "none")
    return [
        (
            TITLES.get(outcome.algorithm, outcome.algorithm),
            outcome.topology,
            f"{outcome.test_accuracy:.2f} %",
            f"{outcome.final_loss:.4f}",
            f"{outcome.bytes_a_step:,.0f}",
            f"{plain.bytes_a_step / outcome.bytes_a_step:.1f}",
            f"{outcome.seconds:.1f}",
        )
        for outcome in outcomes
    ]


def table(outcomes: list[Outcome]) -> Table:
    """Return the table for a terminal."""
    view = Table(title="Handwritten digits, 2 ranks; parameters bit-identical on all ranks in every run")
    for number, header in enumerate(HEADERS):
        view.add_column(header, justify="left" if number < 2 else "right", no_wrap=number < 2)
    for cells, outcome in zip(rows(outcomes), outcomes, strict=True):
        view.add_row(*cells, style="bold" if outcome.compressed else "")
    return view


def conditions(ranks: int, bandwidth: str, load: float) -> dict[str, str]:
    """Return what the figures depend on, without names of machines or places."""
    packages = ("torch", "horovod", "numpy", "pyzmq", "scikit-learn")
    compiler = subprocess.run(["g++", "-dumpfullversion"], capture_output=True, text=True, check=False)
    return {
        "processor": processor(),
        "cores": str(len(os.sched_getaffinity(0))),
        "ranks": f"{ranks}, all on this machine, over its loopback",
        "other load": f"{load:.1f} processes in the minute before; the seconds suffer from it",
        "planned for": f"a link of {bandwidth} between {ranks} nodes",
        "system": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "g++": compiler.stdout.strip(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


def processor() -> str:
    """Return the processor's model."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    found = re.search(r"model name\s*:\s*(.+)", text)
    return found[1] if found else platform.machine()


def write_markdown(outcomes: list[Outcome], facts: dict[str, str], path: Path, plot: str) -> None:
    """Write table, plot and conditions as a page."""
    first = outcomes[0]
    lines = [
        "# The demo's outcome",
        "",
        "Written by `make demo ARGS=--record`; do not edit.",
        "",
        f"A convolutional network of {first.parameters:,} parameters on scikit-learn's handwritten digits, "
        f"{first.epochs} epochs, {len(first.loss)} steps, {first.ranks} ranks, seed {first.seed}.",
        "Accuracy is on the quarter of the images that no rank trained on, final loss over all others;",
        "ratio is the uncompressed ring's bytes over the run's. In every run all ranks ended with the same",
        "parameters, bit for bit.",
        "",
        "| " + " | ".join(HEADERS) + " |",
        "|" + "|".join(" --- " if number < 2 else " ---: " for number in range(len(HEADERS))) + "|",
        *("| " + " | ".join(cells) + " |" for cells in rows(outcomes)),
        "",
        "Bytes:",
        "",
        *(
            f"- {', '.join(outcome.title for outcome in outcomes if outcome.bytes_are == origin)}: {origin}."
            for origin in dict.fromkeys(outcome.bytes_are for outcome in outcomes)
        ),
        "",
        "Seconds are of the training loop, without start-up, over this machine's loopback: they show what",
        "the software costs, not what a slow link would save.",
        "",
        f"![Loss and accuracy against step and against bytes sent]({plot})",
        "",
        "| condition | |",
        "| --- | --- |",
        *(f"| {name} | {value} |" for name, value in facts.items()),
        "",
    ]
    path.write_text("\n".join(lines))


def smoothed(values: list[float]) -> np.ndarray:
    """Return the mean of the last SMOOTH values (of fewer at the beginning), float64[n]."""
    sums: np.ndarray = np.cumsum([0.0, *values])
    ends = np.arange(1, len(values) + 1)
    begins = np.maximum(0, ends - SMOOTH)
    return np.asarray((sums[ends] - sums[begins]) / (ends - begins))


def draw(outcomes: list[Outcome], path: Path) -> None:
    """Draw loss and accuracy against step and against bytes sent, one line a run, into a PNG."""
    with mpl.rc_context(fname=Path(__file__).with_name("demo.mplstyle")):
        figure = Figure(figsize=(11, 7.6))
        axes = figure.subplots(2, 2, sharex="col", sharey="row", squeeze=False)
        (loss_by_step, loss_by_bytes), (accuracy_by_step, accuracy_by_bytes) = axes
        for outcome in outcomes:
            sent = np.array(outcome.bytes_sent)
            loss = smoothed(outcome.loss)
            steps = np.array([int(evaluation["step"]) for evaluation in outcome.evaluations])
            accuracy = np.array([evaluation["test_accuracy"] / 100 for evaluation in outcome.evaluations])
            draw_line(loss_by_step, np.arange(1, len(loss) + 1), loss, outcome)
            draw_line(loss_by_bytes, sent, loss, outcome)
            draw_line(accuracy_by_step, steps, accuracy, outcome)
            draw_line(accuracy_by_bytes, sent[steps - 1], accuracy, outcome)
        loss_by_step.set(yscale="log", ylabel=f"training loss (mean of {SMOOTH} steps)")
        accuracy_by_step.set(xlabel="step", ylabel="test accuracy (logit scale)", yscale="logit")
        loss_by_step.yaxis.set_major_formatter("{x:g}")
        accuracy_by_step.yaxis.set_major_locator(FixedLocator(ACCURACIES))
        accuracy_by_step.yaxis.set_minor_locator(NullLocator())
        accuracy_by_step.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        accuracy_by_bytes.set(xscale="log", xlabel="bytes sent by a rank (log scale)")
        accuracy_by_bytes.xaxis.set_major_formatter(FuncFormatter(human_bytes))
        loss_by_step.set_title("By steps")
        loss_by_bytes.set_title("By bytes sent")
        handles, labels = loss_by_step.get_legend_handles_labels()
        figure.legend(handles, labels, loc="lower center", ncols=3, handlelength=3)
        figure.suptitle(
            "Handwritten digits on 2 ranks: what compression costs and saves",
            x=0.07,
            ha="left",
            fontsize=14,
            fontweight="bold",
        )
        figure.align_ylabels()
        figure.tight_layout(rect=(0, 0.08, 1, 0.99))
        figure.savefig(path, metadata={"Software": None})


def draw_line(panel: Axes, x: np.ndarray, y: np.ndarray, outcome: Outcome) -> None:
    """Add one run's line: its colour is the algorithm's, its dashes the topology's."""
    backdrop = outcome.algorithm == "horovod"  # wide and pale: it coincides with the exact ring
    panel.plot(
        x,
        y,
        color=COLORS[outcome.algorithm],
        linestyle=STYLES[outcome.topology],
        linewidth=5 if backdrop else 1.7,
        alpha=0.4 if backdrop else 1.0,
        label=outcome.title,
    )


def human_bytes(value: float, _: int | None = None) -> str:
    """Return 2e6 as 2 MB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:g} {unit}"
    return f"{value:g} B"
