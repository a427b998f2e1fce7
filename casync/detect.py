"""The stall detector: which rank holds the job up, as a pure function of the last heartbeats.

    no heartbeat for T                     that rank
    heartbeats, but no progress for T      the rank at the end of the chain of waits, which waits for nobody

        rank 0 --waits for--> rank 1 --waits for--> rank 2, computing for longer than T: rank 2

A dead process needs no heartbeat to be noticed: its connection closes (`casync/plane.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from casync.control import NO_STEP, RankFailure, Wait
from casync.knobs import MIN_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

LEFT = "; every rank must take the same number of steps"


@dataclass(frozen=True, slots=True)
class Beat:
    """A rank's last heartbeat. Durations, because clocks differ between machines; all in seconds.

    wait: what it waits for, None for nobody; idle: since its wait last changed, by its own clock;
    last: the last thing it waited for, for the report; age: since the heartbeat arrived here (own rank: 0).
    """

    wait: Wait | None
    idle: float
    last: Wait | None
    age: float


def suspect(
    rank: int, beats: Mapping[int, Beat], departed: Collection[int], timeout: float
) -> RankFailure | None:
    """Return the failure that `rank` should report, None while all is well.

    beats: of every rank, this one's own included. departed: ranks that said goodbye. timeout: T in seconds.
    """
    silent = [r for r in beats if r != rank and r not in departed and beats[r].age >= timeout]
    if silent:
        blamed = max(silent, key=lambda r: beats[r].age)
        return failure(
            blamed,
            rank,
            beats,
            f"no heartbeat for {beats[blamed].age:.1f} s; it is stopped, or its machine or network is down",
        )
    own = beats[rank]
    if own.wait is None:
        return None
    if own.wait.rank in departed and own.idle >= min(timeout, MIN_TIMEOUT):
        return _failure(own.wait, f"it has closed its session, while rank {rank} waits for it{LEFT}")
    if own.idle < timeout:
        return None
    chain = _chain(rank, beats)
    end = chain[-1].rank
    if any(wait.rank == rank for wait in chain) or beats[end].wait is not None:
        return _circle(rank, chain, beats, timeout)
    if end in departed:
        return _failure(chain[-1], f"it has closed its session, while others wait for it{LEFT}")
    if beats[end].idle < timeout:
        return None
    path = " -> ".join(f"rank {r}" for r in [rank, *(wait.rank for wait in chain)])
    return _failure(
        chain[-1],
        f"it is alive, but has made no progress for {beats[end].idle:.1f} s and waits for nobody, "
        f"while others wait for it ({path}); if it works so long on purpose, set a longer CASYNC_TIMEOUT",
    )


def failure(blamed: int, rank: int, beats: Mapping[int, Beat], reason: str) -> RankFailure:
    """Return the failure of `blamed` with the place that says most: who waits for what from it.

    First what this `rank` waits for from it, which is never out of date. Else the latest step that any rank
    is known to wait in or to have waited in, and there a wait for `blamed` before others.
    """
    own = beats[rank].wait
    if own is not None and own.rank == blamed:
        return _failure(own, reason)
    known = [wait for beat in beats.values() for wait in (beat.wait, beat.last) if wait is not None]
    if not known:
        return RankFailure(blamed, None, None, reason)
    place = max(known, key=lambda wait: (wait.step, wait.rank == blamed))
    return _failure(Wait(blamed, place.gradient, place.step), reason)


def _failure(wait: Wait, reason: str) -> RankFailure:
    if wait.step == NO_STEP:
        return RankFailure(wait.rank, None, None, f"{reason} (in the agreement on {wait.gradient!r})")
    return RankFailure(wait.rank, wait.gradient, wait.step, reason)


def _chain(rank: int, beats: Mapping[int, Beat]) -> list[Wait]:
    """Return the waits that lead from `rank` to a rank that waits for nobody, or once round a circle."""
    chain: list[Wait] = []
    seen = {rank}
    wait = beats[rank].wait
    while wait is not None:
        chain.append(wait)
        if wait.rank in seen:
            break
        seen.add(wait.rank)
        wait = beats[wait.rank].wait
    return chain


def _circle(rank: int, chain: list[Wait], beats: Mapping[int, Beat], timeout: float) -> RankFailure | None:
    """Return the failure for ranks that wait for each other: blame who owes the earliest message.

    All that it depends on has arrived, or its sender would wait for something earlier: it was sent, and lost.
    """
    if any(beats[wait.rank].idle < timeout for wait in chain):
        return None
    path = " -> ".join(f"rank {r}" for r in [rank, *(wait.rank for wait in chain)])
    earliest = min(chain, key=lambda wait: (wait.step, wait.order, wait.rank))
    return _failure(earliest, f"ranks wait for each other ({path}): a message of it was lost")
