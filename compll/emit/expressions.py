"""Expressions as text of a target language: of scalars, and of lanes.

Both writers give every distinct subexpression a name, so that nothing is computed twice.  A lane is a
`Float`, `Int64`, `UInt32`, `UInt64` or a `Mask`; an `int` whose interval fits is an `Int32`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar

from compll import ir
from compll.emit.pieces import Draw
from compll.emit.positions import Bits
from compll.emit.ranges import Interval, Ranges, full, scalar_type
from compll.ops import OPS
from compll.types import BOOL, FLOAT, INT, Elem, arithmetic, limits

LANES = {"float": "Float", "int": "Int64", "uint32": "UInt32", "uint64": "UInt64", "bool": "Mask"}


class Dialect:
    """How a target language spells what is not a plain call.  This is C++; others override."""

    backend = "cpp"
    width = 16  # lanes
    blocks_of = 16  # values of blocks of multiples of it are spread over lanes at once
    without: tuple[str, ...] = ()  # passes of the compiler that its backend does without
    clears = True  # whether there is a faster way to set memory to 0 than to store it
    keeps = True  # whether values wait in a cache between the reductions of blocks and their stores
    block_lanes = True  # whether what blocks are reduced to is worked on with a block a lane
    # operators in lanes where there is no NaN, and no zeros that are to be told apart
    plain: ClassVar[Mapping[str, str]] = {
        "min": "under({0}, {1})",
        "max": "over({0}, {1})",
        "float_bits": "bits_of({0})",
    }

    def number(self, e: ir.Const) -> str:
        """Return a constant: floats in hexadecimal, so that nothing is rounded twice."""
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

    def literal(self, e: ir.Const) -> str:
        """Return a constant as a scalar of its type."""
        return self.number(e)

    def splat(self, lanes: str, e: ir.Const) -> str:
        """Return a constant in all lanes."""
        return f"splat<{lanes}>({self.number(e) if e.type != BOOL else -int(e.value)})"

    def zero(self, kind: str) -> str:
        """Return 0 of a type of scalars or lanes."""
        return f"{kind}{{}}"

    def call(self, function: str, kind: str, *args: str) -> str:
        """Return a call of a function that is told the type of its result."""
        return f"{function}<{kind}>({', '.join(args)})"

    def declare(self, kind: str, name: str, text: str) -> str:
        """Return the statement that names a value."""
        return f"const {kind} {name} = {text};"

    def scalar(self, elem: Elem) -> str:
        """Return the type of scalars in which values of `elem` are computed with."""
        return scalar_type(elem)

    def stored(self, elem: Elem) -> str:
        """Return the type of one element in memory; packed codes are held in bytes until they are packed."""
        if arithmetic(elem) == FLOAT:
            return elem.name
        if elem == BOOL:
            return "uint8_t"
        return f"{'u' if elem.kind == 'uint' else ''}int{max(8, elem.bits)}_t"

    def size(self) -> str:
        """Return the number of elements of the gradient."""
        return "k.n"

    def block_index(self) -> str:
        """Return the number of the block at work."""
        return "(b.first + j)"

    def canonical(self, x: str) -> str:
        """Return a float as it is stored: every NaN is the same."""
        return f"canonical({x})"

    def greater_of_positives(self, a: str, b: str) -> str:
        """Return the greater of two floats whose sign bits are not set; of a NaN and another, the NaN."""
        return f"greater_of_positives({a}, {b})"

    def random_row(self, name: str) -> str:
        """Return the random bits of the lanes at work, of those that a tile holds under a name."""
        return f"{name}[block][row]"

    def seed(self, *, keyed: bool) -> str:
        """Return the seed of random numbers."""
        return "k.shared_seed" if keyed else "k.seed"

    def start(self, *, stage: bool) -> str:
        """Return the position of the first lane at work, of a tile or of a block that is reduced."""
        return "first + at" if stage else "tile * TILE + at"

    def first(self, start: str, bits: Bits) -> str:
        """Return what becomes of the position of the first lane."""
        keep, flip = bits.rest(self.width)
        return f"((({start}) & INT64_C({keep})) ^ INT64_C({flip})) + {bits.distance}"

    def order(self, bits: Bits) -> str:
        """Return what becomes of the lanes' numbers."""
        return f"Int32{{{', '.join(map(str, bits.order(self.width)))}}}"

    def known_bits(self, start: str, bits: Bits) -> str:
        """Return lanes of what becomes of their positions, which 32 bits hold."""
        return f"{self.order(bits)} + int32_t({self.first(start, bits)})"

    def declare_length(self, name: str, text: str) -> str:
        """Return the statement that names a length."""
        return f"const int64_t {name} = {text};"

    def live(self) -> str:
        """Return which of the lanes at work there are."""
        return "first_lanes(live)"

    def lazy(self, op: str, texts: Sequence[str]) -> str:
        """Return a condition on scalars that evaluates no more than it has to."""
        return (
            f"({texts[0]} ? {texts[1]} : {texts[2]})" if op == "select" else f"({texts[0]} {op} {texts[1]})"
        )

    def through(self, elem: Elem, x: str) -> str:
        """Return a value as it is once `elem` has held it: a float of 16 bits rounds it."""
        return x if arithmetic(elem) != FLOAT or elem == FLOAT else self.call("through", self.stored(elem), x)

    def bounds(self, interval: Interval, elem: Elem) -> tuple[str, str]:
        """Return the ends of an interval of integers that are converted to a type."""
        low, high = (
            self.number(ir.Const(int(x), INT if elem.kind == "int" or x < 2**63 else elem))
            for x in (interval.low, interval.high)
        )
        return low, high

    def operator(self, op: str, elem: Elem) -> str:
        """Return the text of an operator on an arithmetic type, with `{0}`, `{1}`, ... for the operands."""
        del elem
        return OPS[op].c


