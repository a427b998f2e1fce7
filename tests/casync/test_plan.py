"""Plans are read and written exactly, bad ones refused with line and remedy, layouts follow the rules."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casync.plan import (
    GRANULE,
    LARGE,
    PART,
    ROUNDS,
    Entry,
    Gradient,
    Partition,
    Plan,
    PlanError,
    cut,
    default_parts,
    layout,
    schedule,
)
from casync.verify import verify

if TYPE_CHECKING:
    from pathlib import Path

TEXT = """# SeCoPa
# topology: RING
# nnodes: 2
conv1.weight,n,1

fc1.weight,y,4
"""
GRADIENTS = (
    Gradient("conv1.weight", (8, 1, 3, 3)),
    Gradient("fc1.weight", (400, 100)),
    Gradient("none", (0,)),
)


def test_a_plan_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "plan.txt"
    path.write_text(TEXT)
    plan = Plan.load(path)
    assert plan.entries == (Entry("conv1.weight", False, 1), Entry("fc1.weight", True, 4))
    assert plan.conditions == {"topology": "RING", "nnodes": "2"}
    plan.check(GRADIENTS, "ring", 2)


names = st.text(st.characters(blacklist_categories=("C", "Z")), min_size=1).filter(lambda s: s[0] != "#")


@given(st.lists(st.tuples(names, st.booleans(), st.integers(1, 999)), unique_by=lambda e: e[0]))
def test_what_is_written_is_read_again(entries: list[tuple[str, bool, int]]) -> None:
    plan = Plan(tuple(Entry(*entry) for entry in entries), {"topology": "PS", "link": "100 mbit: measured"})
    again = Plan.parse(plan.text())
    assert (again.entries, again.conditions) == (plan.entries, plan.conditions)
    assert again.fingerprint == plan.fingerprint


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("fc1.weight", "`fc1.weight` is not a plan's line; write `name,y|n,partitions`"),
        ("fc1.weight,yes,4", "`yes` is neither y (compress) nor n"),
        ("fc1.weight,y,0", "`0` is not a number of partitions, 1 or more"),
        ("fc1.weight,y,-1", "`-1` is not a number of partitions"),
        ("fc1.weight,y,two", "`two` is not a number of partitions"),
        (",y,2", "`,y,2` is not a plan's line"),
        ("conv1.weight,y,2", "`conv1.weight` stands in line 1 already; keep one of the two"),
    ],
)
def test_a_bad_line_is_told_with_its_place_and_remedy(line: str, told: str) -> None:
    with pytest.raises(PlanError) as error:
        Plan.parse(f"conv1.weight,n,1\n{line}\nlast;bad\n", "my.txt")
    first, second = str(error.value).splitlines()
    assert first.startswith(f"my.txt:2: {told}")
    assert second.startswith("my.txt:3: ")


def test_a_file_that_is_not_there_is_told_with_the_command_that_writes_it(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match=r"none.txt: cannot be read: .*`secopa plan --output"):
        Plan.load(tmp_path / "none.txt")
    (tmp_path / "latin").write_bytes(b"\xff\xfe,y,1")
    with pytest.raises(PlanError, match="not UTF-8 text"):
        Plan.load(tmp_path / "latin")


@pytest.mark.parametrize(
    ("topology", "nranks", "told"),
    [
        ("ps", 2, "made for topology RING, but this run has topology PS"),
        ("ring", 3, "made for nnodes 2, but"),
    ],
)
def test_a_plan_for_another_run_says_how_to_plan_anew(topology: str, nranks: int, told: str) -> None:
    with pytest.raises(PlanError, match=told) as error:
        Plan.parse(TEXT).check(GRADIENTS, topology, nranks)
    assert f"secopa plan --input input.txt --topology {topology.upper()} --nnodes {nranks}" in str(
        error.value
    )


def test_a_plan_for_a_topology_that_is_not_planned_for_says_what_to_take_away() -> None:
    told = "RING, but this run has topology DIRECT; the planner knows PS and RING.*`# topology: RING` away"
    with pytest.raises(PlanError, match=told):
        Plan.parse(TEXT).check(GRADIENTS, "direct", 2)


def test_a_plan_for_other_gradients_names_them() -> None:
    gradients = [Gradient("conv1.weight", (9,)), *(Gradient(f"g{i}", (3,)) for i in range(6))]
    with pytest.raises(PlanError) as error:
        Plan.parse(TEXT).check(gradients, "ring", 2)
    assert (
        "no line for: g0, g1, g2, g3 and 2 more; lines for what the model does not have: fc1.weight"
        in str(error.value)
    )


def test_the_default_compresses_what_has_two_or_more_dimensions_in_parts_that_are_worth_a_task() -> None:
    shapes = {"w": (4, 4), "b": (4,), "s": (), "two": (2, PART), "most": (PART + 1, 1), "large": (9, PART)}
    plan = Plan.default([Gradient(name, shape) for name, shape in shapes.items()], 3)
    compressed, parts = zip(*((e.compressed, e.partitions) for e in plan.entries), strict=True)
    assert compressed == (True, False, False, True, True, True)
    assert parts == (1, 1, 1, 2, 2, 3)


def test_the_default_gives_each_rank_several_parts_of_a_large_gradient() -> None:
    each = 3 * LARGE
    assert [default_parts(n, 3) for n in (2 * each - 1, 2 * each, 4 * each, 99 * each)] == [3, 6, 12, 12]


@given(st.integers(1, 10**9), st.integers(1, 200))
def test_default_parts_are_equally_many_for_all_ranks_or_one_for_some(elements: int, nranks: int) -> None:
    parts = default_parts(elements, nranks)
    assert parts <= nranks or (parts % nranks == 0 and parts <= ROUNDS * nranks)
    assert parts <= nranks or elements // parts >= LARGE


@given(st.integers(1, 10**7), st.integers(1, 40))
def test_cuts_cover_the_vector_at_multiples_of_the_granule(elements: int, partitions: int) -> None:
    pieces = cut(elements, partitions)
    granules = -(-elements // GRANULE)
    assert len(pieces) == min(partitions, granules)
    assert pieces[0][0] == 0
    assert pieces[-1][1] == elements
    assert all(start < stop for start, stop in pieces)
    assert all(stop == start for (_, stop), (start, _) in pairwise(pieces))
    for j, (start, _) in enumerate(pieces):
        assert start == GRANULE * (j * granules // len(pieces))


def covered(partitions: tuple[Partition, ...]) -> dict[str, list[tuple[int, int]]]:
    found: dict[str, list[tuple[int, int]]] = {}
    for p in partitions:
        for s in p.segments:
            found.setdefault(s.gradient, []).append((s.start, s.stop))
    return found


@given(
    st.lists(st.tuples(st.integers(0, 400_000), st.booleans(), st.integers(1, 6)), min_size=1, max_size=12),
    st.sampled_from(["ps", "ring"]),
    st.integers(1, 5),
)
def test_a_layout_covers_every_gradient_once_and_its_schedule_is_right(
    entries: list[tuple[int, bool, int]], topology: str, nranks: int
) -> None:
    gradients = [Gradient(f"g{i}", (n,)) for i, (n, _, _) in enumerate(entries)]
    plan = Plan(tuple(Entry(f"g{i}", y, k) for i, (_, y, k) in enumerate(entries)))
    partitions = layout(plan, gradients, topology, nranks)
    found = covered(partitions)
    assert found.keys() == {g.name for g in gradients if g.elements}
    for g in gradients:
        if g.elements:
            spans = sorted(found[g.name])
            assert spans[0][0] == 0
            assert spans[-1][1] == g.elements
            assert all(a[1] == b[0] for a, b in pairwise(spans))
    for i, (n, compressed, k) in enumerate(entries):
        if n and compressed:
            assert len(found[f"g{i}"]) == len(cut(n, k))
    together = [p for p in partitions if p.compressed and len(p.segments) > 1]
    assert all(p.elements <= PART for p in together)
    assert all(len(found[s.gradient]) == 1 for p in together for s in p.segments)
    verify(schedule(partitions, topology, nranks), len(partitions))


def test_buckets_hold_at_most_a_mebibyte_in_parameter_order() -> None:
    gradients = [Gradient(f"g{i}", (100_000,)) for i in range(5)] + [Gradient("big", (300_000,))]
    plan = Plan(tuple(Entry(g.name, False, 1) for g in gradients))
    partitions = layout(plan, gradients, "ps", 2)
    assert [[s.gradient for s in p.segments] for p in partitions] == [
        ["g0", "g1"],
        ["g2", "g3"],
        ["g4"],
        ["big"],
    ]


def test_whole_compressed_gradients_of_one_codec_and_type_share_buckets() -> None:
    sizes = {
        "a": 100_000,
        "b": 100_000,
        "cut": 20_000,
        "c": 60_000,
        "half": 10,
        "d": 10,
        "e": 2,
        "big": 900_000,
    }
    gradients = [
        Gradient(name, (n,), "float16" if name == "half" else "float32") for name, n in sizes.items()
    ]
    plan = Plan(tuple(Entry(name, True, 2 if name == "cut" else 1) for name in sizes))
    codecs = dict.fromkeys(sizes, "onebit") | {"e": "int8"}
    found = [[s.gradient for s in p.segments] for p in layout(plan, gradients, "ps", 2, codecs=codecs)]
    assert sorted(found) == [["a", "b", "c", "d"], ["big"], ["cut"], ["cut"], ["e"], ["half"]]


@pytest.mark.parametrize(("topology", "owners"), [("ps", [0, 1, 2]), ("ring", [2, 0, 1])])
def test_a_lone_gradient_has_the_topology_s_owners(topology: str, owners: list[int]) -> None:
    plan = Plan((Entry("g", True, 3),))
    assert [p.owner for p in layout(plan, [Gradient("g", (9 * GRANULE,))], topology, 3)] == owners


def test_owners_are_balanced() -> None:
    gradients = [Gradient(f"g{i}", (100_000 * (1 + i % 7),)) for i in range(60)]
    plan = Plan(tuple(Entry(g.name, True, 1 + i % 5) for i, g in enumerate(gradients)))
    load = [0] * 4
    for p in layout(plan, gradients, "ps", 4):
        load[p.owner] += p.elements
    assert max(load) < 1.1 * sum(load) / 4
