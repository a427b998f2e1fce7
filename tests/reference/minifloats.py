"""e2m1, e4m3 and e5m2 by their enumerated values, and the block formats of them; independent of the compiler.

e4m3, e5m2: P. Micikevicius et al., "FP8 Formats for Deep Learning", 2022, table 1.  e2m1, E8M0 and how the
shared scale is chosen: Open Compute Project, "OCP Microscaling Formats (MX) Specification", v1.0, 2023.
NVFP4: NVIDIA, "Pretraining Large Language Models with NVFP4", 2025: e2m1, e4m3 scales of 16, one float32.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import layout
import numpy as np
from blocks import cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]


def value(code: int, exponent_bits: int, mantissa_bits: int) -> float:
    """Return sign * 2^(exponent - bias) * 1.mantissa, or 0.mantissa with the least exponent."""
    bias = 2 ** (exponent_bits - 1) - 1
    mantissa = code % 2**mantissa_bits
    exponent = code >> mantissa_bits & (2**exponent_bits - 1)
    sign = -1.0 if code >> (exponent_bits + mantissa_bits) else 1.0
    if exponent == 0:
        return sign * mantissa * 2.0 ** (1 - bias - mantissa_bits)
    return sign * (2**mantissa_bits + mantissa) * 2.0 ** (exponent - bias - mantissa_bits)


E2M1 = np.array([value(c, 2, 1) for c in range(16)])
E4M3 = np.array([math.nan if c & 127 == 127 else value(c, 4, 3) for c in range(256)])
E5M2 = np.array([math.nan if c & 127 > 124 else value(c, 5, 2) for c in range(256)])
E5M2[[124, 252]] = math.inf, -math.inf


def nearest(x: NDArray[Any], values: NDArray[Any]) -> NDArray[Any]:
    """Return the code of the value nearest to each |x|: ties to the even code, beyond the last the last."""
    size = np.abs(x.astype(np.float64))
    above = np.clip(np.searchsorted(values, size), 1, len(values) - 1)
    down, up = size - values[above - 1], values[above] - size
    return np.where((down < up) | ((down == up) & (above % 2 == 1)), above - 1, above)


def signed(x: NDArray[Any], code: NDArray[Any], nan: int, sign: int) -> NDArray[Any]:
    """Put the sign bit in; a NaN has none."""
    return np.where(np.isnan(x), nan, code + np.where(np.signbit(x), sign, 0))


def fp8(gradient: Vector, block: int, finite: NDArray[Any] = E4M3[:127]) -> tuple[Vector, NDArray[Any]]:
    """Return a scale for each block, max / 448 in float32 and at least 2^-149, and each element's code.

    `finite` are the values of the format from 0 up; the last one takes the place of 448.
    """
    tops = np.array([np.abs(part).max() for part in cut(gradient, block)], np.float32)
    scale = np.where(np.isnan(tops), tops, np.maximum(tops / np.float32(finite[-1]), np.float32(2**-149)))
    with np.errstate(all="ignore"):
        x = gradient / np.repeat(scale, block)[: len(gradient)]
    return scale, signed(x, nearest(x, finite), 127, 128)


def fp8_payload(scale: Vector, code: NDArray[Any]) -> bytes:
    """Return scales, then a byte for each code."""
    return layout.assemble([scale.astype("<f4").tobytes(), code.astype(np.uint8).tobytes()])


def shared_exponents(gradient: Vector, most: int) -> NDArray[Any]:
    """Return the E8M0 code of each 32 elements, for elements whose greatest has the exponent `most`."""
    scales = []
    for part in cut(gradient, 32):
        top = float(np.abs(part).max())
        if not math.isfinite(top):
            scales.append(255)
        else:
            scales.append(max(math.frexp(top)[1] - 1 - most + 127, 0) if top else 0)
    return np.array(scales, int)


def with_sign(gradient: Vector, code: NDArray[Any], sign: int) -> NDArray[Any]:
    """Put in the sign bits of a gradient; its NaNs have none."""
    return code + np.where(np.signbit(gradient) & ~np.isnan(gradient), sign, 0)


def mxfp4(gradient: Vector) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the E8M0 scale of each 32 elements, and each element's e2m1 code."""
    s = shared_exponents(gradient, 2)
    with np.errstate(all="ignore"):
        x = gradient / np.repeat(power(s), 32)[: len(gradient)]
    return s, with_sign(gradient, np.where(np.isnan(x), 0, nearest(x, E2M1[:8])), 8)


def mxfp8(gradient: Vector) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return the E8M0 scale of each 32 elements, and each element's e4m3 code."""
    s = shared_exponents(gradient, 8)
    with np.errstate(all="ignore"):
        x = gradient / np.repeat(power(s), 32)[: len(gradient)]
    return s, with_sign(gradient, np.where(np.isnan(x), 127, nearest(x, E4M3[:127])), 128)


def mxfp8_payload(s: NDArray[Any], code: NDArray[Any]) -> bytes:
    """Return a byte for each scale, then a byte for each code."""
    return layout.assemble([s.astype(np.uint8).tobytes(), code.astype(np.uint8).tobytes()])


def nvfp4(gradient: Vector) -> tuple[np.float32, NDArray[Any], NDArray[Any]]:
    """Return the whole's scale, each block's e4m3 code, and each element's e2m1 code; float32 throughout."""
    f32 = np.float32
    tops = np.array([np.abs(part).max() for part in cut(gradient, 16)], f32)
    top = np.max(tops, initial=f32(0))
    whole = top if np.isnan(top) else max(top / f32(448 * 6), f32(2**-149))
    with np.errstate(all="ignore"):
        shares = tops / f32(6) / whole
        s = np.where(np.isnan(shares), 127, nearest(shares, E4M3[:127]))
        x = gradient / whole / np.repeat(E4M3[s].astype(f32), 16)[: len(gradient)]
    return whole, s, with_sign(gradient, np.where(np.isnan(x), 0, nearest(x, E2M1[:8])), 8)


def nvfp4_payload(whole: np.float32, s: NDArray[Any], code: NDArray[Any]) -> bytes:
    """Return the whole's scale, then a byte for each block's, then the codes of four bits."""
    parts = [whole.astype("<f4").tobytes(), s.astype(np.uint8).tobytes(), layout.bit_string(code, 4)]
    return layout.assemble(parts)


def power(s: NDArray[Any]) -> NDArray[Any]:
    """Return the value of E8M0 codes, in float64."""
    return np.where(s == 255, np.nan, 2.0 ** (s.astype(np.float64) - 127))


def mxfp4_payload(s: NDArray[Any], code: NDArray[Any]) -> bytes:
    """Return a byte for each scale, then the codes of four bits."""
    return layout.assemble([s.astype(np.uint8).tobytes(), layout.bit_string(code, 4)])


def int4(gradient: Vector, block: int) -> tuple[Vector, NDArray[Any]]:
    """Return a scale for each block, max / 7 in float32 and at least 2^-149, and each element's level."""
    tops = np.array([np.abs(part).max() for part in cut(gradient, block)], np.float32)
    scale = np.where(np.isnan(tops), tops, np.maximum(tops / np.float32(7), np.float32(2**-149)))
    with np.errstate(all="ignore"):
        x = gradient / np.repeat(scale, block)[: len(gradient)]
    return scale, np.where(np.isnan(x), 0, np.clip(np.rint(x), -7, 7)).astype(int)


def int4_payload(scale: Vector, level: NDArray[Any]) -> bytes:
    """Return scales, then the levels plus 8 in four bits each."""
    return layout.assemble([scale.astype("<f4").tobytes(), layout.bit_string(level + 8, 4)])
