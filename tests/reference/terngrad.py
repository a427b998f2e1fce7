"""Stochastic quantization between minimum and maximum in NumPy, from the papers; independent of the compiler.

W. Wen et al., "TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning", NeurIPS
2017, and the k-bit form in which Y. Bai et al., "Gradient Compression Supercharged High-Performance Data
Parallel DNN Training" (HiPress), SOSP 2021, use it: a value between two levels becomes either of them, with
the probabilities that make the result's mean the value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def levels(
    gradient: NDArray[np.float32], bitwidth: int, uniform: NDArray[np.float64]
) -> tuple[float, float, NDArray[Any]]:
    """Return the least value, the gap between levels, and each element's level for given noise in (0, 1)."""
    low, high = float(gradient.min()), float(gradient.max())
    gap = (high - low) / (2**bitwidth - 1)
    if gap == 0:
        return low, gap, np.zeros(len(gradient), int)
    exact = (gradient.astype(np.float64) - low) / gap
    below = np.floor(exact)
    return low, gap, (below + (exact - below > uniform)).astype(int)


def decode(low: float, gap: float, level: NDArray[Any]) -> NDArray[Any]:
    """Return the values of levels."""
    return low + gap * level


def parse(payload: NDArray[np.uint8], n: int) -> tuple[int, float, float, NDArray[Any]]:
    """Read a payload byte by byte: bitwidth, low, gap, then from byte 16 the levels as a bit string."""
    bitwidth = int(payload[0])
    low, gap = np.frombuffer(payload[4:12].tobytes(), "<f4")
    string = int.from_bytes(payload[16:].tobytes(), "little")
    level = [string >> (i * bitwidth) & (2**bitwidth - 1) for i in range(n)]
    return bitwidth, float(low), float(gap), np.array(level, int)
