"""A long run: memory stays flat, nothing is left open, and the replicas stay identical, bit for bit.

python benchmarks/soak.py                 10,000 steps on 4 ranks; writes benchmarks/results/soak.md
python benchmarks/soak.py --steps 2000 --json       prints what was seen, and writes nothing

Each rank is a process that synchronizes the gradients of small models over zmq, one a codec and topology, in
turn. What happens in long runs happens here: gradients that do not fire, values that are not finite, states
that are saved and loaded. Memory is what a process holds for itself (RssAnon, proc(5)), and Python's objects.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import compll
from casync.channels import Channels
from casync.launch import Launch, Rank0
from casync.plan import Gradient, Plan
from casync.session import Session, connect
from casync.spec import Spec
from casync.synchronizer import Synchronizer

RESULTS = Path(__file__).resolve().parent / "results"
SHAPES = {"embed": (100, 60), "hidden": (60, 150), "norm": (60,), "head": (60, 10), "bias": (10,)}
MODELS = (
    ("onebit", "ps"),
    ("terngrad", "ring"),
    ("dgc", "allgather"),
    ("none", "ring"),
)
SAMPLES = 20
"""How often a rank looks at itself."""
WARM_UP = 0.2
"""The part of the run after which memory must be flat."""
CHECKPOINT = 201
"""Steps between two checkpoints; each model has its turn."""


@dataclass
class Model:
    """A replica of one model, and what synchronizes it."""

    parameters: dict[str, np.ndarray]
    synchronizer: Synchronizer

    def step(self, rank: int, number: int) -> None:
        """One step; now and then a gradient is absent on a rank, or infinite."""
        rng = np.random.default_rng([rank, number])
        for name, values in self.parameters.items():
            gradient = rng.standard_normal(values.size, np.float32) + np.float32(0.1) * values.ravel()
            chance = rng.random()
            if chance < 0.02:
                continue
            if chance > 0.998:
                gradient[rng.integers(gradient.size)] = np.inf
            self.synchronizer.submit(name, gradient)
        outcome = self.synchronizer.synchronize()
        if outcome.finite:
            for name, result in outcome.values.items():
                if result is not None:
                    self.parameters[name] -= np.float32(0.05) * result.reshape(self.parameters[name].shape)


def work(place: Launch, steps: int, tell: Any) -> None:
    """Be a rank."""
    with connect("zmq", timeout=30, place=place) as session:
        channels = Channels(session.transport, checksums=True)
        models = [made(session, channels, *model) for model in MODELS]
        begin = time.perf_counter()
        for number in range(steps):
            model = models[number % len(models)]
            model.step(session.rank, number)
            if number % CHECKPOINT == CHECKPOINT - 1:
                model.synchronizer.load_state_dict(model.synchronizer.state_dict())
            if (number + 1) % max(1, steps // SAMPLES) == 0:
                tell({"rank": session.rank, "step": number + 1, "digest": digest(models)} | self_seen())
        tell({"rank": session.rank, "seconds": time.perf_counter() - begin, "stats": counts(models)})
        session.control.gather("the end", b"")
        for model in models:
            model.synchronizer.close()


def made(session: Session, channels: Channels, codec: str, topology: str) -> Model:
    gradients = tuple(Gradient(name, shape) for name, shape in SHAPES.items())
    spec = Spec(
        gradients,
        Plan.default(gradients, session.size),
        None if codec == "none" else compll.compile(codec),
        topology,
    )
    return Model(
        {name: np.zeros(shape, np.float32) for name, shape in SHAPES.items()},
        Synchronizer(session.control, channels, spec, threads=1),
    )


def digest(models: list[Model]) -> str:
    """Of all parameters."""
    held = hashlib.sha256()
    for model in models:
        for values in model.parameters.values():
            held.update(values)
    return held.hexdigest()


def self_seen() -> dict[str, int]:
    """Kibibytes, objects, open files and threads of this process."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "kib": int(status["RssAnon"].split()[0]),
        "objects": len(gc.get_objects()),
        "files": len(list(Path("/proc/self/fd").iterdir())),
        "threads": int(status["Threads"]),
    }


def counts(models: list[Model]) -> dict[str, int]:
    """Sums over the models."""
    stats = [model.synchronizer.stats() for model in models]
    return {
        "steps": sum(s.steps for s in stats),
        "dropped": sum(s.dropped_steps for s in stats),
        "messages": sum(s.messages_sent for s in stats),
    }


def run(ranks: int, steps: int) -> list[dict[str, Any]]:
    """Fork the ranks; returns what they told, sorted by rank and step. Raises RuntimeError if one fails."""
    read, write = os.pipe()
    port = 15_000 + os.getpid() % 10_000
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if not pid:
            os.close(read)
            place = Launch(rank, ranks, meeting=Rank0("127.0.0.1", port))
            work(place, steps, lambda fields: os.write(write, json.dumps(fields).encode() + b"\n"))
            os._exit(0)
        pids.append(pid)
    os.close(write)
    with os.fdopen(read) as told:
        rows = [json.loads(line) for line in told]
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    if any(codes):
        raise RuntimeError(f"the ranks ended with {codes}")
    return sorted(rows, key=lambda row: (row["rank"], row.get("step", steps + 1)))


def report(ranks: int, steps: int, rows: list[dict[str, Any]]) -> str:
    """The page of the results."""
    samples = [row for row in rows if "step" in row]
    lines = [
        "# A long run",
        "",
        f"Written by `python benchmarks/soak.py`: {ranks} processes synchronize small models over",
        f"zmq, one a codec and topology, in turn: {', '.join(f'{codec} by {t}' for codec, t in MODELS)}.",
        "Gradients that do not fire, infinities and states that are saved and loaded are part of it.",
        "Memory is RssAnon (proc(5)).",
        "",
        f"Machine: {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}.",
        "",
        f"| rank | steps | not finite | messages sent | MiB after {WARM_UP:.0%}, at the end "
        f"| objects after {WARM_UP:.0%}, at the end | open files | threads |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for rank in range(ranks):
        mine = [row for row in samples if row["rank"] == rank]
        warm = [row for row in mine if row["step"] > WARM_UP * steps]
        end = next(row for row in rows if row["rank"] == rank and "stats" in row)
        stats = end["stats"]
        spread = [", ".join(map(str, sorted({r[key] for r in warm}))) for key in ("files", "threads")]
        lines.append(
            f"| {rank} | {stats['steps']:,} | {stats['dropped']:,} | {stats['messages']:,} "
            f"| {warm[0]['kib'] / 1024:.1f}, {warm[-1]['kib'] / 1024:.1f} "
            f"| {warm[0]['objects']:,}, {warm[-1]['objects']:,} | {spread[0]} | {spread[1]} |"
        )
    same = sum(
        len({r["digest"] for r in samples if r["step"] == at}) == 1 for at in {r["step"] for r in samples}
    )
    seconds = max(row["seconds"] for row in rows if "seconds" in row)
    lines += [
        "",
        f"Replicas were compared {len({r['step'] for r in samples})} times and were identical {same} times. "
        f"The run took {seconds:.0f} s, {1000 * seconds / steps:.1f} ms a step.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--ranks", type=int, default=4)
    parser.add_argument("--json", action="store_true", help="print every sample instead of writing the page")
    options = parser.parse_args()
    rows = run(options.ranks, options.steps)
    if options.json:
        json.dump(rows, sys.stdout)
    else:
        page = report(options.ranks, options.steps, rows)
        (RESULTS / "soak.md").write_text(page)
        print(page)


if __name__ == "__main__":
    main()
