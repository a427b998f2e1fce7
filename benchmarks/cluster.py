"""How long is an iteration where the network is slow? casync beside DDP, its hooks and Horovod.

    python benchmarks/cluster.py                          the whole matrix: at most an hour, as root
    python benchmarks/cluster.py --nodes 4 --rates 200    one cell or several
    python benchmarks/cluster.py --models vgg19           another model: see cluster_models.py
    python benchmarks/cluster.py --resume                 go on with a run that was interrupted
    python benchmarks/cluster.py --ablation               what each part of casync brings
    python benchmarks/cluster.py --smoke                  one cell, two methods, seconds; writes no results

A cluster of network namespaces on this machine, one rank a node, all nodes on the machine's cores. In a cell
(model, nodes, rate) all methods are alive in the same processes and take turns, round by round; figures are
medians over rounds. A round in which computing alone takes much longer than it did is repeated: something
else had the cores. Writes cluster.md, cluster.json and cluster.png to benchmarks/results/, the ablation
cluster-ablation.md and so on.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cluster_report
import torch
from cluster_ablation import ABLATION, CODEC, TOPOLOGY
from cluster_methods import METHODS
from cluster_models import MODELS, build, elements
from cluster_network import Network, NetworkError
from cluster_ranks import RankError, Ranks
from rich.console import Console
from rich.progress import Progress

RATES = (100, 200, 1000, 0)
"""Mbit/s; 0: no limit."""
ROUNDS = 7
TURN = 1.0
"""Seconds that a method's turn takes, where its iterations are short enough."""
NOISY, TRIES = 1.3, 5
"""A round is repeated while computing alone takes so many times its least; so often at most."""
REFERENCE = "compute alone"
PORT = 29_400
RESULTS = Path(__file__).parent / "results"

console = Console(stderr=True)


class Sets:
    """The process sets of a cluster: Horovod's, whose idle thread takes CPU, apart from the others."""

    def __init__(self, network: Network, names: list[str], model: str, plan: str | None) -> None:
        self._network, self._model, self._plan = network, model, plan
        apart = [method.name for method in METHODS if method.engine == "horovod" and method.name in names]
        self._names = [[name for name in names if name not in apart], apart]
        self._stack = contextlib.ExitStack()
        self._of: dict[str, Ranks] = {}
        self.elements: list[int] = []

    def __enter__(self) -> Sets:
        """Start the ranks and build all methods, without a limit of the network."""
        self._network.limit(None)
        for number, names in enumerate(self._names):
            if not names:
                continue
            ranks = self._stack.enter_context(
                Ranks(self._network, "cluster_rank.py", PORT + 10 * number, horovod=bool(number))
            )
            made = ranks.ask(do="make", methods=names, model=self._model, plan=self._plan)
            self.elements = made[0]["elements"]
            self._of |= dict.fromkeys(names, ranks)
            ranks.pause()
        return self

    def __exit__(self, *error: Any) -> None:
        """End the ranks."""
        self._stack.__exit__(*error)

    def run(self, name: str, iterations: int) -> dict[str, Any]:
        """One turn: seconds, CPU seconds of all ranks, and the most bytes of a rank, an iteration."""
        ranks = self._of[name]
        ranks.resume()
        try:
            replies = ranks.ask(do="run", method=name, iterations=iterations)
        finally:
            ranks.pause()
        return {
            "seconds": max(statistics.median(reply["seconds"]) for reply in replies),
            "cpu": sum(reply["cpu"] for reply in replies) / iterations,
            "sent": max(reply["sent"] for reply in replies) / iterations,
            "received": max(reply["received"] for reply in replies) / iterations,
            "ready": replies[0]["ready"],
        }


