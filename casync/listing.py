"""The list of a model's gradients, `name,elements` a line: `write_gradients` writes it, the tools read it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from casync.plan import Gradient

if TYPE_CHECKING:
    from pathlib import Path

MAX_ELEMENTS: Final = 2**48
"""More than any tensor has; a larger count is a typing error."""


class ListingError(ValueError):
    """A file that does not list gradients. The text says what, where and how to mend it."""


def read_gradients(path: Path) -> tuple[Gradient, ...]:
    """Read `name,elements` lines; empty lines and lines that start with `#` are skipped.

    Raises ListingError that lists every bad line of the file as `file:line: what; how to mend`.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise ListingError(
            f"{path}: there is no such file; write it with "
            'casync.torch.write_gradients(model, "input.txt"), or by hand, one `name,elements` a line'
        ) from None
    except UnicodeDecodeError as error:
        bad = error.object[: error.start].count(b"\n") + 1
        raise ListingError(f"{path}:{bad}: not UTF-8 text; save the file as UTF-8") from None
    except OSError as error:
        raise ListingError(f"{path}: cannot be read: {error.strerror}; name a readable file") from None

    gradients: list[Gradient] = []
    errors: list[str] = []
    seen: dict[str, int] = {}
    for line_number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        try:
            gradient = _parse_line(line)
            if gradient.name in seen:
                raise ListingError(
                    f"the name `{gradient.name}` stands in line {seen[gradient.name]} already; "
                    "give each gradient a name of its own"
                )
        except ListingError as error:
            errors.append(f"{path}:{line_number}: {error}")
            continue
        seen[gradient.name] = line_number
        gradients.append(gradient)
    if errors:
        raise ListingError("\n".join(errors))
    if not gradients:
        raise ListingError(
            f"{path}:1: holds no gradients; write one `name,elements` a line, e.g. `conv1.weight,432`"
        )
    return tuple(gradients)


def _parse_line(line: str) -> Gradient:
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != 2 or not fields[0]:
        raise ListingError(f"`{line.strip()}` is not `name,elements`; write e.g. `conv1.weight,432`")
    name, count = fields
    if not re.fullmatch(r"[+-]?[0-9]+", count, re.ASCII):
        raise ListingError(
            f"`{count}` is not a number of elements; write it in digits, e.g. `{name},432` for 432 float32"
        )
    # Longer texts are out of range anyway, and Python refuses to convert the very longest.
    elements = int(count) if len(count) <= 20 else MAX_ELEMENTS + 1
    if count.startswith("-") or elements == 0:
        raise ListingError(
            f"`{name}` has {count} elements; a gradient has 1 or more: correct it or drop the line"
        )
    if elements > MAX_ELEMENTS:
        raise ListingError(f"`{name}` has {count} elements; a gradient has at most 2^48: correct the number")
    return Gradient(name, (elements,))
