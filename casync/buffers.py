"""Buffers that are used again every step: what a run needs is allocated in the first steps, then never."""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ALIGN = 64


class Pool:
    """Free buffers by size. Thread-safe: a list's append and pop are atomic."""

    def __init__(self) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = defaultdict(list)

    def take(self, nbytes: int) -> NDArray[np.uint8]:
        """A buffer of so many bytes, aligned to 64, with any contents."""
        try:
            return self._free[nbytes].pop()
        except IndexError:
            whole = np.empty(nbytes + ALIGN, np.uint8)
            begin = -whole.ctypes.data % ALIGN
            return whole[begin : begin + nbytes]

    def lend(self, nbytes: int) -> memoryview:
        """So many bytes, with any contents, that come back by themselves when nothing refers to them.

        For what arrives: lengths may differ from step to step, so one that is an eighth shorter fits, too.
        """
        step = max(ALIGN, 1 << max(nbytes.bit_length() - 4, 0))
        buffer = self.take(-(-nbytes // step) * step)
        lent = buffer[:nbytes]
        weakref.finalize(lent, self.give, buffer).atexit = False
        return lent.data  # not the array, whose slices would refer to the buffer behind it

    def give(self, buffer: NDArray[np.uint8]) -> None:
        """Give back what `take` returned."""
        self._free[buffer.nbytes].append(buffer)


class Lease:
    """A pooled buffer with several readers: the last one to release it gives it back."""

    def __init__(self, pool: Pool, nbytes: int, readers: int) -> None:
        self.buffer = pool.take(nbytes)
        self._pool = pool
        self._readers = readers
        self._lock = threading.Lock()

    def release(self) -> None:
        """One reader is done; called in any thread."""
        with self._lock:
            self._readers -= 1
            last = self._readers == 0
        if last:
            self._pool.give(self.buffer)
