"""Positions that lanes reach by one load: fixed bits and a fixed distance tell them from their own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compll import ir

LOW = 15  # the bits of a position that tell lanes apart, where the first lane is at a multiple of 16
NARROW = 2**31


@dataclass(frozen=True)
class Bits:
    """The position ((i & keep) ^ flip) + distance."""

    keep: int = -1
    flip: int = 0
    distance: int = 0

    def lanes(self) -> str:
        """Return what the lanes' own bits become."""
        return f"Int32{{{', '.join(str((j & self.keep ^ self.flip) & LOW) for j in range(LOW + 1))}}}"

    def first(self, start: str) -> str:
        """Return what becomes of the position `start` of the first lane."""
        return f"((({start}) & INT64_C({self.keep & ~LOW})) ^ INT64_C({self.flip & ~LOW})) + {self.distance}"


def bits_of(e: ir.Expr) -> Bits | None:
    """Return how a position is made of the element's own, or None if it is otherwise."""
    match e:
        case ir.Position():
            return Bits()
        case ir.Apply(("&" | "|" | "^" | "+" | "-") as op, (x, ir.Const(value, _)), _):
            have, c = bits_of(x), int(value)
        case ir.Apply(("&" | "|" | "^" | "+") as op, (ir.Const(value, _), x), _):
            have, c = bits_of(x), int(value)
        case _:
            return None
    if have is None or abs(c) >= NARROW:
        return None
    if op in ("+", "-"):
        return replace(have, distance=have.distance + (c if op == "+" else -c))
    if have.distance:
        return None
    if op == "&":
        return Bits(have.keep & c, have.flip & c)
    return Bits(have.keep & ~c if op == "|" else have.keep, have.flip | c if op == "|" else have.flip ^ c)
