"""The pieces of a C++ library as data: what the templates in `templates/cpp/` lay out."""

from __future__ import annotations

from dataclasses import dataclass

from compll import ir

MOST_KEPT = 4096
"""Elements that are kept between the reductions of blocks and their stores: what the first cache holds."""
TILE = 1024
CHUNK = 64
"""Tiles that a thread takes at once."""


@dataclass(frozen=True)
class Combine:
    """The functor of a reduction, for scalars and for lanes; a named one (`add`) is for every lane type.

    One that captures something holds the frame and the parameters, where that lies.
    """

    name: str
    type: str
    scalar: str
    lanes: str
    lines: tuple[str, ...]
    result: str
    captures: bool


@dataclass(frozen=True)
class Reduction:
    """A reduction of one pass: accumulator lanes, tile results, and the scalar that it ends in.

    `combine` is what is called with two of either.
    """

    name: str
    lanes: str
    type: str
    combine: str
    init: str
    value: str


@dataclass(frozen=True)
class Load:
    """The lanes of one vector: where they come from.  Codes have a `width` in bits."""

    name: str
    lanes: str
    source: str
    whole: bool
    is_bool: bool
    width: int = 0


@dataclass(frozen=True)
class Packed:
    """Codes of a sub-byte field, or of bits in scratch memory, held in bytes for one tile."""

    name: str
    width: int
    place: str


@dataclass(frozen=True)
class Kept:
    """What a pass keeps of the elements where `holds`: positions, and the `values` of vectors.

    They lie in parts of scratch memory, one for each `granule` of tiles: one thread goes through it in order.
    """

    name: str
    granule: int
    holds: str
    values: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Draw:
    """The random bits of a tile for one call: `kind` of the runtime, the name they get, and their seed."""

    kind: str
    name: str
    seed: str
    site: int


@dataclass(frozen=True)
class Buffer:
    """A vector in scratch memory: its member of the frame, its type, and the most elements that it has.

    Without a `length` it is another name of the vector that `most` names.
    """

    member: str
    type: str
    most: str
    length: ir.Expr | None = None


@dataclass(frozen=True)
class Stage:
    """The reductions of a block that need no other one of the same block: one loop over its elements."""

    uniforms: tuple[str, ...]
    unpacks: tuple[Packed, ...]
    loads: tuple[Load, ...]
    position: bool
    lines: tuple[str, ...]
    reductions: tuple[Reduction, ...]
    kept: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Values:
    """What is worked out of blocks, a block a lane; `hoisted` (lanes, name, value) waits for the elements."""

    uniforms: tuple[str, ...]
    loads: tuple[Load, ...]
    position: bool
    lines: tuple[str, ...]
    hoisted: tuple[tuple[str, str, str], ...]
    stores: tuple[str, ...]
    finite: tuple[str, ...]


@dataclass(frozen=True)
class BlockText:
    """What a loop by block does with a block before its elements are stored.

    `span` elements are worked on at once: whole blocks and whole tiles, `most` blocks.  `kept` are vectors
    that reductions keep for the elements' stores.  Values that are the same for a whole block, and stores of
    one value a block, are `values` where a block takes a lane: before each stage, and behind the last one.
    Elsewhere they are `hoisted` (type, name, value) and `stores`, behind the stages of each block.
    """

    size: int
    span: int
    kept: tuple[str, ...]
    stages: tuple[Stage, ...]
    hoisted: tuple[tuple[str, str, str], ...] = ()
    stores: tuple[str, ...] = ()
    values: tuple[Values, ...] = ()

    @property
    def early(self) -> tuple[Load, ...]:
        """What the first reductions fetch a span ahead: the gradient, where they read a payload besides.

        Then they take half of the time, in which memory would have nothing to do.
        """
        return tuple(x for x in self.stages[0].loads if x.name == "gradient") if self.kept else ()

    @property
    def ahead(self) -> tuple[Load, ...]:
        """What the stores fetch a span ahead: all others that the reductions load, element by element."""
        loads = {x.name: x for stage in self.stages for x in stage.loads if not x.width}
        return tuple(x for x in loads.values() if x not in self.early)

    @property
    def most(self) -> int:
        """How many blocks are in a span."""
        return self.span // self.size

    @property
    def room(self) -> int:
        """How many values there is room for: whole lanes of blocks."""
        return -(-self.most // 16) * 16

    @property
    def rows(self) -> int:
        """How many blocks are folded side by side where lanes are 32: a power of two."""
        return min(32, 1 << (self.most - 1).bit_length())

    @property
    def tiles(self) -> int:
        """How many tiles a block has."""
        return -(-self.size // TILE)

    @property
    def known(self) -> int:
        """The elements of a whole block where the compiler may know them: a multiple of 16, up to a tile."""
        return self.size if self.size % 16 == 0 and self.size <= TILE else 0

    @property
    def chunk(self) -> int:
        """How many spans a thread takes at once."""
        return max(1, CHUNK * TILE // self.span)


@dataclass(frozen=True)
class PassText:
    """One loop over memory; by block if it has a `block`.

    The status tells whether the lanes `finite` are, and the results of the reductions `told`.
    """

    name: str
    block: BlockText | None
    length: str
    uniforms: tuple[str, ...]
    unpacks: tuple[Packed, ...]
    packs: tuple[Packed, ...]
    keeps: tuple[Kept, ...]
    random: tuple[Draw, ...]
    reductions: tuple[Reduction, ...]
    loads: tuple[Load, ...]
    position: bool
    lines: tuple[str, ...]
    stores: tuple[str, ...]
    finite: tuple[str, ...]
    told: tuple[str, ...] = ()
    stops: bool = False  # it writes what must stay as it is when a position was out of range
    clears: tuple[str, int] | None = None  # place and bytes of elements, if it does nothing but set them to 0

    @property
    def whole_rows(self) -> bool:
        """Whether a row is unrolled whole: for partial results in registers, or constant places of codes."""
        return bool(self.reductions) or any(x.width for x in self.loads)


@dataclass(frozen=True)
class Step:
    """One statement of an operation.

    `kind` is line, guard, refusal (a condition and the status that it gives), layout (from here on the places
    of the payload's fields are known) or pass; for Numba also selection: what its `text` names works between
    two loops; on CUDA also tiles, check and block: see `emit.cuda.Kernel`.
    """

    kind: str
    text: str = ""
    loop: PassText | None = None
    status: str = ""


@dataclass(frozen=True)
class FieldText:
    """The place of one payload field."""

    name: str
    align: int
    size: str


@dataclass(frozen=True)
class Operation:
    """One operation with its frame, combine functors, loops and steps.

    `received` are the vectors of the payload that a hop reads: name, and that of the payload's field.
    """

    op: str
    frame: str
    comment: tuple[str, ...]
    vector_fields: tuple[str, ...]
    received: tuple[tuple[str, str], ...]
    writes_payload: bool
    states: tuple[str, ...]
    scalars: tuple[str, ...]
    combines: tuple[Combine, ...]
    passes: tuple[PassText, ...]
    steps: tuple[Step, ...]
    buffers: tuple[Buffer, ...] = ()
    tables: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
