"""What is compared: each method makes an iteration of data-parallel training, of a model of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn

LEARNING_RATE = 1e-4
POWERSGD_WARM = 2  # PowerSGD begins at this iteration, uncompressed before

Loss = Callable[[nn.Module], torch.Tensor]
Iterate = Callable[[], None]


@dataclass(frozen=True)
class Work:
    """What a method trains. plan: SeCoPa's for this cluster, a file, if there is one."""

    model: nn.Module
    loss: Loss
    plan: str | None = None


@dataclass(frozen=True)
class Method:
    """A row of the results. engine: the library that moves gradients: casync, torch, horovod, or none.

    wide: it sends 16 or 32 bits a value, so that a large model's iteration takes minutes.
    """

    name: str
    engine: str
    make: Callable[[Work], Iterate]
    wide: bool = False


class Entry(NamedTuple):
    """A method on 1/part of a model's gradients: a row of the results."""

    name: str
    part: int = 1

    def __str__(self) -> str:
        """How the results name it."""
        return self.name if self.part == 1 else f"{self.name}, ≈ of 1/{self.part}"


def twin(model: nn.Module) -> nn.Module:
    """A model with the same parameters in the same memory, whose gradients are its own."""
    memory = {id(p): p for p in model.parameters()}
    return copy.deepcopy(model, {key: nn.Parameter(p.detach()) for key, p in memory.items()})


def iteration(model: nn.Module, loss: Loss, optimizer: torch.optim.Optimizer) -> Iterate:
    """Forward, backward and step, as users write them."""

    def iterate() -> None:
        optimizer.zero_grad()
        loss(model).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    return iterate


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """The optimizer of all methods."""
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def alone(work: Work) -> Iterate:
    """Every rank computes for itself: what remains when communication costs nothing."""
    return iteration(work.model, work.loss, sgd(work.model))


def ours(codec: str | None, topology: str, **parameters: float) -> Callable[[Work], Iterate]:
    """Gradients by casync."""

    def make(work: Work) -> Iterate:
        import casync.torch as casync
        import compll

        compiled = None if codec is None else compll.compile(codec, **parameters)
        optimizer = casync.DistributedOptimizer(
            sgd(work.model), work.model.named_parameters(), codec=compiled, topology=topology
        )
        return iteration(work.model, work.loss, optimizer)

    return make


def ddp(hook: str = "") -> Callable[[Work], Iterate]:
    """DistributedDataParallel over gloo, with one of torch's communication hooks."""

    def make(work: Work) -> Iterate:
        from torch.distributed.algorithms.ddp_comm_hooks import default_hooks, powerSGD_hook
        from torch.nn.parallel import DistributedDataParallel

        # PowerSGD's chained all-reduces of several buckets race on gloo; with one bucket they do not.
        wrapped = DistributedDataParallel(
            work.model, **({"bucket_cap_mb": 1000} if hook == "powersgd" else {})
        )
        if hook == "fp16":
            wrapped.register_comm_hook(None, default_hooks.fp16_compress_hook)  # type: ignore[arg-type]
        elif hook == "powersgd":
            state = powerSGD_hook.PowerSGDState(
                None, matrix_approximation_rank=4, start_powerSGD_iter=POWERSGD_WARM
            )
            wrapped.register_comm_hook(state, powerSGD_hook.powerSGD_hook)
        return iteration(wrapped, work.loss, sgd(wrapped))

    return make


def horovod(compression: str) -> Callable[[Work], Iterate]:
    """Horovod's DistributedOptimizer over gloo."""

    def make(work: Work) -> Iterate:
        import horovod.torch as hvd

        optimizer: Any = hvd.DistributedOptimizer(
            sgd(work.model), work.model.named_parameters(), compression=getattr(hvd.Compression, compression)
        )
        return iteration(work.model, work.loss, optimizer)

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
    Method("casync bf16, direct", "casync", ours("bf16", "direct"), wide=True),
    Method("casync uncompressed", "casync", ours(None, "ring"), wide=True),
    Method("DDP", "torch", ddp(), wide=True),
    Method("DDP, fp16 hook", "torch", ddp("fp16"), wide=True),
    Method("DDP, PowerSGD rank 4", "torch", ddp("powersgd")),
    Method("Horovod", "horovod", horovod("none"), wide=True),
    Method("Horovod, fp16", "horovod", horovod("fp16"), wide=True),
)


def entries(names: Sequence[str], parts: Sequence[int]) -> list[Entry]:
    """The rows of a model: wide methods on these parts of its list, the others on the whole list."""
    wide = {method.name for method in METHODS if method.wide}
    return [Entry(name, part) for name in names for part in (parts if name in wide else (1,))]
