"""Turns: the order in which bodies go from rank to rank, agreed two by two as they become ready.

Where sending and receiving both wait for the other side, as in NCCL, ranks that exchange bodies in different
orders may wait for each other in a circle. So each body gets a time, and every rank takes part in its
exchanges in the order of their times:

    sender    asks, and proposes a time later than all that it knows
    receiver  answers with the body's time: later than the proposal, and than all that it knows

No rank begins an exchange while an ask of its own, which might get an earlier time, has no answer; what comes
to it later gets a later time. Answers wait for nothing, so every body that is ready gets its turn. Of all
exchanges that are not done the earliest is the first of both its ranks: there is always one that goes on.
Exchanges that follow each other on a rank may run at once, as a round, for the same reason.

Logical time: L. Lamport, Time, Clocks, and the Ordering of Events in a Distributed System, CACM 21(7), 1978.
Ask and answer: D. Skeen's order, in K. Birman and T. Joseph, Reliable Communication in the Presence of
Failures, ACM TOCS 5(1), 1987, for messages that two take part in.
"""

from __future__ import annotations

from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, order=True, slots=True)
class Turn:
    """When a body goes: earlier ones first. A target gives no time twice, so that no two are equal."""

    time: int
    target: int
    source: int


class Turns(Generic[T]):
    """One rank's part; what it keeps of each body is the caller's. Not thread-safe."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        self._now = 0
        self._asked: dict[int, tuple[int, T]] = {}  # by the time proposed, which only grows
        self._agreed: list[tuple[Turn, T]] = []  # a heap

    def ask(self, peer: int, body: T) -> int:
        """A body for `peer` is ready: returns the time to propose, which names it until it is answered."""
        self._now += 1
        self._asked[self._now] = peer, body
        return self._now

    def answer(self, peer: int, proposed: int, body: T) -> int:
        """`peer` asks to send a body: returns the time to answer with."""
        self._now = max(self._now, proposed) + 1
        heappush(self._agreed, (Turn(self._now, self._rank, peer), body))
        return self._now

    def answered(self, peer: int, proposed: int, time: int) -> None:
        """`peer` has answered; KeyError if it was not asked that."""
        if self._asked.get(proposed, (None,))[0] != peer:
            raise KeyError(proposed)
        _, body = self._asked.pop(proposed)
        self._now = max(self._now, time)
        heappush(self._agreed, (Turn(time, peer, self._rank), body))

    def forget(self) -> None:
        """Drop what has no answer: who was asked will answer no more."""
        self._asked.clear()

    def take(self) -> list[tuple[Turn, T]]:
        """The exchanges whose turn has come, in order; they may run at once, after those taken before."""
        earliest = next(iter(self._asked), None)  # an answer is later than its proposal
        taken = []
        while self._agreed and (earliest is None or self._agreed[0][0].time <= earliest):
            taken.append(heappop(self._agreed))
        return taken

    @property
    def idle(self) -> bool:
        """Whether nothing is asked and nothing agreed that was not taken."""
        return not (self._asked or self._agreed)
