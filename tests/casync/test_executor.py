"""The executor computes, bit for bit, what the plain model of `ps` and `ring` says, whatever the timing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from casync_model import Model
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_jobs import random_steps, run_job, same_bits, spec_of, watch_pools
from model_jobs import NODES, check_against_model, model_of
from numpy_codecs import CODECS as NUMPY_CODECS
from real_codecs import REAL, SPARSE, SUMMABLE

from casync.plan import Entry, Gradient, Partition, Plan, Segment, layout, schedule
from casync.primitives import Role, Send
from casync.synchronizer import Op, Spec

if TYPE_CHECKING:
    from loopback_jobs import Step

SHAPES = {"conv": (90, 100), "bias": (10,), "dense": (17, 1000), "norm": (300,), "tail": (5, 5)}
CODECS = (*NUMPY_CODECS, *REAL)
PAIRS = [
    *((codec, topology) for topology in ("ps", "ring") for codec in CODECS),
    *((codec, "hierarchical") for codec in (NUMPY_CODECS[0], NUMPY_CODECS[2], REAL[2], SPARSE[1])),
    *((codec, "allgather") for codec in (NUMPY_CODECS[2], REAL[1], *SPARSE)),
    *((codec, "direct") for codec in SUMMABLE),
]


def named(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or "none"
    return value.info.name + value.info.feedback * "-feedback"


pairs = pytest.mark.parametrize(("codec", "topology"), PAIRS, ids=named)


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("nranks", [1, 2, 3, 5])
@pytest.mark.parametrize(("codec", "topology"), [*PAIRS, (None, "ring")], ids=named)
def test_execution_equals_the_model(codec: Any, topology: str, nranks: int, op: Op) -> None:
    spec = spec_of(SHAPES, codec, topology, nranks, op=op, seed=11, nodes=NODES[nranks])
    steps = random_steps(np.random.default_rng(nranks), SHAPES, nranks, 3)
    check_against_model(spec, steps, run_job(spec, steps))


@st.composite
def jobs(draw: st.DrawFn) -> tuple[Spec, list[Step]]:
    nranks = draw(st.integers(1, 4))
    sizes = st.sampled_from([0, 1, 7, 4095, 4096, 4097, 9000, 20000])
    shapes = {f"g{i}": (n, 1) for i, n in enumerate(draw(st.lists(sizes, min_size=1, max_size=4)))}
    gradients = tuple(Gradient(name, shape) for name, shape in shapes.items())
    entries = [Entry(g.name, draw(st.booleans()), draw(st.integers(1, nranks + 1))) for g in gradients]
    codec, topology = draw(st.sampled_from(PAIRS))
    spec = Spec(
        gradients, Plan(tuple(entries)), codec, topology, draw(st.sampled_from(Op)), nodes=NODES[nranks]
    )
    steps = random_steps(np.random.default_rng(draw(st.integers(0, 99))), shapes, nranks, 2)
    for step in steps:
        for gradients_of_rank in step:
            for name in gradients_of_rank:
                fate = draw(st.integers(0, 14))
                if fate < 3:
                    gradients_of_rank[name] = None
                elif fate == 3:
                    gradients_of_rank[name][-1:] = draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    return spec, steps


@settings(max_examples=60, deadline=None)
@given(jobs())
def test_any_sizes_partitions_absences_and_infinities_equal_the_model(job: tuple[Spec, list[Step]]) -> None:
    spec, steps = job
    check_against_model(spec, steps, run_job(spec, steps))


@pytest.mark.parametrize(("codec", "topology"), [p for p in PAIRS if p[0].info.feedback], ids=named)
@pytest.mark.parametrize("op", Op)
def test_nothing_is_lost_to_compression(codec: Any, topology: str, op: Op) -> None:
    """Conservation: what was applied and what the residuals hold add up to the gradients."""
    nranks = 3
    spec = spec_of(SHAPES, codec, topology, nranks, op=op, nodes=NODES[nranks])
    steps = random_steps(np.random.default_rng(5), SHAPES, nranks, 10)
    ran = run_job(spec, steps)
    unit = {"sum": 1, "average": nranks}
    for name in ("conv", "dense", "tail"):
        given_sum = sum(g[name].astype(np.float64) for step in steps for g in step)
        applied = sum(result[name].astype(np.float64) for result in ran[0].results)
        kept = np.zeros_like(given_sum)
        for rank in ran:
            for entry in rank.state["feedback"]["entries"]:
                if entry["gradient"] == name:
                    values = entry["values"]["residual"]
                    begin = entry["offset"]
                    kept[begin : begin + values.size] += values * np.float64(unit[entry["unit"]])
        total = applied * (nranks if op is Op.AVERAGE else 1) + kept
        magnitude = sum(np.abs(g[name]) for step in steps for g in step).max() * 10
        assert np.abs(total - given_sum).max() <= magnitude * 2**-22
        assert np.abs(kept).max() > 0.01


def test_uncompressed_is_exact_on_integers() -> None:
    rng = np.random.default_rng(0)
    steps = [
        [
            {n: rng.integers(-99, 99, int(np.prod(s))).astype(np.float32) for n, s in SHAPES.items()}
            for _ in range(4)
        ]
    ]
    ran = run_job(spec_of(SHAPES, None, "ps", 4, op=Op.SUM), steps)
    for name in SHAPES:
        assert same_bits(ran[2].results[0][name], sum(g[name] for g in steps[0]))


@pairs
def test_timing_and_hook_order_change_no_bit(codec: Any, topology: str) -> None:
    spec = spec_of(SHAPES, codec, topology, 3, nodes=NODES[3])
    steps = random_steps(np.random.default_rng(8), SHAPES, 3, 6)
    calm = run_job(spec, steps)

    def shuffled(rank: int, step: int, names: list[str]) -> list[str]:
        return list(np.random.default_rng([rank, step]).permutation(names))

    for seed in (1, 2):
        wild = run_job(spec, steps, order=shuffled, delay=0.01, reorder=True, seed=seed)
        for a, b in zip(calm, wild, strict=True):
            for before, after in zip(a.results, b.results, strict=True):
                assert all(same_bits(before[name], after[name]) for name in SHAPES)


@pytest.mark.parametrize("name", ["dense", "bias"])
@pairs
def test_one_value_that_is_not_finite_drops_the_step_s_residuals(
    codec: Any, topology: str, name: str
) -> None:
    """Its partition ends as NaN on every rank, if compressed; no residual of the step changes anywhere."""
    for bad, value in enumerate([np.nan, np.inf, -np.inf]):
        spec = spec_of(SHAPES, codec, topology, 3, nodes=NODES[3])
        steps = random_steps(np.random.default_rng(4), SHAPES, 3, 3)
        steps[1][bad][name][3] = value
        ran = run_job(spec, steps)
        model = check_against_model(spec, steps, ran)
        assert [result.finite for result in ran] == [[True, False, True]] * 3
        assert all(result.stats.dropped_steps == 1 for result in ran)
        hurt = np.flatnonzero(~np.isfinite(ran[0].results[1][name])).tolist()
        first = next(p.segments[0] for p in model.partitions if p.segments[0].gradient == name)
        assert hurt == (list(range(first.start, first.stop)) if name == "dense" else [3])


@pairs
def test_absent_gradients_take_part_and_stay_absent_where_no_rank_has_them(codec: Any, topology: str) -> None:
    spec = spec_of(SHAPES, codec, topology, 3, nodes=NODES[3])
    steps = random_steps(np.random.default_rng(4), SHAPES, 3, 4)
    for rank in range(3):
        steps[1][rank]["dense"] = steps[1][rank]["bias"] = None
    steps[2][0]["conv"] = steps[2][1]["norm"] = None
    steps[3][2]["conv"] = steps[3][0]["tail"] = None
    ran = run_job(spec, steps)
    check_against_model(spec, steps, ran)
    for result in ran:
        assert result.results[1]["dense"] is None
        assert result.results[1]["bias"] is None
        assert result.results[1]["norm"] is not None
        assert result.results[2]["conv"] is not None


@pytest.mark.parametrize("codec", [c for c in CODECS if c.info.feedback], ids=named)
def test_what_an_owner_s_worker_role_had_left_is_merged_exactly_and_becomes_zero(codec: Any) -> None:
    """Such a residual comes from a saved run in which another rank owned the elements."""
    spec = spec_of(SHAPES, codec, "ps", 3)
    steps = random_steps(np.random.default_rng(4), SHAPES, 3, 3)
    states = [result.state for result in run_job(spec, steps[:1])]
    model = model_of(spec, 3)
    model.step(0, steps[0])
    owner_of = {
        (p.segments[0].gradient, p.segments[0].start): p.owner for p in model.partitions if p.compressed
    }
    for rank, state in enumerate(states):
        for entry in state["feedback"]["entries"]:
            place = (entry["gradient"], entry["offset"])
            if entry["role"] == "WORKER" and owner_of[place] == rank:
                left = np.random.default_rng(rank).standard_normal(
                    entry["values"]["residual"].size, np.float32
                )
                entry["values"]["residual"] = left
                model.residuals[rank, *place, Role.WORKER, "residual"] = left
    ran = run_job(spec, steps[1:], states=states)
    for number in (1, 2):
        expected = model.step(number, steps[number])
        for result in ran:
            assert all(same_bits(expected[name], result.results[number - 1][name]) for name in SHAPES)
    for rank, result in enumerate(ran):
        for entry in result.state["feedback"]["entries"]:
            if entry["role"] == "WORKER" and owner_of[entry["gradient"], entry["offset"]] == rank:
                assert not entry["values"]["residual"].any()


@pytest.mark.parametrize(("codec", "topology"), [PAIRS[0], PAIRS[6], *PAIRS[12:]], ids=named)
def test_every_buffer_is_given_back(codec: Any, topology: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that later steps allocate nothing; also with absent gradients and values that are not finite."""
    taken, _ = watch_pools(monkeypatch)
    steps = random_steps(np.random.default_rng(4), SHAPES, 3, 4)
    steps[1][0]["dense"] = steps[2][1]["bias"] = None
    steps[2][0]["conv"][3] = np.nan
    run_job(spec_of(SHAPES, codec, topology, 3, nodes=NODES[3]), steps)
    assert taken
    assert set(taken.values()) == {0}


