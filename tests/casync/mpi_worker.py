"""One rank of a job under mpirun: exchanges bodies of many sizes with all others, and prints its rank."""

from __future__ import annotations

import queue
from collections.abc import Callable

import numpy as np

from casync.frames import Header
from casync.session import connect

SIZES = (0, 1, 65_535, 65_536, 65_537, 3_000_000)
ROUNDS = 5


def body_of(source: int, target: int, task: int) -> np.ndarray:
    return np.random.default_rng([source, target, task]).integers(0, 256, SIZES[task % len(SIZES)], np.uint8)


with connect() as session:
    inbox: queue.SimpleQueue[tuple[int, Header, memoryview]] = queue.SimpleQueue()
    sent: queue.SimpleQueue[int] = queue.SimpleQueue()
    session.transport.start(lambda *frame: inbox.put(frame))
    others = [peer for peer in range(session.size) if peer != session.rank]
    tasks = range(ROUNDS * len(SIZES))

    def told(task: int) -> Callable[[], None]:
        return lambda: sent.put(task)

    for task in tasks:
        for peer in others:
            body = body_of(session.rank, peer, task)
            session.transport.send(peer, Header(0, task, 0, 0, body.nbytes), body, told(task))
    seen = set()
    for _ in range(len(tasks) * len(others)):
        peer, header, got = inbox.get(timeout=30)
        assert np.array_equal(np.frombuffer(got, np.uint8), body_of(peer, session.rank, header.task))
        seen.add((peer, header.task))
        sent.get(timeout=30)
    assert len(seen) == len(tasks) * len(others)
    session.control.gather("the end", b"")
    print(session.rank, flush=True)
