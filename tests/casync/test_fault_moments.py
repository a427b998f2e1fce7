"""Real processes that train with NumPy gradients over zmq, while one of them fails: at every moment.

T is 3 s where a rank is silent or makes no progress, else 20 s: a death is noticed without it. Whatever goes
wrong, every process of the job, the failed one included, ends by itself in 30 seconds, and leaves no thread
and no socket behind.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import namespaces
import pytest
from fault_jobs import FAILED, LAST, MISMATCH, SHAPES, STEP, Case, run

if TYPE_CHECKING:
    from pathlib import Path

    from fault_jobs import Ended

    Jobs = dict[Case, Ended]

IN_A_STEP = {
    "forward": (0, "ps"),
    "backward": (1, "ring"),
    "sent": (2, "ps"),
    "received": (0, "ring"),
    "last": (1, "ps"),
}
"""The victim and the topology, by moment."""
STEPS = {moment: {STEP - 1, STEP} for moment in IN_A_STEP} | {"sent": {STEP}, "last": {LAST - 1, LAST}}
"""The steps that may be reported: the frames of the step before may not have left when a rank dies."""
ENDS = {"kill": 20.0, "stop": 3.0}
"""T by fault."""

CALM = {topology: Case(topology=topology) for topology in ("ps", "ring")}
ABSENT = [Case(fault, "before joining", 1, start_timeout=3) for fault in (*ENDS, "raise")]
STARTING = [
    *(Case(end, moment, 1, timeout=t) for end, t in ENDS.items() for moment in ("joining", "joined")),
    Case("kill", "joining", 1, size=5),
    Case("raise", "joined", 2),
]
TRAINING = [
    *(Case(end, m, *place, timeout=t) for end, t in ENDS.items() for m, place in IN_A_STEP.items()),
    *(Case(end, "sent", 0, "ring", timeout=t) for end, t in ENDS.items()),
    Case("stop", "backward", 2, "ring", size=4, timeout=3),
    Case("terminate", "backward", 2, "ring"),
]
LEAVING = [Case(end, "goodbye", 2, timeout=t) for end, t in ENDS.items()]
WITHOUT_MEMORY = "(Unable to allocate|can't start new thread|process has ended)"
"""By what it is noticed first: by NumPy, by Python, or by a library that then ends the process."""
ENDED_BY = {
    Case("raise", "backward", 2): "ValueError: the data set ends here",
    Case("raise", "sent", 1, "ring"): "ValueError: the data set ends here",
    Case("raise", "received", 0): "ValueError('the data set ends here')",
    Case("exit", "last", 2): "SystemExit: 7",
    Case("exit", "sent", 0): "SystemExit: 7",
    Case("interrupt", "backward", 1): "KeyboardInterrupt",
    Case("memory", "joined", 2): WITHOUT_MEMORY,
    Case("memory", "first", 1, codec="none"): WITHOUT_MEMORY,
}
CTRL_C = [Case("interrupt all", moment, 1) for moment in ("joining", "backward", "last")]
IN_TIME = [
    *(Case("kill in time", victim=turn % 3, turn=turn, start_timeout=3) for turn in (10, 17, 24, 31, 44)),
    *(Case("stop in time", victim=turn % 3, turn=turn, start_timeout=3, timeout=3) for turn in (12, 22, 32)),
]
"""Whatever the rank is at."""
CORRUPT = [Case("corrupt", "wire", 1), Case("corrupt", "wire", 2, "ring")]
HOLDING = [Case("hold", "backward", 1, timeout=3), Case("hold", "sent", 2, "ring", size=4, timeout=3)]
LOSING = [Case("lose", "wire", victim, "ring", size=4, timeout=3) for victim in (1, 3)]
DIFFERENT = {
    "release": r"casync: ranks 0, 2: \S+; rank 1: 0.0.1",
    "shape": r"gradient conv: ranks 0, 2: shape \[90, 100\], float32; rank 1: shape \[91, 100\], float32",
    "model": r"gradient bias: ranks 0, 2: shape \[10\], float32; rank 1: <not given>",
    "dtype": r"gradient conv: ranks 0, 2: shape \[90, 100\], float32; rank 1: shape \[90, 100\], float16",
    "plan": r"plan: ranks 0, 2: \w+; rank 1: \w+",
    "codec": r"codec: ranks 0, 2: onebit\(\) \w+; rank 1: terngrad\(bitwidth=4\) \w+",
    "seed": "seed: ranks 0, 2: 5; rank 1: 17",
}
OTHER = {what: Case("other", what, 1) for what in (*DIFFERENT, "control version", "frame version")}
STRANGERS = Case("strangers", "backward", 0)
PAUSED = Case("pause", "sent", 1, timeout=6)

CASES = [
    *(*CALM.values(), *ABSENT, *STARTING, *TRAINING, *LEAVING, *IN_TIME, *ENDED_BY, *CTRL_C),
    *(*CORRUPT, *HOLDING, *LOSING, *OTHER.values(), STRANGERS, PAUSED),
]
CASES.sort(key=lambda case: case.timeout)  # the quick ones run beside those that wait for T


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def jobs(folder: Path) -> Jobs:
    return dict(zip(CASES, run(CASES, folder), strict=True))


@pytest.fixture(scope="module")
def resumed(jobs: Jobs, folder: Path) -> Jobs:
    """The same jobs again, each from the checkpoint that it wrote before its fault, and without one."""
    assert jobs
    again = [replace(case, resume=True) for case in (*TRAINING, *LEAVING) if case.size == 3]
    return {replace(case, resume=False): ended for case, ended in zip(again, run(again, folder), strict=True)}


def each(cases: list[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@each(CASES)
def test_every_process_ends_by_itself_and_leaves_no_thread_and_no_socket(case: Case, jobs: Jobs) -> None:
    for number, rank in enumerate(jobs[case].ranks):
        assert rank.code is not None, f"rank {number} hangs: {rank.err}"
        if rank.code >= 0 and not (number == case.victim and case.fault == "memory"):
            assert (rank.told["threads"], rank.told["sockets"]) == ([], 0)


@pytest.mark.parametrize("topology", CALM)
def test_without_a_fault_all_ranks_end_alike(topology: str, jobs: Jobs) -> None:
    ranks = jobs[CALM[topology]].ranks
    assert [rank.code for rank in ranks] == [0, 0, 0]
    assert len({rank.told["final"] for rank in ranks}) == 1


@each(ABSENT)
def test_a_rank_that_ends_before_it_joins_is_named_as_missing(case: Case, jobs: Jobs) -> None:
    ended = jobs[case]
    for rank in ended.others:
        assert rank.code == MISMATCH
        assert "RendezvousError: rank 1 of 3 did not join in time" in rank.told["error"]
    assert ended.continued == ([1] if case.fault == "stop" else [])


@each(STARTING)
def test_a_rank_that_fails_while_the_job_starts_is_named_by_all(case: Case, jobs: Jobs) -> None:
    ended = jobs[case]
    rank, gradient, step, _ = ended.failure(of_all=case.fault == "stop" and case.moment == "joined")
    assert (rank, gradient, step) == (case.victim, None, None), ended
    assert ended.ranks[case.victim].code != 0
    assert ended.continued == [], ended


@each(TRAINING)
def test_a_rank_that_dies_or_stops_is_named_with_gradient_and_step_by_all(case: Case, jobs: Jobs) -> None:
    """One that was stopped is continued by the others, raises the same, and ends."""
    ended = jobs[case]
    rank, gradient, step, reason = ended.failure(of_all=case.fault == "stop")
    assert rank == case.victim, ended
    assert gradient in SHAPES
    assert step in STEPS[case.moment], ended
    assert ("no heartbeat" if case.fault == "stop" else "its process has ended") in reason
    (report,) = ended.reports()
    assert report.endswith(f"reports: rank {rank} failed (gradient '{gradient}', step {step}): {reason}")
    assert ended.continued == [], ended


@each(IN_TIME)
def test_at_no_time_do_survivors_disagree(case: Case, jobs: Jobs) -> None:
    """They are told of the rank, or that it has not joined; or the job was done."""
    others = jobs[case].others
    told = [rank.told["failure"] for rank in others if rank.code == FAILED]
    assert {rank.code for rank in others} <= {0, FAILED, MISMATCH}
    assert all(failure == told[0] and failure[0] == case.victim for failure in told)


@each(LEAVING)
def test_a_rank_that_fails_after_the_last_step_spoils_nothing(case: Case, jobs: Jobs) -> None:
    """What it has sent counts; a survivor that still waits for a frame names it."""
    for rank in jobs[case].others:
        if rank.code == FAILED:
            assert rank.told["failure"][0] == case.victim
            assert rank.told["failure"][2] == LAST
        else:
            assert rank.code == 0
            assert rank.told["final"] == jobs[CALM[case.topology]].ranks[0].told["final"]


@each([case for case in (*TRAINING, *LEAVING) if case.size == 3])
def test_the_checkpoint_written_before_the_fault_resumes_bit_for_bit(
    case: Case, jobs: Jobs, resumed: Jobs
) -> None:
    ranks = resumed[case].ranks
    assert [rank.code for rank in ranks] == [0, 0, 0]
    assert {rank.told["final"] for rank in ranks} == {jobs[CALM[case.topology]].ranks[0].told["final"]}


@each(list(ENDED_BY))
def test_a_rank_that_ends_itself_is_named_with_the_reason(case: Case, jobs: Jobs) -> None:
    ended = jobs[case]
    rank, gradient, step, reason = ended.failure()
    assert rank == case.victim
    assert re.search(re.escape(told) if "|" not in (told := ENDED_BY[case]) else told, reason), reason
    if case.moment == "sent":
        assert (gradient, step) == ("embed", STEP)
    assert ended.ranks[case.victim].code != 0
    assert len(ended.reports()) == 1


@each(CTRL_C)
def test_ctrl_c_ends_every_rank_as_it_ends_a_script(case: Case, jobs: Jobs) -> None:
    """A rank may hear of another's end before its own comes."""
    assert -2 in [rank.code for rank in jobs[case].ranks]
    for rank in jobs[case].ranks:
        assert rank.code in (-2, FAILED), rank
        if rank.code == FAILED:
            assert rank.told["failure"][3] == "it was ended by KeyboardInterrupt"
        else:
            assert rank.err.rstrip().endswith("KeyboardInterrupt")