@pairs
def test_a_resumed_run_equals_the_uninterrupted_one(codec: Any, topology: str) -> None:
    spec = spec_of(SHAPES, codec, topology, 3, seed=7, nodes=NODES[3])
    steps = random_steps(np.random.default_rng(4), SHAPES, 3, 6)
    whole = run_job(spec, steps)
    first = run_job(spec, steps[:3])
    rest = run_job(spec, steps[3:], states=[result.state for result in first])
    for a, b in zip(whole, rest, strict=True):
        for before, after in zip(a.results[3:], b.results, strict=True):
            assert all(same_bits(before[name], after[name]) for name in SHAPES)


PLAN = Plan(
    (
        Entry("conv", True, 1),
        Entry("bias", False, 1),
        Entry("dense", True, 4),
        Entry("norm", False, 1),
        Entry("tail", False, 2),
    )
)


@pytest.mark.parametrize("topology", ["ps", "ring"])
@pytest.mark.parametrize("codec", [c for c in CODECS if c.info.exact_size], ids=named)
def test_messages_and_bytes_are_those_of_the_plan(codec: Any, topology: str) -> None:
    """N - 1 messages up and N - 1 down a partition, each a header and a body at its true length."""
    nranks, nsteps = 3, 2
    spec = spec_of(SHAPES, codec, topology, nranks, plan=PLAN, nodes=NODES[nranks])
    ran = run_job(spec, random_steps(np.random.default_rng(4), SHAPES, nranks, nsteps))
    # dense in four, conv whole; bias, norm and tail are one bucket, each beginning at a multiple of 16 bytes
    bodies = [codec.max_bytes(n) for n in (4096, 4096, 4096, 4712, 9000)] + [4 * (12 + 300 + 25)]
    assert sum(r.stats.messages_sent for r in ran) == 2 * (nranks - 1) * nsteps * len(bodies)
    assert sum(r.stats.bytes_sent for r in ran) == 2 * (nranks - 1) * nsteps * sum(32 + b for b in bodies)
    assert sum(r.stats.bytes_received for r in ran) == sum(r.stats.bytes_sent for r in ran)
    assert all(r.stats.steps == nsteps for r in ran)
    partitions = layout(PLAN, spec.gradients, topology, nranks)
    for rank, tasks in enumerate(schedule(partitions, topology, nranks)):
        sends = [task.partition for task in tasks if isinstance(task, Send)]
        assert ran[rank].stats.messages_sent == nsteps * len(sends)
        assert ran[rank].stats.bytes_sent == nsteps * sum(32 + bodies[p] for p in sends)
        assert ran[rank].stats.tasks == nsteps * len(tasks)


