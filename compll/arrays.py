"""Callers' arrays: where they lie, views of them for a backend, and new ones beside them.

A backend works on one kind of array: NumPy's in host memory, CuPy's on a GPU.  Tensors of other libraries
are viewed as these without a copy, by `.numpy()` or DLPack.  The libraries are found where they are loaded
already: who gives a tensor has imported its library, and the `cuda` backend imports CuPy.  On a GPU all is
done inside `beside(x)`: on the stream of the caller's library, in memory of that library.

NumPy and CuPy have no bfloat16 of their own: inside, an array of it is its bits, as uint16.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from compll.errors import BackendError, ParameterError
from compll.types import BFLOAT16, FLOAT, HALF, Array, Elem, dtype

ALIGNMENT = 64
HOST, GPU = "cpu", "cuda"
GRADIENT = ("float32", "float16", "bfloat16")  # what a gradient may be
BITS = np.dtype(np.uint16)  # what holds a bfloat16
STATE, PAYLOAD = ("float32",), ("uint8",)
KEPT = 64  # types of arrays and of elements that are remembered: asking their names anew takes microseconds


def view(
    x: Any, what: str, kinds: tuple[str, ...], device: str = HOST, *, writes: bool = False
) -> tuple[Array, Callable[[Array], Any]]:
    """Return a one-dimensional view of `x`, and the function that gives results the caller's type.

    Args:
        x: NumPy array or CPU tensor; on a GPU, CuPy array or a tensor that knows DLPack.
        what: its name, for messages.
        kinds: the element types that it may have: `GRADIENT`, `STATE` or `PAYLOAD`.
        device: where the backend wants it.
        writes: whether it is written to.

    Returns:
        A NumPy array, or on a GPU a CuPy array, which has the same methods as far as we use them; of
        bfloat16 the bits, as uint16.

    Raises:
        ParameterError: another element type, more than one dimension, a stride, or a read-only array that
            is to be written.
        BackendError: it lies elsewhere than the backend works, or on another GPU than the call.

    """
    plain = type(x) is np.ndarray and device == HOST
    wrap: Callable[[Array], Any] = _wrap_array
    if not plain and (have := place(x)) != device:
        raise BackendError(_misplaced(what, have, device))
    kind = _name(x.dtype) if plain else _kind(x)
    if kind and kind not in kinds:
        hint = f"; give {what}.astype('float32')" if "float32" in kinds else ""
        raise ParameterError(f"{what} has elements of type {kind}; this takes {' or '.join(kinds)}{hint}")
    if not plain:
        x, wrap = _as_own(x, what, kind, device)
    if device == GPU and x.device.id != (current := _cupy().cuda.runtime.getDevice()):
        raise BackendError(
            f"{what} lies on GPU {x.device.id}, and this call works on GPU {current}, where its first array "
            "lies: all arrays of a call lie on one GPU"
        )
    if kind == "bfloat16":
        x = x.view(np.uint16)
    if x.ndim != 1:
        raise ParameterError(f"{what} has {x.ndim} dimensions, {x.shape}; give {what}.reshape(-1)")
    flags = x.flags
    if not flags.c_contiguous:
        raise ParameterError(f"{what} is not contiguous (strides {x.strides}); copy it first")
    if writes and device == HOST and not flags.writeable:
        raise ParameterError(f"{what} is read-only; give an array that can be written")
    return x, wrap


def _as_own(x: Any, what: str, kind: str, device: str) -> tuple[Any, Callable[[Array], Any]]:
    """Return an array as the one kind that a device works on."""
    if device == GPU:
        return (x, _wrap_array) if _is_cupy(x) else _from_dlpack(x, what, kind)
    return (x, _wrap_array) if isinstance(x, np.ndarray) else _from_tensor(x, what, kind)


def _kind(x: Any) -> str:
    """Return the name of an array's element type; of what has none, nothing."""
    have = getattr(x, "dtype", "")
    try:
        return _name(have)
    except TypeError:  # of something else than an array: it cannot be hashed
        return str(have)


