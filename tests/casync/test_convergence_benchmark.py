"""What the benchmark of quality says follows from its runs, and the catalogue says the same."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from compll import catalogue

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import convergence  # noqa: E402
import convergence_report  # noqa: E402


def runs(*ends: float) -> dict[int, dict[str, Any]]:
    """Runs, a seed each, of two steps that end with an accuracy."""
    return {seed: {"points": [(1, end - 5.0), (2, end), (3, end), (4, end)]} for seed, end in enumerate(ends)}


def found(**of_variant: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """A result of one task."""
    return {
        "runs": {
            f"digits/{name}/{seed}": {**run, "sent": 8.0}
            for name, of_seed in of_variant.items()
            for seed, run in of_seed.items()
        },
        "seconds": {f"digits/{name}": 0.5 for name in of_variant},
    }


@pytest.mark.parametrize(
    ("ends", "counts"),
    [
        ((90.0, 91.0, 92.0), False),  # the same as float32
        ((89.0, 90.0, 91.0), False),  # one behind, where seeds differ by one
        ((85.0, 86.0, 87.0), True),
        ((80.0, 91.0, 92.0), False),  # one seed alone
        ((95.0, 96.0, 97.0), False),  # ahead
    ],
)
def test_behind_counts_where_it_exceeds_what_seeds_differ_by(ends: tuple[float, ...], counts: bool) -> None:
    result = found(float32=runs(90.0, 91.0, 92.0), onebit=runs(*ends))
    _, row = convergence_report.rows(result, "digits")
    assert (row.behind > row.noise) == counts
    (told,) = convergence_report.quality(result, {"float32": None, "onebit": "onebit"})["onebit"]
    assert ("behind" in catalogue.Trained(**told).verdict) == counts


def test_time_to_quality_is_steps_times_seconds_of_a_step() -> None:
    row = next(convergence_report.rows(found(float32=runs(90.0)), "digits"))
    assert (row.steps, row.a_step) == (2, 0.5)


def test_the_catalogue_says_what_the_last_run_found() -> None:
    measured = json.loads((ROOT / "benchmarks" / "results" / "convergence.json").read_text("utf-8"))
    codecs = {variant.name: variant.codec for variant in convergence.VARIANTS}
    told = json.loads(convergence.CATALOGUE.read_text("utf-8"))
    assert told == convergence_report.quality(measured, codecs), "run benchmarks/convergence.py --resume"
