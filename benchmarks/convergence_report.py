"""The page and the picture of `convergence.py`."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from convergence_tasks import HIGHER_IS_BETTER, QUALITY

mpl.use("agg")

BASELINE = "float32"
LAST = 3
"""Final quality is the mean of so many last evaluations of a run."""
CLOSE = {"digits": 1.0, "charlm": 0.05}
"""Time to quality is until a run is first so close to the final quality of float32."""
ABOUT = """# Quality of compressed training

Written by `python benchmarks/convergence.py`. The two examples' models, trained by several ranks with the
examples' own optimizers and learning rates, which were chosen for float32. Every variant of a seed begins
with the same parameters and sees the same batches; mean and spread (standard deviation) are over seeds.

**Behind** says by how much a variant ends behind float32, seed by seed, if that is more than noise: more than
twice the larger of float32's spread and the spread of the differences. Seconds are steps times the seconds
of one, which were measured on the slow links with the variants in turns (medians of 7), evaluations left out.

Nothing is tuned for a codec: no warm-up, no schedule, no other learning rate, and the character model is
trained by AdamW for 400 steps only. `onebit`, `efsignsgd` and `dgc` have a memory of their own.
"""


@dataclass(frozen=True)
class Row:
    """A variant of a task. quality: final, a seed each; behind: mean loss of quality against float32.

    noise: what behind must exceed to count. steps: until close to float32's end; None: never.
    a_step: seconds.
    """

    name: str
    quality: list[float]
    behind: float
    noise: float
    steps: float | None
    a_step: float
    sent: float


def final(run: dict[str, Any]) -> float:
    """The quality of a run's end."""
    return statistics.fmean(quality for _, quality in run["points"][-LAST:])


def rows(found: dict[str, Any], task: str) -> Iterator[Row]:
    """The rows of a task."""
    runs = _runs(found, task)
    sign = 1 if HIGHER_IS_BETTER[task] else -1
    base = {seed: final(run) for seed, run in runs[BASELINE].items()}
    spread = _spread(list(base.values()))
    for name, of_seed in runs.items():
        quality = {seed: final(run) for seed, run in of_seed.items()}
        behind = [sign * (base[seed] - quality[seed]) for seed in quality if seed in base]
        reached = [
            _reached(run, base[seed], sign, CLOSE[task]) for seed, run in of_seed.items() if seed in base
        ]
        there = [step for step in reached if step is not None]
        steps = statistics.fmean(there) if len(there) == len(reached) else None
        yield Row(
            name,
            list(quality.values()),
            statistics.fmean(behind),
            2 * max(spread, _spread(behind)),
            steps,
            found["seconds"][f"{task}/{name}"],
            statistics.fmean(run["sent"] for run in of_seed.values()),
        )


def _reached(run: dict[str, Any], goal: float, sign: int, close: float) -> int | None:
    for step, quality in run["points"]:
        if sign * (goal - quality) <= close:
            return int(step)
    return None


def _spread(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0


def _runs(found: dict[str, Any], task: str) -> dict[str, dict[str, dict[str, Any]]]:
    runs: dict[str, dict[str, dict[str, Any]]] = {}
    for key, run in found["runs"].items():
        of_task, name, seed = key.split("/")
        if of_task == task:
            runs.setdefault(name, {})[seed] = run
    return runs


def _tasks(found: dict[str, Any]) -> list[str]:
    return [task for task in QUALITY if _runs(found, task)]


def quality(found: dict[str, Any], codecs: Mapping[str, str | None]) -> dict[str, list[dict[str, Any]]]:
    """What the catalogue of algorithms says of each codec (`compll.catalogue.Trained`).

    codecs: of each variant.
    """
    of_codec: dict[str, list[dict[str, Any]]] = {}
    for task in _tasks(found):
        for row in rows(found, task):
            if codec := codecs[row.name]:
                figures = {"behind": round(row.behind, 3), "noise": round(row.noise, 3)}
                of_codec.setdefault(codec, []).append(
                    {"variant": row.name, "task": task, "metric": QUALITY[task], **figures}
                )
    return of_codec


def markdown(found: dict[str, Any]) -> str:
    """The page."""
    lines = [ABOUT, *(f"- {key}: {value}" for key, value in found["environment"].items())]
    for task in _tasks(found):
        seeds = len(_runs(found, task)[BASELINE])
        goal = f"within {CLOSE[task]:g} of float32's end"
        lines += [
            "",
            f"## {task}: {QUALITY[task]}, {seeds} seeds",
            "",
            f"| variant | {QUALITY[task]} | spread | behind | steps to be {goal} | seconds | ms a step "
            "| bytes sent a step |",
            "|---|---:|---:|---:|---:|---:|---:|---:|",
        ]
        for row in rows(found, task):
            behind = f"{row.behind:.2f}" if row.behind > row.noise else ""
            reached = "never | " if row.steps is None else f"{row.steps:.0f} | {row.steps * row.a_step:.1f}"
            lines.append(
                f"| {row.name} | {statistics.fmean(row.quality):.2f} | {_spread(row.quality):.2f} | {behind} "
                f"| {reached} | {row.a_step * 1e3:.0f} | {row.sent:,.0f} |"
            )
    lines += ["", "![Quality against steps and seconds](convergence.png)"]
    return "\n".join(lines) + "\n"


def plot(found: dict[str, Any], path: Path) -> None:
    """Draw quality against steps and against seconds, a row a task; the mean over seeds."""
    tasks = _tasks(found)
    figure, axes = plt.subplots(
        len(tasks), 2, figsize=(13, 5.2 * len(tasks)), squeeze=False, layout="constrained"
    )
    for of_task, task in zip(axes, tasks, strict=True):
        runs = _runs(found, task)
        colours = plt.get_cmap("tab20")(np.linspace(0, 1, 20))
        for number, (name, of_seed) in enumerate(runs.items()):
            points = np.mean([run["points"] for run in of_seed.values()], axis=0)
            colour = "black" if name == BASELINE else colours[number % 20]
            style = {"color": colour, "lw": 2.2 if name == BASELINE else 1.2, "label": name}
            style["ls"] = "--" if name.endswith("feedback") else "-"
            of_task[0].plot(points[:, 0], points[:, 1], **style)
            of_task[1].plot(points[:, 0] * found["seconds"][f"{task}/{name}"], points[:, 1], **style)
        ends = [final(run) for of_seed in runs.values() for run in of_seed.values()]
        best = max(ends) if HIGHER_IS_BETTER[task] else min(ends)
        room = 12 if task == "digits" else 1.5
        limits = (best - room, best + 1) if HIGHER_IS_BETTER[task] else (best - 0.1, best + room)
        for axis, label in zip(of_task, ("steps", "seconds"), strict=True):
            axis.set(xlabel=label, ylabel=QUALITY[task], title=f"{task}, against {label}", ylim=limits)
            axis.spines[["top", "right"]].set_visible(False)
        of_task[1].legend(fontsize=7, ncols=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)
