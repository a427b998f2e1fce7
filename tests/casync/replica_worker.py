"""One rank of `test_replicas.py`: trains, and writes the hash of its parameters after every step.

replica_worker.py <folder, where it writes a file of its rank> <steps> <seed of perturbation, 0 for none>
    <codec or none>:<topology>[:<codec of sums>] ...

A step is two backward passes, of which a part of the model has one, two or none on each rank.
"""

from __future__ import annotations

import hashlib
import os
import random
import sys
import time
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from nccl_jobs import by_gloo

import casync.torch as casync
from casync.plan import Entry


class Branches(torch.nn.Module):
    """Branches whose forward order, and so the order of the hooks, may differ without changing a bit."""

    def __init__(self) -> None:
        super().__init__()
        self.order = [0, 1, 2]
        self.branches = torch.nn.ModuleList(torch.nn.Linear(64, 100) for _ in self.order)
        self.head = torch.nn.Linear(300, 10)
        self.rare = torch.nn.Linear(64, 10)

    def forward(self, x: torch.Tensor, rarely: bool) -> torch.Tensor:
        outputs = {i: torch.relu(self.branches[i](x)) for i in self.order}
        logits = self.head(torch.cat([outputs[i] for i in sorted(outputs)], 1))
        return logits + self.rare(x) if rarely else logits


def plan_of(model: torch.nn.Module) -> casync.Plan:
    """Matrices compressed: branches in parts, the rest in a bucket."""
    return casync.Plan(
        tuple(
            Entry(name, p.dim() == 2, 2 if name.startswith("branches") else 1)
            for name, p in model.named_parameters()
        )
    )


def train(case: str, steps: int, perturbation: int, report: TextIO) -> None:
    codec, topology, *down = case.split(":")
    rank = casync.rank()
    torch.manual_seed(rank)
    model = Branches()
    casync.broadcast_parameters(model.state_dict(), root_rank=0)
    optimizer = casync.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9),
        named_parameters=model.named_parameters(),
        codec=None if codec == "none" else codec,
        topology=topology,
        plan=plan_of(model),
        backward_passes_per_step=2,
        nodes=((0, 1), (2,)),
        down=down[0] if down else None,
    )
    perturb = random.Random(perturbation * 1000 + rank)
    for step in range(steps):
        if perturbation:
            perturb.shuffle(model.order)
            time.sleep(perturb.random() * 0.01)
        rng = np.random.default_rng([rank, step])
        optimizer.zero_grad()
        for rarely in rng.random(2) < 0.4:
            x = torch.from_numpy(rng.standard_normal((16, 64)).astype(np.float32))
            logits = model(x, bool(rarely))
            torch.nn.functional.cross_entropy(logits, torch.from_numpy(rng.integers(0, 10, 16))).backward()
        optimizer.step()
        digest = hashlib.sha256()
        for p in model.parameters():
            digest.update(p.detach().numpy().tobytes())
        print(case, digest.hexdigest(), file=report)


if __name__ == "__main__":
    torch.set_num_threads(1)
    if os.environ.get("CASYNC_TRANSPORT") == "nccl":
        by_gloo(*(int(os.environ[name]) for name in ("CASYNC_RANK", "CASYNC_SIZE", "MASTER_PORT")))
    casync.init()
    folder, steps, perturbation, *cases = sys.argv[1:]
    with (Path(folder) / str(casync.rank())).open("w") as report:
        print("transport", casync.session().transport.name, file=report)
        for case in cases:
            train(case, int(steps), int(perturbation), report)
    casync.shutdown()
