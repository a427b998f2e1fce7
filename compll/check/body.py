"""The bodies of Encode and Decode: their formals, the payload, states and the output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from compll import ir
from compll import syntax as s
from compll.check.expressions import expression, length_text
from compll.check.operators import GRADIENT, Names
from compll.check.payload import PayloadCalls, Written
from compll.check.signature import Signature
from compll.check.values import (
    Abandon,
    FunctionValue,
    Payload,
    Record,
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


class Body(PayloadCalls):
    """Checks one function of a codec and collects its bindings.

    For an Encode, `decoder` is the file's Decode, which `decode(compressed)` runs on the fields as stored;
    for that run of a Decode `within` it, `stored` holds those fields.  A Decode is held against what its
    Encode has `written`.
    """

    def __init__(
        self,
        sig: Signature,
        report: Reporter,
        static: Mapping[str, float | int | bool],
        params: Sequence[ir.Parameter],
        *,
        within: Body | None = None,
        decoder: Signature | None = None,
        written: Written | None = None,
        stored: Payload | None = None,
        feedback: bool = False,
    ) -> None:
        """Bind the formals."""
        file_scope = Scope()
        self.params, self.decoder, self.feedback = tuple(params), decoder, feedback
        self.states = (*sig.states, "residual") if feedback else sig.states
        taken = (
            GRADIENT,
            *self.states,
            *(p.name for p in params),
            *(f.name for f in (written.fields if written else ())),
            *(c.name for c in (written.counts if written else ())),
        )
        super().__init__(
            sig, report, static, file_scope, within.names if within else Names(taken), written, stored
        )
        self.output: VectorValue | None = None
        self.updates: dict[str, VectorValue] = {}
        self.decoded = ""
        if within is not None:
            self.bindings, self.lengths, self.most = within.bindings, within.lengths, within.most
            self.ascending, self.tables, self.narrow = within.ascending, within.tables, within.narrow
        self._bind_file(file_scope)
        self._bind_formals()

    # --- names ----------------------------------------------------------------------------------

    def _bind_file(self, scope: Scope) -> None:
        """Enter the functions of the file and run its declarations, for this function of the codec alone."""
        for f in self.sig.program.functions:
            if f is not self.sig.function and not f.name.endswith(("Encode", "Decode")):
                if f.name in scope.functions:
                    self.report.error(f"the function '{f.name}' is defined twice", f.span)
                scope.functions[f.name] = FunctionValue(f.name, f, scope)
        inside, self.scope = self.scope, scope
        self.run(self.sig.program.variables)
        self.scope = inside

    def _bind_formals(self) -> None:
        sig, names = self.sig, self.scope.names
        n = ir.Size()
        members = {}
        for p in self.params:
            if p.name not in {a.name for a in sig.params}:
                continue
            kind = arithmetic(p.elem)
            known = p.name in self.static
            e = ir.const(self.static[p.name], p.elem) if known else ir.Param(p.name, kind)
            members[p.name] = Variable(p.elem, False, ScalarValue(e, p.elem, copy_of=p.name), writable=False)
        if sig.record:
            members = {sig.record: Variable(None, False, Record(sig.record, members), writable=False)}
        names.update(members)
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
            hint = f"assign it once, outside: {name} = condition ? a : b;"
            raise self.report.error(
                f"'{name}' cannot be assigned under an 'if' that depends on data", span, hint=hint
            )
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

    def decode_stored(self, e: s.Call) -> VectorValue:
        """Type decode(compressed): run the Decode on the fields as stored."""
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
        values = payload.fields
        scalars = {
            f.name: v.expr
            for f, v in zip(self.fields or (), values, strict=True)
            if isinstance(v, ScalarValue)
        }
        inner = Body(
            self.decoder,
            self.report,
            self.static,
            self.params,
            within=self,
            written=Written(self.fields or (), (), scalars),
            stored=payload,
        )
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
        if sig.op == "decode" and not self.extracted and clean:
            hint = f"begin with 'extract({sig.compressed}, ...);'"
            self.report.error(f"'{sig.function.name}' never reads '{sig.compressed}'", span, hint=hint)
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
            narrow=tuple(dict.fromkeys(self.narrow)),
        )

    def _add_feedback(self) -> None:
        """Keep what the payload loses: residual = x - decode(compressed) (Seide et al. 2014)."""
        call = s.Call(
            self.sig.function.span, "decode", None, (s.Name(self.sig.function.span, self.sig.compressed),)
        )
        x = self.scope.names[self.sig.gradient].value
        try:
            decoded = self.decode_stored(call)
        except Abandon:
            return
        if not isinstance(x, VectorValue):
            return
        rest = ir.apply("-", x.body, decoded.body)
        kept = ir.apply("select", ir.apply("<=", ir.apply("abs", rest), LARGEST), rest, ir.const(0, FLOAT))
        self.updates["residual"] = self.bind_vector("residual", VectorValue(FLOAT, ir.Size(), kept))
