"""Saved state is resumed by any number of ranks in any topology, on all or on none, and nothing is lost."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from casync_jobs import in_threads
from hypothesis import given, settings
from hypothesis import strategies as st
from loopback_jobs import random_steps, run_job, same_bits, spec_of
from model_jobs import NODES
from numpy_codecs import CODECS
from real_codecs import SUMMABLE

import compll
from casync.channels import Channels
from casync.checkpoint import StateError, merge_states
from casync.control import MismatchError
from casync.plan import Entry, Gradient, Plan, layout
from casync.rules import Schedule
from casync.spec import Op, Spec
from casync.synchronizer import Synchronizer
from casync.transports.loopback import LoopbackNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

SHAPES = {"conv": (90, 100), "bias": (10,), "dense": (17, 1000)}
ONEBIT = CODECS[0]
DGC = compll.compile("dgc", ratio=0.05, momentum=0.0)  # without momentum its v is what it has not sent yet
TOPK = compll.compile("topk", ratio=0.05, error_feedback=True)
CASES = [  # codec, topology, codec of sums
    (ONEBIT, "ps", None),
    (ONEBIT, "ring", None),
    (ONEBIT, "hierarchical", None),
    (TOPK, "allgather", None),
    (SUMMABLE[1], "direct", None),
    (DGC, "allgather", None),
    (DGC, "ps", ONEBIT),
    (DGC, "hierarchical", CODECS[1]),
    (CODECS[1], "ps", None),  # keeps nothing
    (None, "ring", None),
]


def synchronizers(spec: Spec, size: int, work: Callable[[int, Synchronizer], Any]) -> list[Any]:
    """What `work(rank, synchronizer)` returns or raises on each rank."""
    net = LoopbackNetwork(size, timeout=20)

    def run(rank: int) -> Any:
        made = Synchronizer(net.control(rank), Channels(net.transport(rank)), spec, threads=1)
        try:
            return work(rank, made)
        finally:
            made.close()

    try:
        return in_threads(size, run)
    finally:
        net.close()


def states_of(spec: Spec, size: int, load: Sequence[Any] | None = None) -> list[dict[str, Any]]:
    """The states of a run before its next step, of what was loaded."""

    def work(rank: int, synchronizer: Synchronizer) -> Any:
        if load is not None:
            synchronizer.load_state_dict(load[rank])
        return synchronizer.state_dict()

    return good(synchronizers(spec, size, work))


def good(results: list[Any]) -> list[Any]:
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def total(states: Sequence[dict[str, Any]], size: int, elements: dict[str, int]) -> dict[Any, Any]:
    """By gradient and vector (None: what is not applied yet), over ranks and roles, in units of a sum."""
    found: dict[Any, Any] = {}
    for state in states:
        pieces = [
            (e["gradient"], None if name == e["residual"] else name, e["offset"], e["unit"], values)
            for e in state["feedback"]["entries"]
            for name, values in e["values"].items()
        ]
        pieces += [(name, None, 0, "sum", values) for name, values in state["left"].items()]
        for gradient, name, offset, unit, values in pieces:
            whole = found.setdefault((gradient, name), np.zeros(elements[gradient]))
            whole[offset : offset + values.size] += values * np.float64(size if unit == "average" else 1)
    return found


def filled(states: list[dict[str, Any]], elements: dict[str, int], seed: int) -> list[dict[str, Any]]:
    """The states with random values, and something left to add on one rank."""
    rng = np.random.default_rng(seed)
    for state in states:
        for entry in state["feedback"]["entries"]:
            for values in entry["values"].values():
                values[:] = rng.standard_normal(values.size)
    name = next(iter(elements))
    if elements[name]:
        states[-1]["left"][name] = rng.standard_normal(elements[name]).astype(np.float32)
    return states


# --- another number of ranks, another topology -------------------------------------------------------------


@st.composite
def resumptions(draw: st.DrawFn) -> tuple[Spec, int, Spec, int, int]:
    """A run, and another one of the same model: other ranks, topology, codecs and plan."""
    sizes = st.sampled_from([0, 1, 7, 4097, 9000])
    elements = draw(st.lists(sizes, min_size=1, max_size=3))
    gradients = tuple(Gradient(f"g{i}", (n, 1)) for i, n in enumerate(elements))
    op = draw(st.sampled_from(Op))

    def run() -> tuple[Spec, int]:
        nranks = draw(st.integers(1, 4))
        codec, topology, down = draw(st.sampled_from(CASES))
        plan = Plan(tuple(Entry(g.name, draw(st.booleans()), draw(st.integers(1, 4))) for g in gradients))
        return Spec(gradients, plan, codec, topology, op, nodes=NODES[nranks], down=down), nranks

    return *run(), *run(), draw(st.integers(0, 99))


@settings(max_examples=60, deadline=None)
@given(resumptions())
def test_merged_states_give_every_element_what_all_ranks_held_back_of_it(
    resumption: tuple[Spec, int, Spec, int, int],
) -> None:
    before, size, after, new_size, seed = resumption
    elements = {g.name: g.elements for g in before.gradients}
    saved = filled(states_of(before, size), elements, seed)
    merged = merge_states(saved[::-1])
    resumed = states_of(after, new_size, [merged] * new_size)
    old, new = total(saved, size, elements), total(resumed, new_size, elements)
    growth = new_size / size if before.op is Op.AVERAGE else 1
    for (gradient, name), values in old.items():
        kept = new.get((gradient, name), np.zeros(elements[gradient]))
        if name is None or (gradient, name) in new:  # other state goes where the codec has the same
            assert np.allclose(kept, values * growth, rtol=1e-6, atol=1e-5)
    for key in new.keys() - old.keys():
        assert not new[key].any()
    plan = after.plan if after.codec else after.plan.uncompressed()
    for rank, state in enumerate(resumed):
        foreign = total([state], new_size, elements)
        for partition in layout(plan, after.gradients, after.topology, new_size):
            for s in partition.segments if partition.owner == rank else ():
                for name in (None, "u", "v"):
                    foreign.get((s.gradient, name), np.zeros(s.stop))[s.start : s.stop] = 0
        assert not any(values.any() for values in foreign.values())  # each element's is with its owner
        for entry in state["feedback"]["entries"]:
            assert entry["role"] == "WORKER" or not any(v.any() for v in entry["values"].values())


TRANSITIONS = [
    ((ONEBIT, "ps", None), 3, (ONEBIT, "ring", None), 2),
    ((ONEBIT, "ring", None), 2, (ONEBIT, "hierarchical", None), 4),
    ((ONEBIT, "hierarchical", None), 4, (ONEBIT, "ps", None), 1),
    ((ONEBIT, "ps", None), 1, (TOPK, "allgather", None), 3),
    ((TOPK, "allgather", None), 3, (None, "ring", None), 3),
    ((DGC, "allgather", None), 3, (DGC, "ps", ONEBIT), 2),
    ((DGC, "ps", ONEBIT), 2, (DGC, "hierarchical", ONEBIT), 4),
    ((DGC, "hierarchical", ONEBIT), 4, (DGC, "allgather", None), 2),
]


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize(("before", "size", "after", "new_size"), TRANSITIONS)
def test_nothing_is_lost_by_training_on_with_other_ranks_in_another_topology(
    before: Any, size: int, after: Any, new_size: int, op: Op
) -> None:
    """Conservation: what was applied in both runs and what is still held back add up to the gradients."""
    rng = np.random.default_rng(size)
    given, applied, states = dict.fromkeys(SHAPES, 0.0), dict.fromkeys(SHAPES, 0.0), None
    elements = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
    for (codec, topology, down), nranks in ((before, size), (after, new_size)):
        spec = spec_of(SHAPES, codec, topology, nranks, op=op, nodes=NODES[nranks], down=down)
        steps = random_steps(rng, SHAPES, nranks, 3)
        merged = None if states is None else [merge_states(states)] * nranks
        ran = run_job(spec, steps, states=merged)
        states = [rank.state for rank in ran]
        share = 1 / nranks if op is Op.AVERAGE else 1
        for name in SHAPES:
            given[name] += share * sum(g[name].astype(np.float64) for step in steps for g in step)
            applied[name] += sum(result[name].astype(np.float64) for result in ran[0].results)
            assert all(same_bits(rank.results[-1][name], ran[0].results[-1][name]) for rank in ran)
    assert states is not None
    kept = total(states, new_size, elements)
    for name in SHAPES:
        back = sum(kept.get((name, vector), 0.0) for vector in (None, "v"))
        assert np.abs(applied[name] + share * back - given[name]).max() < 1e-4


# --- another plan ------------------------------------------------------------------------------------------


def planned(codec: Any, topology: str, partitions: Sequence[int], op: Op = Op.AVERAGE) -> Spec:
    plan = Plan(tuple(Entry(name, True, k) for name, k in zip(SHAPES, partitions, strict=True)))
    return spec_of(SHAPES, codec, topology, 3, plan=plan, op=op, nodes=NODES[3])


plans = st.lists(st.integers(1, 4), min_size=3, max_size=3)


@settings(max_examples=15, deadline=None)
@given(plans, plans)
def test_another_plan_cuts_what_each_rank_holds_anew_bit_for_bit(first: list[int], second: list[int]) -> None:
    elements = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
    for codec, topology, op in ((TOPK, "allgather", Op.AVERAGE), (ONEBIT, "ring", Op.SUM)):
        saved = filled(states_of(planned(codec, topology, first, op), 3), elements, 1)
        resumed = states_of(planned(codec, topology, second, op), 3, saved)
        for old, new in zip(saved, resumed, strict=True):
            before, after = total([old], 3, elements), total([new], 3, elements)
            assert all(np.array_equal(before[key], after[key]) for key in before)
            assert new["left"].keys() == old["left"].keys()
            assert all(same_bits(new["left"][name], old["left"][name]) for name in new["left"])


def test_another_plan_gives_what_a_rank_no_longer_owns_to_its_next_gradients() -> None:
    elements = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
    saved = filled(states_of(planned(ONEBIT, "ps", [1, 1, 1]), 3), elements, 1)
    resumed = states_of(planned(ONEBIT, "ps", [3, 1, 4]), 3, saved)
    for old, new in zip(saved, resumed, strict=True):
        before, after = total([old], 3, elements), total([new], 3, elements)
        assert all(np.allclose(before[key], after[key], rtol=1e-6, atol=1e-6) for key in before)
    assert any(set(new["left"]) > {"conv"} for new in resumed)


def test_what_was_saved_before_states_named_their_rank_and_model_still_loads() -> None:
    spec = spec_of(SHAPES, ONEBIT, "ps", 2)
    steps = random_steps(np.random.default_rng(4), SHAPES, 2, 5)
    whole = run_job(spec, steps)
    states = [rank.state for rank in run_job(spec, steps[:2])]
    for state in states:
        for name in ("op", "rank", "merged", "gradients"):
            del state[name]
        for entry in state["feedback"]["entries"]:
            del entry["residual"]
    resumed = run_job(spec, steps[2:], states=states)
    for a, b in zip(whole, resumed, strict=True):
        for before, after in zip(a.results[2:], b.results, strict=True):
            assert all(same_bits(before[name], after[name]) for name in SHAPES)
    elements = {name: int(np.prod(shape)) for name, shape in SHAPES.items()}
    named = [rank.state for rank in run_job(spec, steps[:2])]
    merged = (total([merge_states(s)], 1, elements) for s in (states, named))
    assert all(np.array_equal(a, b) for a, b in zip(*(m.values() for m in merged), strict=True))


# --- on all ranks or on none -------------------------------------------------------------------------------

MODEL = (Gradient("conv", (90, 100)), Gradient("bias", (10,)))


@pytest.fixture(scope="module")
def saved() -> list[dict[str, Any]]:
    """Of two ranks in `ps`, after two steps."""
    shapes = {g.name: g.shape for g in MODEL}
    steps = random_steps(np.random.default_rng(4), shapes, 2, 2)
    return [rank.state for rank in run_job(spec_of(shapes, ONEBIT, "ps", 2), steps)]


def another_model(state: dict[str, Any]) -> None:
    state["gradients"] = {"conv": [100, 90], "head": [10]}


CHANGES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (
        lambda s: s["feedback"].update(topology="ring"),
        "by one of 2 ranks in topology ring, this run has 2 in ps",
    ),
    (lambda s: s["feedback"].update(size=3), r"load merge_states\(\[...\]\) of the states of all 3 ranks"),
    (
        lambda s: s["feedback"].update(format=2),
        "has format 2, this version of casync reads 1; resume with the",
    ),
    (lambda s: s.update(rank=0), "was saved by rank 0, this is rank 1; each rank loads its own"),
    (lambda s: s.update(seed=5), r"with seed 5, this one has 0; call casync.init\(seed=5\)"),
    (lambda s: s.update(op="sum"), "saved with op sum, this run has average"),
    (lambda s: s.pop("feedback"), r"no state that casync has saved \(KeyError: 'feedback'\)"),
    (
        another_model,
        r"with another model: not in the model: head; not in the state: bias; of another shape: conv \(saved "
        r"\[100, 90\], model \[90, 100\]\); load it with",
    ),
]


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_what_one_rank_cannot_load_no_rank_loads(
    change: Callable[[dict[str, Any]], Any], told: str, saved: list[dict[str, Any]]
) -> None:
    """Every rank raises, keeps step, codecs and state, and the run goes on as if nothing had been tried."""
    shapes = {g.name: g.shape for g in MODEL}
    schedule = Schedule({0: ONEBIT, 2: None})
    spec = spec_of(shapes, schedule, "ps", 2)
    steps = random_steps(np.random.default_rng(6), shapes, 2, 2)
    wrong = copy.deepcopy(saved)
    change(wrong[1])
    raised: dict[int, BaseException] = {}

    def load(rank: int, synchronizer: Synchronizer) -> None:
        before = synchronizer.state_dict(), synchronizer.partitions
        with pytest.raises(StateError) as caught:
            synchronizer.load_state_dict(wrong[rank])
        raised[rank] = caught.value
        after = synchronizer.state_dict(), synchronizer.partitions
        np.testing.assert_equal(before, after)

    tried = run_job(spec, steps, before_step={1: load})
    calm = run_job(spec, steps)
    assert str(raised[0]).startswith("rank 1 cannot load its state, so no rank has: ")
    assert str(raised[0]).endswith(str(raised[1]))
    with pytest.raises(StateError, match=told):
        raise raised[1]
    for a, b in zip(tried, calm, strict=True):
        assert a.state["step"] == b.state["step"] == 2
        for before, after in zip(a.results, b.results, strict=True):
            assert all(same_bits(before[name], after[name]) for name in shapes)


@pytest.mark.parametrize("other", ["no state", "3"])
def test_ranks_continue_from_one_step_or_none_of_them(other: str, saved: list[dict[str, Any]]) -> None:
    states = [saved[0], None if other == "no state" else saved[1] | {"step": 3}]
    spec = spec_of({g.name: g.shape for g in MODEL}, ONEBIT, "ps", 2)

    def load(rank: int, synchronizer: Synchronizer) -> Any:
        with pytest.raises(MismatchError, match=f"rank 0: 2; rank 1: {other}"):
            synchronizer.load_state_dict(states[rank])
        return synchronizer.state_dict()

    for state in good(synchronizers(spec, 2, load)):
        assert state["step"] == 0
        assert not any(entry["values"]["residual"].any() for entry in state["feedback"]["entries"])


def test_a_state_of_before_with_a_gradient_that_is_not_there_is_of_another_model(
    saved: list[dict[str, Any]],
) -> None:
    old = [{key: value for key, value in state.items() if key != "gradients"} for state in saved]
    spec = spec_of({"conv": (80, 100)}, ONEBIT, "ps", 2)
    with pytest.raises(StateError, match="not in the model, or shorter there: conv"):
        states_of(spec, 2, old)


def test_a_resumed_run_with_another_codec_is_one_that_switches_there(saved: list[dict[str, Any]]) -> None:
    shapes = {g.name: g.shape for g in MODEL}
    resumed = states_of(spec_of(shapes, None, "ps", 2), 2, saved)
    elements = {g.name: g.elements for g in MODEL}
    assert all(set(state["left"]) == {"conv"} for state in resumed)
    assert np.allclose(
        total(saved, 2, elements)["conv", None], total(resumed, 2, elements)["conv", None], atol=1e-5
    )


@pytest.mark.parametrize(
    ("chosen", "told"),
    [
        (lambda _: [], "no states to merge"),
        (lambda s: s[:1], r"2 ranks have saved, and 1 states are given \(of rank 1 there is none\)"),
        (lambda s: [s[1], s[1]], r"2 states are given \(of rank 0 there is none\)"),
        (lambda s: [*s, s[0]], "2 ranks have saved, and 3 states are given; give each rank's once"),
        (lambda s: [s[0], s[1] | {"step": 9}], "different steps: 2, 9; give those that were saved together"),
        (lambda s: [s[0], s[1] | {"gradients": {}}], "different models; give those"),
        (lambda s: [merge_states(s)], "is merged already: load it as it is"),
        (lambda _: [{}], "this is no state that casync has saved"),
    ],
)
def test_states_that_do_not_belong_together_are_not_merged(
    chosen: Callable[[Any], Any], told: str, saved: list[dict[str, Any]]
) -> None:
    with pytest.raises(StateError, match=told):
        merge_states(chosen(saved))
