"""Where the fields of a payload lie, and whether given bytes can be a payload.

LANGUAGE, "Payload": fields in the order of concat, each at the next multiple of its alignment; a scalar's
alignment is its size, a vector's 16; the length is the end of the last field.  All little-endian.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from compll import arrays, ir
from compll.errors import ParameterError, PayloadError
from compll.evaluate import Environment, evaluate, host_int
from compll.types import Array, Elem, alignment, from_bytes, limits, scalar_bytes, vector_bytes

WIRE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Extent:
    """One field in the payload for a given n: `count` elements (None: a scalar), `size` bytes at `offset`."""

    name: str
    elem: Elem
    count: int | None
    offset: int
    size: int


def extents(
    layout: tuple[ir.Field, ...],
    n: int,
    params: Mapping[str, float | int | bool],
    counts: Mapping[str, int] | None = None,
) -> tuple[Extent, ...]:
    """Return the place of every field of the payload of n elements; it begins with `counts`."""
    out: list[Extent] = []
    end = count_bytes(n) * len(counts or {})
    scalars = {name: np.asarray(value, np.int64) for name, value in (counts or {}).items()}
    env = Environment(n, params, scalars=scalars)
    for field in layout:
        count = None if field.length is None else max(0, int(evaluate(field.length, env)))
        size = scalar_bytes(field.elem) if count is None else vector_bytes(field.elem, count)
        align = alignment(field.elem, count is not None)
        offset = -(-end // align) * align
        out.append(Extent(field.name, field.elem, count, offset, size))
        end = offset + size
    return tuple(out)


def count_bytes(n: int) -> int:
    """Return the bytes of a count: uint32, from 2^32 elements on uint64."""
    return 4 if n < 2**32 else 8


def most_counts(f: ir.Function, n: int, params: Mapping[str, float | int | bool]) -> dict[str, int]:
    """Return the most that each count can be.

    Raises:
        ParameterError: the payload keeps positions in a type that does not hold those of n elements.

    """
    for positions in f.narrow:
        length, most = host_int(positions.length, n, params), limits(positions.elem)[1]
        if length > most + 1:
            raise ParameterError(
                f"{f.codec} keeps positions as {positions.elem}, which holds those of {most + 1} elements, "
                f"not of {length}"
            )
    return {c.name: max(0, min(n, host_int(c.most, n, params))) for c in f.counts}


def read_counts(
    f: ir.Function, payload: Array, n: int, params: Mapping[str, float | int | bool]
) -> dict[str, int]:
    """Return the counts that a payload begins with.

    Raises:
        PayloadError: it is too short for them, or one is larger than it can be.

    """
    size = count_bytes(n)
    if len(payload) < size * len(f.counts):
        raise PayloadError(
            f"{f.codec}: the payload is truncated: it has {len(payload)} bytes, and begins with "
            f"{len(f.counts)} counts of {size}"
        )
    found, head = {}, arrays.on_host(payload[: size * len(f.counts)])
    for at, (name, most) in enumerate(most_counts(f, n, params).items()):
        found[name] = int.from_bytes(head[at * size : (at + 1) * size].tobytes(), "little")
        if found[name] > most:
            raise PayloadError(
                f"{f.codec}: the payload says that '{name}' is {found[name]}, and {n} elements allow {most}"
            )
    return found


def read_scalar(
    f: ir.Function, name: str, payload: Array, n: int, params: Mapping[str, float | int | bool]
) -> int:
    """Return the integer in a scalar field that stands before all vectors.

    Raises:
        PayloadError: the payload is too short for it.

    """
    names = [field.name for field in f.layout]
    head = f.layout[: names.index(name) + 1]
    place = extents(head, n, params, {c.name: 0 for c in f.counts})[-1]
    raw = arrays.on_host(payload[place.offset : place.offset + place.size])
    if len(raw) < place.size:
        raise PayloadError(
            f"{f.codec}: the payload is truncated: it has {len(payload)} bytes, and '{name}' ends at "
            f"{place.offset + place.size}"
        )
    return int(from_bytes(raw, place.elem, 1)[0])


def total_bytes(places: tuple[Extent, ...]) -> int:
    """Return the length of a payload."""
    return places[-1].offset + places[-1].size if places else 0


def check_length(codec: str, payload: Array, places: tuple[Extent, ...], n: int) -> None:
    """Raise PayloadError unless the payload has exactly the length that n elements need."""
    want = total_bytes(places)
    if len(payload) != want:
        what = "truncated" if len(payload) < want else "too long"
        raise PayloadError(
            f"{codec}: the payload is {what}: it has {len(payload)} bytes, and {n} elements take {want}; "
            "give the payload's own bytes, and the n that it was encoded from"
        )


def explain_refusal(
    codec: str,
    decode: ir.Function,
    payload: Array,
    places: tuple[Extent, ...],
    params: Mapping[str, float | int | bool],
) -> PayloadError:
    """Say which field a decoder refused; called after a kernel has reported that it did.

    `params` has the shared seed of the call besides the hyper-parameters.
    """
    read = {b.name: b.field for b in decode.body if isinstance(b, ir.Get)}
    by_name = {place.name: place for place in places}
    for b in decode.body:
        if isinstance(b, ir.Guard) and isinstance(b.read, ir.Scalar):
            place = by_name[read[b.read.name]]
            have = from_bytes(payload[place.offset : place.offset + place.size], place.elem, 1)[0]
            want = evaluate(b.expected, Environment(0, params))
            if have != want:
                return PayloadError(
                    f"{codec}: the payload was made with {b.param} = {have}, and this codec has {want}"
                )
    return PayloadError(f"{codec}: the payload reads outside its own fields; it is corrupt")
