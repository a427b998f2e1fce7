"""What a task costs: the executor with small gradients, so that nearly all time is the runtime's own."""

from __future__ import annotations

import os
import platform
import socket
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

import compll
from casync.job import Job
from casync.launch import Launch, Rank0
from casync.plan import GRANULE, PART, Entry, Gradient, Plan
from casync.session import Session, connect
from casync.spec import Spec
from casync.synchronizer import Synchronizer
from casync.transports.loopback import LoopbackNetwork

if TYPE_CHECKING:
    from collections.abc import Callable

WARM_UP = 5
TRANSPORTS = ("loopback", "zmq")
"""Those whose ranks can be threads of one process."""


@dataclass(frozen=True)
class Case:
    """What is measured: the ranks are threads of this process, whatever the transport."""

    transport: str
    topology: str
    codec: str | None
    ranks: int
    gradients: int
    elements: int
    steps: int


@dataclass(frozen=True)
class Cost:
    """What came out; tasks and CPU are of all ranks together."""

    case: Case
    tasks: int
    seconds: float
    cpu_seconds: float

    @property
    def tasks_per_second(self) -> float:
        """Tasks of all ranks a second."""
        return self.tasks / self.seconds

    @property
    def cpu_microseconds_per_task(self) -> float:
        """CPU of the whole process, kernels and transport included, a task."""
        return 1e6 * self.cpu_seconds / self.tasks


def measure(case: Case) -> Cost:
    """Run one case; BrokenBarrierError if a rank fails, whose own error is printed."""
    names = [f"gradient{i}" for i in range(case.gradients)]
    spec = Spec(
        tuple(Gradient(name, (case.elements,)) for name in names),
        Plan(tuple(Entry(name, bool(case.codec), 2 if case.codec else 1) for name in names)),
        compll.compile(case.codec) if case.codec else None,
        case.topology,
    )
    barrier = threading.Barrier(case.ranks + 1)
    tasks = [0] * case.ranks

    def work(rank: int, session: Session) -> None:
        job = Job(session)
        synchronizer = Synchronizer(session.control, job.channels, spec, threads=1)
        job.keep(synchronizer, maker=job)
        values = np.random.default_rng(rank).standard_normal((case.gradients, case.elements), np.float32)
        for step in range(WARM_UP + case.steps):
            if step == WARM_UP:
                before = synchronizer.stats()
                barrier.wait()
            for name, gradient in zip(names, values, strict=True):
                synchronizer.submit(name, gradient)
            synchronizer.synchronize()
        tasks[rank] = synchronizer.stats().since(before).tasks
        barrier.wait()
        job.close()

    open_session, close = _network(case)

    def run(rank: int) -> None:
        try:
            work(rank, open_session(rank))
        except BaseException:
            barrier.abort()  # so that nobody waits for this rank
            raise

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(case.ranks)]
    for thread in threads:
        thread.start()
    barrier.wait()
    wall, cpu = time.perf_counter(), time.process_time()
    barrier.wait()
    seconds, cpu_seconds = time.perf_counter() - wall, time.process_time() - cpu
    for thread in threads:
        thread.join()
    close()
    return Cost(case, sum(tasks), seconds, cpu_seconds)


def _network(case: Case) -> tuple[Callable[[int], Session], Callable[[], None]]:
    if case.transport == "loopback":
        net = LoopbackNetwork(case.ranks)

        def open_loopback(rank: int) -> Session:
            nodes = (tuple(range(case.ranks)),)
            return Session(rank, case.ranks, rank, case.ranks, net.control(rank), net.transport(rank), nodes)

        return open_loopback, net.close
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        meeting = Rank0("127.0.0.1", int(probe.getsockname()[1]))

    def open_session(rank: int) -> Session:
        return connect(case.transport, place=Launch(rank, case.ranks, meeting=meeting))

    return open_session, lambda: None


def cases(ranks: int, steps: int, transports: list[str]) -> list[Case]:
    """Each transport with the exact ring, and with a compressor in both topologies."""
    return [
        Case(transport, topology, codec, ranks, *((25, 2 * GRANULE) if codec else (50, PART)), steps)
        for transport in transports
        for topology, codec in (("ring", None), ("ring", "onebit"), ("ps", "onebit"))
    ]


def markdown(costs: list[Cost]) -> str:
    """A page of results with what they were measured on."""
    head = "| transport | topology | codec | ranks | elements | tasks a step | tasks/s | CPU us a task |\n"
    rows = [
        f"| {c.case.transport} | {c.case.topology} | {c.case.codec or 'none'} | {c.case.ranks} "
        f"| {c.case.gradients} x {c.case.elements} | {c.tasks // c.case.steps} "
        f"| {c.tasks_per_second:,.0f} | {c.cpu_microseconds_per_task:.0f} |\n"
        for c in costs
    ]
    machine = (
        f"{platform.machine()}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"
    )
    return (
        "# What a task of the runtime costs\n\n"
        "Written by `python benchmarks/runtime_tasks.py`. All ranks are threads of one process and share\n"
        "its interpreter lock: tasks a second are of all ranks together, and the CPU of a task holds\n"
        "kernels and transport. A task works on half a compressed gradient: whole\n"
        "ones would share a bucket. Uncompressed ones have 1 MiB, a full bucket: there the copies count,\n"
        "not the task.\n\n"
        f"Machine: {machine}.\n\n{head}" + "|---|---|---|---|---|---|---|---|\n" + "".join(rows)
    )
