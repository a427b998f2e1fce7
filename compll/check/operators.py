"""The operators on vectors: map, reduce, range, and the random numbers."""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Mapping, Sequence

import numpy as np

from compll import ir
from compll import syntax as s
from compll.check import laws
from compll.check.expressions import (
    OPERATORS,
    as_type,
    element_type,
    expression,
    function,
    lift,
    operand,
    operate,
    scalar,
)
from compll.check.functions import Statements
from compll.check.signature import Signature, random_sites
from compll.check.values import (
    Range,
    Reporter,
    ScalarValue,
    Scope,
    Value,
    VectorValue,
    describe,
    named,
    positions,
)
from compll.errors import Span, did_you_mean
from compll.evaluate import Environment, evaluate
from compll.ops import COMBINES, FUNCTIONS, OPS, identity
from compll.types import BOOL, FLOAT, INT, UINT64, Array, Elem, arithmetic, dtype

GRADIENT = "gradient"  # its name in the IR, whatever the program calls it
LARGEST_TABLE = 65536  # elements; longer vectors of constants are made when the program runs
LARGEST_BLOCK = 1 << 20  # elements: a tile of tiles, so that the results of its tiles are one tile
SYMBOLS = ("n", "i", "a", "b")  # of the IR: size, position, the two values of a reduction


def of_host(e: ir.Expr) -> bool:
    """Whether a scalar is known before anything runs: it depends on n and hyper-parameters only."""
    known = ir.Const | ir.Size | ir.Param | ir.Apply | ir.Convert
    return all(isinstance(x, known) for x in ir.walk(e))


def constant_elements(value: VectorValue, tables: Mapping[str, ir.Table]) -> tuple[ir.Expr, ...]:
    """Return the elements of a vector that depends on constants and `tables` only; none for any other."""
    known = ir.Const | ir.Position | ir.Apply | ir.Convert | ir.Search | ir.Read
    size = value.length.value if isinstance(value.length, ir.Const) else 0
    nodes = tuple(ir.walk(value.body))
    reads = {
        x.vector if isinstance(x, ir.Read) else x.table for x in nodes if isinstance(x, ir.Read | ir.Search)
    }
    if (
        not 0 < size <= LARGEST_TABLE
        or not reads <= tables.keys()
        or not all(isinstance(x, known) for x in nodes)
    ):
        return ()
    env = Environment(0, {}, {t.name: _array(t) for name, t in tables.items() if name in reads})
    values = evaluate(value.body, env, np.arange(size, dtype=np.int64))
    return () if env.out_of_range else tuple(ir.const(x.item(), value.body.type) for x in values)


def _array(t: ir.Table) -> Array:
    return np.array([v.value for v in t.values if isinstance(v, ir.Const)], dtype(arithmetic(t.elem)))


def draws(e: ir.Expr) -> bool:
    """Whether an expression draws random numbers."""
    return any(isinstance(x, ir.Random | ir.StochasticRound) for x in ir.walk(e))


class Names:
    """Names of the IR: each is given once; the states and the gradient keep theirs."""

    def __init__(self, taken: Sequence[str]) -> None:
        """Begin with names that are taken."""
        self.taken = {*taken, *SYMBOLS}

    def fresh(self, wish: str) -> str:
        """Return `wish`, or `wish_1`, `wish_2`, ..."""
        name = next(
            n
            for n in itertools.chain([wish], (f"{wish}_{i}" for i in itertools.count(1)))
            if n not in self.taken
        )
        self.taken.add(name)
        return name


