"""Uncompressed gradients by an engine's all-reduce: the promises are those of our ring."""

from __future__ import annotations

import importlib
import random
import threading
import warnings
from dataclasses import replace
from functools import reduce
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from casync_jobs import in_threads
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from loopback_jobs import random_steps, run_job, same_bits, spec_of, try_job

import compll
from casync.buffers import Pool
from casync.channels import Channels
from casync.collectives import Collectives, Request
from casync.control import MismatchError, RankFailure
from casync.engines import base
from casync.engines.loopback import LoopbackEngine
from casync.picture import draw
from casync.plan import Entry, Gradient, Partition, Plan, Segment, layout, reduced, schedule
from casync.primitives import Reduce, join
from casync.solo import SoloControl
from casync.spec import Op
from casync.synchronizer import Synchronizer
from casync.terms import Terms
from casync.topologies import topology
from casync.trace import MESSAGES, Trace
from casync.transports.loopback import LoopbackNetwork
from casync.verify import ScheduleError, verify
from casync.watch import Watch

if TYPE_CHECKING:
    from pathlib import Path

    from loopback_jobs import Step

SHAPES = {"conv": (90, 100), "bias": (10,), "dense": (1000, 700), "norm": (300,), "tail": (5, 5)}
"""`dense` has buckets of its own, and the others share one before it and one behind it."""


def expected(step: Step, name: str, size: int, op: Op) -> np.ndarray | None:
    terms = [mine[name] for mine in step]
    present = [np.zeros(int(np.prod(SHAPES[name])), np.float32) if t is None else t for t in terms]
    if all(term is None for term in terms):
        return None
    return reduce(np.add, present) * (np.float32(1 / size) if op is Op.AVERAGE else np.float32(1))


def shuffled(rank: int, step: int, names: list[str]) -> list[str]:
    return random.Random(f"{rank} {step}").sample(names, len(names))


@pytest.mark.parametrize("nranks", range(1, 6))
def test_a_schedule_of_all_reduces_is_an_all_reduce_alone_and_beside_a_topology(nranks: int) -> None:
    for partitions in range(4):
        verify(reduced(nranks, partitions), partitions)
        ps = topology("ps").schedule(nranks, [0, nranks - 1], ())
        verify(join(ps, reduced(nranks, partitions), 2), 2 + partitions)
        verify(join(reduced(nranks, partitions), ps, partitions), 2 + partitions)


def test_ranks_that_reduce_in_different_orders_are_found() -> None:
    drawn = reduced(3, 2)
    wrong = tuple(replace(task, partition=1 - task.partition) for task in drawn[1])
    with pytest.raises(ScheduleError, match=r"rank 1: it reduces the partitions \[0, 1\], rank 0 \[1, 0\]"):
        verify((drawn[0], wrong, drawn[2]), 2)
    missing = tuple(task for task in drawn[2] if task.partition == 1)
    with pytest.raises(ScheduleError, match=r"rank 2: it reduces the partitions \[1\]"):
        verify((*drawn[:2], missing), 2)


def test_an_engine_takes_each_bucket_whole_and_the_last_one_first() -> None:
    gradients = [Gradient(name, shape) for name, shape in SHAPES.items()]
    plan = Plan(tuple(Entry(name, False, 4) for name in SHAPES))
    partitions = layout(plan, gradients, "ps", 3, "mpi")
    assert [[s.gradient for s in p.segments] for p in partitions] == [
        ["conv", "bias"],
        ["dense"],
        ["norm", "tail"],
    ]
    tasks = schedule(partitions, "ps", 3, exact_by="mpi")[1]
    assert [task.partition for task in tasks if isinstance(task, Reduce)] == [2, 1, 0]


