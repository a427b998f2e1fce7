"""The CUDA backend: the generated source, compiled by NVRTC and launched through CuPy on the current stream.

It is thin on purpose: what it launches, and on what, is `launches.LaunchLibrary`, which the simulator runs
too.  Its calls are made inside `arrays.beside`, which says on which GPU and stream, and in what memory.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np

from compll import cache
from compll.arrays import GPU, address, aligned_empty, on_host
from compll.backends import Unit
from compll.backends.launches import ITEM_THREADS, Grid, LaunchLibrary
from compll.emit import cuda
from compll.errors import BackendError
from compll.types import Array

OPTIONS = ("--std=c++17", "--fmad=false")  # no fast-math: payloads are equal bit for bit on every backend


def build(unit: Unit) -> LaunchLibrary:
    """Generate and compile a codec; CuPy keeps compiled kernels in its own cache.

    Raises:
        BackendError: CuPy or a GPU is missing.

    """
    generated = cache.remembered("cuda", unit.key, lambda: cuda.generate(unit))
    device = Gpu(_cupy(), cuda.self_contained(generated.source))
    return LaunchLibrary(unit, generated, device)


def _cupy() -> Any:
    """Return CuPy, if there is a GPU to use it on."""
    other = "; without a GPU, backend='cpp' is fast, and backend='cudasim' runs these kernels for tests"
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as e:
        raise BackendError(
            f"the cuda backend needs CuPy, and it cannot be imported ({e}): pip install cupy-cuda12x, or "
            f"cupy-cuda13x, by the version of your driver{other}"
        ) from e
    try:
        gpus = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as e:
        raise BackendError(f"the cuda backend finds no NVIDIA driver ({e}): install one{other}") from e
    if not gpus:
        raise BackendError(f"the cuda backend finds no GPU: see nvidia-smi and CUDA_VISIBLE_DEVICES{other}")
    return cupy


class Gpu:
    """Kernels of one source, launched on CuPy arrays."""

    backend = "cuda"

    def __init__(self, cupy: Any, source: str) -> None:
        """Compile for the GPU at hand, when a kernel is launched first."""
        self.cupy = cupy
        self.module = cupy.RawModule(code=source, options=OPTIONS, backend="nvrtc")
        self.kernels: dict[tuple[int, str], Any] = {}

    def empty(self, nbytes: int) -> Any:
        """Return device memory, from CuPy's pool of the current stream."""
        return aligned_empty(nbytes, GPU)

    def address(self, array: Any) -> int:
        """Return where an array begins."""
        return address(array)

    def write(self, kernel: str, piece: Array, to: int, words: int) -> None:
        """Launch the kernel that writes a piece of the table of items, without waiting."""
        self.kernel(kernel)((1,), (ITEM_THREADS,), (piece, np.uint64(to), np.int64(words)))

    def download(self, buffer: Any) -> Array:
        """Wait for the stream, and return a copy."""
        return on_host(buffer)

    def launch(self, kernel: str, grid: Grid, items: int, count: int, params: int) -> None:
        """Launch without waiting."""
        arguments = (np.uint64(items), np.int64(count), np.uint64(params))
        self.kernel(kernel)((grid.x,), (grid.threads,), arguments)

    def kernel(self, name: str) -> Any:
        """Return a kernel on the current GPU; looking one up takes longer than launching it."""
        key = self.cupy.cuda.runtime.getDevice(), name
        if key not in self.kernels:
            self.kernels[key] = self.module.get_function(name)
        return self.kernels[key]
