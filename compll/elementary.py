"""exp, exp2, log and log2 of float32, as polynomials of our own: the same bits everywhere.

Only + - *, rounding to an integer and bit casts, each rounded to float32, in one fixed order; no FMA and no
library function.  The coefficients are minimax fits on the reduced intervals; errors stay below 1 ulp, which
`tests/compll/test_elementary.py` measures against float64.  `templates/cpp/elementary.h` is the same text.
"""

from __future__ import annotations

import numpy as np

from compll.types import Array

F = np.float32
LOG2E = F(float.fromhex("0x1.715476p+0"))
LN2_HIGH, LN2_LOW = F(0.693359375), F(float.fromhex("-0x1.bd0106p-13"))  # high: 9 bits, so n * high is exact
LN2, LN2_TOP = F(float.fromhex("0x1.62e43p-1")), F(float.fromhex("0x1.62ep-1"))  # top: 12 bits
LN2_REST = F(float.fromhex("0x1.0bfbe8p-15"))  # ln 2 - top
LOG2E_TOP, LOG2E_REST = F(float.fromhex("0x1.716p+0")), F(float.fromhex("-0x1.7135a8p-13"))
EXP = tuple(
    F(float.fromhex(c))
    for c in ("0x1p-1", "0x1.5554dcp-3", "0x1.5554b8p-5", "0x1.120cdap-7", "0x1.6d773cp-10")
)
LOG = tuple(
    F(float.fromhex(c))
    for c in (
        "0x1.555548p-2", "-0x1.000006p-2", "0x1.99a4b6p-3", "-0x1.555c4ep-3", "0x1.233766p-3",
        "-0x1.fc220ep-4", "0x1.e6f08cp-4", "-0x1.de3bf8p-4", "0x1.14573ep-4",
    )
)  # fmt: skip
TOP = np.uint32(0xFFFFF000)
SQRT_HALF = np.uint32(0x3F3504F3)


def _polynomial(x: Array, coefficients: tuple[np.float32, ...]) -> Array:
    value = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        value = value * x + c
    return value


def _top(x: Array) -> Array:
    return (np.asarray(x).view(np.uint32) & TOP).view(F)


def _power(x: Array, r: Array, rest: Array, n: Array) -> Array:
    """Return e^(r + rest) * 2^n; the scaling rounds once, also where the result is denormal."""
    p = F(1) + (r + ((r * r) * _polynomial(r, EXP) + rest))
    whole = np.where(np.isnan(x), F(0), n).astype(np.int32)
    half = whole >> np.int32(1)
    return np.where(np.isnan(x), x, (p * _two_to(half)) * _two_to(whole - half))


def _two_to(n: Array) -> Array:
    return ((n + np.int32(127)) << np.int32(23)).astype(np.uint32).view(F)


def _clip(x: Array, low: float, high: float) -> Array:
    return np.where(x > F(high), F(high), np.where(x < F(low), F(low), x))


def exp(x: Array) -> Array:
    """Return e^x."""
    y = _clip(x, -104, 89)
    n = np.rint(y * LOG2E)
    high, low = y - n * LN2_HIGH, n * LN2_LOW
    r = high - low
    return _power(x, r, (high - r) - low, n)


def exp2(x: Array) -> Array:
    """Return 2^x."""
    y = _clip(x, -151, 128)
    n = np.rint(y)
    f = y - n
    top = _top(f)
    a, b = top * LN2_TOP, top * LN2_REST + (f - top) * LN2
    r = a + b
    return _power(x, r, (a - r) + b, n)


def _split(x: Array) -> tuple[Array, Array]:
    """Return (f, e) with x = (1 + f) * 2^e and 1 + f from sqrt(1/2) to sqrt(2)."""
    tiny = x < F(2**-126)
    bits = np.asarray(np.where(tiny, x * F(2**23), x)).view(np.uint32)
    e = (bits - SQRT_HALF).view(np.int32) >> np.int32(23)
    m = (bits - (e.astype(np.uint32) << np.uint32(23))).view(F)
    return m - F(1), (e - np.where(tiny, np.int32(23), np.int32(0))).astype(F)


def _at_the_edges(x: Array, value: Array) -> Array:
    nan = np.where(np.isnan(x), x, np.where(x < 0, F(np.nan), value))
    return np.where(x == 0, F(-np.inf), np.where(x == F(np.inf), x, nan))


def log(x: Array) -> Array:
    """Return the natural logarithm; -inf of 0, NaN of negative numbers."""
    f, e = _split(x)
    square = f * f
    t = ((f * square) * _polynomial(f, LOG) + e * LN2_LOW) - F(0.5) * square
    return _at_the_edges(x, (f + t) + e * LN2_HIGH)


def log2(x: Array) -> Array:
    """Return the logarithm to base 2; -inf of 0, NaN of negative numbers."""
    f, e = _split(x)
    square = f * f
    half = F(0.5) * square
    high = _top(f - half)
    low = ((f - high) - half) + (f * square) * _polynomial(f, LOG)
    return _at_the_edges(x, (((low + high) * LOG2E_REST + low * LOG2E_TOP) + high * LOG2E_TOP) + e)