@functools.lru_cache(KEPT)
def _name(kind: Any) -> str:
    return str(kind).rpartition(".")[2]  # of "torch.float32" too; ">f4" is none of the names


def element(kind: Any) -> Elem:
    """Return the element type of gradients that a `dtype` means: a name, or a type of an array library.

    Raises:
        ParameterError: gradients are of no such type.

    """
    name = getattr(kind, "__name__", None) or str(kind).rpartition(".")[2]
    types = dict(zip(GRADIENT, (FLOAT, HALF, BFLOAT16), strict=True))
    if name not in types:
        raise ParameterError(f"dtype is {kind!r}; a gradient is {' or '.join(GRADIENT)}")
    return types[name]


def _wrap_array(x: Array) -> Array:
    """Return an array as its library has it; of bfloat16 only an extension of NumPy knows."""
    if x.dtype != BITS:
        return x
    try:
        extension = None if _is_cupy(x) else importlib.import_module("ml_dtypes")
    except ImportError:
        extension = None
    if extension is None:
        raise ParameterError(
            f"{'CuPy' if _is_cupy(x) else 'NumPy'} has no bfloat16: give out=, a tensor"
            f"{'' if _is_cupy(x) else ', or pip install ml_dtypes'}"
        )
    return x.view(extension.bfloat16)


def _is_cupy(x: Any) -> bool:
    return _library(x.__class__.__module__) == "cupy"


@functools.lru_cache(KEPT)
def _library(module: str) -> str:
    return module.partition(".")[0]


def place(x: Any) -> str:
    """Return where an array or tensor lies; what is neither counts as lying in host memory."""
    if type(x) is np.ndarray:
        return HOST
    if _is_cupy(x):
        return GPU
    return HOST if isinstance(x, np.ndarray) else str(getattr(getattr(x, "device", None), "type", HOST))


def _misplaced(what: str, have: str, want: str) -> str:
    if want == GPU:
        return (
            f"{what} lies in the memory of '{have}', and backend 'cuda' works on the GPU: "
            f"give a CuPy array or {what}.cuda(), or compile with backend='cpp'"
        )
    mend = f"give {what}.cpu()" + (", or compile with backend='cuda'" if have == GPU else "")
    return f"{what} lies on '{have}', and this backend works on the CPU: {mend}"


def _framework(x: Any) -> Any:
    """Return the loaded library that `x` comes from."""
    return sys.modules.get(_library(x.__class__.__module__))


def _from_tensor(x: Any, what: str, kind: str) -> tuple[Array, Callable[[Array], Any]]:
    framework = _framework(x)
    from_numpy = getattr(framework, "from_numpy", None)
    if from_numpy is None or not hasattr(x, "detach"):
        raw = (
            "; np.frombuffer(x, np.uint8) makes one" if isinstance(x, bytes | bytearray | memoryview) else ""
        )
        raise ParameterError(f"{what} is a {type(x).__name__}; give a NumPy array or a CPU tensor{raw}")
    if not x.is_contiguous():
        raise ParameterError(f"{what} is not contiguous; give {what}.contiguous()")
    return _bits(x, kind, framework).numpy(), _wrap_tensor(from_numpy, framework)


def _from_dlpack(x: Any, what: str, kind: str) -> tuple[Array, Callable[[Array], Any]]:
    framework = _framework(x)
    wrap = getattr(framework, "from_dlpack", None)
    if wrap is None or not hasattr(x, "__dlpack__"):
        raise ParameterError(
            f"{what} is a {type(x).__name__}; give a CuPy array or a tensor that knows DLPack"
        )
    return _cupy().from_dlpack(_bits(x, kind, framework)), _wrap_tensor(wrap, framework)


def _bits(x: Any, kind: str, framework: Any) -> Any:
    """Return the values of a tensor as an element type that every library has: of bfloat16 the bits."""
    if getattr(x, "requires_grad", False):
        x = x.detach()
    return x.view(framework.int16) if kind == "bfloat16" else x


