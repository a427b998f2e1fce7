"""MPI (mpi4py): one thread owns all messages and never blocks; it looks for work, and pauses without any.

A frame's header and a small body are one message; a larger body follows as a second one, uncopied:

    frames communicator    header, and a body below COPY_BELOW bytes      probed for, then received
    bodies communicator    a larger body, in the order of the headers     received where it stays

While nothing happens the thread sleeps, first 20 us, then ever longer, up to 1 ms; a send wakes it at once.
So an idle rank looks a thousand times a second, where a thread in a blocking receive would take a core.
"""

from __future__ import annotations

import atexit
import contextlib
import math
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from mpi4py import MPI

from casync import frames
from casync.buffers import Pool
from casync.control import RankFailure
from casync.frames import HEADER_BYTES, FrameError, Header
from casync.transports.base import body_bytes, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casync.control import Control
    from casync.transports.base import Body, Receive, Wire

ENCRYPTS = False
"""MPI has no such thing."""
COPY_BELOW = 1 << 16
"""Bytes."""
TURN = 32
"""Frames that are taken before what is to be sent has its turn."""
SHORTEST, LONGEST = 20e-6, 1e-3
"""Seconds of a pause: the first, and the longest."""
LINGER = 5.0
"""Seconds that frames may still take after `close`; peers that are alive read at once."""


class MpiError(RuntimeError):
    """This process is not the rank of an MPI job that it should be; the message says how to start one."""


@dataclass(frozen=True)
class Way:
    """How frames reach a rank: the two communicators, and its number in them."""

    frames: MPI.Comm
    bodies: MPI.Comm
    number: int


def meet(rank: int, size: int, record: str, secret: str, timeout: float) -> tuple[str, list[str]] | None:
    """Collective: rank 0's secret and every rank's record; None if not all ranks call it in time."""
    _check_world(rank, size)
    deadline = time.monotonic() + timeout
    mine = f"{secret}\n{record}".encode()
    lengths = np.zeros(size, np.int32)
    world = MPI.COMM_WORLD
    if not _done(world.Iallgather(np.array([len(mine)], np.int32), lengths), deadline):
        return None
    everything = bytearray(int(lengths.sum()))
    if not _done(world.Iallgatherv(mine, [everything, lengths, MPI.BYTE]), deadline):
        return None
    ends = np.cumsum(lengths)
    parts = [
        everything[end - length : end].decode().partition("\n")
        for end, length in zip(ends, lengths, strict=True)
    ]
    return parts[0][0], [theirs for _, _, theirs in parts]


def open(wire: Wire) -> MpiTransport:  # noqa: A001  (the name that casync.transports.base asks for)
    """Collective: make this session's communicators.

    Raises MpiError where this is no rank of an MPI job, RankFailure when the job fails meanwhile.
    """
    _check_world(wire.rank, wire.size)
    of_frames, of_bodies = duplicate_world(wire.control), duplicate_world(wire.control)
    ways = [Way(of_frames, of_bodies, peer) for peer in range(wire.size)]
    transport = MpiTransport(wire.rank, ways, wire.control)
    atexit.register(end_failed_job, wire.control)
    return transport


