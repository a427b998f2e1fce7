"""The benchmark of slow networks runs, and its floors are what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from cluster_report import wire_floor  # noqa: E402


def test_a_smoke_cell_runs_or_says_what_it_needs() -> None:
    command = [sys.executable, str(BENCHMARKS / "cluster.py"), "--smoke"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    if os.geteuid() == 0 and shutil.which("ip") and shutil.which("tc"):
        assert done.returncode == 0, done.stderr[-2000:]
        names = [line.split("|")[1].strip() for line in done.stdout.splitlines() if line.startswith("| ")]
        assert names == ["method", "compute alone", "casync onebit, ps", "DDP"]
    else:
        assert done.returncode == 1
        assert "need" in done.stderr or "not found" in done.stderr


@pytest.mark.parametrize(
    ("ready", "elements", "seconds"),
    [
        ([0.0, 0.0], [500_000, 500_000], 0.032),  # all the bytes: 4 MB at 1 Gbit/s
        ([0.1, 0.0], [500_000, 500_000], 0.116),  # the last gradient's, after it is ready
        ([0.02, 0.0], [500_000, 500_000], 0.036),
    ],
)
def test_a_network_s_floor_counts_bytes_from_when_they_are_ready(
    ready: list[float], elements: list[int], seconds: float
) -> None:
    assert wire_floor(ready, elements, 4e6, 1000) == pytest.approx(seconds)


def test_without_a_limit_the_floor_is_the_last_gradient() -> None:
    assert wire_floor([0.3, 0.1], [10, 10], 1e9, 0) == 0.3
