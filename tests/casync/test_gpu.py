"""Gradients on a GPU, on the late stand-in: the same bits as in host memory, without a wait of the host."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import late_cupy
import numpy as np
import pytest
from gpu_jobs import GPU, HOST, SENT, run_places
from loopback_jobs import random_steps, same_bits, spec_of

import compll
from casync.control import MismatchError
from casync.rules import Codecs

if TYPE_CHECKING:
    from types import ModuleType

    from loopback_jobs import Ran

    from casync.spec import Spec

SHAPES = {"w": (70, 50), "v": (40, 40), "b": (50,)}


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return late_cupy.install(monkeypatch)


def assert_same(ran: list[Ran], meant: list[Ran]) -> None:
    for ours, theirs in zip(ran, meant, strict=True):
        assert ours.finite == theirs.finite
        for one, other in zip(ours.results, theirs.results, strict=True):
            assert one.keys() == other.keys()
            assert all(same_bits(one[name], other[name]) for name in one)
        entries = (ran.state["feedback"]["entries"] for ran in (ours, theirs))
        for one, other in zip(*entries, strict=True):
            assert {k: v for k, v in one.items() if k != "values"} == {
                k: v for k, v in other.items() if k != "values"
            }
            assert all(same_bits(one["values"][name], other["values"][name]) for name in other["values"])


CASES = {
    "ps, feedback": ("ps", "onebit", None, 2),
    "ps, random": ("ps", "terngrad", None, 3),
    "ps, lengths that vary": ("ps", "dgc", "onebit", 2),
    "ring, a hop": ("ring", "onebit", None, 3),
    "allgather": ("allgather", "dgc", None, 2),
    "direct": ("direct", "fp16", None, 2),
    "hierarchical": ("hierarchical", "terngrad", None, 4),
    "uncompressed": ("ps", None, None, 3),
}


def spec_for(case: str, **options: Any) -> tuple[Spec, int]:
    topology, codec, down, nranks = CASES[case]
    nodes = ((0, 1), (2, 3)) if topology == "hierarchical" else None
    compiled, down = (name and compll.compile(name) for name in (codec, down))
    return spec_of(SHAPES, compiled, topology, nranks, down=down, nodes=nodes, **options), nranks


@pytest.mark.parametrize("case", CASES)
def test_results_and_state_are_those_of_host_memory_whichever_ranks_have_a_gpu(case: str) -> None:
    spec, nranks = spec_for(case)
    steps = random_steps(np.random.default_rng(1), SHAPES, nranks, 3)
    meant = run_places(spec, (HOST,) * nranks, steps)
    assert_same(run_places(spec, (GPU,) * nranks, steps), meant)
    assert_same(run_places(spec, ([GPU, HOST] * nranks)[:nranks], steps), meant)


@pytest.mark.parametrize("case", CASES)
def test_gradients_that_overflow_or_are_absent_become_what_they_do_in_host_memory(case: str) -> None:
    spec, nranks = spec_for(case)
    steps = random_steps(np.random.default_rng(2), SHAPES, nranks, 6)
    steps[1][1]["w"][7] = np.inf
    steps[2][0]["b"][3] = np.nan
    steps[3][0]["w"] = steps[3][1]["b"] = None
    for rank in range(nranks):
        steps[4][rank]["v"] = None
    meant = run_places(spec, (HOST,) * nranks, steps)
    assert [ran.finite[:4] for ran in meant] == [[True, False, False, True]] * nranks
    assert_same(run_places(spec, (GPU,) * nranks, steps), meant)


def test_gradients_that_are_scaled_for_a_narrow_type_are_settled_alike() -> None:
    spec, nranks = spec_for("ps, feedback")
    narrow = tuple(replace(gradient, dtype="float16") for gradient in spec.gradients)
    spec = replace(spec, gradients=narrow)
    steps = random_steps(np.random.default_rng(3), SHAPES, nranks, 3)
    scales = [4.0, 1e6, 1.0]  # the second does not fit
    meant = run_places(spec, (HOST, HOST), steps, scales=scales)
    assert meant[0].finite == [True, False, True]
    assert_same(run_places(spec, (GPU, GPU), steps, scales=scales), meant)


def test_a_run_goes_on_from_a_checkpoint_in_the_other_memory() -> None:
    spec, _ = spec_for("ps, feedback")
    steps = random_steps(np.random.default_rng(4), SHAPES, 2, 4)
    whole = run_places(spec, (HOST, HOST), steps)
    first = run_places(spec, (GPU, GPU), steps[:2])
    for places in ((HOST, HOST), (GPU, GPU)):
        rest = run_places(spec, places, steps[2:], states=[ran.state for ran in first])
        for meant in whole:
            meant.results, meant.finite = meant.results[-2:], meant.finite[-2:]
        assert_same(rest, whole)


@pytest.mark.parametrize("network", ["zmq", "mpi"])
def test_bodies_are_staged_in_pinned_memory_for_transports_of_the_host(network: str) -> None:
    """Large ones, which these transports send without a copy. The stand-in refuses what is not pinned."""
    shapes = {"w": (300, 200), "v": (300, 150), "b": (50,)}
    steps = random_steps(np.random.default_rng(5), shapes, 2, 4)
    for codec in (None, compll.compile("dgc")):
        spec = spec_of(shapes, codec, "allgather" if codec else "ps", 2)
        meant = run_places(spec, (HOST, HOST), steps)
        assert_same(run_places(spec, (GPU, GPU), steps, network), meant)
        assert_same(run_places(spec, (GPU, HOST), steps, network), meant)


@pytest.mark.parametrize("case", CASES)
def test_bodies_go_from_gpu_to_gpu_where_the_transport_can_do_that(case: str) -> None:
    spec, nranks = spec_for(case)
    steps = random_steps(np.random.default_rng(7), SHAPES, nranks, 3)
    steps[1][0]["w"] = None
    meant = run_places(spec, (HOST,) * nranks, steps)
    assert_same(run_places(spec, (GPU,) * nranks, steps, "direct"), meant)
    assert sum(SENT) > sum(ran.stats.bytes_sent for ran in meant if ran.stats) / 2


def test_between_gpus_no_rank_may_have_its_gradients_in_host_memory() -> None:
    spec, nranks = spec_for("ps, feedback")
    steps = random_steps(np.random.default_rng(8), SHAPES, nranks, 1)
    with pytest.raises(MismatchError, match=r"the gradients lie.*on a GPU.*in host memory"):
        run_places(spec, (GPU, HOST), steps, "direct")


def test_what_a_codec_leaves_behind_when_it_is_replaced_is_added_to_the_next_gradients() -> None:
    spec, _ = spec_for("ps, feedback")
    steps = random_steps(np.random.default_rng(6), SHAPES, 2, 3)
    switch = {2: Codecs(compll.compile("terngrad"), ())}
    meant = run_places(spec, (HOST, HOST), steps, switch=switch)
    assert meant[0].state["left"] == {}
    assert_same(run_places(spec, (GPU, GPU), steps, switch=switch), meant)
