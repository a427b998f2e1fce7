"""A job outlives its optimizers: what synchronizes for one ends when that is gone."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_jobs import good, jobs, start, train_steps

import casync.torch as casync
from casync.session import Session
from casync.solo import SoloControl, SoloTransport


def compute_threads() -> int:
    return sum(thread.name.startswith("casync-compute") for thread in threading.enumerate())


@pytest.mark.parametrize("topology", ["ps", "ring"])
def test_one_optimizer_after_the_other_leaves_nothing_behind(topology: str) -> None:
    before = compute_threads()

    def work(rank: int, job: casync.Job) -> tuple[list[list[str]], list[weakref.ref[Any]], int]:
        hashes, gone = [], []
        for _ in range(4):
            model, optimizer = start(job, codec="onebit", topology=topology)
            hashes.append(train_steps(model, optimizer, rank, range(2)))
            gone.append(weakref.ref(optimizer._casync.synchronizer))
            del model, optimizer
            gc.collect()
        return hashes, gone, compute_threads() - before

    for hashes, gone, threads in good(jobs(2, work)):
        assert all(found == hashes[0] for found in hashes)
        assert all(ref() is None for ref in gone[:-1])
        assert threads <= 4, "two a rank at the most"


def test_a_model_may_get_another_optimizer() -> None:
    def work(rank: int, job: casync.Job) -> list[str]:
        model, optimizer = start(job, codec="onebit")
        train_steps(model, optimizer, rank, range(2))
        del optimizer
        gc.collect()
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        again = casync.DistributedOptimizer(sgd, model.named_parameters(), job=job, codec="int8")
        return train_steps(model, again, rank, range(2))

    first, second = good(jobs(2, work))
    assert first == second


def test_the_report_of_an_optimizer_that_is_gone_is_delivered(tmp_path: Path) -> None:
    session = Session(0, 1, 0, 1, SoloControl(), SoloTransport(), ((0,),))
    job = casync.Job(session, report=str(tmp_path / "report.json"))
    for codec in ("onebit", None, None):
        model, optimizer = start(job, codec=codec)
        train_steps(model, optimizer, 0, range(2))
        del model, optimizer
        gc.collect()
    job.close()
    reports = json.loads((tmp_path / "report.json").read_text())
    assert [report["totals"]["steps"] for report in reports] == [2, 2, 2]
    assert [{line["codec"] for line in report["gradients"]} for report in reports] == [
        {"onebit", "float32"},
        {"float32"},
        {"float32"},
    ]