@each(CORRUPT)
def test_a_payload_that_changes_on_the_way_names_its_sender(case: Case, jobs: Jobs) -> None:
    rank, gradient, step, reason = jobs[case].failure(of_all=True)
    assert (rank, step) == (case.victim, STEP)
    assert gradient in SHAPES
    assert "CRC32C" in reason


@each(HOLDING)
def test_a_chain_of_waits_names_the_rank_at_its_end(case: Case, jobs: Jobs) -> None:
    """It is alive, but works for longer than T."""
    rank, gradient, step, reason = jobs[case].failure(of_all=True)
    assert (rank, step) == (case.victim, STEP)
    assert gradient in SHAPES
    assert re.search(rf"no progress for [\d.]+ s .* \((rank \d -> )+rank {case.victim}\)", reason), reason


@each(LOSING)
def test_who_sent_the_message_that_was_lost_is_named_when_all_wait_for_each_other(
    case: Case, jobs: Jobs
) -> None:
    rank, gradient, step, reason = jobs[case].failure(of_all=True)
    assert (rank, step) == (case.victim, STEP)
    assert gradient in SHAPES
    assert "ranks wait for each other" in reason


@pytest.mark.parametrize("what", DIFFERENT)
def test_ranks_that_differ_all_raise_in_what_and_blame_nobody(what: str, jobs: Jobs) -> None:
    ended = jobs[OTHER[what]]
    for rank in ended.ranks:
        assert rank.code == MISMATCH
        assert re.search(DIFFERENT[what], rank.told["error"]), rank.told
    assert len({rank.told["error"] for rank in ended.ranks}) == 1
    assert ended.reports() == []


