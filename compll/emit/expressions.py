"""Expressions as C++ text: of scalars, and of 16 lanes at a time.

Both writers give every distinct subexpression a name, so that nothing is computed twice.  A lane is a
`Float`, `Int64`, `UInt32`, `UInt64` or a `Mask`; an `int` whose interval fits is an `Int32`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from compll import ir
from compll.emit.ranges import Ranges, scalar_type
from compll.errors import BackendError
from compll.ir_text import text
from compll.ops import OPS
from compll.types import BOOL, FLOAT, INT, Elem, arithmetic, limits


@dataclass(frozen=True)
class Dialect:
    """Whose C++ it is: the backend's name, and the text of an operator on an arithmetic type."""

    backend: str
    operator: Callable[[str, Elem], str]

    def not_built(self, e: ir.Expr) -> BackendError:
        """Say what the backend cannot do yet."""
        what = f"'{text(e)}' here"
        if isinstance(e, ir.Read):
            where = "elsewhere than at the element's own position of a loop of its length"
            what = f"a read of '{e.vector}' {where}"
        return BackendError(f"the {self.backend} backend does not build {what} yet; backend='interp' runs it")

    def not_built_type(self, elem: Elem) -> BackendError:
        """Say which type the backend cannot store yet."""
        return BackendError(
            f"the {self.backend} backend does not build the type {elem} yet; backend='interp' runs it"
        )


CPP = Dialect("cpp", lambda op, _: OPS[op].c)
LANES = {"float": "Float", "int": "Int64", "uint32": "UInt32", "uint64": "UInt64", "bool": "Mask"}


def literal(e: ir.Const) -> str:
    """Return a constant as C++: floats in hexadecimal, so that nothing is rounded twice."""
    if e.type == BOOL:
        return "true" if e.value else "false"
    if e.type == FLOAT:
        value = float(e.value)
        if value != value:
            return '__builtin_nanf("")'
        if abs(value) == float("inf"):
            return "-__builtin_inff()" if value < 0 else "__builtin_inff()"
        return f"{value.hex()}f"
    if e.type == INT:
        return f"INT64_C({e.value})" if e.value != -(2**63) else "INT64_MIN"
    return f"UINT64_C({e.value})" if e.type.bits == 64 else f"{e.value}u"


def bounds(elem: Elem) -> str:
    """Return the limits of an integer type as two C++ arguments."""
    return ", ".join(
        literal(ir.Const(x, INT if elem.kind == "int" or x < 2**63 else elem)) for x in limits(elem)
    )


class ScalarWriter:
    """Writes scalar expressions; `place` says where a named scalar lives.

    For one value a block, `read` says where the block's reductions live, and `position` is the block.
    """

    def __init__(
        self,
        place: Callable[[str], str],
        dialect: Dialect = CPP,
        read: Callable[[ir.Read], str] | None = None,
        position: str = "",
    ) -> None:
        """Write with the given names."""
        self.place, self.dialect, self.read, self.position = place, dialect, read, position

    def text(self, e: ir.Expr) -> str:
        """Return the expression as one C++ expression."""
        match e:
            case ir.Const():
                return literal(e)
            case ir.Size():
                return "k.n"
            case ir.Position():
                return self.position or "int64_t(0)"
            case ir.Read() if self.read is not None:
                return self.read(e)
            case ir.Random() | ir.StochasticRound() if self.position:
                raise self.dialect.not_built(e)
            case ir.Scalar(name, _) | ir.Param(name, _):
                return self.place(name)
            case ir.Convert(arg, to, kind):
                return self._convert(self.text(arg), arg.type, to, kind)
            case ir.Random(site, low, high, kind):
                word = f"random_word(k.seed, {site})"
                f = "random_float<float>" if kind == FLOAT else "random_int"
                return f"{f}({word}, {self.text(low)}, {self.text(high)})"
            case ir.StochasticRound(site, arg, _):
                return f"stochastic_round(random_half(k.seed, {site}), {self.text(arg)})"
            case ir.Apply(op, args, _):
                c = self.dialect.operator(op, args[-1].type)
                return "(" + c.format(*(self.text(a) for a in args)) + ")"
        raise self.dialect.not_built(e)

    def _convert(self, x: str, have: Elem, to: Elem, kind: Elem) -> str:
        want = scalar_type(kind)
        if to.kind in ("float", "bfloat") and to != FLOAT:
            raise self.dialect.not_built_type(to)
        if to == FLOAT:
            return f"widen<float>({'bit(' + x + ')' if have == BOOL else x})"
        if to == BOOL:
            return f"ne({x}, {scalar_type(have)}(0))"
        if have == BOOL:
            return f"{want}(bit({x}))"
        return f"saturate_one<{want}>({x}, {', '.join(f'{want}({b})' for b in bounds(to).split(', '))})"


