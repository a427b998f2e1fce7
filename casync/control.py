"""The control plane's contract: what a rank waits for, how a job fails, and the collectives on small facts.

`Control` is implemented by `casync/plane.py` (ZeroMQ, one connection a pair, used by every transport),
by `casync/solo.py` (a job of one rank) and by the loopback network that tests use.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

NO_STEP = -1
"""The step of a Wait that belongs to no training step: a rank that waits in a control collective."""


class RankFailure(RuntimeError):  # noqa: N818  (the name is part of the public API)
    """A rank has failed the job. Every rank raises the same one.

    rank: the rank that is to blame; gradient, step: what was being exchanged, None where nothing was;
    reason: what was observed, one line. Equal when all four are; pickles.
    """

    rank: int
    gradient: str | None
    step: int | None
    reason: str

    def __init__(self, rank: int, gradient: str | None, step: int | None, reason: str) -> None:
        super().__init__(rank, gradient, step, reason)
        self.rank, self.gradient, self.step, self.reason = rank, gradient, step, reason

    def __str__(self) -> str:
        place = f" (gradient {self.gradient!r}" if self.gradient is not None else ""
        if self.step is not None:
            place += f", step {self.step}" if place else f" (step {self.step}"
        return f"rank {self.rank} failed{place + ')' if place else ''}: {self.reason}"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RankFailure) and self.args == other.args

    def __hash__(self) -> int:
        return hash(self.args)


class MismatchError(RuntimeError):
    """The ranks of a job hold different facts; the message names topic, key, values and ranks."""


@dataclass(frozen=True, slots=True)
class Wait:
    """What a rank waits for: `gradient` of `step` (NO_STEP: a control collective's topic) from `rank`.

    order: of the message among those of all ranks in the step; what it depends on comes before it.
    """

    rank: int
    gradient: str
    step: int
    order: int = 0


class Control(Protocol):
    """What the runtime asks of a control plane. All methods may be called from any thread.

    `agree` and `gather` are collectives: every rank calls them, in the same order.
    """

    rank: int
    size: int

    def waits(self, wait: Wait | None) -> None:
        """Say what this rank waits for now (None: for nobody). Cheap. Any call counts as progress."""

    def abort(self, failure: RankFailure) -> None:
        """Fail the job: the first failure of all ranks wins, is told to all and is printed once."""

    def check(self) -> None:
        """Raise the job's RankFailure if there is one."""

    def on_failure(self, call: Callable[[RankFailure], None]) -> None:
        """Have `call(failure)` called once, in the control thread; at once if the job has already failed."""

    def agree(self, topic: str, facts: Mapping[str, str]) -> None:
        """Collective: raise MismatchError on every rank unless all ranks hold equal `facts`."""

    def gather(self, topic: str, value: bytes) -> list[bytes]:
        """Collective: return every rank's `value` (at most 1 MiB), in rank order."""

    def close(self) -> None:
        """Say goodbye: no peer takes what follows for a death. Idempotent."""


def differences(
    topic: str, facts: Sequence[Mapping[str, str]], among: Sequence[int] | None = None
) -> str | None:
    """Return the text that names each key of `topic` on which the ranks' `facts` differ, None if none do.

    facts: one mapping a rank, in rank order, of all ranks or of those `among` them. The text is the same
    whatever rank computes it.
    """
    named = range(len(facts)) if among is None else among
    lines = []
    for key in sorted(set().union(*facts)):
        ranks: dict[str, list[int]] = {}
        for rank, held in zip(named, facts, strict=True):
            ranks.setdefault(held.get(key, "<not given>"), []).append(rank)
        if len(ranks) > 1:
            held_by = "; ".join(f"{name_ranks(who)}: {value}" for value, who in ranks.items())
            lines.append(f"  {key}: {held_by}")
    if not lines:
        return None
    return "\n".join(
        [
            f"the ranks do not agree on {topic}:",
            *lines,
            "  start every rank with the same script, arguments, files and versions",
        ]
    )


def report(rank: int, failure: RankFailure) -> None:
    """Print the job's failure to standard error, in one write that no other rank's output can cut."""
    os.write(2, f"casync: rank {rank} reports: {failure}\n".encode())


def name_ranks(ranks: Sequence[int]) -> str:
    """Write ranks for people: "rank 2", "ranks 0, 2"."""
    return ("rank " if len(ranks) == 1 else "ranks ") + ", ".join(map(str, ranks))
