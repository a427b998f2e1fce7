"""What all ranks must hold alike of a synchronization, and the codecs of a step of it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING

from casync.choice import AUTO, check_codec, check_down, check_row_codec, choose, demands
from casync.feedback import keeps_more
from casync.plan import EXACT, Gradient, Partition, Plan, schedule
from casync.rules import Codecs, Schedule, at, changes
from casync.topologies import check_nodes, even_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from casync.codecs import BatchCodec
    from casync.primitives import Schedule as Tasks
    from casync.rules import Choice, Rule
    from casync.topologies import Nodes


class Op(Enum):
    """What the ranks' gradients become."""

    AVERAGE = "average"
    SUM = "sum"


@dataclass(frozen=True)
class Spec:
    """What all ranks must hold alike. codec: of what no rule names; None: exact. seed: of random codecs.

    topology: of what is compressed; "auto" is chosen by `casync.choice`. nodes: None: each rank has its own.
    down: of compressed sums, where the topology encodes any; None: that of the gradient.
    exact: what sums the rest: "ring", or the name of an engine (`casync.engines`).
    """

    gradients: tuple[Gradient, ...]
    plan: Plan
    codec: Choice
    topology: str
    op: Op = Op.AVERAGE
    seed: int = 0
    nodes: Nodes | None = None
    rules: tuple[tuple[Rule, Choice], ...] = ()
    down: Choice = None
    exact: str = EXACT

    @property
    def codecs(self) -> Codecs:
        """What each gradient is compressed by."""
        return Codecs(self.codec, self.rules)

    @property
    def compressible(self) -> frozenset[Gradient]:
        """The gradients that the plan compresses."""
        planned = {entry.gradient for entry in self.plan.entries if entry.compressed}
        return frozenset(g for g in self.gradients if g.name in planned)

    def settled(self, nranks: int) -> Spec:
        """The same with the topology chosen and the nodes in order; ValueError for nodes that cannot be.

        One rank needs no engine.
        """
        nodes = even_nodes(nranks) if self.nodes is None else check_nodes(self.nodes, nranks)
        topology = self.topology
        if topology == AUTO:
            codecs = tuple(self.codecs.all(self.compressible, rows=False))
            topology = choose(codecs, self.plan, nodes, down=self.down is not None)
        exact = EXACT if nranks == 1 else self.exact
        return replace(self, topology=topology, nodes=nodes, exact=exact)

    def check_codecs(self) -> None:
        """Raise CodecError for a codec that cannot be used for the gradients that some step gives it to."""
        for step in sorted({0, *self.codecs.changes(), *changes(self.down)}):
            codecs, down = self.codecs.at(step), at(self.down, step)
            if down is not None:
                check_down(down, self.topology)
            for codec in codecs.all(self.compressible, rows=False):
                check_codec(codec, self.topology, down=down is not None)
            for codec in codecs.all(self.compressible, rows=True):
                check_row_codec(codec)

    def tasks(self, partitions: Sequence[Partition], codecs: Mapping[str, BatchCodec], nranks: int) -> Tasks:
        """All ranks' tasks for a layout. codecs: of the gradients, at least of those that are compressed."""
        through = {
            number
            for number, partition in enumerate(partitions)
            if partition.compressed
            and demands(self.topology).encodes_sums
            and keeps_more(codecs[partition.segments[0].gradient])
        }
        return schedule(partitions, self.topology, nranks, self.nodes, self.exact, through)

    def facts(self) -> dict[str, str]:
        """The facts that ranks compare before the first step."""
        return {
            "casync": version("compll"),
            **{
                f"gradient {g.name}": f"{'rows of ' * g.rows}shape {list(g.shape)}, {g.dtype}"
                for g in self.gradients
            },
            "order of gradients": sha256("\n".join(g.name for g in self.gradients).encode()).hexdigest(),
            "plan": self.plan.fingerprint,
            "codec": described(self.codec),
            **{f"rule {i}, {rule}": described(c) for i, (rule, c) in enumerate(self.rules)},
            "down": described(self.down),
            "topology": self.topology,
            "exact": self.exact,
            "nodes": str(self.nodes),
            "op": self.op.value,
            "seed": str(self.seed),
        }


def described(choice: Choice) -> str:
    """A codec, and the values of its parameters: run-time ones are not in the fingerprint."""
    if choice is None:
        return "none"
    if isinstance(choice, Schedule):
        return "; ".join(f"from step {step}: {described(choice.at(step))}" for step in choice.stages)
    values = ", ".join(f"{name}={parameter.value}" for name, parameter in choice.info.params.items())
    return f"{choice.info.name}({values}) {choice.info.fingerprint}"


def equal(a: Choice, b: Choice) -> bool:
    """Whether two codecs are the same one; a rank may have compiled it twice."""
    return a is b or described(a) == described(b)


@dataclass(frozen=True)
class InUse:
    """The codecs of a step: of each gradient, None: exact; and of sums, None: that of the gradient."""

    gradients: dict[str, BatchCodec | None]
    down: BatchCodec | None
