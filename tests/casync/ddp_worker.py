"""One rank of `test_ddp.py`: `ddp_worker.py <port of torch.distributed> <what> ...`; prints JSON for each.

What it prints of a run is the hash of the parameters after each step, unless said otherwise.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import sys
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel
from torch_jobs import Branches, data, model_hash, new_model

import casync.torch as casync

STEPS = 8


def wrapped(model: torch.nn.Module, state: casync.State | None, **options: Any) -> DistributedDataParallel:
    ddp = DistributedDataParallel(model, bucket_cap_mb=0.03, **options)  # so small: several buckets
    if state is not None:
        ddp.register_comm_hook(state, casync.hook)
    return ddp


def state_of(model: torch.nn.Module, codec: Any = "onebit", **options: Any) -> casync.State:
    return casync.State(codec=codec, named_parameters=model.named_parameters(), **options)


def go(ddp: DistributedDataParallel, steps: range, scaler: Any = None) -> list[str]:
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1, momentum=0.9)
    hashes = []
    for step in steps:
        x, y = data(casync.rank(), step)
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(ddp(x), y)
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss * float("inf") if step == 3 and casync.rank() else loss).backward()
            scaler.step(optimizer)
            scaler.update()
        hashes.append(model_hash(ddp.module))
    return hashes


def by_hook(topology: str) -> Any:
    model = new_model()
    state = state_of(model, topology=topology)
    return go(wrapped(model, state), range(STEPS)), state.stats().bytes_sent


def by_optimizer(topology: str) -> Any:
    model = new_model()
    optimizer = casync.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        model.named_parameters(),
        codec="onebit",
        topology=topology,
    )
    hashes = []
    for step in range(STEPS):
        x, y = data(casync.rank(), step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        hashes.append(model_hash(model))
    return hashes, optimizer.stats().bytes_sent


def without_names() -> Any:
    return go(wrapped(new_model(), casync.State(codec="onebit", topology="ps")), range(STEPS))


def against_ddp() -> Any:
    """The largest difference to DDP's own all-reduce, after some steps."""
    ours, theirs = new_model(), new_model()
    go(wrapped(ours, state_of(ours, None)), range(STEPS))
    go(wrapped(theirs, None), range(STEPS))
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def half() -> Any:
    model = new_model().to(torch.bfloat16)
    ddp = wrapped(model, state_of(model))
    optimizer = torch.optim.SGD(ddp.parameters(), lr=0.1)
    sums = []
    for step in range(3):
        x, y = data(casync.rank(), step)
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(ddp(x.to(torch.bfloat16)).float(), y).backward()
        optimizer.step()
        sums.append([p.float().sum().item() for p in model.parameters()])
    return sums


def accumulated() -> Any:
    """The head's gradient of three backward passes, two of them in no_sync, and the steps that travelled."""
    found = []
    for state in (state_of(model := new_model(), None), None):
        ddp = wrapped(model if state else new_model(), state)
        for i in range(3):
            x, y = data(casync.rank(), i)
            with ddp.no_sync() if i < 2 else contextlib.nullcontext():
                torch.nn.functional.cross_entropy(ddp(x), y).backward()
        found.append((ddp.module.head.weight.grad, state.stats().steps if state else None))
    (ours, steps), (theirs, _) = found
    return (ours - theirs).abs().max().item(), steps


def unused() -> Any:
    """Gradients where branch 0 is used on rank 1 alone and branch 1 on none; the residuals of branch 1."""

    class Some(Branches):
        use: tuple[int, ...] = ()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            outputs = {i: torch.relu(self.branches[i](x)) for i in self.use}
            none = x.new_zeros(len(x), 130)
            return self.head(torch.cat([outputs.get(i, none) for i in range(4)], 1))

    model = Some([])
    model.load_state_dict(new_model().state_dict())
    state = state_of(model)
    ddp = wrapped(model, state, find_unused_parameters=True)

    def step(*use: int) -> list[Any]:
        model.use = use
        model.zero_grad()
        x, y = data(casync.rank(), 0)
        torch.nn.functional.cross_entropy(ddp(x), y).backward()
        entries = state.state_dict()["feedback"]["entries"]
        return [e["values"]["residual"].tolist() for e in entries if e["gradient"] == "branches.1.weight"]

    before = step(0, 1, 2, 3)
    after = step(*([0, 2, 3] if casync.rank() else [2, 3]))
    first = model.branches[0].weight.grad
    return {
        "sum of branch 0": None if first is None else first.abs().sum().item(),
        "branch 1 is None": model.branches[1].weight.grad is None,
        "residuals before": any(any(values) for values in before),
        "residuals stay": before == after,
    }


