"""Gradients of which only some rows are there, as of an embedding: their rows, their sum, and their body.

The body of a frame with k rows of d elements (docs/runtime.md: Sparse gradients), little-endian:

    uint32        k
    uint32[k]     the rows' indices, ascending, none twice
    zeros up to the next multiple of 16 bytes
    the codec's payload of the k * d values, row by row, to the body's end

With k = 0 the body ends behind k. Where the values are not finite and no codec would say so, it ends before
the payload.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from casync.bodies import aligned
from compll.codec import PayloadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from casync.plan import Gradient

    Vector = NDArray[np.float32]
    Indices = NDArray[np.int64]

MOST_ROWS = 2**32
"""A gradient's rows are numbered by uint32."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """The rows that are there: indices int64[k], ascending, none twice; values float32[k, d], contiguous."""

    indices: Indices
    values: Vector

    @classmethod
    def of(cls, indices: Indices, values: Vector) -> Rows:
        """Rows in any order, of which one may be there several times: such ones are added, in their order."""
        if (np.diff(indices) > 0).all():
            return cls(indices, np.ascontiguousarray(values))
        order = np.argsort(indices, kind="stable")
        ordered = indices[order]
        first = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
        return cls(ordered[first], np.add.reduceat(values[order], first, axis=0))

    def plus(self, whole: Vector) -> Rows:
        """These rows and those of a whole gradient, flat, that are not zero, added."""
        held = whole.reshape(-1, self.values.shape[1])
        union = np.union1d(self.indices, np.flatnonzero(held.any(1)))
        values = held[union]
        values[np.searchsorted(union, self.indices)] += self.values
        return Rows(union, values)


Values: TypeAlias = "Vector | Rows"
"""A gradient: all its elements, flat, or some of its rows."""


def flat(values: Values) -> Vector:
    """All elements that are there."""
    return values.values.reshape(-1) if isinstance(values, Rows) else values


def check(gradient: Gradient, values: Values) -> None:
    """Raise TypeError unless the values are of the gradient's kind, ValueError unless they fit its shape."""
    if isinstance(values, Rows) != gradient.rows:
        kinds = ("an array of all elements", "Rows")
        raise TypeError(f"{gradient.name} comes as {kinds[gradient.rows]}, not as {kinds[not gradient.rows]}")
    if not isinstance(values, Rows):
        return
    height, width = gradient.shape[0], gradient.elements // gradient.shape[0]
    indices, shape = values.indices, values.values.shape
    within = not indices.size or 0 <= indices[0] <= indices[-1] < min(height, MOST_ROWS)
    if shape != (indices.size, width) or not within:
        raise ValueError(
            f"{gradient.name} has {height} rows of {width} elements; given are values {list(shape)} for rows "
            f"{indices.min(initial=height)} to {indices.max(initial=-1)}"
        )


def add(terms: Sequence[Rows], width: int) -> Rows:
    """The sum of one or more terms, row by row in their order: all rows that are in any of them."""
    union = np.unique(np.concatenate([term.indices for term in terms]))
    values = np.full((union.size, width), -0.0, np.float32)  # -0 + x is x, whatever x
    for term in terms:
        values[np.searchsorted(union, term.indices)] += term.values
    return Rows(union, values)


def body_of(k: int) -> int:
    """Where the payload of a body of k rows begins, in bytes."""
    return aligned(4 * (1 + k))


def write_head(buffer: NDArray[np.uint8], indices: Indices) -> None:
    """Write all of a body that goes before the payload."""
    words = buffer[: body_of(indices.size)].view("<u4")
    words[0] = indices.size
    words[1 : 1 + indices.size] = indices
    words[1 + indices.size :] = 0


def count(body: NDArray[np.uint8]) -> int:
    """How many rows a body has; PayloadError if it is too short to say."""
    if body.size < 4:
        raise PayloadError(f"a body of rows begins with their number, 4 bytes; this one has {body.size}")
    return int(body[:4].view("<u4")[0])


def split(body: NDArray[np.uint8], height: int) -> tuple[Indices, NDArray[np.uint8]]:
    """The indices and the payload of a body of a gradient of `height` rows; PayloadError if it is none."""
    k = count(body)
    begin = body_of(k) if k else 4
    if body.size < begin or (k == 0 and body.size > begin):
        raise PayloadError(f"a body of {k} rows has {body.size} bytes: their indices end at {begin}")
    indices = body[4 : 4 * (1 + k)].view("<u4").astype(np.int64)
    if k and (indices[-1] >= height or (np.diff(indices) <= 0).any()):
        raise PayloadError(f"its {k} indices are not ascending ones of {height} rows")
    return indices, body[begin:]
