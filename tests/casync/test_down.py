"""A codec of its own for sums: codecs that keep more than a residual run where a sum is encoded."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from loopback_jobs import random_steps, run_job, same_bits, spec_of
from model_jobs import NODES, check_against_model
from real_codecs import REAL, SPARSE
from torch_jobs import data, good, jobs, model_hash, new_model

import casync.torch as casync
import compll
from casync.choice import AUTO, CodecError, check_codec, check_down
from casync.control import MismatchError
from casync.plan import Plan
from casync.rules import Codecs, Schedule
from casync.spec import Op, Spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from loopback_jobs import Ran, Step

SHAPES = {"conv": (90, 100), "bias": (10,), "dense": (17, 1000)}
ONEBIT, TERNGRAD, _ = REAL
DGC, TOPK = SPARSE
INT8 = compll.compile("int8")
CASES = [
    *((DGC, down, topology) for topology in ("ps", "hierarchical") for down in (INT8, ONEBIT, TOPK)),
    (TOPK, TERNGRAD, "ps"),
    (ONEBIT, TOPK, "ps"),
    (ONEBIT, INT8, "hierarchical"),
]


def named(value: Any) -> str:
    return value if isinstance(value, str) else value.info.name


cases = pytest.mark.parametrize(("codec", "down", "topology"), CASES, ids=named)


@pytest.mark.parametrize("nranks", [1, 2, 3, 5])
@cases
def test_execution_with_a_codec_for_sums_equals_the_model(
    codec: Any, down: Any, topology: str, nranks: int
) -> None:
    """Results and state of all roles, with absences, and with a step that is not finite."""
    op = Op.AVERAGE if nranks % 2 else Op.SUM
    spec = spec_of(SHAPES, codec, topology, nranks, op=op, seed=3, nodes=NODES[nranks], down=down)
    steps = random_steps(np.random.default_rng(nranks), SHAPES, nranks, 4)
    steps[1][0]["conv"] = None
    steps[2][-1]["dense"][5] = np.inf
    check_against_model(spec, steps, run_job(spec, steps))


@cases
def test_timing_changes_no_bit_where_sums_have_a_codec(codec: Any, down: Any, topology: str) -> None:
    spec = spec_of(SHAPES, codec, topology, 4, nodes=NODES[4], down=down)
    steps = random_steps(np.random.default_rng(1), SHAPES, 4, 4)
    calm = run_job(spec, steps)
    wild = run_job(spec, steps, delay=0.005, reorder=True, seed=2)
    for ran in (calm, wild):
        for rank in ran:
            for a, b in zip(calm[0].results, rank.results, strict=True):
                assert all(same_bits(a[name], b[name]) for name in SHAPES)


def account(ran: list[Ran], steps: list[Step], name: str, op: Op) -> tuple[Any, Any, Any, list[Any]]:
    """Of a gradient, in units of a sum: given, applied and kept, and the entries that keep."""
    unit = {"sum": 1, "average": len(ran)}
    given = sum(g[name].astype(np.float64) for step in steps for g in step)
    applied = sum(result[name].astype(np.float64) for result in ran[0].results)
    entries = [e for rank in ran for e in rank.state["feedback"]["entries"] if e["gradient"] == name]
    kept = np.zeros_like(given)
    for entry in entries:
        values = entry["values"].get("v", entry["values"].get("residual"))  # DGC's is in v
        kept[entry["offset"] :][: values.size] += values * np.float64(unit[entry["unit"]])
    return given, applied * (len(ran) if op is Op.AVERAGE else 1), kept, entries


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("topology", ["ps", "hierarchical"])
def test_nothing_is_lost_between_a_codec_s_own_state_and_the_residual_of_sums(topology: str, op: Op) -> None:
    """Without momentum all that DGC holds back is in its v; the residual has what the sum's encode loses."""
    nranks, steps_run = 3, 8
    codec = compll.compile("dgc", ratio=0.05).with_params(momentum=0.0)
    spec = spec_of(SHAPES, codec, topology, nranks, op=op, nodes=NODES[nranks], down=ONEBIT)
    steps = random_steps(np.random.default_rng(5), SHAPES, nranks, steps_run)
    ran = run_job(spec, steps)
    for name in ("conv", "dense"):
        given, applied, kept, entries = account(ran, steps, name, op)
        roles = {(entry["role"], *entry["values"], entry["residual"]) for entry in entries}
        assert roles == {("WORKER", "u", "v", None), ("OWNER", "residual", "residual")}
        assert np.abs(applied + kept - given).max() < 1e-4
        assert np.abs(kept).max() > 0.01


