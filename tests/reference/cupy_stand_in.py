"""As much of CuPy as the cuda backend uses, over host memory, with kernels run by the simulator.

For machines without a GPU: what Python does around the kernels is then tested too. It shows nothing about
CuPy itself, streams or devices; benchmarks/gpu.sh runs the real ones. What would wait for a GPU is counted,
and refused while a graph is captured; the launches of a capture are recorded, not run, and replayed later.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import Counter
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from compll import build as builder
from compll.backends import cudasim, launches


class Gpu:
    """What happened on the GPU that is stood in for."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.graph: list[Callable[[], None]] | None = None
        self.stream = SimpleNamespace(ptr=0, is_capturing=lambda: self.graph is not None)
        self.allocate: Callable[[int], Any] | None = None

    def launch(self, kernel: str, call: Callable[[], None]) -> None:
        self.counts["table" if kernel.endswith("_write_table") else "launches"] += 1
        if self.graph is None:
            call()
        else:
            self.graph.append(call)

    def transfer(self, what: str) -> None:
        assert self.graph is None, f"a graph cannot have a {what}"
        self.counts[what] += 1

    @contextlib.contextmanager
    def capture(self) -> Iterator[list[Callable[[], None]]]:
        self.graph = graph = []
        kept, self.stream.ptr = self.stream.ptr, 7
        try:
            yield graph
        finally:
            self.graph, self.stream.ptr = None, kept


GPU = Gpu()


class Device(contextlib.nullcontext[None]):
    def __init__(self, number: int) -> None:
        super().__init__()
        self.id = number


class ndarray(np.ndarray):  # noqa: N801 - CuPy's name
    """An array whose values only `get` and `set` move to NumPy and back."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)

    gpu = 0  # where it lies

    @property
    def device(self) -> Any:
        return Device(self.gpu)

    def get(self) -> np.ndarray:
        GPU.transfer("download")
        return np.array(self.view(np.ndarray))

    def set(self, host: np.ndarray) -> None:
        assert type(host) is np.ndarray
        GPU.transfer("upload")
        self.view(np.ndarray)[...] = host


ndarray.__module__ = "cupy"


class RawModule:
    def __init__(self, code: str, options: tuple[str, ...], backend: str) -> None:
        assert "--fmad=false" in options
        assert backend == "nvrtc"
        headers = {"sim.h": cudasim.cuda.runtime()["sim.h"]}
        self.simulator = cudasim.Simulator(builder.library("cupy", code, headers, cudasim.FLAGS), "ascending")

    def get_function(self, kernel: str) -> Any:
        def launch(grid: tuple[int], block: tuple[int], arguments: tuple[Any, ...]) -> None:
            first, *others = arguments
            if kernel.endswith("_write_table"):
                assert (first.dtype, first.shape) == (launches.PIECE, (1,))
                assert [type(x) for x in others] == [np.uint64, np.int64]
                piece, numbers = first.copy(), [int(x) for x in others]  # by value, when it is launched
                GPU.launch(kernel, lambda: self.simulator.write(kernel, piece, *numbers))
                return
            assert [type(x) for x in arguments] == [np.uint64, np.int64, np.uint64]
            grid_, numbers = launches.Grid(*grid, *block), [int(x) for x in arguments]
            GPU.launch(kernel, lambda: self.simulator.launch(kernel, grid_, *numbers))

        return launch


def of(array: np.ndarray) -> ndarray:
    aligned = cudasim.aligned_empty(array.nbytes).view(array.dtype)
    aligned[...] = array
    return aligned.view(ndarray)


def module() -> ModuleType:
    """Return a CuPy whose GPU has done nothing yet."""
    GPU.__init__()  # type: ignore[misc]
    cupy = ModuleType("cupy")
    runtime = SimpleNamespace(
        getDeviceCount=lambda: 1, getDevice=lambda: 0, CUDARuntimeError=ctypes.ArgumentError
    )
    vars(cupy).update(
        ndarray=ndarray,
        RawModule=RawModule,
        cuda=SimpleNamespace(runtime=runtime, get_current_stream=lambda: GPU.stream),
        asarray=of,
        empty=lambda n, kind: of(np.full(n, 0x5A, kind)),
        zeros=lambda n, kind: of(np.zeros(n, kind)),
        from_dlpack=lambda x: x.numpy().view(ndarray),
    )
    return cupy
