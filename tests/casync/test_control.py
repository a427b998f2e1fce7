"""The control plane, with ranks as threads: each has its own session, sockets and control thread."""

from __future__ import annotations

import os
import queue
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import zmq
from casync_jobs import PATIENCE, free_port, in_threads, places, sessions

from casync import machine
from casync.control import MismatchError, RankFailure, Wait
from casync.launch import Launch
from casync.session import connect

if TYPE_CHECKING:
    from casync.plane import Plane
    from casync.session import Session


def plane(session: Session) -> Any:
    control: Plane = session.control  # type: ignore[assignment]
    return control


def ports() -> set[tuple[str, int]]:
    """The addresses at which this process listens for TCP (proc(5), net/tcp)."""
    own = set()
    for entry in Path("/proc/self/fd").iterdir():
        try:
            own.add(str(entry.readlink()))
        except OSError:
            continue
    found = set()
    for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[3] == "0A" and f"socket:[{fields[9]}]" in own:
            address, port = fields[1].split(":")
            found.add((socket.inet_ntoa(bytes.fromhex(address)[::-1]), int(port, 16)))
    return found


def new_ports(before: set[tuple[str, int]], count: int) -> set[tuple[str, int]]:
    """The ones that came, once they are so many: ZeroMQ gives the port where ranks met back in a while."""
    deadline = time.monotonic() + PATIENCE
    while len(found := ports() - before) != count and time.monotonic() < deadline:
        time.sleep(0.01)
    return found


def test_gather_returns_every_ranks_value_in_rank_order() -> None:
    with sessions(4) as joined:
        for turn in range(20):
            values = in_threads(
                4, lambda rank, turn=turn: joined[rank].control.gather("t", b"%d %d" % (rank, turn))
            )
            assert values == [[b"%d %d" % (rank, turn) for rank in range(4)]] * 4


def test_gather_takes_a_mebibyte_and_refuses_more() -> None:
    with sessions(2) as joined:
        value = os.urandom(1 << 20)
        assert in_threads(2, lambda rank: joined[rank].control.gather("t", value)) == [[value, value]] * 2
        with pytest.raises(ValueError, match="1048576"):
            joined[0].control.gather("t", value + b"x")


def test_ranks_that_agree_go_on_and_ranks_that_differ_all_raise_the_same() -> None:
    with sessions(3) as joined:
        assert in_threads(3, lambda rank: joined[rank].control.agree("plan", {"k": "3"})) == [None] * 3
        facts = [{"bits": "2", "k": "3"}, {"bits": "4", "k": "3"}, {"bits": "2", "k": "3"}]
        errors = in_threads(3, lambda rank: joined[rank].control.agree("codec of conv1", facts[rank]))
        assert all(isinstance(error, MismatchError) for error in errors)
        assert len({str(error) for error in errors}) == 1
        assert re.search(r"codec of conv1(.|\n)*bits: ranks 0, 2: 2; rank 1: 4", str(errors[0]))
        assert in_threads(3, lambda rank: joined[rank].control.gather("t", b"")) == [[b""] * 3] * 3


def test_ranks_in_different_collectives_all_raise() -> None:
    with sessions(2) as joined:
        errors = in_threads(2, lambda rank: joined[rank].control.gather(f"topic {rank}", b""))
        for error in errors:
            assert isinstance(error, MismatchError)
            assert "rank 0: topic 0; rank 1: topic 1" in str(error)


def test_an_abort_reaches_every_rank_and_wakes_what_sleeps(capfd: pytest.CaptureFixture[str]) -> None:
    failure = RankFailure(2, "conv1.weight", 12, "its payload is truncated")
    with sessions(3) as joined:
        told: queue.Queue[tuple[int, RankFailure]] = queue.Queue()
        for session in joined:
            session.control.on_failure(lambda got, rank=session.rank: told.put((rank, got)))
            session.control.check()
        joined[1].control.abort(failure)
        assert sorted(told.get(timeout=30) for _ in range(3)) == [(rank, failure) for rank in range(3)]
        for session in joined:
            with pytest.raises(RankFailure) as raised:
                session.control.check()
            assert raised.value == failure
            late: list[RankFailure] = []
            session.control.on_failure(late.append)
            assert late == [failure]
    assert capfd.readouterr().err.count("conv1.weight") == 1, "the report is printed once in a job"


