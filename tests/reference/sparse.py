"""Sparsifiers in NumPy, from the papers; independent of the compiler but for the words of Philox.

topk, randomk: S. U. Stich et al., "Sparsified SGD with Memory", NeurIPS 2018.  graddrop: A. F. Aji,
K. Heafield, "Sparse Communication for Distributed Gradient Descent", EMNLP 2017.  dgc: Y. Lin et al., "Deep
Gradient Compression", ICLR 2018, with momentum correction and momentum factor masking.  sidco (SIDCo-E):
A. M. Abdelmoniem et al., "An Efficient Statistical-based Gradient Compression Technique", MLSys 2021.
threshold: A. N. Sahu et al., "Rethinking Gradient Sparsification as Total Error Minimization", NeurIPS 2021.
adacomp: C.-Y. Chen et al., "AdaComp", AAAI 2018, algorithm 2 with its scale factor of 2.
The sample, what happens at the threshold itself, and the bound of twice the wanted number are ours.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import layout
import numpy as np

from compll import rng

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vector = NDArray[np.float32]
    Positions = NDArray[np.int64]

f32 = np.float32


def ceil_of(share: float, n: int) -> int:
    """Return ceil(share * n), in float32."""
    return math.ceil(f32(share) * f32(n))


def draw(n: int, m: int, seed: int) -> Positions:
    """Return one position of each of min(m, n) equal stretches of 0 .. n-1."""
    m = min(m, n)
    if m == 0:
        return np.zeros(0, np.int64)
    low, high = np.arange(m) * n // m, np.arange(1, m + 1) * n // m
    return low + (rng.words(np.arange(m), 0, seed).astype(np.int64) * (high - low) >> 32)


def topk(gradient: Vector, ratio: float) -> Positions:
    """Return the positions of the ceil(ratio n) greatest sizes: NaN first, equal ones from the front."""
    size = np.abs(gradient.astype(np.float64))
    first = np.lexsort((np.arange(len(size)), -np.nan_to_num(size, nan=0, posinf=np.inf), ~np.isnan(size)))
    return np.sort(first[: ceil_of(ratio, len(size))])


def beyond(x: Vector, threshold: float, limit: int) -> Positions:
    """Return the first positions of finite values that are not 0 and reach the threshold."""
    size = np.abs(x)
    return np.flatnonzero((size >= f32(threshold)) & (size > 0) & (size < np.inf))[:limit]


def finite(x: Vector) -> Vector:
    """Return a state: what is not finite is not kept."""
    return np.where(np.isfinite(x), x, f32(0))


def graddrop(
    gradient: Vector, residual: Vector, drop: float, sampling: float, seed: int
) -> tuple[bytes, Positions, Vector]:
    """Return payload, positions, and the new residual."""
    with np.errstate(all="ignore"):
        x, n = gradient + residual, len(gradient)
    kept = f32(1) - f32(drop)
    sample = np.sort(np.abs(x[draw(n, max(ceil_of(sampling, n), math.ceil(f32(16) / kept)), seed)]))
    threshold = sample[int(f32(drop) * f32(len(sample)))] if n else 0
    index = beyond(x, threshold, 2 * math.ceil(kept * f32(n)))
    rest = finite(x)
    rest[index] = 0
    return layout.pair(index, x[index], counted=True), index, rest


def dgc(
    gradient: Vector, u: Vector, v: Vector, *, ratio: float, momentum: float, sampling: float, seed: int
) -> tuple[bytes, Positions, Vector, Vector]:
    """Return payload, positions, and the new u and v."""
    with np.errstate(all="ignore"):
        u = f32(momentum) * u + gradient
        v = v + u
    n = len(gradient)
    sample = np.sort(np.abs(v[draw(n, max(ceil_of(sampling, n), math.ceil(f32(16) / f32(ratio))), seed)]))
    threshold = sample[-ceil_of(ratio, len(sample))] if n else 0
    index = beyond(v, threshold, 2 * ceil_of(ratio, n))
    payload = layout.pair(index, v[index], counted=True)
    u, v = finite(u), finite(v)
    u[index] = v[index] = 0
    return payload, index, u, v


def sidco_threshold(gradient: Vector, ratio: float, stages: int) -> float:
    """Return the threshold of as many fits of an exponential distribution, in float64, without a bound."""
    size = np.abs(gradient.astype(np.float64))
    threshold, left = 0.0, float(f32(ratio))
    for stage in range(stages):
        share = left if stage == stages - 1 else max(left, 0.25)
        over = size[size > threshold] - threshold if stage else size
        threshold += (float(over.mean()) if len(over) else 0.0) * math.log(1 / share)
        left /= share
    return threshold


def randomk(gradient: Vector, ratio: float, shared_seed: int) -> tuple[bytes, Positions]:
    """Return the payload, values alone, and the positions that both sides draw."""
    index = draw(len(gradient), ceil_of(ratio, len(gradient)), shared_seed)
    return gradient[index].astype("<f4").tobytes(), index


def decoded(n: int, index: Positions, value: NDArray[Any]) -> Vector:
    """Return zeros with the values at their positions."""
    out = np.zeros(n, f32)
    out[index] = value
    return out


def threshold(gradient: Vector, residual: Vector, value: float) -> tuple[bytes, Positions, Vector]:
    """Return payload, positions, and the new residual."""
    with np.errstate(all="ignore"):
        x = gradient + residual
    index = beyond(x, value, len(x))
    rest = finite(x)
    rest[index] = 0
    return layout.pair(index, x[index], counted=True), index, rest


def adacomp(gradient: Vector, residual: Vector, bins: int) -> tuple[float, Positions, NDArray[Any]]:
    """Return the mean of the bins' maxima in float64, the positions, and whether each is negative."""
    with np.errstate(all="ignore"):
        x = gradient + residual
        soft = x + gradient
    size = np.where(np.isfinite(x), np.abs(x), 0)
    tops = np.array([size[at : at + bins].max() for at in range(0, len(x), bins)])
    reaches = np.abs(soft) >= np.repeat(tops, bins)[: len(x)]
    index = np.flatnonzero(reaches & (size > 0))
    return float(tops.astype(np.float64).mean()) if len(tops) else 0.0, index, x[index] < 0
