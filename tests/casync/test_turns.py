"""Turns: ranks that exchange bodies in their order never wait for each other in a circle.

Simulated: asks and answers overtake each other, a rank begins its next round whenever it likes, an exchange
ends when both sides are in it, a round when all its exchanges have. What happens next is drawn, or every
possibility is followed.
"""

from __future__ import annotations

import copy
import itertools
import random
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from casync.primitives import Recv, Schedule, Send
from casync.topologies import even_nodes, names, topology
from casync.turns import Turn, Turns

if TYPE_CHECKING:
    from collections.abc import Iterator

Message = tuple[int, int, int]  # source, target, number


@dataclass
class Signal:
    """An ask, or its answer, on its way."""

    source: int
    target: int
    proposed: int
    time: int | None
    message: Message


class World:
    """Ranks, what is ready on them, asks and answers on their way, and the round in which each rank is."""

    def __init__(self, ranks: int, ready: list[Message], turns: type[Turns[Message]] = Turns) -> None:
        self.turns = [turns(rank) for rank in range(ranks)]
        self.ready = ready
        self.signals: list[Signal] = []
        self.rounds: list[list[Message]] = [[] for _ in range(ranks)]
        self.taken: list[list[Message]] = [[] for _ in range(ranks)]
        self.done: list[Message] = []

    def events(self) -> Iterator[tuple[str, int]]:
        """All that may happen next; a round that no exchange may be in does not begin."""
        yield from (("ask", place) for place in range(len(self.ready)))
        yield from (("arrive", place) for place in range(len(self.signals)))
        for rank, now in enumerate(self.rounds):
            if not now:
                yield "begin", rank
            yield from (("end", rank) for message in now[:1] if self.meeting(rank))

    def meeting(self, rank: int) -> list[Message]:
        """The exchanges of a rank's round in which the other side is, too."""
        return [it for it in self.rounds[rank] if it in self.rounds[it[0]] and it in self.rounds[it[1]]]

    def happen(self, event: tuple[str, int]) -> bool:
        """Returns whether anything has changed."""
        match event:
            case "ask", place:
                message = self.ready.pop(place)
                source, target, _ = message
                self.signals.append(
                    Signal(source, target, self.turns[source].ask(target, message), None, message)
                )
            case "arrive", place:
                it = self.signals.pop(place)
                if it.time is None:
                    time = self.turns[it.target].answer(it.source, it.proposed, it.message)
                    self.signals.append(Signal(it.target, it.source, it.proposed, time, it.message))
                else:
                    self.turns[it.target].answered(it.source, it.proposed, it.time)
            case "begin", rank:
                self.rounds[rank] = [message for _, message in self.turns[rank].take()]
                self.taken[rank] += self.rounds[rank]
                return bool(self.rounds[rank])
            case "end", rank:
                message = self.meeting(rank)[0]
                for end in message[:2]:
                    self.rounds[end].remove(message)
                self.done.append(message)
        return True

    @property
    def matched(self) -> bool:
        """Whether both ranks take what goes from one to the other in the same order: bodies have no names."""
        pairs = itertools.permutations(range(len(self.turns)), 2)
        return all(
            [message for message in self.taken[pair[0]] if message[:2] == pair]
            == [message for message in self.taken[pair[1]] if message[:2] == pair]
            for pair in pairs
        )


class Hasty(Turns[Message]):
    """Begins what was agreed, whatever it has asked besides."""

    def take(self) -> list[tuple[Turn, Message]]:
        asked, self._asked = self._asked, {}
        taken = super().take()
        self._asked = asked
        return taken


def stuck(world: World) -> bool:
    """Follow all that can happen; returns whether it may end with bodies missing or mixed up."""
    total = len(world.ready)
    seen: set[str] = set()
    worlds = [world]
    while worlds:
        now = worlds.pop()
        moves = 0
        for event in now.events():
            after = copy.deepcopy(now)
            if not after.happen(event):
                continue
            moves += 1
            key = repr(
                [vars(it) for it in after.turns]
                + [sorted(map(repr, after.signals)), after.rounds, after.taken]
            )
            if key not in seen:
                seen.add(key)
                worlds.append(after)
        if not moves and (len(now.done) < total or not now.matched):
            return True
    return False


CIRCLE = [(0, 1, 0), (1, 2, 0), (2, 0, 0)]


@pytest.mark.parametrize("messages", [CIRCLE, [(0, 1, 0), (0, 1, 1), (1, 0, 0)]], ids=str)
def test_whatever_happens_first_all_bodies_arrive(messages: list[Message]) -> None:
    assert not stuck(World(3, list(messages)))


def test_without_waiting_for_answers_ranks_may_wait_in_a_circle() -> None:
    """So the simulation can tell."""
    assert stuck(World(3, list(CIRCLE), Hasty))


class Step(World):
    """A step of a schedule: a task may run as soon as what it needs is there; what is sent is ready."""

    def __init__(self, schedule: Schedule) -> None:
        super().__init__(len(schedule), [])
        tasks = [(rank, task) for rank, of_rank in enumerate(schedule) for task in of_rank]
        self.tasks = {(rank, task.id): task for rank, task in tasks}
        self.needs = {(rank, it.id): len(it.after) + isinstance(it, Recv) for rank, it in tasks}
        self.behind: defaultdict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for rank, task in tasks:
            for before in task.after:
                self.behind[rank, before].append((rank, task.id))
        self.recvs = {
            (it.peer, rank, it.message): (rank, it.id) for rank, it in tasks if isinstance(it, Recv)
        }
        self.runnable = [node for node, needs in self.needs.items() if not needs]
        self.ran = 0

    def events(self) -> Iterator[tuple[str, int]]:
        yield from (("run", place) for place in range(len(self.runnable)))
        yield from super().events()

    def happen(self, event: tuple[str, int]) -> bool:
        kind, place = event
        if kind == "run":
            node = self.runnable.pop(place)
            task = self.tasks[node]
            if isinstance(task, Send):
                self.ready.append((node[0], task.peer, task.message))
            self.ran += 1
            for other in self.behind[node]:
                self.advance(other)
            return True
        changed = super().happen(event)
        if kind == "end":
            self.advance(self.recvs[self.done[-1]])
        return changed

    def advance(self, node: tuple[int, int]) -> None:
        self.needs[node] -= 1
        if not self.needs[node]:
            self.runnable.append(node)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("nranks", range(1, 10))
def test_every_topology_ends_whatever_becomes_ready_first(name: str, nranks: int) -> None:
    draw = random.Random(f"{name} {nranks}")
    module = topology(name)
    owners = [module.owner(p, nranks) for p in range(3)]
    step = Step(module.schedule(nranks, owners, even_nodes(nranks, 2)))
    events = list(step.events())
    while any(map(step.happen, draw.sample(events, len(events)))):
        events = list(step.events())
    assert step.ran == len(step.tasks)
    assert step.matched
