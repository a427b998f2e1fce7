"""Topologies: one file each, found by its name.

A topology module has `schedule(nranks, owners) -> Schedule` and `owner(partition, nranks) -> int`, both pure.
"""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casync.primitives import Schedule


class Topology(Protocol):
    """What a module of this package offers."""

    @staticmethod
    def schedule(nranks: int, owners: Sequence[int]) -> Schedule:
        """The schedule of `len(owners)` partitions; `owners[p]` makes the final payload of partition p."""

    @staticmethod
    def owner(partition: int, nranks: int) -> int:
        """The owner of partition p of a gradient that is alone."""


def names() -> tuple[str, ...]:
    """The names of all topologies, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def topology(name: str) -> Topology:
    """The topology of that name (`ps`, `ring`; any case); ValueError if there is none."""
    if name.lower() not in names():
        raise ValueError(f"unknown topology {name!r}: it is one of {', '.join(names())}")
    return cast("Topology", importlib.import_module(f"{__name__}.{name.lower()}"))