@given(hnp.arrays(np.float32, st.integers(1, 50), elements=st.floats(width=32)), st.data())
def test_a_term_holds_gradients_and_who_had_one(values: np.ndarray, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(1, len(values) - 1))) if len(values) > 1 else [])
    parts = np.split(values, cuts)
    segments = tuple(Segment(f"g{i}", 0, 0, len(part)) for i, part in enumerate(parts))
    held = {s.gradient: p if data.draw(st.booleans()) else None for s, p in zip(segments, parts, strict=True)}
    terms = Terms([Partition(False, 0, segments)], Pool())
    for got, part in zip(terms.unpack(0, terms.pack(0, held)), held.values(), strict=True):
        assert (got is None) == (part is None)
        assert part is None or same_bits(got, part)


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("nranks", [1, 2, 4])
def test_the_sum_is_in_the_engine_s_order_and_scaled_once(nranks: int, op: Op) -> None:
    spec = spec_of(SHAPES, None, "ps", nranks, op=op, exact="loopback")
    steps = random_steps(np.random.default_rng(nranks), SHAPES, nranks, 3)
    for ran in run_job(spec, steps, order=shuffled, delay=0.002, reorder=True):
        for step, results in zip(steps, ran.results, strict=True):
            assert all(same_bits(results[name], expected(step, name, nranks, op)) for name in SHAPES)
        assert ran.finite == [True] * 3
        elements = sum(map(int, map(np.prod, SHAPES.values())))
        assert ran.stats is not None
        assert ran.stats.bytes_reduced == (3 * 4 * (elements + len(SHAPES)) if nranks > 1 else 0)
        assert ran.stats.messages_sent == 0


def test_compressed_gradients_travel_beside_the_engine_as_without_it() -> None:
    steps = random_steps(np.random.default_rng(1), SHAPES, 3, 4)
    plan = Plan(tuple(Entry(name, name in ("conv", "dense"), 2) for name in SHAPES))
    ours, theirs = (
        run_job(spec_of(SHAPES, codec, "ps", 3, plan=plan, exact=exact), steps, order=shuffled, delay=0.002)
        for codec, exact in ((onebit(), "ring"), (onebit(), "loopback"))
    )
    for a, b in zip(ours, theirs, strict=True):
        for one, other in zip(a.results, b.results, strict=True):
            assert all(same_bits(one[name], other[name]) for name in ("conv", "dense"))
            assert all(np.allclose(one[name], other[name], rtol=1e-5, atol=1e-6) for name in SHAPES)


def onebit() -> Any:
    return compll.compile("onebit")


def test_absent_gradients_are_zeros_and_absent_on_all_ranks_stays_so() -> None:
    steps = random_steps(np.random.default_rng(2), SHAPES, 3, 2)
    for rank, missing in enumerate((("conv", "tail"), ("conv", "bias", "tail"), ("tail",))):
        for name in missing:
            steps[0][rank][name] = None
    spec = spec_of(SHAPES, None, "ps", 3, exact="loopback")
    for ran in run_job(spec, steps, order=shuffled):
        for step, results in zip(steps, ran.results, strict=True):
            for name in SHAPES:
                assert same_bits(results[name], expected(step, name, 3, Op.AVERAGE)), name
        assert ran.results[0]["tail"] is None


def test_what_is_not_finite_passes_element_by_element_and_is_told() -> None:
    steps = random_steps(np.random.default_rng(3), SHAPES, 2, 2)
    hurt = steps[0][1]["norm"]
    assert hurt is not None
    hurt[7], hurt[8] = np.nan, np.inf
    for ran in run_job(spec_of(SHAPES, None, "ps", 2, exact="loopback"), steps):
        assert ran.finite == [False, True]
        for name in SHAPES:
            assert same_bits(ran.results[0][name], expected(steps[0], name, 2, Op.AVERAGE))


def test_a_half_is_summed_as_float32_and_one_too_large_for_it_is_told() -> None:
    gradients = (Gradient("half", (4,), "float16"), Gradient("whole", (4,)))
    plan = Plan(tuple(Entry(g.name, False, 1) for g in gradients))
    spec = replace(spec_of({}, None, "ps", 2, exact="loopback", op=Op.SUM), gradients=gradients, plan=plan)
    small, large = np.float32([2048, 1, 0, 3]), np.float32([40_000, 1, 2, 3])
    steps: list[Step] = [[{"half": v, "whole": v} for _ in range(2)] for v in (small, large)]
    for ran in run_job(spec, steps):
        assert np.array_equal(ran.results[0]["half"], 2 * small)
        assert ran.finite == [True, False]


