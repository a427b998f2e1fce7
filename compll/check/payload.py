"""The payload: concat puts it together, extract takes it apart again, field by field."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from compll import ir
from compll import syntax as s
from compll.check.expressions import WIDTHS, as_type, expression, operand
from compll.check.operators import GRADIENT, Names
from compll.check.selection import Selection
from compll.check.signature import Signature, read_widths
from compll.check.values import (
    Abandon,
    Broken,
    Payload,
    Record,
    Reporter,
    ScalarValue,
    Scope,
    Value,
    Variable,
    VectorValue,
    named,
)
from compll.errors import Span
from compll.types import FLOAT, INT, arithmetic


@dataclass(frozen=True)
class Written:
    """What an Encode puts into a payload: the fields, the counts before them, the values of the scalars."""

    fields: tuple[ir.Field, ...]
    counts: tuple[ir.Count, ...]
    scalars: Mapping[str, ir.Expr]

    @classmethod
    def by(cls, encode: ir.Function) -> Written:
        """Return what a typed Encode writes."""
        scalars = {b.field: b.value for b in encode.body if isinstance(b, ir.Put)}
        return cls(encode.layout, encode.counts, scalars)


class PayloadCalls(Selection):
    """The operators that write a payload in Encode and read it in Decode."""

    states: tuple[str, ...]

    def __init__(
        self,
        sig: Signature,
        report: Reporter,
        static: Mapping[str, float | int | bool],
        file_scope: Scope,
        names: Names,
        written: Written | None,
        stored: Payload | None,
    ) -> None:
        """Begin with what Encode has `written`, if this is a Decode; `stored` holds the values themselves."""
        super().__init__(sig, report, static, file_scope, names)
        self.stored = stored
        self.fields = written.fields if written else None
        self.counts = written.counts if written else ()
        self.most.update((c.name, c.most) for c in self.counts)
        self.written = written.scalars if written else {}
        self.extracted = False
        self.copies: list[str] = []  # of which hyper-parameter each field is a copy, "" if of none
        self.read_widths = read_widths(sig) if sig.op == "decode" else {}

    @abstractmethod
    def decode_stored(self, e: s.Call) -> VectorValue:
        """Type decode(compressed): run the Decode on the fields as stored."""

    def payload_call(self, e: s.Call) -> Value:
        """Type concat, extract or decode."""
        if e.name == "concat":
            return self._concat(e)
        return self._extract(e) if e.name == "extract" else self.decode_stored(e)

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
            self.copies.append(value.copy_of if isinstance(value, ScalarValue) else "")
            wish = self.sig.parameter(arg) or (arg.name if isinstance(arg, s.Name) else f"field{at}")
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
        self.extracted = True
        variables = [self._destination(a) for a in e.args[1:]]
        if self.fields is None:  # without Encode: vectors are taken to be as long as the gradient
            kinds = [(v.elem or FLOAT, ir.Size() if v.vector else None) for _, v in variables]
            self.fields = tuple(
                ir.Field(f"{name}_1" if name == GRADIENT else name, elem, length)
                for (name, _), (elem, length) in zip(variables, kinds, strict=True)
            )
            self.names.taken.update(f.name for f in self.fields)
        try:
            self._fill(variables, self.fields, e)
        except Abandon:
            for _, v in variables:
                v.value = Broken()
            raise
        return source

    def _fill(
        self, variables: Sequence[tuple[str, Variable]], fields: tuple[ir.Field, ...], e: s.Call
    ) -> None:
        """Give the variables of an extract the fields of the payload, if these are what Encode wrote."""
        if len(variables) != len(fields):
            raise self.report.error(
                f"Encode writes {_some(len(fields), 'field')} and this reads {len(variables)}",
                e.span,
                note="Encode writes " + ", ".join(_kind(f) for f in fields),
            )
        self._check_widths(variables, e)
        given: Sequence[ScalarValue | VectorValue | None] = [None] * len(variables)
        if self.stored is not None:
            given = self.stored.fields or ()
        for (name, v), field, value, arg in zip(variables, fields, given, e.args[1:], strict=True):
            if (v.elem, v.vector) != (field.elem, field.length is not None):
                wants = f"{v.elem}{'*' if v.vector else ''}"
                raise self.report.error(
                    f"Encode writes {_kind(field)} here, and this reads it as {wants} {name}", arg.span
                )
            read = value if value is not None else self._field(name, v, field)
            if not self.assign_special(name, read, arg.span):
                v.value = read

    def _check_widths(self, variables: Sequence[tuple[str, Variable]], e: s.Call) -> None:
        """Complain of widths that cannot be found in a payload before its vectors are."""
        read = [at for at, (name, _) in enumerate(variables) if name in self.read_widths]
        for at in read:
            name, span = variables[at][0], e.args[at + 1].span
            if at != read[0]:
                hint = f"make '{name}' a hyper-parameter"
                raise self.report.error("a second width that is read from the payload", span, hint=hint)
            if any(v.vector for _, v in variables[:at]):
                hint = f"put it first: concat({name}, ...)"
                raise self.report.error(f"the width '{name}' must stand before every vector", span, hint=hint)

    def _destination(self, e: s.Expr) -> tuple[str, Variable]:
        variable = self.scope.find(e.name) if isinstance(e, s.Name) else None
        if isinstance(e, s.Member) and self.sig.parameter(e):
            record = expression(self, e.value)
            variable = record.members[e.name] if isinstance(record, Record) else None
        if variable is None or not isinstance(e, s.Name | s.Member) or isinstance(variable.value, Record):
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
                self.ascending[field.name] = ir.Size()  # the decoder checks it where a scatter uses it
            return named(field.name, field.elem, field.length)
        fresh = self.names.fresh(name if v.writable else f"{name}_read")
        self.bindings.append(ir.Get(fresh, field.name, field.elem))
        read = ScalarValue(ir.Scalar(fresh, arithmetic(field.elem)), field.elem)
        if v.writable and name not in self.read_widths:
            return read
        expected = ScalarValue(self._width(name), field.elem) if v.writable else v.value
        if not isinstance(expected, ScalarValue):
            raise Abandon
        self.bindings.append(ir.Guard(name, read.expr, expected.expr))
        return expected

    def width_to_read(self, e: s.Name) -> ScalarValue:
        """Return the value of a variable that stands as a width before the payload has been read."""
        if e.name not in self.read_widths:
            raise self.report.error(f"'{e.name}' is used before it is assigned", e.span, hint=WIDTHS)
        return ScalarValue(self._width(e.name), INT)

    def _width(self, name: str) -> ir.Expr:
        """Return what Encode writes where Decode reads a width; alone, a Decode is checked for 8 bits."""
        at = self.read_widths[name]
        field = self.fields[at].name if self.fields and at < len(self.fields) else ""
        return self.written.get(field, ir.const(8, INT))


def _some(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _kind(field: ir.Field) -> str:
    return f"{field.elem}{'*' if field.length is not None else ''} {field.name}"
