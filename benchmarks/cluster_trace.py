"""Where does the time of one iteration go, in one cell of `cluster.py` and for one of casync's methods?

    python benchmarks/cluster_trace.py --method "casync onebit, ps" --nodes 4 --rate 200     as root, seconds

Traces all ranks (CASYNC_TRACE), takes the iteration of median length, and writes cluster-trace.png, its tasks
and messages, and cluster-trace.md to benchmarks/results/: the medians of all traced iterations.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from cluster_methods import METHODS
from cluster_models import MODELS
from cluster_network import Network
from cluster_ranks import Ranks

from casync.timeline import read

mpl.use("agg")

PORT = 29_600
ITERATIONS, WARM_UP = 12, 2
RESULTS = Path(__file__).parent / "results"
COLOURS = {"encode": "#4c72b0", "hop": "#4c72b0", "merge": "#dd8452", "decode": "#55a868"}
TRAINING = {"before backward": "#bbbbbb", "backward": "#888888"}


@dataclass(frozen=True)
class Step:
    """One iteration of all ranks. Milliseconds since the first rank began it."""

    events: Sequence[dict[str, Any]]

    @property
    def begin(self) -> float:
        """When the first rank was free to begin, microseconds of the trace."""
        return float(min(event["ts"] for event in self.events if event["cat"] == "before backward"))

    def spans(self, kind: str) -> dict[int, list[tuple[float, float]]]:
        """Begin and end of what is of a kind, by rank."""
        found = defaultdict(list)
        for event in self.events:
            if event["cat"] == kind:
                at = 1e-3 * (event["ts"] - self.begin)
                found[event["pid"]].append((at, at + 1e-3 * event.get("dur", 0)))
        return found

    @property
    def length(self) -> float:
        """Until the last rank has all results; the optimizer's step counts to the next iteration."""
        return max(end for spans in self.spans("wait").values() for _, end in spans)

    def phases(self) -> dict[str, float]:
        """The iteration's phases one after the other; they add up to its length."""
        first = statistics.median(spans[0][0] for spans in self.spans("backward").values())
        ready, slowest = max((spans[0][1], rank) for rank, spans in self.spans("backward").items())
        sends = [at for at, _ in self.spans("send")[slowest]]
        came = [at for spans in self.spans("receive").values() for at, _ in spans]
        sent = min((at for at in sends if at >= ready), default=ready)
        last = max(*came, sent)
        return {
            "optimizer's step, forward, first gradient": first,
            "backward pass until the slowest rank's last gradient": ready - first,
            "until its next message leaves": sent - ready,
            "messages, and what is merged between them": last - sent,
            "last decodes": self.length - last,
        }


def trace(method: str, model: str, nodes: int, rate: int, folder: Path) -> list[Step]:
    """The iterations, without the first ones, in order."""
    os.environ["CASYNC_TRACE"] = str(folder)
    with Network(nodes) as network, Ranks(network, "cluster_trace_rank.py", PORT) as ranks:
        ranks.ask(do="make", method=method, model=model)
        ranks.ask(do="run", iterations=WARM_UP)
        network.limit(rate * 1_000_000 or None)
        ranks.ask(do="run", iterations=ITERATIONS)
        ranks.ask(do="end")
    steps: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for of_rank in read(folder):
        for event in of_rank.events:
            if event["ph"] != "M":
                steps[event["args"]["step"]].append(event)
    return [Step(steps[number]) for number in sorted(steps)][WARM_UP + 1 :]


def draw(step: Step, title: str, path: Path) -> None:
    """Tasks of all ranks, and when messages come."""
    ranks = sorted(step.spans("wait"))
    figure, axis = plt.subplots(figsize=(11, 0.9 * len(ranks) + 1.6), layout="constrained")
    for kind, colour in {**TRAINING, **COLOURS}.items():
        place = 0.0 if kind in TRAINING else 0.36
        for rank, spans in step.spans(kind).items():
            bars = [(begin, end - begin) for begin, end in spans]
            axis.broken_barh(bars, (rank + place, 0.32), color=colour, label=kind if rank == 0 else None)
    for rank, spans in step.spans("receive").items():
        axis.plot([at for at, _ in spans], [rank + 0.8] * len(spans), "|", color="black", label=None)
    axis.set(xlabel="ms", title=title, xlim=(0, step.length))
    axis.set_yticks([rank + 0.45 for rank in ranks], [f"rank {rank}" for rank in ranks])
    axis.invert_yaxis()
    axis.spines[["top", "right"]].set_visible(False)
    handles = {label: handle for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def markdown(steps: Sequence[Step], command: str, title: str) -> str:
    """The page."""
    lines = [
        f"# Where the time goes: {title}",
        "",
        f"Written by `{command}`; medians of {len(steps)} iterations. (A trace costs CPU.)",
        "The picture is of the one of median length: a rank's training thread above, below it its compute",
        "thread, and a tick where a message has come.",
        "",
        "| phase | ms |",
        "|---|---:|",
    ]
    phases = [step.phases() for step in steps]
    lines += [f"| {name} | {statistics.median(p[name] for p in phases):.0f} |" for name in phases[0]]
    lines.append(f"| together | {statistics.median(step.length for step in steps):.0f} |")
    lines += ["", "| of the compute thread, a rank and iteration | ms |", "|---|---:|"]
    for kinds in (("encode", "hop"), ("merge",), ("decode",)):
        spent = [
            sum(end - begin for kind in kinds for spans in step.spans(kind).values() for begin, end in spans)
            / len(step.spans("wait"))
            for step in steps
        ]
        lines.append(f"| {kinds[0]} | {statistics.median(spent):.0f} |")
    return "\n".join([*lines, "", "![the trace](cluster-trace.png)", ""])


def main() -> None:
    """Trace what the options say."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    ours = [method.name for method in METHODS if method.engine == "casync"]
    parser.add_argument("--method", default=ours[0], choices=ours)
    parser.add_argument("--model", default="mlp", choices=MODELS)
    parser.add_argument("--nodes", type=int, default=4)
    parser.add_argument("--rate", type=int, default=200, help="Mbit/s; 0: no limit")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        steps = trace(options.method, options.model, options.nodes, options.rate, Path(folder))
    limit = f"{options.rate} Mbit/s" if options.rate else "no limit"
    title = f"{options.method}, {options.model}, {options.nodes} nodes, {limit}"
    command = (
        f'python benchmarks/cluster_trace.py --method "{options.method}" --model {options.model} '
        f"--nodes {options.nodes} --rate {options.rate}"
    )
    middle = sorted(steps, key=lambda step: step.length)[len(steps) // 2]
    draw(middle, title, options.output / "cluster-trace.png")
    page = markdown(steps, command, title)
    (options.output / "cluster-trace.md").write_text(page, encoding="utf-8")
    print(page)


if __name__ == "__main__":
    main()
