"""Hierarchical: exact sums inside a node, compressed ones between nodes; a `ps` of the nodes' leaders.

    nodes {0, 1} and {2, 3}, a partition that rank 0 owns
    (P plain float32, M merge, E encode, D decode, > send):

    rank 0         [2] M0 M1             M  [4] E  [5] > >  [6] D
    rank 1   [1] P ->                                       [6] D
    rank 2         [2] M2 M3  [3] E ---->             [5] > [6] D
    rank 3   [1] P ->                                       [6] D

A partition's leader in a node stands where its owner stands in the owner's node, so that the ranks of a node
lead in turn. Two encodes lie on each value's way at most. Between nodes travels what `ps` would send with a
rank a node. What is final travels unchanged inside nodes too, for every rank must decode the same bytes.

Where the codec keeps more than a residual (`through`), the sum of the owner's node goes through it as well: a
velocity means the same in every term of a sum, or nothing.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from casync.primitives import MESSAGES, Builder, Role, Schedule

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from casync.topologies import Nodes


def schedule(nranks: int, owners: Sequence[int], nodes: Nodes, through: Collection[int] = ()) -> Schedule:
    """The schedule of `len(owners)` partitions; `owners[p]` leads its node and merges all."""
    tasks = Builder(nranks)
    for p, owner in enumerate(owners):
        up, down = MESSAGES * p, MESSAGES * p + 1
        place = next(node.index(owner) for node in nodes if owner in node)
        leaders = [node[place % len(node)] for node in nodes]
        merged = own = None
        if p in through:  # before all others, for a rank has one sum of a partition at a time
            home = nodes[leaders.index(owner)]
            merged = own = tasks.encode(
                owner, p, Role.WORKER, of_sum=_sum_of_node(tasks, p, owner, home, None)
            )
        for leader, node in zip(leaders, nodes, strict=True):
            if leader != owner:
                of_node = _sum_of_node(tasks, p, leader, node, None)  # [1], [2]
                payload = tasks.encode(leader, p, Role.WORKER, of_sum=of_node)  # [3]
                _, received = tasks.message(leader, owner, p, payload, up)
                merged = tasks.merge(owner, p, received, previous=merged)
            elif own is not None:
                merged = tasks.merge(owner, p, own, previous=merged)
            else:
                merged = _sum_of_node(tasks, p, owner, node, merged, residual=True)
        final = tasks.encode(owner, p, Role.OWNER, of_sum=merged, final=True)  # [4]
        payloads, sent = {owner: final}, defaultdict[int, list[int]](list)
        ways = [(owner, leader) for leader in leaders if leader != owner]  # [5] first what goes far
        ways += [(a, rank) for a, node in zip(leaders, nodes, strict=True) for rank in node if rank != a]
        for source, target in ways:
            send, payloads[target] = tasks.message(source, target, p, payloads[source], down)
            sent[source].append(send)
        for rank, payload in payloads.items():
            tasks.decode(rank, p, payload, after=sent[rank])  # [6]
    return tasks.schedule()


def _sum_of_node(
    tasks: Builder, p: int, leader: int, node: Sequence[int], merged: int | None, *, residual: bool = False
) -> int:
    """Merge a node's gradients at its leader, behind `merged`. residual: with what the leader had left."""
    for rank in node:
        received = None
        if rank != leader:
            plain = tasks.encode(rank, p, Role.WORKER, exact=True)
            _, received = tasks.message(rank, leader, p, plain, MESSAGES * p)
        merged = tasks.merge(leader, p, received, previous=merged, residual=residual and rank == leader)
    assert merged is not None, "no node is empty"
    return merged


def owner(partition: int, nranks: int) -> int:
    """The owner of a lone gradient's partition: the ranks in turn."""
    return partition % nranks