def test_all_reduces_are_issued_in_one_order_whatever_becomes_ready_first() -> None:
    """Gradients come in another order on every rank; sizes tell the buckets apart."""
    shapes = {f"g{i}": (2**18 + i,) for i in range(6)}
    issued: dict[int, list[int]] = {0: [], 1: [], 2: []}
    names = list(shapes)
    plan = Plan(tuple(Entry(name, False, 1) for name in names))
    plain = LoopbackEngine.all_reduce

    def recorded(self: LoopbackEngine, values: np.ndarray) -> None:
        issued[self._control.rank].append(values.size)
        plain(self, values)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LoopbackEngine, "all_reduce", recorded)
        steps = random_steps(np.random.default_rng(4), shapes, 3, 2)
        run_job(spec_of(shapes, None, "ps", 3, plan=plan, exact="loopback"), steps, order=shuffled)
    assert issued[0] == 2 * [2**18 + i + 1 for i in reversed(range(6))]
    assert issued[0] == issued[1] == issued[2]


def test_a_trace_shows_all_reduces_among_the_messages(tmp_path: Path) -> None:
    net = LoopbackNetwork(2)

    def run(rank: int) -> list[dict[str, Any]]:
        trace = Trace.start(tmp_path, 5, net.control(rank))
        spec = spec_of(SHAPES, None, "ps", 2, exact="loopback")
        channels = Channels(net.transport(rank))
        sync = Synchronizer(net.control(rank), channels, spec, watch=Watch(lane=trace.lane()))
        for name, shape in SHAPES.items():
            sync.submit(name, np.ones(int(np.prod(shape)), np.float32))
        sync.synchronize()
        sync.close()
        return [event for event in trace.content()["traceEvents"] if event.get("cat") == "reduce"]

    for found in in_threads(2, run):
        assert [event["name"] for event in found] == [
            "reduce norm and 1 more",
            "reduce dense",
            "reduce conv and 1 more",
        ]
        assert all(event["tid"] == MESSAGES and event["dur"] > 0 for event in found)
    net.close()


def requests(rank: int, gradient: str = "g") -> tuple[Request, threading.Event]:
    done = threading.Event()
    return Request(np.full(3, rank, np.float32), 5, gradient, lambda _: done.set()), done


def calling(call: Any) -> Any:
    """An engine whose all-reduce is this call."""

    class Engine:
        name = "wire"

        def all_reduce(self, values: np.ndarray) -> None:
            call(values)

    return Engine()


def test_an_engine_s_exception_fails_the_job_and_names_rank_gradient_and_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("casync.collectives.GRACE", 0.05)
    network = LoopbackNetwork(2)

    def refuse(_: np.ndarray) -> None:
        raise OSError("link down")

    made = Collectives(network.control(1), lambda _: calling(refuse))
    request, done = requests(1)
    made.submit([3], 3, request)
    with pytest.raises(RankFailure) as raised:
        while not done.wait(0.01):
            network.control(0).check()
    assert raised.value == RankFailure(1, "g", 5, "its all-reduce by wire failed: OSError: link down")
    made.close()
    network.close()


def test_a_death_that_the_engine_notices_is_left_to_the_control_plane_to_name() -> None:
    network = LoopbackNetwork(2)
    death = RankFailure(0, "g", 5, "its process has ended")

    def broken(_: np.ndarray) -> None:
        threading.Timer(0.1, network.control(1).abort, [death]).start()
        raise RuntimeError("connection closed by peer")

    made = Collectives(network.control(1), lambda _: calling(broken))
    made.submit([0], 0, requests(1)[0])
    made._thread.join(10)
    with pytest.raises(RankFailure) as raised:
        network.control(1).check()
    assert raised.value == death
    network.close()


def test_a_failed_job_is_raised_and_closed_though_the_engine_hangs() -> None:
    network = LoopbackNetwork(2)
    stuck, free = threading.Event(), threading.Event()

    def hang(_: np.ndarray) -> None:
        stuck.set()
        free.wait(60)

    made = Collectives(network.control(0), lambda _: calling(hang))
    made.submit([0], 0, requests(0)[0])
    assert stuck.wait(10)
    network.control(1).abort(RankFailure(1, None, None, "over"))
    made.close()
    assert made._thread.is_alive()
    assert made._thread.daemon
    free.set()
    network.close()


