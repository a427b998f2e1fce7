"""The transports' contract, and how they are found: `casync/transports/<name>.py` is the transport <name>.

Such a module has `open(wire: Wire) -> Transport`: a collective call, made once a rank after the control
plane stands, that returns when frames may be sent to every peer. (`loopback` has its own network instead.)
`ENCRYPTS: bool` says whether it sends through connections of `wire.gate` only, which can be encrypted.
"""

from __future__ import annotations

import importlib
import pkgutil
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

import casync.transports
from casync.control import RankFailure

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from casync.buffers import Pool
    from casync.control import Control
    from casync.frames import Header
    from casync.gate import Gate

    Open = Callable[["Wire"], "Transport"]
    Body = bytes | bytearray | memoryview | np.ndarray
    Receive = Callable[[int, Header, memoryview], None]


class Transport(Protocol):
    """Framed messages between two ranks; completion by callback. Messages may arrive in any order."""

    name: str
    rank: int
    size: int
    pool: Pool
    """What bodies of the host's memory arrive in; another may be put in its place at any time."""
    device: bool
    """Whether bodies may be arrays on a GPU, of CuPy; bodies in the host's memory always may be.

    Such a body arrives as such an array, flat uint8 at a multiple of 16. What is sent may still be under way
    in CuPy's current stream. What has arrived is to be held until the last kernel that reads it has run.
    """

    def start(self, receive: Receive) -> None:
        """Deliver frames from now on, each by `receive(peer, header, body)`.

        `receive` runs in the transport's I/O thread and only enqueues; `body` (uint8, one dimension, not to
        be written, at a multiple of 16, which codecs need) stays valid as long as it is referenced. Its
        checksum is for the receiver to verify.
        """

    def send(
        self, peer: int, header: Header, body: Body | None, done: Callable[[], None] | None = None
    ) -> None:
        """Send one frame to `peer`. Thread-safe, never blocks.

        `header.nbytes` is the size of `body` in bytes (0 for None); `body` is C-contiguous and must not
        change before `done()`, which is called once, in any thread, when the buffer may be reused.
        After the job has failed `done` may never be called.
        """

    def close(self) -> None:
        """Send what is queued (unless the job has failed), then close. Idempotent, in any order of ranks."""


@dataclass(frozen=True)
class Wire:
    """What a transport is made from: its place, the peers' addresses, and the standing control plane.

    addresses: one IP address a rank, its own included, on the network that the launcher names.
    gate: makes sockets that only the job's ranks can connect to.
    """

    rank: int
    size: int
    addresses: tuple[str, ...]
    control: Control
    gate: Gate


def body_bytes(header: Header, body: Body | None) -> memoryview:
    """Return the bytes of `body` without a copy; ValueError if not contiguous or not of `header.nbytes`."""
    if isinstance(body, np.ndarray):
        if not body.flags.c_contiguous:
            raise ValueError("the body must be C-contiguous: send numpy.ascontiguousarray(body)")
        body = body.reshape(-1).view(np.uint8).data
    view = memoryview(b"" if body is None else body)
    view = view if view.format == "B" and view.ndim == 1 else view.cast("B")
    if view.nbytes != header.nbytes:
        raise ValueError(f"the header announces {header.nbytes} bytes, the body has {view.nbytes}")
    return view


def start_thread(transport: Transport, control: Control, loop: Callable[[], None]) -> threading.Thread:
    """Start a transport's I/O thread, which runs `loop`; what that raises fails the job, by this rank."""

    def run() -> None:
        try:
            loop()
        except BaseException as error:
            reason = f"its I/O thread failed: {error!r}"
            control.abort(RankFailure(transport.rank, None, None, reason))
            raise

    thread = threading.Thread(target=run, name=f"casync {transport.name} {transport.rank}", daemon=True)
    thread.start()
    return thread


def names() -> list[str]:
    """Return the names of all transports, found by file name."""
    found = (module.name for module in pkgutil.iter_modules(casync.transports.__path__))
    return sorted(name for name in found if name != "base")


def load(name: str) -> ModuleType:
    """Return the module of transport `name`.

    Raises ValueError that lists the names when there is none, or names the package that it needs.
    """
    if name not in names():
        raise ValueError(f"no transport {name!r}; there are: {', '.join(names())} (casync/transports/)")
    try:
        return importlib.import_module(f"casync.transports.{name}")
    except ModuleNotFoundError as error:
        raise ValueError(
            f"transport {name} needs {error.name}, which is not installed: `pip install compll[{name}]`"
        ) from error
