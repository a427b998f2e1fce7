"""What synchronising one gradient costs: pure functions, times in milliseconds.

The formulas are those of SeCoPa as HiPress (SOSP'21) shipped them, and there is one set of them here. A
`Model` fills in what each primitive costs: `published` with the shipped constants (clusters of 4, 8 and 16
nodes), `measured` with curves measured on this machine and a stated link, for any number of nodes.

For N nodes and K partitions of x elements each (K = 1..N, so that a link carries one partition at a time):

    PS    plain       gather(x) + broadcast(x) + (N-1) merge(x)
          compressed  gather'(x) + broadcast'(x)
                      + min(K+1, N) encode(x) + (N-1) decode_add(x) + min(K, N-1) decode(x)
    RING  plain       2(N-1) step(x) + (N-1) merge(x)
          compressed  2(N-1) step'(x) + N encode(x) + (N-1) decode_add(x) + decode(x)

where ' marks the transfer of the payload of x elements instead of their 4x bytes. N-1 + min(K, N-1) is the
published min(N-1+K, 2(N-1)) decodes, split into those that merge (our runtime fuses decode and addition) and
those that only write; the ring's N decodes split alike.

How that counts our runtime's tasks. PS: a partition has N-1 worker encodes and 1 owner encode, since the
owner merges its own gradient exactly. A node that owns nothing encodes K times, and then an owner once: K+1;
with K = N each node encodes for the N-1 others and once as owner: N. Every node decodes all K broadcasts, its
own too, so at K = N our runtime does one decode more than the published count, which we keep. RING: N encodes
and N decodes lie on a partition's critical path, as published; the other decodes overlap with forwarding.

Our runtime lets uncompressed gradients share buckets, so in the `measured` model one that is smaller than a
bucket costs its share of a full one. Overlap with the backward pass and other traffic are not seen.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from casync.frames import HEADER_BYTES
from casync.plan import BUCKET_BYTES, GRANULE
from secopa.inputs import SecopaError

if TYPE_CHECKING:
    from secopa.profile import Profile

Cost = Callable[[float], float]
"""Milliseconds of a primitive on a partition, from the partition's float32 elements."""

PUBLISHED_RATIO: Final = 1 / 16
"""Payload over gradient in the published model: 2 bits for 32, whatever the codec."""


@dataclass(frozen=True)
class Costs:
    """What each primitive costs on one partition. `_payload`: the same transfer of the encoded partition."""

    gather: Cost
    broadcast: Cost
    step: Cost
    gather_payload: Cost
    broadcast_payload: Cost
    step_payload: Cost
    merge: Cost
    encode: Cost
    decode: Cost
    decode_add: Cost


def plain_ms(topology: str, nnodes: int, x: float, costs: Costs) -> float:
    """Milliseconds to sum partitions of x elements uncompressed; the formulas stand at the module's head.

    Source: SeCoPa as shipped (`PS orig`, `Ring orig`); merging, free there, is added.
    """
    others = nnodes - 1
    if topology == "PS":
        return costs.gather(x) + costs.broadcast(x) + others * costs.merge(x)
    return 2 * others * costs.step(x) + others * costs.merge(x)


def compressed_ms(topology: str, nnodes: int, partitions: int, x: float, costs: Costs) -> float:
    """Milliseconds to sum `partitions` partitions of x elements compressed; formulas at the module's head.

    Source: SeCoPa as shipped (`PS cpr`, `Ring cpr`).
    """
    others = nnodes - 1
    if topology == "PS":
        return (
            costs.gather_payload(x)
            + costs.broadcast_payload(x)
            + min(partitions + 1, nnodes) * costs.encode(x)
            + others * costs.decode_add(x)
            + min(partitions, others) * costs.decode(x)
        )
    return (
        2 * others * costs.step_payload(x)
        + nnodes * costs.encode(x)
        + others * costs.decode_add(x)
        + costs.decode(x)
    )