def test_every_rank_s_gradient_has_the_same_momentum() -> None:
    """Its owner's, too: what is small waits on all ranks alike, and is given with its momentum."""
    small, large = np.tile([1, 0], 6000), np.tile([0, 10], 6000)
    codec = compll.compile("dgc", ratio=0.25, momentum=0.5)
    steps = [[{"w": g.astype(np.float32)} for _ in range(4)] for g in (small + large, small + large, small)]
    for topology in ("ps", "hierarchical"):
        down = compll.compile("identity")
        spec = spec_of({"w": (2, 6000)}, codec, topology, 4, op=Op.SUM, nodes=NODES[4], down=down)
        results = [result["w"].tolist() for result in run_job(spec, steps)[0].results]
        assert results[0] == results[1] == (4 * large).tolist()
        assert results[2] == (4 * (1 + 1.5 + 1.75) * small).tolist()


def test_a_switch_keeps_the_codec_of_sums_and_its_residual() -> None:
    spec = spec_of(SHAPES, DGC, "ps", 2, down=ONEBIT)
    steps = random_steps(np.random.default_rng(2), SHAPES, 2, 3)
    switched = Codecs.of(ONEBIT, [])

    def owners(state: dict[str, Any]) -> list[Any]:
        return [e["values"]["residual"] for e in state["feedback"]["entries"] if e["role"] == "OWNER"]

    seen: dict[int, list[Any]] = {}

    def change(rank: int, synchronizer: Any) -> None:
        before = synchronizer.state_dict()
        synchronizer.switch(switched)
        after = synchronizer.state_dict()
        seen[rank] = [*zip(owners(before), owners(after), strict=True)]

    run_job(spec, steps, before_step={2: change})
    for pairs in seen.values():
        assert pairs
        assert all(same_bits(a, b) and a.any() for a, b in pairs)


# --- by schedule -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("topology", ["ps", "hierarchical"])
def test_in_each_stage_of_a_schedule_sums_have_its_codec(topology: str) -> None:
    steps = random_steps(np.random.default_rng(4), SHAPES, 3, 6)

    def results(down: Any) -> Any:
        return run_job(spec_of(SHAPES, TERNGRAD, topology, 3, nodes=NODES[3], down=down), steps)[0].results

    own, int8, scheduled = map(results, (None, INT8, Schedule({2: INT8, 4: None})))
    for step, expected in enumerate([*own[:2], *int8[2:4], *own[4:]]):
        assert all(same_bits(scheduled[step][name], expected[name]) for name in SHAPES)
        assert not same_bits(own[step]["dense"], int8[step]["dense"])


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("after", [TOPK, compll.compile("identity"), None], ids=["residual", "exact", "own"])
def test_nothing_is_lost_when_the_codec_of_sums_changes(after: Any, op: Op) -> None:
    nranks = 3
    down = Schedule({0: ONEBIT, 4: after})
    steps = random_steps(np.random.default_rng(6), SHAPES, nranks, 7)
    ran = run_job(spec_of(SHAPES, ONEBIT, "ps", nranks, op=op, down=down), steps)
    for name in ("conv", "dense"):
        given, applied, kept, entries = account(ran, steps, name, op)
        roles = {entry["role"] for entry in entries}
        assert ("OWNER" in roles) is (after is None or after.info.stateful)
        assert np.abs(applied + kept - given).max() < 1e-4
    assert not any(rank.state["left"] for rank in ran)


def test_the_codec_of_sums_may_come_with_the_codec_that_needs_it_and_no_later() -> None:
    codec = Schedule({0: ONEBIT, 2: DGC})
    spec_of(SHAPES, codec, "ps", 2, down=Schedule({2: INT8})).check_codecs()
    with pytest.raises(CodecError, match=r"codec dgc cannot be used in topology ps.*down='int8'"):
        spec_of(SHAPES, codec, "ps", 2, down=Schedule({3: INT8})).check_codecs()
    with pytest.raises(CodecError, match="down=dgc cannot encode sums"):
        spec_of(SHAPES, ONEBIT, "ps", 2, down=Schedule({0: INT8, 5: DGC})).check_codecs()


