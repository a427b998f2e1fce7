from __future__ import annotations

import socket
from typing import TYPE_CHECKING

import pytest
import zmq
from casync_jobs import IPV6, Store, free_port, in_threads, places

from casync import launch, rendezvous
from casync.launch import Launch, Rank0, RendezvousError
from casync.rendezvous import Table

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casync.gate import Context


@pytest.fixture
def context() -> Iterator[Context]:
    with zmq.Context() as made:
        yield made


def meet(context: Context, where: list[Launch], timeout: float) -> list[Table | Exception]:
    """Let every rank of `where` bring "from <rank>"."""
    return in_threads(
        len(where), lambda i: rendezvous.meet(context, where[i], f"from {where[i].rank}", timeout)
    )


def at(store: Store, rank: int, size: int, host: str = "127.0.0.1") -> Launch:
    return Launch(rank, size, meeting=launch.Store(host, store.port))


@pytest.mark.parametrize("size", [2, 5])
def test_ranks_that_meet_at_rank_0_get_all_records_and_one_secret(context: Context, size: int) -> None:
    tables = meet(context, places(size), 30)
    assert isinstance(tables[0], Table), tables[0]
    assert tables == [Table(tables[0].secret, tuple(f"from {rank}" for rank in range(size)))] * size
    assert len(tables[0].secret) == 32


@pytest.mark.parametrize("size", [2, 5])
def test_ranks_that_meet_at_a_store_get_all_records_and_one_secret(context: Context, size: int) -> None:
    with Store() as store:
        where = [at(store, rank, size) for rank in range(size)]
        first, second = meet(context, where, 30), meet(context, where, 30)
        assert all(path.startswith("/casync/") and path.count("/") == 2 for path in store.held)
    for tables in (first, second):
        assert isinstance(tables[0], Table), tables[0]
        assert tables == [Table(tables[0].secret, tuple(f"from {rank}" for rank in range(size)))] * size
    assert first[0] != second[0], "a later session of the same processes must not read the first one's table"


def test_ranks_meet_by_ipv6(context: Context) -> None:
    with Store(IPV6) as store:
        for where in (places(3, IPV6), [at(store, rank, 3, IPV6) for rank in range(3)]):
            tables = meet(context, where, 30)
            assert isinstance(tables[0], Table), tables[0]
            assert tables == [Table(tables[0].secret, ("from 0", "from 1", "from 2"))] * 3


def test_every_rank_names_the_missing_ones_at_rank_0(context: Context) -> None:
    where = places(4)
    for failed in meet(context, [where[0], where[2]], 0.5):
        assert isinstance(failed, RendezvousError)
        assert str(failed).startswith("ranks 1, 3 of 4 did not join in time")


def test_every_rank_names_the_missing_ones_at_a_store(context: Context) -> None:
    with Store() as store:
        for failed in meet(context, [at(store, 0, 4), at(store, 2, 4)], 0.5):
            assert isinstance(failed, RendezvousError)
            assert str(failed).startswith("ranks 1, 3 of 4 did not join in time")
    with Store() as store:
        (failed,) = meet(context, [at(store, 1, 2)], 0.5)
        assert str(failed).startswith("rank 0 of 2 did not join in time")


def test_a_missing_rank_0_is_named(context: Context) -> None:
    (failed,) = meet(context, places(2)[1:], 0.5)
    assert isinstance(failed, RendezvousError)
    assert str(failed).startswith("rank 0 of 2 did not join in time")


def test_a_store_that_does_not_answer_is_named(context: Context) -> None:
    (failed,) = meet(context, [Launch(1, 2, meeting=launch.Store("127.0.0.1", free_port()))], 0.5)
    assert isinstance(failed, RendezvousError)
    assert "does not answer" in str(failed)


def test_two_processes_of_one_rank_are_told_apart(context: Context) -> None:
    where = places(3)
    failed = meet(context, [where[0], where[1], where[1]], 1.0)
    assert all(isinstance(error, RendezvousError) for error in failed)
    assert any("rank 1 joined twice" in str(error) for error in failed[1:])
    assert "rank 2 of 3 did not join" in str(failed[0])


def test_a_rank_of_a_job_of_another_size_is_refused_on_both_sides(context: Context) -> None:
    meeting = Rank0("127.0.0.1", free_port())
    failed = meet(context, [Launch(0, 2, meeting=meeting), Launch(1, 3, meeting=meeting)], 1.0)
    for error in failed:
        assert isinstance(error, RendezvousError)
        assert "rank 1 of 3, but rank 0 was started with size 2" in str(error)


def test_strangers_at_the_meeting_point_change_nothing(context: Context) -> None:
    where = places(2)
    assert isinstance(where[0].meeting, Rank0)
    there = ("127.0.0.1", where[0].meeting.port)

    def visit(_: int) -> None:
        with socket.socket() as mute, socket.socket() as loud:
            while loud.connect_ex(there):
                pass
            mute.connect(there)
            loud.sendall(b"GET / HTTP/1.0\r\n\r\n")
            stranger = context.socket(zmq.DEALER)
            stranger.connect("tcp://{}:{}".format(*there))
            for message in (
                [b"casync join 1"],
                [b"casync join 1", b"x", b"2", b""],
                [b"hello", b"", b"", b""],
            ):
                stranger.send_multipart(message)
            results = meet(context, where[1:], 30)
            stranger.close(0)
        assert isinstance(results[0], Table)

    done = in_threads(2, lambda i: visit(i) if i else rendezvous.meet(context, where[0], "from 0", 30))
    assert isinstance(done[0], Table), done
    assert done[1] is None, done


def test_a_port_that_is_taken_is_named(context: Context) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        where = Launch(0, 2, meeting=Rank0("127.0.0.1", taken.getsockname()[1]))
        with pytest.raises(RendezvousError, match=r"cannot listen at 127\.0\.0\.1.*CASYNC_ADDR"):
            rendezvous.meet(context, where, "", 0.5)
