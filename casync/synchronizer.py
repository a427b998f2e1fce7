"""The synchronization of a model's gradients, without a framework: checks, plan, schedule and executor."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from casync.choice import AUTO, check_codec, choose
from casync.compute import BatchCodec, Compute
from casync.executor import Executor, Outcome
from casync.feedback import Feedback, StateError, sites
from casync.plan import Gradient, Partition, Plan, layout, schedule
from casync.topologies import check_nodes, even_nodes

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from numpy.typing import NDArray

    from casync.channels import Channels
    from casync.control import Control
    from casync.feedback import State
    from casync.metrics import Stats
    from casync.topologies import Nodes


class Op(Enum):
    """What the ranks' gradients become."""

    AVERAGE = "average"
    SUM = "sum"


@dataclass(frozen=True)
class Spec:
    """What all ranks must hold alike. codec None: nothing is compressed. seed: of random codecs.

    topology: of what is compressed; "auto" is chosen by `casync.choice`. nodes: None: each rank has its own.
    """

    gradients: tuple[Gradient, ...]
    plan: Plan
    codec: BatchCodec | None
    topology: str
    op: Op = Op.AVERAGE
    seed: int = 0
    nodes: Nodes | None = None

    def settled(self, nranks: int) -> Spec:
        """The same with the topology chosen and the nodes in order; ValueError for nodes that cannot be."""
        nodes = even_nodes(nranks) if self.nodes is None else check_nodes(self.nodes, nranks)
        topology = choose(self.codec, self.plan, nodes) if self.topology == AUTO else self.topology
        return replace(self, topology=topology, nodes=nodes)

    def facts(self) -> dict[str, str]:
        """The facts that ranks compare before the first step."""
        return {
            "casync": version("compll"),
            **{f"gradient {g.name}": f"shape {list(g.shape)}" for g in self.gradients},
            "order of gradients": sha256("\n".join(g.name for g in self.gradients).encode()).hexdigest(),
            "plan": self.plan.fingerprint,
            "codec": f"{self.codec.info.name} {self.codec.info.fingerprint}" if self.codec else "none",
            "parameters": _parameters(self.codec),
            "topology": self.topology,
            "nodes": str(self.nodes),
            "op": self.op.value,
            "seed": str(self.seed),
        }


def _parameters(codec: BatchCodec | None) -> str:
    """The values of the codec's parameters: run-time ones are not in the fingerprint."""
    if codec is None:
        return ""
    return ", ".join(f"{name}={parameter.value}" for name, parameter in codec.info.params.items())


class Synchronizer:
    """The synchronization of one model's gradients on one rank."""

    def __init__(
        self, control: Control, channels: Channels, spec: Spec, *, threads: int | None = None
    ) -> None:
        """Collective: raises MismatchError on every rank if the ranks' specs differ.

        Raises PlanError, CodecError and ValueError for a plan, a codec or nodes that do not fit the run.
        threads: of each kernel; default: the cores that this process may use.
        """
        self.spec = spec = spec.settled(control.size)
        self._control = control
        spec.plan.check(spec.gradients, spec.topology, control.size)
        if spec.codec is not None:
            check_codec(spec.codec, spec.topology)
        plan = spec.plan if spec.codec is not None else spec.plan.uncompressed()
        self.partitions: tuple[Partition, ...] = layout(plan, spec.gradients, spec.topology, control.size)
        tasks = schedule(self.partitions, spec.topology, control.size, spec.nodes)[control.rank]
        average = spec.op is Op.AVERAGE
        stateful = spec.codec is not None and spec.codec.info.stateful
        self._feedback = Feedback(
            sites(tasks, self.partitions, average) if stateful else [],
            spec.codec.new_state if spec.codec is not None else _stateless,
            spec.topology,
            control.size,
        )
        compute = Compute(
            control.rank,
            self.partitions,
            spec.codec,
            self._feedback,
            scale=1 / control.size if average else 1.0,
            run_seed=spec.seed,
            threads=threads or len(os.sched_getaffinity(0)),
        )
        control.agree("what is synchronized", spec.facts())
        self._executor = Executor(control, channels, tasks, compute)

    def submit(self, gradient: str, values: NDArray[np.float32]) -> None:
        """Hand over a flat, contiguous float32 gradient; its memory is overwritten with the result."""
        self._executor.submit(gradient, values)

    def synchronize(self) -> Outcome:
        """Wait for the step's results; gradients that were not submitted are absent on this rank."""
        return self._executor.synchronize()

    def stats(self) -> Stats:
        """The totals so far."""
        return self._executor.stats()

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs on this rank, between steps: residuals, step and seed."""
        return {
            "step": self._executor.first_step + self._executor.step,
            "seed": self.spec.seed,
            "feedback": self._feedback.state_dict(),
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Collective: continue from this rank's `state_dict`; StateError if it does not fit the run."""
        if saved["seed"] != self.spec.seed:
            raise StateError(
                f"the state was saved in a run with seed {saved['seed']}, this one has {self.spec.seed}; "
                f"call casync.init(seed={saved['seed']}) to continue it"
            )
        self._feedback.load_state_dict(saved["feedback"])
        self._executor.first_step = saved["step"] - self._executor.step
        self._control.agree("the step to continue from", {"step": str(saved["step"])})

    def close(self) -> None:
        """End the compute thread. Idempotent."""
        self._executor.close()


def _stateless(n: int) -> State:  # noqa: ARG001  (a codec's signature)
    return {}
