"""NCCL (torch.distributed): bodies go from GPU to GPU; what is said of them before goes by ZeroMQ.

    signals            ASK     a header: its body is ready, and the sender proposes a time
                       ANSWER  the receiver's: the body's time (`casync.turns`)
                       WHOLE   a frame without a body, or with one that is in the host's memory
    process group      the bodies, in rounds of grouped sends and receives, in the order of their times

One thread issues the rounds: what was agreed while one was under way makes the next. NCCL runs what is issued
in the order of issue, and each side waits for the other, so that all ranks need one order. A plan has one;
but optimizers, groups and broadcasts share a transport, and a gradient that does not fire would hold up all
that comes behind it. By times, what is ready on both sides goes.

With a group of gloo bodies are in the host's memory, and all else is as it is: so tests run it.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib.util
import struct
import threading
from enum import IntEnum
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import distributed

from casync import frames
from casync.collectives import GRACE, LOOK
from casync.control import RankFailure
from casync.engines.base import end_failed_job
from casync.exchange import TorchGroup, Transfer
from casync.frames import HEADER_BYTES, FrameError, Header
from casync.transports import zmq
from casync.transports.base import body_bytes, start_thread
from casync.turns import Turns

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casync.buffers import Pool
    from casync.control import Control
    from casync.exchange import Group
    from casync.transports.base import Body, Receive, Transport, Wire
    from casync.turns import Turn

ENCRYPTS = False
"""Only what goes by ZeroMQ could be encrypted."""
LINGER = 5.0
"""Seconds that what was sent may still take after `close`, and twice that if some of it is not answered."""

_TIME = struct.Struct("<Q")


class NcclError(RuntimeError):
    """This process cannot use NCCL, or not in the place that the job gives it; says how to mend it."""


class Kind(IntEnum):
    """Of signals: a frame's task number among them. An ask's or answer's step is the time proposed."""

    WHOLE = 0
    ASK = 1
    ANSWER = 2


class _Message(NamedTuple):
    header: Header
    tensor: torch.Tensor | None  # None: it comes here
    done: Callable[[], None]


def _nothing() -> None:
    """Called where nobody wants to be told."""


def open(wire: Wire) -> NcclTransport:  # noqa: A001  (the name that casync.transports.base asks for)
    """Collective: make a process group. Raises NcclError where this process cannot use NCCL.

    The GPU is the current one (`torch.cuda.set_device`).
    """
    if not (torch.cuda.is_available() and distributed.is_nccl_available()):
        raise NcclError(
            "transport 'nccl' carries gradients between GPUs, and this torch finds none, or is built without "
            "NCCL: run where every rank has a GPU, with a torch for CUDA, or use transport 'zmq'"
        )
    if importlib.util.find_spec("cupy") is None:
        raise NcclError(
            "transport 'nccl' needs CuPy, whose arrays payloads on a GPU are: pip install cupy-cuda12x, or "
            "cupy-cuda13x, by the version of your driver; or use transport 'zmq'"
        )
    return join(wire, "nccl", torch.device("cuda", torch.cuda.current_device()))


def join(wire: Wire, backend: str, device: torch.device) -> NcclTransport:
    """Collective: the transport over a group of this backend, with bodies on `device`."""
    if not distributed.is_initialized():
        raise NcclError(
            f"transport 'nccl' needs a process group: call torch.distributed.init_process_group('{backend}') "
            "before casync.init, under torchrun, or use transport 'zmq'"
        )
    place = distributed.get_rank(), distributed.get_world_size()
    if place != (wire.rank, wire.size):
        raise NcclError(
            f"torch.distributed knows this process as rank {place[0]} of {place[1]}, the job as rank "
            f"{wire.rank} of {wire.size}: start both by one launcher, as torchrun, or use transport 'zmq'"
        )
    atexit.register(end_failed_job, wire.control)
    group = _watched(partial(TorchGroup, backend, device), wire.control)
    return NcclTransport(zmq.open(wire), group, wire.control)


def _watched(make: Callable[[], TorchGroup], control: Control) -> TorchGroup:
    """Make it in a thread, where it may hang; RankFailure when the job fails meanwhile."""
    made: SimpleQueue[TorchGroup | BaseException] = SimpleQueue()
    failed = threading.Event()

    def run() -> None:
        try:
            made.put(make())
        except BaseException as error:
            made.put(error)

    threading.Thread(target=run, name=f"casync nccl {control.rank} begins", daemon=True).start()
    control.on_failure(lambda _: failed.set())
    while True:
        control.check()
        with contextlib.suppress(Empty):
            found = made.get(timeout=LOOK)
            if not isinstance(found, BaseException):
                return found
            failed.wait(GRACE)  # a dead rank breaks connections here, too: the control plane names it
            control.check()
            raise found


