"""Who is let in, and who can read along: strangers at a job's ports, with and without encryption."""

from __future__ import annotations

import contextlib
import re
import socket
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from casync_jobs import IPV6, Job, free_port, in_threads, listening, new_listening, places, sessions
from test_processes import reports

from casync.address import endpoint, is_ipv6
from casync.control import MismatchError
from casync.engines.base import EngineError
from casync.gate import Gate
from casync.mechanism import Curve, Plain
from casync.session import connect
from casync.torch.gradients import Settings

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casync.mechanism import Mechanism

BOTH = pytest.mark.parametrize("encrypt", [False, True], ids=["plain", "encrypted"])
HOSTS = pytest.mark.parametrize("host", ["127.0.0.1", IPV6])


def mechanisms(encrypt: bool, count: int = 3) -> list[Mechanism]:
    """Those of a job's ranks, which know each other."""
    made: list[Mechanism] = [Curve() if encrypt else Plain(rank) for rank in range(count)]
    for mechanism in made:
        mechanism.learn("right", [each.published for each in made])
    return made


def stranger(context: zmq.Context[Any], ours: Mechanism, kind: str) -> zmq.Socket[bytes]:
    """A socket that knows what can be read at the rendezvous of an encrypted job, and not more."""
    made = context.socket(zmq.PAIR)
    made.linger = 0
    if kind == "wrong secret":
        made.plain_username, made.plain_password = b"1", b"0" * 32
    elif kind in ("wrong key", "another's server"):
        other = Curve()
        other.learn("", [ours.published if kind == "wrong key" and ours.published else other.published] * 2)
        other.dial(made, 0)
    return made


KINDS = ("nothing", "wrong secret", "wrong key", "another's server")


@BOTH
@HOSTS
def test_strangers_change_nothing_and_see_nothing(encrypt: bool, host: str) -> None:
    """They connect to every port of a job: mute, loud, with ZeroMQ, and with wrong secrets and keys."""
    before = listening()
    with sessions(2, host=host, encrypt=encrypt) as joined:
        ours: Any = joined[0].control
        ports = new_listening(before, 2)
        assert len(ports) == 2, "a control and a data socket"
        with zmq.Context() as context:
            visitors: list[Any] = []
            for address in ports:
                mute, loud = socket.create_connection(address), socket.create_connection(address)
                loud.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
                visitors += [mute, loud]
                for kind in KINDS:
                    visitor = stranger(context, ours._gate._mechanism, kind)
                    visitor.connect(endpoint(visitor, *address))
                    with contextlib.suppress(zmq.Again):  # refused already
                        visitor.send(b'["abort", [1, null, null, "rubbish"]]', zmq.NOBLOCK)
                    visitors.append(visitor)
            assert in_threads(2, lambda rank: joined[rank].control.gather("t", b"")) == [[b"", b""]] * 2
            assert not any(each.poll(0) for each in visitors if isinstance(each, zmq.Socket))
            for visitor in visitors:
                visitor.close()
        for turn in range(3):
            values = in_threads(2, lambda rank, t=turn: joined[rank].control.gather("t", b"%d" % t))
            assert values == [[b"%d" % turn] * 2] * 2
            for session in joined:
                session.control.check()


@BOTH
def test_strangers_that_come_first_do_not_take_a_ranks_place(encrypt: bool) -> None:
    """A socket that rank 1 has not reached yet lets nobody else in, not even rank 2."""
    zero, one, two = mechanisms(encrypt)
    with zmq.Context(io_threads=2) as context:
        gate = Gate(context, zero)
        held, port = gate.listen("127.0.0.1", "control", 1)
        visitors = [stranger(context, zero, kind) for kind in KINDS]
        rank_2 = context.socket(zmq.PAIR)
        rank_2.linger = 0
        two.dial(rank_2, 0)
        for visitor in (*visitors, rank_2):
            visitor.connect(f"tcp://127.0.0.1:{port}")
            visitor.send(b"stranger")
        while gate.socket.poll(300):
            gate.answer()
        ours = context.socket(zmq.PAIR)
        one.dial(ours, 0)
        ours.connect(f"tcp://127.0.0.1:{port}")
        ours.send(b"rank 1")
        while not held.poll(10):
            gate.answer()
        assert held.recv() == b"rank 1"
        assert not held.poll(100)
        for each in (*visitors, rank_2, ours, held, gate.socket):
            each.close(0)


@BOTH
def test_nobody_is_let_in_before_the_rendezvous(encrypt: bool) -> None:
    ready, fresh = mechanisms(encrypt)[1], Curve() if encrypt else Plain(0)
    shown = [zmq.utils.z85.decode(ready.published)] if encrypt else [b"1", b""]
    assert not fresh.admits(1, b"CURVE" if encrypt else b"PLAIN", shown)


