"""`.pse` text -> syntax tree, with every syntax error of the file at once.

Lark's LALR parser runs step by step.  On an unexpected token the parser tries, on a copy, to insert one
token before it: the first that lets the offending token through is the message ("missing ';' after ')'"),
and parsing goes on from there.
"""

from __future__ import annotations

import functools
import importlib.resources
import re
from typing import Any, cast

from lark import Lark, Token, Transformer, Tree, UnexpectedCharacters, UnexpectedToken, v_args
from lark.exceptions import VisitError

from compll import syntax as s
from compll.errors import CompileError, Diagnostic, Span, unknown_type
from compll.types import NAMED

REPAIRS = ("SEMICOLON", "RPAR", "RSQB", "RBRACE", "GT", "EQUAL", "COMMA", "LPAR", "LBRACE")
MOST_ERRORS = 20
LOOPS = ("for", "while", "do")
HABITS = (  # what people bring from C, as the last tokens look, and how it is written here
    (r"(PLUS|MINUS|STAR|SLASH|PERCENT|AMPERSAND|BAR|CARET|SHL|SHR) EQUAL$", "write x = x + y"),
    (r"(PLUS PLUS|MINUS MINUS) (SEMICOLON|RPAR)$", "write i = i + 1"),
    (r"DOT NAME EQUAL$", "declare a variable of your own: float x = ...;"),
    (r"RSQB EQUAL$", "a vector is made as a whole: x = map(range(n), ...)"),
    (r"DOT NAME LPAR$", "'.size' is no function: leave the parentheses away"),
    (r"LPAR TYPE RPAR$", "a conversion is written float(x)"),
    (r"(TYPE|STAR) NAME LSQB$", "a table is written float* t = {1, 2, 3};"),
    (r"(SEMICOLON|LBRACE|RBRACE) NAME TYPE$", "a declaration is a type and a name: float x = ...;"),
)


def parse(text: str, file: str) -> s.Program:
    """Parse one file.

    Raises:
        CompileError: with all syntax errors that were found.
        RecursionError: the file nests too deeply.

    """
    tree, _ = tokens(text, file)
    try:
        return cast("s.Program", _Builder(file).transform(tree))
    except VisitError as e:
        raise e.orig_exc from None


def tokens(text: str, file: str) -> tuple[Tree[Any], list[Token]]:
    """Return the tree of one file as Lark has it, and the tokens, between which the comments stand.

    Raises:
        CompileError: with all syntax errors that were found.

    """
    run = _Parse(text, file)
    tree, errors = run.run()
    if tree is None or errors:
        raise CompileError(errors, {file: text})
    return tree, run.fed


class GiveUp(Exception):  # noqa: N818 - control flow within this module
    """What follows cannot be parsed sensibly; the reason has been reported."""


@functools.cache
def _lark() -> Lark:
    grammar = importlib.resources.files("compll._grammar").joinpath("pse.lark").read_text("utf-8")
    return Lark(grammar, parser="lalr", propagate_positions=True, maybe_placeholders=True)


@functools.cache
def _spellings() -> dict[str, str]:
    """Map a terminal's name to what a person would write: `SEMICOLON` to `';'`."""
    words = {"NAME": "a name", "INT": "a number", "FLOAT": "a number", "TYPE": "a type", "UINT": "a type"}
    words |= {"$END": "end of file", "TYPED_CALL": "a call"}
    for terminal in _lark().terminals:
        if terminal.name not in words:
            words[terminal.name] = "'" + terminal.pattern.value.replace("\\b", "").replace("\\", "") + "'"
    return words


