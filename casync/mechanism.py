"""Security mechanisms of connections (ZMTP, RFC 23): who is let in, and whether others can read along.

    PLAIN (RFC 24)    the rank that connects shows the job secret, which rank 0 has drawn
    CURVE (RFC 26)    every rank has a key pair of its own: each side shows that it has the secret key to the
                      public one that the rendezvous has told of it, and all that follows is encrypted

With CURVE no secret passes through the rendezvous: who reads it can neither read nor join. Who can write
there can join, with either.
"""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Protocol

import zmq
from zmq.utils import z85

if TYPE_CHECKING:
    from collections.abc import Sequence

    Socket = zmq.Socket[bytes]


class Mechanism(Protocol):
    """One rank's side of its connections. published: what other ranks must learn of it, "" for nothing."""

    published: str

    def learn(self, secret: str, published: Sequence[str]) -> None:
        """Take what the rendezvous tells: the job secret, and what each rank has published."""

    def serve(self, socket: Socket) -> None:
        """Set up a socket that a peer connects to, before it is bound."""

    def dial(self, socket: Socket, peer: int) -> None:
        """Set up a socket that connects to `peer`; only after `learn`."""

    def admits(self, peer: int, name: bytes, credentials: Sequence[bytes]) -> bool:
        """Whether these are of `peer`. name, credentials: as ZAP (RFC 27) has them. False before `learn`."""


class Plain:
    """The job secret, in clear."""

    published = ""

    def __init__(self, rank: int) -> None:
        self._rank, self._secret = b"%d" % rank, b""

    def learn(self, secret: str, published: Sequence[str]) -> None:  # noqa: ARG002  (nothing is)
        """Keep the secret."""
        self._secret = secret.encode()

    def serve(self, socket: Socket) -> None:
        """As the protocol says."""
        socket.plain_server = True

    def dial(self, socket: Socket, peer: int) -> None:  # noqa: ARG002  (all know one secret)
        """As the protocol says."""
        socket.plain_username, socket.plain_password = self._rank, self._secret

    def admits(self, peer: int, name: bytes, credentials: Sequence[bytes]) -> bool:
        """As the protocol says."""
        user, secret = credentials if name == b"PLAIN" and len(credentials) == 2 else (b"", b"")
        right_rank = user == b"%d" % peer
        return right_rank and bool(self._secret) and hmac.compare_digest(secret, self._secret)


class Curve:
    """A key pair a rank, drawn for the job."""

    def __init__(self) -> None:
        """Draw the keys. ValueError if libzmq cannot encrypt."""
        if not zmq.has("curve"):
            raise ValueError(
                f"encryption is asked for (CASYNC_ENCRYPT=1), but libzmq {zmq.zmq_version()} here was built "
                "without CURVE: install one of pyzmq's own wheels, or leave encryption off on all ranks"
            )
        self._public, self._private = zmq.curve_keypair()
        self.published = self._public.decode()
        self._keys: Sequence[str] = ()

    def learn(self, secret: str, published: Sequence[str]) -> None:  # noqa: ARG002  (keys say it all)
        """Keep the ranks' public keys."""
        self._keys = published

    def serve(self, socket: Socket) -> None:
        """As the protocol says."""
        socket.curve_server = True
        socket.curve_secretkey = self._private

    def dial(self, socket: Socket, peer: int) -> None:
        """As the protocol says."""
        socket.curve_serverkey = self._keys[peer].encode()
        socket.curve_publickey, socket.curve_secretkey = self._public, self._private

    def admits(self, peer: int, name: bytes, credentials: Sequence[bytes]) -> bool:
        """As the protocol says."""
        known = name == b"CURVE" and len(credentials) == 1 and peer < len(self._keys)
        return known and z85.encode(credentials[0]).decode() == self._keys[peer]
