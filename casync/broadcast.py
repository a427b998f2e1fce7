"""Broadcast of whole arrays from one rank, byte by byte: parameters before the first step.

It is also the one time that much travels at once while nobody computes: it tells the network's rate.
Receivers time what comes behind the first frame, from when they await it; the slowest of them counts.
"""

from __future__ import annotations

import struct
import time
from collections import defaultdict
from queue import SimpleQueue
from typing import TYPE_CHECKING

import numpy as np

from casync.control import NO_STEP, RankFailure, Wait
from casync.frames import FrameError, Header, verify

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casync.channels import Channels
    from casync.control import Control
    from casync.topologies import Nodes

TOPIC = "broadcast"
PIECE = 4 << 20  # bytes a frame: each that arrives is progress, even where all of them take minutes
TELLING = 1 << 20  # bytes behind the first frame: fewer say nothing of the network's rate
_TIMED = struct.Struct("<d")


class Broadcaster:
    """Broadcasts of one rank, one after the other, in the same order on all ranks."""

    def __init__(self, control: Control, channels: Channels, nodes: Nodes) -> None:
        """nodes: which ranks share a machine."""
        self._control, self._nodes = control, nodes
        self.rate: float | None = None
        """Bytes a second that a machine sends to others (or a rank, where all share one); None: unknown."""
        self._round = 0
        self._frames: SimpleQueue[tuple[int, Header, memoryview, float] | None] = SimpleQueue()
        self._early: dict[int, list[tuple[int, Header, memoryview, float]]] = defaultdict(list)  # by round
        self._sent: SimpleQueue[bool] = SimpleQueue()
        self._channel = channels.open(
            lambda peer, header, body: self._frames.put((peer, header, body, time.perf_counter())), control
        )
        control.on_failure(self._failed)

    def broadcast(self, arrays: Sequence[NDArray[np.uint8]], root: int) -> None:
        """Collective: overwrite `arrays` (flat, contiguous bytes, of equal sizes on all ranks) with root's.

        Returns when the arrays may be changed again. Raises the job's RankFailure.
        """
        self._control.check()
        pieces = [array[at : at + PIECE] for array in arrays for at in range(0, array.nbytes, PIECE)]
        seconds = self._send(pieces) if self._control.rank == root else self._receive(pieces, root)
        self._round += 1
        self._learn(sum(piece.nbytes for piece in pieces[1:]), root, seconds)

    def _learn(self, nbytes: int, root: int, seconds: float) -> None:
        told = self._control.gather("the rate of the broadcast", _TIMED.pack(seconds))
        node = next(node for node in self._nodes if root in node)
        far = [rank for rank in range(self._control.size) if rank not in node]
        far = far or [rank for rank in node if rank != root]
        slowest = max((_TIMED.unpack(told[rank])[0] for rank in far), default=0.0)
        if nbytes >= TELLING and slowest > 0:
            self.rate = len(far) * nbytes / slowest

    def _send(self, arrays: Sequence[NDArray[np.uint8]]) -> float:
        peers = [peer for peer in range(self._control.size) if peer != self._control.rank]
        for message, array in enumerate(arrays):
            for peer in peers:
                self._channel.send(peer, self._round, message, 0, array, lambda: self._sent.put(True))
        for _ in range(len(arrays) * len(peers)):
            if not self._sent.get():
                self._control.check()
        return 0.0

    def _receive(self, arrays: Sequence[NDArray[np.uint8]], root: int) -> float:
        """Returns the seconds until the last frame came."""
        begin = time.perf_counter()
        self._control.waits(Wait(root, TOPIC, NO_STEP))
        early = self._early.pop(self._round, [])
        missing = set(range(len(arrays)))
        arrived = [begin]
        while missing:
            frame = early.pop() if early else self._frames.get()
            if frame is None:
                self._control.check()
                continue
            peer, header, body, at = frame
            if header.step > self._round:
                self._early[header.step].append(frame)
                continue
            self._check(peer, header, body, arrays, root)
            missing.remove(header.task)
            arrived.append(at)
            arrays[header.task][:] = np.frombuffer(body, np.uint8)
            self._control.waits(Wait(root, TOPIC, NO_STEP))
        self._control.waits(None)
        return max(arrived) - min(arrived)

    def _check(
        self,
        peer: int,
        header: Header,
        body: memoryview,
        arrays: Sequence[NDArray[np.uint8]],
        root: int,
    ) -> None:
        try:
            verify(header, body)
            if peer != root or header.step != self._round or header.task >= len(arrays):
                raise FrameError(f"round {self._round} has no array {header.task} from this rank")
            if header.nbytes != arrays[header.task].nbytes:
                raise FrameError(
                    f"array {header.task} has {header.nbytes} bytes there, {arrays[header.task].nbytes} here"
                )
        except FrameError as error:
            self._control.abort(RankFailure(peer, TOPIC, None, str(error)))
            self._control.check()

    def _failed(self, failure: RankFailure) -> None:  # noqa: ARG002  (told to all by control.check)
        self._frames.put(None)
        self._sent.put(False)
