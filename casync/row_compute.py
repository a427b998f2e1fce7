"""What the tasks do to gradients of which rows travel: encode and merge, in the topology `ROWS`.

Every rank encodes its rows once, and every rank merges all payloads in rank order. How many rows a rank has,
only its frame says. A rank's residual is held for the whole gradient; only the rows that it sends take part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from casync.buffers import Lease
from casync.compute import Compute
from casync.payload import Payload, Sum
from casync.plain import all_finite
from casync.rows import Rows, add, body_of, count, split, write_head
from compll.codec import Item

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, MutableMapping

    from casync.primitives import Decode, Encode, Merge
    from casync.rows import Values


@dataclass(slots=True)
class RowSum(Sum):
    """The terms of a sum of rows, in rank order; `values` are their memory, which has room for more."""

    terms: list[Rows] = field(default_factory=list)


class RowCompute(Compute):
    """A `Compute` some of whose partitions are of rows."""

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
        """Encode the rows that are there: their indices, and their values by the codec."""
        partition = self.partitions[task.partition]
        if not partition.width:
            super().encode(task, step, gradients, received, total, readers, then)
            return
        (segment,) = partition.segments
        rows = gradients[segment.gradient]
        if rows is None:
            then(Payload(np.empty(0, np.uint8), True, True))
            return
        assert isinstance(rows, Rows)
        codec = self.codecs[segment.gradient]
        begin = body_of(rows.indices.size)
        most = begin + codec.max_bytes(rows.values.size)
        lease = Lease(self._pool, _room(most), readers)
        write_head(lease.buffer, rows.indices)
        if not rows.indices.size:
            then(Payload(lease.buffer[:4], False, True, lease))
            return
        item = Item(grad=rows.values.reshape(-1), out=lease.buffer[begin:most])
        item = self._with_seeds(item, codec, segment, task, step)
        if codec.info.stateful:
            state = self.feedback.rows(segment, task.role, rows.indices, partition.width)
            item = item._replace(state=state, new_state=state)
        (result,) = self._run(codec, "encode", [item])
        finite = bool(result.finite)
        end = begin + result.value.size if finite or not partition.compressed else begin
        then(Payload(lease.buffer[:end], False, finite, lease))

    def merge(
        self,
        task: Merge,
        step: int,
        gradients: Mapping[str, Values | None],
        received: Payload | None,
        total: Sum | None,
    ) -> Sum:
        """Decode a payload's rows, one more term of the sum."""
        partition = self.partitions[task.partition]
        if not partition.width:
            return super().merge(task, step, gradients, received, total)
        total = total or RowSum([])
        assert isinstance(total, RowSum)
        assert received is not None
        if received.absent:
            return total
        (segment,) = partition.segments
        codec = self.codecs[segment.gradient]
        indices, payload = split(received.body, segment.elements // partition.width)
        n = indices.size * partition.width
        memory = self._vector(_room(n))
        if partition.compressed and not received.finite:
            memory[:n] = np.nan
        elif n:
            shared = self._shared(codec, segment, step)
            self._run(codec, "decode", [Item(payload=payload, out=memory[:n], shared_seed=shared)])
        total.values.append(memory)
        total.terms.append(Rows(indices, memory[:n].reshape(-1, partition.width)))
        return total

    def finish(
        self,
        task: Decode,
        total: Sum,
        results: MutableMapping[str, Values | None],
        then: Callable[[bool], None],
    ) -> None:
        """Make the scaled sum the result, of all rows that some rank has; tell whether all is finite."""
        if not isinstance(total, RowSum):
            super().finish(task, total, results, then)
            return
        partition = self.partitions[task.partition]
        if not total.terms:
            then(True)
            return
        rows = add(total.terms, partition.width)
        np.multiply(rows.values, self._scale, out=rows.values)
        finite = bool(all_finite(rows.values))
        if partition.compressed and not finite:
            rows.values.fill(np.nan)
        results[partition.segments[0].gradient] = rows
        self._give_back(total)
        then(finite)

    def raw_bytes(self, partition: int, payload: Payload) -> int:
        """What the payload's rows would take with values of float32."""
        width = self.partitions[partition].width
        if not width:
            return super().raw_bytes(partition, payload)
        return 0 if payload.absent else 4 * (1 + count(payload.body) * (1 + width))


def _room(least: int) -> int:
    """The next power of two: sizes that differ from step to step share a pool's buffers."""
    return 1 << max(least - 1, 0).bit_length()
