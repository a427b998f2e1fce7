"""Buffers that are used again every step: what a run needs is allocated in the first steps, then never."""

from __future__ import annotations

import threading
import weakref
from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

ALIGN = 64


def aligned_empty(nbytes: int) -> Bytes:
    """So many bytes of host memory, aligned to 64."""
    whole = np.empty(nbytes + ALIGN, np.uint8)
    begin = -whole.ctypes.data % ALIGN
    return whole[begin : begin + nbytes]


class Pool:
    """Free buffers by size. Thread-safe: a list's append and pop are atomic."""

    def __init__(self, allocate: Callable[[int], Bytes] = aligned_empty) -> None:
        """`allocate`: a new buffer of so many bytes, aligned to 64, in the memory that this is a pool of."""
        self._allocate = allocate
        self._free: dict[int, list[Bytes]] = defaultdict(list)

    def take(self, nbytes: int) -> Bytes:
        """A buffer of so many bytes, aligned to 64, with any contents."""
        try:
            return self._free[nbytes].pop()
        except IndexError:
            return self._allocate(nbytes)

    def lend(self, nbytes: int) -> memoryview:
        """So many bytes, with any contents, that come back by themselves when nothing refers to them.

        For what arrives: lengths may differ from step to step, so one that is an eighth shorter fits, too.
        """
        step = max(ALIGN, 1 << max(nbytes.bit_length() - 4, 0))
        buffer = self.take(-(-nbytes // step) * step)
        lent = buffer[:nbytes]
        weakref.finalize(lent, self.give, buffer).atexit = False
        return lent.data  # not the array, whose slices would refer to the buffer behind it

    def give(self, buffer: Bytes) -> None:
        """Give back what `take` returned."""
        self._free[buffer.nbytes].append(buffer)


class Lease:
    """Pooled buffers with several readers: the last one to release them gives them back."""

    def __init__(self, pool: Pool, nbytes: int, readers: int) -> None:
        self.buffer = pool.take(nbytes)
        self._held = [(pool, self.buffer)]
        self._readers = readers
        self._lock = threading.Lock()

    def also(self, pool: Pool, nbytes: int) -> Bytes:
        """Another buffer, for the same readers; before any of them begins."""
        buffer = pool.take(nbytes)
        self._held.append((pool, buffer))
        return buffer

    def release(self) -> None:
        """One reader is done; called in any thread."""
        with self._lock:
            self._readers -= 1
            last = self._readers == 0
        if last:
            self.give_back()

    def give_back(self) -> None:
        """Nobody reads them."""
        for pool, buffer in self._held:
            pool.give(buffer)
