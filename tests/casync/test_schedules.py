"""Schedules compute an all-reduce for every number of ranks and partitions; broken ones are caught."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from casync.primitives import Decode, Encode, Merge, Recv, Role, Schedule, Send, Task, join
from casync.topologies import Nodes, check_nodes, even_nodes, names, topology
from casync.verify import ScheduleError, verify

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator

RANKS = range(1, 10)


def drawn(
    name: str, nranks: int, partitions: int, nodes: Nodes | None = None, through: Collection[int] = ()
) -> Schedule:
    module = topology(name)
    owners = [module.owner(p, nranks) for p in range(partitions)]
    nodes = nodes or even_nodes(nranks, 2)
    return (
        module.schedule(nranks, owners, nodes, through) if through else module.schedule(nranks, owners, nodes)
    )


def uneven_nodes(nranks: int) -> Iterator[Nodes]:
    """All even groupings, and one whose nodes differ in size and whose ranks do not follow each other."""
    yield from (even_nodes(nranks, size) for size in range(1, nranks + 1))
    yield check_nodes((tuple(range(0, nranks, 3)), tuple(r for r in range(nranks) if r % 3)), nranks)


@pytest.mark.parametrize("name", names())
@pytest.mark.parametrize("nranks", RANKS)
def test_every_rank_ends_with_every_partition_merged_once_from_every_rank(name: str, nranks: int) -> None:
    for partitions in range(1, nranks + 2):
        verify(drawn(name, nranks, partitions), partitions)


@pytest.mark.parametrize("nranks", RANKS)
def test_any_owner_will_do(nranks: int) -> None:
    for name in names():
        for owner in range(nranks):
            verify(topology(name).schedule(nranks, [owner, owner], even_nodes(nranks, 3)), 2)


@pytest.mark.parametrize("nranks", RANKS)
def test_any_nodes_will_do(nranks: int) -> None:
    for nodes in uneven_nodes(nranks):
        for partitions in (1, nranks + 1):
            verify(drawn("hierarchical", nranks, partitions, nodes), partitions)


@pytest.mark.parametrize("nranks", RANKS)
def test_where_a_codec_keeps_more_no_gradient_enters_a_sum_but_through_it(nranks: int) -> None:
    def codec_encodes(schedule: Schedule, p: int) -> int:
        every = [task for tasks in schedule for task in tasks if isinstance(task, Encode)]
        return sum(task.partition == p and not (task.exact or task.down) for task in every)

    for nodes in uneven_nodes(nranks):
        for name, terms in (("ps", nranks), ("hierarchical", len(nodes))):
            through = range(0, nranks + 1, 2)
            schedule = drawn(name, nranks, nranks + 1, nodes, through)
            verify(schedule, nranks + 1)
            for p in range(nranks + 1):
                assert codec_encodes(schedule, p) == terms - (p not in through)
                exactly = [t for tasks in schedule for t in tasks if isinstance(t, Merge) and t.residual]
                assert any(t.partition == p for t in exactly) == (p not in through)


@pytest.mark.parametrize("nranks", RANKS)
def test_two_topologies_join_into_one_schedule(nranks: int) -> None:
    verify(join(drawn("ps", nranks, 3), drawn("ring", nranks, 2), 3), 5)
    verify(join(drawn("ring", nranks, 2), drawn("ps", nranks, 3), 2), 5)


def count(schedule: Schedule, kind: type[Task], partition: int = 0) -> int:
    return sum(isinstance(t, kind) and t.partition == partition for tasks in schedule for t in tasks)


@pytest.mark.parametrize("nranks", RANKS)
def test_ps_costs_n_encodes_and_two_of_them_in_a_row(nranks: int) -> None:
    schedule = drawn("ps", nranks, nranks)
    for p in range(nranks):
        assert count(schedule, Encode, p) == nranks
        assert count(schedule, Send, p) == 2 * (nranks - 1)
        assert count(schedule, Merge, p) == nranks
        assert count(schedule, Decode, p) == nranks
    roles = Counter(t.role for tasks in schedule for t in tasks if isinstance(t, Encode))
    assert roles == Counter({Role.WORKER: nranks * (nranks - 1), Role.OWNER: nranks}) - Counter()


@pytest.mark.parametrize("nranks", RANKS)
def test_ring_costs_n_encodes_and_2n_less_1_decodes(nranks: int) -> None:
    schedule = drawn("ring", nranks, nranks)
    for p in range(nranks):
        encodes = [t for ts in schedule for t in ts if isinstance(t, Encode) and t.partition == p]
        fused = sum(t.received is not None for t in encodes)
        assert len(encodes) == nranks
        assert fused + count(schedule, Decode, p) == 2 * nranks - 1
        assert count(schedule, Send, p) == 2 * (nranks - 1)
        first = next(r for r, ts in enumerate(schedule) for t in ts if t in encodes and t.hop == 0)
        last = next(r for r, ts in enumerate(schedule) for t in ts if t in encodes and t.final)
        assert (first, last) == (p % nranks, (p - 1) % nranks)


def test_ps_merges_in_rank_order() -> None:
    schedule = drawn("ps", 4, 4)
    for owner, tasks in enumerate(schedule):
        merges = [t for t in tasks if isinstance(t, Merge)]
        peers = [owner if m.payload is None else tasks[m.payload].peer for m in merges]  # type: ignore[union-attr]
        assert peers == [0, 1, 2, 3]


def test_an_unknown_topology_is_named_with_those_there_are() -> None:
    with pytest.raises(
        ValueError, match=r"unknown topology 'star': it is one of allgather, direct, hierarchical, ps, ring"
    ):
        topology("star")


# Each mutation changes one task of a right schedule of three ranks; what verify must say stands beside it.
def without(task: Task, dependency: int) -> Task:
    return replace(task, after=tuple(i for i in task.after if i != dependency))


def ps_skips_a_term(task: Task) -> Task | None:
    return replace(task, payload=None) if isinstance(task, Merge) and task.payload is not None else None


def forgets_to_wait_for_its_payload(task: Task) -> Task | None:
    return without(task, task.payload) if isinstance(task, Decode) else None


def merges_in_any_order(task: Task) -> Task | None:
    return (
        replace(task, after=(task.payload,)) if isinstance(task, Merge) and task.payload is not None else None
    )


def encodes_too_early(task: Task) -> Task | None:
    return replace(task, after=()) if isinstance(task, Encode) and task.of_sum else None


def scales_at_the_first_hop(task: Task) -> Task | None:
    return replace(task, final=True) if isinstance(task, Encode) and not task.final else None


def never_scales(task: Task) -> Task | None:
    return replace(task, final=False) if isinstance(task, Encode) and task.final else None


def sends_to_another(task: Task) -> Task | None:
    return replace(task, peer=(task.peer + 1) % 3) if isinstance(task, Send) else None


def takes_a_wrong_message(task: Task) -> Task | None:
    return replace(task, message=task.message + 7) if isinstance(task, Recv) else None


def hop_drops_what_arrived(task: Task) -> Task | None:
    return replace(task, received=None, after=()) if isinstance(task, Encode) and task.received else None


def waits_for_itself(task: Task) -> Task | None:
    return replace(task, after=(*task.after, task.id)) if isinstance(task, Send) else None


def waits_for_nothing_known(task: Task) -> Task | None:
    return replace(task, after=(*task.after, 99)) if isinstance(task, Send) else None


def reads_what_is_no_payload(task: Task) -> Task | None:
    return replace(task, payload=task.id, after=(task.id,)) if isinstance(task, Decode) else None


def merges_its_own_exactly(task: Task) -> Task | None:
    """Each rank its own, where all must have the same payloads."""
    return replace(task, payload=None, after=task.after[1:]) if isinstance(task, Merge) else None


def takes_the_sum_too_early(task: Task) -> Task | None:
    return replace(task, after=()) if isinstance(task, Decode) and task.payload is None else None


def takes_plain_for_encoded(task: Task) -> Task | None:
    return replace(task, exact=not task.exact) if isinstance(task, Recv) else None


def takes_a_sum_s_payload_for_a_term(task: Task) -> Task | None:
    return replace(task, down=not task.down) if isinstance(task, Recv) else None


def uses_the_residual_twice(task: Task) -> Task | None:
    return replace(task, residual=True) if isinstance(task, Merge) and not task.residual else None


def decodes_one_term(task: Task) -> Task | None:
    return replace(task, direct=False) if isinstance(task, Merge) else None


def adds_one_term_undecoded(task: Task) -> Task | None:
    return replace(task, direct=True) if isinstance(task, Merge) and task.payload is not None else None


def encodes_what_is_no_gradient(task: Task) -> Task | None:
    return replace(task, direct=not task.direct) if isinstance(task, Encode) and task.of_sum else None


MUTATIONS: list[tuple[str, Callable[[Task], Task | None], str]] = [
    ("ps", ps_skips_a_term, "ends as the sum of ranks"),
    ("ps", forgets_to_wait_for_its_payload, "without waiting for it"),
    ("ring", forgets_to_wait_for_its_payload, "without waiting for it"),
    ("ps", merges_in_any_order, "the order is luck"),
    ("ps", encodes_too_early, "without waiting for all merges"),
    ("ps", scales_at_the_first_hop, "is scaled 2 times"),
    ("ring", scales_at_the_first_hop, "is scaled 2 times"),
    ("ring", never_scales, "is scaled 0 times"),
    ("ps", sends_to_another, "is sent 0 and awaited 1 times"),
    ("ring", takes_a_wrong_message, "is sent 1 and awaited 0 times"),
    ("ring", hop_drops_what_arrived, "ends as the sum of ranks"),
    ("ring", waits_for_itself, "the dependencies have a cycle"),
    ("ps", waits_for_nothing_known, r"it comes after \[99\], which do not exist"),
    ("ring", reads_what_is_no_payload, "makes no payload"),
    ("allgather", merges_its_own_exactly, "ends in different payloads|ends as the sum of ranks"),
    ("allgather", takes_the_sum_too_early, "reads the sum without waiting for all merges"),
    ("allgather", ps_skips_a_term, "ends in different payloads|ends as the sum of ranks"),
    ("allgather", adds_one_term_undecoded, "own values"),
    (
        "hierarchical",
        takes_plain_for_encoded,
        "payloads of different codecs are taken for each other",
    ),
    ("ps", takes_a_sum_s_payload_for_a_term, "payloads of different codecs are taken for each other"),
    ("hierarchical", uses_the_residual_twice, "noise or residual repeats"),
    ("hierarchical", encodes_too_early, "without waiting for all merges"),
    ("direct", decodes_one_term, "own values and decoded ones are"),
    ("direct", encodes_what_is_no_gradient, "own values and decoded ones are taken for each other"),
    ("direct", scales_at_the_first_hop, "is scaled 2 times"),
]


def mixes_two_sums(task: Task) -> Task | None:
    """The owner's first merge no longer waits for the encode that took the sum of its node."""
    first = isinstance(task, Merge) and task.payload is not None and len(task.after) > 1
    return replace(task, after=(task.payload,)) if first else None  # type: ignore[union-attr]


