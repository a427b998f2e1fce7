"""How long is an iteration where the network is slow? casync beside DDP, its hooks and Horovod.

    python benchmarks/cluster.py                          the whole matrix: about an hour, as root
    python benchmarks/cluster.py --models vgg19           a part of it; likewise --nodes 4, --rates 200
    python benchmarks/cluster.py --resume                 go on with a run that was interrupted
    python benchmarks/cluster.py --ablation               what each part of casync brings, for ResNet50
    python benchmarks/cluster.py --smoke                  one cell, two methods, seconds; writes no results

A cluster of network namespaces on this machine, one rank a node, all nodes on the machine's cores. In a cell
(model, nodes, rate) methods are alive in the same processes and take turns, round by round; figures are
medians over rounds. A round in which computing alone takes much longer than it did is repeated: something
else had the cores. Of large models, a method has its rounds by itself (cluster_cells.py), fewer where they
take long, and what sends 16 or 32 bits a value is measured on a part of the model (cluster_models.py).
Writes cluster.md, cluster.json and cluster-MODEL.png to benchmarks/results/, the ablation
cluster-ablation.md and so on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cluster_report
import torch
from cluster_ablation import ABLATION, CODEC, TOPOLOGY
from cluster_cells import REFERENCE, Pace, Sets, measure, parties
from cluster_methods import METHODS, Entry, entries
from cluster_models import MODELS, PARTS, REPLAYED, build, elements
from cluster_network import Network, NetworkError
from cluster_ranks import RankError
from rich.console import Console
from rich.progress import Progress

RATES = (100, 200, 1000, 0)
"""Mbit/s; 0: no limit."""
ROUNDS = 7
TURN, REPLAYED_TURN, REPLAYED_BUDGET = 1.0, 0.5, 20.0
"""Seconds (see `Pace`): replayed passes vary less than computed ones, and are there to be many models."""
MATRIX = (("mlp", (2, 4), RATES), *((model, (4,), (200, 1000)) for model in REPLAYED))
"""Models, nodes and rates of the whole matrix."""
RESULTS = Path(__file__).parent / "results"

console = Console(stderr=True)


def plan(model: str, nodes: int, rate: int, folder: Path) -> str:
    """Let SeCoPa measure the codec here and now, and plan for this cluster; the plan's file."""
    gradients, curves, path = (str(folder / name) for name in ("input.txt", "profile.json", "SeCoPaPlan.txt"))
    Path(gradients).write_text("".join(f"{name},{n}\n" for name, n in elements(build(model)[0])))
    codec = ["--codec", CODEC, "--local-ranks", str(nodes)]
    link = ["--topology", TOPOLOGY, "--nnodes", str(nodes), "--bandwidth", f"{rate}mbit"]
    inputs = ["--input", gradients, "--profile", curves]
    for command in (
        ["profile", *codec, "--output", curves],
        ["plan", *inputs, *codec, *link, "--output", path],
    ):
        subprocess.run([sys.executable, "-m", "secopa", *command], check=True, stdout=subprocess.DEVNULL)
    return path


def environment() -> dict[str, str]:
    """The conditions of a run."""
    return {
        "processor": platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "kernel": platform.release(),
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def origin() -> str:
    """The command line and the commit that it ran at."""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    commit = subprocess.run(git, check=False, capture_output=True, text=True).stdout.strip()
    return f"`{' '.join(['python benchmarks/cluster.py', *sys.argv[1:]])}` at {commit or 'no commit'}"


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS)
    parser.add_argument("--nodes", nargs="+", type=int)
    parser.add_argument("--rates", nargs="+", type=int, help="Mbit/s; 0: no limit")
    parser.add_argument("--methods", nargs="+", choices=[m.name for m in METHODS])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--whole", action="store_true", help="wide methods on whole models, too: slow")
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.name = "cluster"
    if options.smoke:
        options.models, options.nodes, options.rates, options.rounds = ["mlp"], [2], [1000], 1
        options.methods = ["casync onebit, ps", "DDP"]
    if options.ablation:
        options.name = "cluster-ablation"
        options.models = options.models or ["resnet50"]
        options.nodes, options.rates = options.nodes or [4], options.rates or [1000]
        if 0 in options.rates:
            parser.error("SeCoPa plans for a link of a known rate: give --rates without 0")
        options.methods = [method.name for method in ABLATION]
    options.methods = options.methods or [method.name for method in METHODS]
    return options


