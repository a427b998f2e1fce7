"""What a rank did, event by event, as a file that chrome://tracing and Perfetto open.

A synchronizer has three lanes: the training thread (until the first gradient is handed over, the backward
pass from there on, the wait), the compute thread (encode, hop, merge, decode), and messages, with the
all-reduces of an engine among them. Times of all ranks are on one clock (`casync.clock`). Only the first
steps are written down, and of these at most MOST_EVENTS events.
"""

from __future__ import annotations

import json
import socket
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from casync.clock import Clock, align
from casync.control import name_ranks
from casync.primitives import Encode

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from casync.control import Control
    from casync.primitives import Recv, Send, Task

    Event: TypeAlias = tuple[str, int, str, float, float, dict[str, int]]
    """Kind, step, gradient, begin and end by `time.perf_counter`, and what else there is to say."""

MOST_EVENTS = 200_000
"""Events that a lane keeps: some 80 MB while the job runs, 40 MB as a file."""

TRAINING, COMPUTE, MESSAGES = range(3)
LANES = ("training", "compute", "messages")
BEFORE, BACKWARD, WAIT, SEND, RECEIVE = "before backward", "backward", "wait", "send", "receive"
_PLACE = {BEFORE: TRAINING, BACKWARD: TRAINING, WAIT: TRAINING}
_PLACE |= {SEND: MESSAGES, RECEIVE: MESSAGES, "reduce": MESSAGES}


class Lane:
    """The events of one synchronizer. Its training thread and its compute thread write.

    name: the same on all of its ranks, "" for the first one of the whole job. ranks: by the job's numbers.
    """

    def __init__(self, steps: int, name: str, ranks: Sequence[int]) -> None:
        self.name, self._ranks = name, ranks
        self.events: list[Event] = []
        self.cut = False  # MOST_EVENTS were not enough
        self._steps = steps
        self._first: int | None = None
        self._free = time.perf_counter()  # when the training thread could go on
        self._waiting: tuple[int, float] | None = None

    def _keeps(self, step: int) -> bool:
        if self._first is None:
            self._first = step
        if step - self._first >= self._steps:
            return False
        self.cut = self.cut or len(self.events) >= MOST_EVENTS
        return not self.cut

    def closed(self, step: int, begun: float, now: float) -> None:
        """The training thread handed its first gradient over at `begun`, and waits since `now`."""
        if self._keeps(step):
            self.events.append((BEFORE, step, "", self._free, begun, {}))
            self.events.append((BACKWARD, step, "", begun, now, {}))
            self._waiting = (step, now)

    def finished(self, step: int, since: float, end: float) -> None:
        """The training thread waited from `since` to `end`."""
        self._free, self._waiting = end, None
        if self._keeps(step):
            self.events.append((WAIT, step, "", since, end, {}))

    def ran(self, step: int, task: Task, gradient: str, begin: float, end: float) -> None:
        """A computing task, or an all-reduce, ran."""
        if self._keeps(step):
            hop = isinstance(task, Encode) and task.received is not None
            kind = "hop" if hop else type(task).__name__.lower()
            self.events.append((kind, step, gradient, begin, end, {"partition": task.partition}))

    def sent(self, step: int, task: Send, gradient: str, nbytes: int) -> None:
        """A message leaves."""
        self._message(SEND, step, task, gradient, nbytes)

    def received(self, step: int, task: Recv, gradient: str, nbytes: int) -> None:
        """A message is taken from the queue."""
        self._message(RECEIVE, step, task, gradient, nbytes)

    def _message(self, kind: str, step: int, task: Send | Recv, gradient: str, nbytes: int) -> None:
        if self._keeps(step):
            now = time.perf_counter()
            about = {"peer": self._ranks[task.peer], "message": task.message, "bytes": nbytes}
            self.events.append((kind, step, gradient, now, now, about))

    def all(self) -> Iterator[Event]:
        """All events, and the wait that has not ended if the job failed in it."""
        yield from list(self.events)
        if self._waiting is not None:
            step, since = self._waiting
            yield WAIT, step, "", since, time.perf_counter(), {"unfinished": 1}


class Trace:
    """One rank's part in the trace of a job: `folder`/rank-R.json, written once, when the run ends."""

    def __init__(self, folder: Path, steps: int, rank: int, size: int, clock: Clock) -> None:
        self._folder, self._steps = folder, steps
        self._rank, self._size, self._clock = rank, size, clock
        self._lanes: list[Lane] = []
        self._made: Counter[tuple[int, ...]] = Counter()

    @classmethod
    def start(cls, folder: str | Path, steps: int, control: Control) -> Trace:
        """Collective: compare clocks with the other ranks. `steps`: how many of each optimizer to keep."""
        return cls(Path(folder), steps, control.rank, control.size, align(control))

    def lane(self, group: tuple[int, ...] = ()) -> Lane:
        """The lane of one more synchronizer of these ranks; none: of the whole job's."""
        number = self._made[group]
        self._made[group] += 1
        words = [f"optimizer {number}"] * bool(number) + [name_ranks(group)] * bool(group)
        self._lanes.append(Lane(self._steps, " of ".join(words), group or range(self._size)))
        return self._lanes[-1]

    def write(self) -> Path:
        """Write the file, whole or not at all; returns its path. Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"rank-{self._rank}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self.content()), encoding="utf-8")
        return partial.replace(path)

    def content(self) -> dict[str, Any]:
        """The file's content: the JSON object format of Chrome's trace events, times in microseconds."""
        return {
            "traceEvents": [*self._names(), *self._events()],
            "displayTimeUnit": "ms",
            "otherData": {
                "rank": self._rank,
                "ranks": self._size,
                "clock": "rank 0's wall clock",
                "clock was ahead, us": 1e6 * self._clock.ahead,
                "clock may be off, us": 1e6 * self._clock.uncertainty,
                "lanes": [lane.name for lane in self._lanes],
                "cut off": any(lane.cut for lane in self._lanes),
            },
        }

    def _names(self) -> Iterator[dict[str, Any]]:
        def name(what: str, text: str, tid: int = 0) -> dict[str, Any]:
            return {"name": what, "ph": "M", "pid": self._rank, "tid": tid, "args": {"name": text}}

        yield name("process_name", f"rank {self._rank} ({socket.gethostname()})")
        for number, lane in enumerate(self._lanes):
            of = f" of {lane.name}" if lane.name else ""
            for place, what in enumerate(LANES):
                yield name("thread_name", what + of, len(LANES) * number + place)

    def _events(self) -> Iterator[dict[str, Any]]:
        for number, lane in enumerate(self._lanes):
            for kind, step, gradient, begin, end, about in lane.all():
                event = {
                    "name": f"{kind} {gradient}".strip(),
                    "cat": kind,
                    "ts": round(1e6 * (begin + self._clock.offset), 3),
                    "pid": self._rank,
                    "tid": len(LANES) * number + _PLACE.get(kind, COMPUTE),
                    "args": {"step": step, **({"gradient": gradient} if gradient else {}), **about},
                }
                if kind in (SEND, RECEIVE):
                    yield event | {"ph": "i", "s": "t"}
                else:
                    yield event | {"ph": "X", "dur": round(1e6 * (end - begin), 3)}