def _wrap_tensor(make: Callable[[Array], Any], framework: Any) -> Callable[[Array], Any]:
    """Return what makes an array of ours a tensor, by a function of its library."""
    return lambda x: make(x.view(np.int16)).view(framework.bfloat16) if x.dtype == np.uint16 else make(x)


def _cupy() -> Any:
    return sys.modules["cupy"]  # loaded by the backend whose arrays these are


@dataclass(frozen=True)
class _ForeignStream:
    """A stream of another library, by CUDA's protocol of streams."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


def beside(x: Any) -> contextlib.AbstractContextManager[Any]:
    """Work where an array lies: on its GPU, on the current stream of its library, in memory of that library.

    Then the library's order of work holds for ours too, its allocator knows what we use, and what is captured
    lies in the memory that the library keeps for its graphs.  CuPy's own arrays, and those in host memory,
    need nothing but their device.
    """
    if place(x) != GPU:
        return _HERE
    return x.device if _is_cupy(x) else _in_library_of(x)


_HERE = contextlib.nullcontext()


@contextlib.contextmanager
def _in_library_of(x: Any) -> Iterator[None]:
    cuda, cupy = _cupy().cuda, _cupy()
    framework = _framework(x)
    with cuda.Device(x.device.index):
        pointer = framework.cuda.current_stream(x.device).cuda_stream
        # CuPy 14 calls ExternalStream deprecated, and those before have nothing else.
        from_external = getattr(cuda.Stream, "from_external", None)
        stream = from_external(_ForeignStream(pointer)) if from_external else cuda.ExternalStream(pointer)

        def allocate(nbytes: int) -> Any:
            owner = framework.empty(nbytes, dtype=framework.uint8, device=x.device)
            memory = cuda.UnownedMemory(owner.data_ptr(), nbytes, owner, x.device.index)
            return cuda.MemoryPointer(memory, 0)

        with stream, cupy.cuda.using_allocator(allocate):
            yield


def is_capturing() -> bool:
    """Whether the current stream of a GPU records its work for a graph; the default streams never do."""
    stream = _cupy().cuda.get_current_stream()
    return stream.ptr > 1 and bool(stream.is_capturing())


_addressof, _from_buffer = ctypes.addressof, ctypes.c_char.from_buffer


def address(x: Array) -> int:
    """Return where an array begins, in the memory that it lies in."""
    try:
        return _addressof(_from_buffer(x))  # type: ignore[arg-type]  # a quarter of the time of `x.ctypes`
    except (TypeError, ValueError):  # read-only, empty, or no memory of this processor
        return int(x.data.ptr) if _is_cupy(x) else int(x.ctypes.data)  # type: ignore[attr-defined]


def on_host(x: Array) -> Array:
    """Return an array's values as NumPy array; waits for a GPU.

    Raises:
        BackendError: a graph is being captured, where nothing can be waited for.

    """
    if not _is_cupy(x):
        return x
    if is_capturing():
        raise BackendError(
            "this call needs a value from the GPU, and while a graph is captured nothing can wait for one: "
            "give out=, and ask codec.length(out) after the graph has run"
        )
    host: Array = x.get()  # type: ignore[attr-defined]
    return host


def on_device(x: Array, device: str) -> Array:
    """Return a copy of a NumPy array where a backend works."""
    return x.copy() if device == HOST else _cupy().asarray(x)


def empty(count: int, device: str = HOST, elem: Elem = FLOAT) -> Array:
    """Return an uninitialised array for a gradient of an element type."""
    return np.empty(count, dtype(elem)) if device == HOST else _cupy().empty(count, dtype(elem))


def zeros(count: int, device: str = HOST) -> Array:
    """Return a float32 array of zeros."""
    return np.zeros(count, np.float32) if device == HOST else _cupy().zeros(count, np.float32)


def aligned_empty(nbytes: int, device: str = HOST) -> Array:
    """Return an uninitialised uint8 array whose data begins at a multiple of 64."""
    if device == GPU:
        gpu: Array = _cupy().empty(nbytes, np.uint8)
        return gpu  # CuPy's memory begins at multiples of 512
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -address(raw) % ALIGNMENT
    return raw[start : start + nbytes]
