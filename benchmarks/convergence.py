"""Does compressed training end as well, and when? Quality against steps, and against seconds on a slow link.

    python benchmarks/convergence.py                     both tasks, three seeds: half an hour, as root
    python benchmarks/convergence.py --tasks digits      one of them: some minutes
    python benchmarks/convergence.py --only quality      train, and take no times: other work does not matter
    python benchmarks/convergence.py --resume            go on with a run that was interrupted

Four ranks train in an emulated cluster (cluster_network.py), all on this machine's cores. Every variant of a
seed begins with the same parameters and sees the same batches. Then the variants take turns of some steps
each, on links of 200 Mbit/s; seconds are steps times the median over the turns. Writes convergence.md,
convergence.json and convergence.png to benchmarks/results/.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import convergence_report
import torch
from cluster_network import Network, NetworkError
from cluster_ranks import RankError, Ranks
from convergence_tasks import TASKS
from rich.console import Console
from rich.progress import Progress

NODES = 4
RATE = 200_000_000
"""Bits a second."""
SEEDS = (0, 1, 2)
ROUNDS, TURN = 7, 10
"""Turns of each variant, and steps of a turn, the first of which is not measured."""
PORT = 29_600
RESULTS = Path(__file__).parent / "results"
CATALOGUE = RESULTS.parent.parent / "compll" / "algorithms" / "quality.json"

console = Console(stderr=True)


@dataclass(frozen=True)
class Variant:
    """A codec as it is trained with. momentum: whether the optimizer has it; DGC has its own."""

    name: str
    codec: str | None
    topology: str = "ps"
    feedback: bool = False
    momentum: bool = True
    params: Mapping[str, float] = field(default_factory=dict)


def _both(name: str, codec: str, topology: str = "ps", **params: float) -> tuple[Variant, Variant]:
    """A codec without error feedback and with it."""
    return (
        Variant(name, codec, topology, params=params),
        Variant(f"{name}, feedback", codec, topology, feedback=True, params=params),
    )


VARIANTS = (
    Variant("float32", None, "ring"),
    Variant("bf16", "bf16", "direct"),
    Variant("onebit", "onebit"),
    Variant("efsignsgd", "efsignsgd"),
    *_both("terngrad 2 bit", "terngrad", bitwidth=2),
    *_both("int4", "int4"),
    *_both("int8", "int8"),
    *_both("fp8", "fp8"),
    *_both("mxfp4", "mxfp4"),
    *_both("natural", "natural"),
    *_both("topk 1 %", "topk", "allgather", ratio=0.01),
    Variant("dgc 0.1 %", "dgc", "allgather", momentum=False, params={"ratio": 0.001}),
    Variant("dgc 1 %", "dgc", "allgather", momentum=False, params={"ratio": 0.01}),
)


def one(ranks: Ranks, task: str, seed: int, variant: Variant) -> dict[str, Any]:
    """A run: the mean loss of each step, evaluations, and bytes that rank 0 sent a step."""
    replies = ranks.ask(do="train", task=task, seed=seed, variant=asdict(variant))
    losses = [statistics.fmean(column) for column in zip(*(r["losses"] for r in replies), strict=True)]
    points = [(step, round(quality, 4)) for step, quality in replies[0]["points"]]
    return {
        "losses": [round(loss, 4) for loss in losses],
        "points": points,
        "sent": replies[0]["sent"],
    }


def train(ranks: Ranks, progress: Progress, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Every run that is not there yet."""
    todo = [
        (task, variant, seed)
        for task in options.tasks
        for seed in options.seeds
        for variant in options.chosen
        if f"{task}/{variant.name}/{seed}" not in found["runs"]
    ]
    bar = progress.add_task("", total=len(todo))
    for task, variant, seed in todo:
        progress.update(bar, description=f"{task}, {variant.name}, seed {seed}")
        found["runs"][f"{task}/{variant.name}/{seed}"] = one(ranks, task, seed, variant)
        _write(options, found)
        progress.advance(bar)


def clock(ranks: Ranks, progress: Progress, options: argparse.Namespace, found: dict[str, Any]) -> None:
    """Seconds a step of each variant, in turns; what is there already is not measured again."""
    for task in options.tasks:
        missing = [v for v in options.chosen if f"{task}/{v.name}" not in found["seconds"]]
        turns: dict[str, list[float]] = {variant.name: [] for variant in missing}
        bar = progress.add_task(f"{task}: seconds a step", total=ROUNDS * len(missing))
        for _ in range(ROUNDS):
            for variant in missing:
                replies = ranks.ask(do="steps", task=task, variant=asdict(variant), count=TURN)
                turns[variant.name].append(max(reply["seconds"] for reply in replies))
                progress.advance(bar)
        for name, seconds in turns.items():
            found["seconds"][f"{task}/{name}"] = statistics.median(seconds)
        _write(options, found)


def _write(options: argparse.Namespace, found: dict[str, Any]) -> None:
    (options.output / "convergence.json").write_text(json.dumps(found))


def environment() -> dict[str, str]:
    """The conditions of a run."""
    return {
        "ranks": f"{NODES}, each behind a link of {RATE // 1_000_000} Mbit/s, on {os.cpu_count()} cores",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load before": f"{os.getloadavg()[0]:.2f}",
    }


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    parser.add_argument("--variants", nargs="+", default=[v.name for v in VARIANTS])
    parser.add_argument("--only", choices=("quality", "seconds"), help="train, or take the times")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args()
    options.chosen = [variant for variant in VARIANTS if variant.name in options.variants]
    return options


def main() -> None:
    """Train what the options say, and write the report."""
    options = parsed()
    path = options.output / "convergence.json"
    found: dict[str, Any] = {"environment": environment(), "runs": {}, "seconds": {}}
    if options.resume and path.is_file():
        found = json.loads(path.read_text())
    with Progress(console=console) as progress, Network(NODES) as network:
        for name, work, rate in (("quality", train, None), ("seconds", clock, RATE)):
            if options.only in (None, name):
                with Ranks(network, "convergence_rank.py", PORT) as ranks:
                    network.limit(rate)
                    work(ranks, progress, options, found)
    if found["runs"] and found["seconds"]:
        (options.output / "convergence.md").write_text(convergence_report.markdown(found), encoding="utf-8")
        convergence_report.plot(found, options.output / "convergence.png")
        console.print(f"wrote {options.output / 'convergence.md'}, convergence.json and convergence.png")
        if options.output == RESULTS:
            codecs = {variant.name: variant.codec for variant in VARIANTS}
            CATALOGUE.write_text(json.dumps(convergence_report.quality(found, codecs), indent=1) + "\n")
            console.print(f"wrote {CATALOGUE}; now: compll algorithms --markdown > docs/algorithms.md")


if __name__ == "__main__":
    try:
        main()
    except (NetworkError, RankError) as error:
        sys.exit(f"convergence.py: {error}")
