"""Groups of ranks train as jobs of their own, beside each other and beside the whole job."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest
import torch
from casync_jobs import in_threads, sessions
from numpy_codecs import OneBit
from torch_jobs import data, good, jobs, model_hash, new_model
from typer.testing import CliRunner

import casync.torch as casync
from casync.cli import app
from casync.control import MismatchError, RankFailure

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from compll.codec import Item, Result

UNRULY: dict[str, Any] = {"delay": 0.004, "reorder": True}


def distributed(model: torch.nn.Module, job: casync.Job, **options: Any) -> Any:
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return casync.DistributedOptimizer(
        sgd, model.named_parameters(), job=job, **{"codec": "onebit"} | options
    )


def train(rank: int, job: casync.Job, steps: int = 5, **options: Any) -> list[str]:
    """Train a model on the data of `rank`; its hashes."""
    model = new_model(rank)
    casync.broadcast_parameters(model.state_dict(), job=job)
    optimizer = distributed(model, job, **options)
    hashes = []
    for step in range(steps):
        optimizer.zero_grad()
        x, y = data(rank, step)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
        hashes.append(model_hash(model))
    return hashes


@pytest.mark.parametrize("topology", ["ps", "ring"])
def test_disjoint_groups_train_different_models_with_the_bits_of_jobs_of_their_own(topology: str) -> None:
    options: dict[str, Any] = {"codec": "terngrad", "topology": topology}

    def work(rank: int, job: casync.Job) -> list[str]:
        groups = [casync.new_group(ranks, job=job) for ranks in ([0, 2], [3, 1])]
        (mine,) = (group for group in groups if group)
        assert (mine.session.rank, mine.session.size) == (rank // 2, 2)
        return train(rank, mine, **options)

    ran = good(jobs(4, work, **UNRULY))
    assert ran[0] == ran[2] != ran[1] == ran[3]
    for ranks in ((0, 2), (1, 3)):
        alone = good(jobs(2, lambda place, job, ranks=ranks: train(ranks[place], job, **options)))
        assert alone == [ran[rank] for rank in ranks]


def test_a_model_may_be_trained_by_all_and_a_part_of_it_by_a_group() -> None:
    """Also where the ranks of a group have more optimizers than others when the next common one is made."""

    def work(rank: int, job: casync.Job) -> Any:
        group = casync.new_group([1, 3], job=job)
        model = new_model()
        if group:
            casync.broadcast_parameters({"x": torch.full((3,), float(rank))}, root_rank=1, job=group)
            distributed(torch.nn.Linear(2, 3), group)  # never used
            head: Any = distributed(model.head, group, topology="ring")
        else:
            head = torch.optim.SGD(model.head.parameters(), lr=0.1)
        body = distributed(model.branches, job)
        hashes = []
        for step in range(6):
            x, y = data(rank, step)
            for optimizer in (head, body):
                optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            for optimizer in (head, body) if rank % 3 else (body, head):
                optimizer.step()
            hashes.append((model_hash(model.branches), model_hash(model.head)))
        return hashes

    ran = good(jobs(4, work, **UNRULY))
    for step in range(6):
        bodies, heads = zip(*(rank[step] for rank in ran), strict=True)
        assert len(set(bodies)) == 1
        assert heads[1] == heads[3]
        assert len(set(heads)) == 3


def test_a_group_of_a_group_and_a_group_of_one_are_groups_too() -> None:
    def work(rank: int, job: casync.Job) -> Any:
        alone, upper = casync.new_group([2], job=job), casync.new_group([1, 2, 3], job=job)
        outer = casync.new_group([0, 2], job=upper) if upper else upper
        mine = alone or outer
        return train(rank, mine, steps=2) if mine else []

    ran = good(jobs(4, work, **UNRULY))
    assert ran[0] == []
    assert ran[1] == ran[3] != ran[2]
    assert len(ran[2]) == 2


def test_collectives_of_groups_that_overlap_bring_each_rank_s_value_to_the_others() -> None:
    def work(rank: int, job: casync.Job) -> Any:
        ranks = [[0, 1], [1, 2, 3], [0, 2, 3]]
        groups = [casync.new_group(members, job=job) for members in ranks]
        for i in range(20):
            for number, group in enumerate(groups):
                if group:
                    got = group.session.control.gather("it", f"{rank} {number} {i}".encode())
                    assert got == [f"{other} {number} {i}".encode() for other in ranks[number]]
        return True

    assert all(good(jobs(4, work, **UNRULY)))


class Broken(OneBit):
    """A codec that fails at its third encode."""

    def __init__(self) -> None:
        self.encodes = 0

    def batch(self, op: str, items: Sequence[Item], threads: int | None = None) -> list[Result]:
        self.encodes += op == "encode"
        if self.encodes == 3:
            raise ZeroDivisionError("no more")
        return super().batch(op, items, threads)


def test_a_failure_in_a_group_is_raised_on_every_rank_of_the_job_and_names_its_rank_there() -> None:
    def work(rank: int, job: casync.Job) -> None:
        even, odd = (casync.new_group(ranks, job=job) for ranks in ([0, 2], [1, 3]))
        codec = Broken() if rank == 3 else OneBit()
        train(rank, odd or even, 100, codec=codec, topology="allgather")

    for failure in jobs(4, work):
        assert isinstance(failure, RankFailure)
        assert (failure.rank, failure.reason) == (3, "ZeroDivisionError: no more")


def test_a_group_s_ranks_that_differ_are_named_as_the_job_numbers_them() -> None:
    def work(rank: int, job: casync.Job) -> Any:
        group = casync.new_group([1, 2], job=job)
        return train(rank, group, seed=rank) if group else None

    nobody, first, second = jobs(3, work)
    assert nobody is None
    assert isinstance(first, MismatchError)
    assert str(first) == str(second)
    assert "seed: rank 1: 1; rank 2: 2" in str(first)


def test_a_rank_outside_is_told_so_and_wrong_ranks_are_refused() -> None:
    def work(rank: int, job: casync.Job) -> Any:
        group = casync.new_group([0], job=job)
        for wrong in ([], [0, 0], [0, 2], [-1]):
            with pytest.raises(ValueError, match="name ranks of 0 to 1, each once"):
                casync.new_group(wrong, job=job)
        if rank == 1:
            assert not group
            distributed(new_model(), group)
        return bool(group)

    inside, outside = jobs(2, work)
    assert inside is True
    assert isinstance(outside, RuntimeError)
    assert "rank 1 is not in the group of ranks [0]: use the group on these only" in str(outside)
    for told in jobs(2, lambda rank, job: casync.new_group([rank], job=job)):
        assert isinstance(told, MismatchError)


def test_groups_work_over_sockets() -> None:
    with sessions(3) as joined:

        def work(rank: int) -> Any:
            job = casync.Job(joined[rank], seed=3)
            group = casync.new_group([0, 2], job=job)
            try:
                hashes = train(rank, group, 2) if group else []
                return hashes, train(rank, job, 2)
            finally:
                for _, synchronizer in job.kept.alive:
                    synchronizer.close()

        (first, one), (none, two), (third, three) = good(in_threads(3, work))
    assert first == third != none == []
    assert one == two == three
    assert len({*first, *one}) == 4


def test_traces_and_reports_tell_groups_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rank 2 is in two groups, one of them a group of a group, and each has optimizers of its own."""
    monkeypatch.setenv("CASYNC_TRACE", str(tmp_path))
    monkeypatch.setenv("CASYNC_REPORT", str(tmp_path / "report-{rank}.json"))
    pair_name, inner_names = "ranks 0, 2", ["ranks 2, 3", "optimizer 1 of ranks 2, 3"]
    lanes = [["", pair_name], [""], ["", pair_name, *inner_names], ["", *inner_names]]

    def work(rank: int, job: casync.Job) -> None:
        pair, outer = casync.new_group([0, 2], job=job), casync.new_group([1, 2, 3], job=job)
        inner = casync.new_group([1, 2], job=outer) if outer else outer
        for group in (job, pair, inner, inner):
            if group:
                train(rank, group, steps=3, topology="ring")
        job.session.control.gather("the end", b"")
        for _, synchronizer in job.kept.alive:
            synchronizer.close()
        job.tell()

    good(jobs(4, work, **UNRULY))
    messages = 0
    for rank, named in enumerate(lanes):
        events = json.loads((tmp_path / f"rank-{rank}.json").read_text())["traceEvents"]
        names = [e["args"]["name"] for e in events if e["name"] == "thread_name"]
        assert names[2::3] == [f"messages of {name}" if name else "messages" for name in named]
        reports = json.loads((tmp_path / f"report-{rank}.json").read_text())
        assert [each["rank"] for each in reports] == [rank] * len(named)
        ranks = [re.findall(r"\d+", name.partition("ranks ")[2]) for name in named]
        assert [each["group"] for each in reports] == [[*map(int, each)] or None for each in ranks]
        messages += sum(each["totals"]["messages_sent"] for each in reports)
    result = CliRunner().invoke(app, ["trace", str(tmp_path)])
    assert result.exit_code == 0, result.output
    for rank, named in enumerate(lanes):
        for name in named:
            assert f"rank {rank}{f' ({name})' if name else ''}: " in result.stdout
    flights = [e for e in json.loads((tmp_path / "merged.json").read_text())["traceEvents"] if e["ph"] == "b"]
    assert len(flights) == messages > 0
