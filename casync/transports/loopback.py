"""A network inside one process, for tests and benchmarks: ranks are threads.

Bodies are copied, as a real network would. Perturbations are drawn from `seed`, message by message.
"""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from casync.buffers import Pool
from casync.control import MismatchError, RankFailure, Wait, differences
from casync.detect import Beat, suspect
from casync.transports.base import body_bytes

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casync.frames import Header
    from casync.transports.base import Body, Receive


@dataclass(frozen=True)
class Faults:
    """What the network does to messages: the most seconds of delay, and how probable each fault is.

    cut: two ranks, and the step from which on what they send each other is lost.
    """

    delay: float = 0.0
    reorder: bool = False
    drop: float = 0.0
    corrupt: float = 0.0
    cut: tuple[int, int, int] | None = None

    def severs(self, one: int, other: int, step: int) -> bool:
        """Whether the link of two ranks is cut."""
        return self.cut is not None and {one, other} == {*self.cut[:2]} and step >= self.cut[2]


class LoopbackNetwork:
    """`size` ranks. `timeout`: seconds until a rank that makes no progress fails the job; None never."""

    def __init__(
        self,
        size: int,
        *,
        delay: float = 0.0,
        reorder: bool = False,
        drop: float = 0.0,
        corrupt: float = 0.0,
        cut: tuple[int, int, int] | None = None,
        seed: int = 0,
        timeout: float | None = None,
    ) -> None:
        self.size = size
        self.faults = Faults(delay, reorder, drop, corrupt, cut)
        self.seed = seed
        self._plane = _Plane(size, timeout)
        self._controls = [LoopbackControl(self._plane, rank) for rank in range(size)]
        self._transports = [LoopbackTransport(self, rank) for rank in range(size)]

    def transport(self, rank: int) -> LoopbackTransport:
        """The transport of one rank."""
        return self._transports[rank]

    def control(self, rank: int) -> LoopbackControl:
        """The control plane as one rank sees it."""
        return self._controls[rank]

    def close(self) -> None:
        """Close all ranks."""
        for transport, control in zip(self._transports, self._controls, strict=True):
            transport.close()
            control.close()


class LoopbackTransport:
    """One rank's end; its I/O thread delivers what others sent when it is due."""

    name = "loopback"
    device = False

    def __init__(self, network: LoopbackNetwork, rank: int) -> None:
        self.rank, self.size = rank, network.size
        self._network = network
        self._receive: Receive | None = None
        self._due: list[tuple[float, int, int, Header, memoryview]] = []
        self._changed = threading.Condition()
        self._closed = False
        self._count = 0
        self._last = [0.0] * network.size  # when the latest message to each peer is due
        self._random = random.Random(f"{network.seed} {rank}")
        self._sending = threading.Lock()
        self.pool = Pool()
        self._thread = threading.Thread(target=self._deliver, name=f"loopback-{rank}", daemon=True)

    def start(self, receive: Receive) -> None:
        """Deliver frames from now on by `receive(peer, header, body)`, in this rank's I/O thread."""
        self._receive = receive
        self._thread.start()

    def send(
        self, peer: int, header: Header, body: Body | None, done: Callable[[], None] | None = None
    ) -> None:
        """Copy one frame to `peer`; `done()` is called before this returns."""
        copy = self._network.transport(peer).pool.lend(header.nbytes)
        copy[:] = body_bytes(header, body)
        faults = self._network.faults
        with self._sending:
            drop, corrupt, wait = (self._random.random() for _ in range(3))
            if copy and corrupt < faults.corrupt:
                copy[self._random.randrange(len(copy))] ^= 1 << self._random.randrange(8)
            due = time.monotonic() + wait * faults.delay
            if not faults.reorder:
                due = self._last[peer] = max(due, self._last[peer])
            if drop >= faults.drop and not faults.severs(self.rank, peer, header.step):
                self._network.transport(peer)._enqueue(due, self.rank, header, copy.toreadonly())
        if done is not None:
            done()

    def _enqueue(self, due: float, peer: int, header: Header, body: memoryview) -> None:
        with self._changed:
            self._count += 1
            heapq.heappush(self._due, (due, self._count, peer, header, body))
            self._changed.notify()

    def _deliver(self) -> None:
        assert self._receive is not None
        while True:
            with self._changed:
                while not self._closed and not (self._due and self._due[0][0] <= time.monotonic()):
                    self._changed.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._closed:
                    return
                _, _, peer, header, body = heapq.heappop(self._due)
            self._receive(peer, header, body)

    def close(self) -> None:
        """Stop delivering to this rank. Idempotent."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join()


class _Plane:
    """What the ranks' controls share."""

    def __init__(self, size: int, timeout: float | None) -> None:
        self.size = size
        self.changed = threading.Condition()
        self.failure: RankFailure | None = None
        self.calls: list[Callable[[RankFailure], None]] = []
        self.waits: list[Wait | None] = [None] * size
        self.progress = [time.monotonic()] * size
        self.rounds: dict[tuple[str, int], dict[int, tuple[str, object]]] = {}
        self.closed = 0
        if timeout is not None:
            threading.Thread(target=self._watch, args=(timeout,), name="loopback-watch", daemon=True).start()

    def fail(self, failure: RankFailure) -> None:
        with self.changed:
            if self.failure is not None:
                return
            self.failure = failure
            calls = list(self.calls)
            self.changed.notify_all()
        for call in calls:
            call(failure)

    def _watch(self, timeout: float) -> None:
        """Look for stalls as `casync.plane` does; every rank is heard."""
        while True:
            with self.changed:
                self.changed.wait(timeout / 4)
                if self.failure is not None or self.closed == self.size:
                    return
                now = time.monotonic()
                beats = {
                    rank: Beat(wait, now - since, None, 0.0)
                    for rank, (wait, since) in enumerate(zip(self.waits, self.progress, strict=True))
                }
            failures = (suspect(rank, beats, (), timeout) for rank in range(self.size))
            found = next((failure for failure in failures if failure is not None), None)
            if found is not None:
                self.fail(found)


