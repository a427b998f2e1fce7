"""Conversions, packing and payload layout, held against straight Python."""

from __future__ import annotations

import math
import struct
from fractions import Fraction

import numpy as np
import pytest
from compll_cases import both, compiled
from hypothesis import given
from hypothesis import strategies as st

from compll import types
from compll.codec import compile as compile_codec

FLOATS = [0.0, -0.0, 0.5, -0.5, 0.99999994, 1.5, 2.5, -1.5, 127.0, 127.5, 128.0, -128.5, -129.0, 255.9, 256.0]
FLOATS += [65535.9, 65504.0, 65520.0, 1e-45, -1e-45, 6e-8, 2.0**31, -(2.0**31), 2.0**32, 2.0**63, -(2.0**63)]
FLOATS += [2.0**64, 1.8446742974197924e19, 3.4e38, -3.4e38, math.inf, -math.inf, math.nan]
INTS = [0, 1, -1, 2, 3, 15, 16, 127, 128, -128, -129, 255, 256, 2**24 + 1, 2**31 - 1, 2**31, -(2**31), 2**32]
INTS += [2**53 + 1, 2**63 - 1, -(2**63)]
INTEGER_TYPES = [t for t in types.NAMED.values() if t.kind in ("int", "uint")] + [
    types.uint(w) for w in (3, 5, 7)
]


def saturated(x: Fraction | int, bits: int, signed: bool) -> int:
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)
    cut = int(x)  # toward zero
    return max(low, min(high, cut))


def to_integer(x: float, bits: int, signed: bool) -> int:
    if math.isnan(x):
        return 0
    if math.isinf(x):
        return saturated(2**80 if x > 0 else -(2**80), bits, signed)
    return saturated(Fraction(x), bits, signed)


def nearest_even(x: Fraction, mantissa: int, least_exponent: int, most: Fraction) -> Fraction | float:
    """Round an exact number to a binary format of `mantissa` bits; beyond `most` it is an infinity."""
    if x == 0:
        return Fraction(0)
    exponent = max(math.floor(math.log2(abs(x))) - 2, least_exponent + mantissa - 1)
    while abs(x) >= Fraction(2) ** (exponent + 1):
        exponent += 1
    unit = Fraction(2) ** (exponent - mantissa + 1)
    rounded = round(x / unit) * unit  # Python rounds halves to even
    return math.copysign(math.inf, x) if abs(rounded) > most else rounded


@pytest.mark.parametrize("elem", INTEGER_TYPES, ids=str)
def test_a_float_becomes_an_integer_by_truncation_and_saturation(elem: types.Elem) -> None:
    values = np.array(FLOATS, np.float32)
    got = types.convert(values, elem)
    want = [to_integer(float(v), elem.bits, elem.kind == "int") for v in values]
    assert [int(g) for g in got] == want


@pytest.mark.parametrize("elem", INTEGER_TYPES, ids=str)
def test_an_integer_becomes_another_integer_by_saturation(elem: types.Elem) -> None:
    for have, values in ((np.int64, INTS), (np.uint32, [0, 1, 127, 128, 255, 2**31, 2**32 - 1])):
        got = types.convert(np.array(values, have), elem)
        assert [int(g) for g in got] == [saturated(v, elem.bits, elem.kind == "int") for v in values]
    huge = np.array([2**64 - 1, 2**63, 7], np.uint64)
    want = [saturated(int(v), elem.bits, elem.kind == "int") for v in huge]
    assert [int(g) for g in types.convert(huge, elem)] == want


def test_an_integer_becomes_the_nearest_even_float() -> None:
    for v in INTS:
        want = nearest_even(Fraction(v), 24, -149, Fraction(2**128))
        assert Fraction(float(types.convert(np.asarray(v, np.int64), types.FLOAT))) == want


@pytest.mark.parametrize(
    ("elem", "mantissa", "least", "most"),
    [
        (types.HALF, 11, -24, Fraction(65504)),
        (types.BFLOAT16, 8, -133, (2 - Fraction(1, 128)) * Fraction(2) ** 127),
    ],
    ids=["half", "bfloat16"],
)
@given(bits=st.integers(0, 2**32 - 1))
def test_a_float_becomes_the_nearest_even_half_or_bfloat16(
    elem: types.Elem, mantissa: int, least: int, most: Fraction, bits: int
) -> None:
    x = np.array([bits], np.uint32).view(np.float32)
    got = float(types.convert(x, elem)[0])
    value = float(x[0])
    if math.isnan(value):
        assert math.isnan(got)
    elif math.isinf(value):
        assert got == value
    else:
        assert got == nearest_even(Fraction(value), mantissa, least, most)
        assert math.copysign(1, got) == math.copysign(1, value)


def test_anything_becomes_bool_by_asking_for_not_zero() -> None:
    assert types.convert(np.array([0.0, -0.0, 1e-45, math.nan], np.float32), types.BOOL).tolist() == [
        False,
        False,
        True,
        True,
    ]
    assert types.convert(np.array([0, -1, 2**62]), types.BOOL).tolist() == [False, True, True]


