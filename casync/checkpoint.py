"""The saved state of a rank, and of all ranks together: what it holds, whom it fits, how it is merged.

A rank saves what it holds, bit for bit: each vector with gradient, offset, role and unit, and with them the
number of ranks. Another plan cuts it anew. Another topology or number of ranks needs the states of all ranks:
`merge_states` adds up what each element has not been given yet, whatever rank and role held it, and whoever
owns the element in the new run takes the sum as its worker residual (`casync.handover`).

What is merged is in units of a sum over the N ranks that saved it. A run that averages over M ranks takes it
M / N times: what was held back of an average is the same part of an average again.

Other state (DGC's velocities) is merged in the same way: it is linear in the gradients, so the sum of all
ranks' state, kept by one of them, sends what they would have sent between them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from casync.feedback import AVERAGE, RESIDUAL, SUM, Held
from casync.primitives import Role

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from casync.plan import Gradient, Partition, Segment

    Vector = NDArray[np.float32]

FORMAT = 1
MOST = 4
"""How many differences an error lists."""


class StateError(ValueError):
    """A saved state that does not belong to this run; says what differs and how to mend it."""


@dataclass(frozen=True)
class Run:
    """The run that a state belongs to. What a state does not say (None), of before it was saved, fits any.

    rank: None in what is merged of all ranks. op: "average" or "sum". gradients: shapes by name.
    """

    seed: int
    topology: str
    size: int
    rank: int | None
    op: str | None
    gradients: Mapping[str, tuple[int, ...]] | None

    @classmethod
    def of(
        cls, seed: int, topology: str, size: int, rank: int, op: str, gradients: Iterable[Gradient]
    ) -> Run:
        """The run of a rank that synchronizes these gradients."""
        return cls(seed, topology, size, rank, op, {g.name: g.shape for g in gradients})


@dataclass(frozen=True)
class Checkpoint:
    """A saved state. left: what is to be added to the next gradients, in units of a sum.

    merged: it is that of all ranks.
    """

    run: Run
    step: int
    held: tuple[Held, ...]
    left: Mapping[str, Vector]
    merged: bool = False

    @classmethod
    def read(cls, saved: Mapping[str, Any]) -> Checkpoint:
        """Take what `written` wrote; StateError for another format and for what is no such state."""
        try:
            feedback = saved["feedback"]
            if feedback["format"] != FORMAT:
                raise StateError(
                    f"the state has format {feedback['format']}, this version of casync reads {FORMAT}; "
                    "resume with the version that saved it"
                )
            shapes = saved.get("gradients")
            run = Run(
                saved["seed"],
                feedback["topology"],
                feedback["size"],
                saved.get("rank"),
                saved.get("op"),
                None if shapes is None else {name: tuple(shape) for name, shape in shapes.items()},
            )
            held = tuple(_read(entry) for entry in feedback["entries"])
            left = {name: np.asarray(values, np.float32) for name, values in saved.get("left", {}).items()}
            return cls(run, saved["step"], held, left, saved.get("merged", False))
        except (KeyError, TypeError, AttributeError) as error:
            raise StateError(
                f"this is no state that casync has saved ({type(error).__name__}: {error}); give what "
                "state_dict() returned"
            ) from None

    def written(self) -> dict[str, Any]:
        """The state as numbers, strings and arrays, which are copies."""
        run = self.run
        shapes = (
            None if run.gradients is None else {name: list(shape) for name, shape in run.gradients.items()}
        )
        return {
            "step": self.step,
            "seed": run.seed,
            "op": run.op,
            "rank": run.rank,
            "merged": self.merged,
            "gradients": shapes,
            "feedback": {
                "format": FORMAT,
                "topology": run.topology,
                "size": run.size,
                "entries": [
                    {
                        "gradient": held.gradient,
                        "offset": held.offset,
                        "role": held.role.name,
                        "unit": held.unit,
                        "residual": held.residual,
                        "values": {name: values.copy() for name, values in held.values.items()},
                    }
                    for held in self.held
                ],
            },
            "left": {name: values.copy() for name, values in self.left.items()},
        }

    def check(self, run: Run) -> None:
        """Raise StateError unless this state can be continued by that rank of that run."""
        self._check_model(run)
        if self.run.seed != run.seed:
            raise StateError(
                f"the state was saved in a run with seed {self.run.seed}, this one has {run.seed}; "
                f"call casync.init(seed={self.run.seed}) to continue it"
            )
        if self.run.op not in (None, run.op):
            raise StateError(
                f"the state was saved with op {self.run.op}, this run has {run.op}; use that one"
            )
        if self.merged:
            return
        there, here = self.run, run
        if (there.topology, there.size) != (here.topology, here.size):
            raise StateError(
                f"the state was saved by one of {there.size} ranks in topology {there.topology}, this run "
                f"has {here.size} in {here.topology}; a rank's state is only its part: load "
                f"merge_states([...]) of the states of all {there.size} ranks, on every rank"
            )
        if there.rank not in (None, here.rank):
            raise StateError(
                f"the state was saved by rank {there.rank}, this is rank {here.rank}; each rank loads its "
                "own, or all load merge_states([...]) of the states of all ranks"
            )

    def _check_model(self, run: Run) -> None:
        here = run.gradients or {}
        there = self.run.gradients
        faults = []
        if there is not None:
            faults += _listed("not in the model: ", [n for n in there if n not in here])
            faults += _listed("not in the state: ", [n for n in here if n not in there])
            faults += _listed(
                "of another shape: ",
                [
                    f"{n} (saved {list(there[n])}, model {list(here[n])})"
                    for n in there
                    if here.get(n, there[n]) != there[n]
                ],
            )
        else:
            ends = [(h.gradient, h.stop) for h in self.held] + [(n, v.size) for n, v in self.left.items()]
            bad = [n for n, stop in ends if n not in here or stop > math.prod(here[n])]
            faults += _listed("not in the model, or shorter there: ", list(dict.fromkeys(bad)))
        if faults:
            raise StateError(
                f"the state was saved with another model: {'; '.join(faults)}; load it with the model that "
                'it was saved with, or take "casync" out of it to begin without residuals'
            )

    def parts(self, run: Run, partitions: Sequence[Partition]) -> tuple[Sequence[Held], Mapping[str, Vector]]:
        """What a rank takes of it: its own state whole, of a merged one the elements that it owns."""
        if not self.merged:
            return self.held, {name: values.copy() for name, values in self.left.items()}
        growth = np.float32(run.size / self.run.size if run.op == AVERAGE else 1)
        owned: dict[str, list[Segment]] = defaultdict(list)
        for partition in partitions:
            if partition.owner == run.rank:
                for segment in partition.segments:
                    owned[segment.gradient].append(segment)
        return [
            replace(
                held,
                offset=s.start,
                values={name: values[s.start : s.stop] * growth for name, values in held.values.items()},
            )
            for held in self.held
            for s in owned[held.gradient]
        ], {}


def _read(entry: Mapping[str, Any]) -> Held:
    values = {name: np.asarray(vector, np.float32) for name, vector in entry["values"].items()}
    only = next(iter(values)) if len(values) == 1 else None  # before it was saved
    residual = entry.get("residual", only)
    return Held(entry["gradient"], entry["offset"], Role[entry["role"]], entry["unit"], values, residual)


def _listed(what: str, found: Collection[str]) -> list[str]:
    more = f" and {len(found) - MOST} more" if len(found) > MOST else ""
    return [what + ", ".join(list(found)[:MOST]) + more] if found else []


def merge_states(states: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One state of those of all ranks, in any order, that any number of ranks in any topology may load.

    Nothing is lost: what all ranks and roles held back of an element is added up, in float64, rounded once.
    Raises StateError if states are missing, given twice, or of different steps or runs.
    """
    given = [Checkpoint.read(state) for state in states]
    _check_together(given)
    first = given[0].run
    run = Run(first.seed, first.topology, first.size, None, first.op, first.gradients)
    return Checkpoint(run, given[0].step, tuple(_merged(given)), {}, merged=True).written()


