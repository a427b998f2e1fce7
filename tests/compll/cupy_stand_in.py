"""As much of CuPy as the cuda backend uses, over host memory, with kernels run by the simulator.

For machines without a GPU: what Python does around the kernels is then tested too. It shows nothing about
CuPy itself, streams or devices; benchmarks/gpu.sh runs the real ones.
"""

from __future__ import annotations

import contextlib
import ctypes
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np

from compll import build as builder
from compll.backends import cudasim, launches


class ndarray(np.ndarray):  # noqa: N801 - CuPy's name
    """An array whose values only `get` and `set` move to NumPy and back."""

    @property
    def data(self) -> Any:
        return SimpleNamespace(ptr=self.ctypes.data)

    @property
    def device(self) -> Any:
        return contextlib.nullcontext()

    def get(self) -> np.ndarray:
        return np.array(self.view(np.ndarray))

    def set(self, host: np.ndarray) -> None:
        assert type(host) is np.ndarray
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
            assert [type(x) for x in arguments] == [np.uint64, np.int64, np.uint64]
            self.simulator.launch(kernel, launches.Grid(*grid, *block), *map(int, arguments))

        return launch


def of(array: np.ndarray) -> ndarray:
    aligned = cudasim.aligned_empty(array.nbytes).view(array.dtype)
    aligned[...] = array
    return aligned.view(ndarray)


def module() -> ModuleType:
    cupy = ModuleType("cupy")
    runtime = SimpleNamespace(getDeviceCount=lambda: 1, CUDARuntimeError=ctypes.ArgumentError)
    vars(cupy).update(
        ndarray=ndarray,
        RawModule=RawModule,
        cuda=SimpleNamespace(runtime=runtime),
        asarray=of,
        empty=lambda n, kind: of(np.full(n, 0x5A, kind)),
        zeros=lambda n, kind: of(np.zeros(n, kind)),
        from_dlpack=lambda x: x.numpy().view(ndarray),
    )
    return cupy