class MpiTransport:
    """The transport (`casync.transports.base.Transport`) over MPI. A message's tag is its sender's rank."""

    name = "mpi"
    device = False

    def __init__(self, rank: int, ways: Sequence[Way], control: Control) -> None:
        """`ways`: one a rank; this rank's own says where its frames arrive."""
        self.rank, self.size = rank, len(ways)
        self._ways = ways
        self._control = control
        self._queue: SimpleQueue[_Message | None] = SimpleQueue()
        self._sends, self._receipts = _Requests(), _Requests()  # the I/O thread's own
        self.pool = Pool()
        self._thread: threading.Thread | None = None
        self._closing = False

    def start(self, receive: Receive) -> None:
        """Start the I/O thread, which calls `receive` for every frame."""
        self._thread = start_thread(self, self._control, partial(self._loop, receive))

    def send(
        self, peer: int, header: Header, body: Body | None, done: Callable[[], None] | None = None
    ) -> None:
        """Queue one frame; raise ValueError on an unknown peer or a body of another size than announced."""
        if not 0 <= peer < self.size or peer == self.rank:
            raise ValueError(f"rank {self.rank} has no connection to rank {peer} of {self.size}")
        self._queue.put((peer, frames.pack(header), body_bytes(header, body), done))

    def close(self) -> None:
        """Send what is queued, at most for LINGER, or nothing more when the job has failed."""
        if self._closing:
            return
        self._closing = True
        self._queue.put(None)
        if self._thread is not None and threading.current_thread() is not self._thread:
            self._thread.join(LINGER)

    # --- the I/O thread -------------------------------------------------------------------------------------

    def _loop(self, receive: Receive) -> None:
        pause, deadline = SHORTEST, math.inf  # until when what was sent may take, once this rank closes
        while deadline == math.inf or (
            self._sends.under_way and time.monotonic() < deadline and not self._failed()
        ):
            moved = False
            with contextlib.suppress(Empty):
                message = self._queue.get(timeout=pause)
                while message is not None:
                    moved = True
                    self._send(*message)
                    message = self._queue.get_nowait()
                deadline = time.monotonic() + LINGER
            for _ in range(TURN):
                if deadline < math.inf or not self._receive(receive):
                    break
                moved = True
            moved |= self._sends.test() | self._receipts.test()
            # What is under way makes progress only while someone looks.
            moved |= self._sends.under_way or self._receipts.under_way
            pause = SHORTEST if moved else min(2 * pause, LONGEST)

    def _send(self, peer: int, header: bytes, body: memoryview, done: Callable[[], None] | None) -> None:
        way = self._ways[peer]
        if body.nbytes < COPY_BELOW:
            whole = header + bytes(body)
            self._sends.add(way.frames.Isend([whole, MPI.BYTE], way.number, self.rank), whole, done)
        else:
            self._sends.add(way.frames.Isend([header, MPI.BYTE], way.number, self.rank), header, None)
            self._sends.add(way.bodies.Isend([body, MPI.BYTE], way.number, self.rank), body, done)

    def _receive(self, receive: Receive) -> bool:
        """Take the next frame, or its header if its body comes by itself; False if none has come."""
        own, status = self._ways[self.rank], MPI.Status()
        message = own.frames.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
        if message is None:
            return False
        data = self.pool.lend(status.Get_count(MPI.BYTE))
        message.Recv([data, MPI.BYTE])  # matched and small, so it is here; the next header comes after it
        peer = status.Get_tag()
        try:
            header = frames.unpack(data[:HEADER_BYTES])
            if data.nbytes - HEADER_BYTES != (header.nbytes if header.nbytes < COPY_BELOW else 0):
                raise FrameError(f"a body of {header.nbytes} bytes, in a message of {data.nbytes}")
        except FrameError as error:
            self._control.abort(RankFailure(peer, None, None, f"it sent a broken frame: {error}"))
            return True
        if header.nbytes < COPY_BELOW:
            receive(peer, header, data[HEADER_BYTES:])
        else:
            body = self.pool.lend(header.nbytes)
            request = own.bodies.Irecv([body, MPI.BYTE], status.Get_source(), peer)
            self._receipts.add(request, body, partial(receive, peer, header, body))
        return True

    def _failed(self) -> bool:
        try:
            self._control.check()
        except RankFailure:
            return True
        return False


class _Requests:
    """Operations under way, each with the buffer that it uses and what is to be called when it is done."""

    def __init__(self) -> None:
        self._requests: list[MPI.Request] = []
        self._rest: list[tuple[object, Callable[[], None] | None]] = []

    @property
    def under_way(self) -> bool:
        """Whether there is any."""
        return bool(self._requests)

    def add(self, request: MPI.Request, buffer: object, call: Callable[[], None] | None) -> None:
        """Begin to watch one."""
        self._requests.append(request)
        self._rest.append((buffer, call))

    def test(self) -> bool:
        """Make the calls of those that are done; return whether there was one."""
        done = set(MPI.Request.Testsome(self._requests) or ())
        calls = [call for place, (_, call) in enumerate(self._rest) if place in done]
        self._requests = [it for place, it in enumerate(self._requests) if place not in done]
        self._rest = [it for place, it in enumerate(self._rest) if place not in done]
        for call in calls:
            if call is not None:
                call()
        return bool(done)


_Message: TypeAlias = "tuple[int, bytes, memoryview, Callable[[], None] | None]"


def _check_world(rank: int, size: int) -> None:
    world = MPI.COMM_WORLD
    if (world.rank, world.size) != (rank, size):
        raise MpiError(
            f"MPI knows this process as rank {world.rank} of {world.size}, the job as rank {rank} of {size}: "
            "start with `mpirun -n N python script.py` or `horovodrun --mpi`, or use transport zmq"
        )
    check_threads()


def check_threads() -> None:
    """Raise MpiError unless several threads may call this MPI."""
    if MPI.Query_thread() < MPI.THREAD_MULTIPLE:
        raise MpiError(
            "this MPI does not let several threads call it (no MPI_THREAD_MULTIPLE): use one that does, "
            "import mpi4py before whatever else starts MPI, or use transport zmq"
        )


def duplicate_world(control: Control) -> MPI.Comm:
    """Collective: a communicator of all ranks, made without blocking inside MPI: a rank may have failed."""
    made, request = MPI.COMM_WORLD.Idup()
    while not request.Test():
        control.check()
        time.sleep(LONGEST)
    return made


def _done(request: MPI.Request, deadline: float) -> bool:
    """Wait without blocking inside MPI, where an interrupt would not be seen."""
    while not request.Test():
        if time.monotonic() > deadline:
            return False
        time.sleep(LONGEST)
    return True


def end_failed_job(control: Control) -> None:
    """End all ranks at exit if the job has failed: MPI's own end would wait for those that cannot come."""
    try:
        control.check()
    except RankFailure:
        sys.stdout.flush()
        sys.stderr.flush()
        MPI.COMM_WORLD.Abort(1)
