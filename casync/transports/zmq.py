"""ZeroMQ: one stream connection a pair, header and body as two parts, one I/O thread that owns all sockets.

A body of COPY_BELOW bytes or more is not copied: ZeroMQ reads it from the caller's buffer, and `done` is
called when it has let go of it. Smaller ones are copied, which costs less than keeping count of the buffer.
What arrives lies in memory of ZeroMQ's own, a new piece for each frame and not aligned as codecs need it, so
it is copied once, into a buffer that is used again.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import zmq

from casync import frames
from casync.buffers import Pool
from casync.control import RankFailure
from casync.frames import FrameError, Header
from casync.mailbox import Mailbox
from casync.transports.base import body_bytes, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from casync.gate import Socket
    from casync.transports.base import Body, Receive, Wire

ENCRYPTS = True
"""By sockets that the gate has made."""
COPY_BELOW = 1 << 16
"""Bytes."""
TURN = 32
"""Frames that are read from one peer before the next has its turn."""
LINGER = 5000
"""Milliseconds that frames may still take after `close`; peers that are alive read at once."""

_HELLO = frames.pack(Header(0, 0, 0, 0, 0))
"""The first frame of a connection, sent by the side that connects: the other may not send before it came."""


def open(wire: Wire) -> ZmqTransport:  # noqa: A001  (the name that casync.transports.base asks for)
    """Collective: connect every pair of ranks. Raises RankFailure when the job fails meanwhile."""
    listening = {
        peer: wire.gate.listen(wire.addresses[wire.rank], "data", peer)
        for peer in range(wire.rank + 1, wire.size)
    }
    sockets = {peer: socket for peer, (socket, _) in listening.items()}
    try:
        ports = " ".join(str(listening[peer][1]) if peer in listening else "-" for peer in range(wire.size))
        for peer, theirs in enumerate(wire.control.gather("data ports", ports.encode())):
            if peer < wire.rank:
                port = int(theirs.split()[wire.rank])
                sockets[peer] = wire.gate.connect(wire.addresses[peer], port, "data", peer)
                sockets[peer].send_multipart([_HELLO, b""])
        for socket, _ in listening.values():
            while not socket.poll(100):
                wire.control.check()
            socket.recv_multipart()
    except BaseException:
        for socket in sockets.values():
            socket.close(0)
        raise
    return ZmqTransport(wire, sockets)


class ZmqTransport:
    """The transport (`casync.transports.base.Transport`) over ZeroMQ."""

    name = "zmq"
    device = False

    def __init__(self, wire: Wire, sockets: dict[int, Socket]) -> None:
        """Take over `sockets`, one a peer, each connected."""
        self.rank, self.size = wire.rank, wire.size
        self._control = wire.control
        self._sockets = sockets
        self._mail: Mailbox[_Message] = Mailbox()
        self.pool = Pool()
        self._thread: threading.Thread | None = None
        self._closing = False

    def start(self, receive: Receive) -> None:
        """Start the I/O thread, which calls `receive` for every frame."""
        self._thread = start_thread(self, self._control, partial(self._run, receive))

    def send(
        self, peer: int, header: Header, body: Body | None, done: Callable[[], None] | None = None
    ) -> None:
        """Queue one frame; raise ValueError on an unknown peer or a body of another size than announced."""
        if peer not in self._sockets:
            raise ValueError(f"rank {self.rank} has no connection to rank {peer} of {self.size}")
        self._mail.put((peer, frames.pack(header), body_bytes(header, body), done))

    def close(self) -> None:
        """Send what is queued, at most for LINGER, or nothing more when the job has failed."""
        if self._closing:
            return
        self._closing = True
        if self._thread is None:
            self._close_sockets()
        else:
            self._mail.put((-1, b"", memoryview(b""), None))
            if threading.current_thread() is not self._thread:
                self._thread.join(LINGER / 1000)

    # --- the I/O thread -------------------------------------------------------------------------------------

    def _run(self, receive: Receive) -> None:
        try:
            self._loop(receive)
        finally:
            self._close_sockets()

    def _loop(self, receive: Receive) -> None:
        poller = zmq.Poller()
        poller.register(self._mail, zmq.POLLIN)
        peers: dict[Any, int] = {}
        for peer, socket in self._sockets.items():
            peers[socket] = peer
            poller.register(socket, zmq.POLLIN)
        while True:
            ready = poller.poll(None if self._mail.sleep() else 0)
            self._mail.awake()
            while message := self._mail.take():
                if message[0] < 0:
                    return
                self._send(*message)
            for socket, _ in ready:
                if socket in peers:
                    self._receive(peers[socket], receive)

    def _send(self, peer: int, header: bytes, body: memoryview, done: Callable[[], None] | None) -> None:
        socket = self._sockets[peer]
        # Again: the peer has gone. Whether that is a goodbye or a death is for the control plane to say.
        with contextlib.suppress(zmq.Again):
            socket.send(header, zmq.SNDMORE | zmq.NOBLOCK)
            if body.nbytes < COPY_BELOW:
                socket.send(body, zmq.NOBLOCK)
            else:
                # ZeroMQ keeps `lease` alive until it has read the buffer; a tracker would have to be polled.
                lease = body[:]
                if done is not None:
                    weakref.finalize(lease, done).atexit = False
                    done = None
                socket.send(zmq.Frame(lease, track=False, copy=False), zmq.NOBLOCK, copy=False)
        if done is not None:
            done()

    def _receive(self, peer: int, receive: Receive) -> None:
        socket = self._sockets[peer]
        for _ in range(TURN):
            if not int(socket.get(zmq.EVENTS)) & zmq.POLLIN:
                return
            try:
                parts = socket.recv_multipart(zmq.NOBLOCK, copy=False)
                if len(parts) != 2:
                    raise FrameError(f"a frame has 2 parts, this one {len(parts)}")
                head, body = parts
                header = frames.unpack(head.buffer)
                if len(body) != header.nbytes:
                    raise FrameError(f"the header announces {header.nbytes} bytes, the body has {len(body)}")
            except ValueError as error:
                self._control.abort(RankFailure(peer, None, None, f"it sent a broken frame: {error}"))
                return
            aligned = self.pool.lend(header.nbytes)
            np.copyto(np.frombuffer(aligned, np.uint8), np.frombuffer(body.buffer, np.uint8))
            receive(peer, header, aligned)

    def _close_sockets(self) -> None:
        linger = LINGER
        try:
            self._control.check()
        except RankFailure:
            linger = 0
        for socket in self._sockets.values():
            socket.close(linger)
        self._mail.close()


_Message = tuple[int, bytes, memoryview, "Callable[[], None] | None"]
