"""Kernels that threads share: functions of a job, which is an address, and of a range of tiles.

All have one type, so that `numba_team` calls any of them; what their jobs are, their own types say.  They run
where nobody could catch an exception, and raise none.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numba import cfunc, from_dtype
from numba.core import types
from numba.core.sigutils import normalize_signature
from numba.core.types.containers import Tuple
from numba.core.types.misc import CPointer
from numba.core.typing import signature
from numba.extending import intrinsic

from compll.arrays import address

Job = tuple[int, Any]
"""The address of a kernel, and what it works on: an array that begins at the address that it gets."""


def _compiled(function: Callable[..., None], job: Any) -> Any:
    kind = types.void(CPointer(job), types.int64, types.int64)
    return cfunc(kind, error_model="numpy", cache=True)(function)


def loop(frame: np.dtype[Any]) -> Any:
    """Return the decorator of a kernel whose job is a frame."""
    return lambda function: _compiled(function, from_dtype(frame))


def step(frame: np.dtype[Any]) -> Any:
    """Return the decorator of what runs before a loop: it gets a frame, and returns a number."""
    kind = types.int64(CPointer(from_dtype(frame)))
    return lambda function: cfunc(kind, error_model="numpy", cache=True)(function)


@intrinsic
def record(_: Any, job: Any) -> Any:
    """Return the frame that a job is."""
    return signature(job.dtype, job), lambda _c, _b, _s, v: v[0]


class Kernel:
    """A kernel whose jobs are arguments; called with some, it gives the job."""

    def __init__(self, function: Callable[..., None], signatures: Sequence[str]) -> None:
        """Compile it for each of several types, which the elements of its vectors tell apart."""
        self.compiled: dict[tuple[int, ...], Any] = {}
        for text in signatures:
            arguments = normalize_signature(text)[0]
            sizes = tuple(x.dtype.bitwidth // 8 for x in arguments if isinstance(x, types.Array))
            self.compiled[sizes] = _compiled(function, Tuple(arguments))

    def __call__(self, *arguments: Any) -> Job:
        """Return the job: the arguments as words of 64 bits, as Numba lays out a tuple of them."""
        sizes: list[int] = []
        words: list[int] = []
        for x in arguments:
            if isinstance(x, np.ndarray):
                sizes.append(x.itemsize)
                words += (0, 0, x.size, x.itemsize, address(x), *x.shape, *x.strides)
            else:
                words.append(int(x) % 2**64)
        return self.compiled[tuple(sizes)].address, np.array(words, np.uint64)


def kernel(*signatures: str) -> Callable[[Callable[..., None]], Kernel]:
    """Return the decorator of a kernel whose jobs are arguments of these types."""
    return lambda function: Kernel(function, signatures)