@given(width=st.integers(1, 8), codes=st.lists(st.integers(0, 255), max_size=70))
def test_element_i_has_bits_iw_of_the_little_endian_bit_string(width: int, codes: list[int]) -> None:
    codes = [c % (1 << width) for c in codes]
    whole = sum(c << (i * width) for i, c in enumerate(codes))
    raw = types.to_bytes(np.array(codes, np.int64), types.uint(width))
    assert raw.tobytes() == whole.to_bytes((len(codes) * width + 7) // 8, "little")
    assert types.from_bytes(raw, types.uint(width), len(codes)).tolist() == codes


def test_every_nan_is_written_as_the_one_nan() -> None:
    odd = np.array([0x7FC00001, 0xFFC00000, 0x7F800001], np.uint32).view(np.float32)
    assert types.to_bytes(odd, types.FLOAT).tobytes() == struct.pack("<3I", *[0x7FC00000] * 3)
    assert types.to_bytes(odd, types.HALF).tobytes() == struct.pack("<3H", *[0x7E00] * 3)
    assert types.to_bytes(odd, types.BFLOAT16).tobytes() == struct.pack("<3H", *[0x7FC0] * 3)


# --- layout: the examples of docs/wire-format.md --------------------------------------------------------

HEADED = """
void HeadedEncode(float* gradient, uint8* compressed, uint8 bitwidth) {
    float lo = reduce(gradient, smaller);
    float hi = reduce(gradient, greater);
    float step = (hi - lo) / ((1 << bitwidth) - 1);
    uint8 tail = gradient.size % (1 << bitwidth);
    uint<bitwidth>* q = map(range(gradient.size), [&](int i) -> uint<bitwidth> {
        return round((gradient[i] - lo) / step);
    });
    compressed = concat(bitwidth, tail, lo, hi, q);
}
void HeadedDecode(uint8* compressed, float* gradient, uint8 bitwidth) {
    uint8 tail;
    float lo, hi;
    uint<bitwidth>* q;
    extract(compressed, bitwidth, tail, lo, hi, q);
    gradient = q * ((hi - lo) / ((1 << bitwidth) - 1)) + lo;
}
"""


@pytest.mark.parametrize("backend", ["interp", "cpp"])
def test_scalars_are_aligned_to_their_size_and_vectors_to_16(backend: str) -> None:
    codec = compiled(HEADED, backend, bitwidth=2)
    payload = codec.encode(np.array([-1, 0, 1, 2, 2], np.float32))
    want = "02 01 | 00 00 | 00 00 80 bf | 00 00 00 40 | 00 00 00 00 | e4 03"
    assert payload.tobytes() == bytes.fromhex(want.replace("|", ""))
    assert codec.decode(payload, 5).tolist() == [-1, 0, 1, 2, 2]


@pytest.mark.parametrize("backend", ["interp", "cpp"])
def test_an_empty_gradient_is_no_special_case(backend: str) -> None:
    onebit = compile_codec("onebit", backend)
    empty = np.empty(0, np.float32)
    payload = onebit.encode(empty, state=onebit.new_state(0))
    assert payload.tobytes() == bytes(16)
    assert onebit.max_bytes(0) == 16
    assert onebit.decode(payload, 0).shape == (0,)
    terngrad = compile_codec("terngrad", backend)
    payload = terngrad.encode(empty, seed=1)
    assert payload.tobytes() == struct.pack("<B3xff4x", 2, math.inf, -math.inf)
    assert terngrad.decode(payload, 0).shape == (0,)


KINDS = [
    "bool",
    "int8",
    "int16",
    "int32",
    "int",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "float",
    "uint4",
    "uint1",
    "half",
    "bfloat16",
]
CASTS = """
void CastsEncode(float* gradient, uint8* compressed) {
%s
    compressed = concat(%s);
}
void CastsDecode(uint8* compressed, float* gradient) {
%s
    extract(compressed, %s);
    gradient = map(range(gradient.size), [&](int i) -> float { return 0.0; });
}
"""


def casts(source: str) -> str:
    lines = "\n".join(f"    {k}* v{k} = cast<{k}>({source});" for k in KINDS)
    names = ", ".join(f"v{k}" for k in KINDS)
    return CASTS % (lines, names, "\n".join(f"    {k}* v{k};" for k in KINDS), names)


@pytest.mark.parametrize(
    "source",
    [
        "gradient",
        "cast<int>(gradient)",
        "cast<uint32>(gradient)",
        "cast<uint64>(gradient)",
        "cast<int8>(gradient)",
        "gradient > 0",
    ],
)
def test_cpp_converts_between_all_types_as_the_interpreter_does(source: str) -> None:
    interp, cpp = both(casts(source))
    values = np.resize(np.array(FLOATS + [float(i) for i in INTS], np.float32), 1200)
    assert interp.encode(values).tobytes() == cpp.encode(values).tobytes()


def test_a_bool_vector_takes_a_byte_an_element() -> None:
    text = """
void FlagEncode(float* gradient, uint8* compressed) {
    bool* f = gradient > 0;
    bool any = reduce(f, add) > 0;
    compressed = concat(any, f);
}
void FlagDecode(uint8* compressed, float* gradient) {
    bool any;
    bool* f;
    extract(compressed, any, f);
    gradient = f ? 1.0 : 0.0;
}
"""
    for codec in both(text):
        payload = codec.encode(np.array([1, -1, 2], np.float32))
        assert payload.tobytes() == bytes([1, *[0] * 15, 1, 0, 1])
        payload = payload.copy()
        payload[[0, 17]] = 2  # any byte but 0 is true
        assert codec.decode(payload, 3).tolist() == [1, 1, 1]
