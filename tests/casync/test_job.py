"""A job outlives its optimizers: what synchronizes for one ends when that is gone."""

from __future__ import annotations

import gc
import json
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
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
            job.session.control.gather("trained", b"")
        return hashes, gone, compute_threads() - before

    for hashes, gone, threads in good(jobs(2, work)):
        assert all(found == hashes[0] for found in hashes)
        assert [ref() is None for ref in gone] == [True, True, True, True]
        assert threads <= 3, "a rank's last one, and one that the other rank has not closed yet"


def test_more_optimizers_than_channels_may_follow_each_other() -> None:
    def work(rank: int, job: casync.Job) -> str:
        for step in range(260):
            model, optimizer = start(job)
            if step in (0, 259):
                hashes = train_steps(model, optimizer, rank, range(1))
            del model, optimizer
            gc.collect()
        return hashes[0]

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
