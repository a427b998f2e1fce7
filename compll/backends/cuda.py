"""The CUDA backend: the generated source, compiled by NVRTC and launched through CuPy on the current stream.

It is thin on purpose: what it launches, and on what, is `launches.LaunchLibrary`, which the simulator runs
too.
Kernels never wait for the host; a call of `run` waits once, at its end, for the items' status and length.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from compll.arrays import GPU, address, aligned_empty, current_gpu_stream, on_host
from compll.backends import Call, Outcome, Unit, Values
from compll.backends.launches import Grid, LaunchLibrary
from compll.emit import cuda
from compll.errors import BackendError
from compll.types import Array

OPTIONS = ("--std=c++17", "--fmad=false")  # no fast-math: payloads are equal bit for bit on every backend


def build(unit: Unit) -> CudaLibrary:
    """Generate and compile a codec; CuPy keeps compiled kernels in its own cache.

    Raises:
        BackendError: CuPy or a GPU is missing.

    """
    generated = cuda.generate(unit)
    device = Gpu(_cupy(), cuda.self_contained(generated.source))
    return CudaLibrary(unit, generated, device)


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


class CudaLibrary(LaunchLibrary):
    """A codec on the GPU that its arrays lie on."""

    device: Gpu

    def run(self, op: str, calls: Sequence[Call], values: Values, threads: int) -> list[Outcome]:
        """Run one operation on every item; all items of a call lie on one GPU."""
        if not calls:
            return []
        with self.device.of(calls[0].gradient):
            return super().run(op, calls, values, threads)


class Gpu:
    """Kernels of one source, launched on CuPy arrays."""

    backend = "cuda"

    def __init__(self, cupy: Any, source: str) -> None:
        """Compile for the GPU at hand, when a kernel is launched first."""
        self.cupy = cupy
        self.module = cupy.RawModule(code=source, options=OPTIONS, backend="nvrtc")

    @contextlib.contextmanager
    def of(self, array: Any) -> Any:
        """Make an array's GPU and the caller's stream the current ones."""
        stream = current_gpu_stream()
        with array.device, self.cupy.cuda.ExternalStream(stream) if stream else contextlib.nullcontext():
            yield

    def empty(self, nbytes: int) -> Any:
        """Return device memory, from CuPy's pool of the current stream."""
        return aligned_empty(nbytes, GPU)

    def address(self, array: Any) -> int:
        """Return where an array begins."""
        return address(array)

    def upload(self, host: Array, buffer: Any) -> None:
        """Copy to the device, in the order of the stream."""
        buffer.set(host)

    def download(self, buffer: Any) -> Array:
        """Wait for the stream, and return a copy."""
        return on_host(buffer)

    def launch(self, kernel: str, grid: Grid, items: int, count: int, params: int) -> None:
        """Launch without waiting."""
        arguments = (np.uint64(items), np.int64(count), np.uint64(params))
        self.module.get_function(kernel)((grid.x,), (grid.threads,), arguments)
