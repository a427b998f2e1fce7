"""A trace holds what happened, on one clock, within bounds; the ranks' traces merge into one that adds up."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from casync_jobs import in_threads
from loopback_jobs import random_steps, spec_of
from torch_jobs import good
from typer.testing import CliRunner

import compll
from casync import clock, timeline, trace
from casync.channels import Channels
from casync.cli import app
from casync.control import RankFailure
from casync.solo import SoloControl
from casync.synchronizer import Synchronizer
from casync.transports.loopback import LoopbackNetwork
from casync.watch import Watch

if TYPE_CHECKING:
    from pathlib import Path

    from casync.metrics import Stats

SHAPES = {"weight": (90, 100), "bias": (100,), "head": (64, 80)}
RANKS, STEPS = 3, 4


def traced(folder: Path, steps: int, topology: str = "ring") -> list[Stats]:
    """Run a job whose ranks write their traces; returns their counts."""
    net = LoopbackNetwork(RANKS, delay=0.002, reorder=True)
    spec = spec_of(SHAPES, compll.compile("terngrad"), topology, RANKS)
    drawn = random_steps(np.random.default_rng(0), SHAPES, RANKS, STEPS)

    def run(rank: int) -> Stats:
        control = net.control(rank)
        recorder = trace.Trace.start(folder, steps, control)
        watch = Watch(lane=recorder.lane())
        sync = Synchronizer(control, Channels(net.transport(rank)), spec, threads=1, watch=watch)
        for step in drawn:
            for name, values in step[rank].items():
                sync.submit(name, values)
            sync.synchronize()
        control.gather("the end", b"")
        sync.close()
        recorder.write()
        return sync.stats()

    try:
        return good(in_threads(RANKS, run))
    finally:
        net.close()


def loaded(folder: Path, rank: int) -> list[dict[str, Any]]:
    return json.loads((folder / f"rank-{rank}.json").read_text())["traceEvents"]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Stats]]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, traced(folder, 100)


def test_a_trace_has_every_task_once_and_the_bytes_that_were_counted(whole: tuple[Path, list[Stats]]) -> None:
    folder, counted = whole
    for rank, stats in enumerate(counted):
        events = loaded(folder, rank)
        assert {event["pid"] for event in events} == {rank}
        kinds = Counter(event.get("cat") for event in events)
        tasks = ("encode", "hop", "merge", "decode", "send", "receive")
        assert sum(kinds[kind] for kind in tasks) == stats.tasks
        assert kinds["before backward"] == kinds["backward"] == kinds["wait"] == STEPS
        for kind, total in (("send", stats.bytes_sent), ("receive", stats.bytes_received)):
            assert sum(e["args"]["bytes"] for e in events if e.get("cat") == kind) == total
        spent = sum(e["dur"] for e in events if e.get("cat") in ("encode", "hop"))
        assert spent == pytest.approx(1e6 * stats.encode_seconds, rel=1e-3)
        waited = sum(e["dur"] for e in events if e.get("cat") == "wait")
        assert waited == pytest.approx(1e6 * stats.wait_seconds, rel=1e-3)


def test_what_one_thread_did_never_overlaps_and_steps_follow_each_other(
    whole: tuple[Path, list[Stats]],
) -> None:
    for rank in range(RANKS):
        for lane in (trace.TRAINING, trace.COMPUTE):
            spans = [e for e in loaded(whole[0], rank) if e["ph"] == "X" and e["tid"] == lane]
            spans.sort(key=lambda e: e["ts"])
            for first, second in pairwise(spans):
                assert first["ts"] + first["dur"] <= second["ts"] + 0.01  # us, rounded
            if lane == trace.TRAINING:
                assert [e["args"]["step"] for e in spans] == sorted(3 * [*range(STEPS)])
                assert [e["cat"] for e in spans] == STEPS * ["before backward", "backward", "wait"]


def test_merged_ranks_show_each_message_from_its_sender_to_its_receiver(
    whole: tuple[Path, list[Stats]], tmp_path: Path
) -> None:
    folder, counted = whole
    merged = tmp_path / "all.json"
    result = CliRunner().invoke(app, ["trace", str(folder), "-o", str(merged)])
    assert result.exit_code == 0, result.output
    events = json.loads(merged.read_text())["traceEvents"]
    begins = {e["id"]: e for e in events if e["ph"] == "b"}
    ends = {e["id"]: e for e in events if e["ph"] == "e"}
    assert len(begins) == len(ends) == sum(stats.messages_sent for stats in counted)
    for key, begin in begins.items():
        assert begin["ts"] <= ends[key]["ts"]
        assert {"name": begin["name"], "pid": begin["pid"]} == {k: ends[key][k] for k in ("name", "pid")}
    rows = [line.split() for line in result.stdout.splitlines()]
    assert [row[0] for row in rows if len(row) == 10 and row[0].isdigit()] == ["0", "1", "2"]
    assert result.stdout.count("was there last, in") == 3


def test_only_the_first_steps_are_kept_and_only_so_many_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    traced(tmp_path, 2)
    assert {e["args"]["step"] for e in loaded(tmp_path, 1) if e["ph"] != "M"} == {0, 1}
    monkeypatch.setattr(trace, "MOST_EVENTS", 50)
    traced(tmp_path, 2)
    assert sum(e["ph"] != "M" for e in loaded(tmp_path, 1)) == 50
    result = CliRunner().invoke(app, ["trace", str(tmp_path)])
    assert "the trace is cut off: it had too many events; set CASYNC_TRACE_STEPS lower" in result.output


def test_a_step_that_fails_is_in_the_trace_as_a_wait_that_has_not_ended(tmp_path: Path) -> None:
    net = LoopbackNetwork(1)
    recorder = trace.Trace.start(tmp_path, 5, net.control(0))
    lane = recorder.lane()
    sync = Synchronizer(
        net.control(0), Channels(net.transport(0)), spec_of(SHAPES, None, "ring", 1), watch=Watch(lane=lane)
    )
    sync.finish(lambda _: None)
    sync.finish(lambda _: None)
    sync.close()
    net.control(0).abort(RankFailure(0, None, None, "the end"))
    lane.closed(2, 0.0, 0.0)
    recorder.write()
    waits = [e for e in loaded(tmp_path, 0) if e.get("cat") == "wait"]
    assert [(e["args"]["step"], e["args"].get("unfinished")) for e in waits] == [(0, None), (1, None), (2, 1)]
    (only,) = timeline.breakdowns(timeline.read(tmp_path)[0])
    assert only.steps == 1, "neither the first step nor the one that failed counts"


@pytest.mark.parametrize(
    ("delays", "apart", "found"),
    [
        ((1e-3, 1e-3), 5.0, 5.0),
        ((1e-3, 2e-3), -5.0, -5.0),
        ((1e-3, 1e-3), 0.0005, 0.0),  # less than what messages take: nothing is known
        ((1e-3, 3e-3), 0.0, 0.0),
    ],
)
def test_clocks_are_moved_by_no_less_than_messages_can_tell(
    delays: tuple[float, float], apart: float, found: float
) -> None:
    ahead, uncertainty = clock.difference(delays[0] + apart, delays[1] - apart)
    assert uncertainty == pytest.approx(sum(delays) / 2)
    assert abs(ahead - found) <= uncertainty
    assert (ahead == 0) is (found == 0)


def test_ranks_agree_on_a_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 1's wall clock is an hour ahead; the ranks are threads, so `perf_counter` is the same for all."""
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 3600 * (threading.current_thread() is late[0]))
    late: list[Any] = [None]
    net = LoopbackNetwork(3)

    def run(rank: int) -> clock.Clock:
        if rank == 1:
            late[0] = threading.current_thread()
        net.control(rank).gather("all know who is late", b"")
        return clock.align(net.control(rank))

    clocks = good(in_threads(3, run))
    net.close()
    assert clocks[1].ahead == pytest.approx(3600, abs=1)
    assert clocks[0].ahead == clocks[2].ahead == 0
    for each in clocks[1:]:
        assert each.uncertainty > 0
        assert each.offset == pytest.approx(clocks[0].offset, abs=each.uncertainty + 1e-3)


