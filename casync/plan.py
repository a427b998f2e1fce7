"""The plan: which gradients are compressed, into how many partitions; and what follows from it.

The file has one line a gradient, `name,y|n,K`, and `# key: value` lines with the conditions it was made for:

    # topology: RING
    # nnodes: 2
    conv1.weight,n,1
    fc1.weight,y,4

`layout` turns a plan and the model's gradients into partitions, the unit of every task: a slice of a
compressed gradient, or a slice of a bucket of uncompressed ones. It is a pure function, equal on all ranks.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from casync.dtypes import DTYPES
from casync.primitives import Builder, Schedule, join
from casync.topologies import Nodes, even_nodes, topology

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

GRANULE = 4096
"""Partitions begin at multiples of so many elements, whole tiles of every kernel."""

BUCKET_BYTES = 2**20
"""A bucket of uncompressed gradients is closed before it outgrows this; a larger gradient has its own."""

PART = 2**18
"""Elements: less than that costs a task more than its codec (BUCKET_BYTES as float32).

The default plan cuts a gradient into no smaller parts, and whole compressed gradients share buckets up to it.
"""

LARGE, ROUNDS = 2**20, 4
"""Elements of a part at the least, and parts a rank at the most, where the default plan cuts finer than one
for each rank: while one part travels, another is merged or decoded. Each part costs its tasks."""

PLANNED = ("PS", "RING")
"""The topologies that `secopa plan` plans for."""

EXACT = "ring"
"""The topology of uncompressed gradients, whatever that of the compressed ones, if no engine sums them."""

ROWS = "allgather"
"""The topology of gradients of rows: a rank cannot know which rows another one has."""


class PlanError(ValueError):
    """A plan that cannot be read or that is not for this run; says where, what, and how to mend it."""


@dataclass(frozen=True, slots=True)
class Gradient:
    """A gradient of the model by its parameter's name, shape and type (a key of `casync.dtypes.DTYPES`).

    rows: it comes as `casync.rows.Rows`, the rows (of the first dimension) that a step has touched.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str = "float32"
    rows: bool = False

    @property
    def elements(self) -> int:
        """The number of elements; an empty gradient takes no part in anything."""
        return math.prod(self.shape)


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a plan: compress this gradient or not, into at most so many partitions."""

    gradient: str
    compressed: bool
    partitions: int


@dataclass(frozen=True, slots=True)
class Segment:
    """Elements `start` to `stop` of a gradient, encoded by themselves; `part` enters their seed."""

    gradient: str
    part: int
    start: int
    stop: int

    @property
    def elements(self) -> int:
        """The number of elements."""
        return self.stop - self.start


def label(gradients: Sequence[str]) -> str:
    """Several gradients in one name, for people."""
    more = f" and {len(gradients) - 1} more" if len(gradients) > 1 else ""
    return gradients[0] + more


@dataclass(frozen=True, slots=True)
class Partition:
    """What one task works on and one message carries: segments of one or more gradients, with one owner.

    width: the elements of a row, of a gradient of which some rows travel; 0: all elements do.
    """

    compressed: bool
    owner: int
    segments: tuple[Segment, ...]
    width: int = 0

    @property
    def gradients(self) -> tuple[str, ...]:
        """The names of the gradients, each once."""
        return tuple(dict.fromkeys(segment.gradient for segment in self.segments))

    @property
    def label(self) -> str:
        """The gradients, for people."""
        return label(self.gradients)

    @property
    def elements(self) -> int:
        """The number of elements of all segments."""
        return sum(segment.elements for segment in self.segments)


@dataclass(frozen=True)
class Plan:
    """The decisions, in the order of the file, and the conditions under which they were made."""

    entries: tuple[Entry, ...]
    conditions: Mapping[str, str] = field(default_factory=dict)
    source: str = "the plan"

    @classmethod
    def default(cls, gradients: Sequence[Gradient], nranks: int) -> Plan:
        """Compress every gradient of two or more dimensions, in as many parts as `default_parts` says."""
        entries = tuple(
            Entry(g.name, len(g.shape) >= 2, default_parts(g.elements, nranks)) for g in gradients
        )
        return cls(entries, source="the default plan")

    def uncompressed(self) -> Plan:
        """The same plan with nothing compressed."""
        return replace(self, entries=tuple(replace(e, compressed=False) for e in self.entries))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan; PlanError lists every bad line as `file:line: what; how to mend it`."""
        try:
            text = Path(path).read_text(encoding="utf-8-sig")
        except OSError as error:
            raise PlanError(
                f"{path}: cannot be read: {error.strerror}; write it with `secopa plan --output {path}`"
            ) from None
        except UnicodeDecodeError:
            raise PlanError(f"{path}: not UTF-8 text; save the file as UTF-8") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: str, source: str = "the plan") -> Plan:
        """Read a plan from text; `source` is what errors call it."""
        entries: dict[str, Entry] = {}
        lines: dict[str, int] = {}
        conditions: dict[str, str] = {}
        errors = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.lstrip().startswith("#"):
                key, colon, value = line.lstrip().removeprefix("#").partition(":")
                if colon:
                    conditions[key.strip()] = value.strip()
                continue
            if not line.strip():
                continue
            try:
                entry = _parse_entry(line)
                if entry.gradient in entries:
                    first = lines[entry.gradient]
                    raise PlanError(f"`{entry.gradient}` stands in line {first} already; keep one of the two")
            except PlanError as error:
                errors.append(f"{source}:{number}: {error}")
                continue
            entries[entry.gradient], lines[entry.gradient] = entry, number
        if errors:
            raise PlanError("\n".join(errors))
        return cls(tuple(entries.values()), conditions, source)

    def save(self, path: str | Path) -> None:
        """Write the plan so that `load` reads the same."""
        Path(path).write_text(self.text(), encoding="utf-8")

    def text(self) -> str:
        """The plan as its file holds it."""
        conditions = [f"# {key}: {value}" for key, value in self.conditions.items()]
        return "".join(f"{line}\n" for line in [*conditions, *self._lines()])

    def _lines(self) -> list[str]:
        return [f"{e.gradient},{'y' if e.compressed else 'n'},{e.partitions}" for e in self.entries]

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the decisions (not of conditions and source), equal on all ranks of a run."""
        return hashlib.sha256("\n".join(self._lines()).encode()).hexdigest()

    def check(self, gradients: Sequence[Gradient], topology_name: str, nranks: int) -> None:
        """Raise PlanError unless the plan was made for this topology, number of ranks, and gradients."""
        run = {"topology": topology_name.upper(), "nnodes": str(nranks)}
        for key, value in run.items():
            made_for = self.conditions.get(key, value)
            if made_for.upper() != value:
                planner = f"`secopa plan --input input.txt --topology {run['topology']} --nnodes {nranks}`"
                mend = (
                    f"plan anew: {planner}"
                    if run["topology"] in PLANNED
                    else f"the planner knows {' and '.join(PLANNED)}: use one of these, or take the line "
                    f"`# {key}: {made_for}` away to keep the plan's other decisions"
                )
                raise PlanError(
                    f"{self.source}: made for {key} {made_for}, but this run has {key} {value}; {mend}"
                )
        planned = {entry.gradient for entry in self.entries}
        missing = [g.name for g in gradients if g.elements and g.name not in planned]
        unknown = sorted(planned - {g.name for g in gradients})
        faults = [
            f"{what}: {', '.join(found[:4])}{f' and {len(found) - 4} more' if len(found) > 4 else ''}"
            for what, found in (("no line for", missing), ("lines for what the model does not have", unknown))
            if found
        ]
        if faults:
            raise PlanError(
                f"{self.source}: not a plan for this model's gradients ({'; '.join(faults)}); write the "
                'model\'s gradients with casync.torch.write_gradients(model, "input.txt") and plan anew'
            )


def _parse_entry(line: str) -> Entry:
    fields = [part.strip() for part in line.rsplit(",", 2)]
    form = "write `name,y|n,partitions`, e.g. `conv1.weight,y,4`"
    if len(fields) != 3 or not fields[0]:
        raise PlanError(f"`{line.strip()}` is not a plan's line; {form}")
    name, compressed, count = fields
    if compressed not in ("y", "n"):
        raise PlanError(f"`{compressed}` is neither y (compress) nor n; {form}")
    if not (count.isascii() and count.isdigit() and int(count) >= 1):
        raise PlanError(f"`{count}` is not a number of partitions, 1 or more; {form}")
    return Entry(name, compressed == "y", int(count))


def default_parts(elements: int, nranks: int) -> int:
    """A part for each rank, none below PART; of a large gradient several, as LARGE and ROUNDS say."""
    ranks = max(1, min(nranks, -(-elements // PART)))
    return ranks * max(1, min(ROUNDS, elements // (ranks * LARGE)))


def cut(elements: int, partitions: int) -> list[tuple[int, int]]:
    """Cut a vector into at most `partitions` pieces, none empty, at multiples of the granule."""
    granules = -(-elements // GRANULE)
    pieces = min(partitions, granules)
    starts = [GRANULE * (j * granules // pieces) for j in range(pieces)]
    return list(zip(starts, [*starts[1:], elements], strict=True))


def layout(
    plan: Plan,
    gradients: Sequence[Gradient],
    topology_name: str,
    nranks: int,
    exact_by: str = EXACT,
    codecs: Mapping[str, str] | None = None,
) -> tuple[Partition, ...]:
    """All partitions: of compressed gradients in parameter order, of buckets of the others by type, of rows.

    exact_by: what sums the buckets; an engine (`casync.engines`) takes each whole. codecs: what compresses
    each gradient, in words that tell codecs apart; None: one codec compresses all.

    A compressed gradient of one part shares a bucket of at most PART elements with its neighbours that have
    one part, its type and its codec: each is encoded by itself, and all travel in one message.
    The first partition of a gradient or bucket goes to the rank that owns the fewest elements so far (ties:
    the topology's order), the next ones to the ranks that follow. Rows are one partition, and nobody's own.
    """
    by_us = exact_by == EXACT
    entries = {entry.gradient: entry for entry in plan.entries}
    present = [g for g in gradients if g.elements and not g.rows]
    compressed = _compressed([g for g in present if entries[g.name].compressed], entries, codecs or {})
    exact = [
        list(_bucket_parts(bucket, max(entries[g.name].partitions for g in bucket) if by_us else 1))
        for dtype in DTYPES
        for bucket in _buckets(
            [g for g in present if g.dtype == dtype and not entries[g.name].compressed],
            BUCKET_BYTES // DTYPES[dtype].nbytes,
        )
    ]
    return (
        *_owned(True, compressed, topology_name, nranks),
        *_owned(False, exact, EXACT, nranks),
        *(
            Partition(
                entries[g.name].compressed, 0, (Segment(g.name, 0, 0, g.elements),), g.elements // g.shape[0]
            )
            for g in gradients
            if g.elements and g.rows
        ),
    )


def _compressed(
    gradients: Sequence[Gradient], entries: Mapping[str, Entry], codecs: Mapping[str, str]
) -> Iterator[list[tuple[Segment, ...]]]:
    """The parts of each gradient; of gradients of one part, the buckets."""
    buckets: dict[tuple[str, str | None], list[Segment]] = {}
    for g in gradients:
        parts = [
            Segment(g.name, j, *ends) for j, ends in enumerate(cut(g.elements, entries[g.name].partitions))
        ]
        if len(parts) > 1:
            yield [(part,) for part in parts]
            continue
        bucket = buckets.setdefault((g.dtype, codecs.get(g.name)), [])
        if bucket and sum(segment.elements for segment in bucket) + g.elements > PART:
            yield [tuple(bucket)]
            bucket.clear()
        bucket += parts
    yield from ([tuple(bucket)] for bucket in buckets.values())


def _buckets(gradients: Sequence[Gradient], most: int) -> Iterator[list[Gradient]]:
    bucket: list[Gradient] = []
    for g in gradients:
        if bucket and sum(other.elements for other in bucket) + g.elements > most:
            yield bucket
            bucket = []
        bucket.append(g)
    if bucket:
        yield bucket


def _bucket_parts(bucket: Sequence[Gradient], partitions: int) -> Iterator[tuple[Segment, ...]]:
    """Cut the bucket as one vector; a piece may hold the end of one gradient and the begin of the next."""
    total = sum(g.elements for g in bucket)
    for part, (start, stop) in enumerate(cut(total, partitions)):
        segments = []
        offset = 0
        for g in bucket:
            first, last = max(start - offset, 0), min(stop - offset, g.elements)
            if first < last:
                segments.append(Segment(g.name, part, first, last))
            offset += g.elements
        yield tuple(segments)


def _owned(
    compressed: bool, groups: Iterable[Sequence[tuple[Segment, ...]]], topology_name: str, nranks: int
) -> Iterator[Partition]:
    ranks = [topology(topology_name).owner(p, nranks) for p in range(nranks)]
    load = [0] * nranks
    for group in groups:
        first = min(range(nranks), key=lambda place: load[ranks[place]])
        for j, segments in enumerate(group):
            owner = ranks[(first + j) % nranks]
            partition = Partition(compressed, owner, segments)
            load[owner] += partition.elements
            yield partition


def schedule(
    partitions: Sequence[Partition],
    topology_name: str,
    nranks: int,
    nodes: Nodes | None = None,
    exact_by: str = EXACT,
    through: Collection[int] = (),
) -> Schedule:
    """The tasks of all ranks for a layout: compressed partitions by the topology, buckets exactly, rows last.

    nodes: which ranks share one; None: each has its own. exact_by: as for `layout`. through: the partitions
    in which no gradient may enter a sum but through the codec; of a topology that encodes sums.
    """
    nodes = even_nodes(nranks) if nodes is None else nodes
    draw = topology(topology_name).schedule
    compressed = [p.owner for p in partitions if p.compressed and not p.width]
    exact = [p.owner for p in partitions if not (p.compressed or p.width)]
    rows = [p.owner for p in partitions if p.width]
    elements = join(
        draw(nranks, compressed, nodes, through) if through else draw(nranks, compressed, nodes),
        topology(EXACT).schedule(nranks, exact, nodes) if exact_by == EXACT else reduced(nranks, len(exact)),
        len(compressed),
    )
    return join(elements, topology(ROWS).schedule(nranks, rows, nodes), len(compressed) + len(exact))


def reduced(nranks: int, partitions: int) -> Schedule:
    """An engine's all-reduce of each partition, the last one first: a backward pass begins at the end."""
    tasks = Builder(nranks)
    for p in reversed(range(partitions)):
        tasks.reduce(p)
    return tasks.schedule()
