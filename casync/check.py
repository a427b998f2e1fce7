"""Does it hold here? Codecs in topologies: allowed, proved, and run for a few steps on random gradients.

What is run is what training runs. All ranks must end with the same bits, uncompressed gradients with the
average, and as many messages and bytes must have been sent as the schedule says.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from casync.bodies import BodyFormat
from casync.choice import CodecError, check_down, refusal
from casync.frames import HEADER_BYTES
from casync.plan import GRANULE, Entry, Gradient, Plan, layout
from casync.primitives import Encode, Recv, Send
from casync.spec import Spec
from casync.synchronizer import Synchronizer
from casync.verify import ScheduleError, verify

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casync.channels import Channels
    from casync.codecs import BatchCodec
    from casync.control import Control
    from casync.plan import Partition
    from casync.primitives import Task
    from casync.topologies import Nodes

GRADIENTS = (
    Gradient("embedding.weight", (1000, 64)),
    Gradient("attention.weight", (96, 288)),
    Gradient("attention.bias", (288,)),
    Gradient("head.weight", (256, 100)),
    Gradient("head.bias", (100,)),
)
"""What is synchronized where no model is given."""

STEPS = 3


@dataclass(frozen=True)
class Traffic:
    """What a rank's schedule says that it sends a step. exact: the bytes are that many, not at most."""

    messages: int
    nbytes: int
    exact: bool


@dataclass(frozen=True)
class Case:
    """A codec in a topology; gradients smaller than a granule are left exact where no plan is given.

    down: the codec of sums, None: the same one.
    """

    codec: BatchCodec
    topology: str
    gradients: tuple[Gradient, ...]
    plan: Plan | None
    nodes: Nodes
    down: BatchCodec | None = None

    @property
    def name(self) -> str:
        """The codecs' names."""
        return self.codec.info.name + (f", down={self.down.info.name}" if self.down else "")

    @property
    def codecs(self) -> Mapping[str, BatchCodec]:
        """The codec by gradient, for those that are compressed."""
        return {gradient.name: self.codec for gradient in self.gradients}

    @property
    def ranks(self) -> int:
        """The number of ranks."""
        return sum(map(len, self.nodes))

    def spec(self) -> Spec:
        """What the ranks synchronize."""
        entries = tuple(Entry(g.name, g.elements >= GRANULE, self.ranks) for g in self.gradients)
        plan = self.plan or Plan(entries, source="the check's plan")
        return Spec(self.gradients, plan, self.codec, self.topology, seed=1, nodes=self.nodes, down=self.down)


@dataclass(frozen=True)
class Verdict:
    """What came out. refused: why it is not allowed. faults: what is wrong. Both empty: it holds.

    codec: the case's name. messages, nbytes: of all ranks, a step. ratio: how many times fewer bytes than
    float32.
    """

    codec: str
    topology: str
    refused: str = ""
    faults: tuple[str, ...] = ()
    messages: int = 0
    nbytes: int = 0
    ratio: float = 1.0


def symbolic(case: Case) -> Verdict:
    """Whether the codec is allowed in the topology, and the schedule of this run computes the sum."""
    reason = _refusal(case)
    if reason:
        return Verdict(case.name, case.topology, refused=reason)
    spec = case.spec()
    spec.plan.check(spec.gradients, spec.topology, case.ranks)
    partitions = layout(spec.plan, spec.gradients, spec.topology, case.ranks)
    try:
        verify(spec.tasks(partitions, case.codecs, case.ranks), len(partitions))
    except ScheduleError as error:
        return Verdict(case.name, case.topology, faults=tuple(str(fault) for fault in error.faults))
    return Verdict(case.name, case.topology)


def _refusal(case: Case) -> str:
    if case.down is not None:
        try:
            check_down(case.down, case.topology)
        except CodecError as error:
            return str(error)
    return refusal(case.codec, case.topology, down=case.down is not None)


