"""The plan is the cheapest of all candidates, and keeps to the runtime's partitions."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from secopa_profiles import SIZES, elements, links, nodes, payload_bytes, profile_of, profiles, topologies

from casync.plan import cut
from secopa import cost
from secopa.inputs import Gradient, SecopaError
from secopa.planner import bucket_elements, decide, plan


def by_hand(topology, n, k, link, profile, elements, compressed):
    """The default model once more, in a straight line."""
    together = elements if compressed else max(elements, 2**18)
    x = min(together, 4096 * math.ceil(math.ceil(together / 4096) / k))

    def at(curve):
        ms = np.maximum.accumulate([ms for _, ms in curve.points])
        return ms[-1] * x / SIZES[-1] if x > SIZES[-1] else np.interp(x, SIZES, ms)

    nbytes = 32 + (payload_bytes(x) if compressed else 4 * x)
    total = 2 * (n - 1) * 1000 * (link.latency + nbytes * 8 / link.bandwidth)
    if not compressed:
        return elements / together * (total + (n - 1) * at(profile.merge))
    total += (n - 1) * at(profile.decode_add)
    if topology == "PS":
        return total + min(k + 1, n) * at(profile.encode) + min(k, n - 1) * at(profile.decode)
    return total + n * at(profile.encode) + at(profile.decode)


@given(topologies, nodes, links, profiles, elements)
def test_the_choice_is_the_argmin_over_all_candidates(topology, n, link, profile, size):
    decision = decide(Gradient("g", size), cost.measured(topology, n, link, profile, payload_bytes))
    most = min(n, -(-size // 4096))
    best = min(
        by_hand(topology, n, k, link, profile, size, compressed)
        for compressed in (False, True)
        for k in range(1, (most if compressed else n) + 1)
    )
    assert decision.chosen.ms == pytest.approx(best, rel=1e-9)
    at_choice = by_hand(topology, n, decision.chosen.partitions, link, profile, size, decision.pays)
    assert at_choice == pytest.approx(best, rel=1e-9)
    assert 1 <= decision.compressed.partitions <= most
    assert decision.plain.partitions == n, "more partitions never cost an uncompressed gradient anything"
    assert decision.pays == (decision.compressed.ms < decision.plain.ms)


@given(topologies, nodes, links, profiles, elements, st.floats(1, 1e4))
def test_what_pays_over_a_link_pays_over_a_slower_one(topology, n, link, profile, size, slower):
    """Holds where nothing pays over an endless link: then savings are a convex function of 1/bandwidth.

    (Kernels so fast that encoding beats plain merging would pay for themselves, whatever the link.)
    """

    def pays(bandwidth):
        model = cost.measured(topology, n, cost.Link(bandwidth, link.latency), profile, payload_bytes)
        return decide(Gradient("g", size), model)

    endless = pays(1e30)
    if endless.compressed.ms >= endless.plain.ms and pays(link.bandwidth).pays:
        decision = pays(link.bandwidth / slower)
        # Savings of a rounding error at the crossing may round away.
        assert decision.compressed.ms <= decision.plain.ms * (1 + 1e-12)


@given(elements, nodes)
def test_the_costed_partition_is_the_runtimes_largest(size, n):
    model = cost.measured("PS", n, cost.Link(1e9, 0), profile_of(*[(1, 1, 1)] * 4), payload_bytes)
    for k in model.compressed_candidates(size):
        parts = [stop - start for start, stop in cut(size, k)]
        assert len(parts) == k
        assert max(parts) <= model.size(size, k) < max(parts) + 4096


@given(topologies, st.lists(elements, min_size=1, max_size=5), links, profiles)
def test_one_node_compresses_nothing(topology, sizes, link, profile):
    model = cost.measured(topology, 1, link, profile, payload_bytes)
    for decision in plan([Gradient(str(i), size) for i, size in enumerate(sizes)], model):
        assert not decision.pays
        assert decision.plain.ms == 0
        assert decision.reason == "nothing is sent"


def test_a_slow_link_compresses_and_a_fast_one_does_not():
    profile = profile_of(*[(0.1, 0.3, 4.0)] * 4)
    slow, fast = (
        decide(
            Gradient("g", 1_000_000), cost.measured("RING", 4, cost.Link(bits, 1e-4), profile, payload_bytes)
        )
        for bits in (1e8, 1e12)
    )
    assert slow.pays
    assert "saves" in slow.reason
    assert not fast.pays
    assert "cost more than the bytes they save" in fast.reason


def test_latency_counts_for_each_message():
    profile = profile_of(*[(0, 0, 0)] * 4)
    for topology in ("PS", "RING"):
        near, far = (
            cost.measured(topology, 5, cost.Link(1e9, seconds), profile, payload_bytes).plain(300_000, 1)
            for seconds in (0.0, 1e-3)
        )
        assert far - near == pytest.approx(2 * 4 * 1.0)


def test_small_uncompressed_gradients_share_a_message():
    profile = profile_of(*[(0, 0, 0)] * 4)
    model = cost.measured("RING", 3, cost.Link(1e9, 1e-3), profile, payload_bytes, bucket=100_000)
    alone, shared = model.plain(100_000, 3), model.plain(1_000, 3)
    assert shared == pytest.approx(alone / 100)
    assert model.compressed(1_000, 1) > 4 * 1.0, "compressed, it pays for messages of its own"


def test_a_bucket_is_no_larger_than_the_model():
    assert bucket_elements([Gradient("a", 100), Gradient("b", 200)]) == 300
    assert bucket_elements([Gradient("a", 10**6)]) == 2**18


def test_the_order_of_gradients_is_kept_and_equal_sizes_decide_alike():
    gradients = [Gradient("b", 5_000), Gradient("a", 900_000), Gradient("c", 5_000)]
    model = cost.measured("PS", 3, cost.Link(1e8, 0), profile_of(*[(0.1, 0.2, 1.0)] * 4), payload_bytes)
    decisions = plan(gradients, model)
    assert [d.gradient for d in decisions] == gradients
    assert decisions[0].chosen == decisions[2].chosen


@pytest.mark.parametrize("nnodes", [0, -3])
def test_fewer_than_one_node_is_refused(nnodes):
    with pytest.raises(SecopaError, match=r"--nnodes .*1 node or more"):
        cost.measured("PS", nnodes, cost.Link(1e9, 0), profile_of(*[(1, 1, 1)] * 4), payload_bytes)
