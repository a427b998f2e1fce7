"""The turns of a cell: methods that are alive at the same time, in the same processes, round by round."""

from __future__ import annotations

import contextlib
import math
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from cluster_methods import METHODS, Entry
from cluster_network import Network
from cluster_ranks import Ranks
from rich.progress import Progress

NOISY, TRIES = 1.3, 5
"""A round is repeated while computing alone takes so many times its least; so often at most."""
LEAST = 3
"""Rounds that are made whatever they take."""
BESIDE = 128 << 20
"""Bytes of gradients: methods with larger lists are not alive beside others, for want of memory."""
REFERENCE = Entry("compute alone")
PORT = 29_400


@dataclass(frozen=True)
class Pace:
    """How long to measure: rounds, seconds of a turn where an iteration is shorter, seconds a method.

    When a party has had its methods' seconds, no round is begun after the first LEAST; None for no end.
    """

    rounds: int
    turn: float
    budget: float | None


def parties(rows: Sequence[Entry], size: int) -> Iterator[list[Entry]]:
    """Who is alive at the same time: each method alone that has more than BESIDE bytes, the others together.

    size: bytes of the whole list.
    """
    rows = [row for row in rows if row != REFERENCE]
    beside = [row for row in rows if size // row.part <= BESIDE]
    yield from ([row] for row in rows if row not in beside)
    if beside or not rows:
        yield beside


class Sets:
    """The process sets of a party: Horovod's, whose idle thread takes CPU, apart from the others."""

    def __init__(self, network: Network, party: Sequence[Entry], model: str, plan: str | None) -> None:
        self._network, self._model, self._plan = network, model, plan
        horovod = {method.name for method in METHODS if method.engine == "horovod"}
        apart = [row for row in party if row.name in horovod]
        self._rows = [[REFERENCE, *(row for row in party if row not in apart)], apart]
        self._stack = contextlib.ExitStack()
        self._of: dict[Entry, Ranks] = {}
        self.elements: list[int] = []

    def __enter__(self) -> Sets:
        """Start the ranks and build all methods, without a limit of the network."""
        self._network.limit(None)
        try:
            for number, rows in enumerate(self._rows):
                if not rows:
                    continue
                ranks = self._stack.enter_context(
                    Ranks(self._network, "cluster_rank.py", PORT + 10 * number, horovod=bool(number))
                )
                made = ranks.ask(do="make", entries=rows, model=self._model, plan=self._plan)
                self.elements = made[0]["elements"]
                self._of |= dict.fromkeys(rows, ranks)
                ranks.pause()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        """End the ranks."""
        self._stack.__exit__(*error)

    def run(self, row: Entry, iterations: int) -> dict[str, Any]:
        """One turn: seconds, CPU seconds of all ranks, and the most bytes of a rank, an iteration."""
        ranks = self._of[row]
        ranks.resume()
        try:
            replies = ranks.ask(do="run", entry=row, iterations=iterations)
        finally:
            ranks.pause()
        return {
            "seconds": max(statistics.median(reply["seconds"]) for reply in replies),
            "cpu": sum(reply["cpu"] for reply in replies) / iterations,
            "sent": max(reply["sent"] for reply in replies) / iterations,
            "received": max(reply["received"] for reply in replies) / iterations,
            "ready": replies[0]["ready"],
        }


def measure(sets: Sets, party: Sequence[Entry], pace: Pace, progress: Progress, title: str) -> dict[str, Any]:
    """The turns of each method, and how many rounds were repeated."""
    usual: dict[Entry, float] = {}
    turns: dict[Entry, list[dict[str, Any]]] = {row: [] for row in (REFERENCE, *party)}
    repeated = 0
    task = progress.add_task(title, total=pace.rounds * len(turns))
    end = math.inf if pace.budget is None else time.monotonic() + pace.budget * len(party)
    for number in range(pace.rounds):
        if number >= LEAST and time.monotonic() > end:
            break
        for attempt in range(TRIES):
            reference = _turn(sets, REFERENCE, usual, pace.turn)
            if reference["seconds"] <= NOISY * usual[REFERENCE] or attempt == TRIES - 1:
                break
            repeated += 1
            time.sleep(2)
        for row in turns:
            turns[row].append(reference if row == REFERENCE else _turn(sets, row, usual, pace.turn))
            progress.advance(task)
    progress.remove_task(task)
    return {"rows": [[*row, taken] for row, taken in turns.items()], "repeated": repeated}


def _turn(sets: Sets, row: Entry, usual: dict[Entry, float], seconds: float) -> dict[str, Any]:
    """Run so many iterations as a turn has room for; the first turn begins with one, to find out."""
    if row not in usual:
        found = sets.run(row, 1)
        usual[row] = found["seconds"]
        if found["seconds"] >= seconds:
            return found
    if usual[row] < seconds:
        sets.run(row, 1)  # ranks do not begin at the same moment; caches hold another method's data
    found = sets.run(row, max(1, min(9, round(seconds / usual[row]))))
    usual[row] = min(usual[row], found["seconds"])
    return found