def test_without_a_codec_everything_travels_uncompressed() -> None:
    """One bucket of all that is small, cut by the largest K among its gradients."""
    ran = run_job(
        spec_of(SHAPES, None, "ps", 3, plan=PLAN), random_steps(np.random.default_rng(4), SHAPES, 3, 1)
    )
    assert sum(r.stats.messages_sent for r in ran) == 2 * 2 * 4
    # 26335 elements; bias (10) and the end of dense (5530) are each followed by two elements of padding
    assert sum(r.stats.bytes_sent for r in ran) == 2 * 2 * (4 * 32 + 4 * (26335 + 4))
    assert all(r.stats.ratio == pytest.approx(1, abs=0.01) for r in ran)


@pairs
def test_a_bucket_of_compressed_gradients_travels_in_one_message(
    codec: Any, topology: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is encoded for itself, with its own state and seeds; some are absent, on some ranks or on all."""
    segments = tuple(Segment(name, 0, 0, int(np.prod(shape))) for name, shape in SHAPES.items())
    monkeypatch.setattr("casync.synchronizer.layout", lambda *_: (Partition(True, 1, segments),))
    plan = Plan(tuple(Entry(name, True, 1) for name in SHAPES))
    spec = spec_of(SHAPES, codec, topology, 3, plan=plan, nodes=NODES[3])
    steps = random_steps(np.random.default_rng(6), SHAPES, 3, 4)
    steps[1][0]["bias"] = steps[1][2]["conv"] = steps[1][1]["tail"] = None
    for rank in range(3):
        steps[2][rank]["norm"] = steps[3][rank]["tail"] = steps[3][rank]["conv"] = None
    ran = run_job(spec, steps)
    assert sum(r.stats.messages_sent for r in ran) == (6 if topology == "allgather" else 4) * 4
    model = Model(3, topology, codec, (Partition(True, 1, segments),), nodes=NODES[3])
    for number, step in enumerate(steps):
        expected = model.step(number, step)
        for result in ran:
            assert all(same_bits(expected[name], result.results[number][name]) for name in SHAPES)
