"""Ring: a partition travels once round to be merged, then once round, unchanged, to be applied.

    three ranks, partition 0, which starts at rank 0 and is owned by rank 2
    (E encode, H hop = decode + add + encode, D decode, > send):

    rank 0   [1] E >                        [3] > D
    rank 1          [2] H >                        [3] D
    rank 2                 [2] H*  [3] > D                      * the last hop; an average is scaled here

A partition costs 2 (N - 1) messages, N encodes and 2 N - 1 decodes.
Forwarding ranks send first, decode after.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casync.primitives import MESSAGES, Builder, Role, Schedule

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casync.topologies import Nodes


def schedule(nranks: int, owners: Sequence[int], _nodes: Nodes = ()) -> Schedule:
    """The schedule of `len(owners)` partitions; partition p starts behind `owners[p]` and ends there."""
    tasks = Builder(nranks)
    for p, last in enumerate(owners):
        first_way, second_way = MESSAGES * p, MESSAGES * p + 1
        received = None
        for hop in range(nranks):
            rank = (last + 1 + hop) % nranks
            payload = tasks.encode(
                rank, p, Role.HOP, hop=hop, received=received, final=rank == last
            )  # [1] [2]
            if rank != last:
                _, received = tasks.message(rank, (rank + 1) % nranks, p, payload, first_way)
        for forward in range(nranks):  # [3]
            rank = (last + forward) % nranks
            sent = []
            arrived = payload
            if forward < nranks - 1:
                send, payload = tasks.message(rank, (rank + 1) % nranks, p, arrived, second_way)
                sent.append(send)
            tasks.decode(rank, p, arrived, after=sent)
    return tasks.schedule()


def owner(partition: int, nranks: int) -> int:
    """The owner of a lone gradient's partition: it starts at rank p mod N, so it ends one rank before."""
    return (partition - 1) % nranks
