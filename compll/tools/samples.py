"""Gradients to try codecs on, with every edge that float32 has, and states that are not zero."""

from __future__ import annotations

import numpy as np

from compll.codec import Codec
from compll.types import Array

EDGES = np.array(
    [0.0, -0.0, 1e-45, -1e-45, 1e-38, 3.4e38, -3.4e38, np.nan, np.inf, -np.inf, 1.0, -1.0, 0.5, 2.5, -1.5],
    np.float32,
)
LABELS = ("normal", "constant", "zeros", "denormal", "huge", "mixed")
TAILS = ("normal", "heavy")  # how gradients are distributed: by Gauss, and by Student with three degrees


def gradient(label: str, n: int, seed: int = 1) -> Array:
    """Return n float32 elements of one kind of `LABELS` or `TAILS`; "mixed" are all of `EDGES`.

    Raises:
        ValueError: there is no such kind.

    """
    rng = np.random.default_rng([seed, n])
    match label:
        case "normal":
            return rng.standard_normal(n).astype(np.float32)
        case "heavy":
            return rng.standard_t(3, n).astype(np.float32)
        case "constant":
            return np.full(n, 0.1, np.float32)
        case "zeros":
            return rng.choice(np.array([0.0, -0.0], np.float32), n)
        case "denormal":
            return (rng.integers(-1000, 1000, n) * np.float64(1e-45)).astype(np.float32)
        case "huge":
            return rng.choice(np.array([3.4e38, -3.4e38, 1e38], np.float32), n)
        case "mixed":
            return rng.choice(EDGES, n)
    raise ValueError(label)


def state(codec: Codec, n: int) -> dict[str, Array]:
    """Return a state from -0.5 to 0.5, in host memory; empty for a codec that keeps none."""
    return {name: np.linspace(-0.5, 0.5, n, dtype=np.float32) for name in codec.new_state(n)}


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays hold the same bits: NaN equals NaN, and zeros of different sign differ."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
