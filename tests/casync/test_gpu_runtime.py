"""The checks of the runtime on a real GPU run, on the stand-in: a chance at a GPU is not spent on slips."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import late_cupy
import pytest

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def gpu_runtime(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("gpu_runtime")


def test_it_compares_and_times(
    gpu_runtime: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    late_cupy.install(monkeypatch)
    gpu_runtime.main(["--codecs", "onebit", "--elements", "4096"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "onebit in ps: compared, 0 differ so far"
    assert any(line.startswith("onebit in ring: ") and "ms a step on the GPU" in line for line in lines)
    count = int(lines[-1].split()[0])
    assert count > 2 * 2 * 2 * 4  # topologies, pairs of places, ranks, steps
    assert lines[-1].endswith("were compared, 0 differ")


def test_it_tells_what_differs_and_where_there_is_no_gpu(
    gpu_runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit, match=r"gpu_runtime.py: gradients on a GPU need CuPy"):
        gpu_runtime.main([])
    late_cupy.install(monkeypatch)
    job = gpu_runtime.job

    def wrong(spec: Any, places: Any, steps: Any) -> Any:
        found = job(spec, places, steps)
        if places[0] is gpu_runtime.Gpu and "b" in steps[0][0]:
            found[1][0][3]["b"][7] += 1
        return found

    monkeypatch.setattr(gpu_runtime, "job", wrong)
    monkeypatch.setattr(gpu_runtime, "CASES", gpu_runtime.CASES[:1])
    with pytest.raises(SystemExit, match=r"onebit in ps, GPU and host: rank 1: b of step 3"):
        gpu_runtime.main(["--codecs", "onebit", "--elements", "4096"])
