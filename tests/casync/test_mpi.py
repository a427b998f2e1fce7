"""MPI: launchers are recognized, the transport is found or named, failures are reported and end the job."""

from __future__ import annotations

import queue
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from casync_jobs import PATIENCE
from mpi4py import MPI
from mpi_jobs import environ, mpirun

from casync import frames
from casync.control import RankFailure
from casync.frames import Header
from casync.launch import Launch, World
from casync.session import connect
from casync.transports.loopback import LoopbackNetwork
from casync.transports.mpi import COPY_BELOW, MpiError, MpiTransport, Way

WORKER = Path(__file__).with_name("casync_worker.py")
TELL = (
    "from casync.session import connect; s = connect(); "
    "open(f'rank.{s.rank}', 'w').write(f'{s.size} {s.local_size} {s.transport.name} {s.nodes}'); s.close()"
)


@pytest.mark.parametrize(
    ("launcher", "named", "transport"),
    [
        (mpirun(3), "", "mpi"),
        (mpirun(3), "zmq", "zmq"),
        (
            ["horovodrun", "--mpi", "-np", "3", "-H", "localhost:3", "--binding-args=--bind-to none"],
            "",
            "mpi",
        ),
    ],
    ids=["mpirun", "mpirun, zmq named", "horovodrun --mpi"],
)
def test_under_mpi_the_transport_is_found_by_itself_and_can_be_named(
    tmp_path: Path, launcher: list[str], named: str, transport: str
) -> None:
    done = subprocess.run(
        [*launcher, sys.executable, "-c", TELL],
        cwd=tmp_path,
        env=environ(CASYNC_TRANSPORT=named),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = [(tmp_path / f"rank.{rank}").read_text() for rank in range(3)]
    assert told == [f"3 3 {transport} ((0, 1, 2),)"] * 3


def test_a_process_that_mpi_did_not_start_is_told_how_to_start() -> None:
    with pytest.raises(MpiError, match=r"rank 0 of 1, the job as rank 0 of 2: start with `mpirun -n N"):
        connect(place=Launch(0, 2, 0, 2, World()))


@pytest.mark.parametrize(
    ("message", "named"),
    [
        (b"HTTP" + bytes(28), "HTTP"),
        (b"short", "32 bytes"),
        (frames.pack(Header(0, 0, 0, 0, 5)) + b"four", "a body of 5 bytes, in a message of 36"),
        (frames.pack(Header(0, 0, 0, 0, COPY_BELOW)) + b"more", "in a message of 36"),
    ],
)
def test_a_broken_frame_fails_the_job_and_names_its_sender(message: bytes, named: str) -> None:
    ways = [Way(MPI.COMM_SELF.Dup(), MPI.COMM_SELF.Dup(), 0) for _ in range(2)]
    network = LoopbackNetwork(2)
    failed: queue.Queue[RankFailure] = queue.Queue()
    network.control(0).on_failure(failed.put)
    transport = MpiTransport(0, ways, network.control(0))
    transport.start(lambda *_: None)
    ways[0].frames.Send([np.frombuffer(message, np.uint8), MPI.BYTE], 0, 1)
    failure = failed.get(timeout=PATIENCE)
    assert failure.rank == 1
    assert named in failure.reason
    transport.close()
    network.close()


def test_what_cannot_be_sent_is_refused_where_it_is_sent() -> None:
    way = Way(MPI.COMM_SELF, MPI.COMM_SELF, 0)
    transport = MpiTransport(0, [way, way], LoopbackNetwork(2).control(0))
    with pytest.raises(ValueError, match="no connection to rank 2 of 2"):
        transport.send(2, Header(0, 0, 0, 0, 0), None)
    with pytest.raises(ValueError, match="announces 3 bytes, the body has 4"):
        transport.send(1, Header(0, 0, 0, 0, 3), b"four")


def test_bodies_of_any_size_cross_a_real_job(tmp_path: Path) -> None:
    """Each of three processes sends to both others, small and large in turn, and checks what arrives."""
    script = Path(__file__).with_name("mpi_worker.py")
    done = subprocess.run(
        mpirun(3, sys.executable, str(script)),
        cwd=tmp_path,
        env=environ(),
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(done.stdout.split()) == ["0", "1", "2"]