def test_a_run_resumed_within_a_schedule_has_the_codec_of_sums_of_its_step() -> None:
    """Both changes, of the terms' codec and of the sums', at one step, as an optimizer takes them."""

    def work(rank: int, job: casync.Job, resumed: Any = None) -> Any:
        model = new_model()
        optimizer = casync.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.05),
            model.named_parameters(),
            codec=Schedule({0: ONEBIT, 3: DGC}),
            topology="ps",
            down=Schedule({1: "terngrad", 3: "onebit"}),
            job=job,
        )
        if resumed:
            model.load_state_dict(resumed[rank][0])
            optimizer.load_state_dict(resumed[rank][1])
        hashes, saved = [], None
        for step in range(4 if resumed else 0, 6):
            if step == 4:
                saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
            x, y = data(rank, step)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            hashes.append(model_hash(model))
        return hashes, saved

    first, second = good(jobs(2, work))
    assert first[0] == second[0]
    saved = [first[1], second[1]]
    again = good(jobs(2, lambda rank, job: work(rank, job, saved)))
    assert [hashes for hashes, _ in again] == [first[0][4:]] * 2


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (
            lambda: check_down(DGC, "ps"),
            r"down=dgc cannot encode sums: it keeps state besides error feedback",
        ),
        (
            lambda: check_down(INT8, "allgather"),
            r"down=int8 has nothing to do in topology allgather: .*; leave down= away, or use "
            r"topology='hierarchical' or 'ps'",
        ),
        (lambda: check_down(INT8, "direct"), "no sum is encoded there"),
        (lambda: check_down(INT8, "ring"), "no sum is encoded there"),
        (
            lambda: check_codec(compll.compile("signsgd"), "ps", down=True),
            r"it takes a vote when it encodes the sum, which down= does .*; leave down= away$",
        ),
        (
            lambda: check_codec(DGC, "ps"),
            r"; use topology='allgather', or give the sum a codec of its own: topology='ps', down='int8'$",
        ),
        (lambda: check_codec(DGC, "ring"), r"has no hop .*; use topology='allgather'$"),
    ],
)
def test_what_cannot_be_is_refused_with_what_can(call: Callable[[], None], told: str) -> None:
    with pytest.raises(CodecError, match=told):
        call()


def test_a_codec_for_sums_lets_any_term_s_codec_through() -> None:
    for topology in ("ps", "hierarchical"):
        for codec in (DGC, TOPK, ONEBIT):
            check_codec(codec, topology, down=True)
        for down in (INT8, ONEBIT, TOPK):
            check_down(down, topology)


def test_ranks_with_other_codecs_for_sums_are_told() -> None:
    def work(rank: int, job: casync.Job) -> None:
        p = torch.nn.Parameter(torch.zeros(4, 2))
        down = ["int8", "onebit"][rank]
        casync.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), [("p", p)], codec="dgc", down=down, job=job)

    results = jobs(2, work)
    assert all(isinstance(result, MismatchError) for result in results)
    assert "down: rank 0: int8" in str(results[0])


def test_auto_takes_a_topology_that_encodes_sums_if_they_have_a_codec() -> None:
    def chosen(codec: Any, nodes: Any, down: Any = INT8) -> str:
        return Spec((), Plan(()), codec, AUTO, nodes=nodes, down=down).settled(4).topology

    assert chosen(DGC, NODES[4]) == "hierarchical"
    assert chosen(DGC, None) == chosen(compll.compile("fp16"), None) == "ps"
    assert chosen(DGC, None, None) == "allgather"


def test_dgc_trains_through_a_parameter_server() -> None:
    def work(rank: int, job: casync.Job) -> tuple[list[str], float, float]:
        model = new_model()
        optimizer = casync.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.05),
            model.named_parameters(),
            codec=DGC,
            topology="ps",
            down="int8",
            job=job,
        )
        hashes, losses = [], []
        for step in range(12):
            x, y = data(rank, step % 2)
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            hashes.append(model_hash(model))
            losses.append(loss.item())
        return hashes, losses[0], losses[-1]

    (first, begin, end), (second, _, _) = good(jobs(2, work))
    assert first == second
    assert len(set(first)) == 12
    assert end < 0.9 * begin
