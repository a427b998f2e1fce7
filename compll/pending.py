"""Calls on a GPU that nobody has waited for, found by the array that they write.

What such a call did - its payload's length, whether it failed - lies in device memory.  It is kept as long as
the array lives; so is what a captured call works in, since the graph uses it again at each replay.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from compll.backends import Outcome
    from compll.backends.launches import Started


class Entry(NamedTuple):
    """The last call that wrote an array: operation, n, place in a batch; and all that were captured."""

    array: weakref.ref[Any]
    op: str
    n: int
    started: Started
    at: int
    captured: tuple[Started, ...]

    def wait(self) -> Outcome:
        """Wait for the current stream; return what became of the call, when it ran last."""
        return self.started.outcomes()[self.at]


class Pending:
    """The calls by the identity of the array, since an address may be given anew."""

    def __init__(self) -> None:
        """Begin with none."""
        self.entries: dict[int, Entry] = {}

    def __contains__(self, array: Any) -> bool:
        """Whether a call wrote this very array."""
        return id(array) in self.entries

    def find(self, array: Any) -> Entry | None:
        """Return the last call that wrote this very array."""
        return self.entries.get(id(array))

    def enter(self, array: Any, op: str, n: int, started: Started, at: int, *, captured: bool) -> None:
        """Remember a call until the next that writes this array, or the array's end."""
        key, before = id(array), self.find(array)
        kept = (before.captured if before else ()) + ((started,) if captured else ())
        gone = weakref.ref(array, lambda _: self.entries.pop(key, None))
        self.entries[key] = Entry(gone, op, n, started, at, kept)
