"""One connection of the control plane, and the form of what travels on it."""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import zmq

from casync.control import Wait

if TYPE_CHECKING:
    from casync.gate import Socket
    from casync.machine import Process


LOSSES = zmq.EVENT_DISCONNECTED | zmq.EVENT_CLOSED | zmq.EVENT_HANDSHAKE_FAILED_AUTH
"""The events that say that a connection is lost, or could not be made."""


class Peer:
    """A connection's socket, and what is known of the rank at the other end. The control thread's own."""

    def __init__(self, rank: int, socket: Socket, dialled: bool, process: Process, now: float) -> None:
        self.rank = rank
        self.socket = socket
        self.dialled = dialled  # this side connected; the other end's strangers are not ours
        self.monitor: Socket = socket.get_monitor_socket(LOSSES)  # the one there is, if there is one
        self.process = process
        self.fd = -1  # of the connection that said hello
        self.joined = self.departed = self.lost = False
        self.held: list[list[bytes]] = []  # messages for after the hello
        self.beat: tuple[Wait | None, float, Wait | None] = (None, 0.0, None)
        self.heard = now

    @property
    def reachable(self) -> bool:
        """Whether messages to it may arrive."""
        return not (self.departed or self.lost)

    def send(self, parts: list[bytes]) -> None:
        """Send now, or when the peer has said hello; drop it when the peer has gone."""
        if not self.reachable:
            return
        if not self.joined:
            self.held.append(parts)
            return
        with contextlib.suppress(zmq.Again):  # disconnected; the monitor is about to say so
            self.socket.send_multipart(parts, zmq.NOBLOCK)

    def close(self) -> None:
        """Close the connection; the context could not end with its monitor open."""
        self.socket.disable_monitor()
        self.monitor.close(0)
        self.socket.close(500)


def pack(kind: str, *fields: object) -> bytes:
    """Return the control message of `kind` with its fields."""
    return json.dumps([kind, *fields]).encode()


def wait_fields(wait: Wait | None) -> list[object] | None:
    """Return the form in which a wait travels."""
    return [wait.rank, wait.gradient, wait.step, wait.order] if wait else None


def unwait(fields: list[Any] | None) -> Wait | None:
    """Read what `wait_fields` wrote."""
    return Wait(*fields) if fields else None