THROUGH: list[tuple[str, Callable[[Task], Task | None], str]] = [
    ("ps", ps_skips_a_term, "nobody reads its payload"),
    ("ps", encodes_too_early, "without waiting for all merges"),
    ("hierarchical", encodes_too_early, "without waiting for all merges|the order is luck"),
    ("hierarchical", mixes_two_sums, "the order is luck"),
]


@pytest.mark.parametrize(("name", "mutate", "told"), MUTATIONS, ids=lambda v: getattr(v, "__name__", None))
def test_a_broken_schedule_is_caught(name: str, mutate: Callable[[Task], Task | None], told: str) -> None:
    check_caught(drawn(name, 3, 3), mutate, told)


@pytest.mark.parametrize(("name", "mutate", "told"), THROUGH, ids=lambda v: getattr(v, "__name__", None))
def test_a_broken_schedule_whose_owner_encodes_its_own_is_caught(
    name: str, mutate: Callable[[Task], Task | None], told: str
) -> None:
    check_caught(drawn(name, 3, 3, through=range(3)), mutate, told)


def check_caught(schedule: Schedule, mutate: Callable[[Task], Task | None], told: str) -> None:
    broken = 0
    for rank, tasks in enumerate(schedule):
        for place, task in enumerate(tasks):
            wrong = mutate(task)
            if wrong is None or wrong == task:
                continue
            mutated = list(schedule)
            mutated[rank] = (*tasks[:place], wrong, *tasks[place + 1 :])
            with pytest.raises(ScheduleError, match=told):
                verify(tuple(mutated), 3)
            broken += 1
    assert broken >= 3


def test_a_decode_that_may_overwrite_an_unread_gradient_is_caught() -> None:
    """A worker that decodes without its own encode being needed for the result."""
    schedule = (
        (Encode(0, 0, (), Role.HOP, final=True), Send(1, 0, (0,), 0, 1, 0), Decode(2, 0, (0,), 0)),
        (
            Encode(0, 0, (), Role.HOP),
            Recv(1, 0, (), 0, 0),
            Decode(2, 0, (1,), 1),
        ),
    )
    with pytest.raises(ScheduleError, match="may overwrite what task 0 has still to read"):
        verify(schedule, 1)


def test_ranks_that_end_with_different_payloads_are_caught() -> None:
    def alone(rank: int) -> tuple[Task, ...]:
        return (
            Encode(0, 0, (), Role.HOP),
            Send(1, 0, (0,), 0, 1 - rank, 0),
            Recv(2, 0, (), 1 - rank, 0),
            Encode(3, 0, (2,), Role.HOP, hop=1, received=2, final=True),
            Decode(4, 0, (3,), 3),
        )

    with pytest.raises(ScheduleError, match="ends in different payloads"):
        verify((alone(0), alone(1)), 1)
