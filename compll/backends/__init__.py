"""Backends turn the functions of a codec into something that runs; each is one module of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np

from compll import ir
from compll.types import FLOAT, GRADIENTS, Array, Elem, arithmetic, dtype

OK, NOT_FINITE, OUT_OF_RANGE, REFUSED = 0, 1, -1, -2

Values = Mapping[str, float | int | bool]
NO_STATE: Mapping[str, Array] = MappingProxyType({})
NO_LAUNCHES: Mapping[str, tuple[int, int]] = MappingProxyType({})


@dataclass(frozen=True)
class Unit:
    """What a backend compiles: the typed functions of one codec for given static parameters.

    They read and write gradients whose elements are stored as `element`.  `key`: as that of `Checked`.
    """

    codec: str
    functions: tuple[ir.Function, ...]
    params: tuple[ir.Parameter, ...]
    element: Elem = FLOAT
    key: str = ""

    @property
    def suffix(self) -> str:
        """How the symbols of the operations end: f32, f16 or bf16."""
        return GRADIENTS[self.element]


class Call(NamedTuple):
    """One item of a batch: buffers that the caller owns, checked and contiguous.

    encode reads `gradient` and `state`, writes `payload` and `new_state`; decode and decode_add read
    `payload` and write `gradient`; hop is an encode that reads the payload `source` besides.  Vectors have n
    elements: states of float32, in the order of the program; the gradient of float32, of float16, or of
    uint16, which are the bits of bfloat16.  Payloads are uint8 and long enough.  `width`: that of a payload
    to be decoded, if it is not the codec's own.  `padded`: on a GPU, a payload may end before its buffer
    does.  `payload_at`, `source_at`: their addresses, where whoever made the call knows them.
    """

    n: int
    gradient: Array
    payload: Array
    seed: int = 0
    shared_seed: int = 0
    scale: float = 1.0
    state: Mapping[str, Array] = NO_STATE
    new_state: Mapping[str, Array] = NO_STATE
    source: Array | None = None
    width: int = 0
    padded: bool = False
    payload_at: int = 0
    source_at: int = 0


class Outcome(NamedTuple):
    """What a call did: OK, NOT_FINITE, OUT_OF_RANGE or REFUSED, and the payload's true length."""

    status: int
    length: int


class Library(Protocol):
    """A codec made ready by a backend.

    `launches` gives for an operation the kernel launches on a GPU, and those of them over the elements.
    """

    backend: str
    launches: Mapping[str, tuple[int, int]]

    def run(self, op: str, calls: Sequence[Call], values: Values, threads: int) -> list[Outcome]:
        """Run one operation on every item of a batch."""


class Packer:
    """Lays out run-time parameters as the generated C struct `Params`; keeps the last: nobody changes it."""

    def __init__(self, params: Sequence[ir.Parameter]) -> None:
        """Work out the layout."""
        self.names = [p.name for p in params if not p.static]
        kinds = [(p.name, dtype(arithmetic(p.elem))) for p in params if not p.static]
        self.record = np.dtype(kinds or [("none", np.dtype(np.uint8))], align=True)
        self.last: tuple[Values, Array] | None = None

    def pack(self, values: Values) -> Array:
        """Return an array of one record, which nobody changes."""
        last = self.last
        if last is None or last[0] is not values:
            packed = np.zeros(1, self.record)
            for name in self.names:
                packed[name] = values[name]
            self.last = last = values, packed
        return last[1]