@dataclass(frozen=True)
class Cluster:
    """Methods that are alive at the same time, and the rates that are to be measured."""

    model: str
    nodes: int
    rates: tuple[int, ...]
    party: tuple[Entry, ...]

    def key(self, rate: int) -> str:
        """The cell at a rate."""
        return f"{self.model}/{self.nodes}/{rate}"

    def __str__(self) -> str:
        """How the progress names it."""
        several = f"{len(self.party)} methods" if len(self.party) != 1 else str(self.party[0])
        return f"{self.model}, {self.nodes} nodes, {several}"


def clusters(options: argparse.Namespace) -> Iterator[Cluster]:
    """Each cluster to make; a plan of SeCoPa's is for one rate."""
    for model, nodes, rates in MATRIX:
        if options.models and model not in options.models:
            continue
        parts = PARTS.get(model, (1,))
        rows = entries(options.methods, sorted({1, *parts}) if options.whole else parts)
        size = 4 * sum(n for _, n in elements(build(model)[0]))
        for count in options.nodes or nodes:
            chosen = tuple(options.rates or rates)
            for party in parties(rows, size):
                for some in [(rate,) for rate in chosen] if options.ablation else [chosen]:
                    yield Cluster(model, count, some, tuple(party))


def measured(cell: dict[str, Any] | None, party: Sequence[Entry]) -> bool:
    """Whether a cell has the turns of all these methods."""
    there = {(name, part) for group in cell["parties"] for name, part, _ in group["rows"]} if cell else set()
    return {REFERENCE, *party} <= there


def main() -> None:
    """Measure what the options say, and write the report."""
    options = parsed()
    options.output.mkdir(parents=True, exist_ok=True)
    path = options.output / f"{options.name}.json"
    found: dict[str, Any] = {"environment": environment(), "runs": [], "cells": {}}
    if options.resume and path.is_file():
        found = json.loads(path.read_text())
    found["runs"].append(origin())
    failed = []
    with Progress(console=console) as progress:
        for cluster in clusters(options):
            left = [
                r for r in cluster.rates if not measured(found["cells"].get(cluster.key(r)), cluster.party)
            ]
            try:
                for rate, elements_of, group in results(cluster, left, options, progress):
                    cell = found["cells"].setdefault(
                        cluster.key(rate), {"elements": elements_of, "parties": []}
                    )
                    cell["parties"].append(group)
                    if not options.smoke:
                        save(found, path)
            except RankError as error:
                failed.append(f"{cluster}: {error}")
                console.print(failed[-1], markup=False)
    if options.smoke:
        print(cluster_report.markdown(found))
    else:
        path.with_suffix(".md").write_text(cluster_report.markdown(found), encoding="utf-8")
        pictures = cluster_report.plots(found, path)
        console.print("wrote", path.with_suffix(".md"), path.name, *(picture.name for picture in pictures))
    if failed:
        raise RankError(f"{len(failed)} clusters failed, the last: {failed[-1]}")


def results(
    cluster: Cluster, rates: Sequence[int], options: argparse.Namespace, progress: Progress
) -> Iterator[tuple[int, list[int], dict[str, Any]]]:
    """Make a cluster; for each rate, it and the elements of each gradient, and the turns."""
    if not rates:
        return
    pace = Pace(options.rounds, TURN, None)
    if cluster.model in REPLAYED and not options.ablation:
        pace = Pace(options.rounds, REPLAYED_TURN, REPLAYED_BUDGET)
    with contextlib.ExitStack() as stack:
        start = progress.add_task(f"{cluster}: starting", total=None)
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        network = stack.enter_context(Network(cluster.nodes))
        planned = plan(cluster.model, cluster.nodes, rates[0], Path(folder)) if options.ablation else None
        try:
            sets = stack.enter_context(Sets(network, cluster.party, cluster.model, planned))
        finally:
            progress.remove_task(start)
        for rate in rates:
            network.limit(rate * 1_000_000 or None)
            title = f"{cluster}, {f'{rate} Mbit/s' if rate else 'no limit'}"
            yield (
                rate,
                sets.elements,
                measure(sets, cluster.party, pace, progress, title),
            )


def save(found: dict[str, Any], path: Path) -> None:
    """Write all at once: an interrupted run leaves the file as it was before."""
    beside = path.with_suffix(".tmp")
    beside.write_text(json.dumps(found))
    beside.replace(path)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("cluster.py: interrupted"))  # the network is removed
    try:
        main()
    except (NetworkError, RankError) as error:
        sys.exit(f"cluster.py: {error}")
