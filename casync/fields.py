"""The values of a summable codec's payload: where they lie, and how they are added without decoding them.

Every field of such a payload is a vector of floats of a length that is known beforehand, and decoding is
linear in them (LANGUAGE: properties). So the sum of payloads, field by field, is a payload of the sum. Fields
are added in float32, whatever their type; one of halves is read and written as the payload of a cast.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

import compll
from casync.plain import Plain, all_finite
from compll.codec import Item, PayloadError, Result

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from casync.codecs import BatchCodec
    from compll.codec import Operation

    Vector = NDArray[np.float32]
    Run = Callable[[BatchCodec, Operation, Sequence[Item]], list[Result]]

CASTS = {"half": "fp16", "bfloat16": "bf16"}
"""A field's type -> the shipped codec whose payload is one vector of that type."""


def narrow(codec: BatchCodec) -> bool:
    """Return whether a payload's values are rounded to a type that is narrower than float32."""
    return any(kind != "float" for kind, _, _ in codec.fields(1))


class PayloadFields:
    """The fields of the payload of n elements as one float32 vector of `elements` values."""

    def __init__(self, codec: BatchCodec, n: int) -> None:
        self._name, self._n = codec.info.name, n
        self._nbytes = codec.max_bytes(n)
        self._fields: list[tuple[BatchCodec, int, int, int]] = []  # cast, first byte, bytes, elements
        for kind, offset, count in codec.fields(n):
            assert count is not None, "a summable codec has no scalar fields"
            cast = compll.compile(CASTS[kind]) if kind in CASTS else Plain()
            self._fields.append((cast, offset, cast.max_bytes(count), count))
        self.elements = sum(count for *_, count in self._fields)

    def add(self, payload: NDArray[np.uint8], total: Vector, first: bool, run: Run) -> None:
        """Add a payload's values to `total`; the first one's are stored. PayloadError on a wrong length.

        run: runs an operation of a codec where the values lie.
        """
        if payload.size != self._nbytes:
            raise PayloadError(
                f"a payload of {self._name} for {self._n} elements has {self._nbytes} bytes, "
                f"this one {payload.size}"
            )
        begin = 0
        for cast, offset, nbytes, count in self._fields:
            item = Item(payload=payload[offset : offset + nbytes], out=total[begin : begin + count])
            run(cast, "decode" if first else "decode_add", [item])
            begin += count

    def write(self, item: Item, run: Run) -> Result:
        """Write the payload of the values `item.grad` into `item.out`, each rounded to its field's type."""
        payload = item.out[: self._nbytes]
        payload[:] = 0  # gaps between fields
        begin = 0
        for cast, offset, nbytes, count in self._fields:
            values = item.grad[begin : begin + count]
            run(cast, "encode", [Item(grad=values, out=payload[offset : offset + nbytes])])
            begin += count
        return Result(payload, all_finite(item.grad))
