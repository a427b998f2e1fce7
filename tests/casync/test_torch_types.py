"""Gradients of float16 and bfloat16, and gradients under a loss scaler."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numpy_codecs import CODECS
from real_codecs import REAL
from torch_jobs import data, good, jobs, model_hash, new_model

import casync.torch as casync

ONEBIT = CODECS[0]
HALVES = [torch.float16, torch.bfloat16]


def of(values: torch.Tensor, dtype: torch.dtype) -> torch.nn.Parameter:
    return torch.nn.Parameter(torch.zeros(values.shape, dtype=dtype))


def synchronized(
    job: casync.Job, gradients: list[dict[str, torch.Tensor]], codec: Any, topology: str, **options: Any
) -> tuple[list[dict[str, torch.Tensor]], Any]:
    """What this rank's gradients of each step become; and the optimizer."""
    parameters = {name: of(g, g.dtype) for name, g in gradients[0].items()}
    optimizer = casync.DistributedOptimizer(
        torch.optim.SGD(parameters.values(), lr=0.0),
        parameters.items(),
        codec=codec,
        topology=topology,
        job=job,
        **options,
    )
    results = []
    for step in gradients:
        for name, g in step.items():
            (parameters[name] * g).sum().backward()
        optimizer.synchronize()
        results.append({name: p.grad.clone() for name, p in parameters.items() if p.grad is not None})
        optimizer.zero_grad()
    return results, optimizer


def random(rank: int, step: int, dtype: torch.dtype, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(100 * rank + step)
    return torch.randn(shape, generator=generator).to(dtype)


@pytest.mark.parametrize("topology", ["ps", "ring"])
@pytest.mark.parametrize("codec", [*REAL, ONEBIT], ids=lambda c: f"{c.info.name}-{c.info.feedback}")
@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_compressed_half_becomes_what_a_float32_of_its_values_does_rounded_once(
    dtype: torch.dtype, codec: Any, topology: str
) -> None:
    def work(rank: int, job: casync.Job, kind: torch.dtype) -> Any:
        steps = [{"w": random(rank, step, dtype, 90, 100).to(kind)} for step in range(4)]
        return synchronized(job, steps, codec, topology)[0]

    halves = good(jobs(3, lambda rank, job: work(rank, job, dtype)))
    floats = good(jobs(3, lambda rank, job: work(rank, job, torch.float32)))
    for rank in range(3):
        for half, whole in zip(halves[rank], floats[0], strict=True):
            assert half["w"].dtype == dtype
            assert torch.equal(half["w"], whole["w"].to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_an_uncompressed_half_travels_in_two_bytes_and_its_sum_is_rounded_to_its_type(
    dtype: torch.dtype,
) -> None:
    def work(rank: int, job: casync.Job) -> Any:
        steps = [{"w": random(rank, 0, dtype, 50, 80), "b": random(rank, 1, dtype, 80)}]
        results, optimizer = synchronized(job, steps, None, "ps")
        return results[0], optimizer.stats()

    ran = good(jobs(2, work))
    for name, shape, step in (("w", (50, 80), 0), ("b", (80,), 1)):
        a, b = (random(rank, step, dtype, *shape).float() for rank in range(2))
        mean = ((a + b) * 0.5).to(dtype)  # two ranks: one hop, which adds, averages and rounds
        assert all(torch.equal(result[name], mean) for result, _ in ran)
    for _, stats in ran:
        assert stats.bytes_sent == stats.messages_sent * 32 + 4080 * 2
        assert stats.messages_sent == 1


def test_gradients_of_all_types_in_one_model_are_summed_exactly_where_they_can_be() -> None:
    types = [torch.float16, torch.float32, torch.bfloat16, torch.float32, torch.float16]

    def work(rank: int, job: casync.Job) -> Any:
        whole = torch.arange(60.0).view(6, 10) + rank
        step = {f"p{i}": whole.to(dtype) for i, dtype in enumerate(types)}
        return synchronized(job, [step], None, "ring", op=casync.Sum)[0][0]

    for result in good(jobs(3, work)):
        for i, dtype in enumerate(types):
            assert torch.equal(result[f"p{i}"], (3 * torch.arange(60.0).view(6, 10) + 3).to(dtype))


@pytest.mark.parametrize("dtype", HALVES, ids=str)
def test_a_half_that_is_absent_on_a_rank_gets_a_gradient_of_its_type(dtype: torch.dtype) -> None:
    def work(rank: int, job: casync.Job) -> Any:
        p = torch.nn.Parameter(torch.zeros(3, 2, dtype=dtype))
        sgd = torch.optim.SGD([p], lr=1.0)
        optimizer = casync.DistributedOptimizer(sgd, [("p", p)], codec=ONEBIT, job=job)
        if rank:
            (p * 4).sum().backward()
        optimizer.synchronize()
        return p.grad

    for grad in good(jobs(2, work)):
        assert grad.dtype == dtype
        assert grad.tolist() == [[2, 2]] * 3


def residuals(optimizer: Any) -> list[torch.Tensor]:
    entries = optimizer.state_dict()["casync"]["feedback"]["entries"]
    return [values.clone() for entry in entries for values in entry["values"].values()]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("topology", ["ps", "ring"])
def test_a_sum_that_float16_cannot_hold_is_infinite_everywhere_and_no_residual_of_the_step_changes(
    topology: str, compressed: bool
) -> None:
    def work(rank: int, job: casync.Job) -> Any:
        large = {"large": torch.full((4, 3), 40000.0, dtype=torch.float16)}
        rest = {"rest": random(rank, 0, torch.float32, 8, 9)}
        first = {"large": large["large"] * 0.25} | rest
        rules = [] if compressed else [("large", None)]
        optimizer: Any = None
        parameters = {name: of(g, g.dtype) for name, g in first.items()}
        optimizer = casync.DistributedOptimizer(
            torch.optim.SGD(parameters.values(), lr=0.0),
            parameters.items(),
            codec=ONEBIT,
            rules=rules,
            topology=topology,
            op=casync.Sum,
            job=job,
        )
        kept = []
        for step in (first, large | rest):
            for name, g in step.items():
                (parameters[name] * g).sum().backward()
            optimizer.synchronize()
            kept.append((residuals(optimizer), parameters["large"].grad.clone()))
            optimizer.zero_grad()
        return kept, optimizer.stats().dropped_steps

    for ((before, small), (after, large)), dropped in good(jobs(2, work)):
        assert torch.isfinite(small).all()
        assert torch.isinf(large).all()
        assert dropped == 1
        assert any(r.any() for r in before)
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def train_scaled(
    rank: int, job: casync.Job, topology: str, scale: float | None, steps: list[int], overflow: int = -1
) -> Any:
    """Train on the data of `steps`; at `overflow` the loss of rank 1 is infinite."""
    model = new_model()
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    optimizer = casync.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1),
        model.named_parameters(),
        codec=ONEBIT,
        topology=topology,
        scaler=scaler,
        job=job,
    )
    for step in steps:
        x, y = data(rank, step)
        model.zero_grad()  # as many scripts do: not the optimizer's
        loss = torch.nn.functional.cross_entropy(model(x), y)
        if step == overflow and rank == 1:
            loss = loss * float("inf")
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            optimizer.synchronize()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
            scaler.step(optimizer)
            scaler.update()
    return model_hash(model), residuals(optimizer), None if scaler is None else scaler.get_scale()


