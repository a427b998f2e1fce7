"""NumPy views of callers' arrays: NumPy itself, and CPU tensors of frameworks that offer `.numpy()`."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from compll.errors import BackendError, ParameterError
from compll.types import Array

ALIGNMENT = 64


def view(x: Any, what: str, kind: str, *, writes: bool = False) -> tuple[Array, Callable[[Array], Any]]:
    """Return a one-dimensional NumPy view of `x`, and the function that gives results the caller's type.

    Args:
        x: NumPy array, or a CPU tensor.
        what: its name, for messages.
        kind: the element type that it must have, "float32" or "uint8".
        writes: whether it is written to.

    Raises:
        ParameterError: another element type, more than one dimension, a stride, or a read-only array that
            is to be written.
        BackendError: a tensor on a device that has no backend yet.

    """
    wrap: Callable[[Array], Any] = _same
    if not isinstance(x, np.ndarray):
        x, wrap = _from_tensor(x, what)
    if x.dtype != kind:
        hint = f"; give {what}.astype('{kind}')" if kind == "float32" else ""
        raise ParameterError(f"{what} has elements of type {x.dtype}; this takes {kind}{hint}")
    if x.ndim != 1:
        raise ParameterError(f"{what} has {x.ndim} dimensions, {x.shape}; give {what}.reshape(-1)")
    if not x.flags.c_contiguous:
        raise ParameterError(f"{what} is not contiguous (strides {x.strides}); copy it first")
    if writes and not x.flags.writeable:
        raise ParameterError(f"{what} is read-only; give an array that can be written")
    return x, wrap


def _same(x: Array) -> Array:
    return x


def _from_tensor(x: Any, what: str) -> tuple[Array, Callable[[Array], Any]]:
    device = getattr(getattr(x, "device", None), "type", None)
    if device not in (None, "cpu"):
        raise BackendError(f"{what} lies on '{device}', and there is no GPU backend yet: give {what}.cpu()")
    framework = sys.modules.get(type(x).__module__.partition(".")[0])
    from_numpy = getattr(framework, "from_numpy", None)
    if from_numpy is None or not hasattr(x, "detach"):
        raw = (
            "; np.frombuffer(x, np.uint8) makes one" if isinstance(x, bytes | bytearray | memoryview) else ""
        )
        raise ParameterError(f"{what} is a {type(x).__name__}; give a NumPy array or a CPU tensor{raw}")
    if not x.is_contiguous():
        raise ParameterError(f"{what} is not contiguous; give {what}.contiguous()")
    return x.detach().numpy(), from_numpy


def aligned_empty(nbytes: int) -> Array:
    """Return an uninitialised uint8 array whose data begins at a multiple of 64."""
    raw = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -raw.ctypes.data % ALIGNMENT
    return raw[start : start + nbytes]
