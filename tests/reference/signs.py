"""One-bit codecs that send signs, in NumPy, from the papers; independent of the compiler.

efsignsgd: S. P. Karimireddy et al., "Error Feedback Fixes SignSGD", ICML 2019.  signsgd: J. Bernstein et al.,
"signSGD", ICML 2018, with its majority vote.  blocksign: S. Zheng et al., "Communication-Efficient
Distributed Blockwise Momentum SGD with Error-Feedback", NeurIPS 2019.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from blocks import cut

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]


def mean_sizes(x: Vector, block: int) -> NDArray[Any]:
    """Return |x_b|_1 / length of each block, in float64; one block of all if it is long enough."""
    return np.array([np.abs(part.astype(np.float64)).mean() for part in cut(x, block)])


def signs(x: Vector) -> NDArray[Any]:
    """Return 1, or -1 for what is below 0."""
    return np.where(x < 0, np.float32(-1), np.float32(1))


def parse(payload: NDArray[np.uint8], n: int, scales: int) -> tuple[Vector, NDArray[Any]]:
    """Read scales, one at least, and the signs from the next multiple of 16."""
    start = -(-4 * scales // 16) * 16
    bits = np.unpackbits(payload[start:], bitorder="little", count=n)
    return np.frombuffer(payload[: 4 * scales].tobytes(), "<f4"), np.where(bits, -1, 1).astype(np.float32)


def majority(gradients: list[Vector]) -> Vector:
    """Return the sign that most have; a tie counts as positive."""
    return signs(np.sum([signs(g) for g in gradients], axis=0))
