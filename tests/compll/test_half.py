"""half and bfloat16 in payloads and expressions: every backend rounds and widens as the interpreter does."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from compll_cases import LEVELS, built_for, compiled, gradient, same_bits, write

from compll import types

BACKENDS = ("interp", "cpp", "numba", "cudasim")
KINDS = ("half", "bfloat16")
CODES = np.arange(2**16, dtype=np.uint16)


# Both types in one program, so that it is compiled once; `kind` says which of them decode returns.
PLAIN = """
void NarrowEncode(float* gradient, uint8* compressed, int kind = 0) {
    half* h = gradient;
    bfloat16* b = gradient;
    half high = reduce(gradient, greater);
    bfloat16 top = reduce(gradient, greater);
    compressed = concat(high, top, h, b);
}
void NarrowDecode(uint8* compressed, float* gradient, int kind = 0) {
    half high; bfloat16 top; half* h; bfloat16* b;
    extract(compressed, high, top, h, b);
    gradient = map(range(gradient.size), [&](int i) -> float {
        return kind == 0 ? (i == 0 ? high : h[i]) : (i == 0 ? top : b[i]);
    });
}
"""
# Conversions inside expressions, of lanes, scalars and values of a block, and one field a block.
INSIDE = """
void InsideEncode(float* gradient, uint8* compressed, half scale = 0.3) {
    half total = reduce(gradient > 0, add);
    bfloat16 third = cast<bfloat16>(1.0 / 3) * scale;
    float* lanes = map(range(gradient.size), [&](int i) -> float {
        return cast<half>(gradient[i] * 3) - cast<bfloat16>(i * 1000) + cast<half>(gradient[i] > 0);
    });
    float small = reduce(gradient, 0, [&](float a, float b) -> float { return cast<half>(a + b); });
    bfloat16* s = reduce(chunk(abs(gradient), 48), 0, greater) * cast<half>(scale);
    half* t = reduce(chunk(gradient, 48), 0, greater);
    int8* q = map(range(gradient.size), [&](int i) -> int8 {
        return gradient[i] / (cast<bfloat16>(s[i / 48]) + t[i / 48]);
    });
    compressed = concat(total, third, lanes, small, s, t, q);
}
void InsideDecode(uint8* compressed, float* gradient) {
    half total; bfloat16 third; float small; float* lanes; bfloat16* s; half* t; int8* q;
    extract(compressed, total, third, lanes, small, s, t, q);
    gradient = map(range(gradient.size), [&](int i) -> float {
        return cast<half>(s[i / 48] * q[i]) + cast<bfloat16>(lanes[i] - t[i / 48]) + total * third + small;
    });
}
"""


@functools.cache
def edges(kind: str) -> np.ndarray:
    """Return every value of a type, what lies just beside it and halfway to the next, and random bits."""
    values = types.from_bytes(CODES.view(np.uint8), types.NAMED[kind], len(CODES)).view(np.uint32)
    middle = 0x1000 if kind == "half" else 0x8000
    near = [values + np.uint32(step % 2**32) for step in (0, 1, -1, middle, middle - 1, middle + 1)]
    denormal = np.arange(0, 2**26, 641, dtype=np.int64) * np.float64(
        2.0**-50
    )  # to twice the least normal half
    odd = np.random.default_rng(5).integers(0, 2**32, 50_001, dtype=np.uint64).astype(np.uint32)
    return np.concatenate([*near, denormal.astype(np.float32).view(np.uint32), odd]).view(np.float32)


def fields(payload: np.ndarray, n: int) -> dict[str, np.ndarray]:
    """Return the codes of the two vectors of a payload of PLAIN."""
    second = 16 + -(-2 * n // 16) * 16
    assert len(payload) == second + 2 * n
    parts = payload[16 : 16 + 2 * n], payload[second:]
    return {kind: part.view(np.uint16) for kind, part in zip(KINDS, parts, strict=True)}


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_65536_values_are_widened_exactly(backend: str) -> None:
    for number, kind in enumerate(KINDS):
        codec = compiled(PLAIN, backend).with_params(kind=number)
        want = types.canonical(types.from_bytes(CODES.view(np.uint8), types.NAMED[kind], len(CODES)))
        if kind == "half":
            assert same_bits(want, types.canonical(CODES.view(np.float16).astype(np.float32)))
        for skip in (0, 3):  # all in whole tiles, then some at a ragged end
            n = len(CODES) - skip
            payload = np.zeros(codec.max_bytes(n), np.uint8)
            payload[:4].view(np.uint16)[:] = 1  # the scalars: the least denormal number
            for codes in fields(payload, n).values():
                codes[:] = CODES[skip:]
            got = codec.decode(payload, n)
            assert same_bits(got[1:], want[skip + 1 :]), kind
            assert got[0] == want[1]


def nearest(x: np.ndarray, kind: str) -> np.ndarray:
    """Return the codes of the nearest numbers, of two equally near ones the even one, without NaN."""
    if kind == "half":
        with np.errstate(over="ignore"):
            return x.astype(np.float16).view(np.uint16)
    low, rest = (x.view(np.uint32) >> 16).astype(np.int64), x.view(np.uint32) & 0xFFFF
    return (low + ((rest > 0x8000) | ((rest == 0x8000) & (low % 2 == 1)))).astype(np.uint16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_are_rounded_to_nearest_even_and_every_nan_is_one(backend: str) -> None:
    for kind, nan, inf in (("half", 0x7E00, 0x7C00), ("bfloat16", 0x7FC0, 0x7F80)):
        x = edges(kind)
        got = fields(compiled(PLAIN, backend).encode(x), len(x))[kind]
        assert (got[np.isnan(x)] == nan).all()
        assert (got[np.isinf(x)] & 0x7FFF == inf).all()
        there = ~np.isnan(x)
        assert same_bits(got[there], nearest(x, kind)[there])


@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_conversion_inside_an_expression_is_bit_equal(backend: str) -> None:
    a, b = compiled(INSIDE, "interp"), compiled(INSIDE, backend)
    for n, label in ((0, "normal"), (1, "mixed"), (47, "denormal"), (1100, "mixed"), (5003, "normal")):
        g = gradient(label, n)
        payload = a.encode(g)
        assert same_bits(b.encode(g, threads=2), payload), (n, label)
        assert same_bits(b.decode(payload, n), a.decode(payload, n)), (n, label)
    other = [c.with_params(scale=65519.0) for c in (a, b)]
    assert same_bits(*(c.encode(gradient("normal", 300)) for c in other))


# Compilers for x86 have instructions for half from v3 on (F16C), wider ones with AVX-512, and none in v2.
@pytest.mark.parametrize("level", ["native", *LEVELS])
def test_cpp_is_bit_equal_with_and_without_the_processor_s_instructions(level: str) -> None:
    meant = compiled(PLAIN, "interp")
    codec = built_for(level, write(PLAIN))
    for number, kind in enumerate(KINDS):
        x = edges(kind)
        want = meant.encode(x)
        assert same_bits(codec.encode(x), want)
        a, b = (c.with_params(kind=number).decode(want, len(x)) for c in (meant, codec))
        assert same_bits(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
def test_fields_are_two_bytes_an_element_and_aligned(backend: str) -> None:
    payload = compiled(PLAIN, backend).encode(np.array([1.0, -2.5, 65520.0, np.nan, 1e-7], np.float32))
    rows = "007ec07f", "003c00c1007c007e0200", "803f20c08047c07fd733"
    assert payload.tobytes().hex() == rows[0] + "00" * 12 + rows[1] + "00" * 6 + rows[2]
