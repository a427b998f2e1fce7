"""A job of one rank: a control plane and a transport that have nobody to talk to, and no sockets."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from casync.buffers import Pool
from casync.control import RankFailure, Wait, report

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from casync.frames import Header
    from casync.transports.base import Body, Receive


class SoloControl:
    """The control plane (`casync.control.Control`) of a single rank."""

    rank = 0
    size = 1

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._failure: RankFailure | None = None
        self._calls: list[Callable[[RankFailure], None]] = []

    def waits(self, wait: Wait | None) -> None:
        """Nobody watches: there is no other rank to wait for."""

    def abort(self, failure: RankFailure) -> None:
        """Fail the job; the first failure wins."""
        with self._lock:
            if self._failure is not None:
                return
            self._failure = failure
            calls = self._calls
        report(self.rank, failure)
        for call in calls:
            call(failure)

    def check(self) -> None:
        """Raise the job's failure if there is one."""
        if self._failure is not None:
            raise RankFailure(*self._failure.args)

    def on_failure(self, call: Callable[[RankFailure], None]) -> None:
        """Have `call` called with the failure, at once if there is one already."""
        with self._lock:
            self._calls = [*self._calls, call]
            failure = self._failure
        if failure is not None:
            call(failure)

    def agree(self, topic: str, facts: Mapping[str, str]) -> None:  # noqa: ARG002
        """One rank agrees with itself."""
        self.check()

    def gather(self, topic: str, value: bytes) -> list[bytes]:  # noqa: ARG002
        """Return this rank's value."""
        self.check()
        return [value]

    def close(self) -> None:
        """Nothing to close."""


class SoloTransport:
    """The transport of a single rank: no schedule of one rank sends."""

    name = "solo"
    device = False
    rank = 0
    size = 1

    def __init__(self) -> None:
        self.pool = Pool()

    def start(self, receive: Receive) -> None:
        """Nothing will arrive."""

    def send(
        self,
        peer: int,
        header: Header,  # noqa: ARG002
        body: Body | None,  # noqa: ARG002
        done: Callable[[], None] | None = None,  # noqa: ARG002
    ) -> None:
        """Raise ValueError: there is no peer."""
        raise ValueError(f"no rank {peer} in a job of one rank")

    def close(self) -> None:
        """Nothing to close."""
