"""Conformance: what every transport that carries messages must do. One class, all transports."""

from __future__ import annotations

import contextlib
import itertools
import queue
import random
import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from casync_jobs import IPV6, PATIENCE, sessions
from nccl_jobs import nccl_network

from casync import frames
from casync.control import RankFailure
from casync.frames import Header
from casync.transports import base
from casync.transports.loopback import LoopbackNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from casync.transports.base import Body, Transport

SIZE = 3


@contextlib.contextmanager
def zmq_network(size: int) -> Iterator[list[Transport]]:
    with sessions(size) as joined:
        yield [session.transport for session in joined]


@contextlib.contextmanager
def encrypted_zmq_network(size: int) -> Iterator[list[Transport]]:
    with sessions(size, host=IPV6, encrypt=True) as joined:
        yield [session.transport for session in joined]


@contextlib.contextmanager
def loopback_network(size: int) -> Iterator[list[Transport]]:
    network = LoopbackNetwork(size)
    yield [network.transport(rank) for rank in range(size)]
    network.close()


@contextlib.contextmanager
def unruly_loopback_network(size: int) -> Iterator[list[Transport]]:
    network = LoopbackNetwork(size, delay=0.005, reorder=True, seed=1)
    yield [network.transport(rank) for rank in range(size)]
    network.close()


@contextlib.contextmanager
def mpi_network(size: int) -> Iterator[list[Transport]]:
    """Ranks as threads of one MPI process: each has its own communicators, through which all send to it."""
    from mpi4py import MPI

    from casync.transports.mpi import MpiTransport, Way

    ways = [Way(MPI.COMM_SELF.Dup(), MPI.COMM_SELF.Dup(), 0) for _ in range(size)]
    network = LoopbackNetwork(size)
    made = [MpiTransport(rank, ways, network.control(rank)) for rank in range(size)]
    yield list(made)
    for transport in made:
        transport.close()
    network.close()


@contextlib.contextmanager
def gloo_network(size: int) -> Iterator[list[Transport]]:
    with nccl_network(size) as ends:
        yield [transport for _, transport in ends]


NETWORKS = {
    "zmq": zmq_network,
    "zmq, encrypted, by IPv6": encrypted_zmq_network,
    "nccl, by gloo": gloo_network,
    "mpi": mpi_network,
    "loopback": loopback_network,
    "loopback, reordered": unruly_loopback_network,
}


def test_every_transport_that_carries_messages_is_held_to_the_contract() -> None:
    assert {name.partition(",")[0] for name in NETWORKS} == set(base.names())


def header_for(step: int, task: int, body: Body | None) -> Header:
    return Header(step, task, 0, 0, memoryview(b"" if body is None else body).nbytes)


class Inbox:
    """Keeps what arrives at one rank, by reference."""

    def __init__(self, transport: Transport) -> None:
        self.transport = transport
        self.frames: queue.SimpleQueue[tuple[int, Header, memoryview]] = queue.SimpleQueue()
        transport.start(lambda *frame: self.frames.put(frame))

    def take(self, count: int) -> list[tuple[int, Header, memoryview]]:
        return [self.frames.get(timeout=PATIENCE) for _ in range(count)]


@pytest.fixture(params=NETWORKS)
def transports(request: pytest.FixtureRequest) -> Iterator[list[Transport]]:
    with NETWORKS[request.param](SIZE) as made:
        yield made


@pytest.fixture
def inboxes(transports: list[Transport]) -> list[Inbox]:
    return [Inbox(transport) for transport in transports]


