"""What is compared: each method makes an iteration of data-parallel training, of a model of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

LEARNING_RATE = 1e-4
POWERSGD_WARM = 2  # PowerSGD begins at this iteration, uncompressed before

Loss = Callable[[nn.Module], torch.Tensor]
Iterate = Callable[[], None]


@dataclass(frozen=True)
class Method:
    """A row of the results. engine: the library that moves gradients: casync, torch, horovod, or none."""

    name: str
    engine: str
    make: Callable[[nn.Module, Loss], Iterate]


def twin(model: nn.Module) -> nn.Module:
    """A model with the same parameters in the same memory, whose gradients are its own."""
    memory = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, {key: nn.Parameter(p.detach()) for key, p in memory.items()})


def _iteration(model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer) -> Iterate:
    def iterate() -> None:
        optimizer.zero_grad()
        loss(model).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return iterate


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def alone(model: nn.Module, loss: Loss) -> Iterate:
    """Every rank computes for itself: what remains when communication costs nothing."""
    return _iteration(model, loss, _sgd(model))


def ours(codec: str | None, topology: str, **parameters: float) -> Callable[[nn.Module, Loss], Iterate]:
    """Gradients by casync."""

    def make(model: nn.Module, loss: Loss) -> Iterate:
        import casync.torch as casync
        import compll

        compiled = None if codec is None else compll.compile(codec, **parameters)
        optimizer = casync.DistributedOptimizer(
            _sgd(model), model.named_parameters(), codec=compiled, topology=topology
        )
        return _iteration(model, loss, optimizer)

    return make


def ddp(hook: str = "") -> Callable[[nn.Module, Loss], Iterate]:
    """DistributedDataParallel over gloo, with one of torch's communication hooks."""

    def make(model: nn.Module, loss: Loss) -> Iterate:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
        from torch.nn.parallel import DistributedDataParallel

        # PowerSGD's chained all-reduces of several buckets race on gloo; with one bucket they do not.
        wrapped = DistributedDataParallel(model, **({"bucket_cap_mb": 1000} if hook == "powersgd" else {}))
        if hook == "fp16":
            wrapped.register_comm_hook(None, default_hooks.fp16_compress_hook)  # type: ignore[arg-type]
        elif hook == "powersgd":
            state = powerSGD_hook.PowerSGDState(
                None, matrix_approximation_rank=4, start_powerSGD_iter=POWERSGD_WARM
            )
            wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        return _iteration(wrapped, loss, _sgd(wrapped))

    return make


def horovod(compression: str) -> Callable[[nn.Module, Loss], Iterate]:
    """Horovod's DistributedOptimizer over gloo."""

    def make(model: nn.Module, loss: Loss) -> Iterate:
        import horovod.torch as hvd

        optimizer: Any = hvd.DistributedOptimizer(
            _sgd(model), model.named_parameters(), compression=getattr(hvd.Compression, compression)
        )
        return _iteration(model, loss, optimizer)

    return make


METHODS = (
    Method("compute alone", "none", alone),
    Method("casync onebit, ps", "casync", ours("onebit", "ps")),
    Method("casync onebit, ring", "casync", ours("onebit", "ring")),
    Method("casync terngrad 2 bit, ps", "casync", ours("terngrad", "ps", bitwidth=2)),
    Method("casync terngrad 2 bit, ring", "casync", ours("terngrad", "ring", bitwidth=2)),
    Method("casync int8, ps", "casync", ours("int8", "ps")),
    Method("casync int8, ring", "casync", ours("int8", "ring")),
    Method("casync dgc 0.1 %, allgather", "casync", ours("dgc", "allgather", ratio=0.001)),
    Method("casync bf16, direct", "casync", ours("bf16", "direct")),
    Method("casync uncompressed", "casync", ours(None, "ring")),
    Method("DDP", "torch", ddp()),
    Method("DDP, fp16 hook", "torch", ddp("fp16")),
    Method("DDP, PowerSGD rank 4", "torch", ddp("powersgd")),
    Method("Horovod", "horovod", horovod("none")),
    Method("Horovod, fp16", "horovod", horovod("fp16")),
)
BY_NAME = {method.name: method for method in METHODS}