def test_the_rank_that_does_not_come_to_an_all_reduce_is_named() -> None:
    """Ranks 0 to 2 wait in the engine; rank 3 is alive and never ends its backward pass."""
    steps = random_steps(np.random.default_rng(5), SHAPES, 4, 2)
    late = threading.Event()

    def order(rank: int, step: int, names: list[str]) -> list[str]:
        if (rank, step) == (3, 1):
            late.wait(20)
        return names

    threading.Timer(3, late.set).start()
    results = try_job(spec_of(SHAPES, None, "ps", 4, exact="loopback"), steps, order=order, timeout=1)
    for failure in results:
        assert isinstance(failure, RankFailure)
        assert (failure.rank, failure.gradient, failure.step) == (3, "norm and 1 more", 1)


def test_what_an_engine_refuses_is_raised_where_it_is_opened_and_failures_end_the_wait() -> None:
    network = LoopbackNetwork(2)

    def refuse(_: Any) -> Any:
        raise base.EngineError("not here")

    with pytest.raises(base.EngineError, match="not here"):
        Collectives(network.control(0), refuse)

    def wait(control: Any) -> Any:
        threading.Timer(0.1, control.abort, [RankFailure(1, None, None, "gone")]).start()
        threading.Event().wait(5)

    with pytest.raises(RankFailure, match="gone"):
        Collectives(network.control(0), wait)
    network.close()


def test_ranks_with_different_engines_do_not_start() -> None:
    net = LoopbackNetwork(2)

    def run(rank: int) -> None:
        spec = spec_of(SHAPES, None, "ps", 2, exact=("ring", "loopback")[rank])
        Synchronizer(net.control(rank), Channels(net.transport(rank)), spec)

    for error in in_threads(2, run):
        assert isinstance(error, MismatchError)
        assert "exact: rank 0: ring; rank 1: loopback" in str(error)
    net.close()


def test_engines_are_found_by_file_and_say_what_they_need() -> None:
    assert base.names() == ["horovod", "loopback", "mpi", "torch"]
    two = LoopbackNetwork(2).control(0)
    with pytest.raises(base.EngineError, match="'ring', casync's own, or by one of the engines horovod, "):
        base.load("nccl")
    for name, needed in (
        ("torch", r"torch.distributed.init_process_group\('gloo'\) first"),
        ("horovod", r"call horovod.torch.init\(\) before"),
        ("mpi", "knows this process as rank 0 of 1, casync as rank 0 of 2; an engine sums over all ranks"),
    ):
        with pytest.raises(base.EngineError, match=needed):
            base.load(name)(two)
    with pytest.raises(base.EngineError, match="ranks of one process"):
        base.load("loopback")(SoloControl())


@pytest.mark.parametrize(("threshold", "asked", "warned"), [("", True, 1), ("0", True, 0), ("", False, 0)])
def test_where_determinism_is_asked_for_horovod_s_fusion_is_warned_of(
    threshold: str, asked: bool, warned: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = importlib.import_module("casync.engines.horovod")
    hvd = SimpleNamespace(is_initialized=lambda: True, rank=lambda: 0, size=lambda: 1)
    monkeypatch.setattr(engine, "hvd", hvd)
    monkeypatch.setattr(engine.torch, "are_deterministic_algorithms_enabled", lambda: asked)
    monkeypatch.setenv("HOROVOD_FUSION_THRESHOLD", threshold)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(2):
            engine.open(SoloControl())
    assert len(caught) == warned
    assert all("HOROVOD_FUSION_THRESHOLD=0" in str(it.message) for it in caught)


def test_the_picture_of_an_all_reduce() -> None:
    (table,) = draw(reduced(2, 1), 1)
    assert [list(column.cells) for column in table.columns] == [["0", "1"], ["A", "A"], ["D*", "D*"]]


def test_an_engine_whose_package_is_missing_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> Any:
        raise ModuleNotFoundError(f"No module named {name}", name="horovod")

    monkeypatch.setattr("casync.engines.base.importlib.import_module", missing)
    with pytest.raises(base.EngineError, match="exact='horovod' needs horovod, which is not installed"):
        base.load("horovod")
