"""Ranks that fail under a launcher: the report names them, the exit code is not 0, no process is left.

Launchers end survivors themselves, so that not all of them come to raise. T is 3 s, and the whole job
has 30 seconds to end. With torch: `test_faults.py`.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from fault_jobs import SHAPES, STEP, WITHIN, WORKER, Case
from mpi_jobs import BIN, environ, mpirun

GLOO = [str(BIN / "horovodrun"), "--gloo", "-np", "3", "-H", "localhost:3"]
CASES = [
    ("mpirun", Case("kill", "sent", 1, timeout=3)),
    ("mpirun", Case("stop", "backward", 2, "ring", timeout=3)),
    ("mpirun", Case("raise", "backward", 0, "ring", timeout=3)),
    ("mpirun", Case("corrupt", "wire", 1, timeout=3)),
    ("horovodrun", Case("raise", "last", 1, timeout=3)),
    ("horovodrun", Case("kill", "received", 2, "ring", timeout=3)),
]
REASON = {
    "kill": r"its process has ended",
    "stop": "no heartbeat",
    "raise": "ValueError: the data set ends here",
    "corrupt": "CRC32C",
}


def alive(pid: int) -> bool:
    """Whether a process runs or is stopped; one that has ended may wait for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("launcher", "case"), CASES, ids=[f"{launcher}-{case.name}" for launcher, case in CASES]
)
def test_under_a_launcher_the_report_names_the_rank_and_no_process_is_left(
    launcher: str, case: Case, tmp_path: Path
) -> None:
    program = [sys.executable, str(WORKER), str(tmp_path), json.dumps(asdict(case))]
    job = subprocess.Popen(
        mpirun(3, *program) if launcher == "mpirun" else [*GLOO, *program],
        env=environ(CASYNC_TIMEOUT=str(case.timeout)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        output = job.communicate(timeout=WITHIN + 10)[0]
    finally:
        job.kill()
        job.communicate()
    assert job.returncode != 0, output
    report = re.search(r"reports: rank (\d) failed(?: \(gradient '(\w+)', step (\d+)\))?: (.*)", output)
    assert report, output
    assert int(report[1]) == case.victim
    assert REASON[case.fault] in report[4]
    if case.fault != "raise":
        assert report[2] in SHAPES
        assert int(report[3]) in (STEP - 1, STEP)
    pids = [int((tmp_path / f"pid.{rank}").read_text()) for rank in range(3)]
    assert not any(map(alive, pids))