class _Parse:
    """One run of the interactive parser over one file."""

    def __init__(self, text: str, file: str, strays: int = 0) -> None:
        self.text, self.file, self.strays = text, file, strays
        self.errors: list[Diagnostic] = []
        self.fed: list[Token] = []

    def run(self) -> tuple[Tree[Any] | None, list[Diagnostic]]:
        parser = _lark().parse_interactive(self.text)
        lexer: Any = parser.lexer_thread
        while True:
            try:
                token = next(lexer.lex(parser.parser_state), None)
            except UnexpectedCharacters as e:
                return self.without(e)
            except UnexpectedToken as e:  # the lexer met a terminal that fits nowhere here
                token = e.token
            ended = token is None
            if token is None:
                token = (
                    Token.new_borrow_pos("$END", "", self.fed[-1]) if self.fed else Token("$END", "", 0, 1, 1)
                )
            try:
                result = self.feed(parser, token)
            except (UnexpectedToken, GiveUp):
                return None, self.errors
            if ended:
                return cast("Tree[Any]", result), self.errors
            self.fed.append(token)

    def without(self, e: UnexpectedCharacters) -> tuple[Tree[Any] | None, list[Diagnostic]]:
        """Report a character that begins no token, and parse the text again without it."""
        span = Span(self.file, e.line, e.column, e.line, e.column + 1)
        found = Diagnostic(f"stray character {e.char!r}", span)
        at = e.pos_in_stream or 0
        again = _Parse(self.text[:at] + " " + self.text[at + 1 :], self.file, self.strays + 1)
        tree, errors = again.run() if self.strays < MOST_ERRORS else (None, [])
        others = (x for x in errors if x.span.line != e.line or x.message.startswith("stray"))
        return tree, [found, *others]

    def feed(self, parser: Any, token: Token) -> Any:
        """Give one token to the parser, mending the input if it does not fit; raise to give up."""
        if token.type == "NAME" and token in LOOPS:
            hint = "write what happens to one element and apply it with map or reduce"
            self.errors.append(
                Diagnostic(f"'{token}': the language has no loops", self.span(token), hint=hint)
            )
            raise GiveUp
        try:
            return parser.feed_token(token)
        except UnexpectedToken:
            if len(self.errors) >= MOST_ERRORS:
                raise
            accepts = parser.accepts()
            if token == "struct" and "PARAM" in accepts:
                hint = "write param in its place: it declares hyper-parameters that are given together"
                self.errors.append(Diagnostic("there is no 'struct'", self.span(token), hint=hint))
                return parser.feed_token(Token.new_borrow_pos("PARAM", "param", token))
            if token.type == "NAME" and "TYPE" in accepts and "NAME" not in accepts:
                self.unknown_type(token)
                return parser.feed_token(Token.new_borrow_pos("TYPE", "float", token))
            types = " ".join(t.type for t in (*self.fed[-3:], token))
            habit = next((hint for pattern, hint in HABITS if re.search(pattern, types)), "")
            if habit:
                self.errors.append(Diagnostic(f"unexpected '{token}'", self.span(token), hint=habit))
                raise GiveUp from None
            if token.type == "NAME" and self.begins_statement():
                self.unknown_type(self.fed[-1])
                parser.feed_token(Token.new_borrow_pos("SEMICOLON", ";", token))
                return parser.feed_token(token)
            for repair in REPAIRS:
                mended = parser.copy()
                try:
                    mended.feed_token(Token(repair, ""))
                    mended.feed_token(token)
                except UnexpectedToken:
                    continue
                what = _spellings()[repair]
                where = f"after '{self.fed[-1]}'" if token.type != "$END" else "before end of file"
                hint = f"insert {what} here"
                self.errors.append(Diagnostic(f"missing {what} {where}", self.end(), hint=hint))
                parser.feed_token(Token.new_borrow_pos(repair, what.strip("'"), token))
                return parser.feed_token(token)
            words = sorted({_spellings().get(a, a) for a in accepts})
            note = "expected " + ", ".join(words) if 0 < len(words) <= 8 else ""
            if token.type == "$END":
                self.errors.append(Diagnostic("unexpected end of file", self.end(), note=note))
            else:
                self.errors.append(Diagnostic(f"unexpected '{token}'", self.span(token), note=note))
            raise

    def begins_statement(self) -> bool:
        """Whether the last token is a name that stands where a statement or a declaration begins."""
        if not self.fed or self.fed[-1].type != "NAME":
            return False
        return len(self.fed) == 1 or self.fed[-2].type in ("SEMICOLON", "LBRACE", "RBRACE")

    def unknown_type(self, t: Token) -> None:
        self.errors.append(unknown_type(str(t), self.span(t), NAMED))

    def end(self) -> Span:
        """Return the place right after the previous token, where something is missing."""
        if not self.fed:
            return Span(self.file, 1, 1, 1, 2)
        span = self.span(self.fed[-1])
        return Span(self.file, span.end_line, span.end_column, span.end_line, span.end_column + 1)

    def span(self, t: Token) -> Span:
        line, column = t.line or 1, t.column or 1
        return Span(self.file, line, column, t.end_line or line, t.end_column or column + 1)