CPP = Dialect()
LAZY = ("select", "&&", "||")
MANTISSA = 23  # bits of a float32 below its exponent


def reads_elsewhere(e: ir.Expr) -> bool:
    """Whether an expression reads a vector at a computed position, which may be out of range."""
    return any(isinstance(x, ir.Read) and x.position != ir.Position() for x in ir.walk(e))


def _has_no_sign(e: ir.Expr) -> bool:
    """Whether no NaN that an expression gives has its sign bit set."""
    match e:
        case ir.Const() | ir.Apply("abs", _, _):
            return True
        case ir.Apply("select", (_, a, b), _) | ir.Apply(("min" | "max"), (a, b), _):
            return _has_no_sign(a) and _has_no_sign(b)
    return False


class ScalarWriter:
    """Writes scalar expressions; `place` says where a named scalar lives.

    `read` says how an element of a vector is read, or a table searched, given the text of where or for what;
    for one value a block, `position` is the block.
    """

    def __init__(
        self,
        place: Callable[[str], str],
        dialect: Dialect = CPP,
        read: Callable[[ir.Read | ir.Search, str], str] | None = None,
        position: str = "",
    ) -> None:
        """Write with the given names."""
        self.place, self.dialect, self.read, self.position = place, dialect, read, position

    def text(self, e: ir.Expr) -> str:
        """Return the expression as one C++ expression."""
        d = self.dialect
        match e:
            case ir.Const():
                return d.literal(e)
            case ir.Size():
                return d.size()
            case ir.Position():
                return self.position or d.zero(d.scalar(INT))
            case ir.Read() | ir.Search() if self.read is not None:
                (operand,) = ir.children(e)
                return self.read(e, self.text(operand))
            case ir.Scalar(name, _) | ir.Param(name, _):
                return self.place(name)
            case ir.Convert(arg, to, kind):
                return self._convert(self.text(arg), arg.type, to, kind)
            case ir.Random(site, low, high, kind, keyed):
                word = f"random_word({d.seed(keyed=keyed)}, {site})"
                args = word, self.text(low), self.text(high)
                return (
                    d.call("random_float", d.scalar(FLOAT), *args)
                    if kind == FLOAT
                    else f"random_int({', '.join(args)})"
                )
            case ir.StochasticRound(site, arg, _):
                return f"stochastic_round(random_half({d.seed(keyed=False)}, {site}), {self.text(arg)})"
            case ir.Apply(op, args, _) if op in LAZY and any(reads_elsewhere(a) for a in args[1:]):
                return d.lazy(op, [self.text(a) for a in args])
            case ir.Apply(op, args, _):
                c = d.operator(op, args[-1].type)
                return "(" + c.format(*(self.text(a) for a in args)) + ")"
        raise AssertionError(e)

    def _convert(self, x: str, have: Elem, to: Elem, kind: Elem) -> str:
        d = self.dialect
        if to == BOOL:
            return f"ne({x}, {d.zero(d.scalar(have))})"
        if have == FLOAT and kind == FLOAT:
            return d.through(to, x)
        if have == BOOL or kind == FLOAT:
            return d.through(to, d.call("widen", d.scalar(kind), f"bit({x})" if have == BOOL else x))
        return d.call("saturate_one", d.scalar(kind), x, *d.bounds(full(to), to))


