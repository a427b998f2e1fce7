"""What training scripts do beside backward and step: accumulate, clip, freeze, switch, several optimizers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from real_codecs import REAL
from torch_jobs import Branches, data, good, jobs, model_hash, new_model

import casync.torch as casync

if TYPE_CHECKING:
    from collections.abc import Callable

ONEBIT, TERNGRAD = REAL[:2]


def distributed(model: torch.nn.Module, job: casync.Job, **options: Any) -> Any:
    options = {"codec": ONEBIT} | options
    sgd = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    return casync.DistributedOptimizer(sgd, model.named_parameters(), job=job, **options)


def loss_of(model: torch.nn.Module, rank: int, step: int) -> torch.Tensor:
    x, y = data(rank, step)
    return torch.nn.functional.cross_entropy(model(x), y)


def same_on_all(ran: list[Any]) -> Any:
    first, *others = good(ran)
    assert all(other == first for other in others)
    return first


@pytest.mark.parametrize("topology", ["ps", "ring"])
def test_passes_are_accumulated_before_they_are_compressed_and_some_parameters_have_fewer(
    topology: str,
) -> None:
    def work(rank: int, job: casync.Job) -> list[str]:
        model = new_model()
        optimizer = distributed(model, job, topology=topology, backward_passes_per_step=2)
        hashes = []
        for step in range(6):
            optimizer.zero_grad()
            loss_of(model, rank, step).backward()
            head = model.head.weight.grad.clone()
            model.head(torch.ones(1, 520)).square().sum().backward()
            assert not torch.equal(head, model.head.weight.grad)
            optimizer.step()
            hashes.append(model_hash(model))
        assert optimizer.stats().steps == 6
        return hashes

    assert len(set(same_on_all(jobs(3, work)))) == 6


def test_the_norm_that_clips_is_that_of_the_result_on_every_rank() -> None:
    def work(rank: int, job: casync.Job) -> list[Any]:
        model = new_model()
        optimizer = distributed(model, job)
        found = []
        for step in range(5):
            optimizer.zero_grad()
            (loss_of(model, rank, step) * (1 + 50 * rank)).backward()
            optimizer.synchronize()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            clipped = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
            found.append((norm.item(), model_hash(model)))
            assert clipped.item() == pytest.approx(0.5, rel=1e-4)
        return found

    assert all(norm > 0.5 for norm, _ in same_on_all(jobs(2, work)))


def test_a_layer_may_be_frozen_and_thawed_while_training() -> None:
    def work(rank: int, job: casync.Job) -> list[Any]:
        model = new_model()
        optimizer = distributed(model, job)
        hashes, frozen = [], []
        for step in range(9):
            model.branches[1].requires_grad_(not 3 <= step < 6)
            optimizer.zero_grad()
            loss_of(model, rank, step).backward()
            optimizer.step()
            hashes.append(model_hash(model))
            frozen.append(model_hash(model.branches[1]))
        return [hashes, frozen]

    hashes, frozen = same_on_all(jobs(3, work))
    assert len(set(hashes)) == 9
    assert frozen[2] == frozen[5]
    assert len(set(frozen)) == 6


def test_a_layer_that_was_frozen_before_takes_no_part_and_must_stay_so() -> None:
    def work(rank: int, job: casync.Job, *, thaw: bool) -> str:
        model = new_model()
        model.branches[1].requires_grad_(False)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = casync.DistributedOptimizer(sgd, model.named_parameters(), codec=ONEBIT, job=job)
        for step in range(3):
            model.branches[1].requires_grad_(thaw and step == 2)
            optimizer.zero_grad()
            loss_of(model, rank, step).backward()
            optimizer.step()
        return model_hash(model.branches[1])

    untouched = model_hash(new_model().branches[1])
    assert same_on_all(jobs(2, lambda rank, job: work(rank, job, thaw=False))) == untouched
    with pytest.raises(RuntimeError, match="freeze parameters after DistributedOptimizer, not before"):
        good(jobs(2, lambda rank, job: work(rank, job, thaw=True)))


def test_several_optimizers_go_their_own_ways_even_in_another_order_on_each_rank() -> None:
    def work(rank: int, job: casync.Job) -> list[str]:
        model = new_model()
        head = distributed(torch.nn.ModuleDict({"head": model.head}), job, codec=TERNGRAD, topology="ring")
        body = distributed(torch.nn.ModuleDict({"body": model.branches}), job)
        hashes = []
        for step in range(8):
            head.zero_grad()
            body.zero_grad()
            loss_of(model, rank, step).backward()
            for optimizer in (head, body) if rank else (body, head):
                optimizer.step()
            if step % 3 == 0:  # one of them alone, as the two sides of a game
                body.zero_grad()
                model.head.requires_grad_(False)
                loss_of(model, rank, 100 + step).backward()
                model.head.requires_grad_(True)
                body.step()
            hashes.append(model_hash(model))
        assert (head.stats().steps, body.stats().steps) == (8, 11)
        return hashes

    assert len(set(same_on_all(jobs(3, work)))) == 8


def test_two_optimizers_that_play_against_each_other_train_as_in_one_process() -> None:
    def play(wrap: Callable[[torch.nn.Module], Any], ranks: list[int]) -> torch.Tensor:
        maker, judge = (torch.nn.Linear(40, 40), torch.nn.Linear(40, 1))
        with torch.no_grad():
            for i, p in enumerate([*maker.parameters(), *judge.parameters()]):
                p.copy_(torch.linspace(-0.3, 0.2 + 0.1 * i, p.numel()).view(p.shape))
        makes, judges = wrap(maker), wrap(judge)
        for step in range(8):
            real, noise = (torch.cat([data(rank, step + k)[0] for rank in ranks]) for k in (0, 100))
            judges.zero_grad()
            (judge(maker(noise).detach()) - judge(real)).mean().backward()
            judges.step()
            makes.zero_grad()
            judge.requires_grad_(False)  # its gradients would be the maker's loss's
            (-judge(maker(noise).tanh())).mean().backward()
            judge.requires_grad_(True)
            makes.step()
        return torch.cat([p.detach().flatten() for p in (*maker.parameters(), *judge.parameters())])

    alone = play(lambda model: torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), [0, 1, 2])
    ran = jobs(3, lambda rank, job: play(lambda m: distributed(m, job, codec=None), [rank]))
    for weights in good(ran):
        torch.testing.assert_close(weights, alone, rtol=1e-4, atol=1e-5)


def trained(
    change: Callable[[int, Any], None], steps: range, **options: Any
) -> Callable[[int, casync.Job], list[str]]:
    def work(rank: int, job: casync.Job) -> list[str]:
        model = new_model()
        optimizer = distributed(model, job, **options)
        hashes = []
        for step in steps:
            change(step, optimizer)
            optimizer.zero_grad()
            loss_of(model, rank, step).backward()
            optimizer.step()
            hashes.append(model_hash(model))
        return hashes

    return work


def test_a_switch_at_a_step_is_what_a_schedule_with_that_step_does() -> None:
    def switch(step: int, optimizer: Any) -> None:
        if step == 3:
            optimizer.switch("terngrad", rules=[("head.*", None)])

    rules = [("head.*", casync.Schedule({0: ONEBIT, 3: None}))]
    schedule = casync.Schedule({0: "onebit", 3: "terngrad"})
    switched = same_on_all(jobs(3, trained(switch, range(6), rules=[("head.bias", ONEBIT)])))
    planned = [("head.bias", casync.Schedule({0: ONEBIT, 3: None})), *rules]
    scheduled = same_on_all(jobs(3, trained(lambda *_: None, range(6), codec=schedule, rules=planned)))
    assert switched[:3] == scheduled[:3]
    assert len(set(switched)) == 6
    assert switched[3:] == scheduled[3:]


def test_a_switch_while_gradients_travel_is_refused() -> None:
    def work(_: int, job: casync.Job) -> None:
        model = new_model()
        optimizer = distributed(model, job)
        loss_of(model, 0, 0).backward()
        optimizer.switch("terngrad")

    with pytest.raises(RuntimeError, match=r"switch\(\) between backward.* call step\(\) first"):
        good(jobs(1, work))


def test_a_checkpoint_behind_a_change_of_codec_holds_what_is_left_to_add(tmp_path: Any) -> None:
    schedule = casync.Schedule({0: ONEBIT, 3: None, 5: TERNGRAD})

    def start(job: casync.Job) -> tuple[Branches, Any]:
        model = new_model()
        return model, distributed(model, job, codec=schedule)

    def go(model: Branches, optimizer: Any, rank: int, steps: range) -> list[str]:
        hashes = []
        for step in steps:
            optimizer.zero_grad()
            loss_of(model, rank, step).backward()
            optimizer.step()
            hashes.append(model_hash(model))
        return hashes

    def work(rank: int, job: casync.Job) -> Any:
        model, optimizer = start(job)
        go(model, optimizer, rank, range(3))
        torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / f"{rank}.pt")
        whole = go(model, optimizer, rank, range(3, 7))
        model, optimizer = start(job)
        parameters, state = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        model.load_state_dict(parameters)
        optimizer.load_state_dict(state)
        return whole, go(model, optimizer, rank, range(3, 7)), len(state["casync"]["left"])

    for whole, resumed, left in good(jobs(2, work)):
        assert whole == resumed
        assert left == 5  # all that has two dimensions


def test_the_rules_on_the_page_are_taken() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "runtime.md").read_text()
    code = next(block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "rules=[" in block)
    layers = {"embed": torch.nn.Embedding(400, 300), "norm": torch.nn.LayerNorm(300)}
    model = torch.nn.ModuleDict(layers | {"body": torch.nn.Linear(300, 40), "head": torch.nn.Linear(300, 10)})
    casync.init()
    try:
        names = {"casync": casync, "model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=1.0)}
        exec(code, names)
        optimizer: Any = names["optimizer"]
        sum(p.sum() for p in model.parameters()).backward()
        optimizer.step()
        entries = optimizer.state_dict()["casync"]["feedback"]["entries"]
        assert {entry["gradient"] for entry in entries} == {"body.weight"}  # onebit; int8 keeps no residual
    finally:
        casync.shutdown()