class TestTransport:
    def test_it_knows_its_place(self, transports: list[Transport]) -> None:
        assert [(it.rank, it.size) for it in transports] == [(rank, SIZE) for rank in range(SIZE)]
        assert all(it.name in base.names() for it in transports)

    def test_every_frame_arrives_once_and_whole_from_its_sender(self, inboxes: list[Inbox]) -> None:
        draw = random.Random(5)
        sent: dict[int, set[tuple[int, Header, bytes]]] = {rank: set() for rank in range(SIZE)}
        sizes = [0, 1, 31, 32, 4096, 65535, 65536, 65537, 300_000]
        for task in range(120):
            source, target = draw.sample(range(SIZE), 2)
            body = draw.randbytes(draw.choice(sizes))
            header = Header(
                draw.getrandbits(64), task, draw.choice([0, 1, 2, 4]), draw.getrandbits(32), len(body)
            )
            sent[target].add((source, header, body))
            inboxes[source].transport.send(target, header, body)
        for rank, inbox in enumerate(inboxes):
            got = [(peer, header, bytes(body)) for peer, header, body in inbox.take(len(sent[rank]))]
            assert set(got) == sent[rank]
            assert inbox.frames.empty()

    def test_frames_sent_before_the_receiver_starts_arrive(self, transports: list[Transport]) -> None:
        first = Inbox(transports[0])
        transports[1].start(lambda *_: None)
        transports[1].send(0, header_for(1, 2, b"early"), b"early")
        first.take(1)
        transports[1].send(2, header_for(1, 2, b"early"), b"early")
        last = Inbox(transports[2])
        assert bytes(last.take(1)[0][2]) == b"early"

    @pytest.mark.parametrize(
        "body",
        [
            None,
            b"",
            b"bytes",
            bytearray(b"bytearray"),
            memoryview(b"a view")[2:],
            np.arange(5000, dtype=np.float32),
            np.arange(40_000, dtype=np.float32)[100:],
            np.zeros(0, np.float32),
            np.zeros((3, 4), np.uint8),
        ],
        ids=lambda body: f"{type(body).__name__} {0 if body is None else memoryview(body).nbytes}",
    )
    def test_any_contiguous_buffer_is_a_body(self, inboxes: list[Inbox], body: Body | None) -> None:
        inboxes[0].transport.send(1, header_for(3, 4, body), body)
        ((peer, header, got),) = inboxes[1].take(1)
        assert (peer, header.step, header.task) == (0, 3, 4)
        assert bytes(got) == (b"" if body is None else memoryview(body).tobytes())
        assert (got.ndim, got.itemsize) == (1, 1)

    def test_large_bodies_cross_in_both_directions_at_once(self, inboxes: list[Inbox]) -> None:
        bodies = [np.random.default_rng(rank).integers(0, 256, 16 << 20, np.uint8) for rank in range(2)]
        for rank in range(2):
            inboxes[rank].transport.send(1 - rank, header_for(0, rank, bodies[rank]), bodies[rank])
        for rank in range(2):
            ((peer, _, got),) = inboxes[rank].take(1)
            assert np.array_equal(np.frombuffer(got, np.uint8), bodies[peer])

    def test_many_small_frames_from_several_threads_arrive(self, inboxes: list[Inbox]) -> None:
        def send(thread: int) -> None:
            for number in range(500):
                body = b"%d %d" % (thread, number)
                inboxes[thread % 2].transport.send(2, header_for(thread, number, body), body)

        threads = [threading.Thread(target=send, args=(thread,)) for thread in range(4)]
        for thread in threads:
            thread.start()
        got = {
            (header.step, header.task): (peer, bytes(body)) for peer, header, body in inboxes[2].take(2000)
        }
        for thread in threads:
            thread.join()
        assert got == {(t, n): (t % 2, b"%d %d" % (t, n)) for t in range(4) for n in range(500)}

    @pytest.mark.parametrize("nbytes", [0, 100, 70_000, 1 << 20])
    def test_done_is_called_once_and_the_buffer_is_free_then(self, inboxes: list[Inbox], nbytes: int) -> None:
        """One buffer is used again for each send, as a pool does, as soon as `done` has been called."""
        buffer = np.zeros(nbytes, np.uint8)
        done: queue.SimpleQueue[int] = queue.SimpleQueue()
        for task in range(20):
            buffer[:] = task
            inboxes[0].transport.send(
                1, header_for(0, task, buffer), buffer, lambda task=task: done.put(task)
            )
            assert done.get(timeout=PATIENCE) == task
        for _, header, body in inboxes[1].take(20):
            assert set(bytes(body)) == ({header.task} if nbytes else set())
        assert done.empty()

    def test_a_body_stays_valid_as_long_as_it_is_referenced(self, transports: list[Transport]) -> None:
        inbox = Inbox(transports[0])
        transports[1].start(lambda *_: None)
        sizes = [10, 5000, 100_000] * 30
        for task, nbytes in enumerate(sizes):
            body = bytes([task]) * nbytes
            transports[1].send(0, header_for(0, task, body), body)
        got = inbox.take(len(sizes))
        transports[1].close()
        transports[0].close()
        for _, header, body in got:
            assert bytes(body) == bytes([header.task]) * sizes[header.task]

    @pytest.mark.parametrize("nbytes", [1, 5000, 65_535, 100_000])
    def test_a_body_lies_as_codecs_need_it(self, inboxes: list[Inbox], nbytes: int) -> None:
        for task in range(4):
            body = np.zeros(nbytes + task, np.uint8)
            inboxes[0].transport.send(1, header_for(0, task, body), body)
        for _, _, got in inboxes[1].take(4):
            assert np.frombuffer(got, np.uint8).ctypes.data % 16 == 0

    def test_what_was_sent_before_a_close_arrives(self, inboxes: list[Inbox]) -> None:
        for task in range(50):
            inboxes[0].transport.send(1, header_for(0, task, b"x" * 100_000), b"x" * 100_000)
        inboxes[0].transport.close()
        assert {header.task for _, header, _ in inboxes[1].take(50)} == set(range(50))

    @pytest.mark.parametrize("order", list(itertools.permutations(range(SIZE))))
    def test_ranks_close_in_any_order_while_others_send(
        self, inboxes: list[Inbox], order: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("casync.transports.zmq.LINGER", 200)  # nobody will read what is sent late
        monkeypatch.setattr("casync.transports.mpi.LINGER", 0.2)
        monkeypatch.setattr("casync.transports.nccl.LINGER", 0.2)
        for left, rank in enumerate(order):
            inboxes[rank].transport.close()
            for still in order[left + 1 :]:
                for peer in set(range(SIZE)) - {still}:
                    inboxes[still].transport.send(peer, header_for(0, rank, b"late"), b"late")
            inboxes[rank].transport.close()


@pytest.mark.parametrize(
    ("parts", "named"),
    [
        ([b"HTTP" + bytes(28), b""], "HTTP"),
        ([frames.pack(Header(0, 0, 0, 0, 5)), b"four"], "announces 5 bytes"),
        ([frames.pack(Header(0, 0, 0, 0, 0))], "parts"),
        ([b"", b"", b""], "parts"),
        ([b"short", b""], "32 bytes"),
    ],
)
def test_a_broken_frame_fails_the_job_and_names_its_sender(parts: list[bytes], named: str) -> None:
    with sessions(2) as joined:
        sender: Any = joined[1].transport
        sender._sockets[0].send_multipart(parts)
        failed: queue.Queue[RankFailure] = queue.Queue()
        joined[0].control.on_failure(failed.put)
        joined[0].transport.start(lambda *_: None)
        failure = failed.get(timeout=PATIENCE)
        assert failure.rank == 1
        assert named in failure.reason
        with pytest.raises(RankFailure, match="broken frame"):
            joined[1].control.abort(RankFailure(0, None, None, "later"))
            joined[1].control.check()


def test_what_cannot_be_sent_is_refused_where_it_is_sent() -> None:
    with sessions(2) as joined:
        send: Callable[..., None] = joined[0].transport.send
        with pytest.raises(ValueError, match="no connection to rank 2"):
            send(2, header_for(0, 0, b""), b"")
        with pytest.raises(ValueError, match="announces 3 bytes, the body has 4"):
            send(1, Header(0, 0, 0, 0, 3), b"four")
        with pytest.raises(ValueError, match="contiguous"):
            send(1, Header(0, 0, 0, 0, 20), np.zeros(10, np.float32)[::2])
        with pytest.raises(frames.FrameError):
            send(1, Header(0, -1, 0, 0, 0), b"")


def test_a_single_rank_sends_to_nobody() -> None:
    from casync.solo import SoloTransport

    transport = SoloTransport()
    transport.start(lambda *_: None)
    with pytest.raises(ValueError, match="one rank"):
        transport.send(0, header_for(0, 0, b""), b"")
    transport.close()


def test_a_transport_is_found_by_its_file() -> None:
    assert {"loopback", "zmq"} <= set(base.names())
    assert base.load("zmq").open
    with pytest.raises(ValueError, match=r"no transport 'tin'; there are: .*zmq"):
        base.load("tin")
