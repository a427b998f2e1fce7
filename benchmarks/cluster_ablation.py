"""What each part of the runtime brings, one after the other: the ablation that HiPress published (SOSP 2021).

compression alone    every gradient by itself, one after the other, when the backward pass is over
+ pipelining         handed over as the backward pass makes it; all are under way at the same time
+ batching           small gradients together, uncompressed, in buckets
+ partitions         every compressed gradient in as many parts as there are ranks, its owners spread
+ plan               what SeCoPa says for this link: which gradients, and how many parts
"""

from __future__ import annotations

from unittest import mock

import torch
from cluster_methods import Iterate, Method, Work, alone, iteration, sgd

import casync.torch as casync
from casync import plan
from casync.plan import Entry, Plan

CODEC, TOPOLOGY = "onebit", "ps"


def uncompressed(work: Work) -> Iterate:
    """Everything exact, through the ring, handed over as it is made."""
    return _distributed(work, None, None)


def one_by_one(work: Work) -> Iterate:
    """A synchronizer for each gradient, which is waited for before the next one begins."""
    from casync.rules import Codecs
    from casync.torch.gradients import Settings, synchronizer_of
    from casync.torch.job import current
    from casync.torch.places import CPU

    parameters = [(name, p) for name, p in work.model.named_parameters() if p.numel()]
    synchronizers = [
        synchronizer_of(
            current(),
            {name: p},
            Settings(
                Codecs.of(CODEC, ()), TOPOLOGY, plan=Plan((Entry(name, compressed=True, partitions=1),))
            ),
            CPU,
            maker=work,
        )
        for name, p in parameters
    ]
    optimizer = sgd(work.model)

    def iterate() -> None:
        optimizer.zero_grad()
        work.loss(work.model).backward()  # type: ignore[no-untyped-call]
        for (name, p), synchronizer in zip(reversed(parameters), reversed(synchronizers), strict=True):
            assert p.grad is not None
            synchronizer.submit(name, p.grad.view(-1).numpy())
            synchronizer.synchronize()
        optimizer.step()

    return iterate


def pipelined(work: Work) -> Iterate:
    """Every gradient compressed, in one part and without buckets, by the hooks."""
    entries = tuple(Entry(name, compressed=True, partitions=1) for name, _ in work.model.named_parameters())
    with mock.patch.object(plan, "PART", 0):
        return _distributed(work, CODEC, Plan(entries))


def batched(work: Work) -> Iterate:
    """Gradients of two or more dimensions compressed, in one part; small ones of both kinds in buckets."""
    entries = tuple(
        Entry(name, compressed=p.dim() >= 2, partitions=1) for name, p in work.model.named_parameters()
    )
    return _distributed(work, CODEC, Plan(entries))


def partitioned(work: Work) -> Iterate:
    """The default plan."""
    return _distributed(work, CODEC, None)


def planned(work: Work) -> Iterate:
    """SeCoPa's plan."""
    assert work.plan is not None
    return _distributed(work, CODEC, Plan.load(work.plan))


def _distributed(work: Work, codec: str | None, chosen: Plan | None) -> Iterate:
    optimizer: torch.optim.Optimizer = casync.DistributedOptimizer(
        sgd(work.model), work.model.named_parameters(), codec=codec, topology=TOPOLOGY, plan=chosen
    )
    return iteration(work.model, work.loss, optimizer)


ABLATION = (
    Method("compute alone", "none", alone),
    Method("uncompressed", "casync", uncompressed),
    Method("compression alone", "casync", one_by_one),
    Method("+ pipelining", "casync", pipelined),
    Method("+ batching", "casync", batched),
    Method("+ partitions", "casync", partitioned),
    Method("+ plan", "casync", planned),
)
