"""Blockwise quantizers in NumPy, from the papers; independent of the compiler.

int8: the absmax form of T. Dettmers, "8-Bit Approximations for Parallelism in Deep Learning", ICLR 2016,
in blocks.  qsgd: D. Alistarh et al., "QSGD", NeurIPS 2017, section 3 in buckets: |g| / norm lies between two
of s levels, and becomes the upper one with the probability that makes the mean right.  int8minmax: S. Gan et
al., "BAGUA", 2021 (ByteGrad).  dynamic8: T. Dettmers, "8-Bit Approximations for Parallelism in Deep
Learning", ICLR 2016 (dynamic tree), with 1 for the pattern that would be a second zero, as in its author's
library.  hadamard4: J. Jia et al., "SDP4Bit", NeurIPS 2024: Sylvester's matrix.
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


def int8minmax(gradient: Vector, block: int) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Return middle and step of each block, in float64, and the exact (unrounded) level of each element."""
    parts = cut(gradient.astype(np.float64), block)
    middle = np.array([(part.max() + part.min()) / 2 for part in parts])
    step = np.array([(part.max() - part.min()) / 254 for part in parts])
    wide, where = np.repeat(step, block)[: len(gradient)], np.repeat(middle, block)[: len(gradient)]
    return middle, step, np.divide(gradient - where, wide, out=np.zeros(len(gradient)), where=wide > 0)


def tree_values() -> NDArray[Any]:
    """Return the values of dynamic tree quantization in order, by walking the 7 bits after a sign."""
    sizes = []
    for pattern in range(1, 128):
        bits = f"{pattern:07b}"
        zeros = bits.index("1")
        fraction = bits[zeros + 1 :]
        share = (int(fraction, 2) + 0.5) / 2 ** len(fraction) if fraction else 0.5
        sizes.append(10.0**-zeros * (0.1 + 0.9 * share))
    return np.array(sorted([-size for size in sizes] + [0.0, *sizes, 1.0]))


def sylvester(size: int) -> NDArray[Any]:
    """Return the Hadamard matrix of a power of two by doubling."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def rotated(values: NDArray[Any]) -> NDArray[Any]:
    """Return each 32 values, zeros behind the last, times H / sqrt(32): its own inverse."""
    padded = np.zeros(-(-len(values) // 32) * 32)
    padded[: len(values)] = values
    return (padded.reshape(-1, 32) @ sylvester(32) / np.sqrt(32)).ravel()
