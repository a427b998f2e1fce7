"""The synchronization of a model's gradients, without a framework: checks, plan, schedule and executor."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from enum import Enum
from hashlib import sha256
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from casync.choice import AUTO, check_codec, choose
from casync.collectives import Collectives
from casync.compute import BatchCodec, Compute
from casync.dtypes import exact
from casync.engines import base as engines
from casync.events import Outcome
from casync.executor import Executor
from casync.feedback import Feedback, StateError, sites
from casync.handover import hand_over
from casync.plan import EXACT, Gradient, Partition, Plan, layout, schedule
from casync.report import Report, lines
from casync.rules import Codecs, Schedule, at
from casync.topologies import check_nodes, even_nodes
from casync.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from casync.channels import Channels
    from casync.control import Control
    from casync.metrics import Stats
    from casync.primitives import Task
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
    exact: str = EXACT

    @property
    def codecs(self) -> Codecs:
        """What each gradient is compressed by."""
        return Codecs(self.codec, self.rules)

    def settled(self, nranks: int) -> Spec:
        """The same with the topology chosen and the nodes in order; ValueError for nodes that cannot be.

        One rank needs no engine.
        """
        nodes = even_nodes(nranks) if self.nodes is None else check_nodes(self.nodes, nranks)
        topology = self.topology
        if topology == AUTO:
            topology = choose(tuple(self.codecs.all()), self.plan, nodes)
        exact = EXACT if nranks == 1 else self.exact
        return replace(self, topology=topology, nodes=nodes, exact=exact)

    def facts(self) -> dict[str, str]:
        """The facts that ranks compare before the first step."""
        return {
            "casync": version("compll"),
            **{f"gradient {g.name}": f"shape {list(g.shape)}, {g.dtype}" for g in self.gradients},
            "order of gradients": sha256("\n".join(g.name for g in self.gradients).encode()).hexdigest(),
            "plan": self.plan.fingerprint,
            "codec": _described(self.codec),
            **{f"rule {i}, {rule}": _described(c) for i, (rule, c) in enumerate(self.rules)},
            "topology": self.topology,
            "exact": self.exact,
            "nodes": str(self.nodes),
            "op": self.op.value,
            "seed": str(self.seed),
        }


def _described(choice: Choice) -> str:
    """A codec, and the values of its parameters: run-time ones are not in the fingerprint."""
    if choice is None:
        return "none"
    if isinstance(choice, Schedule):
        return "; ".join(f"from step {step}: {_described(choice.at(step))}" for step in choice.stages)
    values = ", ".join(f"{name}={parameter.value}" for name, parameter in choice.info.params.items())
    return f"{choice.info.name}({values}) {choice.info.fingerprint}"


def _equal(a: Choice, b: Choice) -> bool:
    """Whether two codecs are the same one; a rank may have compiled it twice."""
    return a is b or _described(a) == _described(b)


class Synchronizer:
    """The synchronization of one model's gradients on one rank."""

    def __init__(
        self,
        control: Control,
        channels: Channels,
        spec: Spec,
        *,
        threads: int | None = None,
        watch: Watch | None = None,
    ) -> None:
        """Collective: raises MismatchError on every rank if the ranks' specs differ.

        Raises PlanError, CodecError, EngineError and ValueError for a plan, a codec, an engine or nodes that
        do not fit the run.
        threads: of each kernel; default: the cores that this process may use. watch: what to look at.
        """
        self.spec = spec = spec.settled(control.size)
        self._control = control
        self._watch = watch or Watch()
        self._threads = threads or len(os.sched_getaffinity(0))
        self._exact = {dtype: exact(dtype) for dtype in {g.dtype for g in spec.gradients}}
        spec.plan.check(spec.gradients, spec.topology, control.size)
        for codec in spec.codecs.all():
            check_codec(codec, spec.topology)
        open_engine = None if spec.exact == EXACT else engines.load(spec.exact)
        self._choices = self._chosen(spec.codecs)
        self._codecs = {name: at(choice, 0) for name, choice in self._choices.items()}
        self._left: dict[str, NDArray[np.float32]] = {}
        self._added: set[str] = set()
        tasks, self._compute = self._built(self._codecs)
        control.agree("what is synchronized", spec.facts())
        collectives = Collectives(control, open_engine) if open_engine else None
        self._executor = Executor(
            control, channels, tasks, self._compute, lane=self._watch.lane, collectives=collectives
        )

    @property
    def partitions(self) -> Sequence[Partition]:
        """What the current step's tasks work on."""
        return self._compute.partitions

    @property
    def step(self) -> int:
        """The number of steps since the run began, those before a checkpoint included."""
        return self._executor.first_step + self._executor.step

    def _chosen(self, codecs: Codecs) -> dict[str, Choice]:
        """The choice for each gradient. What the plan leaves exact stays that."""
        planned = {entry.gradient for entry in self.spec.plan.entries if entry.compressed}
        return {g.name: codecs.of_gradient(g) if g.name in planned else None for g in self.spec.gradients}

    def _built(self, chosen: Mapping[str, BatchCodec | None]) -> tuple[Sequence[Task], Compute]:
        """This rank's tasks, and what executes them, with zero state."""
        spec, control = self.spec, self._control
        entries = tuple(replace(e, compressed=chosen.get(e.gradient) is not None) for e in spec.plan.entries)
        plan = replace(spec.plan, entries=entries)
        partitions = layout(plan, spec.gradients, spec.topology, control.size, spec.exact)
        tasks = schedule(partitions, spec.topology, control.size, spec.nodes, spec.exact)[control.rank]
        codecs = {g.name: chosen[g.name] or self._exact[g.dtype] for g in spec.gradients}
        average = spec.op is Op.AVERAGE
        feedback = Feedback(
            [s for s in sites(tasks, partitions, average) if codecs[s.gradient].info.stateful],
            lambda gradient, n: codecs[gradient].new_state(n),
            spec.topology,
            control.size,
        )
        compute = Compute(
            control.rank,
            partitions,
            codecs,
            feedback,
            dtypes={g.name: g.dtype for g in spec.gradients},
            scale=1 / control.size if average else 1.0,
            run_seed=spec.seed,
            threads=self._threads,
        )
        return tasks, compute

    def submit(self, gradient: str, values: NDArray[np.float32]) -> None:
        """Hand over a flat, contiguous float32 gradient; its memory is overwritten with the result."""
        if gradient in self._left:
            values += self._left[gradient] * np.float32(self._executor.loss_scale)
            self._added.add(gradient)
        if self._watch.probe is not None:
            step, scale = self._executor.step, self._executor.loss_scale
            self._watch.probe.look(step, gradient, values, self._codecs[gradient], scale)
        self._executor.submit(gradient, values)

    def synchronize(self) -> Outcome:
        """Wait for the step's results; gradients that were not submitted are absent on this rank."""
        outcome = self._executor.synchronize()
        self._ended(outcome)
        return outcome

    def finish(self, done: Callable[[Outcome | None], None]) -> None:
        """End the step without waiting: `done(outcome)` follows, as of `Executor.finish`."""

        def ended(outcome: Outcome | None) -> None:
            self._ended(outcome)
            done(outcome)

        self._executor.finish(ended)

    def _ended(self, outcome: Outcome | None) -> None:
        if outcome is not None and outcome.finite:
            for gradient in self._added:
                del self._left[gradient]
        self._added.clear()
        if self._watch.advisor is not None:
            meter = self._executor.meter
            self._watch.advisor.stepped(meter.steps, meter.costs)

    @property
    def loss_scale(self) -> float:
        """What the gradients of this step are multiplied by; set before the first of them is submitted."""
        return self._executor.loss_scale

    @loss_scale.setter
    def loss_scale(self, value: float) -> None:
        self._executor.loss_scale = value

    def advance(self) -> None:
        """Collective if a schedule has another codec for the coming step: use that. Between steps."""
        self._use({name: at(choice, self.step) for name, choice in self._choices.items()})

    def switch(self, codecs: Codecs) -> None:
        """Collective: compress by other codecs from the coming step on. Between steps.

        What residuals hold and the new codecs have no place for is added to the next gradients; see
        `casync.handover`. Raises CodecError, and MismatchError on every rank if the ranks' choices differ.
        """
        for codec in codecs.all():
            check_codec(codec, self.spec.topology)
        spec = replace(self.spec, codec=codecs.default, rules=codecs.rules)
        self._control.agree(f"the codecs from step {self.step} on", spec.facts())
        self.spec, self._choices = spec, self._chosen(codecs)
        self.advance()

    def _use(self, chosen: dict[str, BatchCodec | None]) -> None:
        if all(_equal(codec, chosen[name]) for name, codec in self._codecs.items()):
            return
        tasks, compute = self._built(chosen)
        left = hand_over(
            self._compute.feedback,
            compute.feedback,
            self._compute.codecs,
            compute.codecs,
            {g.name: g.elements for g in self.spec.gradients},
        )
        for gradient, values in left.items():
            self._left[gradient] = self._left.get(gradient, np.float32(0)) + values
        self._codecs, self._compute = chosen, compute
        self._executor.replace(tasks, compute)
        # no rank sends by the new schedule before every rank can receive by it
        self._control.agree("the step of a change of codecs", {"step": str(self.step)})

    def stats(self) -> Stats:
        """The totals so far."""
        return self._executor.meter.stats()

    def report(self) -> Report:
        """The account so far: totals, and what each gradient has cost and loses. Between steps."""
        meter = self._executor.meter
        found = lines(meter.costs(), self._compute, self._watch.probe)
        return Report(self._control.rank, self._control.size, self.spec.topology, meter.stats(), found)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs on this rank, between steps: residuals, step and seed."""
        return {
            "step": self.step,
            "seed": self.spec.seed,
            "feedback": self._compute.feedback.state_dict(),
            "left": {gradient: values.copy() for gradient, values in self._left.items()},
        }

    def load_state_dict(self, saved: Mapping[str, Any]) -> None:
        """Collective: continue from this rank's `state_dict`; StateError if it does not fit the run."""
        if saved["seed"] != self.spec.seed:
            raise StateError(
                f"the state was saved in a run with seed {saved['seed']}, this one has {self.spec.seed}; "
                f"call casync.init(seed={saved['seed']}) to continue it"
            )
        self._control.agree("the step to continue from", {"step": str(saved["step"])})
        self._executor.first_step = saved["step"] - self._executor.step
        self.advance()
        self._compute.feedback.load_state_dict(saved["feedback"])
        self._left = {gradient: np.array(values) for gradient, values in saved.get("left", {}).items()}

    def close(self) -> None:
        """End the compute thread. Idempotent."""
        self._executor.close()
