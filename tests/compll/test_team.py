"""How threads share a kernel's tiles without the GIL: who touches a job, and when helpers go to sleep."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import cfunc, types
from numba.core.types.misc import CPointer

from compll.backends.crew import LOOKS, share_steps, share_tiles
from compll.backends.numba import team

TILES, NATIVE = 64, team()
sched_yield = types.ExternalFunction("sched_yield", types.intc())


def kernel(function: Any) -> int:
    """Compile a function of counts and a range of tiles; return its address."""
    function.compiled = cfunc(types.void(CPointer(types.int64), types.int64, types.int64))(function)
    return int(function.compiled.address)


@kernel
def count(job: Any, begin: int, end: int) -> None:
    """Count each tile, and take some microseconds for it, of which the job's second half keeps the result."""
    for tile in range(begin, end):
        x = tile
        for _ in range(2000):
            x = x * x + 3
        job[TILES + tile] = x
        job[tile] += 1


@kernel
def hold(job: Any, begin: int, end: int) -> None:  # noqa: ARG001
    """Say that a caller is here, and keep it until it is let go."""
    job[0] = 1
    while job[1] == 0:
        sched_yield()


def shared(tiles: int, threads: int, chunk: int = 1) -> np.ndarray:
    """Count so many tiles; return the counts, of memory that the job still has."""
    job = np.zeros(2 * TILES, np.int64)
    share_tiles(NATIVE, count, job.ctypes.data, tiles, chunk, threads)
    return job[:TILES]


def before(function: Any) -> int:
    """Compile what runs before a loop; return its address."""
    function.compiled = cfunc(types.int64(CPointer(types.int64)))(function)
    return int(function.compiled.address)


@before
def all_tiles(frame: Any) -> int:
    """Say how many tiles a frame has, and count the call."""
    frame[2] += 1
    return int(frame[3])


@kernel
def count_in_frame(frame: Any, begin: int, end: int) -> None:
    """Count each tile behind a frame's head."""
    for tile in range(begin, end):
        frame[4 + tile] += 1


class Fresh:
    """A team without threads: tests do what its callers and helpers do."""

    def __init__(self) -> None:
        memory = np.zeros(NATIVE.BYTES + NATIVE.LINE, np.uint8)
        self.words = memory[-memory.ctypes.data % NATIVE.LINE :][: NATIVE.BYTES].view(np.int64)
        self.address = self.words.ctypes.data
        self.slot = self.address + NATIVE.LINE

    def lead(self, job: np.ndarray, helpers: int) -> int:
        return int(NATIVE.lead(self.slot, count, job.ctypes.data, TILES, 1, helpers))


