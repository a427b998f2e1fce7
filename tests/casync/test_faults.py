"""A rank fails while PyTorch trains: what the survivors report, and that every process ends.

T is 3 s, and the whole job, the failed rank included, has 30 seconds to end.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from casync_jobs import PATIENCE, free_port

if TYPE_CHECKING:
    from collections.abc import Iterator

    Process = subprocess.Popen[str]

WORKER = Path(__file__).with_name("torch_worker.py")
BIN = Path(sys.executable).parent
WITHIN = 30.0
LAYERS = ("0.weight", "0.bias", "2.weight", "2.bias")


def environ(**more: str) -> dict[str, str]:
    held = {name: value for name, value in os.environ.items() if not name.startswith(("CASYNC_", "HOROVOD_"))}
    path = f"{BIN}{os.pathsep}{held['PATH']}"
    return held | {"PATH": path, "CASYNC_TIMEOUT": "3", "OMP_NUM_THREADS": "1"} | more


@contextmanager
def started(
    commands: list[list[str]], environs: list[dict[str, str]]
) -> Iterator[list[subprocess.Popen[str]]]:
    """Run processes with their output in pipes; none is left at the end."""
    processes = [
        subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        for command, env in zip(commands, environs, strict=True)
    ]
    try:
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.communicate()


def pids(folder: Path, size: int) -> list[int]:
    """The ranks' processes, once all of them train."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        with suppress(FileNotFoundError, ValueError):
            return [int((folder / f"pid.{rank}").read_text()) for rank in range(size)]
        time.sleep(0.05)
    raise AssertionError(f"training has not begun: {sorted(path.name for path in folder.iterdir())}")


def outputs(processes: list[Process]) -> list[str]:
    """What the processes printed to stderr, all having ended by themselves in time."""
    deadline = time.monotonic() + WITHIN
    return [process.communicate(timeout=max(0.1, deadline - time.monotonic()))[1] for process in processes]


def runs(pid: int) -> bool:
    with suppress(ProcessLookupError):
        os.kill(pid, 0)
        return True
    return False


def names_rank_gradient_and_step(report: str, victim: int) -> bool:
    found = re.search(r"rank (\d+) failed \(gradient '([^']+)', step (\d+)\)", report)
    return bool(found) and int(found[1]) == victim and any(name in found[2] for name in LAYERS)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda it: it.name)
@pytest.mark.parametrize(("topology", "victim"), [("ps", 0), ("ring", 2)])
def test_without_a_launcher_every_survivor_raises_and_all_processes_end(
    tmp_path: Path, topology: str, victim: int, number: signal.Signals
) -> None:
    address = f"127.0.0.1:{free_port()}"
    environs = [environ(CASYNC_RANK=str(rank), CASYNC_SIZE="3", CASYNC_ADDR=address) for rank in range(3)]
    command = [sys.executable, str(WORKER), str(tmp_path), topology]
    with started([command] * 3, environs) as processes:
        os.kill(pids(tmp_path, 3)[victim], number)
        errors = outputs(processes)
        codes = [process.returncode for process in processes]
    survivors = [rank for rank in range(3) if rank != victim]
    assert [codes[rank] for rank in survivors] == [1, 1], errors
    assert codes[victim] != 0
    raised = {(tmp_path / f"failure.{rank}").read_text() for rank in survivors}
    assert len(raised) == 1, "every survivor raises the same failure"
    rank, gradient, step, _ = json.loads(raised.pop())
    assert rank == victim
    assert any(name in gradient for name in LAYERS)
    assert step >= 5
    for rank in survivors:
        assert names_rank_gradient_and_step(errors[rank], victim), errors[rank]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=lambda it: it.name)
@pytest.mark.parametrize("victim", [0, 1])
def test_under_horovodrun_the_report_names_the_rank_and_no_process_is_left(
    tmp_path: Path, victim: int, number: signal.Signals
) -> None:
    command = [
        str(BIN / "horovodrun"),
        "--gloo",
        "-np",
        "2",
        "-H",
        "localhost:2",
        sys.executable,
        str(WORKER),
    ]
    with started([[*command, str(tmp_path), "ring"]], [environ()]) as processes:
        ranks = pids(tmp_path, 2)
        os.kill(ranks[victim], number)
        (error,) = outputs(processes)
        (code,) = [process.returncode for process in processes]
    assert code != 0
    assert names_rank_gradient_and_step(error, victim), error
    assert not any(runs(pid) for pid in ranks)
