"""Codec state (residuals) of one rank: by gradient, offset and role; old and new side by side.

Encodes read the old state and write the new one. At the end of a step all that was written becomes current at
once, or nothing does: a step with one value that is not finite leaves every residual as it was.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from casync.memory import Host
from casync.primitives import Encode, Merge, Role

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from casync.codecs import BatchCodec
    from casync.memory import Memory
    from casync.plan import Partition, Segment
    from casync.primitives import Task

    State: TypeAlias = dict[str, NDArray[np.float32]]

SUM, AVERAGE = "sum", "average"
RESIDUAL = "residual"
"""What `compll.compile(..., error_feedback=True)` calls the residual that it adds."""


@dataclass(frozen=True, slots=True)
class Site:
    """A place that keeps state: elements of a gradient in one role; `unit` is what its values add up to.

    down: it is the encode of the whole sum, by the run's `down` codec if there is one.
    """

    gradient: str
    start: int
    stop: int
    role: Role
    unit: str
    down: bool = False


@dataclass(frozen=True, slots=True)
class Held:
    """What is kept of the elements from `offset` on, by name.

    residual: the name of the vector that holds what has not been applied yet, None if none does.
    """

    gradient: str
    offset: int
    role: Role
    unit: str
    values: State
    residual: str | None

    @property
    def stop(self) -> int:
        """The element behind the last one."""
        return self.offset + next((vector.size for vector in self.values.values()), 0)


def sites(tasks: Iterable[Task], partitions: Sequence[Partition], average: bool) -> list[Site]:
    """The sites of one rank: where it encodes, and where an owner merges what its worker role had left."""
    found: dict[tuple[str, int, Role], Site] = {}
    for task in tasks:
        partition = partitions[task.partition]
        if not partition.compressed:
            continue
        match task:
            case Encode(role=role, final=final, exact=False, direct=False, down=down):
                unit = AVERAGE if final and average else SUM
            case Merge(residual=True):
                role, unit, down = Role.WORKER, SUM, False
            case _:
                continue
        for s in partition.segments:
            found[s.gradient, s.start, role] = Site(s.gradient, s.start, s.stop, role, unit, down)
    return list(found.values())


def residual_of(codec: BatchCodec) -> str | None:
    """Which of the codec's state vectors holds what its payloads have lost, None if none does."""
    names = list(codec.new_state(1)) if codec.info.feedback else []
    return names[0] if len(names) == 1 else RESIDUAL if RESIDUAL in names else None


def keeps_more(codec: BatchCodec) -> bool:
    """Whether the codec keeps state besides a residual: it means something for the terms of a sum only."""
    return codec.info.stateful and not (codec.info.feedback and len(codec.new_state(1)) == 1)


def factor(unit: str, other: str, size: int) -> np.float32:
    """What a value in one unit is multiplied by to be in another, on `size` ranks."""
    if unit == other:
        return np.float32(1)
    return np.float32(size) if other == SUM else np.float32(1 / size)


class Feedback:
    """The state of all sites of one rank, zero at first. Not thread-safe: the compute thread owns it."""

    def __init__(
        self,
        places: Iterable[Site],
        codec_of: Callable[[Site], BatchCodec],
        memory: Memory | None = None,
    ) -> None:
        """memory: where the state lies; default: host memory."""
        kept = [(site, codec_of(site)) for site in places]
        self._memory: Memory = memory or Host()
        self._sites = {
            (s.gradient, s.start, s.role): (s, residual_of(codec)) for s, codec in kept if codec.info.stateful
        }
        self._current = {
            (s.gradient, s.start, s.role): self._memory.new_state(codec, s.stop - s.start)
            for s, codec in kept
            if codec.info.stateful
        }
        self._next: dict[tuple[str, int, Role], State] = {}  # made when it is first written
        self._written: set[tuple[str, int, Role]] = set()
        self._rows: dict[tuple[str, int, Role], tuple[NDArray[np.int64], State]] = {}

    def current(self, segment: Segment, role: Role) -> State:
        """The state to read."""
        return self._current[segment.gradient, segment.start, role]

    def following(self, segment: Segment, role: Role) -> State:
        """The state to write, which is taken by `commit`."""
        key = (segment.gradient, segment.start, role)
        self._written.add(key)
        if key not in self._next:
            self._next[key] = {
                name: self._memory.empty(values.size) for name, values in self._current[key].items()
            }
        return self._next[key]

    def rows(self, segment: Segment, role: Role, indices: NDArray[np.int64], width: int) -> State:
        """The state of some rows of `width` elements, copied to be read and written; taken by `commit`."""
        key = (segment.gradient, segment.start, role)
        held = {
            name: values.reshape(-1, width)[indices].reshape(-1)
            for name, values in self._current[key].items()
        }
        self._rows[key] = indices, held
        return held

    def held(self) -> Iterator[Held]:
        """The current state of every site, in host memory: if it lies there, itself, not a copy."""
        for key, (site, residual) in self._sites.items():
            values = {name: self._memory.to_host(vector) for name, vector in self._current[key].items()}
            yield Held(site.gradient, site.start, site.role, site.unit, values, residual)

    def put(self, state: Iterable[Held]) -> None:
        """Take what was written to what `held` gave, between steps."""
        for held in state:
            key = (held.gradient, held.offset, held.role)
            self._current[key] = {name: self._memory.upload(v) for name, v in held.values.items()}

    def commit(self) -> None:
        """Make what was written current. What was not written stays."""
        for key in self._written:
            self._current[key], self._next[key] = self._next[key], self._current[key]
        self._written.clear()
        for key, (indices, held) in self._rows.items():
            for name, values in held.items():
                rows = values.reshape(indices.size, -1)
                self._current[key][name].reshape(-1, rows.shape[1])[indices] = rows
        self._rows.clear()

    def drop(self) -> None:
        """Forget what was written."""
        self._written.clear()
        self._rows.clear()
