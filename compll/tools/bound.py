"""The least that an operation has to move and to draw, derived from its fused program.

Moved bytes: each input is read once and each output written once; an element that is read or written at a
computed position moves a line of the cache.  A vector larger than the last-level cache is read once more
for each statistic of it that a later reader of it waits for.  What passes keep in scratch memory is not
counted: another program might do without it.  A copy of N bytes so moves 2 N.

Drawn words: 32 bits for each element at which `random` is called, 16 where `stochastic_round` is; a call
site counts once, however many passes work it out again.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from compll import ir
from compll.evaluate import Environment, evaluate
from compll.types import scalar_bytes, vector_bytes

LINE = 64  # bytes that memory moves at least


@dataclass(frozen=True)
class Traffic:
    """What an operation has to do: bytes read and written, numbers drawn by each of the two operators."""

    read: int
    written: int
    words: int
    halves: int

    @property
    def moved(self) -> int:
        """Bytes that are read or written."""
        return self.read + self.written


def cache_bytes() -> int:
    """Return the size of the last-level cache as the system tells it; 32 MiB where it does not."""
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text("ascii").strip()
        unit = {"K": 2**10, "M": 2**20, "G": 2**30}.get(text[-1:], 1)
        sizes.append(int(text.rstrip("KMG")) * unit)
    return max(sizes, default=32 * 2**20)


def traffic(
    f: ir.Function, n: int, values: Mapping[str, float | int | bool], counts: Mapping[str, int], cache: int
) -> Traffic:
    """Return the least that a fused operation (`passes.fuse`) on n elements has to do.

    `counts` are the sizes that the payload begins with, by name; `cache` the last-level cache in bytes.
    """
    model = _Model(f, n, values, counts)
    read = sum(scalar_bytes(b.elem) for b in f.body if isinstance(b, ir.Get))
    for vector, whole in model.inputs.items():
        chain = _chain(model, vector)
        read += chain.total if whole > cache else min(chain.widest, whole)
    drawn = model.drawn()
    return Traffic(read, model.written(), drawn[ir.Random], drawn[ir.StochasticRound])


class _Model:
    """A fused function with sizes for its lengths."""

    def __init__(
        self,
        f: ir.Function,
        n: int,
        values: Mapping[str, float | int | bool],
        counts: Mapping[str, int],
    ) -> None:
        self.f = f
        self.env = Environment(n, values, scalars={k: np.asarray(v, np.int64) for k, v in counts.items()})
        for b in f.body:  # what is selected and not sent may be all that is allowed
            if isinstance(b, ir.Compact) and b.count not in counts:
                most = self.size(b.length) if b.limit is None else min(n, self.size(b.limit))
                self.env.scalars[b.count] = np.asarray(most, np.int64)
        self.elements = dict(f.vectors)
        lengths = {x.name: x.length for x in f.fields_read if x.length is not None}
        self.inputs = {
            name: vector_bytes(elem, self.size(lengths.get(name, ir.Size())))
            for name, elem in f.vectors
            if name in lengths or name not in {x.name for x in f.layout}
        }

    def size(self, e: ir.Expr) -> int:
        return max(0, int(evaluate(e, self.env)))

    def read_by(self, e: ir.Expr, vector: str, length: int) -> int:
        """Return the bytes of an input that an expression reads at `length` positions."""
        whole, most = self.inputs[vector], 0
        for x in ir.walk(e):
            if isinstance(x, ir.Read) and x.vector == vector:
                if x.position == ir.Position():
                    most = max(most, vector_bytes(self.elements[vector], length))
                elif ir.block_of(x.position):
                    most = whole
                else:
                    most = max(most, min(whole, LINE * length))
        return most

    def written(self) -> int:
        """Return the bytes of all outputs."""
        head = 4 * len(self.f.counts) if self.f.writes_payload else 0
        total = head + sum(scalar_bytes(b.elem) for b in self.f.body if isinstance(b, ir.Put))
        stored = {s.target for s in self._sinks() if isinstance(s, ir.Store)}
        for s in self._sinks():
            if isinstance(s, ir.Store | ir.Patch) and s.target.kind != "vector":
                length = self.size(s.length)
                if isinstance(s, ir.Store):
                    total += vector_bytes(s.elem, length)
                elif s.target not in stored:
                    total += min(vector_bytes(s.elem, self.env.n), LINE * length)
        return total

    def drawn(self) -> dict[type, int]:
        """Return how many numbers each operator draws."""
        sites: dict[tuple[type, int, bool], int] = {}
        for b in (*self.f.body, *self._sinks()):
            if isinstance(b, ir.Pass):
                continue
            length = self.size(b.length) if isinstance(b, ir.Sink) else 1
            for x in (x for e in ir.expressions(b) for x in ir.walk(e)):
                if isinstance(x, ir.Random | ir.StochasticRound):
                    site = type(x), x.site, isinstance(x, ir.Random) and x.keyed
                    sites[site] = max(sites.get(site, 0), length)
        return {
            kind: sum(count for (k, _, _), count in sites.items() if k is kind)
            for kind in (ir.Random, ir.StochasticRound)
        }

    def _sinks(self) -> Iterator[ir.Sink]:
        for b in self.f.body:
            if isinstance(b, ir.Pass):
                yield from b.sinks


@dataclass(frozen=True)
class _Reading:
    """How far an input was read for a value: bytes before it could begin, bytes while it was made."""

    before: int = 0
    during: int = 0

    @property
    def total(self) -> int:
        return self.before + self.during

    def joined(self, other: _Reading) -> _Reading:
        return _Reading(max(self.before, other.before), max(self.during, other.during))


@dataclass(frozen=True)
class _Chain:
    """The longest row of readings of one input that wait for each other, and the widest single one."""

    total: int = 0
    widest: int = 0


def _chain(model: _Model, vector: str) -> _Chain:
    """Follow one input through a function.

    Who reads a scalar, or a vector elsewhere than at its own position, waits until that is whole; who reads
    a vector at its own position goes along with it, in one pass over the input.
    """
    whole: dict[str, int] = {}  # name -> bytes that are read of the input until it is known
    along: dict[str, _Reading] = {}  # vector -> the same, for one who reads it as it is made
    total = widest = 0

    def reading(b: ir.Binding, length: int) -> _Reading:
        found = _Reading()
        mask = b.mask if isinstance(b, ir.Compact) else None  # positions come as its bits do
        for e in _values(b):
            own = model.read_by(e, vector, length) if isinstance(b, ir.Sink) else 0
            found = found.joined(_Reading(0, own))
            for x in ir.walk(e):
                if isinstance(x, ir.Scalar) and x.name in whole:
                    found = found.joined(_Reading(whole[x.name], 0))
                elif isinstance(x, ir.Read) and x.vector in along:
                    streams = x.position == ir.Position() or ir.block_of(x.position) or x is mask
                    other = along[x.vector]
                    found = found.joined(other if streams else _Reading(other.total, 0))
        return found

    def keep(name: str, r: _Reading) -> None:
        whole[name] = max(whole.get(name, 0), r.total)
        along[name] = along.get(name, _Reading()).joined(r)

    for binding in model.f.body:
        for b in binding.sinks if isinstance(binding, ir.Pass) else (binding,):
            r = reading(b, model.size(b.length) if isinstance(b, ir.Sink) else 0)
            total, widest = max(total, r.total), max(widest, r.during)
            match b:
                case ir.Let(name) | ir.Nth(name) | ir.Reduce(name):
                    whole[name] = r.total
                case ir.BlockReduce(name):
                    keep(name, r)
                case ir.Store(ir.Target("vector", name)) | ir.Patch(ir.Target("vector", name)):
                    keep(name, r)
                case ir.Keep(_, _, _, carried):
                    for name in (b.name, *(name for name, _ in carried)):
                        keep(name, r)
                case ir.Compact(_, count, _, _, _, carried):
                    for name in (b.name, *(name for name, _ in carried)):
                        keep(name, r)
                    whole[count] = r.total
                case ir.Select(name) | ir.Arrange(name):  # all of the keys first
                    keep(name, _Reading(r.total, 0))
    return _Chain(total, widest)


def _values(b: ir.Binding) -> tuple[ir.Expr, ...]:
    """Return the expressions that a binding makes something of: not those that say how much."""
    match b:
        case ir.Store(_, _, _, body) | ir.Finite(_, body):
            return (body,)
        case ir.Reduce(_, _, init, _, body) | ir.BlockReduce(_, _, init, _, _, body):
            return (init, body)
        case ir.Patch(_, _, _, index, body):
            return (index, body)
        case ir.Compact(_, _, mask, _, _, carried):
            return (mask, *(e for _, e in carried))
        case ir.Keep(_, _, body, carried):
            return (body, *(e for _, e in carried))
        case ir.Ascends() | ir.Guard():  # nothing is made of what they check
            return ()
        case ir.Select(_, keys, _, _, _, _):
            return (keys,)
    return ir.expressions(b)
