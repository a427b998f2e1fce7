"""Addresses: where ranks meet and listen, by IPv4 or IPv6, and how they are written.

A name that has addresses of both kinds stands for its IPv4 address, so that all ranks mean the same one.
"""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import zmq

from casync.launch import Board, Launch, Rank0, RendezvousError, Store, World

if TYPE_CHECKING:
    from casync.gate import Context

LOOPBACK = "127.0.0.1"

ELSEWHERE = ("192.0.2.1", "2001:db8::1")
"""Addresses that no machine has (RFC 5737, RFC 3849): the route there is the one to other networks."""

ANY = ("0.0.0.0", "::")
"""What means every network of a machine."""


def is_ipv6(address: str) -> bool:
    """Whether an address, not a name, is one of IPv6."""
    return ":" in address


def with_port(host: str, port: int | None) -> str:
    """Write a host, and a port if there is one, as URLs do: an IPv6 address in brackets (RFC 3986)."""
    return (f"[{host}]" if is_ipv6(host) else host) + ("" if port is None else f":{port}")


def endpoint(made: zmq.Socket[bytes], address: str, port: int | None = None) -> str:
    """Prepare a ZeroMQ socket for `address`; return the endpoint that it binds or connects to."""
    made.ipv6 = is_ipv6(address)
    return f"tcp://{with_port(address, port)}"


def resolve(host: str) -> str:
    """Return the address of `host`, a name or an address. RendezvousError if it has none, or means all."""
    try:
        found = [str(entry[4][0]) for entry in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)]
    except OSError as error:
        raise RendezvousError(
            f"{host!r} is no address of the meeting point ({error}); give a name or an address"
        ) from None
    address = min(found, key=is_ipv6)
    if address in ANY:
        raise RendezvousError(
            f"{host!r} means every network of this machine, and casync listens on one: give the address of "
            "rank 0 that the other ranks reach"
        )
    return address


def own(context: Context, launch: Launch) -> str:
    """Return the one address at which this rank's sockets listen.

    That of the launcher's interface; else, of the interface that leads to the meeting point, or, where that
    has no address (MPI), to other networks. RendezvousError when there is no such interface.
    """
    match launch.meeting:
        case Store(host, port) | Board(host, port) | Rank0(host, port):
            there = resolve(host)
        case _:
            there, port = "", 9
    if launch.interface:
        return _of_interface(context, launch.interface, first=is_ipv6(there))
    match launch.meeting:
        case None:
            return LOOPBACK
        case World() if launch.local_size == launch.size:
            return LOOPBACK
        case World():
            return _on_the_way("other networks", ELSEWHERE, port)
        case Rank0() if launch.rank == 0:
            return there
        case _:
            return _on_the_way(there, (there,), port)


def _of_interface(context: Context, interface: str, first: bool) -> str:
    """The interface's address of IPv6 (`first`) or of IPv4; of the other kind if it has none of this."""
    problems = []
    for ipv6 in (first, not first):
        probe = context.socket(zmq.PAIR)
        try:
            probe.ipv6 = ipv6
            probe.bind(f"tcp://{interface}:*")
            found = probe.getsockopt_string(zmq.LAST_ENDPOINT).removeprefix("tcp://").rpartition(":")[0]
        except zmq.ZMQError as error:
            problems.append(str(error))
        else:
            if "%" not in found:
                return found.strip("[]")
            problems.append(f"{found} is link-local")  # other machines cannot write it in the same way
        finally:
            probe.close(0)
    there = ", ".join(name for _, name in socket.if_nameindex())
    raise RendezvousError(
        f"network interface {interface!r} cannot be used ({' and '.join(dict.fromkeys(problems))}); "
        f"this machine has: {there}. Set CASYNC_IFACE to one that the other ranks reach"
    )


def _on_the_way(place: str, addresses: tuple[str, ...], port: int) -> str:
    """The address of the interface that leads to the first of `addresses` to which there is a route."""
    problems = []
    for address in addresses:
        family = socket.AF_INET6 if is_ipv6(address) else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect((address, port))  # sends nothing: only asks for the route
            except OSError as error:
                problems.append(str(error))
            else:
                return str(probe.getsockname()[0])
    raise RendezvousError(
        f"no route to {place}: {' or '.join(dict.fromkeys(problems))}; "
        "set CASYNC_IFACE to the interface that the other ranks reach"
    )
