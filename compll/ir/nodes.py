"""Bindings of the IR: what a function is a tuple of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

from compll.ir.expr import Expr, Read, rewrite
from compll.types import Elem


@dataclass(frozen=True, slots=True)
class Let:
    """A named scalar."""

    name: str
    value: Expr


@dataclass(frozen=True, slots=True)
class Map:
    """A named vector: element i is `body` at i, converted to `elem`."""

    name: str
    elem: Elem
    length: Expr
    body: Expr


@dataclass(frozen=True, slots=True)
class Combine:
    """What a reduction does to two values `a` and `b` (scalars of these names) of type `type`."""

    name: str
    body: Expr
    type: Elem


@dataclass(frozen=True, slots=True)
class Reduce:
    """A scalar: f(init, tree(body at 0 .. length-1)) in the language's one order of reduction."""

    name: str
    combine: Combine
    init: Expr
    length: Expr
    body: Expr


@dataclass(frozen=True, slots=True)
class BlockReduce:
    """A vector: one reduction for each `block` elements, each block starting at its own element 0."""

    name: str
    combine: Combine
    init: Expr
    block: int
    length: Expr
    body: Expr


@dataclass(frozen=True, slots=True)
class Target:
    """Where a vector is stored: kind "field" (of the payload), "state", "output" or "vector" (in scratch)."""

    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class Store:
    """Write `body` at 0 .. length-1, as `elem`, to a payload field, a state or the output."""

    target: Target
    elem: Elem
    length: Expr
    body: Expr


@dataclass(frozen=True, slots=True)
class Finite:
    """The call's status tells if `body` at 0 .. length-1 is not finite anywhere."""

    length: Expr
    body: Expr


@dataclass(frozen=True, slots=True)
class Put:
    """Write a scalar field of the payload."""

    field: str
    elem: Elem
    value: Expr


@dataclass(frozen=True, slots=True)
class Get:
    """Read a scalar field of the payload as the scalar `name`."""

    name: str
    field: str
    elem: Elem


@dataclass(frozen=True, slots=True)
class Guard:
    """The payload is refused unless a scalar that was read equals the parameter of the same name."""

    param: str
    read: Expr
    expected: Expr


@dataclass(frozen=True, slots=True)
class Filter:
    """Two results: the ascending positions where `body` holds, the first `limit` of them, and their count."""

    name: str
    count: str
    length: Expr
    body: Expr
    limit: Expr | None


@dataclass(frozen=True, slots=True)
class TopK:
    """A vector: ascending positions of the k greatest; ties to the lower position, NaN greatest.

    With a `block`, so of each block, one after the other.
    """

    name: str
    length: Expr
    body: Expr
    k: Expr
    block: int = 0


@dataclass(frozen=True, slots=True)
class Sort:
    """A vector: `body` in the total order -0 < +0 < ... < NaN of `key` (a scalar `a` of it), stable.

    With a `block`, sorted inside each block.
    """

    name: str
    length: Expr
    body: Expr
    key: Expr
    descending: bool
    block: int = 0


@dataclass(frozen=True, slots=True)
class Scatter:
    """A vector: `base`, but `value` at the positions that `index` names.

    `index` and `value` are elements of vectors of length `count`.  `checked`: the index was read from a
    payload, which is refused unless it is strictly ascending and below `length`.
    """

    name: str
    elem: Elem
    length: Expr
    base: Expr
    count: Expr
    index: Expr
    value: Expr
    checked: bool


@dataclass(frozen=True, slots=True)
class Table:
    """A vector of constants."""

    name: str
    elem: Elem
    values: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Keep:
    """Keep the positions where `body` holds, and the `carried` vectors' elements there: for a Compact."""

    name: str
    length: Expr
    body: Expr
    carried: tuple[tuple[str, Expr], ...] = ()


@dataclass(frozen=True, slots=True)
class Compact:
    """What a filter becomes: the ascending positions of set bits, the first `limit` of them; their count.

    `mask` is a vector of `length` bits that a pass has stored, or a Keep; `carried` are vectors of the kept
    elements of vectors that the same Keep has carried.
    """

    name: str
    count: str
    mask: Read
    length: Expr
    limit: Expr | None
    carried: tuple[tuple[str, Read], ...] = ()


@dataclass(frozen=True, slots=True)
class Select:
    """What a topk becomes: the ascending positions of the k smallest keys; ties to the lower position.

    `keys` is a vector that a pass has stored; `count` positions result, of each block if there is one.
    """

    name: str
    keys: Read
    length: Expr
    k: Expr
    count: Expr
    block: int


@dataclass(frozen=True, slots=True)
class Arrange:
    """What a sort becomes: the stored `values` in the ascending order of the stored `keys`, stable."""

    name: str
    keys: Read
    values: Read
    length: Expr
    block: int


@dataclass(frozen=True, slots=True)
class Nth:
    """What one element of a sort becomes: a scalar, the element at `rank` of what `Arrange` would give."""

    name: str
    keys: Read
    values: Read
    length: Expr
    rank: Expr


@dataclass(frozen=True, slots=True)
class Ascends:
    """`index`, of `count` elements, has to be strictly ascending below `length`.

    If not, the payload is refused where the index was read from it (`checked`), else it is out of range.
    Lowered, `index` is a vector that a pass has stored.
    """

    index: Expr
    count: Expr
    length: Expr
    checked: bool


