"""Two thousand steps on four ranks leave nothing behind; `benchmarks/soak.py` makes ten thousand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "soak.py"
RANKS, STEPS = 4, 2000

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def samples() -> Rows:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--steps", str(STEPS), "--ranks", str(RANKS), "--json"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    rows: Rows = json.loads(done.stdout)
    (counts,) = {json.dumps(row["stats"]["dropped"]) for row in rows if "stats" in row}
    assert json.loads(counts) > 10, "steps that are not finite are part of it"
    return [row for row in rows if "step" in row]


def test_replicas_stay_identical(samples: Rows) -> None:
    digests = [
        {row["digest"] for row in samples if row["step"] == step} for step in range(100, STEPS + 1, 100)
    ]
    assert all(len(found) == 1 for found in digests)
    assert len(set.union(*digests)) == len(digests)


@pytest.mark.parametrize("rank", range(RANKS))
def test_memory_objects_files_and_threads_stay_as_they_were(rank: int, samples: Rows) -> None:
    """The bound: 2 KiB, or a third of an object, a step."""
    first, *_, last = (row for row in samples if row["rank"] == rank and row["step"] > STEPS // 5)
    assert last["kib"] - first["kib"] < 2 * (last["step"] - first["step"])
    assert last["objects"] - first["objects"] < (last["step"] - first["step"]) / 3
    assert (last["files"], last["threads"]) == (first["files"], first["threads"])
