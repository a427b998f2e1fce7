"""Three processes over ZeroMQ: parameters have the same bits on all ranks after every step, in any timing."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from casync_jobs import free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKER = Path(__file__).with_name("replica_worker.py")
RANKS, STEPS = 3, 50
CASES = ("none:ps", "onebit:ps", "onebit:ring", "terngrad:ps", "terngrad:ring")
Hashes = list[dict[str, list[str]]]  # by rank and case


@contextmanager
def job(timeout: float, *arguments: str) -> Iterator[list[subprocess.Popen[str]]]:
    """The processes of a job, by rank; none is left behind."""
    place = {"CASYNC_SIZE": str(RANKS), "CASYNC_ADDR": f"127.0.0.1:{free_port()}", "OMP_NUM_THREADS": "1"}
    processes = [
        subprocess.Popen(
            [sys.executable, str(WORKER), *arguments],
            env=os.environ | place | {"CASYNC_RANK": str(rank), "CASYNC_TIMEOUT": str(timeout)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def run(perturbation: int) -> Hashes:
    """What each rank of a job printed."""
    with job(60, str(STEPS), str(perturbation), *CASES) as processes:
        ended = [process.communicate(timeout=200) for process in processes]
    for process, (_, errors) in zip(processes, ended, strict=True):
        assert process.returncode == 0, errors
    hashes: Hashes = []
    for out, _ in ended:
        hashes.append({case: [] for case in CASES})
        for case, digest in map(str.split, out.splitlines()):
            hashes[-1][case].append(digest)
    return hashes


@pytest.fixture(scope="module")
def calm() -> Hashes:
    return run(0)


@pytest.fixture(scope="module")
def wild() -> Hashes:
    """With delays and another order of hooks on every rank and step."""
    return run(1)


@pytest.mark.parametrize("case", CASES)
def test_replicas_are_bit_identical_after_every_step(case: str, calm: Hashes) -> None:
    assert calm[0][case] == calm[1][case] == calm[2][case]
    assert len(set(calm[0][case])) == STEPS


@pytest.mark.parametrize("case", CASES)
def test_another_timing_changes_no_bit(case: str, calm: Hashes, wild: Hashes) -> None:
    assert [rank[case] for rank in wild] == [rank[case] for rank in calm]
