"""Makes a text that the compiler answers wrongly as short as it can be, for the person who mends it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from fuzz_inputs import tokens

TRIES = 600


def minimise(text: str, is_wrong: Callable[[str], bool]) -> str:
    """Return a shorter text of which `is_wrong` still holds: without lines, then without tokens.

    Parts of half the text are left away, then of a quarter, and so on (Zeller's delta debugging, simplified).
    """
    tries = TRIES

    def reduce(parts: Sequence[str]) -> list[str]:
        nonlocal tries
        kept = list(parts)
        size = max(1, len(kept) // 2)
        while True:
            at = 0
            while at < len(kept) and tries > 0:
                without = kept[:at] + kept[at + size :]
                tries -= 1
                if is_wrong("".join(without)):
                    kept = without
                else:
                    at += size
            if size == 1 or tries <= 0:
                return kept
            size = max(1, size // 2)

    lines = reduce(text.splitlines(keepends=True))
    return "".join(reduce(tokens("".join(lines))))
