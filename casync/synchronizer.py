"""The synchronization of a model's gradients, without a framework: checks, plan, schedule and executor."""

from __future__ import annotations

import os
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from casync import gpu
from casync.checkpoint import Checkpoint, Run, StateError
from casync.codecs import BatchCodec
from casync.collectives import Collectives
from casync.compute import Compute
from casync.dtypes import exact
from casync.engines import base as engines
from casync.events import Outcome
from casync.executor import Executor
from casync.feedback import Feedback, Site, sites
from casync.handover import hand_over
from casync.memory import Host
from casync.plan import EXACT, Partition, layout
from casync.report import Report, lines
from casync.row_compute import RowCompute
from casync.rows import Rows, check, flat
from casync.rules import Codecs, at
from casync.spec import InUse, Op, Spec, described, equal
from casync.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from numpy.typing import NDArray

    from casync.channels import Channels
    from casync.control import Control
    from casync.feedback import Held
    from casync.memory import Memory
    from casync.metrics import Stats
    from casync.primitives import Task
    from casync.rows import Values
    from casync.rules import Choice

MOST_SAID = 2000
"""Characters of a reason that other ranks are told."""


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
        memory: Memory | None = None,
    ) -> None:
        """Collective: raises MismatchError on every rank if the ranks' specs differ.

        Raises PlanError, CodecError, EngineError and ValueError for a plan, a codec, an engine or nodes that
        do not fit the run.
        threads: of each kernel; default: the cores that this process may use. watch: what to look at.
        memory: where this rank's gradients lie, closed with this; default: host memory. Ranks may differ.
        """
        self.spec = spec = spec.settled(control.size)
        self._control, self._channels = control, channels
        self._memory: Memory = memory or Host()
        self._watch = watch or Watch()
        self._threads = threads or len(os.sched_getaffinity(0))
        spec.plan.check(spec.gradients, spec.topology, control.size)
        spec.check_codecs()
        open_engine = None if spec.exact == EXACT else engines.load(spec.exact)
        if self._memory.on_gpu:
            gpu.check(spec.gradients, spec.exact)
        facts = spec.facts()
        if channels.device:  # a body arrives where it was sent from
            facts["the gradients lie"] = "on a GPU" if self._memory.on_gpu else "in host memory"
        control.agree("what is synchronized", facts)  # before a kernel is compiled: that takes long
        self._exact = {dtype: exact(dtype) for dtype in {g.dtype for g in spec.gradients}}
        self._choices = self._chosen(spec.codecs)
        self._codecs = self._at(0)
        self._gradients = {g.name: g for g in spec.gradients}
        self._left: dict[str, NDArray[np.float32]] = {}
        self._added: set[str] = set()
        tasks, self._compute = self._built(self._codecs)
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
        compressible = self.spec.compressible
        return {g.name: codecs.of_gradient(g) if g in compressible else None for g in self.spec.gradients}

    def _at(self, step: int) -> InUse:
        codecs = {name: at(choice, step) for name, choice in self._choices.items()}
        return InUse(codecs, at(self.spec.down, step))

    def _built(self, in_use: InUse) -> tuple[Sequence[Task], Compute]:
        """This rank's tasks, and what executes them, with zero state."""
        spec, control, chosen, down = self.spec, self._control, in_use.gradients, in_use.down
        entries = tuple(replace(e, compressed=chosen.get(e.gradient) is not None) for e in spec.plan.entries)
        plan = replace(spec.plan, entries=entries)
        words = {name: described(codec) for name, codec in chosen.items()}
        partitions = layout(plan, spec.gradients, spec.topology, control.size, spec.exact, words)
        codecs = {g.name: chosen[g.name] or self._exact[g.dtype] for g in spec.gradients}
        tasks = spec.tasks(partitions, codecs, control.size)[control.rank]
        average = spec.op is Op.AVERAGE

        def codec_of(site: Site) -> BatchCodec:
            return codecs[site.gradient] if down is None or not site.down else down

        feedback = Feedback(sites(tasks, partitions, average), codec_of, self._memory)
        compute = RowCompute(
            control.rank,
            partitions,
            codecs,
            feedback,
            self._memory,
            down=down,
            dtypes={g.name: g.dtype for g in spec.gradients},
            scale=1 / control.size if average else 1.0,
            run_seed=spec.seed,
            threads=self._threads,
        )
        return tasks, compute

    def submit(self, gradient: str, values: Values) -> None:
        """Hand over a gradient, flat and contiguous float32: its memory is overwritten with the result.

        Of a gradient of rows, `Rows`: the result is another one, with the rows of all ranks; TypeError and
        ValueError for what is not of its shape.
        """
        self._memory.check(gradient, values)
        check(self._gradients[gradient], values)
        if gradient in self._left:
            left = self._memory.upload(self._left[gradient] * np.float32(self._executor.loss_scale))
            if isinstance(values, Rows):
                values = values.plus(left)
            else:
                values += left
            self._added.add(gradient)
        seen = flat(values)
        if self._watch.probe is not None and seen.size:
            step, scale = self._executor.step, self._executor.loss_scale
            there = partial(self._memory.to_host, seen)
            self._watch.probe.look(step, gradient, there, self._codecs.gradients[gradient], scale)
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
        self._use(self._at(self.step))

    def switch(self, codecs: Codecs) -> None:
        """Collective: compress by other codecs from the coming step on. Between steps.

        What residuals hold and the new codecs have no place for is added to the next gradients; see
        `casync.handover`. Raises CodecError, and MismatchError on every rank if the ranks' choices differ.
        """
        spec = replace(self.spec, codec=codecs.default, rules=codecs.rules)
        spec.check_codecs()
        self._control.agree(f"the codecs from step {self.step} on", spec.facts())
        self.spec, self._choices = spec, self._chosen(codecs)
        self.advance()

    def _use(self, chosen: InUse) -> None:
        now = self._codecs
        same = (equal(codec, chosen.gradients[name]) for name, codec in now.gradients.items())
        if all(same) and equal(now.down, chosen.down):
            return
        tasks, compute = self._built(chosen)
        left = self._hand_over(self._compute.feedback.held(), compute.feedback, self._left)
        self._install(chosen, tasks, compute, left)

    def _hand_over(
        self, held: Iterable[Held], new: Feedback, left: Mapping[str, NDArray[np.float32]]
    ) -> dict[str, NDArray[np.float32]]:
        """Move state into `new`; returns what is left to add to the next gradients, `left` included."""
        elements = {g.name: g.elements for g in self.spec.gradients}
        rest = hand_over(held, new, elements, self._control.size)
        shared = {gradient: left[gradient] + rest[gradient] for gradient in left.keys() & rest.keys()}
        return {**left, **rest, **shared}

    def _install(
        self,
        chosen: InUse,
        tasks: Sequence[Task],
        compute: Compute,
        left: dict[str, NDArray[np.float32]],
    ) -> None:
        """Collective: use these from the coming step on."""
        self._codecs, self._compute, self._left = chosen, compute, left
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
        rank, size = self._channels.ranks[self._control.rank], self._control.size
        return Report(rank, size, self.spec.topology, meter.stats(), found, self._channels.group)

    @property
    def _run(self) -> Run:
        spec, control = self.spec, self._control
        return Run.of(spec.seed, spec.topology, control.size, control.rank, spec.op.value, spec.gradients)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs on this rank, between steps: residuals, step and seed, as copies."""
        held = tuple(self._compute.feedback.held())
        return Checkpoint(self._run, self.step, held, self._left).written()

    def load_state_dict(self, saved: Mapping[str, Any] | None, fault: Exception | None = None) -> None:
        """Collective, between steps: continue from this rank's `state_dict`, or from all ranks', merged.

        saved: None if this rank has none; then no rank may have one, and nothing changes. fault: what the
        caller has found against it on this rank. If it does not fit on one rank, nothing changes on any, and
        all raise: that rank its reason, the others StateError with it; MismatchError if their steps differ.
        """
        resumed = None
        try:
            if saved is not None and fault is None:
                resumed = self._resumed(Checkpoint.read(saved))
        except StateError as error:
            fault = error
        self._raise_together(fault)
        step = "no state" if resumed is None else str(resumed[0])
        self._control.agree("the state to continue from", {"step": step})
        if resumed is not None:
            self._executor.first_step = resumed[0] - self._executor.step
            self._install(*resumed[1:])

    def _resumed(
        self, checkpoint: Checkpoint
    ) -> tuple[int, InUse, Sequence[Task], Compute, dict[str, NDArray[np.float32]]]:
        """The step to continue from, and what to install for it; StateError if the state does not fit."""
        checkpoint.check(self._run)
        chosen = self._at(checkpoint.step)
        tasks, compute = self._built(chosen)
        held, left = checkpoint.parts(self._run, compute.partitions)
        return checkpoint.step, chosen, tasks, compute, self._hand_over(held, compute.feedback, left)

    def _raise_together(self, fault: Exception | None) -> None:
        """Collective: raise this rank's fault, or, if only others have one, what they say."""
        said = "" if fault is None else f"{fault}"[:MOST_SAID] or type(fault).__name__
        told = [text.decode() for text in self._control.gather("whether to load a state", said.encode())]
        if fault is not None:
            raise fault
        if any(told):
            first = next(rank for rank, text in enumerate(told) if text)
            raise StateError(f"rank {first} cannot load its state, so no rank has: {told[first]}")

    def close(self) -> None:
        """End the compute thread. Idempotent."""
        self._executor.close()