class LoopbackControl:
    """The control plane of one rank; collectives meet in memory."""

    def __init__(self, plane: _Plane, rank: int) -> None:
        self._plane = plane
        self.rank, self.size = rank, plane.size
        self._round: Counter[str] = Counter()
        self._closed = False

    def waits(self, wait: Wait | None) -> None:
        """Say what this rank waits for; counts as progress."""
        self._plane.waits[self.rank] = wait
        self._plane.progress[self.rank] = time.monotonic()

    def abort(self, failure: RankFailure) -> None:
        """Fail the job; the first failure wins."""
        self._plane.fail(failure)

    def check(self) -> None:
        """Raise the job's failure if there is one."""
        if self._plane.failure is not None:
            raise self._plane.failure

    def on_failure(self, call: Callable[[RankFailure], None]) -> None:
        """Have `call` called once when the job fails; at once if it has."""
        with self._plane.changed:
            failure = self._plane.failure
            if failure is None:
                self._plane.calls.append(call)
        if failure is not None:
            call(failure)

    def agree(self, topic: str, facts: Mapping[str, str]) -> None:
        """Raise MismatchError on every rank unless all hold equal facts."""
        held = self.meet("control", topic, dict(facts))
        told = differences(topic, held)
        if told is not None:
            raise MismatchError(told)

    def gather(self, topic: str, value: bytes) -> list[bytes]:
        """Every rank's value, in rank order."""
        return self.meet("control", topic, value)

    def meet(self, place: str, topic: str, value: object) -> list[Any]:
        """Every rank's value, in rank order. Meetings at one place have an order, which is all ranks' own."""
        plane = self._plane
        with plane.changed:
            meeting = plane.rounds.setdefault((place, self._round[place]), {})
            plane.rounds.pop((place, self._round[place] - 2), None)  # all have left it
            self._round[place] += 1
            meeting[self.rank] = (topic, value)
            plane.changed.notify_all()
            plane.changed.wait_for(lambda: len(meeting) == self.size or plane.failure is not None)
            if len(meeting) < self.size:
                self.check()
            topics = {other for other, _ in meeting.values()}
            if len(topics) > 1:
                raise MismatchError(f"the ranks called different collectives: {', '.join(sorted(topics))}")
            return [meeting[rank][1] for rank in range(self.size)]

    def close(self) -> None:
        """Goodbye. Idempotent."""
        with self._plane.changed:
            self._plane.closed += not self._closed
            self._closed = True
            self._plane.changed.notify_all()