def test_the_first_failure_wins_on_every_rank_whoever_reports() -> None:
    with sessions(4) as joined:
        in_threads(4, lambda rank: joined[rank].control.abort(RankFailure(rank, f"g{rank}", rank, "broken")))
        raised = set()
        for session in joined:
            with pytest.raises(RankFailure) as failure:
                session.control.check()
            raised.add(failure.value)
        assert len(raised) == 1


def test_an_abort_ends_a_collective_that_waits() -> None:
    with sessions(3) as joined:
        failure = RankFailure(1, None, None, "broken")

        def act(rank: int) -> object:
            if rank == 1:
                return joined[1].control.abort(failure)
            return joined[rank].control.gather("never complete", b"")

        assert in_threads(3, act) == [failure, None, failure]


def test_an_exception_that_ends_a_session_fails_the_job_with_its_text() -> None:
    where = places(2)

    def act(rank: int) -> None:
        with connect(timeout=30, place=where[rank]) as session:
            if rank == 1:
                raise ValueError("the data set ends here")
            session.control.gather("never complete", b"")

    first, second = in_threads(2, act)
    assert isinstance(second, ValueError)
    assert isinstance(first, RankFailure)
    assert first.rank == 1
    assert "ValueError: the data set ends here" in first.reason


def test_a_goodbye_is_no_death() -> None:
    with sessions(3) as joined:
        joined[1].close()
        both = [joined[0], joined[2]]
        both[0].control.waits(None)
        for session in both:  # the goodbye has arrived, and the closed connection has been seen
            while plane(session)._peers[1].socket.poll(10) or not plane(session)._peers[1].departed:
                pass
            session.control.check()
        joined[1].close()


def test_who_waits_for_a_rank_that_said_goodbye_is_told() -> None:
    with sessions(2) as joined:
        joined[1].close()
        failed: queue.Queue[RankFailure] = queue.Queue()
        joined[0].control.on_failure(failed.put)
        joined[0].control.waits(Wait(1, "conv1.weight", 3))
        failure = failed.get(timeout=30)
        assert (failure.rank, failure.gradient, failure.step) == (1, "conv1.weight", 3)
        assert "closed its session" in failure.reason


def test_strangers_change_nothing() -> None:
    """They connect to every port of a job: mute, loud, with ZeroMQ, and with a wrong secret."""
    before = ports()
    with sessions(2) as joined:
        listening = new_ports(before, 2)
        assert len(listening) == 2, "a control and a data socket"
        with zmq.Context() as context:
            visitors: list[Any] = []
            for address in listening:
                mute, loud = socket.create_connection(address), socket.create_connection(address)
                loud.sendall(b"GET / HTTP/1.0\r\n\r\n" * 100)
                plain, wrong = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
                wrong.plain_username, wrong.plain_password = b"1", b"0" * 32
                for visitor in (plain, wrong):
                    visitor.linger = 0
                    visitor.connect("tcp://{}:{}".format(*address))
                    visitor.send(b'["abort", [1, null, null, "rubbish"]]')
                visitors += [mute, loud, plain, wrong]
            assert in_threads(2, lambda rank: joined[rank].control.gather("t", b"")) == [[b"", b""]] * 2
            for visitor in visitors:
                visitor.close()
        for turn in range(3):
            assert (
                in_threads(2, lambda rank, t=turn: joined[rank].control.gather("t", b"%d" % t))
                == [[b"%d" % turn] * 2] * 2
            )
            for session in joined:
                session.control.check()


