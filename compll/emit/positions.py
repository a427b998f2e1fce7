"""Positions that lanes reach by one load: fixed bits and a fixed distance tell them from their own."""

from __future__ import annotations

from dataclasses import dataclass, replace

from compll import ir

NARROW = 2**31


@dataclass(frozen=True)
class Bits:
    """The position ((i & keep) ^ flip) + distance."""

    keep: int = -1
    flip: int = 0
    distance: int = 0

    def order(self, width: int) -> list[int]:
        """Return what becomes of the lanes' own bits, where the first lane is at a multiple of `width`."""
        return [(j & self.keep ^ self.flip) & (width - 1) for j in range(width)]

    def rest(self, width: int) -> tuple[int, int]:
        """Return `keep` and `flip` of the other bits."""
        return self.keep & -width, self.flip & -width


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