def _kept(items: list[Any]) -> list[Any]:
    return [i for i in items if i is not None]


@v_args(meta=True)
class _Builder(Transformer[Any, Any]):
    """Lark tree -> frozen syntax nodes; one method a grammar rule."""

    def __init__(self, file: str) -> None:
        super().__init__()
        self.file = file

    def at(self, meta: Any) -> Span:
        if meta.empty:
            return Span(self.file, 1, 1, 1, 1)
        return Span(self.file, meta.line, meta.column, meta.end_line, meta.end_column)

    def start(self, meta: Any, items: list[Any]) -> s.Program:
        functions = tuple(i for i in items if isinstance(i, s.Function))
        variables = tuple(i for i in items if isinstance(i, s.Declaration))
        structures = tuple(i for i in items if isinstance(i, s.Structure))
        return s.Program(self.at(meta), functions, variables, structures)

    def function(self, meta: Any, items: list[Any]) -> s.Function:
        items = _kept(items)
        attributes = tuple(i for i in items if isinstance(i, s.Attribute))
        formals = tuple(i for i in items if isinstance(i, s.Formal))
        kind = next(i for i in items if isinstance(i, s.TypeName))
        name = next(i for i in items if isinstance(i, Token))
        span = self.at(meta)
        head = Span(self.file, name.line or 1, name.column or 1, name.end_line or 1, name.end_column or 1)
        return s.Function(head if span.file else span, attributes, kind, str(name), formals, items[-1])

    def formal(self, meta: Any, items: list[Any]) -> s.Formal:
        attributes = tuple(i for i in items if isinstance(i, s.Attribute))
        role, kind, name, default = items[len(attributes) :]
        return s.Formal(self.at(meta), attributes, str(role or ""), kind, str(name), default)

    def struct_type(self, meta: Any, items: list[Any]) -> s.TypeName:
        return s.TypeName(self.at(meta), str(items[0]), None, items[1] is not None)

    def structure(self, meta: Any, items: list[Any]) -> s.Structure:
        _, name, *members = items
        return s.Structure(self.at(meta), str(name), tuple(m for some in members for m in some))

    def member_declaration(self, meta: Any, items: list[Any]) -> list[s.Formal]:
        attributes = tuple(i for i in items if isinstance(i, s.Attribute))
        kind, *rest = items[len(attributes) :]
        named = zip(rest[::2], rest[1::2], strict=True)
        return [s.Formal(self.at(meta), attributes, "", kind, str(name), default) for name, default in named]

    def attribute(self, meta: Any, items: list[Any]) -> s.Attribute:
        name, *args = _kept(items)
        return s.Attribute(self.at(meta), str(name), tuple(args))

    def type(self, meta: Any, items: list[Any]) -> s.TypeName:
        star = items[-1] is not None
        width = next((i for i in items if isinstance(i, s.Expr)), None)
        return s.TypeName(self.at(meta), str(items[0]), width, star)

    def block(self, meta: Any, items: list[Any]) -> s.Block:
        return s.Block(self.at(meta), tuple(_kept(items)))

    def variable(self, meta: Any, items: list[Any]) -> s.Declaration:
        return s.Declaration(self.at(meta), items[0], tuple(items[1:]))

    declaration = variable

    def declarator(self, meta: Any, items: list[Any]) -> s.Declarator:
        return s.Declarator(self.at(meta), str(items[0]), items[1])

    def lambda_declaration(self, meta: Any, items: list[Any]) -> s.LambdaDeclaration:
        return s.LambdaDeclaration(self.at(meta), str(items[1]), items[2])

    def assignment(self, meta: Any, items: list[Any]) -> s.Assignment:
        return s.Assignment(self.at(meta), str(items[0]), items[1])

    def expression_statement(self, meta: Any, items: list[Any]) -> s.ExpressionStatement:
        return s.ExpressionStatement(self.at(meta), items[0])

    def empty(self, meta: Any, items: list[Any]) -> None:  # noqa: ARG002
        return None

    def if_statement(self, meta: Any, items: list[Any]) -> s.If:
        _, condition, then, _, otherwise = items
        return s.If(self.at(meta), condition, _body(then), _body(otherwise))

    def conditional(self, meta: Any, items: list[Any]) -> s.Conditional:
        return s.Conditional(self.at(meta), *items)

    def binary(self, meta: Any, items: list[Any]) -> s.Binary:
        left, op, right = items
        return s.Binary(self.at(meta), str(op), left, right)

    def unary(self, meta: Any, items: list[Any]) -> s.Unary:
        return s.Unary(self.at(meta), str(items[0]), items[1])

    def index(self, meta: Any, items: list[Any]) -> s.Index:
        return s.Index(self.at(meta), *items)

    def member(self, meta: Any, items: list[Any]) -> s.Member:
        return s.Member(self.at(meta), items[0], str(items[1]))

    def integer(self, meta: Any, items: list[Any]) -> s.Integer:
        digits = str(items[0])[:40]  # no type holds so many: the checker says so
        return s.Integer(self.at(meta), int(digits, 16 if digits[:2] in ("0x", "0X") else 10))

    def number(self, meta: Any, items: list[Any]) -> s.Number:
        return s.Number(self.at(meta), str(items[0]).rstrip("f"))

    def true(self, meta: Any, items: list[Any]) -> s.Truth:  # noqa: ARG002
        return s.Truth(self.at(meta), True)

    def false(self, meta: Any, items: list[Any]) -> s.Truth:  # noqa: ARG002
        return s.Truth(self.at(meta), False)

    def name(self, meta: Any, items: list[Any]) -> s.Name:
        return s.Name(self.at(meta), str(items[0]))

    def call(self, meta: Any, items: list[Any]) -> s.Call:
        return s.Call(self.at(meta), str(items[0]), None, tuple(_kept(items[1:])))

    def cast(self, meta: Any, items: list[Any]) -> s.Call:
        width = items[2] if len(items) > 2 else None
        kind = s.TypeName(self.at(meta), str(items[0]), width, False)
        return s.Call(self.at(meta), "cast", kind, (items[-1],))

    def typed_call(self, meta: Any, items: list[Any]) -> s.Call:
        name, _, kind, _, *args = items
        return s.Call(self.at(meta), str(name), kind, tuple(_kept(args)))

    def table(self, meta: Any, items: list[Any]) -> s.Table:
        return s.Table(self.at(meta), tuple(items))

    def parameter(self, meta: Any, items: list[Any]) -> tuple[s.TypeName, str]:  # noqa: ARG002
        return items[0], str(items[1])


def _body(item: Any) -> tuple[s.Statement, ...]:
    if item is None:
        return ()
    return item.body if isinstance(item, s.Block) else (item,)


def _return(self: _Builder, meta: Any, items: list[Any]) -> s.Return:
    return s.Return(self.at(meta), items[1])


def _lambda(self: _Builder, meta: Any, items: list[Any]) -> s.Lambda:
    items = _kept(items)
    formals = tuple(i for i in items if isinstance(i, tuple))
    return s.Lambda(self.at(meta), formals, items[-2], items[-1])


# `return` and `lambda` are keywords of Python, so these two rules cannot be written as methods.
setattr(_Builder, "return", v_args(meta=True)(_return))
setattr(_Builder, "lambda", v_args(meta=True)(_lambda))