class LaneWriter:
    """Writes expressions over 16 lanes as a list of statements, each subexpression once."""

    def __init__(
        self,
        ranges: Ranges,
        read: Callable[[ir.Read, str], str],
        uniform: Callable[[ir.Expr, str], str],
        dialect: Dialect = CPP,
        block: Callable[[ir.Expr, str], str | None] = lambda e, lanes: None,  # noqa: ARG005
    ) -> None:
        """Write with `read` for the lanes of a vector, `uniform` for a splat of a scalar.

        `block` gives the lanes of what is the same for a whole block, or None.
        """
        self.ranges, self.read, self.uniform, self.block = ranges, read, uniform, block
        self.dialect = dialect
        self.lines: list[str] = []
        self.names: dict[tuple[ir.Expr, str], str] = {}
        self.sites: dict[int, str] = {}
        self.position = False

    def lane_type(self, e: ir.Expr) -> str:
        """Return the lane type in which `e` is computed."""
        if e.type == INT and self.ranges.narrow(e):
            operands = [a for a in ir.children(e) if a.type == INT]
            if isinstance(e, ir.Const | ir.Read | ir.Convert) or all(self.ranges.narrow(a) for a in operands):
                return "Int32"
        return LANES[e.type.name]

    def write(self, e: ir.Expr, want: str | None = None) -> str:
        """Return the name of the lanes of `e`, as lane type `want` if that is given."""
        have = self.lane_type(e)
        want = want or have
        if (e, want) not in self.names:
            text = self._compute(e, have) if want == have else f"widen<{want}>({self.write(e)})"
            simple = text.isidentifier() or isinstance(e, ir.Const)
            self.names[e, want] = text if simple else self._name(want, text)
        return self.names[e, want]

    def _name(self, kind: str, text: str) -> str:
        name = f"t{len(self.lines)}"
        self.lines.append(f"const {kind} {name} = {text};")
        return name

    def _compute(self, e: ir.Expr, have: str) -> str:
        of_block = self.block(e, have)
        if of_block is not None:
            return of_block
        match e:
            case ir.Const():
                return f"splat<{have}>({literal(e)})" if e.type != BOOL else f"splat<Mask>({-int(e.value)})"
            case ir.Scalar() | ir.Param() | ir.Size():
                return self.uniform(e, have)
            case ir.Position():
                self.position = True
                return "position"
            case ir.Read():
                return self.read(e, have)
            case ir.Convert(arg, to, _):
                return self._convert(arg, to, have)
            case ir.Random(site, low, high, kind):
                self.sites[site] = "random_words"
                f = "random_float<Float>" if kind == FLOAT else "random_int"
                return f"{f}(r{site}[block][row], {self.write(low, have)}, {self.write(high, have)})"
            case ir.StochasticRound(site, arg, _):
                self.sites[site] = "random_halves"
                return f"stochastic_round(r{site}[block][row], {self.write(arg)})"
            case ir.Apply(op, args, _):
                return self._apply(op, args, have)
        raise self.dialect.not_built(e)

    def _apply(self, op: str, args: tuple[ir.Expr, ...], have: str) -> str:
        numbers = [a for a in args if a.type == INT]
        same = "Int32" if numbers and all(self.ranges.narrow(a) for a in numbers) else "Int64"
        if op == "popcount" or (have == "Int64" and op != "sign"):
            same = "Int64"  # the sign's copies count, so a negative number needs all its bits
        texts = [self.write(a, same if a.type == INT else None) for a in args]
        c = self.dialect.operator(op, args[-1].type).format(*texts)
        return f"widen<{have}>({c})" if op in ("sign", "popcount") else c

    def _convert(self, arg: ir.Expr, to: Elem, have: str) -> str:
        if to.kind in ("float", "bfloat") and to != FLOAT:
            raise self.dialect.not_built_type(to)
        x, kind = self.write(arg), self.lane_type(arg)
        if arg.type == BOOL:
            return f"widen<{have}>(bit({x}))"
        if to == FLOAT:
            return f"widen<Float>({x})"
        if to == BOOL:
            return f"ne({x}, {kind}{{}})"
        low, high = self.ranges.of(arg) if arg.type == INT else (1, 0)
        if arg.type == INT and arithmetic(to) == INT and limits(to)[0] <= low and high <= limits(to)[1]:
            return f"widen<{have}>({x})"
        signed = kind in ("Int32", "Int64")
        through = kind if have == "Int32" and signed else have
        clamped = f"saturate<{through}>({x}, {bounds(to)})"
        return clamped if through == have else f"widen<{have}>({clamped})"
