"""Several users of one transport: each has a channel, the top byte of the frame's task number.

The ranks that open a channel agree on the first number that is free on all of them: where there are
groups, one rank may have opened more than another.
"""

from __future__ import annotations

import copy
import threading
from collections import defaultdict
from typing import TYPE_CHECKING

from casync.frames import CHECKSUM, Header, checksum

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from casync.buffers import Pool
    from casync.control import Control
    from casync.transports.base import Receive, Transport

SHIFT = 24
MESSAGE = (1 << SHIFT) - 1


class Channel:
    """One user's frames; `open` of `Channels` makes it."""

    def __init__(
        self,
        transport: Transport,
        ranks: Sequence[int],
        number: int,
        checksums: bool,
        close: Callable[[], None],
    ) -> None:
        self._transport, self._ranks = transport, ranks
        self._number, self._checksums = number, checksums
        self.close = close
        """Receive no more; the number may be another channel's then. When all that is awaited has come."""

    @property
    def device(self) -> bool:
        """Whether bodies are arrays on a GPU; else they are in the host's memory."""
        return self._transport.device

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
        self._transport.send(self._ranks[peer], header, body if body.nbytes else None, done)


class Channels:
    """Owns a transport's receiving end.

    checksums: every frame carries the CRC32C of its body; ValueError where bodies are on a GPU.
    """

    def __init__(self, transport: Transport, *, checksums: bool = False) -> None:
        if checksums and transport.device:
            raise ValueError(
                f"checksums are made of bodies in the host's memory, and transport {transport.name!r} keeps "
                "them on the GPU: leave checksums away, or use transport 'zmq'"
            )
        self._transport, self._checksums = transport, checksums
        self._ranks: Sequence[int] = range(transport.size)
        self._lock = threading.Lock()
        self._receivers: dict[int, Receive] = {}
        self._early: dict[int, list[tuple[int, Header, memoryview]]] = defaultdict(list)
        transport.start(self._receive)

    @property
    def ranks(self) -> Sequence[int]:
        """The ranks that these channels connect, by the job's numbers."""
        return self._ranks

    @property
    def group(self) -> tuple[int, ...]:
        """The same, but none if they are all of the job's."""
        return () if len(self._ranks) == self._transport.size else tuple(self._ranks)

    @property
    def device(self) -> bool:
        """Whether bodies may be arrays on a GPU: see `Transport`."""
        return self._transport.device

    def among(self, ranks: Sequence[int]) -> Channels:
        """The same for some of these ranks, whose channels number peers by their places among them."""
        made = copy.copy(self)
        made._ranks = [self._ranks[rank] for rank in ranks]
        return made

    def receive_into(self, pool: Pool) -> None:
        """Have all that arrives from now on, of any channel, lie in buffers of this pool."""
        self._transport.pool = pool

    def open(self, receive: Receive, control: Control) -> Channel:
        """Collective among the ranks of `control`: a new channel, the same on all of them.

        `receive(peer, header, body)` gets its frames, `header.task` being the message.
        """
        free = max(self._receivers, default=-1) + 1
        number = max(map(int, control.gather("a channel", str(free).encode())))
        if number > 255:
            raise RuntimeError("256 optimizers and groups share this job already; reuse one of them")

        def received(peer: int, header: Header, body: memoryview) -> None:
            receive(self._ranks.index(peer), header, body)

        with self._lock:
            for early in self._early.pop(number, ()):
                received(*early)
            self._receivers[number] = received

        def close() -> None:
            with self._lock:
                self._receivers.pop(number, None)

        return Channel(self._transport, self._ranks, number, self._checksums, close)

    def _receive(self, peer: int, header: Header, body: memoryview) -> None:
        number = header.task >> SHIFT
        inner = Header(header.step, header.task & MESSAGE, header.flags, header.crc, header.nbytes)
        receive = self._receivers.get(number)
        if receive is None:
            with self._lock:
                receive = self._receivers.get(number)
                if receive is None:
                    self._early[number].append((peer, inner, body))
                    return
        receive(peer, inner, body)
