"""A checkpoint of PyTorch's: merged for another number of ranks, refused on all ranks or on none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch_jobs import data, good, jobs, new_model, start, train_steps

import casync.torch as casync
import compll

ONEBIT = compll.compile("onebit")
PAGE = Path(__file__).resolve().parents[2] / "docs" / "runtime.md"


def held_back(states: list[dict[str, Any]], size: int, name: str) -> torch.Tensor:
    """Of an average, by all ranks and roles."""
    whole = torch.zeros(max(p.numel() for p in new_model().parameters()), dtype=torch.float64)
    for state in states:
        for entry in state["casync"]["feedback"]["entries"]:
            values = entry["values"]["residual"]
            if entry["gradient"] == name:
                share = 1 if entry["unit"] == "average" else 1 / size
                whole[entry["offset"] :][: len(values)] += share * values
        if name in state["casync"]["left"]:
            whole[: len(state["casync"]["left"][name])] += state["casync"]["left"][name] / size
    return whole


def test_three_ranks_in_a_ring_are_continued_by_two_with_servers(tmp_path: Path) -> None:
    """From files; momentum is the optimizer's own, and what averages lacked they lack still."""

    def save(rank: int, job: casync.Job) -> None:
        model, optimizer = start(job, codec=ONEBIT, topology="ring")
        train_steps(model, optimizer, rank, range(4))
        torch.save((model.state_dict(), optimizer.state_dict()), tmp_path / f"{rank}.pt")

    def resume(rank: int, job: casync.Job) -> Any:
        files = [torch.load(tmp_path / f"{i}.pt", weights_only=True) for i in range(3)]
        model, optimizer = start(job, codec=ONEBIT, topology="ps")
        model.load_state_dict(files[0][0])
        optimizer.load_state_dict(casync.merge_states([state for _, state in files]))
        state = optimizer.state_dict()
        for own, saved in zip(state["state"].values(), files[0][1]["state"].values(), strict=True):
            assert torch.equal(own["momentum_buffer"], saved["momentum_buffer"])
        return [state for _, state in files], state, train_steps(model, optimizer, rank, range(4, 7))

    good(jobs(3, save))
    (saved, first, hashes), (_, second, others) = good(jobs(2, resume))
    assert hashes == others
    assert len(set(hashes)) == 3
    assert first["casync"]["step"] == second["casync"]["step"] == 4
    for name in ("head.weight", "branches.1.weight"):
        before, after = held_back(saved, 3, name), held_back([first, second], 2, name)
        assert before.any()
        torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-7)


def test_states_of_a_ddp_hook_are_merged_without_their_optimizer() -> None:
    def work(rank: int, job: casync.Job) -> Any:
        model, optimizer = start(job, codec=ONEBIT)
        train_steps(model, optimizer, rank, range(2))
        return optimizer.state_dict()

    states = good(jobs(2, work))
    merged = casync.merge_states([state["casync"] for state in states])
    whole = casync.merge_states(states)
    assert merged["merged"]
    assert whole["param_groups"] == states[0]["param_groups"]
    entries = zip(merged["feedback"]["entries"], whole["casync"]["feedback"]["entries"], strict=True)
    assert all(torch.equal(a["values"]["residual"], b["values"]["residual"]) for a, b in entries)


@pytest.mark.parametrize("wrong", ["another rank's", "of torch's", "none of casync's"])
def test_what_one_rank_cannot_load_leaves_all_as_they_were(wrong: str) -> None:
    def work(rank: int, job: casync.Job) -> Any:
        model, optimizer = start(job, codec=ONEBIT)
        train_steps(model, optimizer, rank, range(2))
        saved = optimizer.state_dict()
        momentum = {key: {"momentum_buffer": v["momentum_buffer"] * 3} for key, v in saved["state"].items()}
        saved |= {"state": momentum}
        if rank == 1 and wrong == "another rank's":
            saved["casync"] = saved["casync"] | {"rank": 0}
        elif rank == 1 and wrong == "of torch's":
            saved["param_groups"] = []
        elif rank == 1:
            del saved["casync"]
        error = None
        try:
            optimizer.load_state_dict(saved)
        except (ValueError, casync.MismatchError) as raised:
            error = raised
        return error, train_steps(model, optimizer, rank, range(2, 4))

    def calm(rank: int, job: casync.Job) -> list[str]:
        return train_steps(*start(job, codec=ONEBIT), rank, range(4))[2:]

    (first, hashes), (second, others) = good(jobs(2, work))
    assert hashes == others == good(jobs(2, calm))[0]
    told = {
        "another rank's": "was saved by rank 0, this is rank 1",
        "of torch's": "different number of parameter groups",
        "none of casync's": "rank 0: 2; rank 1: no state",
    }
    assert told[wrong] in str(first)
    assert told[wrong] in str(second)
    assert isinstance(first, casync.MismatchError if wrong == "none of casync's" else casync.StateError)


def test_a_state_of_an_optimizer_that_was_not_distributed_leaves_residuals_and_step() -> None:
    def work(rank: int, job: casync.Job) -> Any:
        model, optimizer = start(job, codec=ONEBIT)
        train_steps(model, optimizer, rank, range(2))
        before = optimizer.state_dict()
        optimizer.load_state_dict({key: value for key, value in before.items() if key != "casync"})
        after = optimizer.state_dict()
        entries = zip(*(state["casync"]["feedback"]["entries"] for state in (before, after)), strict=True)
        assert after["casync"]["step"] == 2
        return all(torch.equal(a["values"]["residual"], b["values"]["residual"]) for a, b in entries)

    assert good(jobs(2, work)) == [True, True]


def test_a_state_is_not_loaded_while_gradients_travel() -> None:
    def work(_: int, job: casync.Job) -> None:
        model, optimizer = start(job)
        saved = optimizer.state_dict()
        x, y = data(0, 0)
        torch.nn.functional.cross_entropy(model(x), y).backward()
        optimizer.load_state_dict(saved)

    with pytest.raises(RuntimeError, match=r"load_state_dict\(\) between backward\(\) and step\(\)"):
        good(jobs(1, work))


def test_what_the_page_shows_of_checkpoints_and_sums_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one rank, which has the files of one."""
    monkeypatch.chdir(tmp_path)
    codes = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (begin,) = [code for code in codes if "down=" in code]
    (save,) = [code for code in codes if "torch.save" in code]
    (resume,) = [code for code in codes if "merge_states" in code]
    casync.init()
    try:
        model = new_model()
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        names: dict[str, Any] = {"casync": casync, "torch": torch, "model": model, "optimizer": sgd}
        exec(begin, names)
        train_steps(model, names["optimizer"], 0, range(3))
        exec(save, names)
        saved = names["optimizer"].state_dict()["casync"]
        train_steps(model, names["optimizer"], 0, range(3, 5))
        exec(resume.replace("range(4)", "range(1)"), names)
        again = names["optimizer"].state_dict()["casync"]
        assert again["step"] == saved["step"] == 3
        for a, b in zip(saved["feedback"]["entries"], again["feedback"]["entries"], strict=True):
            assert all(torch.equal(a["values"][name], b["values"][name]) for name in ("u", "v"))
    finally:
        casync.shutdown()