def test_where_the_time_goes_is_computed_from_events() -> None:
    def event(kind: str, step: int, begin: float, end: float, **args: Any) -> dict[str, Any]:
        tid = trace.TRAINING if kind in ("before backward", "backward", "wait") else trace.COMPUTE
        about = {"step": step, **args}
        return {"cat": kind, "ph": "X", "ts": begin, "dur": end - begin, "tid": tid, "args": about}

    steps = [
        [
            event("before backward", s, at, at + 1000),
            event("backward", s, at + 1000, at + 5000),
            event("encode", s, at + 3000, at + 4000, gradient="a"),
            event("hop", s, at + 4500, at + 5500, gradient="b"),  # half of it in the wait
            event("wait", s, at + 5000, at + 9000),
            event("merge", s, at + 6000, at + 6500, gradient="b"),
            event("decode", s, at + 7000, at + 7250, gradient="b"),
            event("decode", s, at + 8000, at + 8250, gradient="a"),
        ]
        for s, at in enumerate((0.0, 10_000.0, 20_000.0))
    ]
    held = timeline.RankTrace(4, 8, False, ("",), tuple(e for step in steps for e in step))
    (found,) = timeline.breakdowns(held)
    assert found == timeline.Breakdown(4, "", 2, 9.0, 1.0, 4.0, 4.0, 1.5, 2.0, 0.5, 0.5, "a", 2)
    assert found.idle == pytest.approx(6.0)


