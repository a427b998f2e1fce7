"""How far a rank is with one step: what is known, what is missing, what tasks have made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from casync.events import Outcome
    from casync.payload import Payload, Sum
    from casync.rows import Values


@dataclass(slots=True)
class Step:
    """One step of one rank; the compute thread's own."""

    number: int
    needs: list[int]
    gradients_needed: list[int]
    missing: dict[int, None]  # what other ranks have not sent or added yet, in the schedule's order
    left: int
    gradients: dict[str, Values | None] = field(default_factory=dict)
    results: dict[str, Values | None] = field(default_factory=dict)
    payloads: dict[int, Payload] = field(default_factory=dict)
    sums: dict[int, Sum] = field(default_factory=dict)
    loss_scale: float = 1.0
    done: Callable[[Outcome | None], None] | None = None  # known once the step is closed
    finite: bool = True
