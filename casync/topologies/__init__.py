"""Topologies: one file each, found by its name.

A topology module has two pure functions: `schedule(nranks, owners, nodes) -> Schedule` and
`owner(partition, nranks) -> int`. One that encodes sums takes a fourth argument, `through`: the partitions in
which every rank's gradient must pass the codec, its own owner's too.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Protocol, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from casync.primitives import Schedule

Nodes: TypeAlias = tuple[tuple[int, ...], ...]
"""The ranks of each node, of one host or given: ascending in a node, and nodes by their first ranks."""


class Topology(Protocol):
    """What a module of this package offers."""

    @staticmethod
    def schedule(
        nranks: int, owners: Sequence[int], nodes: Nodes, through: Collection[int] = (), /
    ) -> Schedule:
        """The schedule of `len(owners)` partitions; `owners[p]` makes the final payload of partition p."""

    @staticmethod
    def owner(partition: int, nranks: int) -> int:
        """The owner of partition p of a gradient that is alone."""


def names() -> tuple[str, ...]:
    """The names of all topologies, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def topology(name: str) -> Topology:
    """The topology of that name (`ps`, `ring`, ...; any case); ValueError if there is none."""
    if name.lower() not in names():
        raise ValueError(f"unknown topology {name!r}: it is one of {', '.join(names())}")
    return cast("Topology", importlib.import_module(f"{__name__}.{name.lower()}"))


def even_nodes(nranks: int, size: int = 1) -> Nodes:
    """Nodes of `size` ranks that follow each other; the last one has what is left."""
    return tuple(tuple(range(first, min(first + size, nranks))) for first in range(0, nranks, size))


def check_nodes(nodes: Nodes, nranks: int) -> Nodes:
    """Return the nodes in order; ValueError unless each rank is in exactly one of them."""
    ordered = tuple(sorted(tuple(sorted(node)) for node in nodes if node))
    if sorted(rank for node in ordered for rank in node) != list(range(nranks)):
        raise ValueError(
            f"nodes {[list(node) for node in nodes]}: each of the ranks 0 to {nranks - 1} must be in one"
        )
    return ordered
