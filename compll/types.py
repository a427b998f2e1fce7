"""Element types: how values are named, converted and laid out in bytes.

The NumPy functions here are the definition (LANGUAGE: "Types and arithmetic"); every backend is compared
with them.  Values of an element type are held widened to one of four arithmetic types: `int` (int64),
`uint32`, `uint64` and `float` (float32), or as `bool`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Elem:
    """The type of one element: `kind` is bool, int, uint or float, `bits` its width on the wire."""

    name: str
    kind: str
    bits: int

    @property
    def packed(self) -> bool:
        """Whether several elements share a byte."""
        return self.kind == "uint" and self.bits < 8

    def __str__(self) -> str:
        """Return the name under which a program writes this type."""
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        """Unpickle a named type as the one that there is of it: some code asks by `is`."""
        return _named, (self.name, self.kind, self.bits)


BOOL = Elem("bool", "bool", 8)
INT8, INT16, INT32 = (Elem(f"int{b}", "int", b) for b in (8, 16, 32))
INT = Elem("int", "int", 64)
UINT8, UINT16, UINT32, UINT64 = (Elem(f"uint{b}", "uint", b) for b in (8, 16, 32, 64))
FLOAT = Elem("float", "float", 32)
HALF = Elem("half", "float", 16)
BFLOAT16 = Elem("bfloat16", "bfloat", 16)

NAMED: dict[str, Elem] = (
    {t.name: t for t in (BOOL, INT8, INT16, INT32, INT, UINT8, UINT16, UINT32, UINT64, FLOAT, HALF, BFLOAT16)}
    | {"int64": INT}
    | {f"uint{w}": Elem(f"uint<{w}>", "uint", w) for w in (1, 2, 4)}
)
GRADIENTS = {FLOAT: "f32", HALF: "f16", BFLOAT16: "bf16"}  # what gradients may be; how symbols of C end


def _named(name: str, kind: str, bits: int) -> Elem:
    return NAMED.get(name) or Elem(name, kind, bits)


def uint(width: int) -> Elem:
    """Return the element type `uint<width>` for a width of 1 to 8 bits."""
    return UINT8 if width == 8 else Elem(f"uint<{width}>", "uint", width)


def written(value: float | bool) -> str:
    """Return a parameter's value as a person writes it: the shortest decimal that is the same float32."""
    return str(np.float32(value)) if isinstance(value, float) else str(value)


def arithmetic(elem: Elem) -> Elem:
    """Return the type in which values of `elem` are computed with; `bool` stays `bool`."""
    if elem.kind in ("float", "bfloat"):
        return FLOAT
    if elem in (UINT32, UINT64, BOOL):
        return elem
    return INT


def dtype(elem: Elem) -> np.dtype[Any]:
    """Return the NumPy type that holds one value of `elem`; sub-byte types have a byte each."""
    if elem.kind == "bool":
        return np.dtype(np.bool_)
    if elem.kind == "bfloat":
        return np.dtype(np.uint16)
    if elem.kind == "float":
        return np.dtype(f"f{elem.bits // 8}")
    return np.dtype(f"{'i' if elem.kind == 'int' else 'u'}{max(1, (elem.bits + 7) // 8)}")


def limits(elem: Elem) -> tuple[int, int]:
    """Return the least and the greatest value of an integer type."""
    if elem.kind == "bool":
        return 0, 1
    if elem.kind == "int":
        return -(1 << (elem.bits - 1)), (1 << (elem.bits - 1)) - 1
    return 0, (1 << elem.bits) - 1


