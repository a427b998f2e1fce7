"""Which functions of the files are the codec, and what their formals mean."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields

from compll import syntax as s
from compll.check.values import Abandon, Reporter
from compll.errors import Span, did_you_mean, unknown_type
from compll.types import NAMED

DECLARED = ("unbiased", "no_hop", "drops")
RESERVED = ("backend", "error_feedback")
PARTS: dict[type[s.Node], tuple[str, ...]] = {  # the fields that may hold nodes, the last one first
    kind: tuple(f.name for f in reversed(fields(kind)) if f.name not in ("span", "name"))
    for kind in vars(s).values()
    if isinstance(kind, type) and issubclass(kind, s.Node)
}


@dataclass(frozen=True)
class Signature:
    """An encode or decode function with the meaning of its formals."""

    program: s.Program
    function: s.Function
    codec: str
    op: str
    gradient: str
    compressed: str
    states: tuple[str, ...]
    key: str
    params: tuple[s.Formal, ...]
    declared: frozenset[str]
    record: str = ""  # the formal that is a `param` struct, whose members the hyper-parameters are

    def parameter(self, e: object) -> str:
        """Return the hyper-parameter that an expression names, `ratio` or `params.ratio`; "" for others."""
        if self.record and isinstance(e, s.Member) and isinstance(e.value, s.Name):
            name = e.name if e.value.name == self.record else ""
        else:
            name = e.name if isinstance(e, s.Name) and not self.record else ""
        return name if any(p.name == name for p in self.params) else ""


def find_codec(programs: Sequence[s.Program], report: Reporter) -> tuple[Signature | None, Signature | None]:
    """Find `<Name>Encode` and `<Name>Decode` in one file, or one in each of two."""
    found: dict[str, Signature] = {}
    for program in programs:
        for function in program.functions:
            op = next((op for op in ("Encode", "Decode") if function.name.endswith(op)), None)
            if op is None or function.name == op:
                continue
            if op in found:
                first = found[op].function
                report.error(
                    f"a second {op} function, '{function.name}'",
                    function.span,
                    note=f"the first is '{first.name}' at {first.span.file}:{first.span.line}",
                    hint="a codec is one pair <Name>Encode, <Name>Decode",
                )
                continue
            try:
                found[op] = _signature(program, function, op, report)
            except Abandon:
                continue
    encode, decode = found.get("Encode"), found.get("Decode")
    if not found and not report.diagnostics:
        report.error(
            "no codec in this file",
            programs[0].span,
            hint="write 'void <Name>Encode(float* gradient, uint8* compressed)' and '<Name>Decode'",
        )
    if encode and decode and encode.codec != decode.codec:
        a, b = encode.function.name, decode.function.name
        report.error(
            f"'{a}' and '{b}' are not a pair", decode.function.span, hint=f"name it '{a[:-6]}Decode'"
        )
    return encode, decode


def _signature(program: s.Program, f: s.Function, op: str, report: Reporter) -> Signature:
    want = [("float", True), ("uint8", True)]
    shape = "float* gradient, uint8* compressed"
    if op == "Decode":
        want, shape = want[::-1], "uint8* compressed, float* gradient"
    known = {*NAMED, *(x.name for x in program.structures)}
    wrong = [a.type for a in f.formals if a.type.name not in {*known, "void", "uint"}]
    report.diagnostics.extend(unknown_type(t.name, t.span, known) for t in wrong)
    if wrong:
        raise Abandon
    begins = [(a.type.name, a.type.vector) for a in f.formals[:2] if a.role == ""]
    if begins != want or f.type.name != "void":
        raise report.error(
            f"'{f.name}' does not begin as {'an Encode' if op == 'Encode' else 'a Decode'} does",
            f.span,
            hint=f"write 'void {f.name}({shape}, ...)'",
        )
    first, second, *given = f.formals
    gradient, compressed = (first, second) if op == "Encode" else (second, first)
    record, rest = _members(program, given, report)
    for name in {a.name for a in f.formals if [b.name for b in f.formals].count(a.name) > 1}:
        report.error(f"two formals are called '{name}'", f.span)
    declared = set()
    for attribute in f.attributes:
        if attribute.name not in DECLARED or op == "Decode":
            where = "before a Decode" if attribute.name in DECLARED else ""
            hint = (
                did_you_mean(attribute.name, DECLARED)
                or "before an Encode stand [[unbiased]], [[no_hop]], [[drops]]"
            )
            report.error(f"unknown attribute '{attribute.name}' {where}".rstrip(), attribute.span, hint=hint)
        elif attribute.args:
            report.error(f"[[{attribute.name}]] takes no arguments", attribute.span)
        declared.add(attribute.name)
    params: list[s.Formal] = []
    for a in rest:
        if a.role == "state" and (op == "Decode" or a.type.name != "float" or not a.type.vector):
            report.error("a state is a 'state float* name' of Encode", a.span)
        elif a.role == "state" and a.name == "gradient":
            report.error(
                "a state cannot be called 'gradient' unless the gradient is", a.span, hint="rename the state"
            )
        elif a.role and (a.attributes or a.default is not None):
            report.error(f"'{a.name}' takes neither a default nor attributes", a.span)
        elif a.role == "shared" and (a.type.name != "uint64" or a.type.vector):
            report.error("the shared key is a 'shared uint64 name'", a.span)
        elif a.role == "shared" and a is not next(b for b in rest if b.role == "shared"):
            report.error("a second shared key: there is one shared seed", a.span)
        elif a.role == "" and (a.type.vector or a.type.name == "void"):
            report.error(
                f"the hyper-parameter '{a.name}' is no scalar",
                a.span,
                hint="state vectors are written 'state float* name'",
            )
        elif a.role == "" and a.name in RESERVED:
            report.error(f"'{a.name}' is an argument of compile() and cannot be a parameter", a.span)
        elif a.role == "" and a.name not in {p.name for p in params}:
            params.append(a)
    states = tuple(a.name for a in rest if a.role == "state")
    key = next((a.name for a in rest if a.role == "shared"), "")
    name = f.name[: -len(op)].lower()
    return Signature(
        program,
        f,
        name,
        op.lower(),
        gradient.name,
        compressed.name,
        states,
        key,
        tuple(params),
        frozenset(declared),
        record,
    )


def _members(program: s.Program, given: Sequence[s.Formal], report: Reporter) -> tuple[str, list[s.Formal]]:
    """Return the formal that is a struct, if one is, and the formals with its members in its place."""
    structures = {x.name: x for x in reversed(program.structures)}
    for x in program.structures:
        if structures[x.name] is not x:
            report.error(f"a second struct '{x.name}'", x.span, hint="give it another name")
        for m in x.members:
            if [b.name for b in x.members].count(m.name) > 1:
                report.error(f"'{x.name}' has two members '{m.name}'", m.span)
    records = [a for a in given if a.type.name in structures and not a.role]
    scalars = [a for a in given if not a.role and a not in records]
    for a in (*records[1:], *(scalars if records else ())):
        report.error(
            "hyper-parameters are scalars or the members of one struct",
            a.span,
            hint=f"make '{a.name}' a member of '{records[0].type.name}'"
            if a in scalars
            else f"make its members members of '{records[0].type.name}'",
        )
    for a in records[:1]:
        if a.type.vector or a.attributes or a.default is not None:
            report.error(f"a struct is given as '{a.type.name} {a.name}' alone", a.span)
        rest = [b for b in given if b not in records[1:]]
        return a.name, [m for b in rest for m in (structures[a.type.name].members if b is a else (b,))]
    return "", list(given)


def read_widths(sig: Signature) -> dict[str, int]:
    """Return the variables of a Decode that are widths and come from the payload: name -> which field."""
    body = tuple(nodes(sig.function.body))
    widths = {n.width.name for n in body if isinstance(n, s.TypeName) and isinstance(n.width, s.Name)}
    extracts = [n for n in body if isinstance(n, s.Call) and n.name == "extract"]
    fields = [(at, a) for n in extracts for at, a in enumerate(n.args[1:])]
    return {
        a.name: at for at, a in fields if isinstance(a, s.Name) and a.name in widths and not sig.parameter(a)
    }


def nodes(node: object) -> Iterator[s.Node]:
    """Yield every syntax node under `node`, in source order."""
    waiting = [node]
    while waiting:
        x = waiting.pop()
        if isinstance(x, tuple):
            waiting.extend(reversed(x))
        elif isinstance(x, s.Node):
            yield x
            waiting.extend(getattr(x, name) for name in PARTS[type(x)])


def random_sites(program: s.Program) -> dict[Span, int]:
    """Number what draws random numbers, in source order.

    `random`, `stochastic_round` and a `sample` without key are numbered together, in the file; samples with
    a key apart, from 0 in Encode and again in Decode.
    """
    private = [n for n in nodes(program) if isinstance(n, s.Call) and _draws(n) and not _is_keyed(n)]
    numbered = {n.span: i for i, n in enumerate(sorted(private, key=_place))}
    for f in program.functions:
        keyed = [n for n in nodes(f.body) if isinstance(n, s.Call) and _is_keyed(n)]
        numbered |= {n.span: i for i, n in enumerate(sorted(keyed, key=_place))}
    return numbered


def _draws(call: s.Call) -> bool:
    return call.name in ("random", "stochastic_round", "sample")


def _is_keyed(call: s.Call) -> bool:
    return call.name == "sample" and len(call.args) == 3


def _place(node: s.Node) -> tuple[int, int]:
    return node.span.line, node.span.column
