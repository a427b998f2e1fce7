"""What a run has cost, gradient by gradient: counted right, delivered once, and no reason to fail."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from casync_jobs import in_threads
from loopback_jobs import random_steps, run_job, same_bits, spec_of
from torch_jobs import data, good, jobs, new_model

import casync.torch as casync
import compll
from casync import advice, knobs, report
from casync.channels import Channels
from casync.metrics import Cost
from casync.probe import Probe, payload_error
from casync.rules import Codecs
from casync.session import Session
from casync.solo import SoloControl, SoloTransport
from casync.synchronizer import Synchronizer
from casync.transports.loopback import LoopbackNetwork
from casync.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from casync.report import Line, Report
    from casync.spec import Spec

SHAPES = {"weight": (90, 100), "bias": (100,), "head": (64, 80)}
TERNGRAD, TOPK = compll.compile("terngrad"), compll.compile("topk", ratio=0.05, error_feedback=True)


def watched(spec: Spec, steps: list[Any], between: Callable[[int, Synchronizer], None]) -> list[Any]:
    """Run a job with a probe on every rank; returns results of the last step, report and state by rank."""
    size = len(steps[0])
    net = LoopbackNetwork(size)

    def run(rank: int) -> Any:
        control = net.control(rank)
        watch = Watch(probe=Probe())
        sync = Synchronizer(control, Channels(net.transport(rank)), spec, threads=1, watch=watch)
        for number, step in enumerate(steps):
            between(number, sync)
            held = {name: values.copy() for name, values in step[rank].items()}
            for name, values in held.items():
                sync.submit(name, values)
            sync.synchronize()
        control.gather("the end", b"")
        found = held, sync.report(), sync.state_dict()
        sync.close()
        return found

    try:
        return good(in_threads(size, run))
    finally:
        net.close()


def by_name(found: Report) -> dict[tuple[str, str], Line]:
    return {(line.cost.gradient, line.cost.codec): line for line in found.lines}


@pytest.fixture(scope="module")
def steps() -> list[Any]:
    return random_steps(np.random.default_rng(5), SHAPES, 2, 5)


@pytest.mark.parametrize("topology", ["ps", "ring", "allgather"])
def test_what_gradients_cost_adds_up_to_the_totals_across_a_change_of_codec(
    topology: str, steps: list[Any]
) -> None:
    codec = compll.compile("terngrad", error_feedback=True) if topology == "ring" else TOPK

    def between(number: int, sync: Synchronizer) -> None:
        if number == 3:
            sync.switch(Codecs.of(codec, [("weight", None)]))

    for _, found, _ in watched(spec_of(SHAPES, codec, topology, 2), steps, between):
        lines, totals = by_name(found), found.totals
        name = codec.info.name
        assert {key: line.cost.steps for key, line in lines.items()} == {
            ("weight", name): 3,
            ("bias", "float32"): 3,
            ("weight and 1 more", "float32"): 2,
            ("weight", "float32"): 2,
            ("head", name): 5,
        }
        assert lines["head", name].cost.elements == 64 * 80
        for field in ("bytes_sent", "raw_bytes_sent"):
            assert sum(getattr(line.cost, field) for line in found.lines) == getattr(totals, field)
        for field in ("encode_seconds", "decode_seconds"):
            assert sum(getattr(line.cost, field) for line in found.lines) == pytest.approx(
                getattr(totals, field), rel=1e-6
            )
        assert all(0 <= line.cost.wait_seconds <= totals.wait_seconds for line in found.lines)
        assert lines["head", name].cost.ratio > 5
        assert totals.steps == 5


def test_the_error_of_a_codec_with_feedback_is_what_this_rank_holds_back(steps: list[Any]) -> None:
    for rank, (_, found, state) in enumerate(watched(spec_of(SHAPES, TOPK, "ps", 2), steps, lambda *_: None)):
        line = by_name(found)["weight", "topk"]
        held = [e["values"] for e in state["feedback"]["entries"] if e["gradient"] == "weight"]
        residual = np.sqrt(sum(np.linalg.norm(values) ** 2 for kept in held for values in kept.values()))
        norm = np.linalg.norm(steps[3][rank]["weight"])  # the 4th step is the last that was looked at
        assert line.residual == pytest.approx(residual, rel=1e-5)
        assert line.norm == pytest.approx(norm, rel=1e-5)
        assert line.error == pytest.approx(residual / norm, rel=1e-5)
        exact = by_name(found)["bias", "float32"]
        assert (exact.residual, exact.error) == (None, None)


def test_looking_at_errors_changes_no_bit_and_finds_what_a_payload_loses(steps: list[Any]) -> None:
    spec = spec_of(SHAPES, TERNGRAD, "ring", 2)
    plain = run_job(spec, steps)
    for rank, (held, found, _) in enumerate(watched(spec, steps, lambda *_: None)):
        assert all(same_bits(held[name], plain[rank].results[-1][name]) for name in SHAPES)
        line = by_name(found)["weight", "terngrad"]
        assert line.residual is None
        assert line.error == payload_error(TERNGRAD, steps[3][rank]["weight"])
        assert line.error is not None
        assert 0.3 < line.error < 10


def test_the_error_of_a_payload_is_that_of_its_values() -> None:
    values = np.zeros(4096, np.float32)
    assert payload_error(TERNGRAD, values) is None
    values[7] = np.inf
    assert payload_error(compll.compile("fp16"), values) is None
    values[:] = 1 + 2**-12  # rounds to 1 in float16
    assert payload_error(compll.compile("fp16"), values) == pytest.approx(2**-12, rel=1e-3)


def some(count: int) -> Report:
    totals = run_job(spec_of({"a": (2, 8)}, None, "ring", 1), [[{"a": np.ones(16, np.float32)}]])[0].stats
    assert totals is not None
    costs = [Cost((f"layer.{i}",), "onebit", True, 10, 1, 100, 400, i * 1e-3, 0, 0) for i in range(count)]
    return report.Report(0, 2, "ps", totals, tuple(report.Line(c, error=0.25) for c in costs))


def test_a_long_table_shows_what_takes_most_time_and_json_shows_all() -> None:
    text = str(some(report.MOST_ROWS + 10))
    assert "layer.49  " in text
    assert "layer.10  " not in text
    assert "and 11 more" in text
    assert "49.000" in text
    assert len(some(50).as_dict()["gradients"]) == 50
    assert "more" not in str(some(report.MOST_ROWS))


def test_a_group_is_named_by_its_ranks() -> None:
    assert "casync: rank 0 of 2, topology ps" in str(some(1))
    assert "casync: rank 3 of ranks 1, 3, topology ps" in str(replace(some(1), rank=3, group=(1, 3)))


def test_rank_0_alone_delivers_unless_each_rank_has_a_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for rank in range(2):
        report.deliver("table", rank, [some(1)])
        report.deliver(str(tmp_path / "all.json"), rank, [some(1)])
        report.deliver(str(tmp_path / "rank {rank}.json"), rank, [some(2), some(1)])
    assert capsys.readouterr().out.count("layer.0") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["all.json", "rank 0.json", "rank 1.json"]
    two = json.loads((tmp_path / "rank 1.json").read_text())
    assert [len(each["gradients"]) for each in two] == [2, 1]
    assert two[0]["gradients"][0]["ratio"] == 4


def trained(where: Path) -> None:
    """One rank with two optimizers that takes a step with each, and ends."""
    session = Session(0, 1, 0, 1, SoloControl(), SoloTransport(), ((0,),))
    job = casync.Job(session, report=str(where))
    for codec in ("onebit", None):
        model = new_model()
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = casync.DistributedOptimizer(sgd, model.named_parameters(), codec=codec, job=job)
        x, y = data(0, 0)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        assert optimizer.report().totals.steps == 1
    job.close()
    job.close()  # tells once


def test_a_job_reports_on_all_its_optimizers_when_it_ends(tmp_path: Path) -> None:
    trained(tmp_path / "report.json")
    first, second = json.loads((tmp_path / "report.json").read_text())
    assert {line["codec"] for line in first["gradients"]} == {"onebit", "float32"}
    assert {line["codec"] for line in second["gradients"]} == {"float32"}
    assert first["totals"]["steps"] == second["totals"]["steps"] == 1


def test_before_the_first_step_the_hook_of_ddp_has_no_report() -> None:
    with pytest.raises(RuntimeError, match=r"report\(\) before the first step"):
        casync.State().report()


def test_a_report_that_cannot_be_written_fails_no_job(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nowhere = tmp_path / "missing" / "report.json"
    trained(nowhere)
    (record,) = caplog.records
    assert f"cannot be written to {nowhere}: No such file" in record.getMessage()


@pytest.mark.parametrize("wrong", ["yes", "report.txt"])
def test_a_report_goes_to_a_table_or_a_json_file(wrong: str) -> None:
    with pytest.raises(knobs.KnobError, match=r"CASYNC_REPORT=.*table, or the path of a \.json file"):
        knobs.REPORT.given(wrong)
    assert knobs.REPORT.given("x.json") == "x.json"


def costs(compressed: bool = True) -> list[Cost]:
    """In 50 steps 0.1 s of kernels, and 50 MB less than float32."""
    return [Cost(("a",), "onebit", compressed, 10, 50, 10_000_000, 60_000_000, 0.06, 0.04, 0.2)]


def test_compression_pays_or_the_advice_says_by_how_much_it_does_not() -> None:
    assert advice.advice(costs(), 50, rate=1e9 / 8, sharing=1) is None  # the bytes would take 8 ms of 2
    assert advice.advice(costs(), 50, rate=1e9, sharing=1) is None  # 1 ms of 2: within the margin
    told = advice.advice(costs(), 50, rate=4e9, sharing=1)
    assert told is not None
    assert "take 2 ms a step" in told
    assert "the 1 MB that are not sent would take 0.25 ms at 32 Gbit/s" in told
    assert "secopa plan" in told
    assert advice.advice(costs(), 50, rate=4e9, sharing=8) is None  # 8 ranks at one link
    assert advice.advice(costs(compressed=False), 50, rate=1e12, sharing=1) is None


def test_the_advice_is_given_once_and_only_where_the_rate_is_known(caplog: pytest.LogCaptureFixture) -> None:
    rates: list[float | None] = [None]
    silent = advice.Advisor(lambda: rates[0], 1)
    silent.stepped(advice.JUDGED, costs)
    rates[0] = 4e9
    silent.stepped(advice.JUDGED + 1, costs)
    assert caplog.records == []
    advisor = advice.Advisor(lambda: rates[0], 1)
    for step in (advice.JUDGED - 1, advice.JUDGED, advice.JUDGED + 1):
        advisor.stepped(step, costs)
    assert [(record.name, record.levelno) for record in caplog.records] == [("casync", logging.WARNING)]


@pytest.mark.parametrize(("elements", "known"), [(600_000, True), (200_000, False)])
def test_a_large_broadcast_tells_the_rate_of_the_network_to_every_rank(elements: int, known: bool) -> None:
    def work(_: int, job: casync.Job) -> float | None:
        arrays = [np.zeros(8, np.uint8), np.zeros(2 * elements, np.uint8)]
        job.broadcaster.broadcast(arrays, 1)
        return job.broadcaster.rate

    rates = good(jobs(3, work))
    assert len(set(rates)) == 1
    assert (rates[0] is not None and rates[0] > 0) is known
