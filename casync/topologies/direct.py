"""Direct sum, for codecs whose payloads sum: the owner adds the payloads themselves and decodes nothing.

    three ranks, a partition that rank 1 owns (E encode, S add a payload's values, R round the sum, D decode):

    rank 0   [1] E ------>                              [5] D
    rank 1   [1] E         [2] S0  S1  S2  [3] R  [4] > >  [5] D
    rank 2   [1] E ------>                              [5] D

The values are added in float32 and rounded to their types once: a cast rounds twice on the whole way, and a
random-k with a shared seed loses nothing but what it did not draw. A merge costs as much as a payload has
values, not as much as the gradient has.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casync.primitives import MESSAGES, Builder, Role, Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casync.topologies import Nodes


def schedule(nranks: int, owners: Sequence[int], _nodes: Nodes = ()) -> Schedule:
    """The schedule of `len(owners)` partitions, partition p being summed by rank `owners[p]`."""
    tasks = Builder(nranks)
    for p, owner in enumerate(owners):
        up, down = MESSAGES * p, MESSAGES * p + 1
        merged = None
        for rank in range(nranks):
            payload = tasks.encode(rank, p, Role.WORKER)  # [1]
            if rank != owner:
                _, payload = tasks.message(rank, owner, p, payload, up)
            merged = tasks.merge(owner, p, payload, previous=merged, direct=True)  # [2]
        final = tasks.encode(owner, p, Role.OWNER, of_sum=merged, final=True, direct=True)  # [3]
        tasks.broadcast(owner, p, final, down)  # [4], [5]
    return tasks.schedule()


def owner(partition: int, nranks: int) -> int:
    """The owner of a lone gradient's partition: the ranks in turn."""
    return partition % nranks
