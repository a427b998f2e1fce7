"""half and bfloat16 in payloads and expressions: every backend rounds and widens as the interpreter does."""

from __future__ import annotations

import functools
import platform
from unittest import mock

import numpy as np
import pytest
from compll_cases import compiled, gradient, same_bits, write

import compll
from compll import build, types

BACKENDS = ("interp", "cpp", "numba", "cudasim")
KINDS = ("half", "bfloat16")
CODES = np.arange(2**16, dtype=np.uint16)
# Compilers for x86 have instructions for half from v3 on (F16C), wider ones with AVX-512, and none in v2.
LEVELS = ("native", *(("x86-64-v2", "x86-64-v3") if platform.machine() in ("x86_64", "AMD64") else ()))


def plain(kind: str) -> str:
    return f"""
void NarrowEncode(float* gradient, uint8* compressed) {{
    {kind}* h = gradient;
    {kind} top = reduce(gradient, greater);
    compressed = concat(top, h);
}}
void NarrowDecode(uint8* compressed, float* gradient) {{
    {kind} top;
    {kind}* h;
    extract(compressed, top, h);
    gradient = map(range(gradient.size), [&](int i) -> float {{ return i == 0 ? top : h[i]; }});
}}
"""


def inside(kind: str) -> str:
    """Conversions inside expressions, of lanes, scalars and values of a block, and one field a block."""
    return f"""
void InsideEncode(float* gradient, uint8* compressed, {kind} scale = 0.3) {{
    {kind} total = reduce(gradient > 0, add);
    float third = cast<{kind}>(1.0 / 3) * scale;
    float* lanes = map(range(gradient.size), [&](int i) -> float {{
        return cast<{kind}>(gradient[i] * 3) - cast<{kind}>(i * 1000) + cast<{kind}>(gradient[i] > 0);
    }});
    float small = reduce(gradient, 0, [&](float a, float b) -> float {{ return cast<{kind}>(a + b); }});
    {kind}* s = reduce(chunk(abs(gradient), 48), 0, greater) * cast<{kind}>(scale);
    int8* q = map(range(gradient.size), [&](int i) -> int8 {{
        return gradient[i] / cast<{kind}>(s[i / 48]);
    }});
    compressed = concat(total, third, lanes, small, s, q);
}}
void InsideDecode(uint8* compressed, float* gradient) {{
    {kind} total; float third, small; float* lanes; {kind}* s; int8* q;
    extract(compressed, total, third, lanes, small, s, q);
    gradient = map(range(gradient.size), [&](int i) -> float {{
        return cast<{kind}>(s[i / 48] * q[i]) + lanes[i] + total * third + small;
    }});
}}
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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_all_65536_values_are_widened_exactly(kind: str, backend: str) -> None:
    codec = compiled(plain(kind), backend)
    elem = types.NAMED[kind]
    want = types.canonical(types.from_bytes(CODES.view(np.uint8), elem, len(CODES)))
    if kind == "half":
        assert same_bits(want, types.canonical(CODES.view(np.float16).astype(np.float32)))
    for skip in (0, 3):  # all in whole tiles, then some at a ragged end
        codes = CODES[skip:]
        payload = np.concatenate([CODES[1:2], np.zeros(7, np.uint16), codes]).view(np.uint8)
        got = codec.decode(payload, len(codes))
        assert same_bits(got[1:], want[skip + 1 :])
        assert got[0] == want[1]  # the scalar field: the least denormal number


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_numbers_are_rounded_to_nearest_even_and_every_nan_is_one(kind: str, backend: str) -> None:
    codec = compiled(plain(kind), backend)
    x = edges(kind)
    payload = codec.encode(x)
    assert len(payload) == 16 + 2 * len(x)
    got = payload[16:].view(np.uint16)
    nan, inf = (0x7E00, 0x7C00) if kind == "half" else (0x7FC0, 0x7F80)
    assert (got[np.isnan(x)] == nan).all()
    assert (got[np.isinf(x)] & 0x7FFF == inf).all()
    if kind == "half":
        with np.errstate(over="ignore"):
            want = x.astype(np.float16)
    else:  # of the two codes around a number the nearer one, of equally near ones the even one
        low = (x.view(np.uint32) >> 16).astype(np.int64)
        rest = x.view(np.uint32) & 0xFFFF
        want = (low + ((rest > 0x8000) | ((rest == 0x8000) & (low % 2 == 1)))).astype(np.uint16)
    there = ~np.isnan(x)
    assert same_bits(got[there], want.view(np.uint16)[there])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS[1:])
def test_a_conversion_inside_an_expression_is_bit_equal(kind: str, backend: str) -> None:
    a, b = compiled(inside(kind), "interp"), compiled(inside(kind), backend)
    for n, label in ((0, "normal"), (1, "mixed"), (47, "denormal"), (1100, "mixed"), (5003, "normal")):
        g = gradient(label, n)
        payload = a.encode(g)
        assert same_bits(b.encode(g, threads=2), payload), (n, label)
        assert same_bits(b.decode(payload, n), a.decode(payload, n)), (n, label)
    other = [c.with_params(scale=65519.0) for c in (a, b)]
    assert same_bits(*(c.encode(gradient("normal", 300)) for c in other))


@pytest.mark.parametrize("kind", KINDS)
def test_cpp_is_bit_equal_with_and_without_the_processor_s_instructions(kind: str) -> None:
    x = edges(kind)
    want = compiled(plain(kind), "interp").encode(x)
    for level in LEVELS:
        flags = [f"-march={level}" if flag == "-march=native" else flag for flag in build.FLAGS]
        with mock.patch.object(build, "FLAGS", [f if f != "-O3" else "-O1" for f in flags]):
            codec = compll.compile(write(plain(kind)), "cpp")
        assert same_bits(codec.encode(x), want), level
        assert same_bits(codec.decode(want, len(x)), compiled(plain(kind), "interp").decode(want, len(x))), (
            level
        )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_fields_are_two_bytes_an_element_and_aligned(kind: str, backend: str) -> None:
    payload = compiled(plain(kind), backend).encode(np.array([1.0, -2.5, 65520.0, np.nan, 1e-7], np.float32))
    codes = "007e 003c00c1007c007e0200" if kind == "half" else "c07f 803f20c08047c07fd733"
    top, rest = codes.split()
    assert payload.tobytes().hex() == top + "00" * 14 + rest
