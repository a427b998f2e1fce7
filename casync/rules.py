"""Which codec a gradient has: rules by name, size and dimension, and schedules over the steps of a run.

A rule's codec, or the run's, is a codec, a `Schedule`, or None: exact. The first rule that matches decides.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import compll
from casync.plan import Entry, Gradient, Plan

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from casync.codecs import BatchCodec

    CodecLike: TypeAlias = "str | Path | BatchCodec | Schedule | None"
    Choice: TypeAlias = "BatchCodec | Schedule | None"


@dataclass(frozen=True)
class Schedule:
    """A codec by step: each holds from its step until the next one; before the first, nothing is compressed.

    stages: step -> codec, name, path, or None. ValueError if there is none, or one before step 0.
    """

    stages: Mapping[int, CodecLike]

    def __post_init__(self) -> None:
        """Compile the codecs, and order them by step."""
        if not self.stages or min(self.stages) < 0:
            raise ValueError(
                f"a schedule has stages from steps 0 and up, this one {list(self.stages)}; write for example "
                "Schedule({0: None, 1000: 'onebit'})"
            )
        ordered = {step: compiled(self.stages[step]) for step in sorted(self.stages)}
        if any(isinstance(stage, Schedule) for stage in ordered.values()):
            raise ValueError("a stage of a schedule is a schedule: write one with the steps of both")
        object.__setattr__(self, "stages", ordered)

    def at(self, step: int) -> BatchCodec | None:
        """The codec of a step."""
        number = bisect_right(list(self.stages), step)
        codec = list(self.stages.values())[number - 1] if number else None
        assert codec is None or not isinstance(codec, str | Path | Schedule)
        return codec


def warm_up(codec: str | Path | compll.Codec, **params: Mapping[int, float]) -> Schedule:
    """A schedule of one codec whose run-time parameters change: parameter=step -> value.

    `warm_up("topk", ratio={100: 0.25, 200: 0.0625, 300: 0.01})` sends all up to step 99, then a quarter, ...
    A parameter has its own default before its first step. Raises what `with_params` raises.
    """
    made = codec if isinstance(codec, compll.Codec) else compll.compile(codec)
    steps = sorted({step for values in params.values() for step in values})
    stages: dict[int, CodecLike] = {}
    for step in steps:
        held = {name: [at for at in sorted(values) if at <= step] for name, values in params.items()}
        stages[step] = made.with_params(**{name: params[name][at[-1]] for name, at in held.items() if at})
    return Schedule(stages)


@dataclass(frozen=True)
class Rule:
    """The codec of gradients whose name matches a pattern (`*`, `?`, `[...]`) and whose shape is in range.

    codec: a shipped name, a path, a codec, a `Schedule`, or None: exact. Bounds are inclusive, None for none.
    """

    name: str
    codec: CodecLike
    min_elements: int = 0
    max_elements: int | None = None
    min_dims: int = 0
    max_dims: int | None = None

    def matches(self, gradient: Gradient) -> bool:
        """Whether this rule speaks of the gradient."""
        return (
            fnmatchcase(gradient.name, self.name)
            and self.min_elements <= gradient.elements
            and (self.max_elements is None or gradient.elements <= self.max_elements)
            and self.min_dims <= len(gradient.shape)
            and (self.max_dims is None or len(gradient.shape) <= self.max_dims)
        )


def compiled(codec: CodecLike) -> Choice:
    """Make a codec of a name or path; anything else is that already. Raises what `compll.compile` raises."""
    return compll.compile(codec) if isinstance(codec, str | Path) else codec


def at(choice: Choice, step: int) -> BatchCodec | None:
    """The codec that a choice means at a step, None: exact."""
    return choice.at(step) if isinstance(choice, Schedule) else choice


def changes(choice: Choice) -> Iterable[int]:
    """The steps from which on a choice means another codec."""
    return choice.stages if isinstance(choice, Schedule) else ()


@dataclass(frozen=True)
class Codecs:
    """What each gradient of a run is compressed by: the rules' choice, else the default."""

    default: Choice
    rules: tuple[tuple[Rule, Choice], ...] = field(default=())

    @classmethod
    def of(cls, default: CodecLike, rules: Iterable[Rule | tuple[str, CodecLike]]) -> Codecs:
        """Compile a default and rules; a pair is a pattern and its codec. TypeError for what is no rule."""
        found: list[tuple[Rule, Choice]] = []
        known: dict[str, Choice] = {}
        for given in rules:
            rule = Rule(*given) if isinstance(given, tuple) and len(given) == 2 else given
            if not isinstance(rule, Rule):
                raise TypeError(
                    f"{given!r} is no rule; write Rule('*.bias', None) or the pair ('*.bias', None)"
                )
            if isinstance(rule.codec, str | Path):
                choice = known.setdefault(str(rule.codec), compiled(rule.codec))
            else:
                choice = compiled(rule.codec)
            found.append((rule, choice))
        return cls(compiled(default), tuple(found))

    def all(self, gradients: Iterable[Gradient], *, rows: bool) -> Iterator[BatchCodec]:
        """Every codec that some step may use for gradients of rows, or for others (unused ones too)."""
        users: defaultdict[int, set[bool]] = defaultdict(set)
        for g in gradients:
            users[id(self.of_gradient(g))].add(g.rows)
        for choice in (self.default, *(choice for _, choice in self.rules)):
            stages = map(choice.at, choice.stages) if isinstance(choice, Schedule) else (choice,)
            if rows in (users[id(choice)] or {False}):
                yield from (codec for codec in stages if codec is not None)

    def changes(self) -> set[int]:
        """The steps from which on some gradient has another codec."""
        return {step for each in (self.default, *(each for _, each in self.rules)) for step in changes(each)}

    def at(self, step: int) -> Codecs:
        """The codecs of a step."""
        return Codecs(at(self.default, step), tuple((rule, at(choice, step)) for rule, choice in self.rules))

    def of_gradient(self, gradient: Gradient) -> Choice:
        """The choice for a gradient, of whatever step."""
        return next((choice for rule, choice in self.rules if rule.matches(gradient)), self.default)

    def plan(self, gradients: Sequence[Gradient], nranks: int) -> Plan:
        """The default plan: compress what a rule names, and of the rest what has two or more dimensions."""
        plan = Plan.default(gradients, nranks)
        ruled = {g.name for g in gradients if any(rule.matches(g) for rule, _ in self.rules)}
        entries = tuple(
            Entry(e.gradient, e.gradient in ruled or e.compressed, e.partitions) for e in plan.entries
        )
        return Plan(entries, source=plan.source)
