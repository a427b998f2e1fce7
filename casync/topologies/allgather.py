"""Allgather: every rank sends its payload to all, and each decodes and adds all payloads in rank order.

    three ranks, one partition (E encode, M merge, D the sum becomes the result, > send):

    rank 0   [1] E  [2] > >  [3] M0 M1 M2  [4] D
    rank 1   [1] E  [2] > >  [3] M0 M1 M2  [4] D
    rank 2   [1] E  [2] > >  [3] M0 M1 M2  [4] D

One encode in all lies on each value's way, and no rank has a part of its own: each has the same payloads, its
own one included, and so the same sum. N (N - 1) messages a partition: for payloads that are small and would
lose if they were selected from again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casync.primitives import MESSAGES, Builder, Role, Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casync.topologies import Nodes


def schedule(nranks: int, owners: Sequence[int], _nodes: Nodes = ()) -> Schedule:
    """The schedule of `len(owners)` partitions; who owns them makes no difference."""
    tasks = Builder(nranks)
    for p, _ in enumerate(owners):
        payloads = [tasks.encode(rank, p, Role.WORKER) for rank in range(nranks)]  # [1]
        arrived = {(rank, rank): payload for rank, payload in enumerate(payloads)}
        for distance in range(1, nranks):  # each rank to its next first: no receiver is everyone's first
            for source in range(nranks):
                target = (source + distance) % nranks
                _, arrived[source, target] = tasks.message(  # [2]
                    source, target, p, payloads[source], MESSAGES * p
                )
        for rank in range(nranks):
            merged = None
            for source in range(nranks):
                merged = tasks.merge(rank, p, arrived[source, rank], previous=merged)  # [3]
            assert merged is not None
            tasks.decode_sum(rank, p, merged)  # [4]
    return tasks.schedule()


def owner(partition: int, nranks: int) -> int:
    """The owner of a lone gradient's partition, for the plan's balance alone."""
    return partition % nranks