@dataclass(frozen=True)
class Model:
    """The formulas for one topology and number of nodes, with every primitive's cost filled in.

    unit: partitions begin at multiples of so many elements; 0: a gradient is cut anywhere (as published).
    bucket: elements that uncompressed gradients fill a bucket with; 0: each travels alone (as published).
    """

    name: str
    topology: str
    nnodes: int
    costs: Costs
    unit: int
    bucket: int

    def plain_candidates(self) -> range:
        """Partition counts of a gradient left uncompressed: 1 to N, whatever its size.

        It travels in a bucket with others, and the bucket has as many partitions as any of them asks for.
        """
        return range(1, self.nnodes + 1)

    def compressed_candidates(self, elements: int) -> range:
        """Partition counts of a compressed gradient: 1 to N, and no partition may be empty."""
        if self.unit == 0:
            return range(1, self.nnodes + 1)
        return range(1, min(self.nnodes, -(-elements // self.unit)) + 1)

    def size(self, elements: int, partitions: int) -> float:
        """Elements of the largest partition, the one that the others wait for (at most a unit too many)."""
        if self.unit == 0:
            return elements / partitions
        units = -(-elements // self.unit)
        return min(elements, self.unit * -(-units // partitions))

    def plain(self, elements: int, partitions: int) -> float:
        """Milliseconds to synchronise the gradient uncompressed: its share of the bucket that it is in."""
        together = max(elements, self.bucket)
        x = self.size(together, partitions)
        return elements / together * plain_ms(self.topology, self.nnodes, x, self.costs)

    def compressed(self, elements: int, partitions: int) -> float:
        """Milliseconds to synchronise the gradient compressed."""
        x = self.size(elements, partitions)
        return compressed_ms(self.topology, self.nnodes, partitions, x, self.costs)


# The published model ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """cost(x) = overhead if x < (overhead - b) / w else w * x + b; x in float32 elements, result in ms.

    Source: SeCoPa as shipped, all constants below too.
    """

    w: float
    b: float
    overhead: float

    def __call__(self, x: float) -> float:
        """Milliseconds for x elements."""
        return self.overhead if x < (self.overhead - self.b) / self.w else self.w * x + self.b


ENCODE: Final = Line(1.4133e-8, 5.8938e-2, 0.05408)
DECODE: Final = Line(6.2041e-9, 1.3956e-1, 0.07287)
STEP: Final = Line(8.5005e-7, 0.20337, 0.09766)
GATHER: Final = {
    4: Line(2.7156e-6, 0.41930, 0.15573),
    8: Line(6.1167e-6, 0.80768, 0.28778),
    16: Line(1.2937e-5, 1.4406, 0.59503),
}
BROADCAST: Final = {
    4: Line(2.7157e-6, 0.22156, 0.14820),
    8: Line(6.1172e-6, 0.27285, 0.29666),
    16: Line(1.2915e-5, 0.45538, 0.58353),
}


def published(topology: str, nnodes: int) -> Model:
    """Return the published model with its constants (V100 GPUs, 56 Gbit/s), exactly.

    Its known faults are kept, since it is here to reproduce published plans: decoding is costed by the
    payload (x/16 elements) and not by what it writes, merging is free, the ratio is 1/16 for every codec, and
    K may exceed the partitions that a small gradient has (the runtime then cuts it into fewer). Raises
    SecopaError for N other than 4, 8 and 16.
    """
    if nnodes not in GATHER:
        raise SecopaError(
            f"--nnodes {nnodes}: the published constants (--cost hipress) exist for 4, 8 and 16 nodes only; "
            "leave --cost out: the default model (--cost measured) takes any number"
        )

    def of_payload(line: Line) -> Cost:
        return lambda x: line(PUBLISHED_RATIO * x)

    gather, broadcast = GATHER[nnodes], BROADCAST[nnodes]
    costs = Costs(
        gather=gather,
        broadcast=broadcast,
        step=STEP,
        gather_payload=of_payload(gather),
        broadcast_payload=of_payload(broadcast),
        step_payload=of_payload(STEP),
        merge=lambda _: 0.0,
        encode=ENCODE,
        decode=of_payload(DECODE),
        decode_add=of_payload(DECODE),
    )
    return Model("hipress", topology, nnodes, costs, unit=0, bucket=0)


# The default model -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Link:
    """A full-duplex link: `bandwidth` bits a second each way, `latency` seconds for each message."""

    bandwidth: float
    latency: float

    def ms(self, nbytes: float) -> float:
        """Milliseconds for one message with a body of nbytes: latency + 8 (32 + nbytes) / bandwidth."""
        return 1e3 * (self.latency + 8 * (HEADER_BYTES + nbytes) / self.bandwidth)


def check_nnodes(nnodes: int) -> None:
    """Raise SecopaError for fewer than one node."""
    if nnodes < 1:
        raise SecopaError(f"--nnodes {nnodes}: a job has 1 node or more; write e.g. --nnodes 4")


def measured(
    topology: str,
    nnodes: int,
    link: Link,
    profile: Profile,
    payload_bytes: Callable[[int], int],
    bucket: int = BUCKET_BYTES // 4,
) -> Model:
    """Return the default model: the same formulas for any N >= 1, a stated link and measured curves.

    step(x) is one message over the link; gather(x) and broadcast(x) are N-1 of them, one after the other
    through the owner's link. The published constants have the same shape: from N = 4 to 16 their slopes are
    N-1 times the ring step's within 7 %, and their fixed parts grow with N. Encode, decode, decode_add and
    merge are costed by the elements that they read or write. `payload_bytes(n)`: the payload of n elements
    (`Codec.max_bytes`: exact, or an upper limit where the codec's size is not exact). `bucket`: elements of a
    bucket of uncompressed gradients; a model with fewer in all has a smaller one.
    Raises SecopaError for N < 1.
    """
    check_nnodes(nnodes)

    def step(x: float) -> float:
        return link.ms(4 * x)

    def step_payload(x: float) -> float:
        return link.ms(payload_bytes(int(x)))

    def through_owner(transfer: Cost) -> Cost:
        return lambda x: (nnodes - 1) * transfer(x)

    costs = Costs(
        gather=through_owner(step),
        broadcast=through_owner(step),
        step=step,
        gather_payload=through_owner(step_payload),
        broadcast_payload=through_owner(step_payload),
        step_payload=step_payload,
        merge=profile.merge,
        encode=profile.encode,
        decode=profile.decode,
        decode_add=profile.decode_add,
    )
    return Model("measured", topology, nnodes, costs, unit=GRANULE, bucket=bucket)
