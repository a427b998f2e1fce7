"""Sparse gradients in PyTorch: embeddings train as in one process with all data, and replicas never drift."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from real_codecs import REAL
from torch_jobs import good, jobs, model_hash

import casync.torch as casync

if TYPE_CHECKING:
    from collections.abc import Callable

ONEBIT = REAL[0]
WORDS, WIDTH = 60, 8


class Words(torch.nn.Module):
    """Two tables, of which one is looked up word by word and one in bags, under a layer."""

    def __init__(self, *, sparse: bool, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(WORDS, WIDTH, sparse=sparse)
        self.bag = torch.nn.EmbeddingBag(WORDS, WIDTH, sparse=sparse, mode="sum")
        self.head = torch.nn.Linear(2 * WIDTH, 5)
        rng = np.random.default_rng(1)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.from_numpy(rng.uniform(-0.5, 0.5, tuple(p.shape)).astype(np.float32)))
        self.to(dtype)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.head(torch.cat([self.embed(words).mean(1), self.bag(words)], 1))


def loss_of(model: torch.nn.Module, rank: int, step: int, n: int = 4) -> torch.Tensor:
    """Of words that differ from rank to rank; some stand in a sentence twice."""
    rng = np.random.default_rng([rank, step])
    words, classes = rng.integers(0, WORDS, (n, 5)), rng.integers(0, 5, n)
    return torch.nn.functional.cross_entropy(
        model(torch.from_numpy(words)).float(), torch.from_numpy(classes)
    )


def sparse_adam(model: Words) -> tuple[torch.optim.Optimizer, ...]:
    tables = torch.optim.SparseAdam([model.embed.weight, model.bag.weight], lr=0.05)
    return tables, torch.optim.SGD(model.head.parameters(), lr=0.3)


def sgd(model: Words) -> tuple[torch.optim.Optimizer, ...]:
    return (torch.optim.SGD(model.parameters(), lr=0.3),)


def distributed(
    model: Words, made: tuple[torch.optim.Optimizer, ...], job: casync.Job, **options: Any
) -> Any:
    tables = ["embed.weight", "b?g.*"]
    owned = [{id(p) for group in o.param_groups for p in group["params"]} for o in made]
    return [
        casync.DistributedOptimizer(
            optimizer,
            [(name, p) for name, p in model.named_parameters() if id(p) in mine],
            job=job,
            **{"sparse": tables if id(model.embed.weight) in mine else []} | options,
        )
        for optimizer, mine in zip(made, owned, strict=True)
    ]


@pytest.mark.parametrize("kind", [sgd, sparse_adam])
def test_uncompressed_training_is_that_of_one_process_with_all_the_data(
    kind: Callable[[Words], tuple[torch.optim.Optimizer, ...]],
) -> None:
    def work(rank: int, job: casync.Job) -> Words:
        model = Words(sparse=True)
        optimizers = distributed(model, kind(model), job)
        for step in range(6):
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(model, rank, step).backward()
            for optimizer in optimizers:
                optimizer.step()
        assert model.embed.weight.grad is not None
        assert model.embed.weight.grad.is_sparse
        return model

    alone = Words(sparse=True)
    optimizers = kind(alone)
    for step in range(6):
        for optimizer in optimizers:
            optimizer.zero_grad()
        (sum(loss_of(alone, rank, step) for rank in range(3)) / 3).backward()
        for optimizer in optimizers:
            optimizer.step()
    models = good(jobs(3, work))
    assert len({model_hash(model) for model in models}) == 1
    for ours, theirs in zip(models[0].parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def train(
    rank: int, job: casync.Job, *, perturbed: bool = False, dtype: torch.dtype = torch.float32, **options: Any
) -> list[str]:
    model = Words(sparse=True, dtype=dtype)
    (optimizer,) = distributed(model, sgd(model), job, **options)
    hashes = []
    for step in range(12):
        if perturbed:
            time.sleep(np.random.default_rng([rank, step]).random() * 0.005)
        for _ in range(options.get("backward_passes_per_step", 1)):
            loss_of(model, rank, step).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        hashes.append(model_hash(model))
    return hashes


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "int8"},
        {"codec": ONEBIT, "topology": "ring"},
        {"codec": "terngrad", "topology": "hierarchical"},
        {"codec": ONEBIT, "backward_passes_per_step": 2},
        {"dtype": torch.bfloat16},
        {"codec": "int8", "dtype": torch.bfloat16},
        {"codec": "topk", "topology": "allgather", "op": casync.Sum},
    ],
    ids=str,
)
def test_parameters_are_bit_identical_after_every_step_and_in_a_perturbed_run(
    options: dict[str, Any],
) -> None:
    calm = good(jobs(3, lambda rank, job: train(rank, job, **options)))
    assert calm[0] == calm[1] == calm[2]
    assert len(set(calm[0])) == 12
    wild = jobs(
        3, lambda rank, job: train(rank, job, perturbed=True, **options), delay=0.003, reorder=True, seed=5
    )
    assert good(wild) == calm


def test_accumulated_passes_add_up_as_torch_adds_them() -> None:
    def work(passes: int) -> Callable[[int, casync.Job], torch.Tensor]:
        def run(rank: int, job: casync.Job) -> torch.Tensor:
            model = Words(sparse=True)
            options = {"backward_passes_per_step": passes, "op": casync.Sum}
            (optimizer,) = distributed(model, sgd(model), job, **options)
            losses = [loss_of(model, rank, step) for step in range(3)]
            for loss in losses if passes == 3 else [torch.stack(losses).sum()]:
                loss.backward()
            optimizer.synchronize()
            assert optimizer.stats().steps == 1
            return model.embed.weight.grad

        return run

    (many, _), (one, _) = good(jobs(2, work(3))), good(jobs(2, work(1)))
    assert many.is_coalesced()
    assert torch.equal(many.indices(), one.indices())
    torch.testing.assert_close(many.values(), one.values(), rtol=1e-4, atol=1e-6)


def test_a_table_used_on_some_ranks_gets_rows_on_all_and_one_used_on_none_stays_none() -> None:
    def work(rank: int, job: casync.Job) -> Any:
        tables = [torch.nn.Embedding(9, 2, sparse=True) for _ in range(3)]
        model = torch.nn.ModuleList(tables)
        optimizer = casync.DistributedOptimizer(
            torch.optim.SGD(model.parameters(), lr=1.0),
            model.named_parameters(),
            sparse=["*"],
            op=casync.Sum,
            job=job,
        )
        loss = tables[0](torch.tensor([rank, 4])).sum()
        if rank:
            loss = loss + tables[1](torch.tensor([7, 7])).sum()
        loss.backward()
        optimizer.step()
        return [table.weight.grad for table in tables]

    for first, second, third in good(jobs(2, work)):
        assert first.indices().tolist() == [[0, 1, 4]]
        assert first.values().tolist() == [[1, 1], [1, 1], [2, 2]]
        assert second.indices().tolist() == [[7]]
        assert second.values().tolist() == [[2, 2]]
        assert third is None


@pytest.mark.parametrize("codec", [None, "int8", ONEBIT], ids=str)
def test_an_overflow_on_one_rank_reaches_the_scaler_of_all_and_leaves_no_trace(codec: Any) -> None:
    def work(steps: list[int]) -> Callable[[int, casync.Job], Any]:
        def run(rank: int, job: casync.Job) -> Any:
            model = Words(sparse=True)
            scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
            (optimizer,) = distributed(model, sgd(model), job, codec=codec, scaler=scaler)
            for step in steps:
                optimizer.zero_grad()
                loss = loss_of(model, rank, step)
                scaler.scale(loss * float("inf") if step == 2 and rank == 1 else loss).backward()
                optimizer.synchronize()
                scaler.unscale_(optimizer)
                scaler.step(optimizer)
                scaler.update()
            entries = optimizer.state_dict()["casync"]["feedback"]["entries"]
            kept = {e["gradient"] + e["role"]: e["values"]["residual"] for e in entries}
            return model_hash(model), scaler.get_scale(), kept

        return run

    with_it, without = good(jobs(2, work([0, 1, 2, 3]))), good(jobs(2, work([0, 1, 3])))
    for (hashed, scale, kept), (other, others_scale, others) in zip(with_it, without, strict=True):
        assert (scale, others_scale) == (512, 1024)
        assert hashed == other
        assert all(torch.equal(kept[name], others[name]) for name in kept)
        assert bool(kept) == (codec is ONEBIT)
        assert not kept or kept["embed.weightWORKER"].any()


def test_gradients_that_are_made_dense_train_as_dense_ones_do() -> None:
    def work(*, sparse: bool) -> Callable[[int, casync.Job], str]:
        def run(rank: int, job: casync.Job) -> str:
            model = Words(sparse=sparse)
            (optimizer,) = distributed(
                model, sgd(model), job, codec=ONEBIT, sparse=[], sparse_as_dense=sparse
            )
            for step in range(4):
                optimizer.zero_grad()
                loss_of(model, rank, step).backward()
                optimizer.step()
            return model_hash(model)

        return run

    assert good(jobs(2, work(sparse=True))) == good(jobs(2, work(sparse=False)))


def test_a_report_tells_what_rows_cost_and_lose_against_rows_of_float32(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CASYNC_REPORT", "table")

    def work(rank: int, job: casync.Job) -> Any:
        table = torch.nn.Embedding(WORDS, 64, sparse=True)
        optimizer = casync.DistributedOptimizer(
            torch.optim.SGD(table.parameters(), lr=0.1),
            table.named_parameters(),
            codec="int8",
            sparse=["weight"],
            job=job,
        )
        for step in range(4):
            words = torch.arange(0 if step == 0 else 5 + rank)
            (table(words) ** 2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        return optimizer.report()

    for report in good(jobs(2, work)):
        (line,) = report.lines
        assert (line.cost.gradient, line.cost.codec, line.cost.elements) == ("weight", "int8", WORDS * 64)
        assert 2.5 < line.cost.ratio < 4
        assert line.norm > 1
        assert 0 < line.error < 0.02


def one_rank(**options: Any) -> None:
    def work(_: int, job: casync.Job) -> None:
        model = Words(sparse=options.pop("is_sparse", True))
        optimizer = distributed(model, sgd(model), job, **options)
        loss_of(model, 0, 0).backward()
        del optimizer  # not before

    good(jobs(1, work))


def test_a_sparse_gradient_that_was_not_named_is_told_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"of \w+.weight is sparse: .*sparse=\['\w+.weight'\]\), and"):
        one_rank(sparse=[])


def test_what_is_named_must_be_there_and_be_sparse() -> None:
    with pytest.raises(
        ValueError, match=r"sparse: no parameter is called 'embd.\*'; there are embed.weight, "
    ):
        one_rank(sparse=["embd.*"])
    with pytest.raises(
        RuntimeError, match=r"is not a sparse tensor of rows, as sparse= says: take its name out"
    ):
        one_rank(is_sparse=False)


def test_a_codec_with_state_of_its_own_is_refused_for_rows() -> None:
    with pytest.raises(casync.CodecError, match=r"dgc cannot be used for gradients of rows: .*by a rule"):
        one_rank(codec="dgc", topology="allgather")
    one_rank(codec="dgc", topology="allgather", rules=[("embed.*", "int8"), ("bag.*", None)])
