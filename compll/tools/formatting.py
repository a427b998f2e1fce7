"""One layout for programs: spaces, indentation and blank lines; tokens, comments and their order stay.

A statement has a line of its own.  A block is broken unless it was written on one line and holds one
statement.  Inside a statement the writer's line breaks stay; what follows one is put below what the
innermost open bracket begins with.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from lark import Token, Tree

from compll.parse import tokens

INDENT = 4
COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
OPEN, CLOSE = ("(", "[", "[[", "{"), (")", "]", "]]", "}")
TIGHT_BEFORE = (")", "]", "]]", ",", ";", ".")
TIGHT_AFTER = ("(", "[", "[[", ".", "!", "~")


@dataclass(frozen=True)
class Item:
    """A token or a comment, with the line breaks that stand before it.

    `role` tells apart what is spelled alike: a `<` or `>` or `*` of a type, a sign, the `&` of a lambda, the
    braces of a table, and those of a block on one line.
    """

    text: str
    kind: str
    breaks: int
    role: str = ""

    @property
    def is_comment(self) -> bool:
        """Whether it is one."""
        return self.kind == "COMMENT"


def formatted(text: str, file: str) -> str:
    """Return a program in the one layout.

    Raises:
        CompileError: the text is no program.

    """
    items = _items(text, file)
    made = _Writer(items).text()
    if _meaning(_items(made, file)) != _meaning(items):
        raise AssertionError(f"formatting '{file}' would change it: a bug of the formatter")
    return made


def _meaning(items: list[Item]) -> list[tuple[str, str]]:
    return [(x.kind, " ".join(x.text.split()) if x.is_comment else x.text) for x in items]


# --- what is there ------------------------------------------------------------------------------


def _items(text: str, file: str) -> list[Item]:
    """Return tokens and comments in their order."""
    text = text.replace("\r\n", "\n")
    tree, found = tokens(text, file)
    roles = _roles(tree, found)
    items: list[Item] = []
    at = 0
    for token in (*found, None):
        start = len(text) if token is None else token.start_pos or 0
        for comment in COMMENT.finditer(text, at, start):
            items.append(Item(comment[0].rstrip(), "COMMENT", text.count("\n", at, comment.start())))
            at = comment.end()
        if token is not None:
            breaks = text.count("\n", at, start)
            items.append(Item(str(token), token.type, breaks, roles.get(start, "")))
            at = token.end_pos or 0
    return items


def _roles(tree: Tree[Any], found: list[Token]) -> dict[int, str]:
    roles: dict[int, str] = {}
    for part in tree.iter_subtrees():
        own = [t for t in part.children if isinstance(t, Token)]
        if part.data in ("type", "struct_type", "cast", "typed_call"):
            marked = [t for t in own if t.type in ("LT", "GT", "STAR")]
            roles.update((t.start_pos or 0, "type") for t in marked)
        elif part.data == "unary":
            roles[own[0].start_pos or 0] = "sign"
        elif part.data == "lambda":
            roles.update((t.start_pos or 0, "capture") for t in own if t == "&")
    opened: list[int] = []
    for number, token in enumerate(found):
        if token == "{":
            opened.append(number)
        elif token == "}":
            first = opened.pop()
            inside = found[first + 1 : number]
            role = ""
            if found[first - 1] in ("=", ",", "("):
                role = "table"
            elif found[first].line == token.line and not _is_branch(found[:first]):
                broken = any(roles.get(t.start_pos or 0) == "block" for t in inside)
                role = "" if broken or sum(t == ";" for t in inside) > 1 else "line"
            for t in (found[first], token):
                roles[t.start_pos or 0] = role or "block"
    return roles


def _is_branch(before: list[Token]) -> bool:
    """Whether a block behind these tokens is one of an `if`."""
    depth = 0
    for at in range(len(before) - 1, -1, -1):
        depth += (before[at] == ")") - (before[at] == "(")
        if depth == 0:
            return before[at] == "else" or (at > 0 and before[at - 1] == "if")
    return False


# --- how it is laid out ---------------------------------------------------------------------------


@dataclass
class _Open:
    """An open bracket: where what it holds goes if a line begins with it, and where its own line began."""

    item: Item
    inside: int
    outside: int


@dataclass
class _Writer:
    """Lays items out, one after the other."""

    items: list[Item]
    lines: list[str] = field(default_factory=list)
    line: str = ""
    indent: int = 0  # of the line that is written
    statement: int = 0  # the indentation of statements here
    opened: list[_Open] = field(default_factory=list)

    def text(self) -> str:
        before: Item | None = None
        starts = True  # whether a statement begins here
        for item in self.items:
            if before is None:
                self.line = item.text
            elif item.is_comment and not item.breaks:
                self.line += ("  " if item.text.startswith("//") else " ") + item.text
            else:
                self.place(item, before, starts=starts)
            self.bracket(item)
            if not item.is_comment:
                starts = self.ends_statement(item)
            before = item
        self.end()
        return "\n".join(self.lines).lstrip("\n") + "\n"

    def place(self, item: Item, before: Item, *, starts: bool) -> None:
        """Put an item on this line or on one of its own."""
        closes = item.text == "}" and item.role == "block"
        if closes:
            self.begin(self.opened[-1].outside)
        elif starts and not self.joins(item, before):
            top = not self.opened and not before.is_comment and before.role == "block"
            if (item.breaks > 1 or top) and before.text != "{":
                self.end()
                self.lines.append("")
            self.begin(self.statement)
        elif before.text.startswith("//") or item.breaks:
            self.begin(self.continued(item))
        else:
            self.line += (" " if _spaced(before, item) else "") + item.text
            return
        self.line += item.text

    def joins(self, item: Item, before: Item) -> bool:
        """Whether what could begin a line goes on with the last one: `} else {`, and a block on one line."""
        if before.text.startswith("//"):
            return False
        if before.text == "}" and item.text in ("else", ";", ")", ",", "("):
            return True
        return bool(self.opened) and self.opened[-1].item.role == "line"

    def ends_statement(self, item: Item) -> bool:
        """Whether a statement begins after an item."""
        if item.text == "]]":
            return not self.opened
        holder = self.opened[-1].item.text if self.opened else "{"
        return holder == "{" and (item.text in (";", "{", "}") and item.role != "table")

    def continued(self, item: Item) -> int:
        """Return the indentation of a line that goes on with a statement."""
        if not self.opened or (self.opened[-1].item.text == "{" and self.opened[-1].item.role != "table"):
            return self.statement + INDENT
        if item.text in CLOSE and self.opened[-1].inside == self.opened[-1].outside + INDENT:
            return self.opened[-1].outside
        return self.opened[-1].inside

    def bracket(self, item: Item) -> None:
        """Keep account of what is open."""
        if item.is_comment:
            return
        if item.text in OPEN:
            if item.text == "{" and item.role == "block":
                within = bool(self.opened) and self.opened[-1].item.text != "{"
                outside = self.indent if within else self.statement
                self.opened.append(_Open(item, outside + INDENT, outside))
                self.statement = outside + INDENT
            else:
                self.opened.append(_Open(item, len(self.line), self.indent))
        elif item.text in CLOSE and self.opened:
            closed = self.opened.pop()
            if closed.item.role == "block" and closed.item.text == "{":
                blocks = [o for o in self.opened if o.item.text == "{" and o.item.role == "block"]
                self.statement = blocks[-1].inside if blocks else 0

    def begin(self, indent: int) -> None:
        """Begin a line."""
        self.end()
        self.indent, self.line = indent, " " * indent
        if self.opened and not self.lines[-1].strip().endswith(OPEN):
            return
        last = self.opened[-1] if self.opened else None
        if last is not None and last.item.text != "{" and last.inside == len(self.lines[-1]):
            last.inside = last.outside + INDENT  # nothing follows the bracket on its line
            self.indent, self.line = last.inside, " " * last.inside

    def end(self) -> None:
        """Finish the line."""
        if self.line.strip():
            self.lines.append(self.line.rstrip())
        self.line = ""


def _spaced(a: Item, b: Item) -> bool:
    """Whether there is a space between two items on a line."""
    if a.is_comment or b.is_comment:
        return True
    if b.text in TIGHT_BEFORE or a.text in TIGHT_AFTER or a.role in ("sign", "capture"):
        return False
    if b.role in ("type", "capture") or (a.role == "type" and a.text == "<"):
        return False
    if "table" in (a.role, b.role) and (a.text == "{" or b.text == "}"):
        return False
    if a.text == "{" and b.text == "}":
        return False
    if b.text == "(":
        calls = a.kind in ("NAME", "TYPE", "TYPED_CALL") or a.text == "]"
        return not (calls or (a.role == "type" and a.text == ">"))
    if b.text == "[":
        return not (a.kind == "NAME" or a.text in (")", "]"))
    return True
