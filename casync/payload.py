"""What tasks hand to each other: payloads, and sums of what they hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from casync.buffers import Lease

    Vector = NDArray[np.float32]
    Bytes = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Payload:
    """A body on its way. absent: some segment is; finite: all that was merged into it is.

    body: as it travels: in host memory, or on a GPU, between ranks that all have one. parts: the payloads by
    segment where gradients lie, if they are known to lie there, too; else they are found in the body.
    exact: float32. down: of the codec of sums.
    """

    body: Bytes
    absent: bool
    finite: bool
    lease: Lease | None = None
    exact: bool = False
    down: bool = False
    parts: Sequence[Bytes | None] | None = None


@dataclass(slots=True)
class Sum:
    """The terms merged so far of one partition, by segment; None where every term was absent.

    values: of the gradient, or, where payloads are added directly, of the payload.
    """

    values: list[Vector | None]
    finite: bool = True
    whole: Vector | None = None  # the buffer of the pool in which all values lie, if they lie in one
