from __future__ import annotations

import pickle

from hypothesis import given
from hypothesis import strategies as st

from casync.control import NO_STEP, RankFailure, Wait, differences
from casync.detect import Beat, suspect

T = 10.0
BUSY = Beat(None, 0.5, None, 0.3)


def waiting(rank: int, idle: float = T, gradient: str = "w", step: int = 7) -> Beat:
    return Beat(Wait(rank, gradient, step), idle, None, 0.3)


def blamed(failure: RankFailure | None) -> tuple[int, str | None, int | None]:
    assert failure is not None
    return failure.rank, failure.gradient, failure.step


def test_nobody_is_suspected_while_heartbeats_come_and_waits_are_short() -> None:
    assert suspect(0, {0: waiting(1, 9.9), 1: waiting(2), 2: Beat(None, 99.0, None, 9.9)}, (), T) is None


def test_a_silent_rank_is_named_with_what_this_rank_waits_for() -> None:
    assert blamed(suspect(0, {0: waiting(1, 2.0), 1: Beat(None, 0.0, None, T), 2: BUSY}, (), T)) == (
        1,
        "w",
        7,
    )


def test_a_silent_rank_is_named_with_what_another_rank_waits_for() -> None:
    beats = {0: BUSY, 1: Beat(None, 0.0, None, T), 2: waiting(1, 1.0, "v", 8)}
    assert blamed(suspect(0, beats, (), T)) == (1, "v", 8)


def test_a_silent_rank_is_named_with_the_last_exchange_when_nobody_waits() -> None:
    beats = {0: Beat(None, 1.0, Wait(2, "u", 5), 0.0), 1: Beat(None, 0.0, None, T), 2: BUSY}
    assert blamed(suspect(0, beats, (), T)) == (1, "u", 5)


def test_an_old_heartbeat_does_not_hide_the_step() -> None:
    """Rank 2's last heartbeat is from the start; rank 0 knows that training has begun."""
    start = Beat(Wait(1, "plan", NO_STEP), 0.1, None, 0.9)
    beats = {0: Beat(None, 0.1, Wait(2, "u", 5), 0.0), 1: Beat(None, 0.0, None, T), 2: start}
    assert blamed(suspect(0, beats, (), T)) == (1, "u", 5)


def test_the_longest_silent_rank_is_named() -> None:
    beats = {0: BUSY, 1: Beat(None, 0.0, None, T), 2: Beat(None, 0.0, None, T + 2)}
    assert blamed(suspect(0, beats, (), T))[0] == 2


def test_a_chain_of_waits_is_followed_to_its_end() -> None:
    beats = {0: waiting(1), 1: waiting(2, 3.0, "v", 6), 2: Beat(None, T, None, 0.2)}
    failure = suspect(0, beats, (), T)
    assert blamed(failure) == (2, "v", 6)
    assert "rank 0 -> rank 1 -> rank 2" in str(failure)


def test_the_end_of_a_chain_is_not_named_while_it_makes_progress() -> None:
    assert suspect(0, {0: waiting(1), 1: waiting(2), 2: Beat(None, 1.0, None, 0.2)}, (), T) is None


def test_who_owes_the_oldest_message_is_named_when_ranks_wait_in_a_circle() -> None:
    beats = {0: waiting(1, step=6), 1: waiting(2, step=5), 2: waiting(0, step=6)}
    for rank in range(3):
        assert blamed(suspect(rank, beats, (), T)) == (2, "w", 5)
    assert suspect(0, beats | {2: waiting(0, 1.0)}, (), T) is None


def test_of_one_step_the_earliest_message_in_a_circle_is_the_one_that_was_lost() -> None:
    """Those of 0 and 1 depend on it."""
    beats = {r: Beat(Wait((r + 1) % 3, "w", 7, order), T, None, 0.3) for r, order in enumerate((6, 5, 4))}
    for rank in range(3):
        assert blamed(suspect(rank, beats, (), T)) == (0, "w", 7)
    beats = {r: Beat(Wait((r + 1) % 3, "w", 7, order), T, None, 0.3) for r, order in enumerate((5, 4, 6))}
    assert blamed(suspect(0, beats, (), T)) == (2, "w", 7)


def test_a_rank_that_left_is_named_soon_when_somebody_waits_for_it() -> None:
    beats = {0: waiting(1, 3.0), 1: Beat(None, 0.0, None, 99.0)}
    failure = suspect(0, beats, {1}, T)
    assert blamed(failure) == (1, "w", 7)
    assert "closed its session" in str(failure)
    assert suspect(0, {0: BUSY, 1: Beat(None, 0.0, None, 99.0)}, {1}, T) is None


def test_a_wait_in_a_collective_has_a_topic_and_no_gradient() -> None:
    beats = {0: Beat(Wait(1, "plan", NO_STEP), T, None, 0.0), 1: Beat(None, T, None, 0.1)}
    failure = suspect(0, beats, (), T)
    assert blamed(failure) == (1, None, None)
    assert "'plan'" in str(failure)


@given(st.data())
def test_a_rank_that_moves_and_is_heard_is_never_named(data: st.DataObject) -> None:
    size = data.draw(st.integers(2, 6))
    seconds = st.floats(0, 3 * T)
    beats = {}
    for rank in range(size):
        others = st.sampled_from([other for other in range(size) if other != rank])
        wait = data.draw(st.none() | st.builds(Wait, others, st.just("w"), st.integers(0, 3)))
        beats[rank] = Beat(wait, data.draw(seconds), None, data.draw(seconds) if rank else 0.0)
    failure = suspect(0, beats, (), T)
    if failure is not None:
        accused = beats[failure.rank]
        assert accused.age >= T or accused.idle >= T


def test_a_failure_is_data_and_says_all_in_one_line() -> None:
    failure = RankFailure(2, "conv1.weight", 12, "no heartbeat")
    assert pickle.loads(pickle.dumps(failure)) == failure
    assert str(failure) == "rank 2 failed (gradient 'conv1.weight', step 12): no heartbeat"
    assert str(RankFailure(2, None, None, "gone")) == "rank 2 failed: gone"
    assert str(RankFailure(2, None, 3, "gone")) == "rank 2 failed (step 3): gone"


def test_differences_name_key_values_and_ranks() -> None:
    text = differences("codec", [{"bits": "2", "a": "1"}, {"bits": "4", "a": "1"}, {"bits": "2", "a": "1"}])
    assert text is not None
    assert "codec" in text
    assert "bits: ranks 0, 2: 2; rank 1: 4" in text
    assert " a:" not in text
    assert differences("codec", [{"a": "1"}, {"a": "1"}]) is None
    assert "rank 1: <not given>" in str(differences("codec", [{"a": "1"}, {}]))
