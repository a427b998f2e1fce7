"""Engines in real jobs of two processes: replicas are identical, timing changes no bit, failures end the job.

With two ranks every engine adds the same two numbers, so that its bits are those of our ring.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from casync_jobs import PATIENCE, free_port
from mpi_jobs import environ, mpirun

WORKER = str(Path(__file__).with_name("engine_worker.py"))
LAUNCHERS = {
    "mpi": mpirun(2, sys.executable),
    "torch": [
        *(sys.executable, "-m", "torch.distributed.run"),
        *("--standalone", "--nproc-per-node", "2"),
    ],
    "horovod": ["horovodrun", "--gloo", "-np", "2", "-H", "localhost:2", sys.executable],
}


@pytest.mark.parametrize("engine", LAUNCHERS)
def test_an_engine_keeps_the_promises_of_the_exact_ring(engine: str, tmp_path: Path) -> None:
    """Other timing, another order of hooks and collectives of the script's own change no bit."""
    done = subprocess.run(
        [*LAUNCHERS[engine], WORKER, str(tmp_path), engine],
        env=environ(),
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    ranks = [json.loads((tmp_path / str(rank)).read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    for codec in ("None", "onebit"):
        first, second, ring = (
            ranks[0][f"{by}"] for by in (f"{engine} {codec} 1", f"{engine} {codec} 2", f"ring {codec} 0")
        )
        assert len(set(first)) == 5
        assert first == second == ring


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda it: it.name)
def test_a_job_whose_engine_hangs_ends_with_a_report_that_names_the_rank(
    number: signal.Signals, tmp_path: Path
) -> None:
    """No launcher interferes: rank 0 sits in gloo while rank 1 is stopped or dead."""
    port = free_port()
    place = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        subprocess.Popen(
            [sys.executable, WORKER, str(tmp_path), "torch", "for ever"],
            env=environ(RANK=str(rank), LOCAL_RANK=str(rank), CASYNC_TIMEOUT="3", **place),
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        deadline = time.monotonic() + PATIENCE
        while not all((tmp_path / f"pid.{rank}").exists() for rank in range(2)):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.kill(ranks[1].pid, number)
        err = [process.communicate(timeout=PATIENCE)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
            process.communicate()
    assert ranks[0].returncode == 1
    assert ranks[1].returncode in (1, -signal.SIGKILL)
    assert "rank 0 reports: rank 1 failed (gradient " in err[0]
    blamed, gradient, _, _ = json.loads((tmp_path / "failure.0").read_text())
    assert blamed == 1
    assert gradient.startswith("branches.")