@given(st.integers(0, 5000), st.integers(1, 70), st.integers(1, 8))
def test_pieces_are_all_tiles_in_whole_chunks_that_do_not_grow(tiles: int, chunk: int, threads: int) -> None:
    piece = NATIVE.piece.py_func
    ends = [0]
    while ends[-1] < tiles:
        ends.append(piece(ends[-1], tiles, chunk, threads))
    assert ends[-1] == tiles
    assert all(end % chunk == 0 for end in ends[:-1])
    chunks = [-(-(end - begin) // chunk) for begin, end in itertools.pairwise(ends)]
    assert chunks == sorted(chunks, reverse=True)
    assert min(chunks, default=1) >= 1


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_tile_is_run_once(threads: int) -> None:
    for tiles in (0, 1, 7, TILES):
        for chunk in (1, 4, 100):
            assert shared(tiles, threads, chunk).tolist() == [1] * tiles + [0] * (TILES - tiles)


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_an_operation_goes_on_where_python_had_something_to_do(threads: int) -> None:
    table = np.array(
        [[all_tiles, count_in_frame, 1], [all_tiles, 0, 1], [all_tiles, count_in_frame, 4], [all_tiles, 0, 0]]
    )
    frame = np.zeros(4 + TILES, np.int64)
    frame[:4] = 0, -1, 0, TILES
    args = NATIVE, frame.ctypes.data, table.ctypes.data, len(table), threads
    assert share_steps(*args) == NATIVE.SELECTS
    assert frame.tolist() == [1, TILES, 2, TILES] + [1] * TILES
    frame[:2] = 2, -1
    assert share_steps(*args) == 0
    assert frame.tolist() == [4, -1, 4, TILES] + [2] * TILES


def test_an_operation_stops_at_a_status_and_begins_its_step_anew() -> None:
    table = np.array([[all_tiles, count_in_frame, 1]])
    frame = np.zeros(4 + TILES, np.int64)
    frame[:4] = 0, -1, 0, -3
    args = NATIVE, frame.ctypes.data, table.ctypes.data, 1, 2
    assert share_steps(*args) == -3
    assert frame.tolist() == [0, -1, 1, -3] + [0] * TILES
    frame[3] = TILES
    assert share_steps(*args) == 0
    assert frame.tolist() == [1, -1, 2, TILES] + [1] * TILES


def test_a_helper_that_is_awake_joins_a_call() -> None:
    fresh, done = Fresh(), threading.Event()

    def serve() -> None:
        while not done.is_set():
            NATIVE.serve(fresh.address, LOOKS)

    helper = threading.Thread(target=serve)
    helper.start()
    joined = 0
    while not joined:
        job = np.zeros(2 * TILES, np.int64)
        joined = fresh.lead(job, 1)
        assert (job[:TILES] == 1).all()
    done.set()
    helper.join()


def test_nobody_joins_a_call_that_is_over() -> None:
    fresh, job = Fresh(), np.zeros(2 * TILES, np.int64)
    assert fresh.lead(job, 3) == 0
    fresh.words[(NATIVE.LINE + NATIVE.NEXT) // 8] = 0  # as if work were left
    assert NATIVE.serve(fresh.address, 10) == 0
    assert (job[:TILES] == 1).all()


def test_a_helper_goes_to_sleep_when_no_call_comes() -> None:
    fresh = Fresh()
    assert [NATIVE.missing(fresh.address, helpers) for helpers in (2, 2, 3)] == [2, 0, 1]
    assert [NATIVE.serve(fresh.address, LOOKS) for _ in range(3)] == [0, 0, 0]
    assert fresh.words[0] == 0
    assert NATIVE.missing(fresh.address, 1) == 1


def test_no_helper_touches_a_job_that_has_been_returned() -> None:
    def call(_: int) -> None:
        returned: deque[np.ndarray] = deque(maxlen=20)
        for _ in range(200):
            if len(returned) == 20:
                assert (returned[0] == -1).all()
            job = shared(TILES, threads=4)
            assert (job == 1).all()
            job[:] = -1
            returned.append(job)
        assert all((job == -1).all() for job in returned)

    with ThreadPoolExecutor(3) as callers:
        list(callers.map(call, range(3)))


def test_more_callers_than_a_team_has_slots_for_do_their_work_alone() -> None:
    jobs = [np.zeros(2, np.int64) for _ in range((NATIVE.BYTES - NATIVE.LINE) // NATIVE.SLOT)]
    with ThreadPoolExecutor(len(jobs)) as callers:
        try:
            for job in jobs:
                callers.submit(share_tiles, NATIVE, hold, job.ctypes.data, 2, 1, 2)
            while not all(job[0] for job in jobs):
                time.sleep(0.001)
            assert (shared(TILES, threads=2) == 1).all()
        finally:
            for job in jobs:
                job[1] = 1
    assert (shared(TILES, threads=2) == 1).all()


def test_a_forked_process_has_helpers_of_its_own() -> None:
    shared(TILES, threads=2)
    child = os.fork()
    if not child:
        signal.alarm(60)  # ends it, should nobody come
        job, helped = np.zeros(2 * TILES, np.int64), 0
        while not helped:
            job[:] = 0
            helped = share_tiles(NATIVE, count, job.ctypes.data, TILES, 1, 2)
        os._exit(int(job[:TILES].sum() != TILES))
    assert os.waitpid(child, 0)[1] == 0
    assert (shared(TILES, threads=2) == 1).all()


def test_a_process_ends_while_a_helper_looks_for_calls() -> None:
    text = """
import threading
import numpy as np
from compll.backends.numba import team

def look(native, memory):
    native.serve(memory.ctypes.data, 10**9)

native = team()
threading.Thread(target=look, args=(native, np.zeros(native.BYTES, np.uint8)), daemon=True).start()
"""
    subprocess.run([sys.executable, "-c", text], check=True, timeout=120)
