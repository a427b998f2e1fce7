"""The gate: which connections a rank lets in.

Every connection is one pair's own ZeroMQ PAIR socket, bound to one address. In the ZMTP handshake the rank
that connects shows that it is the one (`casync.mechanism`), and the gate (ZAP, RFC 27) refuses it before it
reaches the socket unless it is. So a stranger neither takes a rank's place nor is ever read.
"""

from __future__ import annotations

import contextlib
import socket
import time
from typing import TYPE_CHECKING

import zmq

from casync.address import endpoint, is_ipv6

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casync.mechanism import Mechanism

Context = zmq.Context[zmq.Socket[bytes]]
Socket = zmq.Socket[bytes]


class Gate:
    """Makes the sockets of one rank and answers the handshakes that arrive at them.

    One a context. Made before anything is bound, so that early handshakes wait for `open` instead of failing.
    spared: the port at which the ranks meet; no socket of the gate takes it, whichever the system offers,
    for rank 0 may be on this machine and yet to listen there.
    """

    def __init__(self, context: Context, mechanism: Mechanism, spared: int = 0) -> None:
        self._context = context
        self._mechanism = mechanism
        self._spared = spared
        self.socket: Socket = context.socket(zmq.ROUTER)
        self.socket.bind("inproc://zeromq.zap.01")

    def open(self, secret: str, published: Sequence[str]) -> None:
        """Let the job's ranks in, from the next `answer` on. published: what each one's mechanism has."""
        self._mechanism.learn(secret, published)

    def listen(self, address: str, service: str, peer: int) -> tuple[Socket, int]:
        """Return a socket that rank `peer` alone may connect to, and its port at `address`."""
        made = self._pair(service)
        self._mechanism.serve(made)
        made.zap_domain = f"{service}/{peer}".encode()
        port = made.bind_to_random_port(endpoint(made, address))
        if port != self._spared:
            return made, port
        other = self.listen(address, service, peer)  # while this one holds the port: at another
        made.close(0)
        _wait_until_free(address, port)
        return other

    def connect(self, address: str, port: int, service: str, peer: int, events: int = 0) -> Socket:
        """Return a socket that connects to the one that `peer` made for this rank by `listen`.

        events: those of which its monitor tells, the first attempt included.
        """
        socket = self._pair(service)
        if events:
            socket.get_monitor_socket(events)
        socket.handshake_ivl = 0  # a rank that is slow to answer is for the heartbeats to judge, after T
        self._mechanism.dial(socket, peer)
        socket.connect(endpoint(socket, address, port))
        return socket

    def _pair(self, service: str) -> Socket:
        socket = self._context.socket(zmq.PAIR)
        socket.sndhwm = socket.rcvhwm = 0  # the plan bounds what is in flight
        socket.linger = 0
        # A lost connection may have lost messages: it is a failure, not a pause. (-1, never to reconnect,
        # would also throw away what arrived before the loss and was not yet read.)
        socket.reconnect_ivl = 3_600_000
        if self._context.get(zmq.IO_THREADS) > 1:
            socket.affinity = 1 if service == "control" else 2  # no heartbeat queues behind gradients
        return socket

    def answer(self) -> None:
        """Answer the handshakes that wait; the control thread calls it when `socket` is readable."""
        while self.socket.poll(0):
            route, _, version, request, domain, _, _, mechanism, *credentials = self.socket.recv_multipart()
            peer = domain.rpartition(b"/")[2]
            let_in = self._mechanism.admits(int(peer), mechanism, credentials)
            status = (b"200", b"welcome") if let_in else (b"400", b"not of this job")
            self.socket.send_multipart([route, b"", version, request, *status, peer, b""])


def _wait_until_free(address: str, port: int) -> None:
    """A ZeroMQ socket gives its port back some microseconds after it was closed."""
    for _ in range(1000):
        family = socket.AF_INET6 if is_ipv6(address) else socket.AF_INET
        with contextlib.suppress(OSError), socket.socket(family) as probe:
            probe.bind((address, port))
            return
        time.sleep(0.001)
