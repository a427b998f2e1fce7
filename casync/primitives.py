"""The tasks of gradient synchronization, five and an engine's all-reduce, and schedules as data.

A schedule is one tuple of tasks a rank. A task names the tasks of its own rank that must be done before it
(`after`) and, where it reads a payload, the `Encode` or `Recv` that made it. `casync.verify` executes a
schedule symbolically, `casync.executor` with real gradients; neither knows which topology drew it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence


class Role(IntEnum):
    """Whose codec state an `Encode` uses; the numbers enter the seeds (LANGUAGE: seeds)."""

    WORKER = 0
    OWNER = 1
    HOP = 2


@dataclass(frozen=True, slots=True)
class Encode:
    """Make a payload: of the gradient, of the sum (`of_sum`), or of the gradient plus a received payload.

    The last form (`received`, the id of a `Recv`) is the fused hop of a ring: decode, add and encode in one.
    `final`: this is the payload that every rank applies; an average is scaled here, once.
    `exact`: plain float32 instead of the codec's payload; neither state nor noise.
    `direct`: the sum is one of payloads' own values, which are rounded to their types; no state, no noise.
    `down`: it is the payload of a whole sum, which may have a codec of its own.
    """

    id: int
    partition: int
    after: tuple[int, ...]
    role: Role
    hop: int = 0
    of_sum: bool = False
    received: int | None = None
    final: bool = False
    exact: bool = False
    direct: bool = False

    @property
    def down(self) -> bool:
        """Whether this is the payload of a whole sum."""
        return self.of_sum and self.final and not (self.exact or self.direct)


@dataclass(frozen=True, slots=True)
class Decode:
    """Write the result over the gradient: the decoded payload, or the sum that was merged here.

    The latter (`payload` is None) is for ranks that all merge the same payloads; an average is scaled here.
    """

    id: int
    partition: int
    after: tuple[int, ...]
    payload: int | None


@dataclass(frozen=True, slots=True)
class Merge:
    """Add one term to the sum: a payload, or the own gradient exactly (`payload` is None).

    `residual`: with the own gradient goes what this rank's worker role had left, which becomes 0.
    `direct`: the payload's own values are added, without decoding them.
    """

    id: int
    partition: int
    after: tuple[int, ...]
    payload: int | None
    residual: bool = False
    direct: bool = False


@dataclass(frozen=True, slots=True)
class Send:
    """Send a payload unchanged; done as soon as the transport has taken it."""

    id: int
    partition: int
    after: tuple[int, ...]
    payload: int
    peer: int
    message: int


@dataclass(frozen=True, slots=True)
class Recv:
    """Wait for the payload with this message number from `peer`; `exact`, `down` as it was encoded.

    `order`: its place among the messages of all ranks; what it depends on comes before it.
    """

    id: int
    partition: int
    after: tuple[int, ...]
    peer: int
    message: int
    exact: bool = False
    down: bool = False
    order: int = 0


@dataclass(frozen=True, slots=True)
class Reduce:
    """Make the sum of all ranks' gradients by an engine's all-reduce (`casync.engines`), as float32.

    All ranks have the same ones; they are issued in the schedule's order, whatever becomes ready first, and
    wait for nothing but the gradients.
    """

    id: int
    partition: int
    after: tuple[int, ...] = ()


MESSAGES = 2
"""Message numbers a partition, to its owner and back; between two ranks a number stands for one message."""

Task: TypeAlias = Encode | Decode | Merge | Send | Recv | Reduce
Schedule: TypeAlias = tuple[tuple[Task, ...], ...]


class Builder:
    """Collects the tasks of all ranks while a topology draws its schedule; methods return the task's id."""

    def __init__(self, nranks: int) -> None:
        self._tasks: list[list[Task]] = [[] for _ in range(nranks)]
        self._messages = 0

    def _add(self, rank: int, task: Task) -> int:
        self._tasks[rank].append(task)
        return task.id

    def encode(
        self,
        rank: int,
        partition: int,
        role: Role,
        *,
        hop: int = 0,
        of_sum: int | None = None,
        received: int | None = None,
        final: bool = False,
        exact: bool = False,
        direct: bool = False,
    ) -> int:
        """Encode the gradient; the sum that the merge `of_sum` completed; or the gradient plus `received`."""
        after = tuple(task for task in (of_sum, received) if task is not None)
        has_sum = of_sum is not None
        return self._add(
            rank,
            Encode(self._next(rank), partition, after, role, hop, has_sum, received, final, exact, direct),
        )

    def decode(self, rank: int, partition: int, payload: int, *, after: Sequence[int] = ()) -> int:
        """Decode a payload into the result; `after` puts it behind sends that others wait for."""
        return self._add(rank, Decode(self._next(rank), partition, (payload, *after), payload))

    def decode_sum(self, rank: int, partition: int, merged: int) -> int:
        """Make the sum that the merge `merged` completed the result."""
        return self._add(rank, Decode(self._next(rank), partition, (merged,), None))

    def merge(
        self,
        rank: int,
        partition: int,
        payload: int | None,
        *,
        previous: int | None,
        residual: bool = False,
        direct: bool = False,
    ) -> int:
        """Merge one term behind the merge `previous`; the first one (None) stores instead of adding.

        If `previous` is an encode that took a sum, this begins another one.
        """
        after = tuple(dict.fromkeys(task for task in (payload, previous) if task is not None))
        return self._add(rank, Merge(self._next(rank), partition, after, payload, residual, direct))

    def reduce(self, partition: int) -> None:
        """All ranks make the sum by an engine's all-reduce, and take it for the result."""
        for rank in range(len(self._tasks)):
            reduced = self._add(rank, Reduce(self._next(rank), partition))
            self.decode_sum(rank, partition, reduced)

    def message(
        self, source: int, target: int, partition: int, payload: int, message: int
    ) -> tuple[int, int]:
        """Send a payload of `source` to `target`: returns the ids of the send and of its receive."""
        made = self._tasks[source][payload]
        assert isinstance(made, Encode | Recv), "only these make a payload"
        send = self._add(source, Send(self._next(source), partition, (payload,), payload, target, message))
        order, self._messages = self._messages, self._messages + 1
        received = Recv(self._next(target), partition, (), source, message, made.exact, made.down, order)
        return send, self._add(target, received)

    def broadcast(self, owner: int, partition: int, payload: int, message: int) -> None:
        """Send the owner's payload to all others; all decode these bytes, the owner behind its sends."""
        sent = []
        for rank in range(len(self._tasks)):
            if rank != owner:
                send, received = self.message(owner, rank, partition, payload, message)
                sent.append(send)
                self.decode(rank, partition, received)
        self.decode(owner, partition, payload, after=sent)

    def _next(self, rank: int) -> int:
        return len(self._tasks[rank])

    def schedule(self) -> Schedule:
        """The finished schedule."""
        return tuple(tuple(tasks) for tasks in self._tasks)


def join(first: Schedule, second: Schedule, partitions: int) -> Schedule:
    """One schedule of two: the second's partitions follow the first's `partitions`, two messages a partition.

    So that compressed and uncompressed gradients, in different topologies, run through one executor.
    """

    messages = sum(isinstance(task, Recv) for tasks in first for task in tasks)

    def shifted(task: Task, ids: int) -> Task:
        moved = replace(
            task,
            id=task.id + ids,
            partition=task.partition + partitions,
            after=tuple(i + ids for i in task.after),
        )
        match moved:
            case Encode(received=int(received)):
                return replace(moved, received=received + ids)
            case Decode(payload=int(payload)) | Merge(payload=int(payload)):
                return replace(moved, payload=payload + ids)
            case Send(payload=payload, message=message):
                return replace(moved, payload=payload + ids, message=message + MESSAGES * partitions)
            case Recv(message=message, order=order):
                return replace(moved, message=message + MESSAGES * partitions, order=order + messages)
            case _:
                return moved

    return tuple(a + tuple(shifted(task, len(a)) for task in b) for a, b in zip(first, second, strict=True))