class LaneWriter:
    """Writes expressions over 16 lanes as a list of statements, each subexpression once."""

    def __init__(
        self,
        ranges: Ranges,
        read: Callable[[ir.Read | ir.Search, str], str],
        uniform: Callable[[ir.Expr, str], str],
        block: Callable[[ir.Expr, str], str | None] = lambda e, lanes: None,  # noqa: ARG005
        dialect: Dialect = CPP,
        elsewhere: Callable[[ir.Read], bool] = lambda e: False,  # noqa: ARG005
    ) -> None:
        """Write with `read` for the lanes of a vector, `uniform` for a splat of a scalar.

        `block` gives the lanes of what is the same for a whole block, or None; `elsewhere` tells which reads
        may be out of range.
        """
        self.elsewhere = elsewhere
        self.ranges, self.read, self.uniform, self.block, self.dialect = ranges, read, uniform, block, dialect
        self.lines: list[str] = []
        self.names: dict[tuple[ir.Expr, str, str], str] = {}
        self.draws: dict[tuple[int, bool], Draw] = {}
        self.position = False
        self.asked = dialect.live()  # the lanes in which the program asks for what is being written

    def lane_type(self, e: ir.Expr) -> str:
        """Return the lane type in which `e` is computed."""
        if e.type == INT and self.ranges.narrow(e):
            operands = [a for a in ir.children(e) if a.type == INT]
            if isinstance(e, ir.Const | ir.Read | ir.Convert) or all(self.ranges.narrow(a) for a in operands):
                return "Int32"
            if isinstance(e, ir.Apply) and e.op == "&":  # bits beyond are gone, whatever they were
                return "Int32"
        return LANES[e.type.name]

    def write(self, e: ir.Expr, want: str | None = None) -> str:
        """Return the name of the lanes of `e`, as lane type `want` if that is given."""
        have = self.lane_type(e)
        want = want or have
        key = e, want, self.asked if self.gathers(e) else ""
        if key not in self.names:
            text = self._compute(e, have) if want == have else self.dialect.call("widen", want, self.write(e))
            simple = text.isidentifier() or isinstance(e, ir.Const)
            self.names[key] = text if simple else self._name(want, text)
        return self.names[key]

    def gathers(self, e: ir.Expr) -> bool:
        """Whether an expression reads elements that may be out of range, so that it matters who asks."""
        return any(isinstance(x, ir.Read) and self.elsewhere(x) for x in ir.walk(e))

    def draw(self, kind: str, site: int, *, keyed: bool = False) -> str:
        """Return the random bits of the lanes at work for a call."""
        name = f"r_key{site}" if keyed else f"r{site}"
        self.draws[site, keyed] = Draw(kind, name, self.dialect.seed(keyed=keyed), site)
        return self.dialect.random_row(name)

    def _name(self, kind: str, text: str) -> str:
        name = f"t{len(self.lines)}"
        self.lines.append(self.dialect.declare(kind, name, text))
        return name

    def _compute(self, e: ir.Expr, have: str) -> str:
        of_block = self.block(e, have)
        if of_block is not None:
            return of_block
        d = self.dialect
        match e:
            case ir.Const():
                return d.splat(have, e)
            case ir.Scalar() | ir.Param() | ir.Size():
                return self.uniform(e, have)
            case ir.Position():
                self.position = True
                return "position"
            case ir.Read() | ir.Search():
                return self.read(e, have)
            case ir.Convert(arg, to, _):
                return self._convert(e, arg, to, have)
            case ir.Random(site, low, high, kind, keyed):
                row = self.draw("random_words", site, keyed=keyed)
                args = row, self.write(low, have), self.write(high, have)
                return (
                    d.call("random_float", have, *args) if kind == FLOAT else f"random_int({', '.join(args)})"
                )
            case ir.StochasticRound(site, arg, _):
                return f"stochastic_round({self.draw('random_halves', site)}, {self.write(arg)})"
            case ir.Apply(op, args, _):
                return self._apply(op, args, have)
        raise AssertionError(e)

    def _clamped(self, op: str, args: tuple[ir.Expr, ...], have: str) -> str | None:
        """Return a conversion of floats that is clamped, which is one to an interval; None if it is none."""
        match args:
            case (
                ir.Apply(("min" | "max") as inner, (ir.Convert(x, to, _), ir.Const(a, _)), _),
                ir.Const(b, _),
            ) if op in ("min", "max") and inner != op and x.type == FLOAT and to.kind == "int":
                low, high = (a, b) if op == "min" else (b, a)
                least, most = limits(to)
                if max(low, least) <= 0 <= min(high, most) and have == "Int32":
                    ends = self.dialect.bounds(Interval(max(low, least), min(high, most)), to)
                    return self.dialect.call("saturate", have, self.write(x), *ends)
        return None

    def _plain(self, op: str, args: tuple[ir.Expr, ...]) -> str | None:
        """Return an instruction that does the same where there are no NaN and no zeros to tell apart."""
        plain, of = self.dialect.plain, self.ranges.of
        match op, args:
            case (("min" | "max"), (a, b)) if plain and a.type == FLOAT:
                if not of(a).nan:
                    return plain[op].format(self.write(a), self.write(b))
                same = of(a).is_positive() and of(b).is_positive()  # zeros are
                if not of(b).nan and (same or not (of(a).has_zero() and of(b).has_zero())):
                    return plain[op].format(self.write(b), self.write(a))
            case "float_bits", (x,) if plain and not of(x).nan:
                return plain[op].format(self.write(x))
            case ">>", (ir.Apply("float_bits", (x,), kind), ir.Const(count, _)) if (
                plain and count >= MANTISSA
            ):
                if of(x).is_positive() and _has_no_sign(x):  # every NaN has the same bits above its mantissa
                    bits = self._name(LANES[kind.name], plain["float_bits"].format(self.write(x)))
                    return self.dialect.operator(op, kind).format(bits, self.write(args[1]))
        return None

    def _apply(self, op: str, args: tuple[ir.Expr, ...], have: str) -> str:
        short = self._clamped(op, args, have) or self._plain(op, args)
        if short is not None:
            return short
        numbers = [a for a in args if a.type == INT]
        same = "Int32" if numbers and all(self.ranges.narrow(a) for a in numbers) else "Int64"
        if op == "popcount" or (have == "Int64" and op != "sign"):
            same = "Int64"  # the sign's copies count, so a negative number needs all its bits
        wide = op == "&" and have == "Int32" and same == "Int64"
        lazy = op in LAZY and any(self.gathers(a) for a in args[1:])
        texts = self._lazily(op, args, same) if lazy else [self.write(a, self._as(a, same)) for a in args]
        text = self.dialect.operator(op, args[-1].type).format(*texts)
        return self.dialect.call("widen", have, text) if op in ("sign", "popcount") or wide else text

    def _as(self, e: ir.Expr, integers: str) -> str | None:
        return integers if e.type == INT else None

    def _lazily(self, op: str, args: tuple[ir.Expr, ...], integers: str) -> list[str]:
        """Write a condition and what it decides on, each in the lanes that ask for it."""
        asked, first = self.asked, self.write(args[0])
        texts = [first]
        for at, a in enumerate(args[1:]):
            wanted = first
            if op == "||" or at == 1:
                wanted = self.dialect.operator("!", BOOL).format(first)
            self.asked = self._name("Mask", self.dialect.operator("&&", BOOL).format(asked, wanted))
            texts.append(self.write(a, self._as(a, integers)))
        self.asked = asked
        return texts

    def _convert(self, e: ir.Expr, arg: ir.Expr, to: Elem, have: str) -> str:
        d = self.dialect
        x, kind = self.write(arg), self.lane_type(arg)
        if arg.type == FLOAT and have == "Float":
            return d.through(to, x)
        if arg.type == BOOL or have == "Float":
            return d.through(to, d.call("widen", have, f"bit({x})" if arg.type == BOOL else x))
        if to == BOOL:
            return f"ne({x}, {d.zero(kind)})"
        if arg.type != FLOAT and self.ranges.fits(arg, *limits(to)):
            return d.call("widen", have, x)
        signed = kind in ("Int32", "Int64")
        through = kind if have == "Int32" and signed else have
        limit = self.ranges.of(e) if through == "Int32" else full(to)  # no more than the lanes can hold
        if d.plain and arg.type == FLOAT and through == have == "Int32":
            x_in = self.ranges.of(arg)
            if limit.low - 1 < x_in.low and x_in.high < limit.high + 1 and (limit.low == 0 or not x_in.nan):
                return d.call("widen", have, d.plain["max"].format(x, d.zero(kind)) if x_in.nan else x)
        clamped = d.call("saturate", through, x, *d.bounds(limit, to))
        return clamped if through == have else d.call("widen", have, clamped)
