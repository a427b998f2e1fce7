"""The benchmark of a GPU runs, on the simulator: a chance at a GPU is not spent on finding its slips."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from compll import codec as api

ROOT = Path(__file__).resolve().parents[2]


def test_it_compares_times_and_writes_its_results(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--backend", "cudasim", "--codecs", "onebit"]
    sizes = ["--check", "0", "1025", "--elements", "2048", "--seconds", "0", "--results", str(tmp_path)]
    done = subprocess.run([*command, *sizes], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr + done.stdout
    found = json.loads((tmp_path / "gpu.json").read_text("utf-8"))
    assert found["complete"]
    assert found["differences"] == []
    assert found["compared"] > 50
    assert {(r["codec"], r["operation"]) for r in found["rates"]} == {
        ("onebit", op) for op in ("encode", "decode", "decode_add", "hop")
    }
    page = (tmp_path / "gpu.md").read_text("utf-8")
    assert "| onebit | hop | 2,048 |" in page
    assert "stopped" not in page


def test_what_is_stopped_leaves_what_it_has_found(tmp_path: Path) -> None:
    command = [sys.executable, "benchmarks/gpu.py", "--backend", "cudasim", "--codecs", "onebit"]
    done = subprocess.run(
        [*command, "--limit", "0", "--results", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "stopped before its end" in (tmp_path / "gpu.md").read_text("utf-8")


def test_all_shipped_codecs_are_in_it() -> None:
    command = [sys.executable, "-c", "import gpu; print(*{name for name, _ in gpu.CODECS})"]
    done = subprocess.run(command, cwd=ROOT / "benchmarks", capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == set(api.algorithms())
