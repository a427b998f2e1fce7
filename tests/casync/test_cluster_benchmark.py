"""The benchmark of slow networks runs, and its floors are what they say."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parent.parent.parent / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))

from cluster_cells import BESIDE, REFERENCE, parties  # noqa: E402
from cluster_methods import Entry  # noqa: E402
from cluster_models import REPLAYED, build  # noqa: E402
from cluster_report import rows, wire_floor  # noqa: E402


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


@pytest.mark.parametrize("model", REPLAYED)
def test_a_part_of_a_model_has_its_share_of_the_bytes_ready_at_each_share_of_the_time(model: str) -> None:
    whole, part = (build(model, k)[0] for k in (1, 8))
    curves = [_ready(made.layers) for made in (whole, part)]
    assert curves[1][-1][1] * 8 == pytest.approx(curves[0][-1][1], rel=0.01)
    for (at, elements), (sooner, fewer) in zip(*curves, strict=True):
        assert sooner * 8 == pytest.approx(at)
        assert fewer * 8 == pytest.approx(elements, abs=0.01 * curves[0][-1][1])


def _ready(layers: list[tuple[float, list[torch.nn.Parameter]]]) -> list[tuple[float, int]]:
    """When the backward pass has done each layer, and the elements that are ready then."""
    total, curve = 0, []
    for at, parameters in reversed(layers):
        total += sum(p.numel() for p in parameters)
        curve.append((at, total))
    return curve


def test_an_estimate_from_a_part_is_its_time_times_the_part_and_its_ratio_to_the_baseline_s() -> None:
    def turn(seconds: float, ready: list[float]) -> dict[str, object]:
        return {"seconds": seconds, "cpu": 0.4, "sent": 1e6, "received": 2e6, "ready": ready}

    alone = ["compute alone", 1, [turn(0.5, [0.25, 0.5])] * 3]
    cell = {
        "elements": [10, 10],
        "parties": [
            {"rows": [alone, ["casync onebit, ps", 1, [turn(0.8, [])] * 3]], "repeated": 0},
            {"rows": [alone, ["DDP", 8, [turn(0.4, [])] * 3]], "repeated": 0},
        ],
    }
    found = {row.name: row for row in rows(cell, 4, 100, 2)}
    assert list(found) == ["compute alone", "casync onebit, ps", "DDP"]
    assert (found["DDP"].seconds, found["DDP"].cpu, found["DDP"].sent) == pytest.approx((3.2, 0.8, 16e6))
    assert found["DDP"].floor == pytest.approx(1.6)  # cores: 8 x 0.4 s on two; network: 0.25 + 1.28 s
    assert found["casync onebit, ps"].speedup == pytest.approx(4)
    assert (found["compute alone"].rounds, found["DDP"].rounds) == (6, 3)


def test_methods_with_large_gradients_are_alive_alone_and_the_others_together() -> None:
    one, other, part = Entry("DDP"), Entry("casync onebit, ps"), Entry("DDP", 8)
    assert list(parties([REFERENCE, one, other, part], 4 * BESIDE)) == [[one], [other], [part]]
    assert list(parties([one, other], BESIDE)) == [[one, other]]
