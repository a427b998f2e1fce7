"""What executes kernels, for benchmarks/gpu.py: a GPU through CuPy, or the simulator to try the program."""

from __future__ import annotations

import contextlib
import importlib
import time
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

import compll
from compll.types import FLOAT, HALF, dtype

if TYPE_CHECKING:
    from collections.abc import Callable


class Machine(Protocol):
    """Arrays and clocks of what executes kernels."""

    backend: str

    def description(self) -> str:
        """Return what it is, in words."""

    def array(self, host: np.ndarray) -> Any:
        """Return a copy on the device."""

    def host(self, array: Any) -> np.ndarray:
        """Return a copy in host memory."""

    def bytes(self, count: int) -> Any:
        """Return room for bytes."""

    def like(self, array: Any) -> Any:
        """Return zeros of the type and length of an array."""

    def copy(self, to: Any, source: Any) -> None:
        """Copy on the device, without waiting."""

    def load(self, codec: compll.Codec) -> None:
        """Compile a codec's kernels."""

    def kernels(self, codec: compll.Codec) -> dict[str, dict[str, int]]:
        """Return what each kernel takes."""

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        """Return the stream that all is done on."""

    def recorded(self, call: Callable[[], Any]) -> Callable[[], Any]:
        """Return a call as a graph that is replayed, where there are graphs."""

    def milliseconds(self, call: Callable[[], Any], times: int) -> float:
        """Return the device's time of one of several calls."""

    def milliseconds_of_calls(self, call: Callable[[], Any], times: int) -> float:
        """Return the host's time of one of several calls, until it returns."""

    def free(self) -> None:
        """Give back memory that nobody uses."""


class Simulator:
    """The simulator: arrays are NumPy's, and calls are as slow as they are."""

    backend = "cudasim"

    def description(self) -> str:
        return "the simulator, whose times mean nothing"

    def array(self, host: np.ndarray) -> np.ndarray:
        return host.copy()

    def host(self, array: np.ndarray) -> np.ndarray:
        return array

    def bytes(self, count: int) -> np.ndarray:
        return np.zeros(count, np.uint8)

    def like(self, array: np.ndarray) -> np.ndarray:
        return np.zeros_like(array)

    def copy(self, to: np.ndarray, source: np.ndarray) -> None:
        to[...] = source

    def load(self, codec: compll.Codec) -> None:
        codec._library.of(dtype(HALF))

    def kernels(self, codec: compll.Codec) -> dict[str, dict[str, int]]:  # noqa: ARG002
        return {}

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        return contextlib.nullcontext()

    def recorded(self, call: Callable[[], Any]) -> Callable[[], Any]:
        return call

    def milliseconds(self, call: Callable[[], Any], times: int) -> float:  # noqa: ARG002
        began = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - began)

    milliseconds_of_calls = milliseconds

    def free(self) -> None:
        """Do nothing."""


class Cuda:
    """A GPU through CuPy."""

    backend = "cuda"

    def __init__(self) -> None:
        compll.compile("int8", "cuda")  # says what is missing
        self.cupy = importlib.import_module("cupy")
        self.current = self.cupy.cuda.Stream(non_blocking=True)

    def description(self) -> str:
        runtime = self.cupy.cuda.runtime
        name = runtime.getDeviceProperties(0)["name"].decode()
        return f"{name}, CUDA {runtime.runtimeGetVersion()}, CuPy {self.cupy.__version__}"

    def array(self, host: np.ndarray) -> Any:
        return self.cupy.asarray(host)

    def host(self, array: Any) -> np.ndarray:
        return array.get()

    def bytes(self, count: int) -> Any:
        return self.cupy.zeros(count, np.uint8)

    def like(self, array: Any) -> Any:
        return self.cupy.zeros_like(array)

    def copy(self, to: Any, source: Any) -> None:
        self.cupy.copyto(to, source)

    def load(self, codec: compll.Codec) -> None:
        for element in (FLOAT, HALF):
            library: Any = codec._library.of(dtype(element))
            library.device.module.compile()

    def kernels(self, codec: compll.Codec) -> dict[str, dict[str, int]]:
        library: Any = codec._library.of()
        names = [x.kernel for xs in library.generated.launches.values() for x in xs]
        found = {name: library.device.kernel(name) for name in names}
        return {
            name: {
                "registers": k.num_regs,
                "local_bytes": k.local_size_bytes,
                "shared_bytes": k.shared_size_bytes,
            }
            for name, k in found.items()
        }

    def stream(self) -> contextlib.AbstractContextManager[Any]:
        return self.current

    def recorded(self, call: Callable[[], Any]) -> Callable[[], Any]:
        call()  # kernels are loaded before, and memory is in the pool
        self.current.begin_capture()
        try:
            call()
        finally:
            graph = self.current.end_capture()
        return lambda: graph.launch(stream=self.current)

    def milliseconds(self, call: Callable[[], Any], times: int) -> float:
        start, end = self.cupy.cuda.Event(), self.cupy.cuda.Event()
        start.record(self.current)
        for _ in range(times):
            call()
        end.record(self.current)
        end.synchronize()
        return float(self.cupy.cuda.get_elapsed_time(start, end)) / times

    def milliseconds_of_calls(self, call: Callable[[], Any], times: int) -> float:
        self.current.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            call()
        took = time.perf_counter() - began
        self.current.synchronize()
        return 1e3 * took / times

    def free(self) -> None:
        self.current.synchronize()
        self.cupy.get_default_memory_pool().free_all_blocks()


def machine_of(backend: str) -> Machine:
    """Return what executes kernels.

    Raises:
        BackendError: CuPy or a GPU is missing.

    """
    return Cuda() if backend == "cuda" else Simulator()
