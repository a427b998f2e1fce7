"""A rank of a job that trains nothing: NumPy only. `casync_worker.py <task>`, place from the environment.

Prints "rank <r> is <pid>", "step <k>" after each of the first steps, and on a RankFailure one JSON line with
its fields (exit code 3).
"""

from __future__ import annotations

import json
import os
import queue
import sys
import time

import numpy as np

from casync.control import RankFailure, Wait
from casync.frames import Header
from casync.session import Session, connect


class Worker:
    def __init__(self, session: Session) -> None:
        self.session = session
        self.inbox: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self.early: set[tuple[int, int]] = set()
        session.control.on_failure(lambda _: self.inbox.put(None))
        session.transport.start(lambda peer, header, _: self.inbox.put((peer, header.step)))

    def send(self, peer: int, step: int) -> None:
        body = np.full(1000, step, np.float32)
        self.session.transport.send(peer, Header(step, 0, 0, 0, body.nbytes), body)

    def receive(self, peer: int, step: int) -> None:
        self.session.control.waits(Wait(peer, "conv1.weight", step))
        while (peer, step) not in self.early:
            message = self.inbox.get()
            self.session.control.check()
            assert message is not None
            self.early.add(message)
        self.early.remove((peer, step))
        self.session.control.waits(None)


def exchange(worker: Worker, step: int) -> None:
    """Every rank sends to every other and waits for all."""
    rank, size = worker.session.rank, worker.session.size
    others = [peer for peer in range(size) if peer != rank]
    for peer in others:
        worker.send(peer, step)
    for peer in others:
        worker.receive(peer, step)


def chain(worker: Worker, step: int, stuck_at: int) -> None:
    """The last rank begins, each waits for the next one: 0 for 1 for 2; the last stops in compute."""
    rank, size = worker.session.rank, worker.session.size
    if rank == size - 1:
        if step == stuck_at:
            time.sleep(8)
            worker.session.control.check()
    else:
        worker.receive(rank + 1, step)
    if rank > 0:
        worker.send(rank - 1, step)


def main(task: str) -> None:
    session = connect()
    worker = Worker(session)
    print("rank", session.rank, "is", os.getpid(), flush=True)
    for step in range(100_000):
        if task == "chain":
            chain(worker, step, stuck_at=3)
        else:
            exchange(worker, step)
        if step == 3 and session.rank == 1:
            if task == "raise":
                raise ValueError("the data set ends here")
            if task == "leave":
                return
        if step <= 5:
            print("step", step, flush=True)
        time.sleep(0.005)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except RankFailure as failure:
        print(json.dumps(failure.args), flush=True)
        sys.exit(3)