@pytest.mark.parametrize("topology", ["ps", "ring", "allgather", "hierarchical"])
def test_an_overflow_reaches_the_scaler_on_every_rank_and_leaves_no_trace(topology: str) -> None:
    with_it = good(jobs(3, lambda r, job: train_scaled(r, job, topology, 1024.0, [0, 1, 2, 3, 4], 2)))
    without = good(jobs(3, lambda r, job: train_scaled(r, job, topology, 1024.0, [0, 1, 3, 4])))
    assert {scale for _, _, scale in with_it} == {512.0}
    assert {scale for _, _, scale in without} == {1024.0}
    for (hashed, kept, _), (other, others, _) in zip(with_it, without, strict=True):
        assert hashed == other
        assert all(torch.equal(a, b) for a, b in zip(kept, others, strict=True))


def test_residuals_under_a_scaler_are_in_the_gradients_own_units() -> None:
    scaled = good(jobs(2, lambda r, job: train_scaled(r, job, "ps", 4096.0, [0, 1, 2])))
    plain = good(jobs(2, lambda r, job: train_scaled(r, job, "ps", None, [0, 1, 2])))
    for (hashed, kept, _), (other, others, _) in zip(scaled, plain, strict=True):
        assert hashed == other
        assert any(r.any() for r in kept)
        assert all(torch.equal(a, b) for a, b in zip(kept, others, strict=True))


def test_a_scaler_that_would_read_gradients_in_flight_is_told_to_wait() -> None:
    def work(_: int, job: casync.Job) -> None:
        p = torch.nn.Parameter(torch.zeros(4))
        scaler = torch.amp.GradScaler("cpu")
        optimizer = casync.DistributedOptimizer(
            torch.optim.SGD([p], lr=1.0), [("p", p)], scaler=scaler, job=job
        )
        scaler.scale(p.sum()).backward()
        scaler.step(optimizer)

    with pytest.raises(RuntimeError, match=r"call optimizer.synchronize.* before scaler"):
        good(jobs(1, work))
