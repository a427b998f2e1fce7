"""Rules by name, size and dimension; schedules over steps; what a change of codec does to residuals."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from casync_jobs import in_threads
from loopback_jobs import random_steps, same_bits, spec_of

import compll
from casync.channels import Channels
from casync.choice import AUTO, CodecError
from casync.control import MismatchError
from casync.plan import Entry, Gradient, Plan
from casync.rules import Codecs, Rule, Schedule, warm_up
from casync.spec import Op, Spec
from casync.synchronizer import Synchronizer
from casync.transports.loopback import LoopbackNetwork

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SHAPES = {"emb": (90, 100), "fc.weight": (70, 80), "fc.bias": (70,), "norm": (5,)}
ONEBIT, TERNGRAD, INT8 = (compll.compile(name) for name in ("onebit", "terngrad", "int8"))
TBQ = compll.compile("tbq", threshold=0.5)
GRADIENTS = tuple(Gradient(name, shape) for name, shape in SHAPES.items())


def chosen(codecs: Codecs) -> dict[str, Any]:
    return {g.name: codecs.of_gradient(g) for g in GRADIENTS}


def run(
    spec: Spec | Callable[[int], Spec],
    steps: list[Any],
    actions: Mapping[int, Callable[[int, Synchronizer], None]] | None = None,
    state: list[Any] | None = None,
) -> list[Any]:
    """Synchronize on as many ranks as the steps have; `actions[i](rank, synchronizer)` comes before step i.

    Returns, by rank, the results of each step, the outcomes' finiteness and the synchronizer's last state; an
    exception in their place.
    """
    size = len(steps[0])
    net = LoopbackNetwork(size, timeout=20, delay=0.002, reorder=True)

    def rank_main(rank: int) -> Any:
        control = net.control(rank)
        held = spec(rank) if callable(spec) else spec
        synchronizer = Synchronizer(control, Channels(net.transport(rank), checksums=True), held, threads=1)
        try:
            if state is not None:
                synchronizer.load_state_dict(state[rank])
            results = []
            for number, step in enumerate(steps):
                if actions and number in actions:
                    actions[number](rank, synchronizer)
                for name, values in step[rank].items():
                    if values is not None:
                        synchronizer.submit(name, values.copy())
                outcome = synchronizer.synchronize()
                results.append({name: None if v is None else v.copy() for name, v in outcome.values.items()})
                synchronizer.advance()
            saved = synchronizer.state_dict()
            control.gather("the end", b"")
            return results, saved
        finally:
            synchronizer.close()

    try:
        return in_threads(size, rank_main)
    finally:
        net.close()


def good(ran: list[Any]) -> list[Any]:
    for result in ran:
        if isinstance(result, BaseException):
            raise result
    return ran


def held_back(saved: dict[str, Any], name: str, size: int) -> Any:
    """What a rank has not applied of a gradient, in units of a sum."""
    total = np.zeros(int(np.prod(SHAPES[name])))
    for entry in saved["feedback"]["entries"]:
        if entry["gradient"] == name:
            (values,) = entry["values"].values()
            factor = size if entry["unit"] == "average" else 1
            total[entry["offset"] : entry["offset"] + values.size] += factor * values.astype(np.float64)
    if name in saved["left"]:
        total += saved["left"][name]
    return total


def switch_to(codec: Any, rules: Any = ()) -> Callable[[int, Synchronizer], None]:
    return lambda _, synchronizer: synchronizer.switch(Codecs.of(codec, rules))


# --- rules -------------------------------------------------------------------------------------------------


def test_the_first_rule_that_matches_by_name_size_and_dimension_decides() -> None:
    rules = [
        ("*.bias", None),
        Rule("*", TERNGRAD, min_elements=6000),
        Rule("fc.*", INT8, max_elements=6000, min_dims=2),
        Rule("*", TBQ, max_dims=1),
    ]
    codecs = Codecs.of(ONEBIT, rules)
    assert chosen(codecs) == {"emb": TERNGRAD, "fc.weight": INT8, "fc.bias": None, "norm": TBQ}
    assert chosen(Codecs.of(ONEBIT, [])) == dict.fromkeys(SHAPES, ONEBIT)


def test_without_a_plan_one_dimension_is_exact_unless_a_rule_names_it() -> None:
    plan = Codecs.of(ONEBIT, [("norm", TBQ)]).plan(GRADIENTS, 3)
    assert [(e.gradient, e.compressed) for e in plan.entries] == [
        ("emb", True),
        ("fc.weight", True),
        ("fc.bias", False),
        ("norm", True),
    ]


def test_a_rule_does_not_compress_what_a_plan_leaves_exact() -> None:
    plan = Plan(tuple(Entry(name, name != "emb", 2) for name in SHAPES))
    codecs = Codecs.of(None, [("emb", ONEBIT), ("fc.*", ONEBIT)])
    steps = random_steps(np.random.default_rng(1), SHAPES, 2, 1)
    for (result,), _ in good(run(Spec(GRADIENTS, plan, None, "ps", rules=codecs.rules), steps)):
        for name in ("emb", "norm"):
            assert same_bits(result[name], (steps[0][0][name] + steps[0][1][name]) * np.float32(0.5))
        assert len(np.unique(result["fc.bias"])) == 2


@pytest.mark.parametrize("topology", ["ps", "ring"])
def test_gradients_of_several_codecs_become_what_each_becomes_where_all_have_its_codec(topology: str) -> None:
    steps = random_steps(np.random.default_rng(2), SHAPES, 3, 3)
    plan = Plan(tuple(Entry(name, name != "norm", 3) for name in SHAPES))

    def results(codecs: Codecs) -> Any:
        spec = Spec(GRADIENTS, plan, codecs.default, topology, seed=4, rules=codecs.rules)
        return [results for results, _ in good(run(spec, steps))]

    rules = [("fc.weight", TERNGRAD), ("fc.bias", TBQ)]
    mixed = results(Codecs.of(ONEBIT, rules))
    for name, codec in [("emb", ONEBIT), *rules]:
        for here, there in zip(mixed, results(Codecs.of(codec, [])), strict=True):
            assert all(same_bits(a[name], b[name]) for a, b in zip(here, there, strict=True))


def test_what_is_no_rule_is_told_how_to_write_one() -> None:
    with pytest.raises(TypeError, match=r"'\*\.bias' is no rule; write Rule\('\*\.bias', None\)"):
        Codecs.of(ONEBIT, ["*.bias"])  # type: ignore[list-item]
    with pytest.raises(ValueError, match=r"a schedule has stages from steps 0 and up, this one \[\]"):
        Schedule({})
    with pytest.raises(ValueError, match="a stage of a schedule is a schedule"):
        Schedule({0: Schedule({0: None})})


def test_a_codec_that_the_topology_refuses_is_refused_before_the_first_step_wherever_it_stands() -> None:
    topk = compll.compile("topk")
    steps = random_steps(np.random.default_rng(3), SHAPES, 1, 1)
    plan = Plan.default(GRADIENTS, 1)
    for codec, rules in (
        (Schedule({0: None, 500: topk}), []),
        (None, [("emb", topk)]),
    ):
        spec = Spec(GRADIENTS, plan, codec, "ring", rules=Codecs.of(None, rules).rules)
        with pytest.raises(CodecError, match="codec topk"):
            good(run(spec, steps))


def test_a_topology_is_chosen_that_allows_every_codec_of_the_run() -> None:
    plan, dgc = Plan.default(GRADIENTS, 2), compll.compile("dgc")
    for default, rules, expected in (
        (ONEBIT, [("emb", TERNGRAD)], "ps"),
        (ONEBIT, [("emb", dgc)], "allgather"),
        (Schedule({5: dgc}), [("emb", INT8)], "allgather"),
        (compll.compile("fp16"), [("emb", compll.compile("bf16"))], "direct"),
    ):
        codecs = Codecs.of(default, rules)
        assert Spec(GRADIENTS, plan, codecs.default, AUTO, rules=codecs.rules).settled(2).topology == expected
    vote = compll.compile("signsgd")
    codecs = Codecs.of(vote, [("emb", dgc)])
    with pytest.raises(CodecError, match="no topology allows all of signsgd, dgc"):
        Spec(GRADIENTS, plan, codecs.default, AUTO, rules=codecs.rules).settled(2)


def test_ranks_with_other_rules_or_schedules_are_told_in_which() -> None:
    plan = Plan.default(GRADIENTS, 2)
    steps = random_steps(np.random.default_rng(3), SHAPES, 2, 1)

    def told(of_rank: Callable[[int], Codecs]) -> str:
        def spec(rank: int) -> Spec:
            codecs = of_rank(rank)
            return Spec(GRADIENTS, plan, codecs.default, "ps", rules=codecs.rules)

        ran = run(spec, steps)
        assert all(isinstance(result, MismatchError) for result in ran)
        return str(ran[0])

    assert "rule 0" in told(lambda rank: Codecs.of(ONEBIT, [("emb" if rank else "fc*", None)]))
    text = told(lambda rank: Codecs.of(warm_up(TBQ, threshold={0: 1.0, 5 + rank: 0.5}), []))
    assert "from step 5: tbq(threshold=0.5)" in text
    assert "from step 6: tbq(threshold=0.5)" in text


# --- schedules ---------------------------------------------------------------------------------------------


def test_a_schedule_is_exact_before_its_first_stage_and_each_holds_until_the_next() -> None:
    schedule = Schedule({8: INT8, 3: ONEBIT, 5: None})
    assert [schedule.at(step) for step in (0, 2, 3, 4, 5, 7, 8, 900)] == [
        *(None, None, ONEBIT, ONEBIT),
        *(None, None, INT8, INT8),
    ]


def test_a_warm_up_changes_parameters_and_nothing_else() -> None:
    schedule = warm_up("dgc", ratio={10: 0.25, 20: 0.0625}, momentum={15: 0.5})
    values = {
        step: {name: round(float(p.value), 4) for name, p in codec.info.params.items()}
        for step in schedule.stages
        if (codec := schedule.at(step)) is not None
    }
    assert schedule.at(9) is None
    assert values == {
        10: {"ratio": 0.25, "momentum": 0.9, "sampling": 0.001},
        15: {"ratio": 0.25, "momentum": 0.5, "sampling": 0.001},
        20: {"ratio": 0.0625, "momentum": 0.5, "sampling": 0.001},
    }


def test_a_warmed_up_sparse_codec_sends_less_stage_by_stage() -> None:
    shapes = {"w": (100, 100)}
    schedule = warm_up("topk", ratio={2: 0.25, 4: 0.01})
    steps = random_steps(np.random.default_rng(3), shapes, 2, 6)
    for results, _ in good(run(spec_of(shapes, schedule, "ps", 2), steps)):
        sent = [np.count_nonzero(result["w"]) for result in results]
        assert sent[0] == sent[1] == 10_000
        assert sent[2] == sent[3] == 2500
        assert sent[4] == sent[5] == 41 + 60  # a hundredth of each of the two partitions, rounded up


@pytest.mark.parametrize("topology", ["ps", "ring"])
def test_a_run_starts_exact_and_then_compresses_as_one_that_begins_there(topology: str) -> None:
    steps = random_steps(np.random.default_rng(4), SHAPES, 3, 5)
    scheduled = good(run(spec_of(SHAPES, Schedule({2: ONEBIT}), topology, 3), steps))
    exact = good(run(spec_of(SHAPES, None, topology, 3), steps[:2]))
    later = good(run(spec_of(SHAPES, ONEBIT, topology, 3), steps[2:]))
    for (results, _), (first, _), (rest, _) in zip(scheduled, exact, later, strict=True):
        for a, b in zip(results, [*first, *rest], strict=True):
            assert all(same_bits(a[name], b[name]) for name in SHAPES)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("topology", ["ps", "ring"])
def test_a_run_resumed_anywhere_in_a_schedule_continues_bit_for_bit(topology: str, at: int) -> None:
    """Also right behind a change to exact, while what was held back waits for the next gradient."""
    schedule = Schedule({0: ONEBIT, 2: None, 3: TBQ, 4: TERNGRAD})
    spec = spec_of(SHAPES, schedule, topology, 3, seed=8)
    steps = random_steps(np.random.default_rng(5), SHAPES, 3, 6)
    whole = good(run(spec, steps))
    first = good(run(spec, steps[:at]))
    resumed = good(run(spec, steps[at:], state=[saved for _, saved in first]))
    for (results, _), (rest, _) in zip(whole, resumed, strict=True):
        for a, b in zip(results[at:], rest, strict=True):
            assert all(same_bits(a[name], b[name]) for name in SHAPES)


# --- changes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", Op)
@pytest.mark.parametrize("topology", ["ps", "ring", "allgather", "hierarchical"])
@pytest.mark.parametrize("after", [TBQ, TERNGRAD, None], ids=["residual", "stateless", "exact"])
def test_nothing_that_residuals_hold_is_lost_by_a_change(after: Any, topology: str, op: Op) -> None:
    """Conservation: what was applied, and what is still held back, add up to the gradients."""
    size = 3
    steps = random_steps(np.random.default_rng(6), SHAPES, size, 6)
    ran = good(run(spec_of(SHAPES, ONEBIT, topology, size, op=op), steps, {3: switch_to(after)}))
    for name in SHAPES:
        given = sum(rank[name].astype(np.float64) for step in steps for rank in step)
        applied = sum(result[name].astype(np.float64) for result in ran[0][0])
        kept = sum(held_back(saved, name, size) for _, saved in ran)
        applied = applied * (size if op is Op.AVERAGE else 1)
        if after is TERNGRAD and len(SHAPES[name]) == 2:  # itself loses what it rounds, without feedback
            assert not np.any(kept)
            continue
        assert np.abs(applied + kept - given).max() < 1e-4
    assert not any(saved["left"] for _, saved in ran)


def test_what_is_left_waits_for_a_gradient_that_is_there_and_for_a_step_that_is_finite() -> None:
    steps = random_steps(np.random.default_rng(7), SHAPES, 2, 6)
    steps[3][0]["emb"] = None  # absent behind the change, on one rank
    steps[4][1]["norm"][0] = np.inf  # the step after it is dropped
    before, after = {}, {}

    def keep(where: dict[int, Any]) -> Callable[[int, Synchronizer], None]:
        def look(rank: int, synchronizer: Synchronizer) -> None:
            where[rank] = synchronizer.state_dict()["left"]

        return look

    actions = {3: switch_to(None), 4: keep(before), 5: keep(after)}
    ran = good(run(spec_of(SHAPES, ONEBIT, "ps", 2), steps, actions))
    assert set(before[0]) == {"emb"}
    assert set(before[1]) == set()
    assert before[0]["emb"].any()
    assert same_bits(before[0]["emb"], after[0]["emb"])
    assert not any(saved["left"] for _, saved in ran)
    last = sum(rank["emb"] for rank in steps[5]) + after[0]["emb"]
    np.testing.assert_allclose(ran[1][0][5]["emb"], last / 2, rtol=1e-5, atol=1e-6)


def test_other_parameters_leave_residuals_as_they_are() -> None:
    steps = random_steps(np.random.default_rng(8), SHAPES, 2, 3)
    seen: dict[tuple[int, str], Any] = {}

    def change(rank: int, synchronizer: Synchronizer) -> None:
        seen[rank, "before"] = synchronizer.state_dict()["feedback"]["entries"]
        synchronizer.switch(Codecs.of(TBQ.with_params(threshold=2.0), []))
        seen[rank, "after"] = synchronizer.state_dict()["feedback"]["entries"]

    good(run(spec_of(SHAPES, TBQ, "ring", 2), steps, {2: change}))
    for rank in range(2):
        for a, b in zip(seen[rank, "before"], seen[rank, "after"], strict=True):
            assert a["values"]["residual"].any()
            assert same_bits(a["values"].pop("residual"), b["values"].pop("residual"))
            assert a == b


def test_other_parameters_leave_momentum_as_it_is() -> None:
    dgc = compll.compile("dgc", ratio=0.05)
    steps = random_steps(np.random.default_rng(8), SHAPES, 2, 4)
    seen: dict[int, Any] = {}

    def change(rank: int, synchronizer: Synchronizer) -> None:
        before = synchronizer.state_dict()["feedback"]["entries"]
        synchronizer.switch(Codecs.of(dgc.with_params(ratio=0.01), []))
        seen[rank] = zip(before, synchronizer.state_dict()["feedback"]["entries"], strict=True)

    good(run(spec_of(SHAPES, dgc, "allgather", 2), steps, {2: change}))
    for rank in range(2):
        for a, b in seen[rank]:
            assert all(a["values"][name].any() for name in "uv")
            assert all(same_bits(a["values"][name], b["values"][name]) for name in "uv")


def test_ranks_that_change_to_different_codecs_are_told_in_what() -> None:
    steps = random_steps(np.random.default_rng(9), SHAPES, 3, 3)

    def change(rank: int, synchronizer: Synchronizer) -> None:
        synchronizer.switch(Codecs.of(TERNGRAD if rank == 1 else INT8, []))

    ran = run(spec_of(SHAPES, ONEBIT, "ps", 3), steps, {2: change})
    assert all(isinstance(result, MismatchError) for result in ran)
    assert "do not agree on the codecs from step 2 on" in str(ran[0])
    assert "ranks 0, 2: int8" in str(ran[0])
    assert "rank 1: terngrad" in str(ran[0])


def test_replicas_stay_bit_identical_through_many_changes() -> None:
    choices = [ONEBIT, None, TBQ, TERNGRAD, INT8, ONEBIT]
    rules = [(), [("emb", None)], [("fc.*", TBQ)], (), [("norm", ONEBIT)], ()]
    steps = random_steps(np.random.default_rng(10), SHAPES, 3, 12)
    actions = {
        2 * i: switch_to(codec, rule) for i, (codec, rule) in enumerate(zip(choices, rules, strict=True))
    }
    plan = Plan(tuple(Entry(name, True, 3) for name in SHAPES))
    ran = good(run(spec_of(SHAPES, None, "ps", 3, plan=plan), steps, actions))
    for results, _ in ran[1:]:
        for a, b in zip(results, ran[0][0], strict=True):
            assert all(same_bits(a[name], b[name]) for name in SHAPES)
