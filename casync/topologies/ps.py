"""Parameter server, co-located: each partition has an owner among the ranks, which merges and broadcasts it.

    three ranks, a partition that rank 1 owns (E encode, M merge, D decode, > send):

    rank 0   [1] E ------>                              [5] D
    rank 1                 [2] M0  M1*  M2   [3] E  [4] > >  [5] D       * its own gradient, exactly
    rank 2   [1] E ------>                              [5] D

Two encodes lie on each value's way, whatever the number of ranks: one at the worker, one at the owner.

Where the codec keeps more than a residual (`through`), the owner's gradient goes through it as well: a
velocity means the same in every term of a sum, or nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casync.primitives import MESSAGES, Builder, Role, Schedule

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from casync.topologies import Nodes


def schedule(
    nranks: int, owners: Sequence[int], _nodes: Nodes = (), through: Collection[int] = ()
) -> Schedule:
    """The schedule of `len(owners)` partitions, partition p being merged by rank `owners[p]`."""
    tasks = Builder(nranks)
    for p, owner in enumerate(owners):
        up, down = MESSAGES * p, MESSAGES * p + 1
        merged = None
        for rank in range(nranks):  # rank order, whatever the order of arrival: sums are reproducible
            payload = None
            if rank != owner or p in through:
                payload = tasks.encode(rank, p, Role.WORKER)  # [1]
                if rank != owner:
                    _, payload = tasks.message(rank, owner, p, payload, up)
            merged = tasks.merge(owner, p, payload, previous=merged, residual=payload is None)  # [2]
        final = tasks.encode(owner, p, Role.OWNER, of_sum=merged, final=True)  # [3]
        tasks.broadcast(owner, p, final, down)  # [4], [5]
    return tasks.schedule()


def owner(partition: int, nranks: int) -> int:
    """The owner of a lone gradient's partition: the ranks in turn."""
    return partition % nranks
