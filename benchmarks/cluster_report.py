"""The page and the picture of `cluster.py`: iteration times beside their floors."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.ticker import NullFormatter

mpl.use("agg")

BASELINES = ("DDP", "uncompressed")
REFERENCE = "compute alone"
OURS = ("casync", "+", "compression", "uncompressed")
ABOUT = """# A slow network: iteration times

Written by `python benchmarks/cluster.py`. Nodes are network namespaces of one machine, a rank each, behind
links that a token bucket limits; **all nodes share the machine's cores**. In a cell all methods are alive in
the same processes (Horovod's in its own, stopped while others run) and take turns; times are medians over
rounds, ratios are medians of the rounds' own ratios. An iteration is forward, backward, synchronization and
the optimizer's step of the same model on the same data.

The **floor** of a method is what its iteration cannot be below: the larger of the CPU time of all ranks
divided by the cores, and, over all gradients, the time at which a gradient is ready plus that of the bytes
still to be sent at the link's rate. Ready times are those of computing alone in the same rounds, bytes are
what the node's interface counted, headers included; they are divided among gradients by their elements.
"""


@dataclass(frozen=True)
class Row:
    """A method in a cell. Seconds an iteration; CPU seconds of a rank; sent: bytes of a rank.

    speedup: times as fast as the baseline of BASELINES that was measured; None without one.
    """

    name: str
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


def rows(cell: dict[str, Any], nodes: int, rate: int, cores: int) -> Iterator[Row]:
    """The rows of a cell. rate: Mbit/s, 0 for no limit."""
    turns = cell["turns"]
    alone = turns[REFERENCE]
    ready = [statistics.median(column) for column in zip(*(turn["ready"] for turn in alone), strict=True)]
    for name, taken in turns.items():
        seconds = statistics.median(turn["seconds"] for turn in taken)
        cpu = statistics.median(turn["cpu"] for turn in taken)
        sent = statistics.median(max(turn["sent"], turn["received"]) for turn in taken)
        network = wire_floor(ready, cell["elements"], sent, rate)
        floor, bound = max((cpu / cores, "cores"), (network, "network" if rate else "cores"))
        ratio = None
        for baseline in (baseline for baseline in BASELINES if baseline in turns):
            pairs = zip(turns[baseline], taken, strict=True)
            ratio = statistics.median(base["seconds"] / turn["seconds"] for base, turn in pairs)
        yield Row(name, seconds, cpu / nodes, sent, floor, bound, ratio)


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
    """The page."""
    lines = [ABOUT]
    lines += [f"- {key}: {value}" for key, value in found["environment"].items()]
    for key, cell in found["cells"].items():
        model, nodes, rate = _cell(key)
        rounds = len(cell["turns"][REFERENCE])
        base = next((name for name in BASELINES if name in cell["turns"]), BASELINES[0])
        lines += [
            "",
            f"## {model}, {nodes} nodes, {_speed(rate)}",
            "",
            f"{rounds} rounds, {cell['repeated']} repeated.",
            "",
            f"| method | ms | x floor | floor ms | floor is | x {base} | CPU ms a rank | MB sent a rank |",
            "|---|---:|---:|---:|---|---:|---:|---:|",
        ]
        cores = int(found["environment"]["cores"])
        for row in rows(cell, nodes, rate, cores):
            speedup = "" if row.speedup is None else f"{row.speedup:.2f}"
            lines.append(
                f"| {row.name} | {row.seconds * 1e3:.0f} | {row.over:.2f} | {row.floor * 1e3:.0f} "
                f"| {row.bound} | {speedup} | {row.cpu * 1e3:.0f} | {row.sent / 1e6:.2f} |"
            )
    return "\n".join(lines) + "\n"


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw the iteration time of each method, a panel a cell, with its floor as a tick."""
    keys = list(found["cells"])
    across = max(len([key for key in keys if key.rsplit("/", 1)[0] == k.rsplit("/", 1)[0]]) for k in keys)
    down = -(-len(keys) // across)
    figure, axes = plt.subplots(
        down, across, figsize=(4.2 * across + 2, 4.6 * down), sharey=True, squeeze=False, layout="constrained"
    )
    cores = int(found["environment"]["cores"])
    for axis in axes.flat[len(keys) :]:
        axis.set_visible(False)
    for axis, key in zip(axes.flat, keys, strict=False):
        model, nodes, rate = _cell(key)
        found_rows = list(rows(found["cells"][key], nodes, rate, cores))
        places = range(len(found_rows))
        colours = ["#4c72b0" if row.name.startswith(OURS) else "#999999" for row in found_rows]
        axis.barh(places, [row.seconds * 1e3 for row in found_rows], color=colours)
        axis.plot(
            [row.floor * 1e3 for row in found_rows], places, "|", color="black", markersize=12, label="floor"
        )
        for place, row in zip(places, found_rows, strict=True):
            axis.text(row.seconds * 1e3 * 1.08, place, f"{row.seconds * 1e3:.0f}", va="center", fontsize=8)
        axis.set(xscale="log", title=f"{model}, {nodes} nodes, {_speed(rate)}", xlabel="ms an iteration")
        axis.set_yticks(places, [row.name for row in found_rows])
        least, most = (pick(row.seconds for row in found_rows) for pick in (min, max))
        axis.set_xlim(500 * least, 2500 * most)
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].invert_yaxis()
    axes[0][0].legend(loc="lower right", fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _cell(key: str) -> tuple[str, int, int]:
    model, nodes, rate = key.split("/")
    return model, int(nodes), int(rate)


def _speed(rate: int) -> str:
    if not rate:
        return "no limit"
    return f"{rate // 1000} Gbit/s" if rate % 1000 == 0 else f"{rate} Mbit/s"
