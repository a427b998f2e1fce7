"""Codec state (residuals) of one rank: by gradient, offset and role; old and new side by side.

Encodes read the old state and write the new one. At the end of a step all that was written becomes current at
once, or nothing does: a step with one value that is not finite leaves every residual as it was.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from casync.primitives import Encode, Merge, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from casync.plan import Partition, Segment
    from casync.primitives import Task

    State: TypeAlias = dict[str, NDArray[np.float32]]

SUM, AVERAGE = "sum", "average"
FORMAT = 1


class StateError(ValueError):
    """A saved state that does not belong to this run; says what differs and how to mend it."""


@dataclass(frozen=True, slots=True)
class Site:
    """A place that keeps state: elements of a gradient in one role; `unit` is what its values add up to."""

    gradient: str
    start: int
    stop: int
    role: Role
    unit: str


def sites(tasks: Iterable[Task], partitions: Sequence[Partition], average: bool) -> list[Site]:
    """The sites of one rank: where it encodes, and where an owner merges what its worker role had left."""
    found: dict[tuple[str, int, Role], Site] = {}
    for task in tasks:
        partition = partitions[task.partition]
        if not partition.compressed:
            continue
        match task:
            case Encode(role=role, final=final, exact=False, direct=False):
                unit = AVERAGE if final and average else SUM
            case Merge(residual=True):
                role, unit = Role.WORKER, SUM
            case _:
                continue
        for s in partition.segments:
            found[s.gradient, s.start, role] = Site(s.gradient, s.start, s.stop, role, unit)
    return list(found.values())


class Feedback:
    """The state of all sites of one rank. Not thread-safe: the executor's compute thread owns it."""

    def __init__(
        self, places: Sequence[Site], new_state: Callable[[str, int], State], topology: str, size: int
    ) -> None:
        self._topology, self._size = topology, size
        self._sites = {(site.gradient, site.start, site.role): site for site in places}
        self._current = {key: new_state(s.gradient, s.stop - s.start) for key, s in self._sites.items()}
        self._next = {key: new_state(s.gradient, s.stop - s.start) for key, s in self._sites.items()}
        self._written: set[tuple[str, int, Role]] = set()

    def current(self, segment: Segment, role: Role) -> State:
        """The state to read."""
        return self._current[segment.gradient, segment.start, role]

    def following(self, segment: Segment, role: Role) -> State:
        """The state to write, which is taken by `commit`."""
        key = (segment.gradient, segment.start, role)
        self._written.add(key)
        return self._next[key]

    def places(self) -> Iterator[tuple[Site, State]]:
        """Every site with its current state, to be read, or written between steps."""
        for key, site in self._sites.items():
            yield site, self._current[key]

    def commit(self) -> None:
        """Make what was written current. What was not written stays."""
        for key in self._written:
            self._current[key], self._next[key] = self._next[key], self._current[key]
        self._written.clear()

    def drop(self) -> None:
        """Forget what was written."""
        self._written.clear()

    def state_dict(self) -> dict[str, Any]:
        """All state, bit for bit, each site by name, offset and role with its unit; arrays are copies."""
        return {
            "format": FORMAT,
            "topology": self._topology,
            "size": self._size,
            "entries": [
                {
                    "gradient": site.gradient,
                    "offset": site.start,
                    "role": site.role.name,
                    "unit": site.unit,
                    "values": {name: values.copy() for name, values in self._current[key].items()},
                }
                for key, site in self._sites.items()
            ],
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Take a saved state, cut anew for another plan; StateError, and no change, if that cannot be."""
        for what, here in (("format", FORMAT), ("topology", self._topology), ("size", self._size)):
            if saved[what] != here:
                raise StateError(
                    f"the state was saved with {what} {saved[what]}, this run has {what} {here}; resume with "
                    f"{what} {saved[what]}, or start without the saved residuals"
                )
        pieces: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
        for entry in saved["entries"]:
            pieces[entry["gradient"], entry["role"]].append(entry)
        loaded = {
            key: {
                name: self._assemble(site, name, pieces[site.gradient, site.role.name])
                for name in self._current[key]
            }
            for key, site in self._sites.items()
        }
        for key, state in loaded.items():
            self._current[key] = state
        self._written.clear()

    def _assemble(self, site: Site, name: str, pieces: Sequence[Mapping[str, Any]]) -> NDArray[np.float32]:
        whole = np.empty(site.stop - site.start, np.float32)
        covered = 0
        for piece in pieces:
            values = np.asarray(piece["values"].get(name, ()), np.float32)
            first = max(site.start, piece["offset"])
            last = min(site.stop, piece["offset"] + values.size)
            if first >= last:
                continue
            part = values[first - piece["offset"] : last - piece["offset"]]
            whole[first - site.start : last - site.start] = part * self.factor(piece["unit"], site.unit)
            covered += last - first
        if covered != whole.size:
            raise StateError(
                f"the state `{name}` of {site.gradient}, elements {site.start} to {site.stop}, role "
                f"{site.role.name.lower()}, is not among what this rank saved: the codec, the model or the "
                "plan's owners differ; resume with those it was saved with"
            )
        return whole

    def factor(self, saved: str, here: str) -> np.float32:
        """What a value in one unit is multiplied by to be in another."""
        if saved == here:
            return np.float32(1)
        return np.float32(self._size) if here == SUM else np.float32(1 / self._size)
