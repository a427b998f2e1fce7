"""A look at the gradients themselves, at steps so rare that it costs nothing: the 1st, 2nd, 4th, 8th, ...,
and the first with another codec.

Their norms give residuals a measure. Of a codec without state a piece of the gradient is encoded and decoded
once more, for itself: what it loses is the codec's error, whatever the topology.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from compll.codec import Item

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from casync.codecs import BatchCodec

MOST = 1 << 20
"""Elements of a gradient that are encoded for their error: the first ones."""

SEED = 1  # of a random codec's noise here: that of the run is not touched


def payload_error(codec: BatchCodec, values: NDArray[np.float32]) -> float | None:
    """The norm of what encoding loses, over that of the values; None if that is zero or not finite.

    codec: one without state.
    """
    info, norm = codec.info, float(np.linalg.norm(values))
    shared = SEED if info.keyed else None
    seed = SEED if info.random or info.keyed else None
    room = np.empty(codec.max_bytes(values.size), np.uint8)
    (encoded,) = codec.batch("encode", [Item(grad=values, out=room, seed=seed, shared_seed=shared)])
    if not (norm > 0 and np.isfinite(norm) and encoded.finite):
        return None
    decoded = np.empty(values.size, np.float32)
    codec.batch("decode", [Item(payload=encoded.value, out=decoded, shared_seed=shared)])
    return float(np.linalg.norm(decoded - values)) / norm


class Probe:
    """What was seen last. norms: of this rank's own gradients, in their own units; errors: by codec, too."""

    def __init__(self) -> None:
        self.norms: dict[str, float] = {}
        self.errors: dict[tuple[str, str], float] = {}
        self._seen: set[tuple[str, str]] = set()

    def look(
        self,
        step: int,
        gradient: str,
        values: Callable[[], NDArray[np.float32]],
        codec: BatchCodec | None,
        loss_scale: float,
    ) -> None:
        """Look at a gradient before it travels, if its time has come; only then are its values asked for.

        step: from 0; codec: None for exact.
        """
        key = (gradient, "" if codec is None else codec.info.name)
        if step & (step + 1) and key in self._seen:
            return
        self._seen.add(key)
        self._measure(key, values(), codec, loss_scale)

    def _measure(
        self, key: tuple[str, str], values: NDArray[np.float32], codec: BatchCodec | None, loss_scale: float
    ) -> None:
        gradient, _ = key
        self.norms[gradient] = float(np.linalg.norm(values)) / loss_scale
        if codec is not None and not codec.info.stateful:
            error = payload_error(codec, values[:MOST])
            if error is not None:
                self.errors[key] = error
