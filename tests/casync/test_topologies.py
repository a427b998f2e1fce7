"""Every topology on 1 to 9 ranks, in 1 to N + 1 partitions, on a network that delays and reorders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from casync_model import Model
from loopback_jobs import random_steps, run_job, same_bits
from numpy_codecs import CODECS as NUMPY_CODECS
from real_codecs import REAL, SPARSE, SUMMABLE

import compll
from casync.choice import CodecError, check_codec, choose, refusal
from casync.frames import HEADER_BYTES
from casync.plan import GRANULE, Entry, Gradient, Plan, layout, schedule
from casync.primitives import Encode, Recv, Send
from casync.spec import Op, Spec
from casync.topologies import check_nodes, even_nodes, names

if TYPE_CHECKING:
    from casync.plan import Partition
    from casync.primitives import Schedule

ONEBIT, TERNGRAD, _ = REAL
DGC, TOPK = SPARSE
FP16, RANDOMK = SUMMABLE
CODECS = {"ps": ONEBIT, "ring": TERNGRAD, "hierarchical": ONEBIT, "allgather": TOPK, "direct": RANDOMK}


def sent_bytes(schedule: Schedule, rank: int, partitions: tuple[Partition, ...], codec: Any) -> int:
    """What a rank's schedule says that it sends a step: payloads of an exact size, and their headers."""
    total = 0
    for task in schedule[rank]:
        if isinstance(task, Send):
            made = schedule[rank][task.payload]
            assert isinstance(made, Encode | Recv)
            (segment,) = partitions[task.partition].segments
            exact = made.exact or not partitions[task.partition].compressed
            total += HEADER_BYTES + (4 * segment.elements if exact else codec.max_bytes(segment.elements))
    return total


@pytest.mark.parametrize("nranks", range(1, 10))
@pytest.mark.parametrize("topology", names())
def test_every_topology_runs_as_its_model_says_and_sends_what_its_schedule_says(
    topology: str, nranks: int
) -> None:
    codec = CODECS[topology]
    nodes = check_nodes((tuple(range(0, nranks, 3)), tuple(r for r in range(nranks) if r % 3)), nranks)
    shapes = {f"in {k}": (k, GRANULE) for k in range(1, nranks + 2)} | {"exact": (77,)}
    gradients = tuple(Gradient(name, shape) for name, shape in shapes.items())
    plan = Plan(tuple(Entry(g.name, g.name != "exact", g.shape[0]) for g in gradients))
    spec = Spec(gradients, plan, codec, topology, Op.AVERAGE, 5, nodes)
    partitions = layout(plan, gradients, topology, nranks)
    steps = random_steps(np.random.default_rng(nranks), shapes, nranks, 2)
    ran = run_job(spec, steps, delay=0.004, reorder=True, seed=nranks)
    model = Model(nranks, topology, codec, partitions, True, 5, nodes)
    for number, step in enumerate(steps):
        expected = model.step(number, step)
        for rank in ran:
            assert all(same_bits(expected[name], rank.results[number][name]) for name in shapes)
    tasks = schedule(partitions, topology, nranks, nodes)
    for number, rank in enumerate(ran):
        assert rank.stats is not None
        assert rank.stats.bytes_sent == 2 * sent_bytes(tasks, number, partitions, codec)
    assert sum(r.stats.bytes_sent for r in ran) == sum(r.stats.bytes_received for r in ran)


@pytest.mark.parametrize("topology", names())
def test_a_sum_beyond_float32_reaches_every_rank_and_leaves_no_residual(topology: str) -> None:
    shapes = {"weight": (2, 2048)}
    gradients = (Gradient("weight", (2, 2048)),)
    steps = random_steps(np.random.default_rng(2), shapes, 3, 3)
    for rank in steps[1]:
        rank["weight"][7] = 3e38
    codec = compll.compile("identity", backend="interp", error_feedback=True)
    spec = Spec(gradients, Plan.default(gradients, 1), codec, topology, Op.SUM, nodes=((0, 1), (2,)))
    for ran in run_job(spec, steps):
        assert ran.finite == [True, False, True]
        assert np.isnan(ran.results[1]["weight"]).all()
        assert np.isfinite(ran.results[2]["weight"]).all()


# --- which codec in which topology -------------------------------------------------------------------------


