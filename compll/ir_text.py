"""The IR as text: one line a binding.  This text is also what a codec's fingerprint is made of."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping

from compll import ir
from compll.types import FLOAT

INFIX = {"+", "-", "*", "/", "%", "&", "|", "^", "<<", ">>", "<", "<=", ">", ">=", "==", "!=", "&&", "||"}

WRITTEN_OUT = 400  # operations; larger formulas name what they repeat


def function_text(f: ir.Function) -> str:
    """Return a function with its parameters, states, payload and body."""
    lines = [f"{f.op} {f.codec}"]
    for p in f.params:
        kind = "static " if p.static else ""
        lines.append(f"  {kind}param {p.name}: {p.elem}")
    lines += [f"  state {name}: float[n]" for name in f.states]
    lines += [f"  count {c.name}: at most {text(c.most)}" for c in f.counts]
    lines += [f"  positions below {text(x.length)} as {x.elem}" for x in f.narrow]
    for field in f.layout:
        lines.append(
            f"  field {field.name}: {field.elem}{_over(field.length) if field.length is not None else ''}"
        )
    lines += [
        f"  received {field.name}: {field.elem}{_over(field.length) if field.length is not None else ''}"
        for field in f.received
    ]
    for b in f.body:
        lines.extend("  " + line for line in binding_lines(b))
    return "\n".join(lines) + "\n"


def binding_lines(b: ir.Binding) -> Iterator[str]:
    """Yield the lines of one binding."""
    lets, text = _sharing(b)
    yield from lets
    match b:
        case ir.Let(name, value):
            yield f"{name}: {value.type} = {text(value)}"
        case ir.Map(name, elem, length, body):
            yield f"{name}: {elem}{_over(length)} = {text(body)}"
        case ir.Reduce(name, combine, init, length, body):
            head = f"{name}: {combine.type} = reduce{_over(length)}"
            yield f"{head} {text(body)} from {text(init)} by {combine.name}"
            yield f"  where {combine.name}(a, b) = {text(combine.body)}"
        case ir.BlockReduce(name, combine, init, block, length, body):
            head = f"{name}: {combine.type}{_over(ir.blocks(length, block))}"
            yield f"{head} = reduce{_over(length)} by {block} {text(body)} from {text(init)}"
            yield f"  by {combine.name}, where {combine.name}(a, b) = {text(combine.body)}"
        case ir.Filter(name, count, length, body, limit):
            first = f", the first {text(limit)}" if limit is not None else ""
            yield f"{name}: int[{count}] = filter{_over(length)} {text(body)}{first}"
        case ir.TopK(name, length, body, k, block):
            yield f"{name}: int = topk{_over(length)}{_by(block)} {text(body)}, {text(k)}"
        case ir.Sort(name, length, body, key, descending, block):
            order = "greater" if descending else "smaller"
            yield f"{name}: {body.type} = sort{_over(length)}{_by(block)} {text(body)} {order} by {text(key)}"
        case ir.Scatter(name, elem, length, base, count, index, value, checked):
            yield f"{name}: {elem}{_over(length)} = {text(base)}"
            yield f"  with{' checked' if checked else ''} [{text(index)}] = {text(value)} over{_over(count)}"
        case ir.Keep(name, length, body, carried):
            yield f"keep {name}{_over(length)} where {text(body)}"
            for vector, e in carried:
                yield f"  and {vector}: {e.type} = {text(e)}"
        case ir.Compact(name, count, mask, _, limit, kept):
            first = f", the first {text(limit)}" if limit is not None else ""
            yield f"{name}: int[{count}] = positions of {mask.vector}{first}"
            for vector, read in kept:
                yield f"  {vector}: {read.type}[{count}] = {read.vector} there"
        case ir.Select(name, keys, length, k, count, block):
            yield f"{name}: int{_over(count)} = least{_over(length)}{_by(block)} {text(k)} of {keys.vector}"
        case ir.Arrange(name, keys, values, length, block):
            order = f"{values.vector} in the order of {keys.vector}"
            yield f"{name}: {values.type}{_over(length)} = {order}{_by(block)}"
        case ir.Nth(name, keys, values, length, rank):
            order = f"{values.vector} in the order of {keys.vector}"
            yield f"{name}: {values.type} = element {text(rank)} of {order}{_over(length)}"
        case ir.Ascends(index, count, length, checked):
            verb = "payload's" if checked else "own"
            yield f"{verb} {text(index)}{_over(count)} ascends below {text(length)}"
        case ir.Patch(target, elem, length, index, body):
            yield f"patch {_place(target)}: {elem}{_over(length)} at {text(index)} = {text(body)}"
        case ir.Table(name, elem, values):
            yield f"{name}: {elem}[{len(values)}] = {', '.join(text(v) for v in values)}"
        case ir.Store(target, elem, length, body):
            yield f"store {_place(target)}: {elem}{_over(length)} = {text(body)}"
        case ir.Finite(length, body):
            yield f"check{_over(length)} {text(body)} is finite"
        case ir.Put(field, elem, value):
            yield f"put {field}: {elem} = {text(value)}"
        case ir.Get(name, field, elem):
            yield f"{name} = get {field}: {elem}"
        case ir.Guard(param, read, expected):
            yield f"guard {param}: {text(read)} == {text(expected)}"
        case ir.Pass(length, sinks, block):
            yield f"pass{_over(length)}{f' by {block}' if block else ''}"
            for sink in sinks:
                yield from ("  " + line for line in binding_lines(sink))


def _sharing(b: ir.Binding) -> tuple[list[str], Callable[[ir.Expr], str]]:
    """Return lines that name what is repeated in a large formula, and a writer that uses these names."""
    names: dict[ir.Expr, str] = {}
    lines: list[str] = []
    if isinstance(b, ir.Pass) or sum(e.size for e in ir.expressions(b)) <= WRITTEN_OUT:
        return lines, text
    seen: set[ir.Expr] = set()
    repeated: list[ir.Expr] = []
    for e in (x for whole in ir.expressions(b) for x in ir.walk(whole)):
        for c in ir.children(e):
            if c in seen and c.size > 1 and c not in repeated:
                repeated.append(c)
            seen.add(c)

    def write(e: ir.Expr) -> str:
        return text(e, names)

    for e in sorted(repeated, key=lambda e: e.size):
        lines.append(f"where %{len(names)} = {write(e)}")
        names[e] = f"%{len(names)}"
    return lines, write


def _place(target: ir.Target) -> str:
    return target.kind if target.kind == "output" else f"{target.kind} {target.name}"


def _by(block: int) -> str:
    return f" by {block}" if block else ""


def _over(length: ir.Expr) -> str:
    return f"[{text(length)}]"


def text(e: ir.Expr, names: Mapping[ir.Expr, str] | None = None) -> str:
    """Return an expression; `i` is the position, `n` the number of elements; `names` of parts are used."""
    if names and e in names:
        return names[e]
    part = functools.partial(text, names=names)

    match e:
        case ir.Const(value, kind):
            if kind == FLOAT and isinstance(value, float):
                return value.hex() if value == value and abs(value) != float("inf") else str(value)
            return str(value).lower()
        case ir.Size():
            return "n"
        case ir.Position():
            return "i"
        case ir.Scalar(name, _):
            return name
        case ir.Param(name, _):
            return f"param {name}" if name in ("n", "i", "a", "b") else name.removeprefix("@")
        case ir.Read(vector, position, _):
            return f"{vector}[{part(position)}]"
        case ir.Convert(arg, to, _):
            return f"{to}({part(arg)})"
        case ir.Random(site, low, high, kind, keyed):
            return f"random{'_of_key' if keyed else ''}{site}<{kind}>({part(low)}, {part(high)})"
        case ir.Search(table, arg, _):
            return f"search({table}, {part(arg)})"
        case ir.StochasticRound(site, arg, _):
            return f"stochastic_round{site}({part(arg)})"
        case ir.Apply("select", (c, a, b), _):
            return f"({part(c)} ? {part(a)} : {part(b)})"
        case ir.Apply(op, (a, b), _) if op in INFIX:
            return f"({part(a)} {op} {part(b)})"
        case ir.Apply(op, args, _):
            return f"{op}({', '.join(part(a) for a in args)})"
    raise AssertionError(e)