class Operators(Statements):
    """Statements with the operators on vectors; collects the bindings of the IR."""

    def __init__(
        self,
        sig: Signature,
        report: Reporter,
        static: Mapping[str, float | int | bool],
        file_scope: Scope,
        names: Names,
    ) -> None:
        """Begin without bindings."""
        super().__init__(report, static, file_scope)
        self.sig, self.names = sig, names
        self.bindings: list[ir.Binding] = []
        self.fields: tuple[ir.Field, ...] | None = None  # of the payload
        self.most: dict[str, ir.Expr] = {}  # size that depends on data -> the most it can be
        self.tables: dict[str, ir.Table] = {}
        self.received: set[str] = set()  # vectors that are read from bytes which may be anything
        self.ascending: dict[str, ir.Expr] = {}  # vectors of strictly ascending positions -> below what
        self.narrow: list[ir.Narrow] = []
        self.lengths: dict[str, ir.Expr] = {}  # of the vectors whose length is not gradient.size
        self.wish = "{}"
        self.random = False
        self.sites = random_sites(sig.program)

    @abstractmethod
    def payload_call(self, e: s.Call) -> Value:
        """Type concat, extract or decode."""

    @abstractmethod
    def selection(self, e: s.Call) -> Value:
        """Type filter, topk, sort, sample, gather, scatter or search."""

    def initial(self, name: str, e: s.Expr) -> Value:
        """Type a variable's value; reductions inside it are named after the variable."""
        whole = isinstance(e, s.Call) and e.name == "reduce"
        self.wish = name if whole else f"{name}_{{}}"
        try:
            return super().initial(name, e)
        finally:
            self.wish = "{}"

    def bind_scalar(self, name: str, value: ScalarValue) -> ScalarValue:
        """Name a scalar by a `Let`, unless it has a name, stands in a function or branch, or is of the host.

        What depends on n and parameters only stays an expression, so that it can be a length.
        """
        if self.running or self.conditional or isinstance(value.expr, ir.Scalar) or of_host(value.expr):
            return value
        return self.let(name, value)

    def let(self, name: str, value: ScalarValue) -> ScalarValue:
        """Bind a scalar to a name of its own."""
        fresh = self.names.fresh(name)
        self.bindings.append(ir.Let(fresh, value.expr))
        return ScalarValue(ir.Scalar(fresh, value.expr.type), value.elem)

    def is_there(self, value: VectorValue) -> bool:
        """Whether a vector has a name already, or is made of constants."""
        return value.name is not None or bool(constant_elements(value, self.tables))

    def bind_vector(self, name: str, value: VectorValue) -> VectorValue:
        """Name a vector by a `Map`, unless it has a name already; a part of a named one is another vector."""
        if value.name is not None and value.length == self.lengths.get(value.name, ir.Size()):
            return value
        constants = constant_elements(value, self.tables)
        if constants:
            return self.constants(name, value.elem, constants)
        fresh = self.names.fresh(name)
        self.lengths[fresh] = value.length
        source = value.body.arg if isinstance(value.body, ir.Convert) else value.body
        part = source.vector if isinstance(source, ir.Read) and source.position == ir.Position() else ""
        if part in self.ascending and value.elem.kind in ("int", "uint"):
            self._keep_positions(fresh, value.elem, part)
        self.bindings.append(ir.Map(fresh, value.elem, value.length, value.body))
        return named(fresh, value.elem, value.length)

    def _keep_positions(self, name: str, elem: Elem, source: str) -> None:
        """Note that a vector has the ascending positions of another one, in a type that may limit them."""
        below = self.ascending[name] = self.ascending[source]
        if source in self.received:
            self.received.add(name)
        elif elem not in (INT, UINT64):
            self.narrow.append(ir.Narrow(below, elem))

    def constants(self, name: str, elem: Elem, values: Sequence[ir.Expr]) -> VectorValue:
        """Name a table of constants; the same constants are one table, however often a function has them."""
        kept = tuple(ir.as_elem(v, elem) for v in values)
        same = (t for t in self.tables.values() if (t.elem, t.values) == (elem, kept))
        table = next(same, None)
        if table is None:
            table = ir.Table(self.names.fresh(name), elem, kept)
            self.tables[table.name] = table
            self.bindings.append(table)
            self.lengths[table.name] = ir.const(len(kept), INT)
        return named(table.name, elem, self.lengths[table.name])

    # --- calls ----------------------------------------------------------------------------------

    def call(self, e: s.Call) -> Value:
        """Type a call of an operator, or run a function of the program."""
        own = self.scope.find_function(e.name)
        if own is not None:
            args = [operand(self, a) for a in e.args]
            return self._drawn(e, lift(self, e.span, lambda *x: self.apply_function(own, x, e.span), *args))
        if e.name in ("random", "stochastic_round"):
            return self._random(e)
        if e.name not in OPERATORS:
            known = {*OPERATORS, *FUNCTIONS, "random", *self.scope.visible()}
            raise self.report.error(f"unknown function '{e.name}'", e.span, hint=did_you_mean(e.name, known))
        if self.running and e.name not in ("range", "search"):
            raise self.report.error(
                f"'{e.name}' cannot stand inside a function that is applied to elements", e.span
            )
        if self.conditional and e.name != "search":
            raise self.report.error(
                f"'{e.name}' cannot stand under an 'if' that depends on data",
                e.span,
                hint="compute it before the 'if', or use a condition of hyper-parameters only",
            )
        match e.name:
            case "range":
                return self._range(e)
            case "map":
                return self._map(e)
            case "reduce":
                return self._reduce(e)
            case "chunk":
                raise self.report.error(
                    "'chunk' stands only as the first argument of reduce, sort or topk",
                    e.span,
                    hint="write reduce(chunk(vector, 256), 0, add)",
                )
            case "concat" | "extract" | "decode":
                return self.payload_call(e)
            case _:
                return self.selection(e)

    def args(self, e: s.Call, low: int, high: int, shape: str) -> tuple[s.Expr, ...]:
        """Return the arguments of a call, or complain of their number."""
        if not low <= len(e.args) <= high:
            raise self.report.error(
                f"'{e.name}' cannot be given {len(e.args)} argument{'' if len(e.args) == 1 else 's'}",
                e.span,
                hint=f"write {shape}",
            )
        return e.args

    def _range(self, e: s.Call) -> Range:
        (count,) = self.args(e, 1, 1, "range(n)")
        return Range(self.length(scalar(self, count, "the length of a range"), "a range", count))

    def length(self, n: ScalarValue, what: str, e: s.Expr) -> ir.Expr:
        """Return the length of a new vector: it is known before anything runs, or the size of another one."""
        if n.expr.type.kind == "float":
            raise self.report.error(
                f"the length of {what} is an integer", e.span, hint="write int(...) around it"
            )
        counted = isinstance(n.expr, ir.Scalar) and n.expr.name in self.most
        if not counted and not of_host(n.expr):
            raise self.report.error(
                f"the length of {what} depends on data",
                e.span,
                hint="make it from gradient.size and hyper-parameters, or give the size of a vector as it is",
            )
        return ir.as_elem(n.expr, INT)

    def vector(self, e: s.Expr) -> VectorValue:
        """Type an expression that must be a vector; a range is the vector of its positions."""
        value = expression(self, e)
        if isinstance(value, Range):
            return positions(value)
        if not isinstance(value, VectorValue):
            raise self.report.error(f"a vector is needed here, not {describe(value)}", e.span)
        return value

    def _map(self, e: s.Call) -> VectorValue:
        over, f = self.args(e, 2, 2, "map(vector, function) or map(range(n), function)")
        vector, g = self.vector(over), function(self, f)
        element = ScalarValue(vector.body, vector.elem)
        if g.node is None:
            if g.name in COMBINES or OPS[g.name].arity != 1:
                hint = "map takes a function of one value: a lambda, or the name of one"
                raise self.report.error(f"'{g.name}' combines two values", f.span, hint=hint)
            result = operate(self, e.span, g.name, element)
        else:
            result = self.apply_function(g, [element], e.span)
        return VectorValue(result.elem, vector.length, result.expr)

    def chunked(self, e: s.Expr) -> tuple[VectorValue, int]:
        """Return the vector that is reduced, and the size of its blocks; 0 if it is reduced as a whole."""
        if not isinstance(e, s.Call) or e.name != "chunk":
            return self.vector(e), 0
        over, size = self.args(e, 2, 2, "chunk(vector, 256)")
        vector, block = self.vector(over), scalar(self, size, "the size of a block")
        known = block.expr.value if isinstance(block.expr, ir.Const) else None
        if not isinstance(known, int) or isinstance(known, bool) or known < 1:
            raise self.report.error(
                "the size of a block is an integer of at least 1 that the compiler knows",
                size.span,
                hint="make it a hyper-parameter, such as [[range(1, 65536)]] int block = 256",
            )
        if known > LARGEST_BLOCK:
            raise self.report.error(
                f"a block of {known:,} elements: {LARGEST_BLOCK:,} is the most",
                size.span,
                note="a block is the work of one thread, or of one warp",
                hint="leave the chunk away to take the whole vector",
            )
        return vector, known

    def _reduce(self, e: s.Call) -> ScalarValue | VectorValue:
        args = self.args(e, 2, 3, "reduce(vector, init, function) or reduce(vector, add | smaller | greater)")
        vector, block = self.chunked(args[0])
        f = function(self, args[-1])
        init = scalar(self, args[1], "the start of a reduction") if len(args) == 3 else None
        element = ScalarValue(vector.body, vector.elem)
        arity = len(f.node.formals) if f.node else 2 if f.name in COMBINES else OPS[f.name].arity
        if arity != 2:
            takes = "1 value" if arity == 1 else f"{arity} values"
            raise self.report.error(
                f"'{f.name}' takes {takes}, and a reduction gives it 2",
                args[-1].span,
                hint="use add, smaller, greater or a function of two values",
            )
        if init is None and f.name not in COMBINES:
            hint = "write reduce(vector, init, f): init is what an empty vector gives"
            raise self.report.error(
                f"a reduction by '{f.name}' needs a value to start from", e.span, hint=hint
            )
        if f.node is None:
            own = kind = arithmetic(INT if vector.elem == BOOL else vector.elem)
            a, b = ScalarValue(ir.Scalar("a", kind), kind), ScalarValue(ir.Scalar("b", kind), kind)
            body = ir.apply(COMBINES.get(f.name, f.name), a.expr, b.expr)
        else:
            types = [x[0] if isinstance(x, tuple) else x.type for x in f.node.formals]
            own, other = (element_type(self, t) for t in types)
            if own != other:
                raise self.report.error(
                    f"the function of a reduction combines two values of one type, not {own} and {other}",
                    types[1].span,
                    hint="each of the two is an element or the result of combining some",
                )
            kind = arithmetic(INT if own == BOOL else own)
            pair = [ScalarValue(ir.Scalar(x, kind), kind) for x in "ab"]
            body = ir.as_elem(self.apply_function(f, pair, args[-1].span).expr, kind)
            if draws(body):
                raise self.report.error("a reduction cannot draw random numbers", args[-1].span)
            self._try_laws(ir.Combine(f.name, body, kind), own, args[-1].span)
        if init is None:
            init = ScalarValue(ir.const(identity(f.name, kind), kind), kind)
        label = args[-1].name if isinstance(args[-1], s.Name) else "combine"
        name = self.names.fresh(self.wish.format(label))
        start = as_type(init, own)  # init enters once, as f's parameter holds it
        combine = ir.Combine(label, body, kind)
        value = ir.as_elem(as_type(element, kind).expr, kind)
        if block:
            begin = ir.as_elem(start.expr, kind)
            self.bindings.append(ir.BlockReduce(name, combine, begin, block, vector.length, value))
            self.lengths[name] = ir.blocks(vector.length, block)
            return named(name, kind, self.lengths[name])
        self.bindings.append(ir.Reduce(name, combine, ir.as_elem(start.expr, kind), vector.length, value))
        return ScalarValue(ir.Scalar(name, kind), kind)

    def _try_laws(self, combine: ir.Combine, own: Elem, span: Span) -> None:
        """Warn of a function of a reduction that is seen not to be commutative or not associative."""
        broken = laws.broken(combine, own, self.tables)
        if broken:
            self.report.warning(
                f"the function of a reduction should be {broken}",
                span,
                note="which values meet first, and on which side, follows from the order of reduction",
                hint="treat both values alike; prepare the elements before, as in reduce(abs(x), 0, greater)",
            )

    def _random(self, e: s.Call) -> ScalarValue | VectorValue:
        if self.sig.op == "decode":
            raise self.report.error(
                f"'{e.name}' cannot stand in a Decode: it would not give the same twice", e.span
            )
        self.random = True
        site = self.sites[e.span]
        if e.name == "stochastic_round":
            (arg,) = self.args(e, 1, 1, "stochastic_round(x)")
            rounded = lift(
                self,
                e.span,
                lambda x: ScalarValue(ir.StochasticRound(site, as_type(x, FLOAT).expr, FLOAT), FLOAT),
                operand(self, arg),
            )
            return self._drawn(e, rounded)
        if e.type is None:
            raise self.report.error("random needs a type", e.span, hint="write random<float>(0, 1)")
        low, high = self.args(e, 2, 2, "random<float>(low, high)")
        elem = element_type(self, e.type)
        kind = arithmetic(elem)
        if kind not in (INT, FLOAT):
            raise self.report.error(
                f"random<{elem}> is not there", e.span, hint="use random<float> or random<int>"
            )
        a, b = (as_type(scalar(self, x, "a bound of random"), kind).expr for x in (low, high))
        return self._drawn(e, as_type(ScalarValue(ir.Random(site, a, b, kind), kind), elem))

    def _drawn(self, e: s.Call, value: ScalarValue | VectorValue) -> ScalarValue | VectorValue:
        """Name a random scalar that is drawn outside of a map: it is that of element 0 in every use."""
        if self.running or not isinstance(value, ScalarValue) or not draws(value.expr):
            return value
        return self.let(e.name, value)
