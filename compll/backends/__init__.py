"""Backends turn the functions of a codec into something that runs; each is one module of this package."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple, Protocol

import numpy as np

from compll import ir
from compll.types import Array, arithmetic, dtype

OK, NOT_FINITE, OUT_OF_RANGE, REFUSED = 0, 1, -1, -2

Values = Mapping[str, float | int | bool]
NOTHING: Array = np.empty(0, np.uint8)
NO_STATE: Mapping[str, Array] = MappingProxyType({})


@dataclass(frozen=True)
class Unit:
    """What a backend compiles: the typed functions of one codec for given static parameters."""

    codec: str
    functions: tuple[ir.Function, ...]
    params: tuple[ir.Parameter, ...]


class Call(NamedTuple):
    """One item of a batch: buffers that the caller owns, checked and contiguous.

    encode reads `gradient` and `state`, writes `payload` and `new_state`; decode and decode_add read
    `payload` and write `gradient`; hop is an encode that reads the payload `source` besides.  Vectors are
    float32[n]; payloads are uint8 and long enough.
    """

    n: int
    gradient: Array
    payload: Array
    seed: int = 0
    shared_seed: int = 0
    scale: float = 1.0
    state: Mapping[str, Array] = NO_STATE
    new_state: Mapping[str, Array] = NO_STATE
    source: Array = NOTHING


class Outcome(NamedTuple):
    """What a call did: OK, NOT_FINITE, OUT_OF_RANGE or REFUSED, and the payload's true length."""

    status: int
    length: int


class Library(Protocol):
    """A codec made ready by a backend."""

    backend: str

    def run(self, op: str, calls: Sequence[Call], values: Values, threads: int) -> list[Outcome]:
        """Run one operation on every item of a batch."""


def pack_parameters(params: Sequence[ir.Parameter], values: Values) -> Array:
    """Lay out the run-time parameters as the generated C struct `Params`: an array of one record."""
    named = [p for p in params if not p.static]
    kinds = [(p.name, dtype(arithmetic(p.elem))) for p in named] or [("none", np.dtype(np.uint8))]
    packed = np.zeros(1, np.dtype(kinds, align=True))
    for p in named:
        packed[p.name] = values[p.name]
    return packed
