"""What an all-reduce adds up for a bucket: its gradients end to end, and behind them who had one.

    | gradient 0 ... | gradient 1 ... | had 0 | had 1 |        float32

A gradient that did not fire on a rank is zeros there, and `had` is 0 instead of 1. The sum of `had` is the
number of ranks that had it, and 0 where nobody did: exact, whatever the order of addition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from casync.plan import Segment

    Vector = NDArray[np.float32]


def pack(segments: Sequence[Segment], values: Sequence[Vector | None], out: Vector) -> None:
    """Write the term of one rank into `out`, which has an element more a segment; absent values are None."""
    offset = 0
    for segment, own in zip(segments, values, strict=True):
        out[offset : offset + segment.elements] = 0 if own is None else own
        offset += segment.elements
    out[offset:] = [own is not None for own in values]


def unpack(segments: Sequence[Segment], total: Vector) -> list[Vector | None]:
    """The sum of each segment, within `total`; None where every rank's was absent."""
    present = total[-len(segments) :]
    values: list[Vector | None] = []
    offset = 0
    for segment, had in zip(segments, present, strict=True):
        values.append(total[offset : offset + segment.elements] if had else None)
        offset += segment.elements
    return values
