"""The transport nccl in real processes, by a process group of gloo: no GPU is needed, and none is tried."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from casync_jobs import PATIENCE
from loopback_jobs import run_job
from nccl_jobs import nccl_network
from nccl_worker import CASES, FAULTS, SHAPES, SIZES, STEPS, VICTIM, gradients, hash_of, spec
from torch import distributed

from casync import frames
from casync.channels import Channels
from casync.control import RankFailure
from casync.exchange import Device, Host
from casync.frames import Header
from casync.transports import base, nccl
from casync.transports.loopback import LoopbackNetwork
from casync.transports.nccl import NcclTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

WORKER = str(Path(__file__).with_name("nccl_worker.py"))


@dataclass
class Jobs:
    """Where each rank wrote, how it ended, and what all of them said."""

    folder: Path
    codes: dict[str, int]
    err: str


@pytest.fixture(scope="module")
def jobs(tmp_path_factory: pytest.TempPathFactory) -> Jobs:
    folder = tmp_path_factory.mktemp("nccl")
    done = subprocess.run(
        [sys.executable, WORKER, str(folder)],
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return Jobs(folder, json.loads(done.stdout), done.stderr)


@pytest.mark.parametrize("size", SIZES)
def test_replicas_are_those_of_any_other_transport_and_so_are_the_bytes(size: int, jobs: Jobs) -> None:
    """With two optimizers whose gradients each rank hands over in its own order, some on some ranks only."""
    assert [jobs.codes[f"{size} ranks.{rank}"] for rank in range(size)] == [0] * size, jobs.err
    ranks = [json.loads((jobs.folder / f"{size} ranks.{rank}").read_text()) for rank in range(size)]
    for case in CASES:
        steps = [[dict(gradients(rank, step)) for rank in range(size)] for step in range(STEPS)]
        expected = run_job(spec(case, size), steps)
        for rank, ran in enumerate(expected):
            assert ran.stats is not None
            assert ranks[rank][case]["hashes"] == [[hash_of(results)] * 2 for results in ran.results]
            assert ranks[rank][case]["bytes"] == [ran.stats.bytes_sent] * 2


@pytest.mark.parametrize("fault", FAULTS)
def test_when_a_rank_dies_or_stops_the_others_raise_and_exit(fault: str, jobs: Jobs) -> None:
    """Their threads sit in gloo, which cannot be interrupted."""
    for rank in {0, 1, 2} - {VICTIM}:
        assert jobs.codes[f"{fault}.{rank}"] == 1
        blamed, gradient, step, _ = json.loads((jobs.folder / f"{fault}.{rank}").read_text())
        assert blamed == VICTIM
        assert gradient is None or gradient.partition(" ")[0] in SHAPES
        assert step is None or STEPS - 1 <= step <= STEPS
    assert f"reports: rank {VICTIM} failed" in jobs.err


def wire(rank: int = 0, size: int = 2) -> Any:
    return base.Wire(rank, size, ("127.0.0.1",) * size, LoopbackNetwork(size).control(rank), None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("gpu", "built", "named"),
    [
        (False, True, r"this torch finds none, or is built without NCCL: .* or use transport 'zmq'"),
        (True, False, r"this torch finds none, or is built without NCCL: .* or use transport 'zmq'"),
        (True, True, r"needs CuPy, .* pip install cupy-cuda12x, .* or use transport 'zmq'"),
    ],
)
def test_it_says_what_it_needs_and_what_to_use(
    gpu: bool, built: bool, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(distributed, "is_nccl_available", lambda: built)
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(nccl.NcclError, match=named):
        base.load("nccl").open(wire())


def test_without_a_process_group_or_in_another_place_it_says_how_to_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(
        nccl.NcclError, match=r"init_process_group\('nccl'\) before casync.init, under torchrun"
    ):
        nccl.join(wire(), "nccl", cpu)
    monkeypatch.setattr(distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    monkeypatch.setattr(distributed, "get_world_size", lambda: 1)
    with pytest.raises(
        nccl.NcclError, match="rank 0 of 1, the job as rank 0 of 2: start both by one launcher"
    ):
        nccl.join(wire(), "nccl", cpu)


def test_a_group_that_is_not_made_leaves_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs, since another rank has failed; or it breaks, and the control plane says by whom, or not."""
    network = LoopbackNetwork(2)
    monkeypatch.setattr(nccl, "GRACE", 0.1)

    def broken() -> Any:
        raise ConnectionError("reset by peer")

    with pytest.raises(ConnectionError):
        nccl._watched(broken, network.control(0))
    threading.Timer(0.2, network.control(1).abort, [RankFailure(1, None, None, "gone")]).start()
    with pytest.raises(RankFailure, match="gone"):
        nccl._watched(threading.Event().wait, network.control(0))  # type: ignore[arg-type]
    with pytest.raises(RankFailure, match="gone"):
        nccl._watched(broken, network.control(0))


