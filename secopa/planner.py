"""Decisions: for each gradient the cheaper of plain and compressed, each at its best number of partitions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from casync.plan import BUCKET_BYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from secopa.cost import Model
    from secopa.inputs import Gradient


@dataclass(frozen=True)
class Choice:
    """A number of partitions and what it costs."""

    partitions: int
    ms: float


@dataclass(frozen=True)
class Decision:
    """What the plan says about one gradient, with the two candidates that it was chosen from."""

    gradient: Gradient
    plain: Choice
    compressed: Choice

    @property
    def pays(self) -> bool:
        """Whether compressing is strictly cheaper."""
        return self.compressed.ms < self.plain.ms

    @property
    def chosen(self) -> Choice:
        """The cheaper candidate; plain when both cost the same."""
        return self.compressed if self.pays else self.plain

    @property
    def reason(self) -> str:
        """One line that says why."""
        plain, compressed = self.plain, self.compressed
        sides = (
            f"compressed {compressed.ms:.3g} ms (K={compressed.partitions}), "
            f"plain {plain.ms:.3g} ms (K={plain.partitions})"
        )
        if self.pays:
            return f"{sides}: saves {plain.ms - compressed.ms:.3g} ms"
        if plain.ms == 0:
            return "nothing is sent"
        return f"{sides}: kernels and messages cost more than the bytes they save"


def bucket_elements(gradients: Iterable[Gradient]) -> int:
    """Return the elements of a bucket of uncompressed gradients: the runtime's limit, or all there are."""
    return min(BUCKET_BYTES // 4, sum(gradient.elements for gradient in gradients))


def decide(gradient: Gradient, model: Model) -> Decision:
    """Search all candidate partition counts of one gradient, for plain and for compressed."""
    n = gradient.elements
    return Decision(
        gradient,
        plain=_best(model.plain_candidates(), lambda k: model.plain(n, k)),
        compressed=_best(model.compressed_candidates(n), lambda k: model.compressed(n, k)),
    )


def plan(gradients: Iterable[Gradient], model: Model) -> tuple[Decision, ...]:
    """Decide every gradient, in order. Equal sizes are searched once."""
    by_size: dict[int, Decision] = {}
    decisions = []
    for gradient in gradients:
        if gradient.elements not in by_size:
            by_size[gradient.elements] = decide(gradient, model)
        found = by_size[gradient.elements]
        decisions.append(Decision(gradient, found.plain, found.compressed))
    return tuple(decisions)


def _best(candidates: range, cost: Callable[[int], float]) -> Choice:
    """The cheapest; of equal costs the larger number of partitions, as the published plan has it."""
    return min((Choice(k, cost(k)) for k in candidates), key=lambda choice: (choice.ms, -choice.partitions))
