"""Payloads put together by hand, from docs/wire-format.md: counts, then fields at multiples of 16."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray


def assemble(fields: Sequence[bytes], counts: Sequence[int] = ()) -> bytes:
    """Return the payload of vector fields, behind their counts."""
    out = b"".join(count.to_bytes(4, "little") for count in counts)
    for field in fields:
        out += bytes(-len(out) % 16) + field
    return out


def bit_string(codes: NDArray[Any], width: int) -> bytes:
    """Return codes of `width` bits as one little-endian string of bits."""
    bits = codes.astype(np.int64)[:, None] >> np.arange(width) & 1
    return np.packbits(bits.astype(np.uint8).ravel(), bitorder="little").tobytes()


def pair(index: NDArray[Any], value: NDArray[Any], *, counted: bool) -> bytes:
    """Return the payload of positions and their values; `counted` if a receiver cannot know how many."""
    counts = (len(index),) if counted else ()
    return assemble([index.astype("<u4").tobytes(), value.astype("<f4").tobytes()], counts)
