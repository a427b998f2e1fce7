"""Lanes that one load or one instruction gives where intervals or bits of positions prove it."""

from __future__ import annotations

import numpy as np
import pytest
from compll_cases import BACKENDS, compiled, gradient, same_bits, write

import compll
from compll import driver
from compll.codec import Item
from compll.emit import cpp

NEAR = """
void NearEncode(float* gradient, uint8* compressed) {
    int* at = range((gradient.size + 63) / 64 * 64);
    float* g = map(at, [&](int i) -> float { return i < gradient.size ? gradient[i] : i & 5; });
    float* y = map(at, [&](int i) -> float {
        float ahead = i + 17 < g.size ? g[i + 17] : 3;
        float behind = i >= 3 ? g[i - 3] : 1;
        return g[i ^ 37] + ahead * 2 + behind * (i & 6) + g[(i & -8) | 5] * (i & 2048) - g[(i | 16) ^ 48];
    });
    float* top = reduce(chunk(y, 32), 0, greater);
    uint<3>* code = map(at, [&](int i) -> uint<3> { return int(g[i] * 3) & 7; });
    compressed = concat(top, code, y);
}

void NearDecode(uint8* compressed, float* gradient) {
    float* top; uint<3>* code; float* y;
    extract(compressed, top, code, y);
    gradient = map(range(gradient.size), [&](int i) -> float {
        float ahead = i + 16 < code.size ? code[i + 16] : 0.5;
        return code[i ^ 9] + top[(i ^ 40) / 32] * y[i | 1] + ahead;
    });
}
"""

OUTSIDE = """
void OutsideEncode(float* gradient, uint8* compressed) {
    float* y = map(range(gradient.size), [&](int i) -> float { return gradient[i ^ 1]; });
    compressed = concat(y);
}

void OutsideDecode(uint8* compressed, float* gradient) {
    float* y;
    extract(compressed, y);
    gradient = map(range(gradient.size), [&](int i) -> float {
        return (i ^ 2) < gradient.size ? y[i ^ 2] : y[i / 32];
    });
}
"""

PLAIN = """
void PlainEncode(float* gradient, uint8* compressed, int block = 32) {
    float* power = map(reduce(chunk(abs(gradient), block), 0, greater), [&](float top) -> float {
        return max(bitcast<float>(bitcast<uint32>(top) >> 23 << 23), 5.877471754111438e-39);
    });
    float* small = map(range(gradient.size), [&](int i) -> float { return gradient[i] / power[i / block]; });
    float* own = map(gradient, [&](float x) -> float {
        int exponent = clamp(int(bitcast<uint32>(x) >> 23) & 255, 1, 253);
        return x / bitcast<float>(uint32(exponent) << 23);
    });
    float* above = max(gradient, 0);
    float* under = min(gradient, -0.0);
    float* between = max(-2.5, min(3, gradient));
    uint8* exponent = map(gradient, [&](float x) -> uint8 {
        return bitcast<uint32>(min(abs(x), 448)) >> 23;
    });
    int8* level = map(gradient, [&](float x) -> int8 { return clamp(int(x * 4), -7, 9); });
    uint<5>* code = map(gradient, [&](float x) -> uint<5> { return min(max(int(round(x)), -3), 28) + 3; });
    compressed = concat(power, small, own, above, under, between, exponent, level, code);
}

void PlainDecode(uint8* compressed, float* gradient, int block = 32) {
    float* power; float* small; float* own; float* above; float* under; float* between;
    uint8* exponent; int8* level; uint<5>* code;
    extract(compressed, power, small, own, above, under, between, exponent, level, code);
    gradient = map(range(gradient.size), [&](int i) -> float {
        return small[i] * power[i / block] + code[i] / 8.0 - level[i] / max(0.25, 2.0);
    });
}
"""

SIZES = (0, 1, 16, 37, 64, 1000, 1024, 1041, 5003)


def edges() -> np.ndarray:
    """Return numbers of every exponent and sign, with zeros, infinities and NaN of both signs among them."""
    bits = np.arange(512, dtype=np.uint32) << 23
    return np.concatenate([bits, bits | 1, bits | 0x7FFFFF, bits | 0x400000]).view(np.float32)


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_positions_that_bits_and_distances_make(backend: str) -> None:
    meant, codec = compiled(NEAR, "interp"), compiled(NEAR, backend)
    for n in SIZES:
        g = gradient("mixed" if n % 2 else "normal", n)
        payload = meant.encode(g)
        assert same_bits(codec.encode(g, threads=2), payload), n
        assert same_bits(codec.decode(payload, n), meant.decode(payload, n)), n


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_position_behind_the_end_is_an_error_only_where_it_is_read(backend: str) -> None:
    codec = compiled(OUTSIDE, backend)
    for n in (2, 18, 1024, 1056, 2050):
        g = gradient("normal", n)
        payload = codec.encode(g)
        assert same_bits(payload.view(np.float32), g.reshape(-1, 2)[:, ::-1].reshape(-1))
        codec.decode(payload, n)
    for n in (1, 17, 1025):
        with pytest.raises(IndexError):
            codec.encode(gradient("normal", n))


@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("block", [32, 7])
def test_powers_of_two_extremes_and_clamps(backend: str, block: int) -> None:
    meant, codec = compiled(PLAIN, "interp", block=block), compiled(PLAIN, backend, block=block)
    rng = np.random.default_rng(block)
    for n in SIZES:
        for g in (rng.permutation(edges())[:n], gradient("denormal", n), gradient("normal", n) * 8):
            payload = meant.encode(g)
            assert same_bits(codec.encode(g, threads=2), payload), n
            assert same_bits(codec.decode(payload, len(g)), meant.decode(payload, len(g))), n


@pytest.mark.parametrize("name", ["int8", "mxfp4", "nvfp4", "terngrad"])
def test_the_greatest_size_tells_what_is_not_finite_wherever_it_is(name: str) -> None:
    codec = compll.compile(name, "cpp")
    for n in (1, 37, 1024, 5003):
        for at in sorted({0, n // 2, n - 1}):
            for value in (np.inf, -np.inf, np.nan, 3e38):
                g = gradient("normal", n)
                g[at] = value
                (result,) = codec.batch("encode", [Item(grad=g, seed=1)])
                assert result.finite == np.isfinite(np.float32(value)), (n, at, value)


def test_in_cpp_no_element_is_divided_by_a_power_of_two() -> None:
    text = cpp.source(driver.unit_of(driver.load([write(PLAIN)], {}).checked))
    assert "divide(v_gradient" not in text
