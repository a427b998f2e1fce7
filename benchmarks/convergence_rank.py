"""One rank of `convergence.py`: trains variants whole, or some steps of them, as the driver says.

{"do": "train", "task": "digits", "seed": 0, "variant": {"codec": "int8", ...}}
{"do": "steps", "task": "digits", "variant": {...}, "count": 9}
"""

from __future__ import annotations

import gc
import statistics
import time
from typing import Any

import torch
from cluster_ranks import serve
from convergence_tasks import TASKS, Task
from torch import nn

import casync.torch as casync
import compll


class Training:
    """A task's model with a variant's optimizer."""

    def __init__(self, task: str, seed: int, variant: dict[str, Any]) -> None:
        torch.manual_seed(seed)
        self.work: Task = TASKS[task](seed, casync.rank(), casync.size())
        casync.broadcast_parameters(self.work.model.state_dict())
        codec = variant["codec"]
        if codec is not None:
            codec = compll.compile(codec, error_feedback=variant["feedback"], **variant["params"])
        self.optimizer = casync.DistributedOptimizer(
            self.work.optimizer(self.work.model.parameters(), variant["momentum"]),
            self.work.model.named_parameters(),
            codec=codec,
            topology=variant["topology"],
            rules=[(pattern, None) for pattern in self.work.exact],
            seed=seed,
        )

    def step(self, number: int) -> float:
        """Take a step; the loss of this rank's rows."""
        work, optimizer = self.work, self.optimizer
        for group in optimizer.param_groups:
            group["lr"] = work.rate(number)
        optimizer.zero_grad()
        loss = work.loss(number)
        loss.backward()
        optimizer.synchronize()
        if work.clip is not None:
            nn.utils.clip_grad_norm_(work.model.parameters(), work.clip)
        optimizer.step()
        return loss.item()


def train(task: str, seed: int, variant: dict[str, Any]) -> dict[str, Any]:
    """Train; the loss of each step, and step and quality of each evaluation (rank 0 has them)."""
    training = Training(task, seed, variant)
    work = training.work
    losses: list[float] = []
    points: list[tuple[int, float]] = []
    for step in range(work.steps):
        losses.append(training.step(step))
        if (step + 1) % work.evaluate_every == 0:
            if casync.rank() == 0:
                points.append((step + 1, work.quality()))
            casync.session().control.gather("evaluated", b"")
    sent = training.optimizer.stats().bytes_sent / work.steps
    del training
    gc.collect()
    return {"losses": losses, "points": points, "sent": sent}


_alive: dict[tuple[str, str], Training] = {}


def steps(task: str, variant: dict[str, Any], count: int) -> dict[str, Any]:
    """Take so many steps, the first of them unmeasured; the median of the seconds of one."""
    key = (task, variant["name"])
    if key not in _alive:
        _alive[key] = Training(task, 0, variant)
    seconds = []
    for number in range(count):
        begin = time.perf_counter()
        _alive[key].step(number)
        seconds.append(time.perf_counter() - begin)
    return {"seconds": statistics.median(seconds[1:])}


if __name__ == "__main__":
    torch.set_num_threads(1)
    casync.init()
    serve({"train": train, "steps": steps})
