"""Whatever goes wrong on a rank, every rank raises the same report, which names who, what and when."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from casync_jobs import in_threads
from loopback_jobs import random_steps, run_job, spec_of, try_job
from numpy_codecs import CODECS, OneBit

from casync.channels import Channels
from casync.control import RankFailure, Wait
from casync.frames import Header
from casync.synchronizer import Synchronizer
from casync.transports.loopback import LoopbackControl, LoopbackNetwork, LoopbackTransport

if TYPE_CHECKING:
    from collections.abc import Callable

SHAPES = {"conv": (90, 100), "bias": (10,)}
TOPOLOGIES = ("ps", "ring")


def failures(results: list[Any]) -> RankFailure:
    """The failure that all ranks raised."""
    assert all(isinstance(result, RankFailure) for result in results), results
    assert len(set(results)) == 1
    return results[0]


def steps(nranks: int = 3, count: int = 3) -> Any:
    return random_steps(np.random.default_rng(1), SHAPES, nranks, count)


def spoil(
    monkeypatch: pytest.MonkeyPatch, change: Callable[[Header, bytes], tuple[Header, bytes]], sender: int = 1
) -> None:
    """Change what `sender` sends in step 1 of the synchronizer's first compressed partition."""
    send = LoopbackTransport.send

    def spoiled(self: LoopbackTransport, peer: int, header: Header, body: Any, done: Any = None) -> None:
        if self.rank == sender and header.step == 1 and body is not None and header.task < 6:
            header, body = change(header, bytes(body))
        send(self, peer, header, body, done)

    monkeypatch.setattr(LoopbackTransport, "send", spoiled)


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("codec", [CODECS[0], CODECS[2]], ids=lambda c: c.info.name)
def test_a_truncated_payload_names_its_sender(
    codec: Any, topology: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def truncate(header: Header, body: bytes) -> tuple[Header, bytes]:
        return Header(header.step, header.task, 0, 0, len(body) - 1), body[:-1]

    spoil(monkeypatch, truncate)
    failure = failures(try_job(spec_of(SHAPES, codec, topology, 3), steps()))
    assert (failure.rank, failure.gradient, failure.step) == (1, "conv", 1)
    assert "its payload cannot be decoded" in failure.reason


def test_a_body_that_is_not_what_was_sent_names_its_sender(monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, lambda header, body: (header, bytes([body[0] ^ 1]) + body[1:]))
    failure = failures(try_job(spec_of(SHAPES, CODECS[0], "ring", 3), steps()))
    assert (failure.rank, failure.gradient, failure.step) == (1, "conv", 1)
    assert "CRC32C" in failure.reason


@pytest.mark.parametrize("task", [0x00FFFFFF, 1])
def test_a_message_that_nobody_expects_names_its_sender(task: int) -> None:
    net = LoopbackNetwork(2)
    control = net.control(0)
    synchronizer = Synchronizer(control, Channels(net.transport(0)), spec_one(net))
    net.transport(1).start(lambda *_: None)
    net.transport(1).send(0, Header(5, task, 0, 0, 0), None)
    with pytest.raises(
        RankFailure, match=r"rank 1 failed .*step 5\): it sent message \d+, unexpected at step 0"
    ):
        synchronizer.synchronize()
    synchronizer.close()
    net.close()


def spec_one(net: LoopbackNetwork) -> Any:
    """A spec for rank 0 alone of two: the other rank only agrees."""
    spec = spec_of(SHAPES, None, "ps", 2).settled(2)

    def agree() -> None:
        net.control(1).agree("what is synchronized", spec.facts())
        net.control(1).gather("a channel", b"0")

    threading.Thread(target=agree, daemon=True).start()
    return spec


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_an_error_of_one_rank_s_own_fails_all_and_names_it(topology: str) -> None:
    class Breaks(OneBit):
        def compress(self, x: Any, seed: int, shared: int) -> bytes:
            if (x == 12345).any():
                raise ZeroDivisionError("no such thing")
            return super().compress(x, seed, shared)

    given = steps()
    given[2][1]["conv"][:] = 12345
    failure = failures(try_job(spec_of(SHAPES, Breaks(), topology, 3), given))
    assert (failure.rank, failure.gradient, failure.step) == (1, "conv", 2)
    assert "ZeroDivisionError: no such thing" in failure.reason


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_lost_messages_end_in_a_report_not_in_a_hang(topology: str) -> None:
    failure = failures(
        try_job(spec_of(SHAPES, CODECS[0], topology, 3), steps(count=50), drop=0.2, timeout=0.5, seed=3)
    )
    assert failure.gradient in SHAPES
    assert "wait for each other" in failure.reason or "no progress" in failure.reason


@pytest.mark.parametrize("topology", TOPOLOGIES)
@pytest.mark.parametrize("link", [(0, 1), (1, 2), (3, 0)])
def test_a_link_that_is_cut_ends_in_a_report_that_names_one_of_its_ends(
    link: tuple[int, int], topology: str
) -> None:
    failure = failures(
        try_job(spec_of(SHAPES, CODECS[0], topology, 4), steps(4, 6), cut=(*link, 3), timeout=0.5)
    )
    assert failure.rank in link
    assert failure.gradient in SHAPES
    assert failure.step == 3


def test_corruption_is_caught_by_checksums() -> None:
    failure = failures(try_job(spec_of(SHAPES, CODECS[0], "ps", 3), steps(count=50), corrupt=0.2, seed=3))
    assert "CRC32C" in failure.reason


def test_a_rank_that_stops_computing_is_named_by_those_that_wait_for_it() -> None:
    """Rank 2 never calls synchronize: the chain of waits ends there."""
    net = LoopbackNetwork(3, timeout=0.5)

    def work(rank: int) -> Any:
        synchronizer = Synchronizer(
            net.control(rank), Channels(net.transport(rank)), spec_of(SHAPES, None, "ring", 3)
        )
        try:
            if rank < 2:
                synchronizer.submit("conv", np.ones(9000, np.float32))
                synchronizer.synchronize()
            else:
                net.control(2).gather("never", b"")
        finally:
            synchronizer.close()

    assert failures(in_threads(3, work)).rank == 2
    net.close()


def test_a_rank_says_whom_it_waits_for_and_that_it_computes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the chain of waits would lead past a rank whose kernel takes long."""
    told: dict[int, Wait | None] = {}
    waited: set[Wait] = set()
    during: list[Wait | None] = []

    def waits(self: LoopbackControl, wait: Wait | None) -> None:
        told[self.rank] = wait
        if wait:
            waited.add(wait)

    class Watched(OneBit):
        def compress(self, x: Any, seed: int, shared: int) -> bytes:
            during.append(told[int(threading.current_thread().name.rsplit("-", 1)[1])])
            return super().compress(x, seed, shared)

    monkeypatch.setattr(LoopbackControl, "waits", waits)
    run_job(spec_of(SHAPES, Watched(), "ring", 3), steps(), delay=0.02)
    assert during
    assert set(during) == {None}
    assert {wait.rank for wait in waited} == {0, 1, 2}
    assert {wait.step for wait in waited} == {0, 1, 2}
    assert {wait.gradient for wait in waited} <= set(SHAPES)


def test_the_failure_is_raised_again_by_every_later_call() -> None:
    net = LoopbackNetwork(1)
    synchronizer = Synchronizer(net.control(0), Channels(net.transport(0)), spec_of(SHAPES, None, "ps", 1))
    net.control(0).abort(RankFailure(0, None, None, "power cut"))
    for _ in range(2):
        with pytest.raises(RankFailure, match="rank 0 failed: power cut"):
            synchronizer.synchronize()
    synchronizer.close()
    net.close()


def test_reordered_and_delayed_messages_are_no_failure() -> None:
    run_job(spec_of(SHAPES, CODECS[0], "ring", 3), steps(), delay=0.02, reorder=True)
