"""What encode, merge and decode do to real gradients: codecs, state and seeds, segment by segment.

A segment is absent (None) on a rank whose gradient did not fire. A compressed payload that is not finite has
no body: nobody decodes it, and its partition ends as NaN on every rank. Uncompressed values pass as they are.

Where the values lie, and when what becomes of them is known, is the memory's affair (`casync.memory`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from casync.bodies import BodyFormat
from casync.buffers import Lease
from casync.dtypes import DTYPES
from casync.fields import PayloadFields
from casync.payload import Payload, Sum
from casync.plain import Plain, all_finite
from casync.primitives import Role
from casync.rows import Rows, flat
from casync.seeds import private_seed, shared_seed
from casync.terms import Terms
from compll.codec import Item

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping, Sequence

    from numpy.typing import NDArray

    from casync.codecs import BatchCodec
    from casync.feedback import Feedback
    from casync.memory import Flag, Memory
    from casync.plan import Partition, Segment
    from casync.primitives import Decode, Encode, Merge
    from casync.rows import Values
    from compll.codec import Operation, Result

    Vector = NDArray[np.float32]
    Bytes = NDArray[np.uint8]


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
        memory: Memory,
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
        self.memory = memory
        self.codecs = codecs
        self._down = down
        self._dtypes = dtypes
        self._plain = Plain()
        self._compressed = {s.gradient for p in partitions if p.compressed for s in p.segments}
        self._scale = np.float32(scale)
        self._run_seed = run_seed
        self._threads = threads
        self._pool = memory.pool
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
        then: Callable[[Payload], None],
    ) -> None:
        """Encode the gradient, the sum, or gradient and received payload; `readers` tasks read the result.

        `then` is called with it.
        """
        partition, form = self.partitions[task.partition], self._format(task.partition, task)
        codec = self._of(partition, task)
        before = total.finite if total else received.finite if received else True
        if partition.compressed and not before:
            if total:
                self._give_back(total)
            then(_lost(task))
            return
        parts = self.memory.parts(form, received) if received else [None] * len(partition.segments)
        scale = self._scale if task.final else np.float32(1)
        lease = Lease(self._pool, form.capacity, readers)
        encodes: list[tuple[int, Item]] = []
        hops: list[tuple[int, Item]] = []
        for i, (segment, slot, part) in enumerate(
            zip(partition.segments, form.slots(lease.buffer), parts, strict=True)
        ):
            own = total.values[i] if total else _slice(gradients, segment)
            if part is not None:
                if own is None:
                    own = self.memory.empty(segment.elements)
                    own[:] = 0
                item = Item(grad=own, out=slot, payload=part, scale=float(scale))
                hops.append((i, self._with_seeds_and_state(item, codec, segment, task, step)))
            elif own is not None:
                if scale != 1:
                    own = np.multiply(own, scale, out=own if total else None)
                item = Item(grad=own, out=slot)
                if not task.direct:
                    item = self._with_seeds_and_state(item, codec, segment, task, step)
                encodes.append((i, item))
        results: list[Result | None] = [None] * len(parts)
        ops: tuple[Operation, Operation] = ("encode", "hop")
        for op, chosen in zip(ops, (encodes, hops), strict=True):
            if chosen:
                found = (
                    [self._fields_of(partition.segments[i]).write(item, self._run) for i, item in chosen]
                    if task.direct
                    else self._batch(codec, op, chosen)
                )
                for (i, _), result in zip(chosen, found, strict=True):
                    results[i] = result
        if total:
            self._give_back(total)

        def known(body: Bytes, there: Sequence[Bytes | None] | None, finite: bool) -> None:
            finite = finite and before
            if partition.compressed and not finite:
                lease.give_back()
                then(_lost(task))
                return
            absent = any(result is None for result in results)
            then(Payload(body, absent, finite, lease, task.exact, task.down, there))

        self.memory.encoded(codec, form, lease, results, known)

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
        parts = self.memory.parts(self._format(task.partition, received), received)
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
                self._fields_of(segment).add(part, value, first, self._run)
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
        parts = self.memory.parts(self._format(task.partition, payload), payload)
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
            self._run(codec, "decode", items)

    def unscale(self, gradient: str, values: Values, loss_scale: float) -> None:
        """Divide a gradient by the loss scale, in place, if it has partitions that are compressed.

        So codecs and residuals see its true units, while what travels in its own type keeps its range.
        """
        if gradient in self._compressed:
            np.multiply(flat(values), np.float32(1 / loss_scale), out=flat(values))

    def settle(
        self,
        task: Decode,
        results: Mapping[str, Values | None],
        loss_scale: float,
        then: Callable[[bool], None],
    ) -> None:
        """Give a compressed partition's result the loss scale back; tell whether its type can hold it."""
        partition = self.partitions[task.partition]
        dtype = self._dtypes[partition.segments[0].gradient]
        fits: list[Flag] = []
        for segment in partition.segments if loss_scale != 1 or dtype != "float32" else ():
            values = _slice(results, segment)
            if values is None or not values.size:
                continue
            if partition.compressed:
                values *= np.float32(loss_scale)
            largest = DTYPES[dtype].largest
            fits.append((values.max() <= largest) & (values.min() >= -largest))
        self.memory.known(fits, then)

    def raw_bytes(self, partition: int, payload: Payload) -> int:  # noqa: ARG002  (rows ask the payload)
        """What a payload would take as float32."""
        return 4 * self.partitions[partition].elements

    def finish(
        self,
        task: Decode,
        total: Sum,
        results: MutableMapping[str, Values | None],
        then: Callable[[bool], None],
    ) -> None:
        """Write the scaled sum over the gradient, in place of a payload; tell whether all is finite."""
        partition = self.partitions[task.partition]
        flags: list[Flag] = [total.finite]
        for value in total.values:
            if value is not None:
                value *= self._scale
                flags.append(all_finite(value))

        def known(finite: bool) -> None:
            for segment, value in zip(partition.segments, total.values, strict=True):
                if partition.compressed and not finite:
                    self._result(results, segment)[:] = np.nan
                elif value is not None:
                    self._result(results, segment)[:] = value
            self._give_back(total)
            then(finite)

        self.memory.known(flags, known)

    def _run(self, codec: BatchCodec, op: Operation, items: Sequence[Item]) -> list[Result]:
        return self.memory.run(codec, op, items, self._threads)

    def _batch(self, codec: BatchCodec, op: Operation, chosen: Sequence[tuple[int, Item]]) -> list[Result]:
        return self._run(codec, op, [item for _, item in chosen])

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
            whole = results[segment.gradient] = self.memory.lasting(elements)
        assert not isinstance(whole, Rows)
        return whole[segment.start : segment.stop]


def _slice(gradients: Mapping[str, Values | None], segment: Segment) -> Vector | None:
    """The segment's elements; of rows, those of all that are there."""
    whole = gradients[segment.gradient]
    if isinstance(whole, Rows):
        return whole.values.reshape(-1)
    return None if whole is None else whole[segment.start : segment.stop]


def _lost(task: Encode) -> Payload:
    """What is sent of values that are not finite: no body."""
    return Payload(np.empty(0, np.uint8), False, False, exact=task.exact, down=task.down)