def traffic(tasks: Sequence[Task], partitions: Sequence[Partition], case: Case) -> Traffic:
    """What one rank sends a step, float32 gradients all present."""
    messages = nbytes = 0
    exact = True
    for task in tasks:
        if isinstance(task, Send):
            partition, made = partitions[task.partition], tasks[task.payload]
            exactly, of_sum = (made.exact, made.down) if isinstance(made, Encode | Recv) else (False, False)
            plain = exactly or not partition.compressed
            codec = case.down if case.down is not None and of_sum else case.codec
            fixed = plain or codec.info.exact_size
            sizes = [4 * s.elements if plain else codec.max_bytes(s.elements) for s in partition.segments]
            messages += 1
            nbytes += HEADER_BYTES + BodyFormat(tuple(sizes), fixed).whole
            exact = exact and fixed
    return Traffic(messages, nbytes, exact)


def _drawn(case: Case, step: int, rank: int, number: int) -> np.ndarray:
    generator = np.random.default_rng([step, rank, number])
    return generator.standard_normal(case.gradients[number].elements, np.float32)


def run(case: Case, control: Control, channels: Channels, threads: int) -> Verdict:
    """Collective: run a case that is allowed; the same verdict on every rank. Raises RankFailure."""
    spec = case.spec()
    sync = Synchronizer(control, channels, spec, threads=threads)
    try:
        found, fault = _stepped(case, sync, control)
        stats = sync.stats()
        tasks = sync.spec.tasks(sync.partitions, case.codecs, case.ranks)[control.rank]
        expected = traffic(tasks, sync.partitions, case)
    finally:
        sync.close()
    faults = [fault] if fault else []
    sent, most = stats.bytes_sent, STEPS * expected.nbytes
    if stats.messages_sent != STEPS * expected.messages:
        faults.append(f"it sent {stats.messages_sent} messages, its schedule has {STEPS * expected.messages}")
    if sent > most or (expected.exact and sent != most):
        faults.append(f"it sent {sent} bytes, its schedule has {'' if expected.exact else 'at most '}{most}")
    mine = [found, faults, stats.messages_sent, sent, stats.raw_bytes_sent]
    told = [json.loads(value) for value in control.gather("the check", json.dumps(mine).encode())]
    faults = [f"rank {rank}: {fault}" for rank, each in enumerate(told) for fault in each[1]]
    strays = [rank for rank, each in enumerate(told) if each[0] != told[0][0]]
    if strays:
        faults.append(f"rank {', '.join(map(str, strays))} ended with other bits than rank 0")
    messages, nbytes, raw = (sum(each[column] for each in told) for column in (2, 3, 4))
    return Verdict(
        case.name,
        case.topology,
        faults=tuple(faults),
        messages=messages // STEPS,
        nbytes=nbytes // STEPS,
        ratio=raw / nbytes if nbytes else 1.0,
    )


def _stepped(case: Case, sync: Synchronizer, control: Control) -> tuple[str, str]:
    """A hash of all results of all steps, and what is wrong with the uncompressed ones."""
    planned = {entry.gradient for entry in case.spec().plan.entries if entry.compressed}
    digest = hashlib.sha256()
    fault = ""
    for step in range(STEPS):
        held = [_drawn(case, step, control.rank, number) for number in range(len(case.gradients))]
        for number in np.random.default_rng(control.rank).permutation(len(held)):
            sync.submit(case.gradients[number].name, held[number])
        sync.synchronize()
        for number, (gradient, values) in enumerate(zip(case.gradients, held, strict=True)):
            digest.update(values.tobytes())
            if gradient.name not in planned:
                terms = [_drawn(case, step, rank, number) for rank in range(case.ranks)]
                if not np.allclose(values, np.mean(terms, axis=0, dtype=np.float64), rtol=1e-5, atol=1e-5):
                    fault = fault or f"the average of {gradient.name} is wrong in step {step}"
    return digest.hexdigest(), fault
