"""The control plane, with ranks as threads: each has its own session, sockets and control thread."""

from __future__ import annotations

import os
import queue
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from casync_jobs import in_threads, listening, places, sessions

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
    before = listening()
    with connect(place=Launch()) as session:
        assert (session.rank, session.size, session.local_rank, session.local_size) == (0, 1, 0, 1)
        assert session.control.gather("t", b"x") == [b"x"]
        session.control.agree("t", {"a": "b"})
        session.control.waits(None)
        assert listening() == before
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
