"""At which address a rank's sockets listen, and what hosts are taken for."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from casync_jobs import IPV6, free_port

from casync import address, launch, rendezvous
from casync.launch import Launch, Rank0, RendezvousError, World

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casync.gate import Context


@pytest.fixture
def context() -> Iterator[Context]:
    with zmq.Context() as made:
        yield made


def test_sockets_listen_where_the_launcher_says(context: Context) -> None:
    meeting = Rank0("127.0.0.1", free_port())
    assert address.own(context, Launch(0, 2, meeting=meeting)) == "127.0.0.1"
    assert address.own(context, Launch(1, 2, meeting=meeting)) == "127.0.0.1"
    far = launch.Store("192.0.2.1", 80)  # TEST-NET-1: never reached, and nothing is sent
    assert address.own(context, Launch(1, 2, meeting=far, interface="lo")) == "127.0.0.1"
    with pytest.raises(RendezvousError, match=r"'nic9'.*has: .*lo.*CASYNC_IFACE"):
        address.own(context, Launch(1, 2, meeting=far, interface="nic9"))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_meeting_point_on_all_networks_is_refused(context: Context, host: str, rank: int) -> None:
    with pytest.raises(RendezvousError, match="listens on one"):
        address.own(context, Launch(rank, 2, meeting=Rank0(host, 80)))


def test_a_host_that_has_no_address_is_named(context: Context) -> None:
    with pytest.raises(RendezvousError, match=r"no-such-host\.invalid"):
        rendezvous.meet(context, Launch(1, 2, meeting=Rank0("no-such-host.invalid", 80)), "", 0.5)


def test_under_mpi_the_address_is_loopback_on_one_machine_and_else_that_of_the_way_out(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert address.own(context, Launch(1, 2, 1, 2, World())) == "127.0.0.1"
    several = Launch(1, 2, 0, 1, World())
    monkeypatch.setattr(address, "ELSEWHERE", ("127.0.0.2",))
    assert address.own(context, several) == "127.0.0.1"
    monkeypatch.setattr(address, "ELSEWHERE", ("255.255.255.255", IPV6))  # no way by IPv4
    assert address.own(context, several) == IPV6
    monkeypatch.setattr(address, "ELSEWHERE", ("255.255.255.255",))  # the system refuses it
    with pytest.raises(RendezvousError, match=r"no route to other networks: .*set CASYNC_IFACE"):
        address.own(context, several)


def test_where_ranks_meet_by_ipv6_they_listen_there(context: Context) -> None:
    meeting = Rank0(IPV6, free_port())
    assert [address.own(context, Launch(rank, 2, meeting=meeting)) for rank in (0, 1)] == [IPV6, IPV6]


def test_an_interface_gives_the_kind_of_the_meeting_point_if_it_has_one(context: Context) -> None:
    by_ipv6 = address.own(context, Launch(1, 2, meeting=Rank0(IPV6, 80), interface="lo"))
    assert by_ipv6 == ("::1" if IPV6 == "::1" else "127.0.0.1")  # else the interface has none
    by_ipv4 = address.own(context, Launch(1, 2, meeting=Rank0("127.0.0.1", 80), interface="lo"))
    assert by_ipv4 == "127.0.0.1"


def test_an_interface_with_nothing_but_a_link_local_address_is_refused() -> None:
    class Probe:
        ipv6 = False

        def bind(self, _: str) -> None:
            if not self.ipv6:
                raise zmq.ZMQError(19)

        def getsockopt_string(self, _: int) -> str:
            return "tcp://[fe80::1%eth0]:4000"

        def close(self, _: int) -> None: ...

    context: Any = SimpleNamespace(socket=lambda _: Probe())
    with pytest.raises(RendezvousError, match=r"'eth0' cannot be used .* is link-local"):
        address.own(context, Launch(1, 2, meeting=World(), interface="eth0"))


@pytest.mark.parametrize(
    ("known", "meant"), [(["::1", "127.0.0.1"], "127.0.0.1"), (["fd00::1"], "fd00::1")], ids=["both", "ipv6"]
)
def test_a_name_is_taken_for_its_ipv4_address_if_it_has_one(
    known: list[str], meant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(0, 0, 0, "", (each, 0)) for each in known])
    assert address.resolve("node7") == meant
