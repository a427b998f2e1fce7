"""Selections: filter, topk, sort, sample, gather, scatter, search."""

from __future__ import annotations

import itertools
from collections.abc import Callable

from compll import ir
from compll import syntax as s
from compll.check.expressions import as_type, expression, function, lift, operand, scalar, truth
from compll.check.operators import Operators, draws, of_host
from compll.check.values import Range, ScalarValue, Value, VectorValue, describe, index, named
from compll.types import BOOL, FLOAT, INT, Elem, arithmetic

ZERO = ir.const(0, INT)


class Selection(Operators):
    """The operators whose results are selected elements, or their positions."""

    def selection(self, e: s.Call) -> Value:
        """Type a selection."""
        typed: dict[str, Callable[[s.Call], Value]] = {
            "filter": self._filter,
            "topk": self._topk,
            "sort": self._sort,
            "sample": self._sample,
            "gather": self._gather,
            "scatter": self._scatter,
            "search": self._search,
        }
        return typed[e.name](e)

    def _size(self, e: s.Expr, what: str) -> ir.Expr:
        """Type a limit or k: converted to int, as the language says."""
        return as_type(scalar(self, e, what), INT).expr

    def _at_most(self, size: ir.Expr, length: ir.Expr) -> ir.Expr:
        """Return min(max(size, 0), length), with a name if it depends on data."""
        clamped = ir.apply("min", ir.apply("max", size, ZERO), length)
        return clamped if of_host(clamped) else self.let("count", ScalarValue(clamped, INT)).expr

    def bound(self, length: ir.Expr) -> ir.Expr:
        """Return the most that a length can be, before anything runs."""
        return ir.rewrite(length, lambda x: self.most.get(x.name) if isinstance(x, ir.Scalar) else None)

    def _positions(self, name: str, length: ir.Expr, below: ir.Expr) -> VectorValue:
        """Return a vector of `length` ascending positions, all `below` a number."""
        self.lengths[name] = length
        self.ascending[name] = self.bound(below)
        return named(name, INT, length)

    def _filter(self, e: s.Call) -> VectorValue:
        over, f, *rest = self.args(e, 2, 3, "filter(range(n), function) or filter(range(n), function, limit)")
        span = expression(self, over)
        if not isinstance(span, Range):
            raise self.report.error(
                f"filter goes over a range, not {describe(span)}",
                over.span,
                hint="write filter(range(x.size), [&](int i) -> bool { return x[i] > 0; })",
            )
        holds = truth(self.apply_function(function(self, f), [index()], e.span))
        limit = self._size(rest[0], "the limit of a filter") if rest else None
        name = self.names.fresh(self.wish.format("filter"))
        count = self.names.fresh(f"{name}_count")
        self.bindings.append(ir.Filter(name, count, span.length, holds, limit))
        host = limit is not None and of_host(limit)
        longest = self.bound(span.length)
        self.most[count] = self._at_most(limit, longest) if host and limit is not None else longest
        return self._positions(name, ir.Scalar(count, INT), span.length)

    def _topk(self, e: s.Call) -> VectorValue:
        over, size = self.args(e, 2, 2, "topk(vector, k)")
        vector, block = self.chunked(over)
        k = self._size(size, "k")
        if not block:
            count = self._at_most(k, vector.length)
        else:
            whole, rest = (ir.apply(op, vector.length, ir.const(block, INT)) for op in "/%")
            each = self._at_most(k, ir.const(block, INT))
            last = ir.apply("min", ir.apply("max", k, ZERO), rest)
            count = ir.apply("+", ir.apply("*", whole, each), last)
            if not of_host(count):
                raise self.report.error(
                    "k of a topk by block depends on data", size.span, hint="make it from hyper-parameters"
                )
        if isinstance(count, ir.Scalar):
            self.most[count.name] = self.bound(vector.length)
        name = self.names.fresh(self.wish.format("topk"))
        self.bindings.append(ir.TopK(name, vector.length, vector.body, k, block))
        return self._positions(name, count, vector.length)

    def _sort(self, e: s.Call) -> VectorValue:
        over, order = self.args(e, 2, 2, "sort(vector, smaller) or sort(vector, greater)")
        vector, block = self.chunked(over)
        kind = arithmetic(INT if vector.elem == BOOL else vector.elem)
        value = ir.as_elem(vector.body, kind)
        by = function(self, order)
        a, b = (ir.Scalar(x, kind) for x in "ab")
        if by.node is None and by.name in ("smaller", "greater"):
            key: ir.Expr = a
            descending = by.name == "greater"
        else:
            if by.node is None:
                raise self.report.error("sort takes smaller, greater or a comparison", order.span)
            body = self.apply_function(by, [ScalarValue(x, kind) for x in (a, b)], order.span).expr
            if draws(body):
                raise self.report.error("a sort cannot draw random numbers", order.span)
            key, descending = self._key(body, a, b, order)
        name = self.names.fresh(self.wish.format("sort"))
        self.bindings.append(ir.Sort(name, vector.length, value, key, descending, block))
        self.lengths[name] = vector.length
        return named(name, kind, vector.length)

    def _key(self, body: ir.Expr, a: ir.Expr, b: ir.Expr, order: s.Expr) -> tuple[ir.Expr, bool]:
        """Return the key of a comparison key(a) < key(b), and whether it is a greater-than."""
        if isinstance(body, ir.Apply) and body.op in ("<", ">"):
            left, right = body.args
            if ir.rewrite(left, lambda x: b if x == a else None) == right and b not in set(ir.walk(left)):
                return left, body.op == ">"
        raise self.report.error(
            "sort orders by key(a) < key(b): this comparison is of another form",
            order.span,
            hint="write smaller, greater, or (float a, float b) -> bool { return abs(a) < abs(b); }",
        )

    def _sample(self, e: s.Call) -> VectorValue:
        args = self.args(e, 2, 3, "sample(vector, m) or sample(vector, m, key)")
        keyed = len(args) == 3
        if keyed and not (isinstance(args[2], s.Name) and args[2].name == self.sig.key):
            raise self.report.error(
                "the key of a sample is the shared seed",
                args[2].span,
                hint="declare a formal 'shared uint64 key' and give it",
            )
        if self.sig.op == "decode" and not keyed:
            raise self.report.error(
                "a sample without key cannot stand in a Decode: it would not give the same twice", e.span
            )
        vector = self.vector(args[0])
        plain = vector.body == ir.Position()
        x = vector if plain else self.bind_vector("sampled", vector)
        n, m = x.length, self._at_most(self._size(args[1], "the size of a sample"), x.length)
        if isinstance(m, ir.Scalar):
            self.most[m.name] = self.bound(n)
        self.random = self.random or not keyed
        j = ir.Position()
        low, high = (ir.apply("/", ir.apply("*", at, n), m) for at in (j, ir.apply("+", j, ir.const(1, INT))))
        place = ir.Random(self.sites[e.span], low, high, INT, keyed)
        self.indexed.append((x.name or "", place, e.span))
        if plain:
            drawn = self.bind_vector(self.wish.format("sample"), VectorValue(INT, m, place))
            if drawn.name:
                self.ascending[drawn.name] = self.bound(n)
            return drawn
        body = ir.Read(x.name or "", place, arithmetic(x.elem))
        return self.bind_vector(self.wish.format("sample"), VectorValue(x.elem, m, body))

    def _gather(self, e: s.Call) -> VectorValue:
        over, at = self.args(e, 2, 2, "gather(vector, positions)")
        x, places = self.bind_vector("gathered", self.vector(over)), self.vector(at)
        if places.body.type == FLOAT:
            raise self.report.error("positions are integers", at.span)
        place = ir.as_elem(places.body, INT)
        self.indexed.append((x.name or "", place, e.span))
        return VectorValue(x.elem, places.length, ir.Read(x.name or "", place, arithmetic(x.elem)))

    def _scatter(self, e: s.Call) -> VectorValue:
        onto, at, what = self.args(
            e, 3, 3, "scatter(n, positions, values) or scatter(vector, positions, values)"
        )
        base, places, value = operand(self, onto), self.vector(at), operand(self, what)
        if places.name not in self.ascending:
            raise self.report.error(
                "scatter needs positions that are surely ascending",
                at.span,
                hint="use the result of filter, topk or sample over a range, or what extract has read",
            )
        if isinstance(value, VectorValue) and value.length != places.length:
            raise self.report.error("scatter has as many values as positions", e.span)
        kind: Elem = arithmetic(value.elem)
        if isinstance(base, VectorValue):
            length, under, elem = base.length, base.body, base.elem
            kind = arithmetic(elem)
        else:
            length, under, elem = self.length(base, "a scatter", onto), ir.const(0, kind), kind
        put = value.body if isinstance(value, VectorValue) else value.expr
        name = self.names.fresh(self.wish.format("scatter"))
        self.bindings.append(
            ir.Scatter(
                name,
                elem,
                length,
                under,
                places.length,
                ir.as_elem(places.body, INT),
                ir.as_elem(put, elem),
                places.name in self.received,
            )
        )
        self.lengths[name] = length
        return named(name, elem, length)

    def table(self, e: s.Table) -> VectorValue:
        """Type a table of constants: of int, or of float if one entry is."""
        entries = [scalar(self, x, "an entry of a table") for x in e.entries]
        elem = FLOAT if any(x.expr.type == FLOAT for x in entries) else INT
        values = [as_type(x, elem).expr for x in entries]
        if not all(isinstance(v, ir.Const) for v in values):
            raise self.report.error("a table has constants only", e.span)
        return self.constants(self.wish.format("table"), elem, values)

    def _search(self, e: s.Call) -> Value:
        table, what = self.args(e, 2, 2, "search({0, 0.5, 1}, value)")
        entries = self.vector(table)
        if entries.name not in self.tables or entries.length != self.lengths[entries.name]:
            raise self.report.error(
                "search looks in a table of constants",
                table.span,
                hint="declare it: float* levels = {0, 0.25, 0.5, 1};",
            )
        looked = operand(self, what)
        if FLOAT in (arithmetic(looked.elem), arithmetic(entries.elem)):
            entries = self.constants("table", FLOAT, self.tables[entries.name or ""].values)
        kind = arithmetic(entries.elem)
        name = entries.name or ""
        values = [v.value for v in self.tables[name].values if isinstance(v, ir.Const)]
        if not all(a <= b for a, b in itertools.pairwise(values)):
            hint = "write its entries in that order"
            raise self.report.error("search needs a table in ascending order", table.span, hint=hint)
        return lift(
            self,
            e.span,
            lambda x: ScalarValue(ir.Search(name, as_type(x, kind).expr), INT),
            looked,
        )