@dataclass(frozen=True, slots=True)
class Patch:
    """Write `body` of 0 .. length-1 to the positions that `index` names, of what has been stored there."""

    target: Target
    elem: Elem
    length: Expr
    index: Expr
    body: Expr


Sink = Reduce | BlockReduce | Store | Patch | Finite | Keep
Selection = Filter | TopK | Sort | Scatter
Lowered = Compact | Select | Arrange | Nth | Ascends


@dataclass(frozen=True, slots=True)
class Pass:
    """One loop over memory: reductions, stores and checks over the same positions.

    With a `block`, it reduces block by block, and may store one value a block besides.
    """

    length: Expr
    sinks: tuple[Sink, ...]
    block: int = 0


Binding = Let | Map | Sink | Put | Get | Guard | Pass | Selection | Lowered | Table


@dataclass(frozen=True, slots=True)
class Field:
    """One field of the payload; `length` is None for a scalar."""

    name: str
    elem: Elem
    length: Expr | None


@dataclass(frozen=True, slots=True)
class Count:
    """A size that depends on data, as a payload begins with it: the scalar's name, and the most it can be."""

    name: str
    most: Expr


@dataclass(frozen=True, slots=True)
class Narrow:
    """Positions below `length` are kept as `elem`, which must hold them: so n is limited."""

    length: Expr
    elem: Elem


@dataclass(frozen=True, slots=True)
class Parameter:
    """A hyper-parameter: its element type, default, inclusive range, and whether kernels specialise to it."""

    name: str
    elem: Elem
    default: float | int | bool | None
    range: tuple[float, float] | None
    static: bool


@dataclass(frozen=True, slots=True)
class Function:
    """One operation (`encode`, `decode`, `decode_add`, `hop`) of a codec, typed or fused.

    `vectors` gives the element type of everything that `Read` may name besides maps: the gradient, states
    and payload fields.  `decoded` names the map that holds `decode(compressed)` inside an encode.  A hop
    writes one payload and reads another: `received` are the fields that it reads, those of `layout` under
    names of their own.
    """

    codec: str
    op: str
    params: tuple[Parameter, ...]
    states: tuple[str, ...]
    layout: tuple[Field, ...]
    vectors: tuple[tuple[str, Elem], ...]
    body: tuple[Binding, ...]
    random: bool = False
    decoded: str = ""
    counts: tuple[Count, ...] = ()
    narrow: tuple[Narrow, ...] = ()
    received: tuple[Field, ...] = ()

    @property
    def writes_payload(self) -> bool:
        """Whether it makes a payload."""
        return self.op in ("encode", "hop")

    @property
    def fields_read(self) -> tuple[Field, ...]:
        """The fields of the payload that it reads, under the names that they have in it."""
        return self.received if self.writes_payload else self.layout


def rewrite_binding(b: Binding, change: Callable[[Expr], Expr | None]) -> Binding:
    """Rewrite every expression that stands in a binding; see `rewrite`."""
    new = {f.name: getattr(b, f.name) for f in fields(b)}
    changed: dict[str, Any] = {name: rewrite(e, change) for name, e in new.items() if isinstance(e, Expr)}
    if isinstance(b, Reduce | BlockReduce):
        changed["combine"] = replace(b.combine, body=rewrite(b.combine.body, change))
    if isinstance(b, Keep):
        changed["carried"] = tuple((name, rewrite(e, change)) for name, e in b.carried)
    if isinstance(b, Pass):
        changed["sinks"] = tuple(rewrite_binding(s, change) for s in b.sinks)
    return replace(b, **changed)


def expressions(b: Binding) -> tuple[Expr, ...]:
    """Return the expressions that stand in a binding."""
    match b:
        case Let(_, value) | Put(_, _, value):
            return (value,)
        case Map(_, _, length, body) | Store(_, _, length, body) | Finite(length, body):
            return (length, body)
        case Reduce(_, combine, init, length, body) | BlockReduce(_, combine, init, _, length, body):
            return (combine.body, init, length, body)
        case Guard(_, read, expected):
            return (read, expected)
        case Pass(length, sinks, _):
            return (length, *(e for s in sinks for e in expressions(s)))
        case Filter(_, _, length, body, limit):
            return (length, body) if limit is None else (length, body, limit)
        case TopK(_, length, body, k, _) | Sort(_, length, body, k, _, _):
            return (length, body, k)
        case Scatter(_, _, length, base, count, index, value, _):
            return (length, base, count, index, value)
        case Table(_, _, values):
            return values
        case Keep(_, length, body, carried):
            return (length, body, *(e for _, e in carried))
        case Compact(_, _, mask, length, limit, carried):
            whole = mask, length, *(e for _, e in carried)
            return whole if limit is None else (*whole, limit)
        case Select(_, keys, length, k, count, _):
            return (keys, length, k, count)
        case Arrange(_, keys, values, length, _):
            return (keys, values, length)
        case Nth(_, keys, values, length, rank):
            return (keys, values, length, rank)
        case Ascends(index, count, length, _):
            return (index, count, length)
        case Patch(_, _, length, index, body):
            return (length, index, body)
        case Get():
            return ()
