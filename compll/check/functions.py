"""The statements of functions: bodies of Encode and Decode, of lambdas and of free functions.

`if` becomes `select`: both branches are worked out, and a variable that they leave with different values
gets the one that the condition chooses.  A function that returns a value is run the same way, so every
lambda ends up as one expression.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from compll import ir
from compll import syntax as s
from compll.check.expressions import as_type, element_type, expression, scalar, select, truth
from compll.check.values import (
    Abandon,
    Broken,
    FunctionValue,
    Range,
    Reporter,
    ScalarValue,
    Scope,
    Unset,
    Value,
    Variable,
    VectorValue,
    describe,
    positions,
)
from compll.errors import Span, did_you_mean
from compll.types import Elem

DEEPEST, LARGEST = 100, 20_000  # operations of one formula: what every stage of the compiler can hold


class Statements(ABC):
    """Runs statements over a scope.  The body of Encode and Decode adds the operators on vectors."""

    def __init__(self, report: Reporter, static: Mapping[str, float | int | bool], file_scope: Scope) -> None:
        """Begin in the scope of a file; `static` holds the parameters whose values the compiler knows."""
        self.report, self.static = report, static
        self.scope = Scope(file_scope)
        self.outside: Scope | None = None  # the scope around the function that runs now
        self.running: list[s.Lambda | s.Function] = []
        self.indexed: list[tuple[str, ir.Expr, Span]] = []  # every vector[position] of the program
        self.applied = 0  # how often functions have been put in
        self.conditional = 0  # how many `if`s are open that are not static

    @abstractmethod
    def call(self, e: s.Call) -> Value:
        """Type a call of a vector operator, or of a function of the program."""

    @abstractmethod
    def table(self, e: s.Table) -> Value:
        """Type a table of constants."""

    @abstractmethod
    def width_to_read(self, e: s.Name) -> ScalarValue:
        """Return the value of a variable that stands as a width before the payload has been read."""

    @abstractmethod
    def bind_scalar(self, name: str, value: ScalarValue) -> ScalarValue:
        """Give a scalar a name in the IR; inside functions and branches it stays an expression."""

    @abstractmethod
    def bind_vector(self, name: str, value: VectorValue) -> VectorValue:
        """Give a vector a name in the IR."""

    @abstractmethod
    def is_there(self, value: VectorValue) -> bool:
        """Whether a vector has a name already, or is made of constants."""

    @abstractmethod
    def assign_special(self, name: str, value: Value, span: Span) -> bool:
        """Assign to a formal of Encode or Decode; False if `name` is an ordinary variable."""

    # --- statements ---------------------------------------------------------------------------

    def run(self, body: Sequence[s.Statement]) -> ScalarValue | None:
        """Run statements; return the value that they return, None when they fall through."""
        for at, statement in enumerate(body):
            rest = body[at + 1 :]
            try:
                match statement:
                    case s.Return():
                        return self._return(statement)
                    case s.If():
                        if _returns(statement):
                            return self._branch_and_return(statement, rest)
                        self._branch(statement)
                    case s.Block(body=inner):
                        if any(_returns(x) for x in inner):
                            return self.run([*inner, *rest])
                        self._block(inner)
                    case _:
                        self._simple(statement)
            except Abandon:
                if self.running:
                    raise
        return None

    def _simple(self, statement: s.Statement) -> None:
        match statement:
            case s.Declaration():
                try:
                    elem = element_type(self, statement.type)
                except Abandon:
                    broken = {d.name: Variable(None, False, Broken()) for d in statement.declarators}
                    self.scope.names.update(broken)
                    raise
                for d in statement.declarators:
                    self._declare(statement.type, elem, d)
            case s.LambdaDeclaration(name=name, value=value, span=span):
                if name in self.scope.functions:
                    raise self.report.error(f"the function '{name}' is defined twice", span)
                self.scope.functions[name] = FunctionValue(name, value, self.scope)
            case s.Assignment():
                self._assign(statement)
            case s.ExpressionStatement(value=value):
                result = expression(self, value)
                if not isinstance(value, s.Call) or value.name != "extract":
                    raise self.report.error(f"this computes {describe(result)} and drops it", statement.span)

    def _declare(self, t: s.TypeName, elem: Elem, d: s.Declarator) -> None:
        if d.name in self.scope.names:
            raise self.report.error(f"'{d.name}' is declared twice", d.span)
        variable = self.scope.names[d.name] = Variable(elem, t.vector, Unset(elem, t.vector))
        if d.value is not None:
            variable.value = Broken()
            variable.value = self._typed(variable, d.name, self.initial(d.name, d.value), d.value.span)

    def initial(self, name: str, e: s.Expr) -> Value:
        """Type the value of a variable called `name`."""
        del name
        return expression(self, e)

    def _assign(self, a: s.Assignment) -> None:
        variable = self.scope.find(a.name)
        if variable is None:
            hint = did_you_mean(a.name, self.scope.visible()) or f"declare it: float {a.name} = ...;"
            raise self.report.error(f"unknown name '{a.name}'", a.span, hint=hint)
        if not variable.writable:
            hint = f"declare a variable of your own, such as float x = {a.name};"
            raise self.report.error(f"'{a.name}' cannot be assigned here", a.span, hint=hint)
        if self.running and self.scope.find(a.name, self.outside) is None:
            raise self.report.error(f"a function cannot assign '{a.name}', which is not its own", a.span)
        try:
            value = self.initial(a.name, a.value)
            if not self.assign_special(a.name, value, a.span):
                variable.value = self._typed(variable, a.name, value, a.value.span)
        except Abandon:
            if not self.running:
                variable.value = Broken()
            raise

    def _typed(self, variable: Variable, name: str, value: Value, span: Span) -> Value:
        """Convert a value to a variable's type and name it in the IR."""
        elem = variable.elem
        if isinstance(value, Range):
            value = positions(value)
        if elem is None or not isinstance(value, ScalarValue | VectorValue):
            raise self.report.error(f"'{name}' cannot hold {describe(value)}", span)
        if isinstance(value, VectorValue) != variable.vector:
            kind = f"{elem}*" if variable.vector else str(elem)
            hint = f"declare it as {value.elem}* {name}" if not variable.vector else ""
            if self.running and hint:
                hint = "a function works on one element, such as x[i]"
            raise self.report.error(
                f"'{name}' is a {kind} and cannot hold {describe(value)}", span, hint=hint
            )
        self._limit(name, value.expr if isinstance(value, ScalarValue) else value.body, span)
        if isinstance(value, ScalarValue):
            return self.bind_scalar(name, as_type(value, elem))
        converted = VectorValue(elem, value.length, ir.as_elem(value.body, elem))
        if self.running and not self.is_there(converted):
            hint = "make it before, outside of the function"
            raise self.report.error("a function that is applied to elements makes no vector", span, hint=hint)
        return self.bind_vector(name, converted)

    def _limit(self, name: str, formula: ir.Expr, span: Span) -> None:
        """Report a formula that is too large: functions of functions make it grow exponentially."""
        if formula.depth > DEEPEST or formula.size > LARGEST:
            raise self.report.error(
                f"'{name}' is too large a formula: it nests {formula.depth} operations deep, "
                f"{formula.size} in all",
                span,
                note=f"functions are put in where they are called; the limits are {DEEPEST} and {LARGEST}",
                hint="divide it into variables of Encode or Decode, which have places of their own",
            )

    def _block(self, body: Sequence[s.Statement]) -> None:
        self.scope = Scope(self.scope)
        try:
            self.run(body)
        finally:
            self.scope = self.scope.parent or self.scope

    # --- branches -----------------------------------------------------------------------------

    def _condition(self, e: s.Expr) -> ir.Expr:
        return truth(scalar(self, e, "a condition"))

    def _branch(self, statement: s.If) -> None:
        """Run an `if` that returns nothing: variables that differ after the branches are selected."""
        condition = self._condition(statement.condition)
        if isinstance(condition, ir.Const):
            self._block(statement.then if condition.value else statement.otherwise)
            return
        before = [(name, v, v.value) for name, v in self.scope.variables()]
        self.conditional += 1
        try:
            self._block(statement.then)
            then = [v.value for _, v, _ in before]
            for _, v, value in before:
                v.value = value
            self._block(statement.otherwise)
        finally:
            self.conditional -= 1
        for (name, v, _), a in zip(before, then, strict=True):
            b = v.value
            if a is b or a == b:
                continue
            v.value = Broken()
            if isinstance(a, Broken) or isinstance(b, Broken):
                continue
            if isinstance(a, VectorValue) or isinstance(b, VectorValue):
                raise self.report.error(
                    f"the vector '{name}' cannot be assigned under an 'if' that depends on data",
                    statement.span,
                    hint=f"choose element by element: {name} = condition ? a : b;",
                )
            if not isinstance(a, ScalarValue) or not isinstance(b, ScalarValue) or v.elem is None:
                hint = "give it a value before the 'if'" if Unset in (type(a), type(b)) else ""
                raise self.report.error(
                    f"after this 'if' it is not certain that '{name}' is a scalar with a value",
                    statement.span,
                    hint=hint,
                )
            chosen = select(self, statement.span, ScalarValue(condition, condition.type), a, b)
            v.value = self.bind_scalar(name, as_type(chosen, v.elem))

    def _branch_and_return(self, statement: s.If, rest: Sequence[s.Statement]) -> ScalarValue | None:
        """Run an `if` in which something returns: what follows belongs to each branch that falls through."""
        condition = self._condition(statement.condition)
        if isinstance(condition, ir.Const):
            return self.run([*(statement.then if condition.value else statement.otherwise), *rest])
        before = [(v, v.value) for _, v in self.scope.variables()]
        results = []
        for branch in (statement.then, statement.otherwise):
            self.scope = Scope(self.scope)
            results.append(self.run([*branch, *rest]))
            self.scope = self.scope.parent or self.scope
            for v, value in before:
                v.value = value
        a, b = results
        if a is None or b is None:
            return None
        return select(self, statement.span, ScalarValue(condition, condition.type), a, b)

    def _return(self, statement: s.Return) -> ScalarValue | None:
        if not self.running:
            raise self.report.error(
                "Encode and Decode return nothing", statement.span, hint="leave the return away"
            )
        if statement.value is None:
            raise self.report.error("here a value must be returned", statement.span)
        return scalar(self, statement.value, "what a function returns")

    # --- functions applied to scalars ------------------------------------------------------------

    def apply_function(self, f: FunctionValue, args: Sequence[ScalarValue], span: Span) -> ScalarValue:
        """Run a lambda or a free function on scalars: its body becomes one expression."""
        node = f.node
        if node is None or f.scope is None:
            raise self.report.error(f"'{f.name}' cannot be called here", span)
        if any(n is node for n in self.running):
            raise self.report.error(f"'{f.name}' calls itself: the language has no recursion", span)
        self.applied += 1
        if self.applied == LARGEST:
            self.report.error(
                f"functions are called more than {LARGEST:,} times",
                span,
                note="they are put in where they are called, and what they call in turn",
                hint="call each function once and give its result a name",
            )
        if self.applied >= LARGEST:
            raise Abandon
        formals = (
            node.formals if isinstance(node, s.Lambda) else tuple((a.type, a.name) for a in node.formals)
        )
        if len(formals) != len(args):
            some = "1 argument" if len(formals) == 1 else f"{len(formals)} arguments"
            message = f"'{f.name}' takes {some} and is given {len(args)}"
            raise self.report.error(message, span, note=f"it is defined at line {node.span.line}")
        around, outside = self.scope, self.outside
        self.outside, self.scope = f.scope, Scope(f.scope)
        self.running.append(node)
        try:
            for (t, name), arg in zip(formals, args, strict=True):
                if t.vector:
                    raise self.report.error("a function applied to elements takes scalars", t.span)
                elem = element_type(self, t)
                self.scope.names[name] = Variable(elem, False, as_type(arg, elem))
            result = self.run(node.body.body)
            if result is None:
                message = f"'{f.name}' returns nothing on one path"
                raise self.report.error(message, node.span, hint="end every path with 'return ...;'")
            self._limit(f.name, result.expr, span)
            return as_type(result, element_type(self, node.type))
        finally:
            self.running.pop()
            self.scope, self.outside = around, outside


def _returns(statement: s.Statement) -> bool:
    match statement:
        case s.Return():
            return True
        case s.Block(body=body):
            return any(_returns(x) for x in body)
        case s.If(then=then, otherwise=otherwise):
            return any(_returns(x) for x in (*then, *otherwise))
    return False
