"""The simulator: the generated CUDA source, compiled as C++ and executed on the CPU by fibers.

For tests, on machines without a GPU.  Threads take turns in an order that can be chosen; kernels that are
right give the same bytes in each.  See templates/cuda/sim.h for what it finds and what it cannot find.
"""

from __future__ import annotations

import ctypes
import shlex

import numpy as np

from compll import build as builder
from compll import cache
from compll.arrays import aligned_empty
from compll.backends import Unit
from compll.backends.launches import Grid, LaunchLibrary
from compll.emit import cuda
from compll.errors import BackendError
from compll.types import Array

FLAGS = shlex.split(
    "-std=c++17 -O1 -march=native -fPIC -shared -fvisibility=hidden -fno-strict-aliasing -ffp-contract=off "
    "-fno-math-errno -Wno-unknown-pragmas"
)
SANITIZERS = shlex.split("-fsanitize=address,undefined,float-cast-overflow -fno-sanitize-recover=all")
ORDERS = ("ascending", "descending", "scattered")
UNWRITTEN = 0xA5  # what fresh memory holds, so that a kernel that counts on zeros is found out


def build(unit: Unit, order: str = "ascending", flags: tuple[str, ...] = ()) -> LaunchLibrary:
    """Generate, compile (or take from the cache) and load a codec; `order` is that of the threads' turns.

    Raises:
        BackendError: there is no compiler.

    """
    generated = cache.remembered("cuda", unit.key, lambda: cuda.generate(unit))
    name = f"{unit.codec}-sim"
    library = builder.library(name, generated.source, cuda.runtime(), (*FLAGS, *flags))
    return LaunchLibrary(unit, generated, Simulator(library, order))


class Simulator:
    """Kernels of one library, run on NumPy arrays."""

    backend = "cudasim"

    def __init__(self, library: ctypes.CDLL, order: str) -> None:
        """Look up the launcher."""
        self.library, self.order = library, ORDERS.index(order)
        self.run = library.compll_sim_launch
        unsigned, pointer = ctypes.c_uint, ctypes.c_void_p
        self.run.argtypes = (
            *(pointer, unsigned, unsigned, ctypes.c_int),
            *(pointer, ctypes.c_int64, pointer),
        )
        self.run.restype = ctypes.c_char_p
        self.write_piece = library.compll_sim_write
        self.write_piece.argtypes = (pointer, pointer, pointer, ctypes.c_int64)
        self.write_piece.restype = ctypes.c_char_p

    def empty(self, nbytes: int) -> Array:
        """Return aligned memory that holds nothing of use."""
        out = aligned_empty(nbytes)
        out[:] = UNWRITTEN
        return out

    def address(self, array: Array) -> int:
        """Return where an array begins."""
        return int(array.ctypes.data)

    def write(self, kernel: str, piece: Array, to: int, words: int) -> None:
        """Run the kernel that writes a piece of the table of items."""
        self.finished(kernel, self.write_piece(self.entry(kernel), piece.ctypes.data, to, words))

    def download(self, buffer: Array) -> Array:
        """Return a copy."""
        return np.array(buffer)

    def launch(self, kernel: str, grid: Grid, items: int, count: int, params: int) -> None:
        """Run a kernel to its end; the GIL is released.

        Raises:
            BackendError: its threads cannot go on, or do not meet where they must.

        """
        arguments = (grid.x, grid.threads, self.order, items, count, params)
        self.finished(kernel, self.run(self.entry(kernel), *arguments))

    def entry(self, kernel: str) -> ctypes.c_void_p:
        """Return where a kernel begins."""
        return ctypes.cast(getattr(self.library, kernel), ctypes.c_void_p)

    def finished(self, kernel: str, wrong: bytes | None) -> None:
        """Raise BackendError if a kernel could not go on."""
        if wrong is not None:
            raise BackendError(f"{kernel}: {wrong.decode()}; this is a bug of the compiler: please report it")
