"""The body of a frame: the payloads of one partition's segments (RUNTIME: frame).

One segment: its payload, and nothing where it is absent. Several: the payloads in order, each at a multiple
of 16 bytes; before them, where their lengths do not follow from the codec, a table of uint32 lengths (0:
absent).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from compll.codec import PayloadError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    Bytes = NDArray[np.uint8]

ALIGN = 16


def aligned(nbytes: int) -> int:
    """The next multiple of 16."""
    return -(-nbytes // ALIGN) * ALIGN


@dataclass(frozen=True)
class BodyFormat:
    """How the payloads of one partition lie in a body. sizes: the most bytes of each segment's payload."""

    sizes: tuple[int, ...]
    exact: bool

    @property
    def capacity(self) -> int:
        """The size of a buffer for any body, in bytes."""
        return self._table + sum(map(aligned, self.sizes))

    @property
    def whole(self) -> int:
        """The bytes of a body in which nothing is absent and each payload has its most bytes."""
        table = 0 if self.exact else self._table
        return table + sum(map(aligned, self.sizes[:-1])) + self.sizes[-1]

    @property
    def _table(self) -> int:
        return aligned(4 * len(self.sizes)) if len(self.sizes) > 1 else 0

    def slots(self, buffer: Bytes) -> list[Bytes]:
        """Where in a buffer of `capacity` bytes each segment is to be encoded."""
        return _views(buffer, self._table, self.sizes)

    def pack(self, buffer: Bytes, payloads: Sequence[Bytes | None]) -> Bytes:
        """Make the body of payloads that were encoded in the slots, None being absent; returns a view."""
        lengths = [0 if payload is None else payload.size for payload in payloads]
        if len(lengths) == 1 or not any(lengths):
            return buffer[: sum(lengths)]
        end = _end(self._table, lengths)
        offset = self._table
        for payload, length in zip(payloads, lengths, strict=True):
            if payload is not None:
                buffer[offset : offset + length] = payload  # moves towards the front, or nowhere
            buffer[offset + length : min(offset + aligned(length), end)] = 0
            offset += aligned(length)
        if self.exact and all(lengths):
            return buffer[self._table : end]
        buffer[: self._table] = 0
        buffer[: 4 * len(lengths)].view("<u4")[:] = lengths
        return buffer[:end]

    def spread(self, buffer: Bytes, lengths: Sequence[int]) -> tuple[Bytes, list[Bytes]]:
        """The body of payloads that lie elsewhere, of these lengths (0: absent), and where each is to go.

        The rest of it is written, at the beginning of `buffer`, of `capacity` bytes.
        """
        whole = len(lengths) == 1 or not any(lengths) or (self.exact and all(lengths))
        begin = 0 if whole else self._table
        body = buffer[: _end(begin, lengths)]
        if begin:
            body[:begin] = 0
            body[: 4 * len(lengths)].view("<u4")[:] = lengths
        places = _views(body, begin, lengths)
        for length in lengths:
            body[begin + length : begin + aligned(length)] = 0
            begin += aligned(length)
        return body, places

    def split(self, body: Bytes, absent: bool, copy: Bytes | None = None) -> list[Bytes | None]:
        """The payloads in a body, None for an absent segment; PayloadError if the lengths cannot be.

        copy: of the body, in other memory, where the payloads are wanted instead.
        """
        there = body if copy is None else copy
        if absent and not body.size:
            return [None] * len(self.sizes)
        if len(self.sizes) == 1:
            return [there]
        if self.exact and not absent:
            lengths, begin = list(self.sizes), 0
        else:
            begin = self._table
            if body.size < begin:
                raise PayloadError(f"the table of {len(self.sizes)} lengths is cut off at {body.size} bytes")
            lengths = body[: 4 * len(self.sizes)].view("<u4").tolist()
        if any(length > most for length, most in zip(lengths, self.sizes, strict=True)):
            raise PayloadError(f"lengths {lengths} exceed what the segments can have, {list(self.sizes)}")
        if body.size != _end(begin, lengths):
            raise PayloadError(f"the payloads need {_end(begin, lengths)} bytes, the body has {body.size}")
        views = _views(there, begin, lengths)
        return [view if length else None for view, length in zip(views, lengths, strict=True)]


def _views(buffer: Bytes, begin: int, lengths: Sequence[int]) -> list[Bytes]:
    views = []
    for length in lengths:
        views.append(buffer[begin : begin + length])
        begin += aligned(length)
    return views


def _end(begin: int, lengths: Sequence[int]) -> int:
    """Where the last payload ends: there is no padding behind it."""
    end = begin
    for length in lengths:
        if length:
            end = begin + length
        begin += aligned(length)
    return end
