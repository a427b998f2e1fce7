"""Threshold binary quantization in NumPy, from the paper; independent of the compiler.

N. Strom, "Scalable Distributed DNN Training Using Commodity GPU Cloud Computing", Interspeech 2015: an
element whose accumulated gradient reaches the threshold sends plus or minus the threshold, which is then
subtracted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import layout
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]


def step(gradient: Vector, residual: Vector, threshold: float) -> tuple[bytes, Vector, Vector]:
    """Return the payload (two bits an element, the quantum plus 1), what it sends, and the new residual."""
    tau = np.float32(threshold)
    with np.errstate(all="ignore"):
        x = gradient + residual
        quantum = (x >= tau).astype(int) - (x <= -tau)
        sent = quantum.astype(np.float32) * tau
        rest = x - sent
    rest[~np.isfinite(rest)] = 0
    return layout.bit_string(quantum + 1, 2), sent, rest
