"""The least bytes that an operation moves, and the numbers that it draws, follow from its program."""

from __future__ import annotations

from typing import Any

import pytest
from compll_cases import write

from compll import driver
from compll.passes import fuse
from compll.tools import bench, bound, timing

N = 2**20
CACHED, UNCACHED = 2**40, 0  # a last-level cache that holds everything, and one that holds nothing


def least(source: Any, op: str, cache: int, counts: int = 0, **params: Any) -> bound.Traffic:
    program = driver.load(driver.find(source), params)
    (f,) = (fuse(f) for f in driver.unit_of(program.checked).functions if f.op == op)
    sizes = {c.name: counts for c in f.counts}
    return bound.traffic(f, N, program.checked.values, sizes, cache)


@pytest.mark.parametrize(
    ("name", "op", "cache", "read", "written"),
    [  # bytes an element
        ("onebit", "encode", CACHED, 8, 4 + 1 / 8),
        ("onebit", "encode", UNCACHED, 16, 4 + 1 / 8),  # the means first, then the residual
        ("onebit", "decode", UNCACHED, 1 / 8, 4),
        ("onebit", "decode_add", UNCACHED, 4 + 1 / 8, 4),
        ("onebit", "hop", UNCACHED, 16 + 2 / 8, 4 + 1 / 8),
        ("terngrad", "encode", CACHED, 4, 1 / 4),
        ("terngrad", "encode", UNCACHED, 8, 1 / 4),
        ("int8", "encode", UNCACHED, 4, 1 + 4 / 256),  # a block's statistic waits for its block alone
        ("int8", "decode_add", UNCACHED, 5 + 4 / 256, 4),
        ("tbq", "encode", UNCACHED, 8, 4 + 1 / 4),
        ("sidco", "encode", UNCACHED, 12, 0),  # two means, one after the other, and the selection
        ("graddrop", "encode", CACHED, 8, 4),
        ("threshold", "encode", UNCACHED, 8, 4),  # what is selected is known as it is read
        ("topk", "decode", UNCACHED, 8 / 100, 4),
    ],
)
def test_bytes_of_shipped_codecs(name: str, op: str, cache: int, read: float, written: float) -> None:
    found = least(name, op, cache)
    assert found.read == pytest.approx(read * N, rel=1e-3)
    assert found.written == pytest.approx(written * N, abs=1e-3 * N)
    assert found.moved == found.read + found.written


def test_a_selection_writes_what_it_found_and_a_scattered_sum_moves_lines_of_the_cache() -> None:
    none, some = (least("sidco", "encode", CACHED, counts) for counts in (0, 1000))
    assert some.written - none.written == 8 * 1000
    added = least("sidco", "decode_add", CACHED, 1000)
    assert (added.read, added.written) == (1000 * (8 + bound.LINE), 1000 * bound.LINE)


@pytest.mark.parametrize(
    ("name", "op", "words", "halves"),
    [
        ("terngrad", "encode", 0, 1),
        ("terngrad", "decode", 0, 0),
        ("randomk", "decode", 0.01, 0),
        ("int8", "encode", 0, 0),
    ],
)
def test_numbers_drawn(name: str, op: str, words: float, halves: float) -> None:
    found = least(name, op, CACHED)
    assert (found.words, found.halves) == pytest.approx((words * N, halves * N), rel=1e-3)


def test_a_site_counts_once_and_two_sites_twice() -> None:
    text = """
    void RollEncode(float* g, uint8* c) {{
        float* a = map(range(g.size), [&](int i) -> float {{ return random<float>(0, 1); }});
        float* b = {};
        float top = reduce(a, 0, greater);
        float* d = a * top + b;
        c = concat(d);
    }}
    void RollDecode(uint8* c, float* g) {{ float* d; extract(c, d); g = d; }}
    """
    again = "map(range(g.size), [&](int i) -> float { return random<float>(0, 1); })"
    assert least(write(text.format("a + g")), "encode", CACHED).words == N  # in two passes
    assert least(write(text.format(again)), "encode", CACHED).words == 2 * N


def test_rounds_call_in_turns_and_pair_what_was_called_in_one() -> None:
    order: list[str] = []
    taken = timing.rounds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, 0, least=3)
    assert [len(taken.seconds[name]) for name in "ab"] == [3, 3]
    last = "".join(order).rstrip("b").rstrip("a")
    assert last.endswith("b"), "the functions were not called in turns"
    pairs = timing.Rounds({"a": [1, 10, 4], "b": [2, 5, 4]})
    assert (pairs.median("a"), pairs.ratio("a", "b")) == (4, 1)
    assert pairs.with_least("c", "a", "b").seconds["c"] == [1, 5, 4]


def test_a_measurement_is_what_its_rounds_say() -> None:
    made = bench.make("terngrad", "cpp")
    ((row, taken),) = bench.measure(made, 2**14, 1, ["encode"], 0)
    assert row.seconds == taken.median("kernel")
    assert row.gigabytes == pytest.approx(4e-9 * 2**14 / row.seconds)
    assert row.payload_bytes == made.codec.max_bytes(2**14)
    assert row.drawn == 2**14
    memory = row.moved / (8 * 2**14)
    limits = [
        max(memory * copy, draw) / kernel
        for copy, draw, kernel in zip(*(taken.seconds[k] for k in ("copy", "halves", "kernel")), strict=True)
    ]
    assert row.of_bound == pytest.approx(sorted(limits)[len(limits) // 2])
    assert row.bound_seconds == pytest.approx(row.of_bound * row.seconds)


def test_a_measurement_says_what_takes_its_time() -> None:
    seconds = {"kernel": [8.0], "near": [1.5], "call": [0.5], "fill": [4.0]}
    least = bound.Traffic(read=2**17, written=2**20, words=0, halves=0)
    causes = bench.causes(timing.Rounds(seconds), 2**19, 2, least)
    assert causes == {"call": 0.5, "arithmetic": (1.5 - 0.5) * 8 / 2, "writing": 4.0 / 2}
    assert bench.greatest(causes, 8.0) == "arithmetic"
    assert bench.greatest(causes, 8.1) == "memory"
    made = bench.make("onebit", "cpp")
    for row, taken in bench.measure(made, 2**14, 1, ["encode", "decode"], 0):
        assert ("fill" in taken.seconds) == (row.operation == "decode") == (row.writing > 0)


@pytest.mark.parametrize(("text", "n"), [("2^20", 2**20), ("1000", 1000), ("1e6", 10**6)])
def test_sizes_are_read_as_people_write_them(text: str, n: int) -> None:
    assert bench.size(text) == n
