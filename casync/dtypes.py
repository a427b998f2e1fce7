"""The element types of gradients: how they travel uncompressed, and the largest value that each can hold.

All arithmetic is float32. A float16 or bfloat16 gradient is widened once, exactly, when it is handed over,
and its result is rounded once, to nearest even, when it is written back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import compll
from casync.plain import Plain

if TYPE_CHECKING:
    from casync.codecs import BatchCodec


@dataclass(frozen=True, slots=True)
class Dtype:
    """nbytes: of an element. largest: the last float32 that does not round to infinity. cast: its codec."""

    nbytes: int
    largest: float
    cast: str | None


DTYPES = {
    "float32": Dtype(4, float.fromhex("0x1.fffffep127"), None),
    "float16": Dtype(2, float.fromhex("0x1.ffdffep15"), "fp16"),
    "bfloat16": Dtype(2, float.fromhex("0x1.fefffep127"), "bf16"),
}


def exact(dtype: str) -> BatchCodec:
    """What uncompressed gradients of this type travel by: their own bytes, sums rounded to their type."""
    cast = DTYPES[dtype].cast
    return Plain() if cast is None else compll.compile(cast)
