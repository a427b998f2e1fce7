"""Philox4x32-10 and the place of every random number, against published answers and a slow loop."""

from __future__ import annotations

import numpy as np
import pytest
from compll_cases import both

from compll import rng

KNOWN = [
    ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ((2**32 - 1,) * 4, (2**32 - 1,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def slow_philox(counter: tuple[int, ...], key: tuple[int, int]) -> list[int]:
    """The cipher in plain integers, as its authors describe it."""
    c, (k0, k1) = list(counter), key
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k0, b & 0xFFFFFFFF, (a >> 32) ^ c[3] ^ k1, a & 0xFFFFFFFF]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c


def word(i: int, site: int, seed: int) -> int:
    tile, lane, row = i // 1024, i % 128, i // 128 % 8
    p = tile * 128 + lane
    block = slow_philox((p & 0xFFFFFFFF, p >> 32, site, row // 4), (seed & 0xFFFFFFFF, seed >> 32))
    return block[row % 4]


def half(i: int, site: int, seed: int) -> int:
    tile, lane, row = i // 1024, i % 128, i // 128 % 8
    p = tile * 128 + lane
    block = slow_philox((p & 0xFFFFFFFF, p >> 32, site, 0), (seed & 0xFFFFFFFF, seed >> 32))
    return block[row // 2] >> 16 * (row % 2) & 0xFFFF


@pytest.mark.parametrize(("counter", "key", "want"), KNOWN)
def test_the_published_known_answers_come_out(
    counter: tuple[int, ...], key: tuple[int, int], want: str
) -> None:
    arrays = tuple(np.array([c], np.uint64) for c in counter)
    got = rng.philox(arrays, key[0] | key[1] << 32)  # type: ignore[arg-type]
    assert " ".join(f"{int(w[0]):08x}" for w in got) == want
    assert " ".join(f"{w:08x}" for w in slow_philox(counter, key)) == want


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**64 - 1])
def test_words_and_halves_lie_where_the_language_says(seed: int) -> None:
    index = np.array([0, 1, 127, 128, 511, 512, 1023, 1024, 5000, 2**35 + 3, 2**40 + 129 * 5])
    for site in (0, 3):
        assert [int(w) for w in rng.words(index, site, seed)] == [word(int(i), site, seed) for i in index]
        assert [int(h) for h in rng.halves(index, site, seed)] == [half(int(i), site, seed) for i in index]


PLACES = """
void PlacesEncode(float* gradient, uint8* compressed) {
    float outside = random<float>(0, 1);
    float* first = map(range(gradient.size), [&](int i) -> float { return random<float>(-1, 3); });
    int32* second = map(gradient, [&](float g) -> int32 { return random<int>(-5, 1000000); });
    uint8* third = stochastic_round(gradient);
    compressed = concat(outside, first, second, third);
}
void PlacesDecode(uint8* compressed, float* gradient) {
    float outside; float* first; int32* second; uint8* third;
    extract(compressed, outside, first, second, third);
    gradient = first;
}
"""


@pytest.mark.parametrize("seed", [7, 2**64 - 1])
def test_every_backend_draws_the_same_numbers_by_call_site_and_element(seed: int) -> None:
    n = 2200
    values = np.linspace(0, 200, n, dtype=np.float32)
    f32 = np.float32
    first = [f32(-1) + f32(4) * (f32(word(i, 1, seed) >> 8) * f32(2**-24)) for i in range(n)]
    second = [-5 + (word(i, 2, seed) * 1000005 >> 32) for i in range(n)]
    floor = np.floor(values)
    u = np.array([half(i, 3, seed) for i in range(n)]).astype(np.float32)
    third = floor + (values - floor > (u + f32(0.5)) / f32(65536))
    for codec in both(PLACES):
        raw = codec.encode(values, seed=seed)
        at = 16 + 4 * n
        assert raw[:4].view(np.float32)[0] == f32(word(0, 0, seed) >> 8) * f32(2**-24)
        np.testing.assert_array_equal(raw[16:at].view(np.float32), np.array(first, np.float32))
        np.testing.assert_array_equal(raw[at : at + 4 * n].view(np.int32), np.array(second))
        np.testing.assert_array_equal(raw[at + 4 * n :], third.astype(np.uint8))


def test_a_random_scalar_is_one_number_also_without_a_name() -> None:
    text = """
void OneNumberEncode(float* gradient, uint8* compressed) {
    float* same = gradient + random<float>(0, 1);
    compressed = concat(same);
}
void OneNumberDecode(uint8* compressed, float* gradient) {
    float* same;
    extract(compressed, same);
    gradient = same;
}
"""
    for codec in both(text):
        raw = codec.encode(np.zeros(300, np.float32), seed=5).view(np.float32)
        assert set(raw.tolist()) == {float(np.float32(word(0, 0, 5) >> 8) * np.float32(2**-24))}


def test_stochastic_rounding_never_exceeds_the_ceiling() -> None:
    for codec in both(PLACES):
        values = np.full(4096, 41.99999, np.float32)
        third = codec.encode(values, seed=3)[16 + 8 * 4096 :]
        assert set(third.tolist()) <= {41, 42}
        whole = codec.encode(np.full(4096, 41, np.float32), seed=3)[16 + 8 * 4096 :]
        assert set(whole.tolist()) == {41}


@pytest.mark.parametrize(
    "bounds", ["0, 9223372036854775807", "-9223372036854775807 - 1, 9223372036854775807", "10, 3"]
)
def test_random_integers_between_any_bounds_are_equal_on_all_backends(bounds: str) -> None:
    text = f"""
void WideEncode(float* gradient, uint8* compressed) {{
    int* r = map(range(gradient.size), [&](int i) -> int {{ return random<int>({bounds}); }});
    compressed = concat(r);
}}
void WideDecode(uint8* compressed, float* gradient) {{ int* r; extract(compressed, r); gradient = r; }}
"""
    interp, cpp = both(text)
    zeros = np.zeros(1100, np.float32)
    assert interp.encode(zeros, seed=1).tobytes() == cpp.encode(zeros, seed=1).tobytes()