@contextlib.contextmanager
def tap(host: str, port: int) -> Iterator[tuple[int, bytearray]]:
    """A port that leads to another one, and all that passes through it, both ways."""
    seen = bytearray()
    with socket.create_server((host, 0), family=socket.AF_INET6 if is_ipv6(host) else socket.AF_INET) as door:

        def pump(source: socket.socket, sink: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(1 << 16):
                    seen.extend(data)
                    sink.sendall(data)
            with contextlib.suppress(OSError):
                sink.shutdown(socket.SHUT_WR)

        def serve() -> None:
            with door.accept()[0] as outer, socket.create_connection((host, port)) as inner:
                back = threading.Thread(target=pump, args=(inner, outer))
                back.start()
                pump(outer, inner)
                back.join()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield door.getsockname()[1], seen
        thread.join(30)


@BOTH
def test_who_listens_on_the_line_reads_messages_only_without_encryption(encrypt: bool) -> None:
    zero, one, _ = mechanisms(encrypt)
    with zmq.Context() as context:
        gates = [Gate(context, zero)]
        held, port = gates[0].listen("127.0.0.1", "data", 1)
        with tap("127.0.0.1", port) as (door, seen), zmq.Context() as other:
            gates.append(Gate(other, one))
            ours = gates[1].connect("127.0.0.1", door, "data", 0)
            ours.send(b"the gradient of rank 1")
            while not held.poll(10):
                gates[0].answer()
            assert held.recv() == b"the gradient of rank 1"
            held.send(b"the gradient of rank 0")
            assert ours.recv() == b"the gradient of rank 0"
            ours.close(0)
            gates[1].socket.close(0)
        held.close(0)
        gates[0].socket.close(0)
    assert len(seen) > 100
    readable = [text in seen for text in (b"the gradient of rank 1", b"the gradient of rank 0", b"right")]
    assert readable == [not encrypt] * 3


def test_each_rank_draws_a_key_pair_and_publishes_the_public_half(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = [zmq.curve_keypair() for _ in range(2)]
    monkeypatch.setattr(zmq, "curve_keypair", iter(drawn).__next__)
    assert [Curve().published.encode() for _ in drawn] == [public for public, _ in drawn]


@pytest.mark.parametrize("odd", [0, 1])
def test_where_some_ranks_encrypt_and_others_do_not_all_say_which(odd: int) -> None:
    where = places(3)
    errors = in_threads(3, lambda rank: connect(place=where[rank], timeout=30, encrypt=rank != odd))
    others = ", ".join(str(rank) for rank in range(3) if rank != odd)
    for error in errors:
        assert isinstance(error, MismatchError), error
        lines = {f"rank {odd}: 0", f"ranks {others}: 1"}
        found = re.search(r"encryption:\n  CASYNC_ENCRYPT: (.*)\n", str(error))
        assert found and set(found[1].split("; ")) == lines


def test_encryption_is_switched_on_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASYNC_ENCRYPT", "1")
    where = places(2)
    joined = in_threads(2, lambda rank: connect(place=where[rank], timeout=30))
    assert [session.encrypted for session in joined] == [True, True]
    in_threads(2, lambda rank: joined[rank].close())


def test_what_cannot_be_encrypted_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    place = places(2)[1]
    with pytest.raises(ValueError, match=r"'mpi' cannot encrypt.*CASYNC_TRANSPORT=zmq"):
        connect("mpi", place=place, encrypt=True)
    job: Any = SimpleNamespace(session=SimpleNamespace(encrypted=True))
    settings: Any = Settings(codecs=None, exact="torch")  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"exact='torch'.*unencrypted.*exact='ring'"):
        settings.spec(job, ())
    monkeypatch.setattr(zmq, "has", lambda capability: capability != "curve")
    with pytest.raises(ValueError, match=r"libzmq [\d.]+ here was built without CURVE"):
        connect(place=place, encrypt=True)


def test_a_rank_that_dies_is_named_at_once_on_encrypted_connections() -> None:
    """Of processes that meet by IPv6; T is a minute."""
    with Job(3, "train", timeout=60, host=IPV6, encrypt=True) as job:
        for line in job.processes[1].stdout or ():
            if line.startswith("step 3"):
                break
        job.processes[1].kill()
        ended = job.ended()
    rank, _, _, reason = reports(ended, [0, 2])
    assert rank == 1
    assert "its process has ended" in reason


@HOSTS
def test_sockets_are_bound_to_the_launchers_address_only(host: str) -> None:
    before = listening()
    with sessions(3, host=host):
        ports = new_listening(before, 6)
        assert len(ports) == 6
        assert {address for address, _ in ports} == {host}


def test_no_socket_takes_the_port_at_which_the_ranks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may offer it to a rank that is on rank 0's machine, or to rank 0 itself."""
    bind = zmq.Socket.bind_to_random_port
    spared = free_port()
    offers = [spared]

    def offer(socket: zmq.Socket[bytes], address: str) -> int:
        if not offers:
            return bind(socket, address)
        socket.bind(f"{address}:{offers[0]}")
        return offers.pop()

    monkeypatch.setattr(zmq.Socket, "bind_to_random_port", offer)
    with zmq.Context() as context:
        gate = Gate(context, Plain(0), spared)
        held, port = gate.listen("127.0.0.1", "control", 1)
        assert port != spared
        meeting = context.socket(zmq.ROUTER)
        meeting.bind(f"tcp://127.0.0.1:{spared}")  # Raises where it is taken.
        for one in (held, meeting, gate.socket):
            one.close(0)
