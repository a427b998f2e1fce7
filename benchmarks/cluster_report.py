"""The page and the picture of `cluster.py`: iteration times beside their floors."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from cluster_ablation import ABLATION
from cluster_methods import METHODS, Entry
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import NullFormatter

mpl.use("agg")

Turns = dict[Entry, list[dict[str, Any]]]
OUR_COLOUR, OTHER_COLOUR, HATCH = "#4c72b0", "#999999", "////"
BASELINES = ("DDP", "uncompressed")
ORDER = [method.name for method in (*METHODS, *ABLATION)]
REFERENCE = "compute alone"
OURS = ("casync", "+", "compression", "uncompressed")
ABOUT = """# A slow network: iteration times

Written by `python benchmarks/cluster.py`. Nodes are network namespaces of one machine, a rank each, behind
links that a token bucket limits; **all nodes share the machine's cores**. Methods are alive in the same
processes (Horovod's in its own, stopped while others run) and take turns; times are medians over rounds,
ratios are medians of the rounds' own ratios. An iteration is forward, backward, synchronization and the
optimizer's step of the same model on the same data.

The **floor** of a method is what its iteration cannot be below: the larger of the CPU time of all ranks
divided by the cores, and, over all gradients, the time at which a gradient is ready plus that of the bytes
still to be sent at the link's rate. Ready times are those of computing alone in the same rounds, bytes are
what the node's interface counted, headers included; they are divided among gradients by their elements.
"""
REPLAYED = """\
VGG19, ResNet50 and Bert-base are replayed: parameters of the real shapes, a backward pass that waits for
the time at which an accelerator would have each gradient. A method whose gradients are too large to have room
beside others has its rounds by itself, beside computing alone; its ratio to another is that of the medians.
**≈ of 1/k** marks what was measured on a part of the model, k times as short: 1/k of the compute, of the rows
of each large gradient, and of the small gradients; time, CPU time and bytes are those measured times k.
"""


@dataclass(frozen=True)
class Row:
    """A method in a cell. Seconds an iteration; CPU seconds of a rank; sent: bytes of a rank.

    part: it was measured on 1/part of the model, and stands here times part. speedup: times as fast as the
    baseline of BASELINES that was measured; None without one.
    """

    name: str
    part: int
    rounds: int
    seconds: float
    cpu: float
    sent: float
    floor: float
    bound: str
    speedup: float | None

    @property
    def over(self) -> float:
        """Times the floor."""
        return self.seconds / self.floor

    def __str__(self) -> str:
        """How tables and plots name it."""
        return str(Entry(self.name, self.part))


def rows(cell: dict[str, Any], nodes: int, rate: int, cores: int) -> Iterator[Row]:
    """The rows of a cell, in the order of the methods. rate: Mbit/s, 0 for no limit."""
    parties = [{Entry(name, part): taken for name, part, taken in p["rows"]} for p in cell["parties"]]
    alone = [turn for party in parties for turn in party[Entry(REFERENCE)]]
    ready = [statistics.median(column) for column in zip(*(turn["ready"] for turn in alone), strict=True)]
    all_turns = {entry: taken for party in parties for entry, taken in party.items()}
    base = next((e for name in BASELINES for e in sorted(all_turns) if e.name == name), None)
    for entry in sorted(all_turns, key=lambda entry: (ORDER.index(entry.name), entry.part)):
        taken = alone if entry.name == REFERENCE else all_turns[entry]
        seconds, cpu = (
            entry.part * statistics.median(turn[key] for turn in taken) for key in ("seconds", "cpu")
        )
        sent = entry.part * statistics.median(max(turn["sent"], turn["received"]) for turn in taken)
        network = wire_floor(ready, cell["elements"], sent, rate)
        waits = "network" if network > 1.01 * max(ready) else "compute"
        floor, bound = max((cpu / cores, "cores"), (network, waits))
        speedup = _speedup(parties, all_turns, base, entry, seconds)
        yield Row(entry.name, entry.part, len(taken), seconds, cpu / nodes, sent, floor, bound, speedup)


def _speedup(
    parties: Sequence[Turns], turns: Turns, base: Entry | None, entry: Entry, seconds: float
) -> float | None:
    """Median of the rounds' own ratios of methods that took turns, else the ratio of the medians."""
    if base is None:
        return None
    parts = base.part / entry.part
    for party in parties:
        if base in party and entry in party:
            pairs = zip(party[base], party[entry], strict=True)
            return parts * float(statistics.median(b["seconds"] / turn["seconds"] for b, turn in pairs))
    return base.part * float(statistics.median(turn["seconds"] for turn in turns[base])) / seconds


def wire_floor(ready: Sequence[float], elements: Sequence[int], sent: float, rate: int) -> float:
    """Seconds: over all gradients, when it is ready plus the bytes still to be sent at `rate` Mbit/s."""
    second_a_byte = 8 / (rate * 1e6) if rate else 0.0
    each = sent / sum(elements)
    floor = left = 0.0
    for at, n in sorted(zip(ready, elements, strict=True), reverse=True):
        left += n * each
        floor = max(floor, at + left * second_a_byte)
    return floor


def markdown(found: dict[str, Any]) -> str:
    """The page: of each model and number of nodes a table of all links, then one of each link."""
    lines = [ABOUT]
    clusters = _clusters(found)
    if any(key.split("/")[0] != "mlp" for key in clusters):
        lines.append(REPLAYED)
    conditions = [*(("run", run) for run in found["runs"]), *found["environment"].items()]
    lines += [f"- {key}: {value}" for key, value in conditions]
    for key, cells in clusters.items():
        model, nodes = key.split("/")
        lines += ["", f"## {model}, {nodes} nodes"]
        if len(cells) > 1:
            lines += [
                "",
                "Milliseconds an iteration, and in brackets times the floor.",
                "",
                *_overview(cells),
            ]
        for rate, cell in cells.items():
            lines += ["", f"### {model}, {nodes} nodes, {_speed(rate)}", "", *_details(cell)]
        lines += _deviations(cells)
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Cell:
    """What a table is made of. repeated: rounds."""

    rows: tuple[Row, ...]
    repeated: int


def _clusters(found: dict[str, Any]) -> dict[str, dict[int, Cell]]:
    """The cells by `model/nodes` and rate."""
    cores = int(found["environment"]["cores"])
    clusters: dict[str, dict[int, Cell]] = {}
    for key, cell in found["cells"].items():
        cluster, rate = key.rsplit("/", 1)
        made = tuple(rows(cell, int(cluster.split("/")[1]), int(rate), cores))
        repeated = sum(party["repeated"] for party in cell["parties"])
        clusters.setdefault(cluster, {})[int(rate)] = Cell(made, repeated)
    return {cluster: dict(sorted(cells.items(), key=_by_rate)) for cluster, cells in clusters.items()}


def _overview(cells: Mapping[int, Cell]) -> Iterator[str]:
    yield f"| method | {' | '.join(_speed(rate) for rate in cells)} |"
    yield "|---|" + "---:|" * len(cells)
    for name in dict.fromkeys(str(row) for cell in cells.values() for row in cell.rows):
        found = [next((row for row in cell.rows if str(row) == name), None) for cell in cells.values()]
        texts = [f"{row.seconds * 1e3:.0f} ({row.over:.2f})" if row else "" for row in found]
        yield f"| {name} | {' | '.join(texts)} |"


def _details(cell: Cell) -> Iterator[str]:
    base = next((name for name in BASELINES if any(row.name == name for row in cell.rows)), BASELINES[0])
    yield f"{cell.repeated} rounds repeated."
    yield ""
    head = ("method", "ms", "x floor", "floor ms", "floor is", f"x {base}", "CPU ms a rank", "MB sent a rank")
    yield f"| {' | '.join(head)} | rounds |"
    yield "|---|---:|---:|---:|---|---:|---:|---:|---:|"
    for row in cell.rows:
        speedup = "" if row.speedup is None else f"{row.speedup:.2f}"
        yield (
            f"| {row} | {row.seconds * 1e3:.0f} | {row.over:.2f} | {row.floor * 1e3:.0f} | {row.bound} "
            f"| {speedup} | {row.cpu * 1e3:.0f} | {row.sent / 1e6:.2f} | {row.rounds} |"
        )


def _deviations(cells: Mapping[int, Cell]) -> list[str]:
    """How far parts are from whole models, where both were measured."""
    lines = []
    for rate, cell in cells.items():
        whole = {row.name: row.seconds for row in cell.rows if row.part == 1}
        for row in cell.rows:
            if row.part > 1 and row.name in whole:
                ms, other = whole[row.name] * 1e3, row.seconds * 1e3
                lines.append(
                    f"| {row.name} | {_speed(rate)} | {ms:.0f} | {other:.0f} | {other / ms - 1:+.1%} |"
                )
    if not lines:
        return []
    head = ["| method | link | whole model, ms | estimate from its part, ms | |", "|---|---|---:|---:|---:|"]
    return ["", "### Is a part of the model as good as the whole?", "", *head, *lines]


def plots(found: dict[str, Any], path: Path) -> list[Path]:
    """Draw a picture a model beside `path`: a row of panels a number of nodes, a panel a link."""
    clusters = _clusters(found)
    made = []
    for model in dict.fromkeys(key.split("/")[0] for key in clusters):
        made.append(path.with_name(f"{path.stem}-{model}.png"))
        _plot(model, {key: cells for key, cells in clusters.items() if key.split("/")[0] == model}, made[-1])
    return made


def _plot(model: str, clusters: Mapping[str, Mapping[int, Cell]], path: Path) -> None:
    """The iteration time of each method, with its floor as a tick; hatched: from a part of the model."""
    across = max(len(cells) for cells in clusters.values())
    figure, axes = plt.subplots(
        len(clusters),
        across,
        figsize=(3.6 * across + 3, 4.6 * len(clusters)),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axis in axes.flat:
        axis.set_visible(False)
    for line, (key, cells) in zip(axes, clusters.items(), strict=True):
        for axis, (rate, cell) in zip(line, cells.items(), strict=False):
            axis.set_visible(True)
            _panel(axis, cell)
            axis.set_title(f"{model}, {key.split('/')[1]} nodes, {_speed(rate)}", fontsize=11)
    ours, others, estimated = (
        Patch(color=OUR_COLOUR, label="casync"),
        Patch(color=OTHER_COLOUR, label="others"),
        Patch(
            facecolor="white", edgecolor="#555555", hatch=HATCH, label="estimated from a part of the model"
        ),
    )
    floor = Line2D([], [], color="black", marker="|", linestyle="", markersize=12, label="floor")
    shown = [row for cells in clusters.values() for cell in cells.values() for row in _drawn(cell)]
    legend = [ours, others, floor, *([estimated] if any(row.part > 1 for row in shown) else [])]
    figure.legend(handles=legend, loc="outside lower center", ncols=len(legend), frameon=False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _drawn(cell: Cell) -> list[Row]:
    """The rows without the estimates of what was measured, too."""
    whole = {row.name for row in cell.rows if row.part == 1}
    return [row for row in cell.rows if row.part == 1 or row.name not in whole]


def _panel(axis: Axes, cell: Cell) -> None:
    shown = _drawn(cell)
    places = range(len(shown))
    for place, row in zip(places, shown, strict=True):
        ms = row.seconds * 1e3
        colour = OUR_COLOUR if row.name.startswith(OURS) else OTHER_COLOUR
        style: dict[str, Any] = {"hatch": HATCH, "edgecolor": "white", "linewidth": 0} if row.part > 1 else {}
        axis.barh(place, ms, color=colour, **style)
        text = f"{ms:.0f}" if row.part == 1 else f"≈ {ms:.0f}"
        axis.text(ms * 1.08, place, text, va="center", fontsize=8)
    axis.plot([row.floor * 1e3 for row in shown], places, "|", color="black", markersize=12)
    axis.set(xscale="log", xlabel="ms an iteration")
    axis.set_yticks(places, [row.name for row in shown])
    least, most = (pick(row.seconds for row in shown) for pick in (min, max))
    axis.set_ylim(len(shown) - 0.4, -0.6)
    axis.set_xlim(500 * least, 3500 * most)
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.spines[["top", "right"]].set_visible(False)


def _by_rate(item: tuple[int, Cell]) -> float:
    """Order of links: 0 is no limit."""
    return item[0] or math.inf


def _speed(rate: int) -> str:
    if not rate:
        return "no limit"
    return f"{rate // 1000} Gbit/s" if rate % 1000 == 0 else f"{rate} Mbit/s"
