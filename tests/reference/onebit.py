"""1-bit SGD in NumPy, written from the paper: independent of the compiler and of its order of reduction.

F. Seide, H. Fu, J. Droppo, G. Li, D. Yu, "1-Bit Stochastic Gradient Descent and its Application to
Data-Parallel Distributed Training of Speech DNNs", Interspeech 2014.  Each element becomes its sign; each
sign is decoded as the mean of the elements that have it; what is lost is added to the next gradient.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


def encode(
    gradient: NDArray[np.float32], residual: NDArray[np.float32]
) -> tuple[float, float, NDArray[np.bool_]]:
    """Return both means, in float64, and the signs."""
    x = (gradient + residual).astype(np.float64)
    up = x >= 0
    return (
        float(x[up].mean()) if up.any() else 0.0,
        float(x[~up].mean()) if (~up).any() else 0.0,
        up,
    )


def decode(up: float, down: float, signs: NDArray[np.bool_]) -> NDArray[Any]:
    """Return the mean that belongs to each sign."""
    return np.where(signs, up, down)


def parse(payload: NDArray[np.uint8], n: int) -> tuple[float, float, NDArray[np.bool_]]:
    """Read a payload byte by byte: two float32, then at byte 16 one bit an element, low bit first."""
    up, down = np.frombuffer(payload[:8].tobytes(), "<f4")
    signs = [bool(payload[16 + i // 8] >> (i % 8) & 1) for i in range(n)]
    return float(up), float(down), np.array(signs, bool)
