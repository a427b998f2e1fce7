"""Several users of one transport: each has a channel, the top byte of the frame's task number.

Channels are numbered in the order in which they are opened, which is the same on all ranks.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from typing import TYPE_CHECKING

from casync.frames import CHECKSUM, Header, checksum

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from casync.transports.base import Receive, Transport

SHIFT = 24
MESSAGE = (1 << SHIFT) - 1


class Channel:
    """One user's frames; `open` of `Channels` makes it."""

    def __init__(self, transport: Transport, number: int, checksums: bool) -> None:
        self._transport, self._number, self._checksums = transport, number, checksums
        self.rank, self.size = transport.rank, transport.size

    def send(
        self,
        peer: int,
        step: int,
        message: int,
        flags: int,
        body: NDArray[np.uint8],
        done: Callable[[], None] | None = None,
    ) -> None:
        """Send one message; `body` must not change before `done()`."""
        crc = 0
        if self._checksums:
            flags |= CHECKSUM
            crc = checksum(body.data)
        header = Header(step, self._number << SHIFT | message, flags, crc, body.nbytes)
        self._transport.send(peer, header, body if body.nbytes else None, done)


class Channels:
    """Owns a transport's receiving end. `checksums`: every frame carries the CRC32C of its body."""

    def __init__(self, transport: Transport, *, checksums: bool = False) -> None:
        self._transport, self._checksums = transport, checksums
        self._lock = threading.Lock()
        self._receivers: list[Receive] = []
        self._early: dict[int, list[tuple[int, Header, memoryview]]] = defaultdict(list)
        transport.start(self._receive)

    def open(self, receive: Receive) -> Channel:
        """A new channel; `receive(peer, header, body)` gets its frames, `header.task` being the message."""
        with self._lock:
            number = len(self._receivers)
            if number > 255:
                raise RuntimeError("256 optimizers and broadcasts share this job already; reuse one of them")
            for peer, header, body in self._early.pop(number, ()):
                receive(peer, header, body)
            self._receivers.append(receive)
        return Channel(self._transport, number, self._checksums)

    def _receive(self, peer: int, header: Header, body: memoryview) -> None:
        number = header.task >> SHIFT
        inner = Header(header.step, header.task & MESSAGE, header.flags, header.crc, header.nbytes)
        if number < len(self._receivers):
            self._receivers[number](peer, inner, body)
            return
        with self._lock:
            if number < len(self._receivers):
                self._receivers[number](peer, inner, body)
            else:
                self._early[number].append((peer, inner, body))