def test_each_optimizer_has_lanes_of_its_own(tmp_path: Path) -> None:
    recorder = trace.Trace.start(tmp_path, 5, SoloControl())
    for count in (2, 4):
        net = LoopbackNetwork(1)
        watch = Watch(lane=recorder.lane())
        spec = spec_of(SHAPES, None, "ring", 1)
        sync = Synchronizer(net.control(0), Channels(net.transport(0)), spec, watch=watch)
        for _ in range(count):
            sync.synchronize()
        sync.close()
        net.close()
    recorder.write()
    names = {e["args"]["name"] for e in loaded(tmp_path, 0) if e["name"] == "thread_name"}
    assert names == {lane + of for lane in trace.LANES for of in ("", " of optimizer 1")}
    found = list(timeline.breakdowns(timeline.read(tmp_path)[0]))
    assert [(each.name, each.steps) for each in found] == [("0", 1), ("0 (optimizer 1)", 3)]


def test_a_folder_without_traces_and_a_broken_file_are_told_with_the_mend(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["trace", str(tmp_path)])
    assert result.exit_code == 1
    assert f"no rank-*.json there; run the job with CASYNC_TRACE={tmp_path} on every rank" in result.output
    (tmp_path / "rank-0.json").write_text('{"traceEvents": [')
    result = CliRunner().invoke(app, ["trace", str(tmp_path)])
    assert result.exit_code == 1
    assert "rank-0.json: not a trace of casync" in result.output


def test_a_rank_whose_file_is_missing_is_named(whole: tuple[Path, list[Stats]], tmp_path: Path) -> None:
    (tmp_path / "rank-1.json").write_text((whole[0] / "rank-1.json").read_text())
    result = CliRunner().invoke(app, ["trace", str(tmp_path)])
    assert result.exit_code == 0
    assert "no file of rank 0, 2" in result.output
    result = CliRunner().invoke(app, ["trace", str(tmp_path), "-o", str(tmp_path / "no" / "merged.json")])
    assert result.exit_code == 1
    assert "cannot be written" in result.output
