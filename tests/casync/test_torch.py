"""The PyTorch interface: replicas never drift, results are those of one process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from numpy_codecs import CODECS
from torch_jobs import data, good, jobs, new_model, start, train_steps

import casync.torch as casync

if TYPE_CHECKING:
    from collections.abc import Callable

ONEBIT = CODECS[0]


def train(
    rank: int, job: casync.Job, codec: Any, topology: str, steps: int, *, perturbed: bool = False
) -> list[str]:
    rng = np.random.default_rng([rank, 77])
    model = new_model(rank)
    casync.broadcast_parameters(model.state_dict(), job=job)
    optimizer = casync.DistributedOptimizer(
        torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9),
        named_parameters=model.named_parameters(),
        codec=codec,
        topology=topology,
        job=job,
    )
    hashes: list[str] = []
    for step in range(steps):
        if perturbed:
            model.order = rng.permutation(4).tolist()
            time.sleep(rng.random() * 0.005)
        hashes += train_steps(model, optimizer, rank, range(step, step + 1))
    return hashes


@pytest.mark.parametrize("topology", ["ps", "ring"])
@pytest.mark.parametrize("codec", [*CODECS, None], ids=lambda c: c.info.name if c else "none")
def test_parameters_are_bit_identical_after_every_step_and_in_a_perturbed_run(
    codec: Any, topology: str
) -> None:
    calm = good(jobs(3, lambda rank, job: train(rank, job, codec, topology, 50)))
    assert calm[0] == calm[1] == calm[2]
    assert len(set(calm[0])) == 50
    wild = good(
        jobs(
            3,
            lambda rank, job: train(rank, job, codec, topology, 50, perturbed=True),
            delay=0.003,
            reorder=True,
            seed=9,
        )
    )
    assert wild == calm


def test_uncompressed_training_is_that_of_one_process_with_all_the_data() -> None:
    def work(rank: int, job: casync.Job) -> torch.Tensor:
        model = new_model()
        optimizer = casync.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=0.1), model.named_parameters(), job=job
        )
        for step in range(5):
            x, y = data(rank, step)
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        return model.head.weight.detach()

    alone = new_model()
    optimizer = torch.optim.SGD(alone.parameters(), lr=0.1)
    for step in range(5):
        parts = [data(rank, step) for rank in range(2)]
        optimizer.zero_grad()
        x, y = (torch.cat(z) for z in zip(*parts, strict=True))
        torch.nn.functional.cross_entropy(alone(x), y).backward()
        optimizer.step()
    for weight in good(jobs(2, work)):
        torch.testing.assert_close(weight, alone.head.weight.detach(), rtol=1e-5, atol=1e-6)


def test_accumulated_passes_travel_once_as_their_sum() -> None:
    def work(passes: int) -> Callable[[int, casync.Job], Any]:
        def run(rank: int, job: casync.Job) -> Any:
            model = new_model()
            optimizer = casync.DistributedOptimizer(
                torch.optim.SGD(model.parameters(), lr=0.1),
                model.named_parameters(),
                backward_passes_per_step=passes,
                op=casync.Sum,
                job=job,
            )
            if passes == 1:
                total = sum(
                    torch.nn.functional.cross_entropy(model(x), y)
                    for x, y in (data(rank, i) for i in range(3))
                )
                total.backward()
            else:
                for i in range(passes):
                    x, y = data(rank, i)
                    torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.synchronize()
            return model.head.weight.grad.clone(), optimizer.stats().steps

        return run

    (many, steps), _ = good(jobs(2, work(3)))
    (one, _), _ = good(jobs(2, work(1)))
    assert steps == 1
    torch.testing.assert_close(many, one, rtol=1e-4, atol=1e-6)


def test_a_parameter_used_on_some_ranks_gets_a_gradient_on_all_and_one_used_on_none_stays_none() -> None:
    class Optional(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (torch.nn.Parameter(torch.ones(3, 2)) for _ in range(3))

    def work(rank: int, job: casync.Job) -> Any:
        model = Optional()
        optimizer = casync.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0), model.named_parameters(), codec=ONEBIT, job=job
        )
        (model.a.sum() + (model.b.sum() * 2 if rank == 1 else 0)).backward()
        optimizer.step()
        return model.a.grad, model.b.grad, model.c.grad

    for a, b, c in good(jobs(2, work)):
        assert a.tolist() == [[1, 1]] * 3
        assert b.tolist() == [[1, 1]] * 3
        assert c is None


def test_gradients_of_any_memory_layout_are_synchronized() -> None:
    def work(rank: int, job: casync.Job) -> Any:
        p = torch.nn.Parameter(torch.zeros(2, 3, 4, 5).to(memory_format=torch.channels_last))
        optimizer = casync.DistributedOptimizer(
            torch.optim.SGD([p], lr=1.0), [("p", p)], op=casync.Sum, job=job
        )
        values = torch.arange(120.0).view(2, 3, 4, 5).to(memory_format=torch.channels_last) * (rank + 1)
        (p * values).sum().backward()
        optimizer.step()
        return p.detach()

    for p in good(jobs(2, work)):
        assert torch.equal(p, -3 * torch.arange(120.0).view(2, 3, 4, 5))


def test_clipping_between_synchronize_and_step_sees_the_result_of_all_ranks() -> None:
    def work(rank: int, job: casync.Job) -> Any:
        p = torch.nn.Parameter(torch.zeros(4))
        optimizer = casync.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), [("p", p)], job=job)
        (p * (1 + 2 * rank)).sum().backward()
        optimizer.synchronize()
        assert p.grad is not None
        assert p.grad.tolist() == [2] * 4
        torch.nn.utils.clip_grad_norm_([p], 2.0)
        with optimizer.skip_synchronize():
            optimizer.step()
        assert optimizer.stats().steps == 1
        return p.detach()

    for p in good(jobs(2, work)):
        torch.testing.assert_close(p, torch.full((4,), -1.0))


def test_a_learning_rate_scheduler_and_a_closure_work_as_usual() -> None:
    def work(rank: int, job: casync.Job) -> Any:
        p = torch.nn.Parameter(torch.zeros(4))
        optimizer = casync.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), [("p", p)], job=job)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)

        def closure() -> Any:
            optimizer.zero_grad()
            loss = (p * (rank + 1)).sum()
            loss.backward()
            return loss

        losses = []
        for _ in range(2):
            losses.append(optimizer.step(closure).item())
            scheduler.step()
        return p.detach().tolist(), losses

    first, second = good(jobs(2, work))
    assert first == ([-2.25] * 4, [0.0, -6.0])
    assert second == ([-2.25] * 4, [0.0, -12.0])


@pytest.mark.parametrize("topology", ["ps", "ring"])
def test_a_saved_and_loaded_run_continues_bit_for_bit(topology: str, tmp_path: Any) -> None:
    def work(rank: int, job: casync.Job) -> tuple[list[str], list[str]]:
        model, optimizer = start(job, codec=ONEBIT, topology=topology)
        train_steps(model, optimizer, rank, range(3))
        torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / f"{rank}.pt")
        whole = train_steps(model, optimizer, rank, range(3, 8))
        model, optimizer = start(job, codec=ONEBIT, topology=topology)
        parameters, state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        model.load_state_dict(parameters)
        optimizer.load_state_dict(state)
        return whole, train_steps(model, optimizer, rank, range(3, 8))

    for whole, resumed in good(jobs(3, work)):
        assert whole == resumed


def test_tensors_of_every_dtype_are_broadcast_bit_for_bit() -> None:
    dtypes = [
        torch.float32,
        torch.float64,
        torch.float16,
        torch.bfloat16,
        torch.int64,
        torch.uint8,
        torch.bool,
    ]

    def work(rank: int, job: casync.Job) -> Any:
        tensors = {str(d): (torch.arange(6).view(2, 3) * (rank + 1)).to(d) for d in dtypes}
        tensors["scalar"] = torch.tensor(rank + 5)
        tensors["empty"] = torch.zeros(0, 3)
        tensors["transposed"] = torch.arange(6.0).view(2, 3).t() * (rank + 1)
        casync.broadcast_parameters(tensors, root_rank=2, job=job)
        casync.broadcast_parameters({"again": torch.zeros(1)}, job=job)
        return tensors

    results = good(jobs(3, work))
    for name, value in results[2].items():
        assert all(torch.equal(result[name], value) for result in results)
    assert results[0]["scalar"] == 7


def test_gradients_are_written_for_the_planner(tmp_path: Any) -> None:
    model = torch.nn.Linear(3, 4)
    model.bias.requires_grad_(False)
    model.empty = torch.nn.Parameter(torch.zeros(0, 4))
    casync.write_gradients(model, tmp_path / "input.txt")
    assert (tmp_path / "input.txt").read_text() == "weight,12\n"


def test_broadcasts_one_after_the_other_do_not_mix_on_a_network_that_reorders() -> None:
    def work(rank: int, job: casync.Job) -> list[list[float]]:
        tensors = [{"a": torch.full((3,), float(rank)), "b": torch.full((2,), float(rank))} for _ in range(6)]
        arrays = [[t["a"].view(torch.uint8).numpy(), t["b"].view(torch.uint8).numpy()] for t in tensors]
        if rank == 0:
            for i, t in enumerate(tensors):
                t["a"][:], t["b"][:] = 10 + i, 20 + i
        for pair in arrays:
            job.broadcaster.broadcast(pair, 0)
        return [[*t["a"].tolist(), *t["b"].tolist()] for t in tensors]

    for result in good(jobs(3, work, delay=0.03, reorder=True)):
        assert result == [[10 + i] * 3 + [20 + i] * 2 for i in range(6)]


def test_a_large_tensor_is_broadcast_in_pieces_that_may_arrive_in_any_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("casync.broadcast.PIECE", 1000)

    def work(rank: int, job: casync.Job) -> list[float]:
        t = torch.arange(5003.0) * (rank + 1)
        casync.broadcast_parameters({"t": t}, root_rank=1, job=job)
        return t.tolist()

    for result in good(jobs(3, work, delay=0.01, reorder=True)):
        assert result == [2.0 * i for i in range(5003)]


def test_a_job_of_one_rank_needs_no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CASYNC_RANK", "CASYNC_SIZE", "HOROVOD_RANK", "HOROVOD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    casync.init()
    try:
        assert (casync.rank(), casync.size(), casync.local_rank(), casync.local_size()) == (0, 1, 0, 1)
        p = torch.nn.Parameter(torch.zeros(3, 2))
        casync.broadcast_parameters({"p": p.detach()})
        optimizer = casync.DistributedOptimizer(torch.optim.SGD([p], lr=1.0), [("p", p)], codec=ONEBIT)
        (p * 2).sum().backward()
        optimizer.step()
        assert p.tolist() == [[-2, -2]] * 3
        assert optimizer.stats().bytes_sent == 0
    finally:
        casync.shutdown()
