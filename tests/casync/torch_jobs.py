"""Jobs of the PyTorch interface over the loopback network, and a small model whose hooks may be reordered."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from casync_jobs import in_threads

import casync.torch as casync
from casync.session import Session
from casync.transports.loopback import LoopbackNetwork

if TYPE_CHECKING:
    from collections.abc import Callable


class Branches(torch.nn.Module):
    """Four branches whose forward order, and so the order of the hooks, may differ without changing a bit."""

    def __init__(self, order: list[int]) -> None:
        super().__init__()
        self.order = order
        self.branches = torch.nn.ModuleList(torch.nn.Linear(40, 130) for _ in range(4))
        self.head = torch.nn.Linear(520, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = {i: torch.relu(self.branches[i](x)) for i in self.order}
        return self.head(torch.cat([outputs[i] for i in range(4)], 1))


def model_hash(model: torch.nn.Module) -> str:
    digest = hashlib.sha256()
    for value in model.state_dict().values():
        digest.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def jobs(size: int, work: Callable[[int, casync.Job], Any], **network: Any) -> list[Any]:
    """Run `work(rank, job)` on every rank over the loopback network; returns results or exceptions."""
    torch.set_num_threads(1)
    net = LoopbackNetwork(size, timeout=20, **network)

    def run(rank: int) -> Any:
        nodes = (tuple(range(size)),)
        session = Session(rank, size, rank, size, net.control(rank), net.transport(rank), nodes)
        job = casync.Job(session, seed=3, checksums=True)
        try:
            return work(rank, job)
        finally:
            for _, synchronizer in job.kept.alive:
                synchronizer.close()

    try:
        return in_threads(size, run)
    finally:
        net.close()


def good(results: list[Any]) -> list[Any]:
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def data(rank: int, step: int, n: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng([rank, step])
    x = torch.from_numpy(rng.standard_normal((n, 40)).astype(np.float32))
    return x, torch.from_numpy(rng.integers(0, 10, n))


def new_model(rank: int = 0, order: list[int] | None = None) -> Branches:
    """A model of its own a rank; not from torch's global generator, which the ranks, threads, share here."""
    model = Branches(order or [0, 1, 2, 3])
    rng = np.random.default_rng(rank)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.from_numpy(rng.uniform(-0.15, 0.15, tuple(p.shape)).astype(np.float32)))
    return model


def start(job: casync.Job, **options: Any) -> tuple[Branches, Any]:
    """A new model, and its distributed optimizer."""
    model = new_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return model, casync.DistributedOptimizer(sgd, model.named_parameters(), job=job, **options)


def train_steps(model: Branches, optimizer: Any, rank: int, steps: range) -> list[str]:
    """The hash of the parameters after each step."""
    hashes = []
    for step in steps:
        x, y = data(rank, step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        hashes.append(model_hash(model))
    return hashes
