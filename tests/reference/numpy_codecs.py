"""Small NumPy codecs with the interface of `compll.codec.Codec`: independent of the compiler.

They have what makes a runtime wrong: state, randomness, a key, and payloads whose length depends on the data.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from compll.codec import Item, PayloadError, Result

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Vector = NDArray[np.float32]


@dataclass(frozen=True)
class Info:
    name: str
    exact_size: bool
    stateful: bool = False
    random: bool = False
    keyed: bool = False
    feedback: bool = False
    hop: bool = True
    sparse: bool = False
    summable: bool = False
    fingerprint: str = "reference"
    params: dict[str, object] = field(default_factory=dict)
    why: dict[str, str] = field(default_factory=dict)


class NumpyCodec(ABC):
    """encode, decode, decode_add and hop from two pure functions; feedback adds the residual around them."""

    info: Info

    @abstractmethod
    def max_bytes(self, n: int) -> int:
        """Of the codec."""

    @abstractmethod
    def compress(self, x: Vector, seed: int, shared: int) -> bytes:
        """Of the codec."""

    @abstractmethod
    def expand(self, payload: bytes, n: int, shared: int) -> Vector:
        """Of the codec."""

    def new_state(self, n: int) -> dict[str, Vector]:
        return {"residual": np.zeros(n, np.float32)} if self.info.feedback else {}

    def encode(self, grad: Vector, item: Item) -> tuple[bytes, bool]:
        finite = bool(np.isfinite(grad).all())
        x = grad + item.state["residual"] if self.info.feedback else grad
        shared = 0 if item.shared_seed is None else item.shared_seed
        with np.errstate(all="ignore"):
            payload = self.compress(x, item.seed, shared)
            if self.info.feedback:
                item.new_state["residual"][:] = x - self.expand(payload, x.size, shared)
        return payload, finite

    def batch(self, op: str, items: Sequence[Item], threads: int | None = None) -> list[Result]:  # noqa: ARG002
        return [self.run(op, item) for item in items]

    def run(self, op: str, item: Item) -> Result:
        n = (item.grad if op in ("encode", "hop") else item.out).size
        shared = 0 if item.shared_seed is None else item.shared_seed
        if self.info.keyed:
            assert item.shared_seed is not None
        if op == "encode":
            payload, finite = self.encode(item.grad, item)
        elif op == "hop":
            total = item.grad + self.expand(item.payload.tobytes(), n, shared)
            payload, finite = self.encode(total * np.float32(item.scale), item)
        else:
            value = self.expand(item.payload.tobytes(), n, shared)
            item.out[:] = value if op == "decode" else item.out + np.float32(item.scale) * value
            return Result(item.out, True)
        assert len(payload) <= self.max_bytes(n) == item.out.size or self.info.exact_size
        item.out[: len(payload)] = np.frombuffer(payload, np.uint8)
        return Result(item.out[: len(payload)], finite)


class OneBit(NumpyCodec):
    """Signs and two means, with error feedback (Seide et al. 2014)."""

    info = Info("reference-onebit", exact_size=True, stateful=True, feedback=True)

    def max_bytes(self, n: int) -> int:
        return 8 + (n + 7) // 8

    def compress(self, x: Vector, seed: int, shared: int) -> bytes:  # noqa: ARG002
        up = x >= 0
        means = [x[up].mean() if up.any() else 0, x[~up].mean() if not up.all() else 0]
        return np.array(means, np.float32).tobytes() + np.packbits(up).tobytes()

    def expand(self, payload: bytes, n: int, shared: int) -> Vector:  # noqa: ARG002
        if len(payload) != self.max_bytes(n):
            raise PayloadError(f"{len(payload)} bytes for {n} elements")
        high, low = np.frombuffer(payload[:8], np.float32)
        up = np.unpackbits(np.frombuffer(payload[8:], np.uint8), count=n).astype(bool)
        return np.where(up, high, low)


class Dithered(NumpyCodec):
    """Eight bits between minimum and maximum, rounded at random with the private seed."""

    info = Info("reference-dithered", exact_size=True, random=True)

    def max_bytes(self, n: int) -> int:
        return 8 + n

    def compress(self, x: Vector, seed: int, shared: int) -> bytes:  # noqa: ARG002
        low, gap = x.min(), (x.max() - x.min()) / np.float32(255)
        noise = np.random.default_rng(seed).random(x.size, np.float32)
        q = np.floor((x - low) / gap + noise) if gap > 0 else np.zeros_like(x)
        return np.array([low, gap], np.float32).tobytes() + np.clip(q, 0, 255).astype(np.uint8).tobytes()

    def expand(self, payload: bytes, n: int, shared: int) -> Vector:  # noqa: ARG002
        if len(payload) != 8 + n:
            raise PayloadError(f"{len(payload)} bytes for {n} elements")
        low, gap = np.frombuffer(payload[:8], np.float32)
        return np.frombuffer(payload[8:], np.uint8).astype(np.float32) * gap + low


class Masked(NumpyCodec):
    """Elements above the mean magnitude, flipped by a shared key, with feedback: of data-dependent length."""

    info = Info("reference-masked", exact_size=False, stateful=True, keyed=True, feedback=True)

    def max_bytes(self, n: int) -> int:
        return (n + 7) // 8 + 4 * n

    def signs(self, n: int, shared: int) -> Vector:
        return np.random.default_rng(shared).choice(np.array([-1, 1], np.float32), n)

    def compress(self, x: Vector, seed: int, shared: int) -> bytes:  # noqa: ARG002
        kept = np.abs(x) >= np.abs(x).mean()
        return np.packbits(kept).tobytes() + (x * self.signs(x.size, shared))[kept].tobytes()

    def expand(self, payload: bytes, n: int, shared: int) -> Vector:
        head = (n + 7) // 8
        if len(payload) < head:
            raise PayloadError(f"{len(payload)} bytes for {n} elements")
        kept = np.unpackbits(np.frombuffer(payload[:head], np.uint8), count=n).astype(bool)
        if len(payload) != head + 4 * kept.sum():
            raise PayloadError(f"{len(payload)} bytes for {kept.sum()} of {n} elements")
        out = np.zeros(n, np.float32)
        out[kept] = np.frombuffer(payload[head:], np.float32)
        return out * self.signs(n, shared)


CODECS: tuple[NumpyCodec, ...] = (OneBit(), Dithered(), Masked())
