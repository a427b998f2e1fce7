"""What the links between neighbours give: every rank sends to the next one, and receives from the one before.

All links are measured at once and both ways, as a ring uses them; ranks of one machine share its link.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from queue import SimpleQueue
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

from casync.control import NO_STEP, Wait

if TYPE_CHECKING:
    from casync.channels import Channels
    from casync.control import Control, RankFailure
    from casync.frames import Header

TOPIC = "the links between ranks"
ROUNDS, WARM_UP = 30, 5
PIECE, FEWEST, MOST = 1 << 20, 4, 64  # bytes of a frame, and how many
SECONDS = 0.5  # that the frames should take
PING, PONG, BULK = range(3)


@dataclass(frozen=True)
class Link:
    """From a rank to the next one. latency: half a round trip, seconds; rate: bytes a second."""

    latency: float
    rate: float


class _Neighbours:
    """Frames to the next rank, and from it and the one before."""

    def __init__(self, control: Control, channels: Channels) -> None:
        self._control = control
        self._next, self._previous = (control.rank + 1) % control.size, (control.rank - 1) % control.size
        self._frames: SimpleQueue[tuple[int, int, float] | None] = SimpleQueue()
        self._channel = channels.open(self._arrived, control)
        self._nothing = np.empty(0, np.uint8)
        control.on_failure(self._failed)

    def _arrived(self, _peer: int, header: Header, _body: memoryview) -> None:
        self._frames.put((header.step, header.task, time.perf_counter()))

    def _failed(self, failure: RankFailure) -> None:  # noqa: ARG002  (told to all by control.check)
        self._frames.put(None)

    def _take(self) -> tuple[int, int, float]:
        """Number, kind and time of the next frame. Raises the job's RankFailure."""
        self._control.waits(Wait(self._previous, TOPIC, NO_STEP))
        frame = self._frames.get()
        self._control.waits(None)
        if frame is None:
            self._control.check()
            raise RuntimeError("the session is closed")
        return frame

    def latency(self) -> float:
        """Half of the median round trip to the next rank, while the one before measures its own."""
        rounds = []
        answered = 0  # the rank before may be ahead
        for number in range(ROUNDS):
            begin = time.perf_counter()
            self._channel.send(self._next, number, PING, 0, self._nothing)
            seconds = 0.0
            while answered <= number or not seconds:
                step, kind, at = self._take()
                if kind == PONG:
                    seconds = at - begin
                else:
                    self._channel.send(self._previous, step, PONG, 0, self._nothing)
                    answered += 1
            rounds.append(seconds)
        return median(rounds[WARM_UP:]) / 2

    def incoming(self, pieces: int) -> float:
        """Bytes a second from the rank before; all ranks begin at once, and time counts from just before."""
        piece = np.zeros(PIECE, np.uint8)
        begin = time.perf_counter()
        self._control.gather(TOPIC, b"")
        for number in range(pieces):
            self._channel.send(self._next, number, BULK, 0, piece)
        times = [self._take()[2] for _ in range(pieces)]
        return PIECE * pieces / (max(times) - begin)


def measure(control: Control, channels: Channels) -> list[Link]:
    """Collective: the link from each rank to the next one, by rank; none in a job of one rank."""
    if control.size == 1:
        return []
    neighbours = _Neighbours(control, channels)
    latency = neighbours.latency()
    first = neighbours.incoming(FEWEST)  # connections grow fast by use
    slowest = min(map(float, control.gather(TOPIC, str(first).encode())))
    rate = neighbours.incoming(max(FEWEST, min(MOST, int(SECONDS * slowest / PIECE))))
    told = [json.loads(value) for value in control.gather(TOPIC, json.dumps([latency, rate]).encode())]
    return [Link(own, told[(rank + 1) % control.size][1]) for rank, (own, _) in enumerate(told)]