def resumed() -> Any:
    model = new_model()
    state = state_of(model, "onebit")
    ddp = wrapped(model, state)
    go(ddp, range(3))
    saved, parameters = state.state_dict(), copy.deepcopy(model.state_dict())
    whole = go(ddp, range(3, STEPS))
    again = new_model()
    again.load_state_dict(parameters)
    other = state_of(again, "onebit")
    other.load_state_dict(saved)
    return whole, go(wrapped(again, other), range(3, STEPS))


def scaled() -> Any:
    """The hashes, and the scale after a step in which rank 1 alone has overflowed."""
    model = new_model()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    hashes = go(wrapped(model, state_of(model, scaler=scaler)), range(STEPS), scaler)
    return hashes, scaler.get_scale()


def scheduled() -> Any:
    model = new_model()
    state = state_of(model, casync.Schedule({0: None, 3: "onebit"}))
    ddp = wrapped(model, state)
    hashes, sent = [], []
    for step in range(6):
        hashes += go(ddp, range(step, step + 1))
        sent.append(state.stats().bytes_sent - sum(sent))
    state.switch("int8")
    hashes += go(ddp, range(6, 8))
    return hashes, sent


def by_engine() -> Any:
    """As `scheduled`, what is exact by torch's all-reduce."""
    model = new_model()
    state = state_of(model, casync.Schedule({0: None, 3: "onebit"}), exact="torch")
    ddp = wrapped(model, state)
    hashes = [h for step in range(6) for h in go(ddp, range(step, step + 1))]
    return hashes, state.stats().bytes_reduced > 0


class Words(torch.nn.Module):
    """An embedding whose gradients are sparse, or not, between words and classes."""

    def __init__(self, *, sparse: bool) -> None:
        super().__init__()
        rng = np.random.default_rng(4)
        table = torch.from_numpy(rng.standard_normal((200, 16), np.float32))
        self.embed = torch.nn.Embedding.from_pretrained(table, freeze=False, sparse=sparse)
        self.head = torch.nn.Linear(16, 10)
        with torch.no_grad():
            for p in self.head.parameters():
                p.copy_(torch.from_numpy(rng.uniform(-0.2, 0.2, tuple(p.shape)).astype(np.float32)))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(self.embed(words).mean(1))


def rows(codec: str, sparse: str, how: str) -> Any:
    """The hashes, and the bytes sent, of a model some of whose words are in each step, some twice."""
    model = Words(sparse=sparse == "sparse")
    chosen = None if codec == "None" else codec
    sgd = torch.optim.SGD(model.parameters(), lr=0.5)
    if how == "hook":
        made = state_of(model, chosen)
        net = wrapped(model, made)
    else:
        net, patterns = model, ["embed.*"] if sparse == "sparse" else []
        made = casync.DistributedOptimizer(sgd, model.named_parameters(), codec=chosen, sparse=patterns)
    hashes = []
    for step in range(STEPS):
        rng = np.random.default_rng([casync.rank(), step])
        words, classes = rng.integers(0, 200, (8, 3)), rng.integers(0, 10, 8)
        sgd.zero_grad()
        loss = torch.nn.functional.cross_entropy(net(torch.from_numpy(words)), torch.from_numpy(classes))
        loss.backward()
        sgd.step()
        hashes.append(model_hash(model))
    assert model.embed.weight.grad.is_sparse == (sparse == "sparse")
    return hashes, made.stats().bytes_sent


def killed() -> Any:
    """How backward() ends on a rank whose peer is killed, and what the next call into casync raises."""
    model = new_model()
    ddp = wrapped(model, state_of(model))
    go(ddp, range(3))
    if casync.rank() == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    told = []
    for step in range(3, 5):
        try:
            go(ddp, range(step, step + 1))
        except Exception as error:
            told.append(f"{type(error).__name__}: {error}")
    return told


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank, size = int(os.environ["CASYNC_RANK"]), int(os.environ["CASYNC_SIZE"])
    meeting = f"tcp://127.0.0.1:{sys.argv[1]}"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=size)
    casync.init()
    for what in sys.argv[2:]:
        name, _, argument = what.partition(":")
        print(json.dumps({what: globals()[name](*argument.split(":") if argument else ())}), flush=True)
    if "killed" in sys.argv:
        os._exit(0)  # gloo aborts the interpreter when a peer is gone
    casync.shutdown()
    torch.distributed.destroy_process_group()