class Broken:
    """A group whose exchanges fail."""

    memory = Host()

    def exchange(self, transfers: Any) -> None:  # noqa: ARG002
        raise ConnectionError("reset by peer")


def over_loopback(network: LoopbackNetwork, rank: int, group: Any) -> NcclTransport:
    return NcclTransport(network.transport(rank), group, network.control(rank))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("told", [True, False])
def test_of_an_exchange_that_fails_the_dead_rank_is_blamed_if_there_is_one(
    told: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nccl, "GRACE", 0.3)
    network = LoopbackNetwork(2)
    failed: queue.Queue[RankFailure] = queue.Queue()
    network.control(0).on_failure(failed.put)
    ends = [over_loopback(network, rank, Broken()) for rank in range(2)]
    for end in ends:
        end.start(lambda *_: None)
    ends[0].send(1, Header(0, 0, 0, 0, 4), b"body")
    if told:
        time.sleep(0.1)
        network.control(0).abort(RankFailure(1, None, None, "gone"))
    failure = failed.get(timeout=PATIENCE)
    assert ("gone" if told else "its I/O thread failed: ConnectionError") in failure.reason
    for end in ends:
        end.close()
        assert end._thread is not None
        end._thread.join(PATIENCE)
    network.close()


@pytest.mark.parametrize(
    ("kind", "body", "named"),
    [
        (nccl.Kind.WHOLE, b"short", "32 bytes"),
        (
            nccl.Kind.WHOLE,
            frames.pack(Header(0, 0, 0, 0, 5)) + b"four",
            "a body of 5 bytes, in a message of 36",
        ),
        (nccl.Kind.ASK, b"HTTP" + bytes(28), "HTTP"),
        (nccl.Kind.ANSWER, bytes(8), "an answer to 7, which was not asked"),
        (nccl.Kind.ANSWER, b"short", "of kind 2 with 5 bytes"),
        (9, b"", "of kind 9"),
    ],
)
def test_a_broken_signal_fails_the_job_and_names_its_sender(kind: int, body: bytes, named: str) -> None:
    network = LoopbackNetwork(2)
    failed: queue.Queue[RankFailure] = queue.Queue()
    network.control(0).on_failure(failed.put)
    end = over_loopback(network, 0, Broken())
    end.start(lambda *_: None)
    network.transport(1).send(0, Header(7, kind, 0, 0, len(body)), body)
    failure = failed.get(timeout=PATIENCE)
    assert failure.rank == 1
    assert named in failure.reason
    end.close()
    network.close()


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[NcclTransport]]:
    """Two ranks whose GPU is the CPU, without streams; torch's tensors stand in for CuPy's arrays."""
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(from_dlpack=torch.from_dlpack))
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: device)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    with nccl_network(2, lambda: Device(torch.device("cpu"))) as ends:
        yield [transport for _, transport in ends]


def test_bodies_travel_from_where_they_are_to_the_same_place(device: list[NcclTransport]) -> None:
    """So broadcasts and collectives of groups need no GPU. Checksums do not go there, and are refused."""
    with pytest.raises(ValueError, match=r"checksums are made .* transport 'nccl' keeps them on the GPU"):
        Channels(device[1], checksums=True)
    got: queue.Queue[tuple[int, Header, Any]] = queue.Queue()
    done: queue.Queue[str] = queue.Queue()
    device[0].start(lambda *_: None)
    device[1].start(lambda *frame: got.put(frame))
    there: Any = torch.arange(25_000, dtype=torch.int32)
    here = there.numpy().tobytes()
    header = Header(3, 4, 0, 0, 100_000)
    with pytest.raises(ValueError, match="announces 100000 bytes, the body has 4"):
        device[0].send(1, header, there[:1])
    for body in (here, there):
        device[0].send(1, header, body, lambda: done.put("done"))
        peer, told, arrived = got.get(timeout=PATIENCE)
        assert (peer, told) == (0, header)
        assert type(arrived) is (torch.Tensor if body is there else memoryview)
        assert bytes(arrived.numpy() if body is there else arrived) == here
        assert done.get(timeout=PATIENCE) == "done"
    device[0].send(1, Header(3, 4, 1, 0, 0), there[:0])
    assert got.get(timeout=PATIENCE)[1] == Header(3, 4, 1, 0, 0)