def _check_together(given: Sequence[Checkpoint]) -> None:
    if not given:
        raise StateError("no states to merge: give those of all ranks that saved one")
    if any(checkpoint.merged for checkpoint in given):
        raise StateError("one of the states is merged already: load it as it is")
    common: dict[str, list[Any]] = {
        "steps": [c.step for c in given],
        "seeds": [c.run.seed for c in given],
        "topologies": [c.run.topology for c in given],
        "numbers of ranks": [c.run.size for c in given],
        "ops": [c.run.op for c in given],
        "models": [c.run.gradients for c in given],
    }
    for what, values in common.items():
        if any(value != values[0] for value in values):
            found = "" if what == "models" else ": " + ", ".join(map(str, values))
            raise StateError(f"the states have different {what}{found}; give those that were saved together")
    size = given[0].run.size
    ranks = [c.run.rank for c in given]
    missing = [str(rank) for rank in range(size) if rank not in ranks] if None not in ranks else []
    if len(given) != size or missing:
        absent = f" (of rank {', '.join(missing)} there is none)" if missing else ""
        raise StateError(
            f"{size} ranks have saved, and {len(given)} states are given{absent}; give each rank's once"
        )


def _merged(given: Sequence[Checkpoint]) -> Iterator[Held]:
    """The totals of each gradient over ranks and roles: of residuals, and of each other vector by name."""
    size = given[0].run.size
    parts: dict[str, list[tuple[int, str | None, Vector, int]]] = defaultdict(list)
    for checkpoint in given:
        for held in checkpoint.held:
            counts = size if held.unit == AVERAGE else 1
            for name, values in held.values.items():
                other = None if name == held.residual else name
                parts[held.gradient].append((held.offset, other, values, counts))
        for gradient, values in checkpoint.left.items():
            parts[gradient].append((0, None, values, 1))
    for gradient, found in parts.items():
        elements = max(offset + values.size for offset, _, values, _ in found)
        totals: dict[str | None, NDArray[np.float64]] = {}
        for offset, other, values, counts in found:
            total = totals.setdefault(other, np.zeros(elements))
            total[offset : offset + values.size] += values * np.float64(counts)
        for kept, total in totals.items():
            vector = {kept or RESIDUAL: total.astype(np.float32)}
            yield Held(gradient, 0, Role.WORKER, SUM, vector, None if kept else RESIDUAL)
