"""One rank of `convergence.py`: trains one variant after the other, as the driver says.

{"do": "train", "task": "digits", "seed": 0, "variant": {"codec": "int8", ...}}
"""

from __future__ import annotations

import gc
import time
from typing import Any

import torch
from cluster_ranks import serve
from convergence_tasks import TASKS
from torch import nn

import casync.torch as casync
import compll


def train(task: str, seed: int, variant: dict[str, Any]) -> dict[str, Any]:
    """Train; the loss of each step, and steps, seconds and quality of each evaluation (rank 0 has them)."""
    torch.manual_seed(seed)
    work = TASKS[task](seed, casync.rank(), casync.size())
    casync.broadcast_parameters(work.model.state_dict())
    codec = variant["codec"]
    if codec is not None:
        codec = compll.compile(codec, error_feedback=variant["feedback"], **variant["params"])
    optimizer = casync.DistributedOptimizer(
        work.optimizer(work.model.parameters(), variant["momentum"]),
        work.model.named_parameters(),
        codec=codec,
        topology=variant["topology"],
        rules=[(pattern, None) for pattern in work.exact],
        seed=seed,
    )
    losses: list[float] = []
    points: list[tuple[int, float, float]] = []
    seconds = 0.0
    for step in range(work.steps):
        begin = time.perf_counter()
        for group in optimizer.param_groups:
            group["lr"] = work.rate(step)
        optimizer.zero_grad()
        loss = work.loss(step)
        loss.backward()
        optimizer.synchronize()
        if work.clip is not None:
            nn.utils.clip_grad_norm_(work.model.parameters(), work.clip)
        optimizer.step()
        losses.append(loss.item())
        seconds += time.perf_counter() - begin
        if (step + 1) % work.evaluate_every == 0:
            if casync.rank() == 0:
                points.append((step + 1, seconds, work.quality()))
            casync.session().control.gather("evaluated", b"")
    sent = optimizer.stats().bytes_sent / work.steps
    gc.collect()
    return {"losses": losses, "points": points, "sent": sent}


if __name__ == "__main__":
    torch.set_num_threads(1)
    casync.init()
    serve({"train": train})
