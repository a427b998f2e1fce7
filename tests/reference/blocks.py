"""Blockwise quantizers in NumPy, from the papers; independent of the compiler.

int8: the absmax form of T. Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", ICLR 2016,
in blocks.  qsgd: D. Alistarh et al., "QSGD", NeurIPS 2017, section 3 in buckets: |g| / norm lies between two
of s levels, and becomes the upper one with the probability that makes the mean right.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]


def cut(gradient: Vector, block: int) -> list[Vector]:
    """Return the blocks of a gradient; the last one may be shorter."""
    return [gradient[at : at + block] for at in range(0, len(gradient), block)]


def int8(gradient: Vector, block: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return one scale a block, in float64, and the exact (unrounded) level of each element."""
    scales = np.array([np.abs(part).max() / 127 for part in cut(gradient.astype(np.float64), block)])
    return scales, gradient / np.repeat(scales, block)[: len(gradient)]


def qsgd(gradient: Vector, bits: int, bucket: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Return one L2 norm a bucket, in float64, and the exact level of each element, without its sign."""
    norms = np.array([np.sqrt(np.sum(part**2)) for part in cut(gradient.astype(np.float64), bucket)])
    return norms, np.abs(gradient) / np.repeat(norms, bucket)[: len(gradient)] * (2**bits - 1)


def parse_int8(payload: NDArray[np.uint8], n: int, block: int) -> tuple[Vector, NDArray[Any]]:
    """Read scales at 0, and the levels at the next multiple of 16."""
    count = -(-n // block)
    start = -(-4 * count // 16) * 16
    return np.frombuffer(payload[: 4 * count].tobytes(), "<f4"), np.frombuffer(
        payload[start:].tobytes(), "i1"
    )


def parse_qsgd(
    payload: NDArray[np.uint8], n: int, bits: int, bucket: int
) -> tuple[Vector, NDArray[Any], NDArray[Any]]:
    """Read norms at 0, then levels and signs as bit strings, each at the next multiple of 16."""
    count = -(-n // bucket)
    levels_at = -(-4 * count // 16) * 16
    signs_at = -(-(levels_at + (n * bits + 7) // 8) // 16) * 16
    levels = int.from_bytes(payload[levels_at:signs_at].tobytes(), "little")
    signs = int.from_bytes(payload[signs_at:].tobytes(), "little")
    level = [levels >> (i * bits) & (2**bits - 1) for i in range(n)]
    return (
        np.frombuffer(payload[: 4 * count].tobytes(), "<f4"),
        np.array(level, int),
        np.array([signs >> i & 1 for i in range(n)], bool),
    )
