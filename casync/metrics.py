"""What synchronization costs: counted by the executor, read by `stats()` and `report()` of an optimizer."""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from casync.frames import HEADER_BYTES
from casync.plan import label
from casync.primitives import Decode, Encode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from casync.compute import Compute
    from casync.primitives import Recv, Send, Task
    from casync.trace import Lane


@dataclass(frozen=True, slots=True)
class Stats:
    """The totals of one rank since the start, or since an earlier `Stats`. Bytes are headers and bodies."""

    steps: int
    dropped_steps: int  # steps with a value that was not finite
    tasks: int
    messages_sent: int
    messages_received: int
    bytes_sent: int
    bytes_received: int
    raw_bytes_sent: int  # what the messages sent would have taken as float32
    bytes_reduced: int  # that an engine was given to all-reduce; what it sends is its own affair
    encode_seconds: float  # encodes and hops
    decode_seconds: float  # decodes and merges
    wait_seconds: float  # the training thread, until the step's results were there

    @property
    def ratio(self) -> float:
        """How many times fewer bytes were sent than float32 would have taken; 1 if nothing was sent."""
        return self.raw_bytes_sent / self.bytes_sent if self.bytes_sent else 1.0

    @property
    def bytes_sent_per_step(self) -> float:
        """Bytes that this rank sent a step; 0 before the first."""
        return self.bytes_sent / self.steps if self.steps else 0.0

    def since(self, earlier: Stats) -> Stats:
        """What was added after `earlier`."""
        return Stats(*(getattr(self, f.name) - getattr(earlier, f.name) for f in fields(Stats)))


@dataclass(slots=True)
class Cost:
    """What one gradient, or one bucket of small ones, has cost this rank under one codec.

    members: the names of the gradients. elements: of all its partitions. wait_seconds: how long
    `synchronize()` had waited when its last partition was decoded; gradients wait side by side, so these do
    not add up.
    """

    members: tuple[str, ...]
    codec: str
    compressed: bool
    elements: int
    steps: int = 0
    bytes_sent: int = 0
    raw_bytes_sent: int = 0
    encode_seconds: float = 0.0
    decode_seconds: float = 0.0
    wait_seconds: float = 0.0

    @property
    def gradient(self) -> str:
        """The gradients, for people."""
        return label(self.members)

    @property
    def ratio(self) -> float:
        """How many times fewer bytes were sent than float32 would have taken; 1 if nothing was sent."""
        return self.raw_bytes_sent / self.bytes_sent if self.bytes_sent else 1.0


def _together(costs: Iterable[Cost], *, one_after_the_other: bool) -> list[Cost]:
    """One cost a gradient and codec: of its partitions, or of the times in which it had the codec."""
    groups: defaultdict[tuple[tuple[str, ...], str], list[Cost]] = defaultdict(list)
    for cost in costs:
        groups[cost.members, cost.codec].append(cost)
    most = sum if one_after_the_other else max
    last = max if one_after_the_other else sum
    return [
        replace(
            group[0],
            elements=last(cost.elements for cost in group),
            steps=most(cost.steps for cost in group),
            bytes_sent=sum(cost.bytes_sent for cost in group),
            raw_bytes_sent=sum(cost.raw_bytes_sent for cost in group),
            encode_seconds=sum(cost.encode_seconds for cost in group),
            decode_seconds=sum(cost.decode_seconds for cost in group),
            wait_seconds=most(cost.wait_seconds for cost in group),
        )
        for group in groups.values()
    ]


class Meter:
    """Counts one rank's tasks; steps have their numbers since the run began. Any thread may read.

    lane: where the tasks are written down, too, if the job is traced.
    """

    def __init__(self, compute: Compute, lane: Lane | None = None) -> None:
        self.steps = self.dropped_steps = self.tasks = 0
        self.messages_sent = self.messages_received = 0
        self.bytes_sent = self.bytes_received = self.raw_bytes_sent = self.bytes_reduced = 0
        self.encode_seconds = self.decode_seconds = self.wait_seconds = 0.0
        self._lane = lane
        self._begun: float | None = None  # when the first gradient of the coming step was handed over
        self._closed = (-1, 0.0)  # the latest step that is waited for, and since when
        self._rows: list[Cost] = []  # by partition
        self._past: list[Cost] = []  # of earlier layouts
        self.lay_out(compute)

    def lay_out(self, compute: Compute) -> None:
        """From now on the tasks are of these partitions."""
        self._past = self.costs()
        firsts = [partition.segments[0].gradient for partition in compute.partitions]
        self._rows = [
            Cost(p.gradients, compute.codecs[first].info.name, p.compressed, p.elements)
            for p, first in zip(compute.partitions, firsts, strict=True)
        ]

    def submitted(self) -> None:
        """The training thread has handed over a gradient."""
        if self._begun is None:
            self._begun = time.perf_counter()

    def closed(self, step: int) -> None:
        """From now on the training thread waits for this step's results."""
        now = time.perf_counter()
        begun, self._begun = self._begun or now, None
        self._closed = (step, now)
        if self._lane is not None:
            self._lane.closed(step, begun, now)

    def finished(self, step: int, finite: bool) -> None:
        """All tasks of a step are done."""
        end, since = time.perf_counter(), self._closed[1]
        self.steps += 1
        self.dropped_steps += not finite
        self.wait_seconds += end - since
        if self._lane is not None:
            self._lane.finished(step, since, end)

    def ran(self, step: int, task: Task, begin: float) -> None:
        """A computing task that began then has ended now."""
        end = time.perf_counter()
        seconds = end - begin
        row = self._rows[task.partition]
        if isinstance(task, Encode):
            self.encode_seconds += seconds
            row.encode_seconds += seconds
        else:
            self.decode_seconds += seconds
            row.decode_seconds += seconds
            if isinstance(task, Decode):
                row.steps += 1
                closed, since = self._closed
                if closed == step and end > since:
                    row.wait_seconds += end - since
        if self._lane is not None:
            self._lane.ran(step, task, row.gradient, begin, end)

    def sent(self, step: int, task: Send, nbytes: int, raw: int) -> None:
        """A body of so many bytes leaves; as float32 it would have `raw`."""
        row = self._rows[task.partition]
        raw += HEADER_BYTES
        self.messages_sent += 1
        self.bytes_sent += HEADER_BYTES + nbytes
        self.raw_bytes_sent += raw
        row.bytes_sent += HEADER_BYTES + nbytes
        row.raw_bytes_sent += raw
        if self._lane is not None:
            self._lane.sent(step, task, row.gradient, HEADER_BYTES + nbytes)

    def received(self, step: int, task: Recv, nbytes: int) -> None:
        """A body of so many bytes has come."""
        self.messages_received += 1
        self.bytes_received += HEADER_BYTES + nbytes
        if self._lane is not None:
            self._lane.received(step, task, self._rows[task.partition].gradient, HEADER_BYTES + nbytes)

    def reduced(self, step: int, task: Task, begin: float, nbytes: int) -> None:
        """An engine's all-reduce of so many bytes, which began then, has ended now."""
        self.bytes_reduced += nbytes
        if self._lane is not None:
            self._lane.ran(step, task, self._rows[task.partition].gradient, begin, time.perf_counter())

    def stats(self) -> Stats:
        """The totals as they are now."""
        return Stats(*(getattr(self, f.name) for f in fields(Stats)))

    def costs(self) -> list[Cost]:
        """What each gradient has cost so far, one entry for each codec that it had."""
        now = _together(self._rows, one_after_the_other=False)
        return _together([*self._past, *now], one_after_the_other=True)
