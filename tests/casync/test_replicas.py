"""Three processes have the same parameters, bit for bit, after every step, in any timing, on each transport.

Gradients accumulate over two backward passes, and some fire on some ranks only. The slow test has every codec
in every topology that allows it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from casync_jobs import free_port
from mpi_jobs import mpirun

import compll
from casync.choice import refusal
from casync.topologies import names

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

WORKER = Path(__file__).with_name("replica_worker.py")
RANKS, STEPS = 3, 50
ALL_STEPS = 100
CASES = (
    *("none:ps", "onebit:ps", "onebit:ring", "terngrad:ps", "terngrad:ring", "onebit:hierarchical"),
    *("dgc:allgather", "dgc:ps:int8", "topk:auto", "randomk:direct", "bf16:auto"),
)
Hashes = list[dict[str, list[str]]]  # by rank and case


@contextmanager
def job(commands: list[list[str]], timeout: float, **more: str) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes, each with its number as a rank if it needs one; none is left behind."""
    place = (
        {"CASYNC_SIZE": str(RANKS), "CASYNC_ADDR": f"127.0.0.1:{free_port()}"} if len(commands) > 1 else {}
    )
    common = os.environ | place | {"OMP_NUM_THREADS": "1", "CASYNC_TIMEOUT": str(timeout)} | more
    processes = [
        subprocess.Popen(
            command,
            env=common | ({"CASYNC_RANK": str(rank)} if place else {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def all_cases() -> list[str]:
    """Every codec in every topology that its properties allow, some only with a codec of sums."""
    cases = []
    for name in compll.algorithms():
        codec = compll.compile(name, "interp")
        for topology in names():
            if not refusal(codec, topology):
                cases.append(f"{name}:{topology}")
            elif not refusal(codec, topology, down=True):
                cases.append(f"{name}:{topology}:int8")
    return cases


def run(
    folder: Path, perturbation: int, transport: str, cases: Sequence[str] = CASES, steps: int = STEPS
) -> Hashes:
    """What each rank of a job wrote."""
    command = [sys.executable, str(WORKER), str(folder), str(steps), str(perturbation), *cases]
    commands = [mpirun(RANKS, *command)] if transport == "mpi" else [command] * RANKS
    more = {"CASYNC_TRANSPORT": "nccl", "MASTER_PORT": str(free_port())} if transport == "nccl" else {}
    with job(commands, 60, **more) as processes:
        ended = [process.communicate(timeout=900) for process in processes]
    for process, (out, _) in zip(processes, ended, strict=True):
        assert process.returncode == 0, out
    hashes: Hashes = []
    for rank in range(RANKS):
        first, *lines = (folder / str(rank)).read_text().splitlines()
        assert first == f"transport {transport}"
        hashes.append({case: [] for case in cases})
        for case, digest in map(str.split, lines):
            hashes[-1][case].append(digest)
    return hashes


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Hashes:
    return run(tmp_path_factory.mktemp("calm"), 0, "zmq")


@pytest.fixture(scope="module", params=["zmq", "mpi"])
def wild(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Hashes:
    """With delays and another order of hooks on every rank and step; under mpirun the transport is mpi."""
    return run(tmp_path_factory.mktemp("wild"), 1, request.param)


@pytest.mark.parametrize("case", CASES)
def test_replicas_are_bit_identical_after_every_step(case: str, calm: Hashes) -> None:
    assert calm[0][case] == calm[1][case] == calm[2][case]
    assert len(set(calm[0][case])) == STEPS


@pytest.mark.parametrize("case", CASES)
def test_another_timing_or_transport_changes_no_bit(case: str, calm: Hashes, wild: Hashes) -> None:
    assert [rank[case] for rank in wild] == [rank[case] for rank in calm]


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_codec_in_every_topology_keeps_replicas_identical_on_each_transport(tmp_path: Path) -> None:
    cases = all_cases()
    assert len(cases) > 60
    found = {}
    for transport, perturbation in (("zmq", 0), ("zmq", 1), ("mpi", 2), ("nccl", 3)):
        folder = tmp_path / f"{transport}{perturbation}"
        folder.mkdir()
        found[transport, perturbation] = run(folder, perturbation, transport, cases, ALL_STEPS)
    calm = found["zmq", 0]
    for case in cases:
        assert len(calm[0][case]) == ALL_STEPS
        for hashes in found.values():
            assert all(of_rank[case] == calm[0][case] for of_rank in hashes), case
