"""Damaged and random payloads: each is decoded to n floats or refused, and no byte outside is touched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compll.codec import Codec, Item
from compll.errors import PayloadError
from compll.tools import samples
from compll.types import Array

KINDS = (
    "valid",
    "random",
    "random after 16",
    "random length",
    "truncated",
    "extended",
    "flipped",
    "head",
    "word",
)
CANARY = 0xA5
ROOM = 64  # guarded bytes on both sides of a buffer
SIZES = (0, 1, 7, 33, 1030)
GROUP = 45  # inputs made of one payload
COMPARED = 20  # of so many inputs one is also given to the interpreter
HOPPED = 7  # of so many inputs one is also the payload of a hop
SEED = 7


@dataclass(frozen=True)
class Fuzz:
    """How many inputs of each kind were decoded and refused, and the first that was answered wrongly."""

    backend: str
    counts: Mapping[str, tuple[int, int]]
    wrong: str = ""

    @property
    def decoded(self) -> int:
        """All inputs that were decoded."""
        return sum(decoded for decoded, _ in self.counts.values())

    @property
    def refused(self) -> int:
        """All inputs that were refused."""
        return sum(refused for _, refused in self.counts.values())


class Wrong(Exception):  # noqa: N818 - what is found, not an error of ours
    """An input was answered wrongly; the text says how."""


def damaged(kind: str, right: Array, n: int, rng: np.random.Generator) -> Array:
    """Return a payload of one of `KINDS`, made from one that is right for n elements."""
    size = len(right)
    match kind:
        case "random":
            return rng.integers(0, 256, size, dtype=np.uint8)
        case "random after 16":
            return np.concatenate([right[:16], rng.integers(0, 256, max(size - 16, 0), dtype=np.uint8)])
        case "random length":
            return rng.integers(0, 256, int(rng.integers(0, 2 * size + 40)), dtype=np.uint8)
        case "truncated":
            return right[: int(rng.integers(0, max(size, 1)))].copy()
        case "extended":
            return np.concatenate([right, rng.integers(0, 256, int(rng.integers(1, 40)), dtype=np.uint8)])
    changed = right.copy()
    if kind == "flipped" and size:
        changed[rng.integers(0, size, 3)] ^= np.left_shift(1, rng.integers(0, 8, 3)).astype(np.uint8)
    if kind in ("head", "word") and size >= 4:  # a number that decides how much, or where
        at = 4 * int(rng.integers(0, min(size // 4, 4) if kind == "head" else size // 4))
        edges = [0, 1, n - 1, n, n + 1, 2**31 - 1, 2**31, 2**32 - 1, int(rng.integers(0, 2 * n + 2))]
        value = edges[int(rng.integers(0, len(edges)))]
        changed[at : at + 4].view("<u4")[0] = value % 2**32
    return changed


def guarded(size: int, align: int) -> tuple[Array, Array]:
    """Return a buffer of so many bytes inside one that is filled with canaries, and that one."""
    whole = np.full(size + 2 * ROOM + align, CANARY, np.uint8)
    start = ROOM + (-(whole.ctypes.data + ROOM)) % align
    return whole[start : start + size], whole


def untouched(part: Array, whole: Array) -> bool:
    """Whether the bytes of `whole` around `part` still are canaries."""
    start = part.ctypes.data - whole.ctypes.data
    return bool((whole[:start] == CANARY).all() and (whole[start + part.nbytes :] == CANARY).all())


def fuzz(codec: Codec, encoder: Codec, meaning: Codec, inputs: int, seed: int = 0) -> Fuzz:
    """Give a codec that works in host memory so many payloads, all kinds in turn.

    Args:
        codec: whose decode, decode_add and hop are tried.
        encoder: the same codec on any backend; it makes the payloads that are damaged.
        meaning: the same codec on the interpreter; each 20th answer has to be the same.
        inputs: how many payloads.
        seed: of the damage.

    """
    rng = np.random.default_rng(seed)
    counts = {kind: [0, 0] for kind in KINDS}
    right, n = np.empty(0, np.uint8), 0
    for number in range(inputs):
        if number % GROUP == 0:
            n = int(rng.choice([*SIZES, int(rng.integers(0, 300))]))
            state = samples.state(encoder, n) or None
            grad = samples.gradient("normal", n, number)
            right = encoder.encode(grad, seed=SEED, shared_seed=SEED, state=state)
        kind = KINDS[number % len(KINDS)]
        try:
            refused = _try(codec, meaning, kind, right, damaged(kind, right, n, rng), n, number)
        except Wrong as e:
            told = f"payload {number} (seed {seed}, kind '{kind}', {n} elements): {e}"
            return Fuzz(codec.backend, _pairs(counts), told)
        counts[kind][refused] += 1
    return Fuzz(codec.backend, _pairs(counts))


def _pairs(counts: Mapping[str, list[int]]) -> dict[str, tuple[int, int]]:
    return {kind: (decoded, refused) for kind, (decoded, refused) in counts.items()}


def _try(codec: Codec, meaning: Codec, kind: str, right: Array, given: Array, n: int, number: int) -> bool:
    """Give one payload to the operations; return whether it was refused.

    Raises:
        Wrong: that is the wrong answer, or something was touched that must not be.

    """
    payload, around = guarded(len(given), 16)
    payload[:] = given
    out, beside = guarded(4 * n, 4)
    adds = number % 4 == 0
    answer = _decoded(codec, payload, out, adds=adds)
    if codec.info.hop and number % HOPPED == 0 and _hops(codec, payload, n) == (answer is None):
        raise Wrong("decode and hop differ in whether they take it")
    if codec.backend != "interp" and number % COMPARED == 0:
        again = np.full(4 * n, CANARY, np.uint8)
        if answer != _decoded(meaning, payload, again, adds=adds):
            raise Wrong("the answer is not the interpreter's")
    if not (payload == given).all():
        raise Wrong("decode changed the payload")
    if not (untouched(payload, around) and untouched(out, beside)):
        raise Wrong("decode wrote outside of its output")
    if kind == "valid" and answer is None:
        raise Wrong("a valid payload was refused")
    if kind in ("extended", "truncated") and len(given) != len(right) and answer is not None:
        raise Wrong(f"it has {len(given)} bytes instead of {len(right)}, and was decoded")
    return answer is None


def _decoded(codec: Codec, payload: Array, out: Array, *, adds: bool) -> bytes | None:
    """Decode to a buffer and return what it holds then; None if the payload is refused."""
    item = Item(payload=payload, out=out.view(np.float32), scale=0.5, shared_seed=SEED)
    try:
        (result,) = codec.batch("decode_add" if adds else "decode", [item], 1)
    except PayloadError as e:
        if not str(e).startswith(f"{codec.info.name}: "):
            raise Wrong(f"a message does not name the codec: {e}") from None
        return None
    except Exception as e:
        raise Wrong(f"{type(e).__name__} instead of PayloadError: {e}") from None
    if result.value.shape != (len(out) // 4,):
        raise Wrong(f"{result.value.shape} elements were decoded")
    return out.tobytes()


def _hops(codec: Codec, payload: Array, n: int) -> bool:
    """Whether a hop takes a payload; it must write one of its own then."""
    state = codec.new_state(n) or None
    try:
        grad = samples.gradient("normal", n)
        passed = codec.hop(payload, grad, seed=1, shared_seed=SEED, state=state)
    except PayloadError:
        return False
    except Exception as e:
        raise Wrong(f"hop: {type(e).__name__} instead of PayloadError: {e}") from None
    if len(passed) > codec.max_bytes(n):
        raise Wrong(f"hop wrote {len(passed)} bytes, more than max_bytes({n})")
    return True