def convert(value: Array, to: Elem) -> Array:
    """Convert values of any arithmetic type to `to`, widened to its arithmetic type again.

    To an integer: truncate toward zero, saturate, NaN gives 0.  To a float: round to nearest even.
    """
    x = np.asarray(value)
    if to.kind == "bool":
        return np.asarray(x != 0)
    if to.kind == "float":
        with np.errstate(all="ignore"):
            wide = x.astype(np.float32)
            return wide if to.bits == 32 else wide.astype(np.float16).astype(np.float32)
    if to.kind == "bfloat":
        return bfloat16_value(bfloat16_bits(x.astype(np.float32)))
    low, high = limits(to)
    target = dtype(arithmetic(to))
    if x.dtype.kind == "f":
        with np.errstate(all="ignore"):
            cut = np.trunc(np.where(np.isnan(x), np.float32(0), x)).astype(np.float64)
            inside = np.where((cut > low) & (cut < high), cut, 0.0).astype(target)
            return np.where(cut <= low, target.type(low), np.where(cut >= high, target.type(high), inside))
    if x.dtype.kind == "b":
        return x.astype(target)
    have = np.iinfo(x.dtype)
    clipped = np.clip(x, x.dtype.type(max(low, have.min)), x.dtype.type(min(high, have.max)))
    return np.asarray(clipped.astype(target))


def bfloat16_bits(x: Array) -> Array:
    """Round float32 to nearest even bfloat16 and return the 16 bits; NaN gives 0x7fc0."""
    bits = x.view(np.uint32).astype(np.uint64)
    rounded = (bits + 0x7FFF + ((bits >> np.uint64(16)) & np.uint64(1))) >> np.uint64(16)
    return np.where(np.isnan(x), 0x7FC0, rounded).astype(np.uint16)


def bfloat16_value(bits: Array) -> Array:
    """Return the float32 values of bfloat16 bits."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def widened(x: Array) -> Array:
    """Return a gradient as float32; the elements of uint16 are bits of bfloat16."""
    return bfloat16_value(x) if x.dtype == np.uint16 else x.astype(np.float32, copy=False)


def canonical(x: Array) -> Array:
    """Replace every NaN of a float array by the one NaN that is ever written: 0x7fc00000 (half 0x7e00)."""
    quiet = (
        np.array(0x7E00, np.uint16).view(np.float16)
        if x.dtype == np.float16
        else np.array(0x7FC00000, np.uint32).view(np.float32)
    )
    return np.where(np.isnan(x), quiet, x) if x.dtype.kind == "f" else x


def alignment(elem: Elem, vector: bool) -> int:
    """Return the alignment of a payload field in bytes: 16 for a vector, its own size for a scalar."""
    return 16 if vector else scalar_bytes(elem)


def scalar_bytes(elem: Elem) -> int:
    """Return the bytes of a scalar field."""
    return max(1, elem.bits // 8)


def vector_bytes(elem: Elem, count: int) -> int:
    """Return the bytes of a vector field of `count` elements."""
    return (count * elem.bits + 7) // 8 if elem.packed else count * scalar_bytes(elem)


def to_bytes(value: Array, elem: Elem) -> Array:
    """Lay out converted values of `elem` as bytes (uint8), as a payload field holds them.

    Element i of a packed type has bits i*w .. i*w+w-1 of the little-endian bit string; unused bits are 0.
    """
    x = np.atleast_1d(value)
    if elem.packed:
        bits = np.unpackbits(x.astype(np.uint8)[:, None], axis=1, count=elem.bits, bitorder="little")
        return np.packbits(bits.reshape(-1), bitorder="little")
    if elem.kind == "bfloat":
        return bfloat16_bits(x.astype(np.float32)).view(np.uint8)
    with np.errstate(all="ignore"):
        return np.ascontiguousarray(canonical(x.astype(dtype(elem)))).view(np.uint8)


def from_bytes(raw: Array, elem: Elem, count: int) -> Array:
    """Read `count` values of `elem` from the bytes of a payload field, widened to the arithmetic type."""
    wide = dtype(arithmetic(elem))
    if elem.packed:
        bits = np.unpackbits(raw, count=count * elem.bits, bitorder="little").reshape(count, elem.bits)
        weights = np.int64(1) << np.arange(elem.bits, dtype=np.int64)
        return np.asarray(bits.astype(np.int64) @ weights)
    if elem.kind == "bfloat":
        return bfloat16_value(np.frombuffer(raw.tobytes(), np.uint16, count))
    if elem.kind == "bool":
        return np.asarray(np.frombuffer(raw.tobytes(), np.uint8, count) != 0)
    return np.frombuffer(raw.tobytes(), dtype(elem), count).astype(wide)
