"""Symbolic execution of a schedule for all ranks: what it computes, whatever the timing.

A payload is the list of ranks that were merged into it, in order, and the encode that made it. Reads are
judged by the happens-before relation (`after` on a rank, send -> receive between ranks), not by one lucky
order of execution.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from casync.primitives import Decode, Encode, Merge, Recv, Reduce, Role, Schedule, Send, Task

if TYPE_CHECKING:
    from collections.abc import Iterator

Node: TypeAlias = tuple[int, int]  # (rank, task id)
Place: TypeAlias = tuple[int, int]  # (rank, partition)


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a schedule, at one task of one rank."""

    rank: int
    task: int | None
    what: str

    def __str__(self) -> str:
        where = f"rank {self.rank}" + ("" if self.task is None else f", task {self.task}")
        return f"{where}: {self.what}"


class ScheduleError(ValueError):
    """A schedule that does not compute an all-reduce; `faults` lists all that was found."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("the schedule is wrong:\n" + "\n".join(f"  {fault}" for fault in faults))
        self.faults = faults


@dataclass(frozen=True)
class Content:
    """What a payload, a term or a sum holds: the merged ranks in order, what made it, how often it is scaled.

    exact: plain float32, not of the codec. direct: payloads' own values instead of decoded ones.
    down: of the codec of sums, which may be another.
    """

    ranks: tuple[int, ...]
    origin: tuple[Node, ...]
    scaled: int
    exact: bool = False
    direct: bool = False
    down: bool = False


def _total(terms: list[tuple[Node, Content]]) -> Content:
    """The sum of terms: what it is made of tells whether ranks have the same one."""
    held = [term for _, term in terms]
    return Content(
        tuple(rank for term in held for rank in term.ranks),
        tuple(node for term in held for node in term.origin),
        sum(term.scaled for term in held),
        direct=any(term.direct for term in held),
    )


def verify(schedule: Schedule, partitions: int) -> None:
    """Raise ScheduleError unless all ranks end with every partition, merged once from each rank, alike."""
    faults = (*_structure(schedule), *_messages(schedule), *_all_reduces(schedule))
    if not faults:
        faults = tuple(_meaning(schedule, partitions))
    if faults:
        raise ScheduleError(faults)


def levels(schedule: Schedule) -> dict[Node, int]:
    """How many tasks must be done one after the other before each task of a right schedule."""
    relation = _HappensBefore(schedule)
    level: dict[Node, int] = {}
    for node in relation.order:
        level[node] = max((level[other] + 1 for other in relation.before[node]), default=0)
    return level


def _structure(schedule: Schedule) -> Iterator[Fault]:
    """Ids are places in the tuple; what a task needs exists and is of the right kind and partition."""
    for rank, tasks in enumerate(schedule):
        for place, task in enumerate(tasks):
            if task.id != place:
                yield Fault(rank, place, f"its id is {task.id}, not its place in the schedule")
            unknown = [i for i in task.after if not 0 <= i < len(tasks)]
            if unknown:
                yield Fault(rank, place, f"it comes after {unknown}, which do not exist")
            payload = _payload(task)
            if payload is None:
                continue
            if not 0 <= payload < len(tasks):
                yield Fault(rank, place, f"it reads the payload of task {payload}, which does not exist")
            elif not isinstance(source := tasks[payload], Encode | Recv):
                yield Fault(rank, place, f"task {payload} makes no payload")
            elif source.partition != task.partition:
                yield Fault(rank, place, f"task {payload} belongs to partition {source.partition}")
            elif payload not in task.after:
                yield Fault(rank, place, f"it reads the payload of task {payload} without waiting for it")
            elif isinstance(task, Encode) and (task.exact, False) != (source.exact, source.down):
                yield Fault(rank, place, f"it adds the payload of task {payload}, which is of another kind")
            elif isinstance(task, Merge) and task.direct and (source.exact or source.down):
                yield Fault(rank, place, f"it takes the payload of task {payload} for one of the codec")


def _payload(task: Task) -> int | None:
    """The task whose payload this one reads."""
    return task.received if isinstance(task, Encode) else getattr(task, "payload", None)


def _messages(schedule: Schedule) -> Iterator[Fault]:
    """Every send has its receive, and none is sent or awaited twice."""
    sends = Counter(
        (rank, task.peer, task.message)
        for rank, ts in enumerate(schedule)
        for task in ts
        if isinstance(task, Send)
    )
    recvs = Counter(
        (task.peer, rank, task.message)
        for rank, ts in enumerate(schedule)
        for task in ts
        if isinstance(task, Recv)
    )
    for message in sorted(sends.keys() | recvs.keys()):
        source, target, number = message
        if sends[message] != 1 or recvs[message] != 1:
            yield Fault(
                source,
                None,
                f"message {number} to rank {target} is sent {sends[message]} "
                f"and awaited {recvs[message]} times",
            )
        if source == target:
            yield Fault(source, None, f"message {number} goes to its own sender")


def _all_reduces(schedule: Schedule) -> Iterator[Fault]:
    """Every rank issues the same all-reduces in the same order."""
    orders = [[task.partition for task in tasks if isinstance(task, Reduce)] for tasks in schedule]
    for rank, order in enumerate(orders):
        if order != orders[0]:
            yield Fault(rank, None, f"it reduces the partitions {order}, rank 0 {orders[0]}, in this order")


class _HappensBefore:
    """The order that no timing can change: `after` on a rank, each send before its receive."""

    def __init__(self, schedule: Schedule) -> None:
        tasks = {(rank, task.id): task for rank, ts in enumerate(schedule) for task in ts}
        sender = {
            (rank, task.peer, task.message): (rank, number)
            for (rank, number), task in tasks.items()
            if isinstance(task, Send)
        }
        before: dict[Node, list[Node]] = {
            (rank, number): [(rank, i) for i in task.after]
            + ([sender[task.peer, rank, task.message]] if isinstance(task, Recv) else [])
            for (rank, number), task in tasks.items()
        }
        behind: dict[Node, list[Node]] = {node: [] for node in tasks}
        for node, needed in before.items():
            for other in needed:
                behind[other].append(node)
        missing = {node: len(needed) for node, needed in before.items()}
        ready = deque(node for node, count in missing.items() if count == 0)
        self.before = before
        self.order: list[Node] = []
        self._bit = {node: 1 << place for place, node in enumerate(tasks)}
        self._ancestors: dict[Node, int] = {}
        while ready:
            node = ready.popleft()
            self.order.append(node)
            ancestors = self._bit[node]
            for other in before[node]:
                ancestors |= self._ancestors[other]
            self._ancestors[node] = ancestors
            for other in behind[node]:
                missing[other] -= 1
                if missing[other] == 0:
                    ready.append(other)
        self.cyclic = sorted(tasks.keys() - self._ancestors.keys())

    def follows(self, node: Node, other: Node) -> bool:
        """Whether `node` always runs after `other`."""
        return bool(self._ancestors[node] & self._bit[other])


def _meaning(schedule: Schedule, partitions: int) -> Iterator[Fault]:
    relation = _HappensBefore(schedule)
    if relation.cyclic:
        for rank, number in relation.cyclic:
            yield Fault(rank, number, "it waits, in the end, for itself: the dependencies have a cycle")
        return
    content: dict[Node, Content] = {}
    sums: dict[Place, list[tuple[Node, Content]]] = defaultdict(list)
    readers: dict[Place, list[Node]] = defaultdict(list)
    results: dict[Place, list[Node]] = defaultdict(list)
    sent: dict[tuple[int, int, int], Node] = {}
    sites: set[tuple[int, int, int, int]] = set()
    readers_of_sums: dict[Place, list[tuple[Node, list[tuple[Node, Content]]]]] = defaultdict(list)
    for node in relation.order:
        rank, number = node
        task: Task = schedule[rank][number]
        place = (rank, task.partition)
        encodes_with_state = isinstance(task, Encode) and not (task.exact or task.direct)
        if encodes_with_state or (isinstance(task, Merge) and task.residual):
            role, hop = (task.role, task.hop) if isinstance(task, Encode) else (Role.WORKER, 0)
            if (task.partition, rank, role, hop) in sites:
                yield Fault(
                    rank, number, f"{role.name} encodes hop {hop} twice: its noise or residual repeats"
                )
            sites.add((task.partition, rank, role, hop))
        match task:
            case Encode(of_sum=True):
                readers_of_sums[place].append((node, sums[place]))
                total = _total(sums.pop(place))
                if total.direct != task.direct:
                    yield Fault(
                        rank, number, "payloads' own values and decoded ones are taken for each other"
                    )
                content[node] = Content(
                    total.ranks, (node,), total.scaled + task.final, task.exact, down=task.down
                )
            case Encode():
                readers[place].append(node)
                received = Content((), (), 0) if task.received is None else content[rank, task.received]
                merged = (*received.ranks, rank)
                content[node] = Content(merged, (node,), received.scaled + task.final, task.exact)
            case Merge():
                terms = sums[place]
                before = [term for term, _ in terms[-1:]] or [taken for taken, _ in readers_of_sums[place]]
                if not all(relation.follows(node, other) for other in before):
                    yield Fault(rank, number, "it does not wait for the merge before it: the order is luck")
                if task.payload is None:
                    readers[place].append(node)
                    terms.append((node, Content((rank,), (node,), 0)))
                else:
                    terms.append((node, replace(content[rank, task.payload], direct=task.direct)))
                if terms[0][1].direct != task.direct:
                    yield Fault(rank, number, "payloads' own values and decoded ones are added to each other")
            case Reduce():
                readers[place].append(node)
                everywhere = tuple(range(len(schedule)))
                sums[place].append((node, Content(everywhere, ((-1, task.partition),), 0)))
            case Send():
                content[node] = content[rank, task.payload]
                sent[rank, task.peer, task.message] = node
            case Recv():
                content[node] = content[sent[task.peer, rank, task.message]]
                if (content[node].exact, content[node].down) != (task.exact, task.down):
                    yield Fault(rank, number, "payloads of different codecs are taken for each other")
            case Decode(payload=None):
                readers_of_sums[place].append((node, sums[place]))
                total = _total(sums.pop(place))
                if total.direct:
                    yield Fault(rank, number, "it takes payloads' own values for the result")
                content[node] = replace(total, scaled=total.scaled + 1)
                results[place].append(node)
            case Decode(payload=int(payload)):
                content[node] = content[rank, payload]
                results[place].append(node)

    for rank, tasks in enumerate(schedule):
        read = {_payload(task) for task in tasks}
        for task in tasks:
            if isinstance(task, Encode | Recv) and task.id not in read:
                yield Fault(rank, task.id, "nobody reads its payload")
    for place, taken in readers_of_sums.items():
        for reader, terms in (*taken, (taken[-1][0], sums[place])):
            if not all(relation.follows(reader, term) for term, _ in terms):
                yield Fault(*reader, "it reads the sum without waiting for all merges")
    everyone = list(range(len(schedule)))
    for p in range(partitions):
        origins = set()
        for rank in everyone:
            decodes = results[rank, p]
            if len(decodes) != 1:
                yield Fault(rank, None, f"partition {p} is decoded {len(decodes)} times")
                continue
            result, number = content[decodes[0]], decodes[0][1]
            origins.add(result.origin)
            if sorted(result.ranks) != everyone:
                yield Fault(rank, number, f"partition {p} ends as the sum of ranks {list(result.ranks)}")
            if result.scaled != 1:
                yield Fault(rank, number, f"partition {p} is scaled {result.scaled} times")
            for reader in readers[rank, p]:
                if not relation.follows(decodes[0], reader):
                    yield Fault(rank, number, f"it may overwrite what task {reader[1]} has still to read")
        if len(origins) > 1:
            yield Fault(0, None, f"partition {p} ends in different payloads, made by {sorted(origins)}")
