"""Buffers: what comes back is used again, and after the first steps nothing allocates what grows with n."""

from __future__ import annotations

import contextlib
import threading
import tracemalloc
from typing import TYPE_CHECKING

import numpy as np
import pytest
from casync_jobs import in_threads, sessions
from hypothesis import given
from hypothesis import strategies as st
from nccl_jobs import nccl_network

import compll
from casync.buffers import ALIGN, Pool
from casync.channels import Channels
from casync.plan import Entry, Gradient, Plan
from casync.spec import Spec
from casync.synchronizer import Synchronizer
from casync.transports.loopback import LoopbackNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casync.control import Control
    from casync.transports.base import Transport

    Ends = list[tuple[Control, Transport]]


def test_what_is_lent_comes_back_when_its_last_slice_is_gone() -> None:
    pool = Pool()
    lent = pool.lend(1000)
    lent[500] = 7
    tail = np.frombuffer(lent[500:], np.uint8)
    del lent
    assert not any(pool._free.values())
    assert tail[0] == 7
    address = tail.ctypes.data - 500
    del tail
    ((buffer,),) = (free for free in pool._free.values() if free)
    assert buffer.ctypes.data == address
    assert np.frombuffer(pool.lend(990), np.uint8).ctypes.data == address


@given(st.integers(1, 10_000_000), st.lists(st.floats(0.5, 1.0), min_size=50, max_size=50))
def test_lengths_that_differ_from_step_to_step_share_few_buffers(most: int, parts: list[float]) -> None:
    pool = Pool()
    for part in parts:
        lent = pool.lend(nbytes := int(most * part))
        assert lent.nbytes == nbytes
        assert not nbytes or np.frombuffer(lent, np.uint8).ctypes.data % ALIGN == 0
        del lent
    sizes = {size: len(free) for size, free in pool._free.items()}
    assert all(count == 1 for count in sizes.values())
    assert len(sizes) <= 18
    assert max(sizes) <= most * 9 / 8 + ALIGN


@contextlib.contextmanager
def loopback(size: int) -> Iterator[Ends]:
    network = LoopbackNetwork(size)
    yield [(network.control(rank), network.transport(rank)) for rank in range(size)]
    network.close()


@contextlib.contextmanager
def zmq(size: int) -> Iterator[Ends]:
    with sessions(size) as joined:
        yield [(session.control, session.transport) for session in joined]


@contextlib.contextmanager
def mpi(size: int) -> Iterator[Ends]:
    from mpi4py import MPI

    from casync.transports.mpi import MpiTransport, Way

    ways = [Way(MPI.COMM_SELF.Dup(), MPI.COMM_SELF.Dup(), 0) for _ in range(size)]
    network = LoopbackNetwork(size)
    made = [MpiTransport(rank, ways, network.control(rank)) for rank in range(size)]
    yield [(network.control(rank), transport) for rank, transport in enumerate(made)]
    for transport in made:
        transport.close()
    network.close()


NETWORKS = {"loopback": loopback, "zmq": zmq, "mpi": mpi, "nccl, by gloo": nccl_network}
ELEMENTS = 1_000_000
CASES = ("int8 ps", "terngrad ring", "bf16 direct", "topk allgather")


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("case", CASES)
def test_after_the_first_steps_nothing_is_allocated_that_grows_with_n(network: str, case: str) -> None:
    """As Python and NumPy see it; ZeroMQ and MPI have memory of their own.

    How many frames are under way differs from step to step, so that a later step may still be the first
    with so many: what counts is that steps without an allocation come.
    """
    gradients = tuple(Gradient(name, (ELEMENTS,)) for name in ("compressed", "exact"))
    plan = Plan(tuple(Entry(g.name, g.name == "compressed", 2) for g in gradients))
    codec, topology = case.split()
    spec = Spec(gradients, plan, compll.compile(codec), topology)
    quiet = threading.Event()
    peaks: list[int] = []

    def measure() -> None:
        if tracemalloc.is_tracing():
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        if peaks and peaks[-1] < ELEMENTS // 4:
            quiet.set()
        tracemalloc.start()

    barrier = threading.Barrier(2, action=measure)

    with NETWORKS[network](2) as ends:

        def train(rank: int) -> None:
            control, transport = ends[rank]
            synchronizer = Synchronizer(control, Channels(transport), spec, threads=1)
            rng = np.random.default_rng(rank)
            values = {g.name: rng.standard_normal(ELEMENTS, np.float32) for g in gradients}
            for _ in range(20):
                barrier.wait()
                if quiet.is_set():
                    break
                for _ in range(2):
                    for name, gradient in values.items():
                        synchronizer.submit(name, gradient)
                    synchronizer.synchronize()
            synchronizer.close()

        try:
            assert in_threads(2, train) == [None, None]
        finally:
            tracemalloc.stop()
    assert quiet.is_set(), peaks
