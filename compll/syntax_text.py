"""The syntax tree as text: one line a node, its parts indented below it, without places."""

from __future__ import annotations

from collections.abc import Iterator

from compll import syntax as s


def tree_text(program: s.Program) -> str:
    """Return a program's syntax tree."""
    return "\n".join(_lines(program, "", "")) + "\n"


def _lines(node: object, indent: str, label: str) -> Iterator[str]:
    if isinstance(node, tuple):
        for item in node:
            yield from _lines(item, indent, label)
    elif isinstance(node, s.Node):
        names = [n for c in type(node).__mro__ for n in getattr(c, "__slots__", ()) if n != "span"]
        parts = {n: getattr(node, n) for n in names}
        plain = [f"{n}={value!r}" for n, value in parts.items() if isinstance(value, str | int | bool)]
        yield f"{indent}{label}{type(node).__name__} {' '.join(plain)}".rstrip()
        for n, value in parts.items():
            if isinstance(value, s.Node | tuple):
                yield from _lines(value, indent + "  ", f"{n}: ")
