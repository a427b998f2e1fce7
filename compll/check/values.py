"""What a name can stand for while a function is checked, and the places where names live."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from compll import ir
from compll import syntax as s
from compll.errors import Diagnostic, Span
from compll.types import FLOAT, INT, Elem, arithmetic


class Abandon(Exception):  # noqa: N818 - control flow, not an error that anybody sees
    """A statement cannot be checked further; its diagnostic has been reported."""


@dataclass(frozen=True, slots=True)
class ScalarValue:
    """A scalar with the element type that it was declared with.

    `literal` adapts to the other operand; `copy_of` is the hyper-parameter whose value this is.
    """

    expr: ir.Expr
    elem: Elem
    literal: bool = False
    copy_of: str = ""


@dataclass(frozen=True, slots=True)
class VectorValue:
    """A vector: its element at position i is `body` at i, already converted to `elem`."""

    elem: Elem
    length: ir.Expr
    body: ir.Expr

    @property
    def name(self) -> str | None:
        """Return the vector's name in the IR, if it has one."""
        b = self.body
        return b.vector if isinstance(b, ir.Read) and b.position == ir.Position() else None


@dataclass(frozen=True, slots=True)
class FunctionValue:
    """A lambda, a free function, or (without a node) a function that the language names (`add`, `abs`).

    `scope` is where it was defined: when it runs, its names have the values of that moment.
    """

    name: str
    node: s.Lambda | s.Function | None
    scope: Scope | None


@dataclass(frozen=True, slots=True)
class Range:
    """`range(n)`."""

    length: ir.Expr


@dataclass(frozen=True, slots=True)
class Payload:
    """The formal `compressed`: in Encode after concat with the fields as stored."""

    fields: tuple[ScalarValue | VectorValue, ...] | None


@dataclass(frozen=True, slots=True)
class Unset:
    """A variable that was declared and not assigned yet; of an output the length is known before."""

    elem: Elem
    vector: bool
    length: ir.Expr | None = None


@dataclass(frozen=True, slots=True)
class Broken:
    """A variable whose value is wrong; that has been reported, and its uses say nothing more."""


@dataclass(frozen=True, slots=True)
class Record:
    """A formal that is a `param` struct, with the hyper-parameters that are its members."""

    name: str
    members: Mapping[str, Variable]


Value = ScalarValue | VectorValue | FunctionValue | Range | Payload | Unset | Broken | Record


def named(name: str, elem: Elem, length: ir.Expr) -> VectorValue:
    """Return the vector called `name` in the IR."""
    return VectorValue(elem, length, ir.Read(name, ir.Position(), arithmetic(elem)))


def positions(r: Range) -> VectorValue:
    """Return a range as the vector that it is."""
    return VectorValue(INT, r.length, ir.Position())


def describe(value: Value) -> str:
    """Return what a person would call a value, for messages."""
    match value:
        case ScalarValue(_, elem):
            return f"a scalar ({elem})"
        case VectorValue(elem):
            return f"a vector ({elem}*)"
        case FunctionValue(name):
            return f"the function '{name}'"
        case Range():
            return "a range"
        case Payload():
            return "the payload"
        case Unset(elem, vector):
            return f"an unassigned {'vector' if vector else 'scalar'} ({elem})"
        case Broken():
            return "a wrong value"
        case Record(name):
            return f"the struct '{name}'"


@dataclass(eq=False)
class Variable:
    """A declared name with its type and its value now."""

    elem: Elem | None
    vector: bool
    value: Value
    writable: bool = True


@dataclass(eq=False)
class Scope:
    """Names of a block, inside the names of the block around it; functions have a name space of their own."""

    parent: Scope | None = None
    names: dict[str, Variable] = field(default_factory=dict)
    functions: dict[str, FunctionValue] = field(default_factory=dict)

    def chain(self, until: Scope | None = None) -> Iterator[Scope]:
        """Yield this scope and those around it, up to and without `until`."""
        scope: Scope | None = self
        while scope is not None and scope is not until:
            yield scope
            scope = scope.parent

    def find(self, name: str, until: Scope | None = None) -> Variable | None:
        """Return the innermost variable of that name."""
        return next((scope.names[name] for scope in self.chain(until) if name in scope.names), None)

    def find_function(self, name: str) -> FunctionValue | None:
        """Return the innermost function of that name that the program defines."""
        return next((scope.functions[name] for scope in self.chain() if name in scope.functions), None)

    def variables(self) -> list[tuple[str, Variable]]:
        """Return every variable that can be seen here, inner ones first."""
        return [item for scope in self.chain() for item in scope.names.items()]

    def visible(self) -> set[str]:
        """Return every name that can be used here."""
        return {name for scope in self.chain() for name in (*scope.names, *scope.functions)}


class Reporter:
    """Collects the diagnostics of one run of the checker."""

    def __init__(self) -> None:
        """Start without errors."""
        self.diagnostics: list[Diagnostic] = []  # errors
        self.warnings: list[Diagnostic] = []

    def error(self, message: str, span: Span, *, label: str = "", note: str = "", hint: str = "") -> Abandon:
        """Record an error and return the exception that abandons the statement: `raise report.error(...)`."""
        self.diagnostics.append(Diagnostic(message, span, label, note, hint))
        return Abandon()

    def warning(self, message: str, span: Span, *, note: str = "", hint: str = "") -> None:
        """Record a warning: the program goes on to be compiled."""
        self.warnings.append(Diagnostic(message, span, "", note, hint, "warning"))


def index() -> ScalarValue:
    """Return the position of the current element as an integer scalar."""
    return ScalarValue(ir.Position(), INT)


def real(value: float) -> ScalarValue:
    """Return a float constant."""
    return ScalarValue(ir.const(value, FLOAT), FLOAT)
