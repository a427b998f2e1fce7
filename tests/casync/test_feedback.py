"""State is swapped whole or not at all, is saved with its unit, and survives another plan."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from casync.feedback import AVERAGE, SUM, Feedback, Site, StateError
from casync.plan import Segment
from casync.primitives import Role


def zeros(_: str, n: int) -> dict[str, Any]:
    return {"residual": np.zeros(n, np.float32)}


def keeper(*sites: Site, topology: str = "ps", size: int = 2) -> Feedback:
    return Feedback(sites, zeros, topology, size)


A, B = Segment("g", 0, 0, 4), Segment("g", 1, 4, 10)
SITES = (
    Site("g", 0, 4, Role.WORKER, SUM),
    Site("g", 4, 10, Role.WORKER, SUM),
    Site("g", 0, 4, Role.OWNER, AVERAGE),
)


def test_what_was_written_is_taken_at_once_and_the_rest_stays() -> None:
    state = keeper(*SITES)
    state.following(A, Role.WORKER)["residual"][:] = 1
    assert not state.current(A, Role.WORKER)["residual"].any()
    state.commit()
    state.following(B, Role.WORKER)["residual"][:] = 2
    state.commit()
    assert state.current(A, Role.WORKER)["residual"].tolist() == [1] * 4
    assert state.current(B, Role.WORKER)["residual"].tolist() == [2] * 6


def test_a_dropped_step_leaves_all_as_it_was() -> None:
    state = keeper(*SITES)
    state.following(A, Role.OWNER)["residual"][:] = 1
    state.drop()
    state.commit()
    assert not state.current(A, Role.OWNER)["residual"].any()


def test_a_saved_state_is_loaded_bit_for_bit_and_is_a_copy() -> None:
    state, other = keeper(*SITES), keeper(*SITES)
    values = np.array([1e-40, -0.0, 3, 4], np.float32)
    state.following(A, Role.OWNER)["residual"][:] = values
    state.commit()
    saved = state.state_dict()
    state.current(A, Role.OWNER)["residual"][:] = 9
    other.load_state_dict(saved)
    assert other.current(A, Role.OWNER)["residual"].tobytes() == values.tobytes()
    entry = next(e for e in saved["entries"] if e["role"] == "OWNER")
    assert (entry["gradient"], entry["offset"], entry["unit"], saved["size"]) == ("g", 0, AVERAGE, 2)


def test_another_plan_s_partitions_are_cut_from_the_saved_ones() -> None:
    state = keeper(*SITES)
    for segment in (A, B):
        state.following(segment, Role.WORKER)["residual"][:] = np.arange(segment.start, segment.stop)
    state.commit()
    other = keeper(Site("g", 0, 6, Role.WORKER, SUM), Site("g", 6, 10, Role.WORKER, SUM))
    other.load_state_dict(state.state_dict())
    assert other.current(Segment("g", 0, 0, 6), Role.WORKER)["residual"].tolist() == [0, 1, 2, 3, 4, 5]
    assert other.current(Segment("g", 1, 6, 10), Role.WORKER)["residual"].tolist() == [6, 7, 8, 9]


def test_a_residual_of_an_average_becomes_one_of_a_sum_where_the_ring_now_ends_elsewhere() -> None:
    state = keeper(Site("g", 0, 4, Role.HOP, AVERAGE), topology="ring", size=4)
    state.following(A, Role.HOP)["residual"][:] = 1
    state.commit()
    other = keeper(Site("g", 0, 4, Role.HOP, SUM), topology="ring", size=4)
    other.load_state_dict(state.state_dict())
    assert other.current(A, Role.HOP)["residual"].tolist() == [4] * 4


def test_a_state_of_another_run_is_refused_and_nothing_changes() -> None:
    state = keeper(*SITES)
    state.following(A, Role.WORKER)["residual"][:] = 1
    state.commit()
    saved = state.state_dict()
    for changed, told in (
        (
            {"topology": "ring"},
            "saved with topology ring, this run has topology ps; resume with topology ring",
        ),
        ({"size": 3}, "saved with size 3, this run has size 2"),
        ({"entries": saved["entries"][:1]}, "is not among what this rank saved"),
    ):
        with pytest.raises(StateError, match=told):
            state.load_state_dict(saved | changed)
    assert state.current(A, Role.WORKER)["residual"].tolist() == [1] * 4
