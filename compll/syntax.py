"""The abstract syntax of a `.pse` program: frozen nodes with source spans, nothing else."""

from __future__ import annotations

from dataclasses import dataclass, field

from compll.errors import Span

Attributes = tuple["Attribute", ...]


@dataclass(frozen=True, slots=True)
class Node:
    """Anything with a place in the source."""

    span: Span = field(compare=False)


# --- types and declarations -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TypeName(Node):
    """A written type: a name such as `float`, or `uint` with a width; `vector` when a `*` follows.

    Of a formal the name may be that of a `param` struct, or of nothing: the checker knows.
    """

    name: str
    width: Expr | None
    vector: bool


@dataclass(frozen=True, slots=True)
class Attribute(Node):
    """`[[name(arguments)]]` before a function or a formal."""

    name: str
    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Formal(Node):
    """A formal of a function; `role` is "", "state" or "shared"."""

    attributes: Attributes
    role: str
    type: TypeName
    name: str
    default: Expr | None


@dataclass(frozen=True, slots=True)
class Structure(Node):
    """`param Name { ... }`: hyper-parameters that are given together; its members are formals."""

    name: str
    members: tuple[Formal, ...]


@dataclass(frozen=True, slots=True)
class Declarator(Node):
    """One name of a declaration, with its first value if there is one."""

    name: str
    value: Expr | None


@dataclass(frozen=True, slots=True)
class Function(Node):
    """A function with its body."""

    attributes: Attributes
    type: TypeName
    name: str
    formals: tuple[Formal, ...]
    body: Block


@dataclass(frozen=True, slots=True)
class Program(Node):
    """One file: its functions, file-level variables and parameter structs."""

    functions: tuple[Function, ...]
    variables: tuple[Declaration, ...]
    structures: tuple[Structure, ...]


# --- statements -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Statement(Node):
    """Base of the statements."""


@dataclass(frozen=True, slots=True)
class Block(Statement):
    """`{ ... }`."""

    body: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Declaration(Statement):
    """`float up = 1, down;`."""

    type: TypeName
    declarators: tuple[Declarator, ...]


@dataclass(frozen=True, slots=True)
class LambdaDeclaration(Statement):
    """`lambda_func f = [&](...) -> type {...}`."""

    name: str
    value: Lambda


@dataclass(frozen=True, slots=True)
class Assignment(Statement):
    """`name = value;`."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class If(Statement):
    """`if (condition) then else otherwise`; `otherwise` may be empty."""

    condition: Expr
    then: tuple[Statement, ...]
    otherwise: tuple[Statement, ...]


@dataclass(frozen=True, slots=True)
class Return(Statement):
    """`return value;`."""

    value: Expr | None


@dataclass(frozen=True, slots=True)
class ExpressionStatement(Statement):
    """`extract(...);`."""

    value: Expr


# --- expressions ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Expr(Node):
    """Base of the expressions."""


@dataclass(frozen=True, slots=True)
class Integer(Expr):
    """An integer literal."""

    value: int


@dataclass(frozen=True, slots=True)
class Number(Expr):
    """A float literal, as written; it becomes float32 once, in the checker."""

    text: str


@dataclass(frozen=True, slots=True)
class Truth(Expr):
    """`true` or `false`."""

    value: bool


@dataclass(frozen=True, slots=True)
class Name(Expr):
    """A variable, parameter, or function given as an argument."""

    name: str


@dataclass(frozen=True, slots=True)
class Unary(Expr):
    """`-x`, `+x`, `!x`, `~x`."""

    op: str
    arg: Expr


@dataclass(frozen=True, slots=True)
class Binary(Expr):
    """`a op b`."""

    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True, slots=True)
class Conditional(Expr):
    """`condition ? then : otherwise`."""

    condition: Expr
    then: Expr
    otherwise: Expr


@dataclass(frozen=True, slots=True)
class Call(Expr):
    """`name(args)`; `type` is there for `random<float>(...)`, `cast<int>(...)` and `int(...)`."""

    name: str
    type: TypeName | None
    args: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Index(Expr):
    """`vector[position]`."""

    vector: Expr
    position: Expr


@dataclass(frozen=True, slots=True)
class Member(Expr):
    """`vector.size`, or a parameter of a struct: `params.bitwidth`."""

    value: Expr
    name: str


@dataclass(frozen=True, slots=True)
class Table(Expr):
    """`{0, 0.5, 1}`: a vector of constants."""

    entries: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Lambda(Expr):
    """`[&](type name, ...) -> type { ... }`."""

    formals: tuple[tuple[TypeName, str], ...]
    type: TypeName
    body: Block
