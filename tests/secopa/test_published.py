"""The published model is reproduced exactly: constants, formulas, and the plan that was shipped."""

import itertools

import pytest

from secopa import cost
from secopa.inputs import Gradient, SecopaError
from secopa.planner import decide, plan

# VGG19 from its architecture: 3x3 convolutions by channels, then three dense layers on 7 x 7 x 512.
CHANNELS = [3, 64, 64, 128, 128, *[256] * 4, *[512] * 8]
CONVOLUTIONS = [9 * a * b for a, b in itertools.pairwise(CHANNELS)]
DENSE = [7 * 7 * 512 * 4096, 4096 * 4096, 4096 * 1000]
BIASES = [*CHANNELS[1:], 4096, 4096, 1000]
VGG19 = [
    *(Gradient(f"conv{i}", n) for i, n in enumerate(CONVOLUTIONS)),
    *(Gradient(f"dense{i}", n) for i, n in enumerate(DENSE)),
    *(Gradient(f"bias{i}", n) for i, n in enumerate(BIASES)),
]


def test_the_sizes_are_those_of_vgg19():
    assert len(VGG19) == 38
    assert sum(g.elements for g in VGG19) * 4 / 2**20 == pytest.approx(548.05, abs=0.01)
    assert CONVOLUTIONS[8] == 1_179_648
    assert max(g.elements for g in VGG19) == DENSE[0] == 102_760_448


def test_the_shipped_vgg19_plan_is_reproduced():
    rows = {d.gradient.name: (d.pays, d.chosen.partitions) for d in plan(VGG19, cost.published("PS", 4))}
    for gradient in VGG19:
        if gradient.elements <= 589_824:
            assert rows[gradient.name] == (False, 4), gradient
        elif gradient.elements == 1_179_648:
            assert rows[gradient.name] == (True, 2), gradient
        else:
            assert rows[gradient.name] == (True, 4), gradient
    assert rows["conv8"] == (True, 2)
    assert rows["dense0"] == (True, 4)


# Each case is worked out from the constants alone, term by term, with x the elements of a partition.
HAND_MADE = [
    # PS, N=4, K=2, 1,179,648 elements: x = 589,824, payload counts as x/16 = 36,864.
    (
        ("PS", 4, 2, 1_179_648),
        (2.7156e-6 * 589_824 + 0.41930) + (2.7157e-6 * 589_824 + 0.22156),
        (2.7156e-6 * 36_864 + 0.41930)
        + (2.7157e-6 * 36_864 + 0.22156)
        + 3 * (1.4133e-8 * 589_824 + 5.8938e-2)
        + 5 * (6.2041e-9 * 36_864 + 1.3956e-1),
    ),
    # PS, N=8, K=8, 320,000 elements: x = 40,000; the payload's broadcast of 2,500 lies on the floor.
    (
        ("PS", 8, 8, 320_000),
        (6.1167e-6 * 40_000 + 0.80768) + (6.1172e-6 * 40_000 + 0.27285),
        (6.1167e-6 * 2_500 + 0.80768)
        + 0.29666
        + 8 * (1.4133e-8 * 40_000 + 5.8938e-2)
        + 14 * (6.2041e-9 * 2_500 + 1.3956e-1),
    ),
    # PS, N=16, K=1, 9,000 elements: even the plain broadcast lies on the floor.
    (
        ("PS", 16, 1, 9_000),
        (1.2937e-5 * 9_000 + 1.4406) + 0.58353,
        (1.2937e-5 * 562.5 + 1.4406)
        + 0.58353
        + 2 * (1.4133e-8 * 9_000 + 5.8938e-2)
        + 16 * (6.2041e-9 * 562.5 + 1.3956e-1),
    ),
    # Ring, N=4, K=4, 16,777,216 elements: x = 4,194,304.
    (
        ("RING", 4, 4, 16_777_216),
        6 * (8.5005e-7 * 4_194_304 + 0.20337),
        6 * (8.5005e-7 * 262_144 + 0.20337)
        + 4 * (1.4133e-8 * 4_194_304 + 5.8938e-2)
        + 4 * (6.2041e-9 * 262_144 + 1.3956e-1),
    ),
    # Ring, N=16, K=5, 1,000 elements: partitions may be cut anywhere, x = 200.
    (
        ("RING", 16, 5, 1_000),
        30 * (8.5005e-7 * 200 + 0.20337),
        30 * (8.5005e-7 * 12.5 + 0.20337)
        + 16 * (1.4133e-8 * 200 + 5.8938e-2)
        + 16 * (6.2041e-9 * 12.5 + 1.3956e-1),
    ),
]


@pytest.mark.parametrize(("case", "plain", "compressed"), HAND_MADE)
def test_costs_equal_the_hand_made_sums(case, plain, compressed):
    topology, nnodes, partitions, elements = case
    model = cost.published(topology, nnodes)
    assert model.plain(elements, partitions) == pytest.approx(plain, rel=1e-12)
    assert model.compressed(elements, partitions) == pytest.approx(compressed, rel=1e-12)


def test_every_published_piecewise_cost_is_the_larger_of_floor_and_line():
    lines = [cost.ENCODE, cost.DECODE, cost.STEP, *cost.GATHER.values(), *cost.BROADCAST.values()]
    for line in lines:
        for x in (0.0, 100.0, 3_892.0, 9_900.0, 9_930.0, 1e6, 1e8):
            assert line(x) == max(line.overhead, line.w * x + line.b)


@pytest.mark.parametrize("nnodes", [4, 8, 16])
@pytest.mark.parametrize("topology", ["PS", "RING"])
def test_every_number_of_partitions_from_1_to_n_is_a_candidate(topology, nnodes):
    model = cost.published(topology, nnodes)
    assert list(model.plain_candidates()) == list(range(1, nnodes + 1))
    assert list(model.compressed_candidates(64)) == list(range(1, nnodes + 1))


def test_equal_costs_take_the_larger_number_of_partitions():
    floor = cost.Line(1e-9, 0.0, 1.0)
    free = cost.Line(1e-9, 0.0, 0.0)
    costs = cost.Costs(*[floor] * 6, merge=free, encode=free, decode=free, decode_add=free)
    model = cost.Model("test", "RING", 6, costs, unit=0, bucket=0)
    assert decide(Gradient("g", 1000), model).plain.partitions == 6


@pytest.mark.parametrize("nnodes", [-1, 0, 1, 2, 3, 5, 32])
def test_another_number_of_nodes_is_an_error_that_names_the_default_model(nnodes):
    with pytest.raises(SecopaError, match=r"4, 8 and 16 nodes only; .*--cost measured"):
        cost.published("PS", nnodes)
