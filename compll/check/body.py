"""The bodies of Encode and Decode: their formals, the payload, states and the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compll import ir
from compll import syntax as s
from compll.check.expressions import as_type, element_type, expression, length_text, operand, scalar
from compll.check.operators import GRADIENT, Names
from compll.check.selection import Selection
from compll.check.signature import Signature
from compll.check.values import (
    Abandon,
    Broken,
    FunctionValue,
    Payload,
    Reporter,
    ScalarValue,
    Scope,
    Unset,
    Value,
    Variable,
    VectorValue,
    describe,
    named,
)
from compll.errors import Span
from compll.types import FLOAT, UINT8, UINT64, Elem, arithmetic

LARGEST = ir.const(float.fromhex("0x1.fffffep+127"), FLOAT)


class Body(Selection):
    """Checks one function of a codec and collects its bindings.

    For an Encode, `decoder` is the file's Decode, which `decode(compressed)` runs on the fields as stored;
    for that run of a Decode, `stored` holds those fields.  `fields` is the payload's layout: an Encode
    writes it, a Decode is held against the one that its Encode wrote.
    """

    def __init__(
        self,
        sig: Signature,
        report: Reporter,
        static: Mapping[str, float | int | bool],
        params: Sequence[ir.Parameter],
        *,
        names: Names | None = None,
        decoder: Signature | None = None,
        fields: tuple[ir.Field, ...] | None = None,
        counts: tuple[ir.Count, ...] = (),
        stored: Payload | None = None,
        feedback: bool = False,
    ) -> None:
        """Bind the formals."""
        file_scope = Scope()
        self.params, self.decoder, self.stored, self.feedback = tuple(params), decoder, stored, feedback
        self.states = (*sig.states, "residual") if feedback else sig.states
        taken = (
            GRADIENT,
            *self.states,
            *(p.name for p in params),
            *(f.name for f in fields or ()),
            *(c.name for c in counts),
        )
        super().__init__(sig, report, static, file_scope, names or Names(taken))
        self.fields, self.counts = fields, counts
        self.output: VectorValue | None = None
        self.updates: dict[str, VectorValue] = {}
        self.decoded = ""
        self._bind_file(file_scope)
        self._bind_formals()

    # --- names ----------------------------------------------------------------------------------

    def _bind_file(self, scope: Scope) -> None:
        for declaration in self.sig.program.variables:
            elem = element_type(self, declaration.type)
            for d in declaration.declarators:
                vector = declaration.type.vector
                value: Value = Unset(elem, vector)
                if d.value is not None:
                    value = as_type(scalar(self, d.value, "a file-level value"), elem)
                if d.name in scope.names:
                    self.report.error(f"'{d.name}' is declared twice", d.span)
                scope.names[d.name] = Variable(elem, vector, value)
        for f in self.sig.program.functions:
            if f is not self.sig.function and not f.name.endswith(("Encode", "Decode")):
                if f.name in scope.functions:
                    self.report.error(f"the function '{f.name}' is defined twice", f.span)
                scope.functions[f.name] = FunctionValue(f.name, f, scope)

    def _bind_formals(self) -> None:
        sig, names = self.sig, self.scope.names
        n = ir.Size()
        for p in self.params:
            if p.name not in {a.name for a in sig.params}:
                continue
            kind = arithmetic(p.elem)
            known = p.name in self.static
            e = ir.const(self.static[p.name], p.elem) if known else ir.Param(p.name, kind)
            names[p.name] = Variable(p.elem, False, ScalarValue(e, p.elem), writable=False)
        if sig.key:
            key = ScalarValue(ir.Param(ir.SHARED_SEED, UINT64), UINT64)
            names[sig.key] = Variable(UINT64, False, key, writable=False)
        for state in sig.states:
            names[state] = Variable(FLOAT, True, named(state, FLOAT, n))
        encode = sig.op == "encode"
        gradient = named(GRADIENT, FLOAT, n)
        if self.feedback:
            total = ir.apply("+", gradient.body, named("residual", FLOAT, n).body)
            gradient = self.bind_vector("x", VectorValue(FLOAT, n, total))
        value = gradient if encode else Unset(FLOAT, True, n)
        names[sig.gradient] = Variable(FLOAT, True, value, writable=not encode)
        compressed = Payload(None) if encode else (self.stored or Payload(()))
        names[sig.compressed] = Variable(UINT8, True, compressed, writable=encode)

    def assign_special(self, name: str, value: Value, span: Span) -> bool:
        """Assign the payload, the output or a state."""
        variable = self.scope.find(name)
        encode = self.sig.op == "encode"
        if variable is None or (
            self.running or name not in {self.sig.compressed, self.sig.gradient, *self.sig.states}
        ):
            return False
        if self.conditional:
            raise self.report.error(f"'{name}' cannot be assigned under an 'if' that depends on data", span)
        if name == self.sig.compressed:
            if not isinstance(value, Payload):
                raise self.report.error(f"'{name}' is assigned concat(...), not {describe(value)}", span)
            variable.value = value
            return True
        if not isinstance(value, VectorValue):
            raise self.report.error(f"'{name}' is a float* and cannot hold {describe(value)}", span)
        if value.length != ir.Size():
            raise self.report.error(
                f"'{name}' has gradient.size elements and is assigned {length_text(value.length)}", span
            )
        converted = VectorValue(FLOAT, value.length, ir.as_elem(value.body, FLOAT))
        if encode:  # a state never holds NaN or infinity: 0 is stored instead
            size = ir.apply("abs", converted.body)
            kept = ir.apply("select", ir.apply("<=", size, LARGEST), converted.body, ir.const(0, FLOAT))
            self.updates[name] = self.bind_vector(name, VectorValue(FLOAT, value.length, kept))
            variable.value = self.updates[name]
        else:
            self.output = variable.value = self.bind_vector("decoded", converted)
        return True

    def payload_call(self, e: s.Call) -> Value:
        """Type concat, extract or decode."""
        if e.name == "concat":
            return self._concat(e)
        return self._extract(e) if e.name == "extract" else self._decode(e)

    # --- the payload ----------------------------------------------------------------------------

    def _concat(self, e: s.Call) -> Payload:
        compressed = self.scope.find(self.sig.compressed)
        if self.sig.op != "encode" or compressed is None:
            raise self.report.error("'concat' belongs to an Encode", e.span)
        if not isinstance(compressed.value, Payload) or compressed.value.fields is not None:
            raise self.report.error("a second concat: a payload is put together once", e.span)
        fields: list[ir.Field] = []
        stored: list[ScalarValue | VectorValue] = []
        taken = {GRADIENT, *self.states}  # the vectors of the IR that are no fields
        for at, arg in enumerate(self.args(e, 1, 64, "compressed = concat(a, b, ...)")):
            value = operand(self, arg)
            wish = arg.name if isinstance(arg, s.Name) else f"field{at}"
            name = wish if wish not in taken else f"{wish}_{at}"
            taken.add(name)
            if isinstance(value, VectorValue):
                vector = self.bind_vector(name, value)
                self.bindings.append(
                    ir.Store(ir.Target("field", name), value.elem, value.length, vector.body)
                )
                fields.append(ir.Field(name, value.elem, value.length))
                stored.append(vector)
                self._count(value.length, arg.span)
            else:
                kept = self.bind_scalar(name, as_type(value, value.elem))
                self.bindings.append(ir.Put(name, value.elem, kept.expr))
                fields.append(ir.Field(name, value.elem, None))
                stored.append(kept)
        self.fields = tuple(fields)
        return Payload(tuple(stored))

    def _count(self, length: ir.Expr, span: Span) -> None:
        """Let the payload begin with the sizes that a field's length depends on."""
        known = {c.name for c in self.counts}
        for x in ir.walk(length):
            if isinstance(x, ir.Scalar) and x.name not in known:
                if x.name not in self.most:
                    raise self.report.error("the length of this field is not known to Decode", span)
                self.counts += (ir.Count(x.name, self.most[x.name]),)
                known.add(x.name)

    def _extract(self, e: s.Call) -> Payload:
        source = expression(self, e.args[0]) if e.args else None
        if self.sig.op != "decode" or not isinstance(source, Payload):
            raise self.report.error(
                "'extract' reads the payload in a Decode", e.span, hint="extract(compressed, a, b)"
            )
        variables = [self._destination(a) for a in e.args[1:]]
        if (
            self.fields is None
        ):  # a Decode without its Encode: vectors are taken to be as long as the gradient
            kinds = [(v.elem or FLOAT, ir.Size() if v.vector else None) for _, v in variables]
            self.fields = tuple(
                ir.Field(f"{name}_1" if name == GRADIENT else name, elem, length)
                for (name, _), (elem, length) in zip(variables, kinds, strict=True)
            )
            self.names.taken.update(f.name for f in self.fields)
        if len(variables) != len(self.fields):
            for _, v in variables:
                v.value = Broken()
            raise self.report.error(
                f"Encode writes {_some(len(self.fields), 'field')} and this reads {len(variables)}",
                e.span,
                note="Encode writes " + ", ".join(_kind(f) for f in self.fields),
            )
        given: Sequence[ScalarValue | VectorValue | None] = [None] * len(variables)
        if self.stored is not None:
            given = self.stored.fields or ()
        for (name, v), field, value, arg in zip(variables, self.fields, given, e.args[1:], strict=True):
            if (v.elem, v.vector) != (field.elem, field.length is not None):
                for _, other in variables:
                    other.value = Broken()
                wants = f"{v.elem}{'*' if v.vector else ''}"
                raise self.report.error(
                    f"Encode writes {_kind(field)} here, and this reads it as {wants} {name}", arg.span
                )
            v.value = value if value is not None else self._field(name, v, field)
        return source

    def _destination(self, e: s.Expr) -> tuple[str, Variable]:
        variable = self.scope.find(e.name) if isinstance(e, s.Name) else None
        if variable is None or not isinstance(e, s.Name):
            raise self.report.error(
                "extract fills declared variables", e.span, hint="declare it first: float x;"
            )
        if isinstance(variable.value, Broken):
            raise Abandon
        return e.name, variable

    def _field(self, name: str, v: Variable, field: ir.Field) -> Value:
        """Read one field; a field read into a parameter must equal it."""
        if field.length is not None:
            self.lengths[field.name] = field.length
            self.received.add(field.name)
            if field.elem.kind in ("int", "uint"):
                self.ascending.add(field.name)  # the decoder checks it where a scatter uses it
            return named(field.name, field.elem, field.length)
        fresh = self.names.fresh(name if v.writable else f"{name}_read")
        self.bindings.append(ir.Get(fresh, field.name, field.elem))
        read = ScalarValue(ir.Scalar(fresh, arithmetic(field.elem)), field.elem)
        if v.writable:
            return read
        if not isinstance(v.value, ScalarValue):
            raise Abandon
        self.bindings.append(ir.Guard(name, read.expr, v.value.expr))
        return v.value

    def _decode(self, e: s.Call) -> VectorValue:
        (arg,) = self.args(e, 1, 1, "decode(compressed)")
        payload = expression(self, arg)
        if self.sig.op != "encode" or not isinstance(payload, Payload):
            raise self.report.error("'decode(compressed)' belongs to an Encode", e.span)
        if payload.fields is None:
            raise self.report.error("'decode(compressed)' stands after 'compressed = concat(...)'", e.span)
        if self.decoder is None:
            raise self.report.error(
                "'decode(compressed)' needs the Decode, which this file does not have", e.span
            )
        names = self.names
        inner = Body(
            self.decoder,
            self.report,
            self.static,
            self.params,
            names=names,
            fields=self.fields,
            stored=payload,
        )
        inner.bindings, inner.lengths, inner.most = self.bindings, self.lengths, self.most
        inner.ascending, inner.tables = self.ascending, self.tables
        inner.run(self.decoder.function.body.body)
        if inner.output is None:
            raise Abandon  # the Decode is checked by itself, and complains there
        self.decoded = inner.output.name or ""
        return inner.output

    # --- the whole ------------------------------------------------------------------------------

    def finish(self) -> ir.Function:
        """Run the body and return the function."""
        sig, span = self.sig, self.sig.function.span
        errors = len(self.report.diagnostics)
        self.run(sig.function.body.body)
        clean = len(self.report.diagnostics) == errors
        if sig.op == "encode" and self.fields is None and clean:
            hint = f"end with '{sig.compressed} = concat(...);'"
            self.report.error(f"'{sig.function.name}' never writes '{sig.compressed}'", span, hint=hint)
        if sig.op == "decode" and self.output is None and clean:
            self.report.error(f"'{sig.function.name}' never assigns '{sig.gradient}'", span)
        for name, place, at in self.indexed:
            if name in self.updates and place != ir.Position():
                self.report.error(
                    f"the state '{name}' is assigned, and is read at another element's position",
                    at,
                    hint="its new value may be stored in the same memory: read it at the element's own index",
                )
        if self.feedback and self.fields is not None:
            self._add_feedback()
        for name, vector in self.updates.items():
            self.bindings.append(ir.Store(ir.Target("state", name), FLOAT, vector.length, vector.body))
        if self.output is not None:
            self.bindings.append(ir.Store(ir.Target("output", GRADIENT), FLOAT, ir.Size(), self.output.body))
        if sig.op == "encode":
            gradient = named(GRADIENT, FLOAT, ir.Size())
            self.bindings.append(ir.Finite(gradient.length, gradient.body))
        fields = self.fields or ()
        vectors: list[tuple[str, Elem]] = [(GRADIENT, FLOAT), *((state, FLOAT) for state in self.states)]
        if sig.op == "decode":
            vectors = [(f.name, f.elem) for f in fields if f.length is not None]
        return ir.Function(
            codec=sig.codec,
            op=sig.op,
            params=self.params,
            states=self.states if sig.op == "encode" else (),
            layout=fields,
            vectors=tuple(vectors),
            body=tuple(self.bindings),
            random=self.random,
            decoded=self.decoded,
            counts=self.counts,
        )

    def _add_feedback(self) -> None:
        """Keep what the payload loses: residual = x - decode(compressed) (Seide et al. 2014)."""
        call = s.Call(
            self.sig.function.span, "decode", None, (s.Name(self.sig.function.span, self.sig.compressed),)
        )
        x = self.scope.names[self.sig.gradient].value
        try:
            decoded = self._decode(call)
        except Abandon:
            return
        if not isinstance(x, VectorValue):
            return
        rest = ir.apply("-", x.body, decoded.body)
        kept = ir.apply("select", ir.apply("<=", ir.apply("abs", rest), LARGEST), rest, ir.const(0, FLOAT))
        self.updates["residual"] = self.bind_vector("residual", VectorValue(FLOAT, ir.Size(), kept))


def _some(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _kind(field: ir.Field) -> str:
    return f"{field.elem}{'*' if field.length is not None else ''} {field.name}"