def allowed(codec: Any) -> set[str]:
    return {name for name in names() if not refusal(codec, name)}


def test_a_codec_s_properties_say_where_it_may_go() -> None:
    everywhere = set(names())
    assert allowed(FP16) == everywhere
    assert allowed(RANDOMK) == everywhere  # with feedback, but its payload is float32
    assert allowed(compll.compile("fp16", backend="interp", error_feedback=True)) == everywhere - {"direct"}
    assert allowed(ONEBIT) == allowed(TERNGRAD) == everywhere - {"direct"}
    assert allowed(TOPK) == everywhere - {"direct", "ring"}
    assert allowed(DGC) == {"allgather"}
    assert allowed(compll.compile("signsgd", backend="interp")) == {"ps"}


@pytest.mark.parametrize(
    ("codec", "topology", "told"),
    [
        (
            "topk",
            "ring",
            r"topk cannot be used in topology ring: it has no hop \(its decode is a scatter.*'ps'",
        ),
        (
            "dgc",
            "ps",
            r"keeps state besides error feedback, .*; use topology='allgather', or give.*down='int8'$",
        ),
        ("dgc", "hierarchical", r"keeps state besides error feedback"),
        (
            "onebit",
            "direct",
            r"cannot be added \(payloads are not linear.*; use topology='allgather' or 'hier",
        ),
        ("signsgd", "allgather", r"it takes a vote when the sum is encoded.*; use topology='ps'$"),
        ("signsgd", "hierarchical", r"it takes a vote of all ranks, and nodes would vote"),
    ],
)
def test_a_refusal_says_why_and_what_to_use(codec: str, topology: str, told: str) -> None:
    with pytest.raises(CodecError, match=told):
        check_codec(compll.compile(codec, backend="interp"), topology)


def test_a_cast_with_feedback_is_not_summed_directly() -> None:
    with pytest.raises(CodecError, match="rounding the sum of payloads would lose what no residual keeps"):
        check_codec(compll.compile("bf16", backend="interp", error_feedback=True), "direct")


def test_auto_chooses_by_properties_nodes_and_plan() -> None:
    plan, alone, shared = Plan(()), even_nodes(4), even_nodes(4, 2)
    codecs = [(ONEBIT,), (TOPK,), (DGC,), (FP16,), (RANDOMK,), ()]
    assert [choose(held, plan, alone) for held in codecs] == [
        "ps",
        "allgather",
        "allgather",
        "direct",
        "direct",
        "ring",
    ]
    assert choose((ONEBIT,), plan, shared) == "hierarchical"
    assert choose((ONEBIT,), plan, even_nodes(4, 4)) == "ps"
    assert choose((compll.compile("signsgd", backend="interp"),), plan, shared) == "ps"
    assert choose((ONEBIT,), Plan((), {"topology": "RING"}), shared) == "ring"


def test_auto_runs_as_what_it_chose() -> None:
    shapes = {"weight": (50, 100)}
    steps = random_steps(np.random.default_rng(2), shapes, 3, 2)
    gradients = (Gradient("weight", (50, 100)),)

    def results(topology: str) -> list[Any]:
        spec = Spec(gradients, Plan.default(gradients, 3), DGC, topology)
        return [step["weight"] for step in run_job(spec, steps)[0].results]

    assert all(map(same_bits, results("auto"), results("allgather")))


@pytest.mark.parametrize("nodes", [((0, 1),), ((0, 1), (1, 2)), ((0, 1), (2, 3))])
def test_nodes_that_are_not_the_ranks_are_refused(nodes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ValueError, match="each of the ranks 0 to 2 must be in one"):
        check_nodes(nodes, 3)


def test_inside_a_node_nothing_is_lost() -> None:
    """All ranks in one node: the sum is exact until the one encode of its result."""
    shapes = {"weight": (3, 40)}
    gradients = (Gradient("weight", (3, 40)),)
    steps = random_steps(np.random.default_rng(2), shapes, 3, 1)
    codec = NUMPY_CODECS[1]
    spec = Spec(gradients, Plan.default(gradients, 3), codec, "hierarchical", nodes=((0, 1, 2),))
    found = run_job(spec, steps)[0].results[0]["weight"]
    mean = sum(rank["weight"] for rank in steps[0]) / 3
    assert np.abs(found - mean).max() <= 1.001 * (mean.max() - mean.min()) / 255
