"""Philox4x32-10 in NumPy: the definition of every random number of the language.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11.  LANGUAGE: key = seed, counter =
(p, p >> 32, site, part) with p = tile * 128 + lane of the element; nothing depends on threads or order.
"""

from __future__ import annotations

import numpy as np

from compll.types import Array

TILE, LANES, ROWS = 1024, 128, 8


def philox(counter: tuple[Array, Array, Array, Array], seed: int) -> tuple[Array, Array, Array, Array]:
    """Return the four 32-bit words for counters (arrays of integers below 2^32) and a 64-bit key."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) for c in counter)
    low = np.uint64(0xFFFFFFFF)
    k0, k1 = seed & 0xFFFFFFFF, seed >> 32
    for _ in range(10):
        p0, p1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            p1 & low,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            p0 & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return c0.astype(np.uint32), c1.astype(np.uint32), c2.astype(np.uint32), c3.astype(np.uint32)


def _place(index: Array) -> tuple[Array, Array]:
    i = np.asarray(index, np.int64)
    return i // TILE * LANES + i % LANES, i // LANES % ROWS


def words(index: Array, site: int, seed: int) -> Array:
    """Return the 32-bit word of each element for `random`: part = row / 4, word = row % 4."""
    p, row = _place(index)
    zero = np.zeros_like(p)
    four = np.stack(philox((p & 0xFFFFFFFF, p >> 32, zero + site, row // 4), seed))
    return np.asarray(np.take_along_axis(four, (row % 4)[None], axis=0)[0])


def halves(index: Array, site: int, seed: int) -> Array:
    """Return the 16-bit half of each element for `stochastic_round`: word row / 2, low half first."""
    p, row = _place(index)
    zero = np.zeros_like(p)
    four = np.stack(philox((p & 0xFFFFFFFF, p >> 32, zero + site, zero), seed))
    word = np.take_along_axis(four, (row // 2)[None], axis=0)[0]
    return np.asarray((word >> (16 * (row % 2)).astype(np.uint32)) & np.uint32(0xFFFF))
