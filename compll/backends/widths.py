"""A codec whose Decode reads a width from the payload: one library a width, chosen for each payload."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from compll import ir
from compll.backends import Call, Library, Outcome, Values
from compll.payload import read_scalar


class WidthLibrary:
    """Runs each payload by the library of its width.

    That of the codec's own width encodes too; the others are built when the first payload of theirs comes,
    since ranks that agree on the codec never send one.
    """

    def __init__(
        self, own: Library, decode: ir.Function, field: str, build: Callable[[int], Library]
    ) -> None:
        """Begin with the library of the codec's own width; `build` makes (or returns) that of any width."""
        self.own, self.decode, self.field, self.build = own, decode, field, cache(build)
        self.backend = own.backend

    def run(self, op: str, calls: Sequence[Call], values: Values, threads: int) -> list[Outcome]:
        """Run one operation on every item; the widths have been checked."""
        if op not in ("decode", "decode_add"):
            return self.own.run(op, calls, values, threads)
        widths = [read_scalar(self.decode, self.field, c.payload, c.n, values) for c in calls]
        outcomes: dict[int, Outcome] = {}
        for width in dict.fromkeys(widths):
            places = [at for at, w in enumerate(widths) if w == width]
            ran = self.build(width).run(op, [calls[at] for at in places], values, threads)
            outcomes.update(zip(places, ran, strict=True))
        return [outcomes[at] for at in range(len(calls))]