@pytest.mark.parametrize(
    ("what", "told"),
    [
        ("control version", "it speaks protocol 2.1, this rank 1.1"),
        ("frame version", "protocol 1.2, this rank 1.1"),
    ],
)
def test_a_rank_of_another_protocol_is_named_by_the_others(what: str, told: str, jobs: Jobs) -> None:
    rank, _, _, reason = jobs[OTHER[what]].failure()
    assert rank == 1
    assert told in reason


@each([STRANGERS, PAUSED])
def test_strangers_at_every_port_and_a_pause_shorter_than_t_change_no_bit(case: Case, jobs: Jobs) -> None:
    ranks = jobs[case].ranks
    assert [rank.code for rank in ranks] == [0, 0, 0]
    assert {rank.told["final"] for rank in ranks} == {jobs[CALM["ps"]].ranks[0].told["final"]}


CUTS = (
    [Case("cut", "backward", victim, "ring", timeout=3) for victim in (0, 1)] if namespaces.possible() else []
)
"""Between two ranks, while the third hears both. Where namespaces cannot be made, `loopback` stands for them
(`test_faults.py`)."""


@each(CUTS)
def test_a_network_that_is_cut_between_two_ranks_names_one_of_them_alike_on_all(
    case: Case, tmp_path: Path
) -> None:
    with namespaces.machines(case.size) as prefix:
        (ended,) = run([replace(case, machines=prefix)], tmp_path)
    rank, gradient, step, reason = ended.failure(of_all=True)
    assert rank in (case.victim, case.victim + 1)
    assert gradient in SHAPES
    assert step in STEPS["backward"]
    assert "its machine or network is down" in reason
    assert len(ended.reports()) == 1
