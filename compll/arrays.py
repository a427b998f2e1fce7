"""Callers' arrays: where they lie, views of them for a backend, and new ones beside them.

A backend works on one kind of array: NumPy's in host memory, CuPy's on a GPU.  Tensors of other libraries
are viewed as these without a copy, by `.numpy()` or DLPack.  The libraries are found where they are loaded
already: who gives a tensor has imported its library, and the `cuda` backend imports CuPy.

NumPy and CuPy have no bfloat16 of their own: inside, an array of it is its bits, as uint16.
"""

from __future__ import annotations

import ctypes
import importlib
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from compll.errors import BackendError, ParameterError
from compll.types import BFLOAT16, FLOAT, HALF, Array, Elem, dtype

ALIGNMENT = 64
HOST, GPU = "cpu", "cuda"
GRADIENT = ("float32", "float16", "bfloat16")  # what a gradient may be
NAMES: dict[Any, str] = {np.dtype(name): name for name in ("float32", "float16", "uint8")}  # found at once


def device_of(backend: str) -> str:
    """Return where the arrays of a backend lie: `HOST` or `GPU`."""
    return GPU if backend == "cuda" else HOST


def view(
    x: Any, what: str, *kinds: str, writes: bool = False, device: str = HOST
) -> tuple[Array, Callable[[Array], Any]]:
    """Return a one-dimensional view of `x`, and the function that gives results the caller's type.

    Args:
        x: NumPy array or CPU tensor; on a GPU, CuPy array or a tensor that knows DLPack.
        what: its name, for messages.
        kinds: the element types that it may have: "float32", "uint8", or those of `GRADIENT`.
        writes: whether it is written to.
        device: where the backend wants it.

    Returns:
        A NumPy array, or on a GPU a CuPy array, which has the same methods as far as we use them; of
        bfloat16 the bits, as uint16.

    Raises:
        ParameterError: another element type, more than one dimension, a stride, or a read-only array that
            is to be written.
        BackendError: it lies elsewhere than the backend works.

    """
    plain = type(x) is np.ndarray and device == HOST
    if not plain and (have := _place(x)) != device:
        raise BackendError(_misplaced(what, have, device))
    kind = _kind(x)
    if kind and kind not in kinds:
        hint = f"; give {what}.astype('float32')" if "float32" in kinds else ""
        raise ParameterError(f"{what} has elements of type {kind}; this takes {' or '.join(kinds)}{hint}")
    x, wrap = (x, _wrap_array) if plain else _as_own(x, what, device)
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


def _as_own(x: Any, what: str, device: str) -> tuple[Any, Callable[[Array], Any]]:
    """Return an array as the one kind that a device works on."""
    if device == GPU:
        return (x, _wrap_array) if _is_cupy(x) else _from_dlpack(x, what)
    return (x, _wrap_array) if isinstance(x, np.ndarray) else _from_tensor(x, what)


def _kind(x: Any) -> str:
    """Return the name of an array's element type; of what has none, nothing."""
    have = getattr(x, "dtype", "")
    try:
        return NAMES[have]
    except (KeyError, TypeError):
        return str(have).rpartition(".")[2]  # of "torch.float32" too; ">f4" is none of the names


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
    if x.dtype != np.uint16:
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
    return type(x).__module__.partition(".")[0] == "cupy"


def _place(x: Any) -> str:
    """Return where an array or tensor lies; what is neither counts as lying in host memory."""
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
    return sys.modules.get(type(x).__module__.partition(".")[0])


def _from_tensor(x: Any, what: str) -> tuple[Array, Callable[[Array], Any]]:
    framework = _framework(x)
    from_numpy = getattr(framework, "from_numpy", None)
    if from_numpy is None or not hasattr(x, "detach"):
        raw = (
            "; np.frombuffer(x, np.uint8) makes one" if isinstance(x, bytes | bytearray | memoryview) else ""
        )
        raise ParameterError(f"{what} is a {type(x).__name__}; give a NumPy array or a CPU tensor{raw}")
    if not x.is_contiguous():
        raise ParameterError(f"{what} is not contiguous; give {what}.contiguous()")
    return _bits(x.detach(), framework).numpy(), _wrap_tensor(from_numpy, framework)


def _from_dlpack(x: Any, what: str) -> tuple[Array, Callable[[Array], Any]]:
    framework = _framework(x)
    wrap = getattr(framework, "from_dlpack", None)
    if wrap is None or not hasattr(x, "__dlpack__"):
        raise ParameterError(
            f"{what} is a {type(x).__name__}; give a CuPy array or a tensor that knows DLPack"
        )
    x = _bits(x.detach() if hasattr(x, "detach") else x, framework)
    return _cupy().from_dlpack(x), _wrap_tensor(wrap, framework)


def _bits(x: Any, framework: Any) -> Any:
    """Return a tensor as an element type that every library has: of bfloat16 the bits."""
    return x.view(framework.int16) if str(x.dtype).endswith("bfloat16") else x


def _wrap_tensor(make: Callable[[Array], Any], framework: Any) -> Callable[[Array], Any]:
    """Return what makes an array of ours a tensor, by a function of its library."""
    return lambda x: make(x.view(np.int16)).view(framework.bfloat16) if x.dtype == np.uint16 else make(x)


def _cupy() -> Any:
    return sys.modules["cupy"]  # loaded by the backend whose arrays these are


def current_gpu_stream() -> int | None:
    """Return PyTorch's current stream as an address if that is none of its default ones, else None.

    CuPy knows its own current stream; whoever set one in PyTorch means the kernels to run there.
    """
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return torch.cuda.current_stream().cuda_stream or None


def address(x: Array) -> int:
    """Return where an array begins, in the memory that it lies in."""
    try:
        return ctypes.addressof(ctypes.c_char.from_buffer(x.data))  # a quarter of the time of `x.ctypes`
    except (TypeError, ValueError):  # read-only, empty, or no memory of this processor
        return int(x.data.ptr) if _is_cupy(x) else int(x.ctypes.data)  # type: ignore[attr-defined]


def overlap(a: Array, b: Array) -> bool:
    """Whether two arrays of bytes share memory."""
    first, second = address(a), address(b)
    return first < second + len(b) and second < first + len(a)


def on_host(x: Array) -> Array:
    """Return an array's values as NumPy array; waits for a GPU."""
    return x.get() if _is_cupy(x) else x  # type: ignore[attr-defined]


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
