"""What encode, merge and decode do to real gradients: codecs, state and seeds, segment by segment.

A segment is absent (None) on a rank whose gradient did not fire. A compressed payload that is not finite has
no body: nobody decodes it, and its partition ends as NaN on every rank. Uncompressed values pass as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from casync.bodies import BodyFormat
from casync.buffers import Lease, Pool
from casync.dtypes import DTYPES
from casync.fields import PayloadFields
from casync.plain import Plain, all_finite
from casync.primitives import Role
from casync.rows import Rows, flat
from casync.seeds import private_seed, shared_seed
from casync.terms import Terms
from compll.codec import Item

if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping, Sequence

    from numpy.typing import NDArray

    from casync.feedback import Feedback
    from casync.plan import Partition, Segment
    from casync.primitives import Decode, Encode, Merge
    from casync.rows import Values
    from compll.codec import Operation, Result

    Vector = NDArray[np.float32]
    Bytes = NDArray[np.uint8]


class CodecInfo(Protocol):
    """The properties of a codec that the runtime uses; `compll.codec.Codec.info` has them."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def exact_size(self) -> bool: ...  # noqa: D102
    @property
    def stateful(self) -> bool: ...  # noqa: D102
    @property
    def random(self) -> bool: ...  # noqa: D102
    @property
    def keyed(self) -> bool: ...  # noqa: D102
    @property
    def feedback(self) -> bool: ...  # noqa: D102
    @property
    def hop(self) -> bool: ...  # noqa: D102
    @property
    def sparse(self) -> bool: ...  # noqa: D102
    @property
    def summable(self) -> bool: ...  # noqa: D102
    @property
    def fingerprint(self) -> str: ...  # noqa: D102
    @property
    def params(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def why(self) -> Mapping[str, str]: ...  # noqa: D102


class BatchCodec(Protocol):
    """The part of `compll.codec.Codec` that the runtime uses."""

    @property
    def info(self) -> CodecInfo:
        """The codec's properties."""

    def max_bytes(self, n: int) -> int:
        """The most bytes of a payload of n elements."""

    def fields(self, n: int) -> Sequence[tuple[str, int, int | None]]:
        """Type, offset in bytes and number of elements of each field of the payload of n elements."""

    def new_state(self, n: int) -> dict[str, Any]:
        """Zero state of n elements."""

    def batch(self, op: Operation, items: Sequence[Item], threads: int | None = None) -> list[Result]:
        """Run one operation on many items."""


@dataclass(frozen=True, slots=True)
class Payload:
    """A body on its way. absent: some segment is; finite: all that was merged into it is.

    exact: float32. down: of the codec of sums.
    """

    body: Bytes
    absent: bool
    finite: bool
    lease: Lease | None = None
    exact: bool = False
    down: bool = False


@dataclass(slots=True)
class Sum:
    """The terms merged so far of one partition, by segment; None where every term was absent.

    values: of the gradient, or, where payloads are added directly, of the payload.
    """

    values: list[Vector | None]
    finite: bool = True
    whole: Vector | None = None  # the buffer of the pool in which all values lie, if they lie in one


class Compute:
    """Runs the computing tasks of one rank.

    codecs, dtypes: by gradient; all gradients of a partition have the same. down: the codec of compressed
    sums, None: the gradients' own. scale: what the final encode multiplies by; 1/N averages.
    """

    def __init__(
        self,
        rank: int,
        partitions: Sequence[Partition],
        codecs: Mapping[str, BatchCodec],
        feedback: Feedback,
        *,
        down: BatchCodec | None = None,
        dtypes: Mapping[str, str],
        scale: float,
        run_seed: int,
        threads: int,
    ) -> None:
        self.rank = rank
        self.partitions = partitions
        self.feedback = feedback
        self.codecs = codecs
        self._down = down
        self._dtypes = dtypes
        self._plain = Plain()
        self._compressed = {s.gradient for p in partitions if p.compressed for s in p.segments}
        self._scale = np.float32(scale)
        self._run_seed = run_seed
        self._threads = threads
        self._pool = Pool()
        self.terms = Terms(partitions, self._pool)
        self._formats: dict[tuple[int, bool, bool], BodyFormat] = {}
        self._fields: dict[tuple[str, int], PayloadFields] = {}

    def _of(self, partition: Partition, made: Encode | Payload | None) -> BatchCodec:
        """The codec that makes a payload, or has made it; of None, of the gradients themselves."""
        if made is not None and partition.compressed:
            if made.exact:
                return self._plain
            if made.down and self._down is not None:
                return self._down
        return self.codecs[partition.segments[0].gradient]

    def _format(self, number: int, made: Encode | Payload) -> BodyFormat:
        """How the payloads of a partition lie in a body."""
        key = (number, made.exact, made.down)
        if key not in self._formats:
            partition = self.partitions[number]
            codec = self._of(partition, made)
            sizes = tuple(codec.max_bytes(s.elements) for s in partition.segments)
            self._formats[key] = BodyFormat(sizes, codec.info.exact_size)
        return self._formats[key]

    def _fields_of(self, segment: Segment) -> PayloadFields:
        """Where the values lie in the payload of a segment."""
        key = (segment.gradient, segment.elements)
        if key not in self._fields:
            self._fields[key] = PayloadFields(self.codecs[segment.gradient], segment.elements)
        return self._fields[key]

    def encode(
        self,
        task: Encode,
        step: int,
        gradients: Mapping[str, Values | None],
        received: Payload | None,
        total: Sum | None,
        readers: int,
    ) -> Payload:
        """Encode the gradient, the sum, or gradient and received payload; `readers` tasks read the result."""
        partition, form = self.partitions[task.partition], self._format(task.partition, task)
        codec = self._of(partition, task)
        before = total.finite if total else received.finite if received else True
        if partition.compressed and not before:
            if total:
                self._give_back(total)
            return Payload(np.empty(0, np.uint8), False, False, exact=task.exact, down=task.down)
        parts = form.split(received.body, received.absent) if received else [None] * len(partition.segments)
        scale = self._scale if task.final else np.float32(1)
        lease = Lease(self._pool, form.capacity, readers)
        encodes: list[tuple[int, Item]] = []
        hops: list[tuple[int, Item]] = []
        for i, (segment, slot, part) in enumerate(
            zip(partition.segments, form.slots(lease.buffer), parts, strict=True)
        ):
            own = total.values[i] if total else _slice(gradients, segment)
            if part is not None:
                own = np.zeros(segment.elements, np.float32) if own is None else own
                item = Item(grad=own, out=slot, payload=part, scale=float(scale))
                hops.append((i, self._with_seeds_and_state(item, codec, segment, task, step)))
            elif own is not None:
                if scale != 1:
                    own = np.multiply(own, scale, out=own if total else None)
                item = Item(grad=own, out=slot)
                if not task.direct:
                    item = self._with_seeds_and_state(item, codec, segment, task, step)
                encodes.append((i, item))
        payloads: list[Bytes | None] = [None] * len(parts)
        finite = before
        ops: tuple[Operation, Operation] = ("encode", "hop")
        for op, chosen in zip(ops, (encodes, hops), strict=True):
            if chosen:
                results = (
                    [self._fields_of(partition.segments[i]).write(item, self._threads) for i, item in chosen]
                    if task.direct
                    else self._batch(codec, op, chosen)
                )
                for (i, _), result in zip(chosen, results, strict=True):
                    payloads[i] = result.value
                    finite = finite and bool(result.finite)
        if total:
            self._give_back(total)
        if partition.compressed and not finite:
            self._pool.give(lease.buffer)
            return Payload(np.empty(0, np.uint8), False, False, exact=task.exact, down=task.down)
        absent = any(payload is None for payload in payloads)
        return Payload(form.pack(lease.buffer, payloads), absent, finite, lease, task.exact, task.down)

    def merge(
        self,
        task: Merge,
        step: int,
        gradients: Mapping[str, Values | None],
        received: Payload | None,
        total: Sum | None,
    ) -> Sum:
        """Add a payload, or the own gradient and, if told so, what its worker role had left, to the sum."""
        partition = self.partitions[task.partition]
        codec = self._of(partition, received)
        total = total or Sum([None] * len(partition.segments))
        if received is None:
            for i, segment in enumerate(partition.segments):
                own = _slice(gradients, segment)
                if own is not None:
                    self._merge_own(total, i, own, segment, task.residual and codec.info.feedback)
            return total
        if partition.compressed and not received.finite:
            total.finite = False
            return total
        total.finite = total.finite and received.finite
        parts = self._format(task.partition, received).split(received.body, received.absent)
        stores: list[tuple[int, Item]] = []
        adds: list[tuple[int, Item]] = []
        for i, (segment, part) in enumerate(zip(partition.segments, parts, strict=True)):
            if part is None:
                continue
            shared = self._shared(codec, segment, step)
            value = total.values[i]
            first = value is None
            if value is None:
                elements = self._fields_of(segment).elements if task.direct else segment.elements
                value = total.values[i] = self._vector(elements)
            if task.direct:
                self._fields_of(segment).add(part, value, first, self._threads)
            elif first:
                stores.append((i, Item(payload=part, out=value, shared_seed=shared)))
            else:
                adds.append((i, Item(payload=part, out=value, shared_seed=shared)))
        ops: tuple[Operation, Operation] = ("decode", "decode_add")
        for op, chosen in zip(ops, (stores, adds), strict=True):
            if chosen:
                self._batch(codec, op, chosen)
        return total

    def decode(
        self, task: Decode, step: int, payload: Payload, results: MutableMapping[str, Values | None]
    ) -> None:
        """Write the final payload over the gradient; one that was absent here gets its first value."""
        partition = self.partitions[task.partition]
        codec = self._of(partition, payload)
        if partition.compressed and not payload.finite:
            for segment in partition.segments:
                self._result(results, segment)[:] = np.nan
            return
        parts = self._format(task.partition, payload).split(payload.body, payload.absent)
        items = [
            Item(
                payload=part,
                out=self._result(results, segment),
                shared_seed=self._shared(codec, segment, step),
            )
            for segment, part in zip(partition.segments, parts, strict=True)
            if part is not None
        ]
        if items:
            codec.batch("decode", items, threads=self._threads)

    def unscale(self, gradient: str, values: Values, loss_scale: float) -> None:
        """Divide a gradient by the loss scale, in place, if it has partitions that are compressed.

        So codecs and residuals see its true units, while what travels in its own type keeps its range.
        """
        if gradient in self._compressed:
            np.multiply(flat(values), np.float32(1 / loss_scale), out=flat(values))

    def settle(self, task: Decode, results: Mapping[str, Values | None], loss_scale: float) -> bool:
        """Give a compressed partition's result the loss scale back; whether its type can hold all of it."""
        partition = self.partitions[task.partition]
        dtype = self._dtypes[partition.segments[0].gradient]
        if loss_scale == 1 and dtype == "float32":
            return True
        fits = True
        for segment in partition.segments:
            values = _slice(results, segment)
            if values is None or not values.size:
                continue
            if partition.compressed:
                values *= np.float32(loss_scale)
            largest = DTYPES[dtype].largest
            fits = fits and bool(values.max() <= largest and values.min() >= -largest)
        return fits

    def raw_bytes(self, partition: int, payload: Payload) -> int:  # noqa: ARG002  (rows ask the payload)
        """What a payload would take as float32."""
        return 4 * self.partitions[partition].elements

    def finish(self, task: Decode, total: Sum, results: MutableMapping[str, Values | None]) -> bool:
        """Write the scaled sum over the gradient, in place of a payload; returns whether all is finite."""
        partition = self.partitions[task.partition]
        finite = total.finite
        for value in total.values:
            if value is not None:
                value *= self._scale
                finite = finite and all_finite(value)
        for segment, value in zip(partition.segments, total.values, strict=True):
            if partition.compressed and not finite:
                self._result(results, segment)[:] = np.nan
            elif value is not None:
                self._result(results, segment)[:] = value
        self._give_back(total)
        return finite

    def _batch(self, codec: BatchCodec, op: Operation, chosen: Sequence[tuple[int, Item]]) -> list[Result]:
        return codec.batch(op, [item for _, item in chosen], threads=self._threads)

    def _merge_own(self, total: Sum, i: int, own: Vector, segment: Segment, feedback: bool) -> None:
        term = self._vector(segment.elements)
        if feedback:
            ((name, left),) = self.feedback.current(segment, Role.WORKER).items()
            self.feedback.following(segment, Role.WORKER)[name][:] = 0
            np.add(own, left, out=term)
        else:
            term[:] = own
        value = total.values[i]
        if value is None:
            total.values[i] = term
        else:
            value += term
            self._pool.give(term.view(np.uint8))

    def _with_seeds(self, item: Item, codec: BatchCodec, segment: Segment, task: Encode, step: int) -> Item:
        if codec.info.random or codec.info.keyed:
            shared = shared_seed(self._run_seed, step, segment.gradient, segment.part)
            private = private_seed(shared, self.rank, task.role, task.hop)
            item = item._replace(seed=private, shared_seed=shared)
        return item

    def _with_seeds_and_state(
        self, item: Item, codec: BatchCodec, segment: Segment, task: Encode, step: int
    ) -> Item:
        item = self._with_seeds(item, codec, segment, task, step)
        if codec.info.stateful:
            old = self.feedback.current(segment, task.role)
            item = item._replace(state=old, new_state=self.feedback.following(segment, task.role))
        return item

    def _shared(self, codec: BatchCodec, segment: Segment, step: int) -> int | None:
        if not codec.info.keyed:
            return None
        return shared_seed(self._run_seed, step, segment.gradient, segment.part)

    def _vector(self, elements: int) -> Vector:
        return self._pool.take(4 * elements).view(np.float32)

    def _give_back(self, total: Sum) -> None:
        if total.whole is not None:
            self._pool.give(total.whole.view(np.uint8))
            return
        for value in total.values:
            if value is not None:
                self._pool.give(value.view(np.uint8))

    def _result(self, results: MutableMapping[str, Values | None], segment: Segment) -> Vector:
        whole = results[segment.gradient]
        if whole is None:
            elements = max(
                s.stop for p in self.partitions for s in p.segments if s.gradient == segment.gradient
            )
            whole = results[segment.gradient] = np.empty(elements, np.float32)
        assert not isinstance(whole, Rows)
        return whole[segment.start : segment.stop]


def _slice(gradients: Mapping[str, Values | None], segment: Segment) -> Vector | None:
    """The segment's elements; of rows, those of all that are there."""
    whole = gradients[segment.gradient]
    if isinstance(whole, Rows):
        return whole.values.reshape(-1)
    return None if whole is None else whole[segment.start : segment.stop]
