"""What an engine's all-reduce adds up for a bucket: its gradients end to end, and behind them who had one.

    | gradient 0 ... | gradient 1 ... | had 0 | had 1 |        float32

A gradient that did not fire on a rank is zeros there, and `had` is 0 instead of 1. The sum of `had` is the
number of ranks that had it, and 0 where nobody did: exact, whatever the order of addition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casync.rows import flat

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from casync.buffers import Pool
    from casync.plan import Partition
    from casync.rows import Values

    Vector = NDArray[np.float32]


class Terms:
    """The terms of one rank. What `pack` takes from the pool its user gives back."""

    def __init__(self, partitions: Sequence[Partition], pool: Pool) -> None:
        self._partitions, self._pool = partitions, pool

    def pack(self, partition: int, gradients: Mapping[str, Values | None]) -> Vector:
        """This rank's term; gradients that are absent are None, and none of a bucket's are rows."""
        of = self._partitions[partition]
        term = self._pool.take(4 * (of.elements + len(of.segments))).view(np.float32)
        for segment, place in zip(of.segments, self._places(of, term), strict=True):
            whole = gradients[segment.gradient]
            place[:] = 0 if whole is None else flat(whole)[segment.start : segment.stop]
        term[of.elements :] = [gradients[segment.gradient] is not None for segment in of.segments]
        return term

    def unpack(self, partition: int, total: Vector) -> list[Vector | None]:
        """The sum of each segment, within `total`; None where every rank's was absent."""
        of = self._partitions[partition]
        present = total[of.elements :]
        return [place if had else None for place, had in zip(self._places(of, total), present, strict=True)]

    def _places(self, of: Partition, term: Vector) -> Iterator[Vector]:
        offset = 0
        for segment in of.segments:
            yield term[offset : offset + segment.elements]
            offset += segment.elements
