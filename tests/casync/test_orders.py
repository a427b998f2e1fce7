"""No order of hooks, ready tasks or messages, and no delay, changes a bit of a result or of a residual."""

from __future__ import annotations

import random
from collections import deque
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from loopback_jobs import random_steps, run_job, same_bits, spec_of
from numpy_codecs import CODECS
from real_codecs import REAL, SPARSE, SUMMABLE

from casync import backlog
from casync.topologies import even_nodes

if TYPE_CHECKING:
    from loopback_jobs import Ran

SHAPES = {"conv": (90, 100), "bias": (10,), "dense": (7, 1000), "norm": (300,)}
RANKS, STEPS = 4, 3
PAIRS = (
    (REAL[0], "ps"),
    (REAL[0], "ring"),
    (REAL[1], "ps"),
    (REAL[2], "ring"),
    (REAL[2], "hierarchical"),
    (CODECS[2], "ps"),
    (SPARSE[0], "allgather"),
    (SPARSE[1], "ps"),
    (SUMMABLE[1], "direct"),
    (None, "ps"),
)
RUNS = 500


class Shuffled(deque[Any]):
    """Ready tasks, of which any may be taken next."""

    chance = random.Random(0)
    moves = 0

    def popleft(self) -> Any:
        by = self.chance.randrange(len(self))
        self.rotate(by)
        Shuffled.moves += by > 0
        return super().popleft()


def given() -> Any:
    return random_steps(np.random.default_rng(11), SHAPES, RANKS, STEPS)


@cache
def calm(pair: int) -> list[Ran]:
    codec, topology = PAIRS[pair]
    return run_job(spec_of(SHAPES, codec, topology, RANKS, nodes=even_nodes(RANKS, 2)), given())


def check(run: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """One run in an order of its own."""
    pair = run % len(PAIRS)
    expected = calm(pair)
    codec, topology = PAIRS[pair]
    monkeypatch.setattr(backlog, "deque", Shuffled)
    chance = random.Random(run)
    Shuffled.chance = random.Random(chance.random())

    def order(rank: int, step: int, names: list[str]) -> list[str]:
        return random.Random(f"{run} {rank} {step}").sample(names, len(names))

    ran = run_job(
        spec_of(SHAPES, codec, topology, RANKS, nodes=even_nodes(RANKS, 2)),
        given(),
        order=order,
        delay=chance.choice((0, 1e-4, 1e-3)),
        reorder=chance.random() < 0.8,
        seed=run,
    )
    monkeypatch.undo()
    for before, after in zip(expected, ran, strict=True):
        for one, other in zip(before.results, after.results, strict=True):
            assert all(same_bits(one[name], other[name]) for name in SHAPES), run
        assert same_state(before.state["feedback"], after.state["feedback"]), run


def same_state(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same_state(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same_state, one, other))
    return bool(np.array_equal(one, other))


@pytest.mark.parametrize("pair", range(len(PAIRS)))
def test_no_order_and_no_delay_changes_a_bit(pair: int, monkeypatch: pytest.MonkeyPatch) -> None:
    Shuffled.moves = 0
    for run in range(pair, RUNS, len(PAIRS)):
        check(run, monkeypatch)
    assert Shuffled.moves, "tasks were run in another order"
