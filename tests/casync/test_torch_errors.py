"""What a user of the PyTorch interface gets wrong is told with what to do about it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from numpy_codecs import CODECS, OneBit
from torch_jobs import good, jobs

import casync.torch as casync
from casync.control import MismatchError
from casync.plan import Entry, Plan, PlanError

if TYPE_CHECKING:
    from collections.abc import Callable

ONEBIT = CODECS[0]


def one_rank(work: Callable[[casync.Job], Any]) -> Any:
    (result,) = good(jobs(1, lambda _, job: work(job)))
    return result


def distributed(job: casync.Job, p: torch.nn.Parameter | None = None, **options: Any) -> tuple[Any, Any]:
    p = torch.nn.Parameter(torch.zeros(4)) if p is None else p
    return p, casync.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), [("p", p)], job=job, **options)


def test_step_without_backward_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"step\(\) without a backward pass.*loss.backward\(\) first"):
        one_rank(lambda job: distributed(job)[1].step())


def test_zero_grad_while_gradients_travel_is_refused() -> None:
    def work(job: casync.Job) -> None:
        p, optimizer = distributed(job)
        p.sum().backward()
        optimizer.zero_grad()

    with pytest.raises(RuntimeError, match=r"zero_grad\(\) between backward\(\) and step\(\)"):
        one_rank(work)


def test_too_many_backward_passes_are_refused() -> None:
    def work(job: casync.Job) -> None:
        p, _ = distributed(job)
        p.sum().backward()
        p.sum().backward()

    with pytest.raises(RuntimeError, match="set backward_passes_per_step to their number"):
        one_rank(work)


def test_a_gradient_of_another_type_is_named() -> None:
    def work(job: casync.Job) -> None:
        distributed(job, torch.nn.Parameter(torch.zeros(4, dtype=torch.float64)))

    with pytest.raises(TypeError, match=r"p has dtype torch.float64: .* float32, float16, bfloat16; keep"):
        one_rank(work)


def test_parameters_must_have_names_of_their_own_and_all_be_there() -> None:
    p, q = torch.nn.Parameter(torch.zeros(2)), torch.nn.Parameter(torch.zeros(2))

    def call(named: list[tuple[str, torch.nn.Parameter]]) -> Callable[[casync.Job], Any]:
        return lambda job: casync.DistributedOptimizer(torch.optim.SGD([p, q], lr=1.0), named, job=job)

    with pytest.raises(ValueError, match="two parameters are called 'a'"):
        one_rank(call([("a", p), ("a", q)]))
    with pytest.raises(ValueError, match="'b' and 'a' are the same tensor"):
        one_rank(call([("a", p), ("b", p)]))
    with pytest.raises(ValueError, match="no parameter to synchronize: pass named_parameters="):
        one_rank(call([]))
    with pytest.raises(ValueError, match="1 parameters of the optimizer have no name"):
        one_rank(call([("a", p)]))


def test_an_optimizer_is_distributed_once_and_before_its_scheduler() -> None:
    def twice(job: casync.Job) -> None:
        p, optimizer = distributed(job)
        casync.DistributedOptimizer(optimizer, [("p", p)], job=job)

    def late(job: casync.Job) -> None:
        p = torch.nn.Parameter(torch.zeros(4))
        optimizer = torch.optim.SGD([p], lr=1.0)
        torch.optim.lr_scheduler.StepLR(optimizer, 1)
        casync.DistributedOptimizer(optimizer, [("p", p)], job=job)

    with pytest.raises(ValueError, match="distributed already"):
        one_rank(twice)
    with pytest.raises(ValueError, match="create the learning-rate scheduler after DistributedOptimizer"):
        one_rank(late)


def test_a_plan_for_other_gradients_is_refused() -> None:
    with pytest.raises(PlanError, match=r"no line for: p; lines for what the model does not have: q"):
        one_rank(lambda job: distributed(job, plan=Plan((Entry("q", True, 1),))))


def test_ranks_that_differ_are_told_in_what() -> None:
    def told(change: Callable[[int], dict[str, Any]], shape: Callable[[int], int] = lambda _: 4) -> str:
        results = jobs(
            2,
            lambda rank, job: distributed(
                job, torch.nn.Parameter(torch.zeros(shape(rank), 2)), **change(rank)
            ),
        )
        assert all(isinstance(result, MismatchError) for result in results)
        return str(results[0])

    other = OneBit()
    other.info = SimpleNamespace(**(vars(ONEBIT.info) | {"fingerprint": "another"}))  # type: ignore[assignment]
    assert "codec" in told(lambda rank: {"codec": [ONEBIT, other][rank]})
    assert "topology: rank 0: ps; rank 1: ring" in told(lambda rank: {"topology": ["ps", "ring"][rank]})
    assert "plan" in told(lambda rank: {"plan": Plan((Entry("p", True, 1 + rank),))})
    assert "gradient p: rank 0: shape [4, 2], float32; rank 1: shape [5, 2], float32" in told(
        lambda _: {}, lambda rank: 4 + rank
    )
    assert "seed: rank 0: 0; rank 1: 1" in told(lambda rank: {"seed": rank})


def test_a_codec_that_cannot_hop_is_refused_in_a_ring() -> None:
    codec = OneBit()
    codec.info = SimpleNamespace(**(vars(ONEBIT.info) | {"hop": False, "why": {"hop": "it votes"}}))  # type: ignore[assignment]
    with pytest.raises(
        casync.CodecError,
        match=r"cannot be used in topology ring: it has no hop \(it votes\); use topology='ps'",
    ):
        one_rank(lambda job: distributed(job, codec=codec, topology="ring"))


def test_a_codec_with_state_of_its_own_is_refused_where_a_sum_is_encoded() -> None:
    codec = OneBit()
    codec.info = SimpleNamespace(**(vars(ONEBIT.info) | {"feedback": False}))  # type: ignore[assignment]
    with pytest.raises(
        casync.CodecError, match=r"keeps state besides error feedback.*; use topology='allgather'"
    ):
        one_rank(lambda job: distributed(job, codec=codec))


def test_an_unknown_topology_is_refused_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match="unknown topology 'star': it is one of allgather, direct, hierarchical, ps, ring"
    ):
        one_rank(lambda job: distributed(job, topology="star"))


def test_before_init_the_error_says_what_to_call() -> None:
    with pytest.raises(RuntimeError, match=r"call casync.init\(\) first"):
        casync.rank()
