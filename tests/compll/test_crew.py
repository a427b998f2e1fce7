"""The threads that share the work of a call of the Numba backend."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import pytest

from compll.backends.crew import share


@pytest.mark.parametrize("threads", [1, 2, 3, 8])
def test_every_job_is_done_once(threads: int) -> None:
    done: list[int] = []
    allowed = os.sched_getaffinity(0)
    for count in (0, 1, 2, 50):
        done.clear()
        share([partial(done.append, k) for k in range(count)], threads)
        assert sorted(done) == list(range(count))
    assert os.sched_getaffinity(0) == allowed


def test_jobs_run_at_the_same_time_on_any_core() -> None:
    together = threading.Barrier(3)
    cores: list[set[int]] = []

    def meet() -> None:
        together.wait(timeout=30)
        cores.append(os.sched_getaffinity(0))

    share([meet] * 3, 3)
    assert cores == [os.sched_getaffinity(0)] * 3


def test_a_caller_does_not_wait_for_helpers_that_are_busy() -> None:
    both, go = threading.Barrier(3), threading.Event()

    def busy() -> None:
        both.wait(timeout=30)
        assert go.wait(timeout=30)

    done: list[int] = []
    with ThreadPoolExecutor(1) as other:
        held = other.submit(share, [busy, busy], 2)
        both.wait(timeout=30)
        share([partial(done.append, k) for k in range(10)], 2)
        go.set()
        held.result()
    assert done == list(range(10))


def test_an_error_is_raised_when_all_jobs_are_done() -> None:
    done: list[int] = []

    def fail() -> None:
        raise ZeroDivisionError("this one")

    for _ in range(2):  # helpers outlive it
        done.clear()
        with pytest.raises(ZeroDivisionError, match="this one"):
            share([fail, *(partial(done.append, k) for k in range(20))], 2)
        assert sorted(done) == list(range(20))
