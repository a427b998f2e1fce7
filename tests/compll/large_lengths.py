"""Codecs on a gradient of more than 2^31 elements: run as `python large_lengths.py NAME` by test_large.py.

Gradients are untouched zero pages but for a few elements, so that they take no memory; what a payload and an
output must be is known in closed form.  Prints the most memory that was resident, in GiB.
"""

from __future__ import annotations

import resource
import sys

import numpy as np

import compll
from compll import rng
from compll.types import Array

N = 2**31 + 4097
STEP = 1 << 26  # elements that are looked at together
VALUES = {5: -1.0, 2**31 - 1: 2.0, 2**31: -2.0, 2**31 + 5: -3.0, N - 1: 4.0}
f32 = np.float32


def gradient() -> Array:
    g = np.zeros(N, f32)
    for at, value in VALUES.items():
        g[at] = value
    return g


def differences(x: Array, usual: float) -> dict[int, float]:
    """Return the elements of a vector that are not `usual`."""
    found: dict[int, float] = {}
    for start in range(0, len(x), STEP):
        part = x[start : start + STEP]
        found |= {start + int(i): part[i].item() for i in np.flatnonzero(part != usual)}
        assert len(found) < 100
    return found


def onebit() -> None:
    """A bit and feedback: two means, of the elements below zero and of all others."""
    codec = compll.compile("onebit", "cpp")
    g, state = gradient(), codec.new_state(N)
    payload = codec.encode(g, state=state)
    below = {at: v for at, v in VALUES.items() if v < 0}
    up, down = f32(6) / f32(N - len(below)), f32(-6) / f32(len(below))
    assert len(payload) == codec.max_bytes(N) == 16 + (N + 7) // 8
    assert payload[:8].view(f32).tolist() == [up, down]
    cleared: dict[int, int] = {}
    for at in below:
        cleared[at // 8] = cleared.get(at // 8, 0xFF) & ~(1 << at % 8)
    assert differences(payload[16:], 0xFF) == cleared | {N // 8: (1 << N % 8) - 1}
    decoded = {at: down.item() for at in below}
    kept = {at: (f32(v) - f32(decoded.get(at, up))).item() for at, v in VALUES.items()}
    assert differences(state["residual"], -up) == kept
    out = codec.decode(payload, N, out=state["residual"])
    assert differences(out, up) == decoded


def int8() -> None:
    """Blocks with a scale each."""
    codec = compll.compile("int8", "cpp")
    payload = codec.encode(gradient())
    blocks = -(-N // 256)
    start = -(-4 * blocks // 16) * 16
    assert len(payload) == start + N
    top = {at // 256: max(abs(v) for k, v in VALUES.items() if k // 256 == at // 256) for at in VALUES}
    scales = {block: f32(f32(v) / f32(127)) for block, v in top.items()}
    assert differences(payload[: 4 * blocks].view(f32), 0) == {b: s.item() for b, s in scales.items()}
    levels = {at: int(np.rint(f32(v) / scales[at // 256])) for at, v in VALUES.items()}
    assert differences(payload[start:].view(np.int8), 0) == levels
    decoded = {at: (f32(q) * scales[at // 256]).item() for at, q in levels.items()}
    assert differences(codec.decode(payload, N), 0) == decoded


def terngrad() -> None:
    """Random numbers: elements beyond 2^31 draw their own."""
    codec = compll.compile("terngrad", "cpp", bitwidth=2)
    g = gradient()
    payload = codec.encode(g, seed=9)
    low, gap = f32(-3), f32(f32(7) / f32(3))
    assert payload[4:12].view(f32).tolist() == [low, gap]
    for start in (0, 2**31 - 1024, 2**31, N - N % 1024):
        at = np.arange(start, min(start + 1024, N))
        x = (g[at] - low) / gap
        u = (rng.halves(at, 0, 9).astype(f32) + f32(0.5)) * f32(2**-16)
        want = np.floor(x) + (x - np.floor(x) > u)
        packed = payload[16 + start // 4 : 16 + -(-(start + len(at)) // 4)]
        levels = (packed[:, None] >> np.array([0, 2, 4, 6], np.uint8) & 3).reshape(-1)[: len(at)]
        assert (levels == want).all()
    out = codec.decode(payload, N)
    assert (out[at] == levels * gap + low).all()


if __name__ == "__main__":
    {"onebit": onebit, "int8": int8, "terngrad": terngrad}[sys.argv[1]]()
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f}")
