"""Natural compression and natural dithering in NumPy, from the paper; independent of the compiler.

S. Horvath et al., "Natural Compression for Distributed Deep Learning", 2019: definition 1 (a value between
two powers of two becomes either, with the mean kept) and its dithering, whose levels are 0, 2^(1-s), ..., 1
times a norm.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from blocks import cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]

EIGHTH = 1 / 8  # the variance of natural compression, relative to the square


def around(size: NDArray[Any], levels: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return the level below or at each size, the one above, and the probability of the upper one."""
    at = np.clip(np.searchsorted(levels, size, side="right") - 1, 0, len(levels) - 2)
    low, high = levels[at], levels[at + 1]
    return low, high, np.clip((size - low) / (high - low), 0, 1)


def natural_levels() -> NDArray[Any]:
    """Return 0 and the powers of two that are normal float32 numbers."""
    return np.concatenate([[0.0], 2.0 ** np.arange(-126, 128)])


def dithering_levels(s: int) -> NDArray[Any]:
    """Return 0 and s powers of two up to 1."""
    return np.concatenate([[0.0], 2.0 ** np.arange(1 - s, 1)])


def tops(gradient: Vector, bucket: int) -> NDArray[Any]:
    """Return the greatest size of each bucket, for each element."""
    greatest = [np.full(len(part), np.abs(part).max(), np.float64) for part in cut(gradient, bucket)]
    return np.concatenate(greatest) if greatest else np.zeros(0)


def dithering_factor(m: int, s: int) -> float:
    """Return the paper's bound of the variance relative to the square of a bucket of m elements."""
    part = m**0.5 * 2.0 ** (1 - s)
    return EIGHTH + part * min(1.0, part)
