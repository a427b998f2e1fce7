"""torchrun's processes find each other, and the character model trains there as it would in one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from casync_jobs import free_port, in_threads

import train_charlm
from casync import timeline
from casync.launch import Board, Launch, LaunchError
from casync.session import connect
from casync.torch import torchrun

if TYPE_CHECKING:
    from casync.session import Session

ROOT = Path(__file__).resolve().parents[2]


def place(rank: int, size: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "CASYNC_START_TIMEOUT": "20",
    }


def test_ranks_meet_at_the_store_and_a_later_session_does_not_read_the_first_one_s_keys() -> None:
    port = free_port()

    def work(rank: int) -> Any:
        found = []
        for _ in range(2):
            where = torchrun.find(place(rank, 3, port))
            assert where is not None
            session: Session = connect(timeout=10, place=where)
            found.append([session.rank, session.size, session.local_rank, session.local_size])
            found.append([value.decode() for value in session.control.gather("names", f"{rank}".encode())])
            session.close()
        return found

    for rank, found in enumerate(in_threads(3, work)):
        assert found == [[rank, 3, rank, 3], ["0", "1", "2"]] * 2


def test_other_launchers_come_first_and_a_single_rank_needs_no_store() -> None:
    env = place(1, 2, 1)
    assert torchrun.find({}) is None
    assert torchrun.find(env | {"HOROVOD_RANK": "0"}) is None
    assert torchrun.find(env | {"CASYNC_RANK": "0"}) is None
    assert torchrun.find(place(0, 1, 1)) == Launch()


def test_what_torchrun_would_have_set_is_named() -> None:
    env = place(1, 2, 1)
    with pytest.raises(LaunchError, match=r"MASTER_PORT and MASTER_ADDR not set.*unset RANK"):
        torchrun.find({name: value for name, value in env.items() if not name.startswith("MASTER")})
    with pytest.raises(LaunchError, match=r"store of torchrun at 127.0.0.1:\d+ does not answer"):
        torchrun.find(place(1, 2, free_port()) | {"CASYNC_START_TIMEOUT": "1"})


def test_a_key_that_is_not_there_is_none_and_a_store_that_is_gone_is_an_error() -> None:
    where = torchrun.find(place(0, 2, free_port()))
    assert where is not None
    assert isinstance(where.meeting, Board)
    keys = where.meeting.keys
    keys.put("a", "b")
    assert keys.get("a") == "b"
    assert keys.get("c") is None

    class Gone:
        def check(self, _: list[str]) -> bool:
            raise RuntimeError("Broken pipe")

        def set(self, *_: str) -> None:
            raise RuntimeError("Broken pipe")

    gone = torchrun._Keys(Gone(), "casync/")
    for call in (lambda: gone.get("a"), lambda: gone.put("a", "b")):
        with pytest.raises(OSError, match="Broken pipe"):
            call()


def alone(steps: int) -> list[float]:
    """The losses of one process that has every batch whole."""
    torch.manual_seed(0)
    corpus = train_charlm.load_corpus()
    model = train_charlm.CharacterModel(len(corpus.letters))
    adam = torch.optim.AdamW(model.parameters(), train_charlm.LEARNING_RATE)
    setup = train_charlm.Setup(model, adam, None, ddp=True)
    return train_charlm.train(setup, corpus, steps, seed=0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run by the hook of DDP, exactly for two steps and compressed behind them."""
    folder = tmp_path_factory.mktemp("charlm")
    options = ["--ddp", "--exact-steps", "2", "--steps", "4", "--output", str(folder / "results.json")]
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
            *("examples/train_charlm.py", *options, "--trace", str(folder)),
        ],
        cwd=ROOT,
        env=os.environ | {"CASYNC_REPORT": str(folder / "report.json")},
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "parameters are bit-identical on all ranks" in done.stdout
    return folder


def test_the_character_model_trains_under_torchrun_as_in_one_process(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = json.loads((run / "results.json").read_text())
    monkeypatch.setattr(train_charlm.casync, "rank", lambda: 0)
    monkeypatch.setattr(train_charlm.casync, "size", lambda: 1)
    expected = alone(4)[:3]
    assert results["loss"][:3] == pytest.approx(expected, rel=1e-4)
    assert results["ratio"] > 1.2


def test_a_run_reports_on_each_gradient_and_its_ranks_leave_traces_of_every_step(run: Path) -> None:
    (report,) = json.loads((run / "report.json").read_text())
    assert (report["rank"], report["ranks"], report["totals"]["steps"]) == (0, 2, 4)
    steps = {(line["codec"], line["steps"]) for line in report["gradients"]}
    assert {("float32", 2), ("onebit", 2)} <= steps <= {("float32", 2), ("onebit", 2), ("float32", 4)}
    assert sum(line["bytes_sent"] for line in report["gradients"]) == report["totals"]["bytes_sent"]
    assert all(line["error"] > 0 for line in report["gradients"] if line["codec"] == "onebit")
    traces = timeline.read(run)
    assert [(trace.rank, trace.ranks, trace.cut) for trace in traces] == [(0, 2, False), (1, 2, False)]
    assert [each.steps for trace in traces for each in timeline.breakdowns(trace)] == [3, 3]
    sent = sum(e["args"]["bytes"] for e in traces[0].events if e.get("cat") == "send")
    assert sent == report["totals"]["bytes_sent"]


def test_batches_are_shared_without_overlap_and_validation_is_not_trained_on() -> None:
    corpus = train_charlm.load_corpus()
    whole = train_charlm.batch(corpus.training, 7, 1, 0, 1)
    parts = [train_charlm.batch(corpus.training, 7, 1, rank, 4) for rank in range(4)]
    assert torch.equal(torch.cat(parts), whole)
    assert whole.shape == (train_charlm.GLOBAL_BATCH, train_charlm.CONTEXT + 1)
    assert len(corpus.validation) > 40_000
    assert len(corpus.training) > 8 * len(corpus.validation)


def test_the_model_sees_no_character_that_comes_later() -> None:
    torch.manual_seed(0)
    model = train_charlm.CharacterModel(50)
    codes = torch.randint(50, (2, train_charlm.CONTEXT))
    changed = codes.clone()
    changed[:, 30:] = torch.randint(50, (2, train_charlm.CONTEXT - 30))
    with torch.no_grad():
        before, after = model(codes), model(changed)
    torch.testing.assert_close(before[:, :30], after[:, :30])
    assert not torch.allclose(before[:, 30:], after[:, 30:])
