"""Real processes that exchange NumPy arrays over zmq, without torch or a launcher, while one of them fails.

T is 3 s. Every test holds the whole job, the failed rank included, to 30 seconds. Ranks that die or stop at
every moment of a run: `test_fault_moments.py`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from casync_jobs import Job

if TYPE_CHECKING:
    from casync_jobs import Ended


def reports(ended: dict[int, Ended], ranks: list[int]) -> tuple[int, str | None, int | None, str]:
    """Return the one RankFailure that each of `ranks` raised; they exit by it."""
    raised = set()
    for rank in ranks:
        assert ended[rank].code == 3, ended[rank]
        raised.add(ended[rank].out.splitlines()[-1])
    assert len(raised) == 1, "every rank raises the same failure"
    number, gradient, step, reason = json.loads(raised.pop())
    return number, gradient, step, reason


def test_a_chain_of_waits_names_the_rank_at_its_end_which_is_alive() -> None:
    """Rank 0 waits for 1, rank 1 for 2, and 2 computes: it is alive, but holds up the job."""
    with Job(3, "chain") as job:
        ended = job.ended()
    rank, gradient, step, reason = reports(ended, [0, 1, 2])
    assert (rank, gradient, step) == (2, "conv1.weight", 3)
    assert "no progress" in reason


def test_a_rank_that_an_exception_ends_is_named_with_the_exception() -> None:
    with Job(3, "raise", timeout=60) as job:
        ended = job.ended()
    rank, _, _, reason = reports(ended, [0, 2])
    assert rank == 1
    assert "ValueError: the data set ends here" in reason
    assert ended[1].code == 1
    assert "ValueError: the data set ends here" in ended[1].err


def test_a_rank_that_leaves_while_others_go_on_is_named() -> None:
    with Job(3, "leave", timeout=60) as job:
        ended = job.ended()
    rank, gradient, step, reason = reports(ended, [0, 2])
    assert (rank, gradient, step) == (1, "conv1.weight", 4)
    assert "closed its session" in reason
    assert ended[1].code == 0


@pytest.mark.parametrize("absent", [0, 1])
def test_a_rank_that_never_starts_is_named_by_all_others(absent: int) -> None:
    with Job(3, "train", start_timeout=3, absent=(absent,)) as job:
        ended = job.ended()
    for it in ended.values():
        assert it.code == 1
        assert f"RendezvousError: rank {absent} of 3 did not join in time" in it.err