def measure(sets: Sets, names: list[str], rounds: int, progress: Progress, title: str) -> dict[str, Any]:
    """A cell: the turns of each method, and the rounds that were repeated."""
    usual: dict[str, float] = {}
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    repeated = 0
    task = progress.add_task(title, total=rounds * len(names))
    for _ in range(rounds):
        for attempt in range(TRIES):
            reference = _turn(sets, REFERENCE, usual)
            if reference["seconds"] <= NOISY * usual[REFERENCE] or attempt == TRIES - 1:
                break
            repeated += 1
            time.sleep(2)
        for name in names:
            turns[name].append(reference if name == REFERENCE else _turn(sets, name, usual))
            progress.advance(task)
    progress.remove_task(task)
    return {"turns": turns, "repeated": repeated, "elements": sets.elements}


def _turn(sets: Sets, name: str, usual: dict[str, float]) -> dict[str, Any]:
    """Run so many iterations as a turn has room for; the first turn runs one to find out."""
    if name not in usual:
        usual[name] = sets.run(name, 1)["seconds"]
    if usual[name] < TURN:
        sets.run(name, 1)  # ranks do not begin at the same moment; caches hold another method's data
    found = sets.run(name, max(1, min(9, round(TURN / usual[name]))))
    usual[name] = min(usual[name], found["seconds"])
    return found


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


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", default=["mlp"], choices=MODELS)
    parser.add_argument("--nodes", nargs="+", type=int, default=[2, 4])
    parser.add_argument("--rates", nargs="+", type=int, default=list(RATES), help="Mbit/s; 0: no limit")
    parser.add_argument("--methods", nargs="+", choices=[m.name for m in METHODS])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--ablation", action="store_true")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.name = "cluster"
    if options.smoke:
        options.nodes, options.rates, options.rounds = [2], [1000], 1
        options.methods = ["casync onebit, ps", "DDP"]
    if options.ablation:
        options.name = "cluster-ablation"
        if 0 in options.rates:
            parser.error("SeCoPa plans for a link of a known rate: give --rates without 0")
        options.methods = [method.name for method in ABLATION]
    chosen = options.methods or [method.name for method in METHODS]
    options.methods = [REFERENCE, *(name for name in chosen if name != REFERENCE)]
    return options


def clusters(options: argparse.Namespace) -> Iterator[tuple[str, int, list[int]]]:
    """Model, nodes and rates of each cluster to make; a plan is for one rate."""
    for model in options.models:
        for nodes in options.nodes:
            yield from (
                [(model, nodes, [rate]) for rate in options.rates]
                if options.ablation
                else [(model, nodes, options.rates)]
            )


def main() -> None:
    """Measure what the options say, and write the report."""
    options = parsed()
    path = options.output / f"{options.name}.json"
    found: dict[str, Any] = {"environment": environment(), "cells": {}}
    if options.resume and path.is_file():
        found = json.loads(path.read_text())
    with Progress(console=console) as progress, tempfile.TemporaryDirectory() as folder:
        for model, nodes, rates in clusters(options):
            left = [rate for rate in rates if f"{model}/{nodes}/{rate}" not in found["cells"]]
            if not left:
                continue
            title = f"{model}, {nodes} nodes"
            start = progress.add_task(f"{title}: starting", total=None)
            planned = plan(model, nodes, left[0], Path(folder)) if options.ablation else None
            with Network(nodes) as network, Sets(network, options.methods, model, planned) as sets:
                progress.remove_task(start)
                for rate in left:
                    network.limit(rate * 1_000_000 or None)
                    speed = f"{rate} Mbit/s" if rate else "no limit"
                    cell = measure(sets, options.methods, options.rounds, progress, f"{title}, {speed}")
                    found["cells"][f"{model}/{nodes}/{rate}"] = cell
                    if not options.smoke:
                        path.write_text(json.dumps(found))
    if options.smoke:
        print(cluster_report.markdown(found))
        return
    path.with_suffix(".md").write_text(cluster_report.markdown(found), encoding="utf-8")
    cluster_report.plot(found, path.with_suffix(".png"))
    console.print(f"wrote {path.with_suffix('.md')}, {options.name}.json and {options.name}.png")


if __name__ == "__main__":
    try:
        main()
    except (NetworkError, RankError) as error:
        sys.exit(f"cluster.py: {error}")
