"""What each topology computes, as plain loops over ranks: the meaning that the executor is compared with.

No tasks, messages, threads or buffers. A gradient that is None is absent on that rank.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from casync.primitives import Role
from casync.seeds import private_seed, shared_seed
from compll.codec import Item

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from casync.plan import Partition, Segment

    Vector = NDArray[np.float32]
    Key = tuple[int, str, int, Role, str]
    Gradients = list[dict[str, Vector | None]]  # a rank


@dataclass
class Model:
    """residuals: (rank, gradient, start, role, state's name) -> values. Codecs are taken as given.

    down: what encodes sums, None: the codec itself.
    """

    nranks: int
    topology: str
    codec: Any
    partitions: tuple[Partition, ...]
    average: bool = True
    run: int = 0
    nodes: tuple[tuple[int, ...], ...] = ()
    residuals: dict[Key, Vector] = field(default_factory=dict)
    down: Any = None

    def __post_init__(self) -> None:
        info = self.codec.info if self.codec else None
        # What keeps more than a residual sees every term of a sum.
        self.through = info is not None and info.stateful and not info.feedback

    def step(self, number: int, gradients: Gradients) -> dict[str, Vector | None]:
        """The result of one step; the residuals change only if every compressed value was finite."""
        self.changed: dict[Key, Vector] = {}
        self.finite = True
        parts: dict[str, list[tuple[int, Vector | None]]] = defaultdict(list)
        for p in self.partitions:
            of_segment = {
                s: [
                    None if g[s.gradient] is None else g[s.gradient][s.start : s.stop].copy()
                    for g in gradients
                ]
                for s in p.segments
            }
            finite = all(t is None or np.isfinite(t).all() for terms in of_segment.values() for t in terms)
            self.finite &= finite
            for s, terms in of_segment.items():
                if p.compressed and not finite:  # of all that travels together
                    result = np.full(s.elements, np.nan, np.float32)
                elif all(t is None for t in terms):
                    result = None
                elif not p.compressed:
                    result = self.exact(p, terms)
                else:
                    result = getattr(self, self.topology)(p, s, number, terms)
                parts[s.gradient].append((s.start, result))
        if self.finite:
            self.residuals |= self.changed
        return {name: join(pieces) for name, pieces in parts.items()}

    def scale(self) -> np.float32:
        return np.float32(1 / self.nranks if self.average else 1)

    def exact(self, p: Partition, terms: list[Vector | None]) -> Vector:
        """The sum in ring order from the rank behind the owner; an absent rank adds zero to what arrives."""
        total = None
        for i in range(self.nranks):
            term = terms[(p.owner + 1 + i) % self.nranks]
            if total is not None:
                term = total + (0 if term is None else term)
            total = term
        assert total is not None
        with np.errstate(invalid="ignore"):
            return total * self.scale()

    def ps(self, p: Partition, s: Segment, number: int, terms: list[Vector | None]) -> Vector:
        total = None
        for rank, term in enumerate(terms):
            if term is None:
                continue
            if rank == p.owner and not self.through:
                term = self.owned(term, s, rank)
            else:
                term = self.decode(self.encode(term, s, number, rank, Role.WORKER, 0), s, number)
            total = term if total is None else total + term
        assert total is not None
        return self.final(total, p, s, number)

    def final(self, total: Vector, p: Partition, s: Segment, number: int) -> Vector:
        """What the owner makes of the sum, and every rank of that."""
        codec = self.down or self.codec
        payload = self.encode(total * self.scale(), s, number, p.owner, Role.OWNER, 0, codec)
        return self.decode(payload, s, number, codec)

    def owned(self, term: Vector, s: Segment, rank: int) -> Vector:
        """The owner's own term: exact, with what its worker role had left."""
        key = (rank, s.gradient, s.start, Role.WORKER, "residual")
        if self.codec.info.feedback:
            term = term + self.residuals.get(key, np.float32(0))
            self.changed[key] = np.zeros_like(term)
        return term

    def hierarchical(self, p: Partition, s: Segment, number: int, terms: list[Vector | None]) -> Vector:
        place = next(node.index(p.owner) for node in self.nodes if p.owner in node)
        total = None
        for node in self.nodes:
            leader = node[place % len(node)]
            owned = leader == p.owner and not self.through
            inside = total if owned else None
            for rank in node:
                if (term := terms[rank]) is not None:
                    term = self.owned(term, s, rank) if owned and rank == p.owner else term
                    inside = term if inside is None else inside + term
            if owned:
                total = inside
            elif inside is not None:
                inside = self.decode(self.encode(inside, s, number, leader, Role.WORKER, 0), s, number)
                total = inside if total is None else total + inside
        assert total is not None
        return self.final(total, p, s, number)

    def allgather(self, _: Partition, s: Segment, number: int, terms: list[Vector | None]) -> Vector:
        total = None
        for rank, term in enumerate(terms):
            if term is not None:
                decoded = self.decode(self.encode(term, s, number, rank, Role.WORKER, 0), s, number)
                total = decoded if total is None else total + decoded
        assert total is not None
        return total * self.scale()

    def direct(self, _: Partition, s: Segment, number: int, terms: list[Vector | None]) -> Vector:
        """Of codecs whose payload is one vector: of halves, or of float32."""
        kind = "<f2" if self.codec.info.name == "fp16" else "<f4"
        total = None
        for rank, term in enumerate(terms):
            if term is not None:
                payload = self.encode(term, s, number, rank, Role.WORKER, 0)
                values = payload.view(kind).astype(np.float32)
                total = values if total is None else total + values
        assert total is not None
        return self.decode((total * self.scale()).astype(kind).view(np.uint8), s, number)

    def ring(self, p: Partition, s: Segment, number: int, terms: list[Vector | None]) -> Vector:
        payload = None
        for hop in range(self.nranks):
            rank = (p.owner + 1 + hop) % self.nranks
            term = terms[rank]
            if payload is not None:
                term = self.decode(payload, s, number) + (0 if term is None else term)
            if term is not None:
                term = term * self.scale() if rank == p.owner else term
                payload = self.encode(term, s, number, rank, Role.HOP, hop)
        return self.decode(payload, s, number)

    def encode(
        self, x: Vector, s: Segment, number: int, rank: int, role: Role, hop: int, codec: Any = None
    ) -> NDArray[np.uint8]:
        codec = codec or self.codec
        shared = shared_seed(self.run, number, s.gradient, s.part)
        key = (rank, s.gradient, s.start, role)
        state, new = codec.new_state(x.size), codec.new_state(x.size)
        for name in state:
            state[name][:] = self.residuals.get((*key, name), 0)
        out = np.zeros(codec.max_bytes(x.size), np.uint8)
        seed = private_seed(shared, rank, role, hop)
        item = Item(grad=x.copy(), out=out, seed=seed, shared_seed=shared, state=state, new_state=new)
        (result,) = codec.batch("encode", [item])
        for name, values in new.items():
            self.changed[*key, name] = values
        return result.value.copy()

    def decode(self, payload: Any, s: Segment, number: int, codec: Any = None) -> Vector:
        codec = codec or self.codec
        out = np.empty(s.elements, np.float32)
        shared = shared_seed(self.run, number, s.gradient, s.part)
        codec.batch("decode", [Item(payload=payload, out=out, shared_seed=shared)])
        return out


def join(pieces: list[tuple[int, Vector | None]]) -> Vector | None:
    """The whole of a gradient's pieces (start, values)."""
    values = [v for _, v in sorted(pieces, key=lambda piece: piece[0]) if v is not None]
    return np.concatenate(values) if values else None
