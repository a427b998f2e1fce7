"""What `compll run` finds out about a codec: backends against the interpreter, sizes, errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compll.codec import Codec
from compll.types import Array

EDGES = np.array([0.0, -0.0, 1e-45, -1e-45, 3e38, -3e38, np.nan, np.inf, -np.inf, 1.0, -1.0], np.float32)


@dataclass(frozen=True)
class Case:
    """One gradient that a codec was tried on."""

    label: str
    n: int
    payload_bytes: int
    ratio: float
    relative_error: float
    equal: bool


def gradients(n: int, seed: int) -> Mapping[str, Array]:
    """Return gradients of n elements: normal, constant, zero, and with every edge value."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal(n).astype(np.float32)
    edges = normal.copy()
    some = rng.random(n) < 0.01
    edges[some] = rng.choice(EDGES, int(some.sum()))
    return {
        "normal": normal,
        "constant": np.full(n, 0.1, np.float32),
        "zero": np.zeros(n, np.float32),
        "edge values": edges,
    }


def run(codec: Codec, reference: Codec, n: int, seed: int) -> list[Case]:
    """Run every operation on gradients of n and of ragged sizes on both; compare all that they write."""
    cases = []
    for size in dict.fromkeys((n, 0, 1, 1023, 1025)):
        for label, grad in gradients(size, seed).items():
            cases.append(_case(codec, reference, label, grad, seed))
    return cases


def _case(codec: Codec, reference: Codec, label: str, grad: Array, seed: int) -> Case:
    n = len(grad)
    states = [c.new_state(n) for c in (codec, reference)]
    payloads = [
        c.encode(grad, seed=seed, state=s if c.info.stateful else None)
        for c, s in zip((codec, reference), states, strict=True)
    ]
    out, expected = (
        c.decode(p, n, shared_seed=seed) for c, p in zip((codec, reference), payloads, strict=True)
    )
    added = [np.ones(n, np.float32), np.ones(n, np.float32)]
    for c, a in zip((codec, reference), added, strict=True):
        c.decode_add(payloads[1], a, 0.5, shared_seed=seed)
    hopped = [_hop(c, payloads[1], grad, seed) for c in (codec, reference) if c.info.hop]
    equal = (
        np.array_equal(payloads[0], payloads[1])
        and _same(out, expected)
        and _same(*added)
        and all(_same(states[0][k], states[1][k]) for k in states[0])
        and all(np.array_equal(h, hopped[0]) for h in hopped)
    )
    with np.errstate(all="ignore"):
        norm = float(np.linalg.norm(grad.astype(np.float64)))
        error = (
            float(np.linalg.norm(out.astype(np.float64) - grad)) / norm
            if norm
            else float(np.abs(out).max(initial=0))
        )
    size = len(payloads[0])
    return Case(label, n, size, 4 * n / size if size else 0.0, error, equal)


def _hop(codec: Codec, payload: Array, grad: Array, seed: int) -> Array:
    state = codec.new_state(len(grad)) if codec.info.stateful else None
    made: Array = codec.hop(payload, grad, seed=seed, shared_seed=seed, scale=0.5, state=state)
    return made


def _same(a: Array, b: Array) -> bool:
    return np.array_equal(a.view(np.uint32), b.view(np.uint32))
