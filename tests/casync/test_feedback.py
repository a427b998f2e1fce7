"""State is swapped whole or not at all, and goes where its elements are when sites or codecs change."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy_codecs import CODECS, OneBit

import compll
from casync.feedback import AVERAGE, SUM, Feedback, Held, Site, residual_of
from casync.handover import hand_over
from casync.plan import Segment
from casync.primitives import Role

ONEBIT, DGC = CODECS[0], compll.compile("dgc", backend="interp")
BOTH = compll.compile("dgc", backend="interp", error_feedback=True)


class Renamed(OneBit):
    """A residual of another name."""

    def new_state(self, n: int) -> dict[str, Any]:
        return {"error": np.zeros(n, np.float32)}


def keeper(*sites: Site, codec: Any = ONEBIT) -> Feedback:
    return Feedback(sites, lambda _: codec)


def worker(start: int, stop: int, unit: str = SUM) -> Site:
    return Site("g", start, stop, Role.WORKER, unit)


def held(offset: int, role: Role = Role.WORKER, unit: str = SUM, **values: Any) -> Held:
    vectors = {name: np.array(vector, np.float32) for name, vector in values.items()}
    return Held("g", offset, role, unit, vectors, "residual" if "residual" in vectors else None)


def taken(new: Feedback, *old: Held, size: int = 2) -> dict[str, list[float]]:
    """What is left to add to the next gradients."""
    return {name: rest.tolist() for name, rest in hand_over(old, new, {"g": 10}, size).items()}


def values(state: Feedback) -> list[dict[str, list[float]]]:
    return [{name: vector.tolist() for name, vector in site.values.items()} for site in state.held()]


A, B = Segment("g", 0, 0, 4), Segment("g", 1, 4, 10)
SITES = (worker(0, 4), worker(4, 10), Site("g", 0, 4, Role.OWNER, AVERAGE))


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


def test_only_codecs_with_state_have_sites() -> None:
    assert list(keeper(*SITES, codec=compll.compile("int8", backend="interp")).held()) == []


def test_the_residual_among_a_codec_s_vectors_is_known() -> None:
    assert residual_of(ONEBIT) == residual_of(BOTH) == "residual"
    assert residual_of(Renamed()) == "error"
    assert residual_of(DGC) is None
    assert residual_of(compll.compile("int8", backend="interp")) is None


# --- handing over ------------------------------------------------------------------------------------------


def test_what_stays_keeps_its_bits() -> None:
    odd = [1e-40, -0.0, 3.0, 1 / 3]
    state = keeper(*SITES)
    assert taken(state, held(0, Role.OWNER, AVERAGE, residual=odd)) == {}
    kept = state.current(A, Role.OWNER)["residual"]
    assert kept.tobytes() == np.array(odd, np.float32).tobytes()


def test_other_partitions_are_cut_from_the_old_ones() -> None:
    state = keeper(worker(0, 6), worker(6, 10))
    assert taken(state, held(0, residual=[0, 1, 2, 3]), held(4, residual=[4, 5, 6, 7, 8, 9])) == {}
    assert values(state) == [{"residual": [0, 1, 2, 3, 4, 5]}, {"residual": [6, 7, 8, 9]}]


def test_a_residual_without_a_place_is_left_for_the_next_gradient_as_part_of_a_sum() -> None:
    state = keeper(worker(0, 2))
    left = taken(state, held(0, residual=[1, 2, 3, 4]), held(2, Role.OWNER, AVERAGE, residual=[5, 6]))
    assert values(state) == [{"residual": [1, 2]}]
    assert left == {"g": [0, 0, 3 + 10, 4 + 12, 0, 0, 0, 0, 0, 0]}


def test_a_residual_of_an_average_becomes_one_of_a_sum_where_the_ring_now_ends_elsewhere() -> None:
    state = keeper(Site("g", 0, 4, Role.HOP, SUM))
    assert taken(state, held(0, Role.HOP, AVERAGE, residual=[1, 1, 1, 1]), size=4) == {}
    assert values(state) == [{"residual": [4, 4, 4, 4]}]


def test_a_residual_may_have_another_name_there() -> None:
    state = keeper(worker(0, 2), codec=Renamed())
    assert taken(state, held(0, residual=[1, 2])) == {}
    assert values(state) == [{"error": [1, 2]}]


def test_each_vector_of_a_name_that_is_there_stays_and_others_are_dropped() -> None:
    state = keeper(worker(0, 2), codec=BOTH)
    assert taken(state, held(0, u=[1, 2], w=[3, 4], residual=[5, 6])) == {}
    assert values(state) == [{"u": [1, 2], "v": [0, 0], "residual": [5, 6]}]


def test_of_several_vectors_the_residual_alone_is_left() -> None:
    state = keeper(worker(0, 2), codec=DGC)
    assert taken(state, held(0, u=[1, 2], v=[3, 4], residual=[5, 6])) == {"g": [5, 6, *[0] * 8]}
    assert values(state) == [{"u": [1, 2], "v": [3, 4]}]
