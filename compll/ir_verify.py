"""What every function in the IR must fulfil, checked after the checker and after each pass."""

from __future__ import annotations

from compll import ir
from compll.ops import OPS
from compll.types import BOOL, FLOAT, INT, UINT64, Elem, arithmetic


class InternalError(AssertionError):
    """The compiler broke its own rules: a bug of ours, never the user's."""


def verify(f: ir.Function, after: str) -> ir.Function:
    """Return `f` if it is well formed: names defined before use and once, types agreeing, targets known."""
    _Verifier(f, after).run()
    return f


class _Verifier:
    def __init__(self, f: ir.Function, after: str) -> None:
        self.f, self.after = f, after
        known = f.counts if not f.writes_payload else ()  # a payload begins with its counts
        self.scalars: dict[str, Elem] = {c.name: INT for c in known}
        self.vectors = dict(f.vectors)
        self.fields = {field.name: field for field in f.layout}
        self.readable = {field.name: field.elem for field in f.fields_read}

    def need(self, true: bool, what: str) -> None:
        if not true:
            raise InternalError(f"{self.f.codec}.{self.f.op} after {self.after}: {what}")

    def run(self) -> None:
        for b in self.f.body:
            self.binding(b)

    def binding(self, b: ir.Binding) -> None:
        match b:
            case ir.Let(name, value):
                self.expr(value)
                self.define(name, value.type)
            case ir.Map(name, elem, length, body):
                self.expr(length)
                self.expr(body)
                self.need(body.type == arithmetic(elem), f"map {name} has type {body.type}, not {elem}")
                self.need(name not in self.vectors, f"vector {name} is defined twice")
                self.vectors[name] = elem
            case ir.Reduce(name, combine, init, length, body):
                for e in (init, length, body):
                    self.expr(e)
                self.expr(combine.body, {"a": combine.type, "b": combine.type})
                kinds = {combine.type, combine.body.type, init.type, body.type}
                self.need(len(kinds) == 1, f"reduce {name} mixes {kinds}")
                self.define(name, combine.type)
            case ir.BlockReduce(name, combine, init, block, length, body):
                for e in (init, length, body):
                    self.expr(e)
                self.expr(combine.body, {"a": combine.type, "b": combine.type})
                kinds = {combine.type, combine.body.type, init.type, body.type}
                self.need(len(kinds) == 1 and block > 0, f"reduce {name} by {block} mixes {kinds}")
                self.need(name not in self.vectors, f"vector {name} is defined twice")
                self.vectors[name] = combine.type
            case ir.Filter(name, count, _, body, _):
                self.all(b)
                self.need(body.type == BOOL, f"filter {name} by a {body.type}")
                self.vector(name, INT)
                self.define(count, INT)
            case ir.TopK(name, _, _, k, _):
                self.all(b)
                self.need(k.type == INT, f"topk {name} of {k.type}")
                self.vector(name, INT)
            case ir.Sort(name, length, body, key, _, _):
                self.expr(length)
                self.expr(body)
                self.expr(key, {"a": body.type})
                self.vector(name, body.type)
            case ir.Scatter(name, elem, _, base, count, index, value, _):
                self.all(b)
                kinds = {base.type, value.type, arithmetic(elem)}
                self.need(
                    len(kinds) == 1 and {count.type, index.type} == {INT}, f"scatter {name} mixes {kinds}"
                )
                self.vector(name, elem)
            case ir.Table(name, elem, values):
                same = all(isinstance(v, ir.Const) and v.type == arithmetic(elem) for v in values)
                self.need(same, f"table {name} is not constant")
                self.vector(name, elem)
            case ir.Store(target, elem, length, body):
                self.expr(length)
                self.expr(body)
                self.need(body.type == arithmetic(elem), f"store {target.name} has type {body.type}")
                if target.kind == "vector":
                    self.vector(target.name, elem)
                self.target(target)
            case ir.Patch(target, elem, _, index, body):
                self.all(b)
                self.need(body.type == arithmetic(elem), f"patch {target.name} has type {body.type}")
                self.need(index.type == INT, f"patch {target.name} at {index.type}")
                self.target(target)
            case ir.Keep(name, _, body, carried):
                self.all(b)
                self.need(body.type == BOOL, f"keep {name} by a {body.type}")
                self.vector(name, BOOL)
                for vector, e in carried:
                    self.vector(vector, e.type)
            case ir.Compact(name, count, _, _, _, kept):
                self.all(b)
                self.vector(name, INT)
                self.define(count, INT)
                for vector, read in kept:
                    self.vector(vector, read.type)
            case ir.Select(name):
                self.all(b)
                self.vector(name, INT)
            case ir.Arrange(name, _, values):
                self.all(b)
                self.vector(name, values.type)
            case ir.Nth(name, _, values):
                self.all(b)
                self.define(name, values.type)
            case ir.Ascends():
                self.all(b)
            case ir.Finite(_, body):
                self.all(b)
                self.need(body.type == FLOAT, f"{body.type} is always finite")
            case ir.Put(field, elem, value):
                self.expr(value)
                self.need(field in self.fields and value.type == arithmetic(elem), f"put {field}")
            case ir.Get(name, field, elem):
                self.need(self.readable.get(field) == elem, f"get {field}")
                self.define(name, arithmetic(elem))
            case ir.Guard(_, read, expected):
                self.expr(read)
                self.expr(expected)
            case ir.Pass(length, sinks, block):
                lengths = {length, ir.blocks(length, block)} if block else {length}
                for sink in sinks:
                    self.need(sink.length in lengths, "a pass mixes lengths")
                before = dict(self.scalars)
                for sink in sinks:  # no sink may use what another one of the same pass reduces
                    after, self.scalars = self.scalars, dict(before)
                    self.binding(sink)
                    self.scalars = after | self.scalars

    def all(self, b: ir.Binding) -> None:
        for e in ir.expressions(b):
            self.expr(e)

    def target(self, target: ir.Target) -> None:
        known = {
            "field": self.fields,
            "state": self.f.states,
            "output": ("gradient",),
            "vector": self.vectors,
        }[target.kind]
        self.need(target.name in known, f"unknown target {target.kind} {target.name}")

    def vector(self, name: str, elem: Elem) -> None:
        self.need(name not in self.vectors, f"vector {name} is defined twice")
        self.vectors[name] = elem

    def define(self, name: str, kind: Elem) -> None:
        self.need(name not in self.scalars, f"scalar {name} is defined twice")
        self.scalars[name] = kind

    def expr(self, e: ir.Expr, local: dict[str, Elem] | None = None) -> None:
        scalars = self.scalars | (local or {})
        params = {p.name: arithmetic(p.elem) for p in self.f.params} | {
            ir.SCALE: FLOAT,
            ir.SHARED_SEED: UINT64,
        }
        for node in ir.walk(e):
            match node:
                case ir.Scalar(name, kind):
                    self.need(scalars.get(name) == kind, f"scalar {name} is used before it is defined")
                case ir.Param(name, kind):
                    self.need(params.get(name) == kind, f"unknown parameter {name}")
                case ir.Read(vector, position, kind):
                    elem = self.vectors.get(vector)
                    self.need(elem is not None and arithmetic(elem) == kind, f"unknown vector {vector}")
                    self.need(position.type == INT, f"{vector} is read at a position that is no int")
                case ir.Search(table, arg, _):
                    elem = self.vectors.get(table)
                    self.need(elem is not None and arithmetic(elem) == arg.type, f"unknown table {table}")
                case ir.Apply(op, args, kind):
                    entry = OPS[op]
                    self.need(len(args) == entry.arity, f"{op} has {len(args)} operands")
                    operands = args[1:] if op == "select" else args
                    self.need(op != "select" or args[0].type == BOOL, "select without a condition")
                    same = (
                        all(a.type == operands[0].type for a in operands) and operands[0].type in entry.takes
                    )
                    self.need(same, f"{op} on {[str(a.type) for a in args]}")
                    self.need(kind == (entry.gives or operands[0].type), f"{op} gives {kind}")