def test_strangers_that_come_first_do_not_take_a_ranks_place() -> None:
    """A socket that rank 1 has not reached yet lets nobody else in, secret or none."""
    from casync.gate import Gate

    with zmq.Context(io_threads=2) as context:
        gate = Gate(context)
        gate.open("right")
        held, port = gate.listen("127.0.0.1", "control", 1)
        visitors = []
        for rank, secret in ((1, "wrong"), (2, "right"), (None, None)):
            stranger = context.socket(zmq.PAIR)
            stranger.linger = 0
            if rank is not None:
                stranger.plain_username, stranger.plain_password = b"%d" % rank, secret.encode()
            stranger.connect(f"tcp://127.0.0.1:{port}")
            stranger.send(b"stranger")
            visitors.append(stranger)
        while gate.socket.poll(300):
            gate.answer()
        ours = gate.connect("127.0.0.1", port, "control", 1)
        ours.send(b"rank 1")
        while not held.poll(10):
            gate.answer()
        assert held.recv() == b"rank 1"
        assert not held.poll(100)
        for one in (*visitors, ours, held, gate.socket):
            one.close(0)


def test_no_socket_takes_the_port_at_which_the_ranks_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system may offer it to a rank that is on rank 0's machine, or to rank 0 itself."""
    from casync.gate import Gate

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
        gate = Gate(context, spared)
        held, port = gate.listen("127.0.0.1", "control", 1)
        assert port != spared
        meeting = context.socket(zmq.ROUTER)
        meeting.bind(f"tcp://127.0.0.1:{spared}")  # Raises where it is taken.
        for one in (held, meeting, gate.socket):
            one.close(0)


def test_sockets_are_bound_to_the_launchers_address_only() -> None:
    before = ports()
    with sessions(3):
        listening = new_ports(before, 6)
        assert len(listening) == 6
        assert {address for address, _ in listening} == {"127.0.0.1"}


def test_a_broken_control_message_of_a_rank_names_it() -> None:
    with sessions(2) as joined:
        failed: queue.Queue[RankFailure] = queue.Queue()
        joined[0].control.on_failure(failed.put)
        broken = plane(joined[1])
        broken._mail.put(lambda: broken._broadcast(b'["nonsense"]'))
        failure = failed.get(timeout=30)
        assert failure.rank == 1
        assert "nonsense" in failure.reason


def test_local_ranks_are_found_without_a_launcher() -> None:
    with sessions(3) as joined:
        assert [(s.rank, s.size, s.local_rank, s.local_size) for s in joined] == [
            (r, 3, r, 3) for r in range(3)
        ]
        assert all(s.nodes == ((0, 1, 2),) for s in joined)


def test_a_single_rank_has_a_session_without_sockets() -> None:
    before = ports()
    with connect(place=Launch()) as session:
        assert (session.rank, session.size, session.local_rank, session.local_size) == (0, 1, 0, 1)
        assert session.control.gather("t", b"x") == [b"x"]
        session.control.agree("t", {"a": "b"})
        session.control.waits(None)
        assert ports() == before
        failure = RankFailure(0, "w", 1, "not finite")
        told: list[RankFailure] = []
        session.control.on_failure(told.append)
        session.control.abort(failure)
        session.control.abort(RankFailure(0, None, None, "later"))
        assert told == [failure]
        with pytest.raises(RankFailure, match="not finite"):
            session.control.check()


def test_what_connect_is_given_is_checked() -> None:
    with pytest.raises(ValueError, match="3 s or more"):
        connect(timeout=1, place=Launch())
    with pytest.raises(ValueError, match=r"'carrier-pigeon'.*zmq"):
        connect("carrier-pigeon", place=Launch())
    with pytest.raises(ValueError, match="one process only"):
        connect("loopback", place=Launch())


def test_only_a_stopped_process_of_this_machine_is_continued() -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        started = machine._stat(child.pid)[1]
        here = machine.this_process()
        it = machine.Process(here.machine, child.pid, started)
        assert not machine.resume(it)
        child.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, child.pid, os.WSTOPPED | os.WNOWAIT)
        assert not machine.resume(machine.Process("elsewhere", child.pid, started))
        assert not machine.resume(machine.Process(here.machine, child.pid, "0"))
        assert machine._stat(child.pid)[0] == "T"
        assert machine.resume(it)
        child.communicate(b"\n", timeout=30)
        assert child.returncode == 0
    finally:
        child.kill()
        child.wait()