class NcclTransport:
    """The transport (`casync.transports.base.Transport`) over a group that carries bodies.

    Turns belong to `_changed`, under which nothing blocks.
    """

    name = "nccl"

    def __init__(self, signals: Transport, group: Group, control: Control) -> None:
        """Take over `signals`, which has not been started."""
        self.rank, self.size = signals.rank, signals.size
        self.device = group.memory.device
        self._signals, self._group, self._control = signals, group, control
        self._turns: Turns[_Message] = Turns(self.rank)
        self._changed = threading.Condition()
        self._closing = False
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def pool(self) -> Pool:
        """What bodies of the host's memory arrive in, with their headers."""
        return self._signals.pool

    @pool.setter
    def pool(self, pool: Pool) -> None:
        self._signals.pool = pool

    def start(self, receive: Receive) -> None:
        """Start two threads, of signals and of rounds; both call `receive`."""
        self._control.on_failure(lambda _: self._end())
        self._thread = start_thread(self, self._control, partial(self._rounds, receive))
        self._signals.start(partial(self._signal, receive))

    def send(
        self, peer: int, header: Header, body: Body | None, done: Callable[[], None] | None = None
    ) -> None:
        """Ask to send a body, or send the whole frame; ValueError as of the other transports."""
        if not 0 <= peer < self.size or peer == self.rank:
            raise ValueError(f"rank {self.rank} has no connection to rank {peer} of {self.size}")
        head, memory, done = frames.pack(header), self._group.memory, done or _nothing
        if body is None or not header.nbytes or not memory.holds(body):
            view = body_bytes(header, body if header.nbytes else None)
            self._tell(peer, Kind.WHOLE, 0, b"".join((head, view)))
        else:
            message = _Message(header, memory.tensor(header, body), done)
            with self._changed:
                self._tell(peer, Kind.ASK, self._turns.ask(peer, message), head)
            return
        done()

    def close(self) -> None:
        """Exchange what is asked and agreed, at most for LINGER, or nothing more when the job has failed."""
        if self._closing:
            return
        self._closing = True
        self._wait()
        with self._changed:
            self._turns.forget()  # who has closed answers no more; with the others all that is agreed goes
        self._wait()
        self._end()
        self._signals.close()

    def _wait(self) -> None:
        """Until the rounds have ended, or LINGER is over."""
        with self._changed:
            self._changed.notify()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(0 if self._ended.is_set() else LINGER)

    def _end(self) -> None:
        self._ended.set()
        with self._changed:
            self._changed.notify()

    def _tell(self, peer: int, kind: Kind, time: int, body: bytes) -> None:
        self._signals.send(peer, Header(time, kind, 0, 0, len(body)), body)

    # --- the thread of signals ------------------------------------------------------------------------------

    def _signal(self, receive: Receive, peer: int, signal: Header, body: memoryview) -> None:
        try:
            if signal.task == Kind.WHOLE:
                header = frames.unpack(body[:HEADER_BYTES])
                if header.nbytes != body.nbytes - HEADER_BYTES:
                    raise FrameError(f"a body of {header.nbytes} bytes, in a message of {body.nbytes}")
                receive(peer, header, body[HEADER_BYTES:])
                return
            with self._changed:
                self._agree(peer, signal, bytes(body))
                self._changed.notify()
        except FrameError as error:
            self._control.abort(RankFailure(peer, None, None, f"it sent a broken frame: {error}"))

    def _agree(self, peer: int, signal: Header, body: bytes) -> None:
        match signal.task, len(body):
            case Kind.ASK, frames.HEADER_BYTES:
                message = _Message(frames.unpack(body), None, _nothing)
                if not self._closing:
                    time = self._turns.answer(peer, signal.step, message)
                    self._tell(peer, Kind.ANSWER, signal.step, _TIME.pack(time))
            case Kind.ANSWER, _TIME.size:
                try:
                    self._turns.answered(peer, signal.step, *_TIME.unpack(body))
                except KeyError:
                    if not self._closing:  # else it comes too late
                        raise FrameError(f"an answer to {signal.step}, which was not asked") from None
            case _:
                raise FrameError(f"no signal is of kind {signal.task} with {len(body)} bytes")

    # --- the thread of rounds -------------------------------------------------------------------------------

    def _rounds(self, receive: Receive) -> None:
        while taken := self._next():
            self._exchange(taken, receive)
            taken.clear()  # so that buffers come back before there is a next round

    def _next(self) -> list[tuple[Turn, _Message]]:
        """The next round; empty at the end."""
        with self._changed:
            while not self._ended.is_set():
                if taken := self._turns.take():
                    return taken
                if self._closing and self._turns.idle:
                    break
                self._changed.wait()
        return []

    def _exchange(self, taken: Sequence[tuple[Turn, _Message]], receive: Receive) -> None:
        memory = self._group.memory
        transfers = [
            Transfer(turn.source, False, memory.room(message.header.nbytes))
            if message.tensor is None
            else Transfer(turn.target, True, message.tensor)
            for turn, message in taken
        ]
        try:
            self._group.exchange(transfers)
        except Exception:
            if self._ended.wait(GRACE):  # a dead rank breaks connections, too: the control plane names it
                return
            raise
        for transfer, (_, message) in zip(transfers, taken, strict=True):
            if transfer.sends:
                message.done()
            else:
                receive(transfer.peer, message.header, memory.body(transfer.tensor))
