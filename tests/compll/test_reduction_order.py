"""The one order of reduction, on every backend, against a loop written from the language's text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from compll_cases import both, compiled

TILE, LANES, ROWS = 1024, 128, 8
SIZES = (0, 1, 2, 3, 127, 128, 129, 255, 1000, 1023, 1024, 1025, 5000, 131071, 131073)
f32 = np.float32


def tile_value(tile: Sequence[Any], f: Callable[[Any, Any], Any]) -> Any:
    """Rows in order in each lane, then lanes by halves; absent elements and lanes are skipped."""
    lanes = list(tile[:LANES])
    for row in range(1, ROWS):
        for lane, x in enumerate(tile[row * LANES : (row + 1) * LANES]):
            lanes[lane] = f(lanes[lane], x)
    width = LANES // 2
    while width:
        for lane in range(min(width, len(lanes) - width)):
            lanes[lane] = f(lanes[lane], lanes[lane + width])
        width //= 2
    return lanes[0]


def tree(values: Sequence[Any], f: Callable[[Any, Any], Any]) -> Any:
    while len(values) > 1:
        values = [tile_value(values[at : at + TILE], f) for at in range(0, len(values), TILE)]
    return values[0]


def odd(a: Any, b: Any) -> Any:
    """Neither associative nor commutative."""
    return f32(f32(a * f32(0.75)) - f32(b * f32(0.5)))


def odd_integer(a: int, b: int) -> int:
    return (a * 3 - b * 7 + 2**63) % 2**64 - 2**63


PROGRAM = """
void OrderEncode(float* gradient, uint8* compressed) {
    lambda_func odd = [&](float a, float b) -> float { return a * 0.75 - b * 0.5; }
    lambda_func odd_integer = [&](int a, int b) -> int { return a * 3 - b * 7; }
    int32* whole = round(gradient * 1000);
    float sum = reduce(gradient, add);
    float from = reduce(gradient, 0.25, add);
    float odd_sum = reduce(gradient, 9, odd);
    int odd_whole = reduce(whole, 2.75, odd_integer);
    int count = reduce(gradient > 0, add);
    float least = reduce(gradient, smaller);
    int most = reduce(whole, greater);
    compressed = concat(sum, from, odd_sum, odd_whole, count, least, most);
}
void OrderDecode(uint8* compressed, float* gradient) {
    float sum; float from; float odd_sum; int odd_whole; int count; float least; int most;
    extract(compressed, sum, from, odd_sum, odd_whole, count, least, most);
    gradient = map(range(gradient.size), [&](int i) -> float { return sum; });
}
"""
FIELDS = np.dtype(
    {
        "names": ["sum", "start", "odd", "odd_whole", "count", "least", "most"],
        "formats": ["f4", "f4", "f4", "i8", "i8", "f4", "i8"],
        "offsets": [0, 4, 8, 16, 24, 32, 40],
    }
)


def add(a: Any, b: Any) -> Any:
    return f32(a + b)


def expected(g: np.ndarray) -> tuple[Any, ...]:
    if not len(g):
        return f32(0), f32(0.25), f32(9), 2, 0, f32(np.inf), -(2**63)
    whole = np.rint(g * f32(1000)).astype(int).tolist()
    values = list(g)
    return (
        add(f32(0), tree(values, add)),
        add(f32(0.25), tree(values, add)),
        odd(f32(9), tree(values, odd)),
        odd_integer(2, tree(whole, odd_integer)),
        int((g > 0).sum()),
        g.min(),
        max(whole),
    )


@pytest.mark.parametrize("n", SIZES)
def test_every_backend_reduces_in_the_one_order(n: int) -> None:
    g = np.random.default_rng(n).standard_normal(n).astype(f32)
    want = expected(g)
    for codec in both(PROGRAM):
        got = codec.encode(g).view(FIELDS)[0]
        assert tuple(got.tolist()) == tuple(x.item() if isinstance(x, f32) else x for x in want), codec


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_the_order_holds_beyond_a_million_elements_at_every_thread_count(threads: int) -> None:
    g = np.random.default_rng(0).standard_normal(2**20 + 777).astype(f32)
    interp = compiled(PROGRAM, "interp").encode(g)
    assert compiled(PROGRAM, "cpp").encode(g, threads=threads).tobytes() == interp.tobytes()
    tiles = [g[at : at + TILE] for at in range(0, len(g), TILE)]
    lanes = np.array([tile_value(list(t), add) for t in tiles])
    assert interp.view(FIELDS)[0]["sum"] == tree(list(lanes), add)


def test_a_sum_that_depends_on_order_is_not_the_left_to_right_one() -> None:
    g = np.random.default_rng(3).standard_normal(4096).astype(f32)
    plain = f32(0)
    for x in g:
        plain = f32(plain + x)
    assert tree(list(g), add) != plain  # or the tests above could not tell orders apart


FIRST = """
void FirstEncode(float* gradient, uint8* compressed) {
    float first = reduce(gradient, -1, [&](float a, float b) -> float { return b; });
    float last = reduce(gradient, -1, [&](float a, float b) -> float { return a; });
    compressed = concat(first, last);
}
void FirstDecode(uint8* compressed, float* gradient) {
    float first; float last; extract(compressed, first, last);
    gradient = map(range(gradient.size), [&](int i) -> float { return first; });
}
"""


@pytest.mark.parametrize("n", [0, 1, 2, 100, 128, 129, 1000, 1025])
def test_a_function_that_keeps_one_side_shows_the_walk(n: int) -> None:
    g = np.arange(n, dtype=f32)
    for codec in both(FIRST):
        first, last = codec.encode(g).view(f32)
        assert first == (tree(list(g), lambda _, b: b) if n else -1)
        assert last == -1  # init enters first, once


NARROW = """
void NarrowEncode(float* gradient, uint8* compressed) {
    int8* small = gradient;
    int total = reduce(small, add);
    int product = reduce(small, 1, [&](int a, int b) -> int { return a * b + 1; });
    int clipped = reduce(small, 300, [&](int8 a, int8 b) -> int8 { return a + b; });
    uint32* big = cast<uint32>(gradient);
    uint32 wrapped = reduce(big, add);
    uint32 low = reduce(big, smaller);
    bool* up = gradient > 0;
    bool all = reduce(up, 1, [&](int a, int b) -> int { return a & b; });
    compressed = concat(total, product, clipped, wrapped, low, all);
}
void NarrowDecode(uint8* compressed, float* gradient) {
    int total; int product; int clipped; uint32 wrapped; uint32 low; bool all;
    extract(compressed, total, product, clipped, wrapped, low, all);
    gradient = map(range(gradient.size), [&](int i) -> float { return total; });
}
"""


@pytest.mark.parametrize("n", [0, 1, 129, 1025, 3000])
def test_integer_reductions_are_64_bits_wide_and_wrap(n: int) -> None:
    g = (np.arange(n) * 37 % 251 - 100).astype(f32)
    small = [max(-128, min(127, int(x))) for x in g]
    big = [max(0, int(x)) for x in g]

    def clip(a: int, b: int) -> int:
        return max(-128, min(127, max(-128, min(127, a)) + max(-128, min(127, b))))

    def product(a: int, b: int) -> int:
        return (a * b + 1 + 2**63) % 2**64 - 2**63

    for codec in both(NARROW):
        total, prod, clipped = (int(x) for x in codec.encode(g)[:24].view(np.int64))
        wrapped, low = (int(x) for x in codec.encode(g)[24:32].view(np.uint32))
        assert total == sum(small)
        assert prod == (product(1, tree(small, product)) if n else 1)
        assert clipped == (clip(127, tree(small, clip)) if n else 127)
        assert wrapped == sum(big) % 2**32
        assert low == min(big, default=2**32 - 1)
        assert bool(codec.encode(g)[32]) == all(x > 0 for x in g)


TRUTH = """
void TruthEncode(float* gradient, uint8* compressed) {
    bool all = reduce(gradient > 0, true, [&](bool a, bool b) -> bool { return a && b; });
    bool some = reduce(gradient, 0, [&](bool a, bool b) -> bool { return a || b; });
    int odd = reduce(gradient > 0, 0, [&](bool a, bool b) -> bool { return a != b; });
    compressed = concat(all, some, odd);
}
void TruthDecode(uint8* compressed, float* gradient) {
    bool all, some; int odd; extract(compressed, all, some, odd);
    gradient = map(range(gradient.size), [&](int i) -> float { return odd; });
}
"""


@pytest.mark.parametrize("n", [0, 1, 2, 129, 1025, 3000])
def test_truth_is_reduced(n: int) -> None:
    for g in (np.ones(n, f32), np.zeros(n, f32), np.arange(n, dtype=f32) - 2):
        for codec in both(TRUTH):
            payload = codec.encode(g)
            assert payload[:2].tolist() == [(g > 0).all(), (g != 0).any()]
            assert int(payload[8:].view(np.int64)[0]) == np.count_nonzero(g > 0) % 2


def test_nan_and_zeros_of_both_signs_take_the_literal_minimum_and_maximum() -> None:
    def greater(a: Any, b: Any) -> Any:
        return a if a > b or a != a else b

    text = """
    void EdgeEncode(float* gradient, uint8* compressed) {
        float top = reduce(gradient, greater);
        float low = reduce(gradient, 0, smaller);
        compressed = concat(top, low);
    }
    void EdgeDecode(uint8* compressed, float* gradient) {
        float top; float low; extract(compressed, top, low);
        gradient = map(range(gradient.size), [&](int i) -> float { return top; });
    }
    """
    rng = np.random.default_rng(0)
    for trial in range(40):
        g = rng.choice(np.array([0.0, -0.0, np.nan, -1, np.inf], f32), int(rng.integers(1, 400)))
        want = greater(f32(-np.inf), tree(list(g), greater))
        for codec in both(text):
            got = codec.encode(g).view(f32)[0]
            assert (np.isnan(got) and np.isnan(want)) or got.tobytes() == f32(want).tobytes(), trial


READING = """
void ReadingEncode(float* gradient, uint8* compressed) {
    float* table = {1, 10, 100};
    float mean = reduce(gradient, add) / gradient.size;
    float most = reduce(gradient, 0, [&](float a, float b) -> float {
        return max(a, b) + table[int(a < b)] + gradient[3] * mean;
    });
    compressed = concat(most);
}
void ReadingDecode(uint8* compressed, float* gradient) {
    float most; extract(compressed, most);
    gradient = map(range(gradient.size), [&](int i) -> float { return most; });
}
"""


@pytest.mark.parametrize("n", [4, 129, 1500])
def test_the_function_of_a_reduction_reads_what_it_captures(n: int) -> None:
    g = np.arange(n, dtype=f32)
    captured = f32(g[3] * (tree(list(g), lambda a, b: f32(a + b)) / f32(n)))

    def most(a: Any, b: Any) -> Any:
        return f32(f32(max(a, b) + f32(10 if a < b else 1)) + captured)

    assert compiled(READING, "interp").encode(g).view(f32)[0] == most(f32(0), tree(list(g), most))


def test_a_read_outside_of_a_vector_in_the_function_of_a_reduction_is_an_error() -> None:
    with pytest.raises(IndexError, match="outside its range"):
        compiled(READING, "interp").encode(np.ones(3, f32))
