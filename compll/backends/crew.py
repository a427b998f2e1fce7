"""Threads that share the work of a call: its caller, and others that help as soon as they have woken.

To wake a thread takes as long as a small kernel, and on a busy machine far longer.  So nobody is given a part
and waited for: each takes the next piece that is left, and who comes late finds nothing to do.  Jobs in
Python are handed out by a list's iterator, which the GIL guards; the work itself must release it.  Tiles of
one kernel are handed out without it (`numba_team`), and who has helped with some stays awake for a while.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import threading
from collections.abc import Callable, Sequence
from queue import SimpleQueue
from types import ModuleType

import numpy as np

Job = Callable[[], object]
LOOKS = 1500  # a fifth of a millisecond or so; calls in a row follow each other in less
_core = ctypes.PyDLL(None).sched_getcpu


def share(jobs: Sequence[Job], threads: int) -> None:
    """Do all jobs, in up to so many threads.

    Raises:
        Exception: that of a job which failed, after all are done.

    """
    left, core = iter(jobs), _core()
    ends: SimpleQueue[BaseException | None] = SimpleQueue()

    def work() -> None:
        for job in left:
            try:
                job()
            except BaseException as e:  # raised below, in the caller's thread
                ends.put(e)
            else:
                ends.put(None)

    for _ in range(min(threads, len(jobs)) - 1):
        _helpers(threads - 1, os.getpid()).put((work, core))
    work()
    failed = [e for e in [ends.get() for _ in jobs] if e is not None]
    if failed:
        raise failed[0]


def share_tiles(native: ModuleType, kernel: int, job: int, tiles: int, chunk: int, threads: int) -> int:
    """Run a kernel on all tiles, in as many threads as there are chunks for, or fewer.

    Args:
        native: the compiled `numba_team`.
        kernel: address of a function of an address and a range of tiles.
        job: the address that it gets.
        tiles: how many there are.
        chunk: how many one thread takes at least.
        threads: so many at most.

    Returns:
        how many threads have helped; none does anything more with the job.

    """
    return -_with_helpers(native, functools.partial(native.spread, kernel, job, tiles, chunk), threads)


def share_steps(native: ModuleType, frame: int, table: int, steps: int, threads: int) -> int:
    """Do the steps that are left of an operation, its loops in so many threads at most.

    Args:
        native: the compiled `numba_team`.
        frame: the address that the steps get; what it begins with says where to go on.
        table: the address of the steps, a row each.
        steps: how many there are.
        threads: so many at most.

    Returns:
        0 at the end, else a status: what stopped it, or that Python has to do a step.

    """
    return _with_helpers(native, functools.partial(native.go_on, frame, table, steps), threads)


def _with_helpers(native: ModuleType, run: Callable[[int, int, int, bool], int], threads: int) -> int:
    """Call what shares loops with a team; above 0, it says how many helpers to call, and is called again."""
    if threads <= 1:
        return run(0, 0, 0, False)
    team = _team(native, threads - 1, os.getpid())
    try:
        slot = team.slots.pop()
    except IndexError:  # so many others call that all processors have work
        return run(0, 0, 0, False)
    try:
        lacking = run(team.address, slot, threads - 1, False)
        while lacking > 0:
            for _ in range(lacking):
                _helpers(threads - 1, os.getpid()).put((team.help_out, _core()))
            lacking = run(team.address, slot, threads - 1, True)
        return lacking
    finally:
        team.slots.append(slot)


class _Team:
    """The memory in which callers and helpers find each other, and the slots of it that are free."""

    def __init__(self, native: ModuleType) -> None:
        self.native = native
        self.memory = np.zeros(native.BYTES + native.LINE, np.uint8)
        self.address = self.memory.ctypes.data + -self.memory.ctypes.data % native.LINE
        self.slots = list(range(self.address + native.LINE, self.address + native.BYTES, native.SLOT))

    def help_out(self) -> None:
        """Help with calls while there are some."""
        self.native.serve(self.address, LOOKS)


@functools.cache
def _team(native: ModuleType, helpers: int, process: int) -> _Team:  # noqa: ARG001  # of so many helpers
    return _Team(native)


@functools.cache
def _helpers(threads: int, process: int) -> SimpleQueue[tuple[Job, int]]:
    """Return where so many threads wait for calls, each process its own: a fork takes none along.

    A call comes with the core of its caller, which is at work there.  Helpers keep off that core while they
    wake: kernels of virtual machines may wake them there to keep another processor asleep, and leave them for
    milliseconds.  Two threads then took 3.9 ms for what they did in 2.6 ms apart (2^24 elements).
    """
    calls: SimpleQueue[tuple[Job, int]] = SimpleQueue()

    def serve() -> None:
        allowed = os.sched_getaffinity(0)
        while True:
            job, core = calls.get()
            if _core() == core:
                _keep_to(allowed - {core})
            _keep_to(allowed)
            job()
            _keep_to(allowed - {core})  # from where the next call will come, most likely

    for number in range(threads):
        threading.Thread(target=serve, name=f"compll-{process}-{number}", daemon=True).start()
    return calls


def _keep_to(cores: set[int]) -> None:
    """Have this thread run on these cores only, if there are any and the process may say so."""
    if cores:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, cores)
