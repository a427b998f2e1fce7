"""One rank of `test_engine_jobs.py`, which sums uncompressed gradients by an engine.

engine_worker.py <folder, where it writes a file of its rank> <engine>
engine_worker.py <folder> <engine> for ever: until its job fails; writes `pid.<rank>`, then `failure.<rank>`
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

import casync.torch as casync

STEPS = 5


class Branches(torch.nn.Module):
    """Branches whose order, and so that of the hooks, may differ. One only rank 1 uses, another nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.order = [0, 1, 2]
        self.branches = torch.nn.ModuleList(torch.nn.Linear(64, 4200 + i) for i in self.order)
        self.of_one, self.of_nobody = torch.nn.Linear(64, 3), torch.nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs = {i: self.branches[i](x).sum() for i in self.order}
        total = torch.stack([outputs[i] for i in sorted(outputs)]).sum()
        return total + self.of_one(x).sum() if casync.rank() == 1 else total


def started(engine: str) -> Callable[[], None]:
    """Start what the engine needs; returns a collective of the script's own, on the same framework."""
    if engine == "torch":
        torch.distributed.init_process_group("gloo")
        return lambda: torch.distributed.all_reduce(torch.ones(1000))
    if engine == "horovod":
        import horovod.torch as hvd

        hvd.init()
        return lambda: hvd.allreduce(torch.ones(1000), name="of the script")
    return lambda: None


def optimizer_of(model: torch.nn.Module, exact: str, codec: str | None) -> torch.optim.Optimizer:
    return casync.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        named_parameters=model.named_parameters(),
        codec=codec,
        exact=exact,
    )


def train(exact: str, codec: str | None, own: Callable[[], None], perturbation: int) -> Iterator[str]:
    """Yields a hash of the parameters a step."""
    rank = casync.rank()
    torch.manual_seed(rank)
    model = Branches()
    casync.broadcast_parameters(model.state_dict(), root_rank=0)
    optimizer = optimizer_of(model, exact, codec)
    perturb = random.Random(perturbation * 1000 + rank)
    for step in range(STEPS):
        if perturbation:
            perturb.shuffle(model.order)
            time.sleep(perturb.random() * 0.01)
        torch.manual_seed(1000 * rank + step)
        optimizer.zero_grad()
        model(torch.randn(16, 64)).backward()
        own()  # while gradients travel
        optimizer.step()
        assert model.of_one.weight.grad is not None
        assert model.of_nobody.weight.grad is None
        state = b"".join(p.detach().numpy().tobytes() for p in model.parameters())
        yield hashlib.sha256(state).hexdigest()
    stats = optimizer.stats()
    assert (stats.bytes_reduced > 0) == (exact != "ring")
    assert (stats.messages_sent > 0) == (codec is not None or exact == "ring")


def integers(engine: str) -> None:
    """Gradients of integers have the same bits as by our ring, and one NaN passes alone."""
    found = []
    for exact in (engine, "ring"):
        p = torch.nn.Parameter(torch.zeros(300_000))
        half = torch.nn.Parameter(torch.zeros(1000, dtype=torch.float16))
        optimizer = optimizer_of(torch.nn.ParameterDict({"whole": p, "small": half}), exact, None)
        rank = casync.rank()
        gradient = (torch.arange(300_000) * (rank + 3) % 1001).float()
        gradient[7] = torch.nan if rank == 0 else 1
        (p @ gradient + (half * torch.arange(1000).half()).sum()).backward()
        optimizer.step()
        found += [p.grad, half.grad]
    assert found[0][6:9].isnan().tolist() == [False, True, False]
    assert all(a.equal(b) for a, b in zip(found[:2], found[2:], strict=True) if not a.isnan().any())
    assert found[0].nan_to_num().equal(found[2].nan_to_num())


def for_ever(folder: Path, engine: str) -> None:
    model = Branches()
    optimizer = optimizer_of(model, engine, None)
    try:
        for step in range(1_000_000):
            optimizer.zero_grad()
            model(torch.randn(16, 64)).backward()
            optimizer.step()
            if step == 3:
                (folder / f"pid.{casync.rank()}").write_text(str(os.getpid()))
    except casync.RankFailure as failure:
        (folder / f"failure.{casync.rank()}").write_text(json.dumps(failure.args))
        raise


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, engine, *endless = sys.argv[1:]
    casync.init()
    own = started(engine)
    if endless:
        for_ever(Path(folder), engine)
    integers(engine)
    hashes = {
        f"{exact} {codec} {perturbation}": list(train(exact, codec, own, perturbation))
        for codec in (None, "onebit")
        for exact, perturbation in ((engine, 1), (engine, 2), ("ring", 0))
    }
    (Path(folder) / str(casync.rank())).write_text(json.dumps(hashes))
    casync.shutdown()
