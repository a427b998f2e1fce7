"""What the executor's compute thread is told, and what it tells of a step."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import numpy as np
    from numpy.typing import NDArray

    from casync.compute import Compute
    from casync.frames import Header
    from casync.program import Program
    from casync.rows import Values


@dataclass(frozen=True)
class Outcome:
    """A synchronized step: the result of each gradient, None where it was absent on all ranks."""

    values: Mapping[str, Values | None]
    finite: bool


@dataclass(frozen=True, slots=True)
class Ready:
    """Event: a gradient of a step is known."""

    step: int
    gradient: str
    values: Values
    loss_scale: float


@dataclass(frozen=True, slots=True)
class Close:
    """Event: the step is whole, what is not known by now is absent; `done` is told its outcome."""

    step: int
    loss_scale: float
    done: Callable[[Outcome | None], None]


@dataclass(frozen=True, slots=True)
class Replace:
    """Event: from the coming step on another schedule holds; told by an empty outcome."""

    program: Program
    compute: Compute


@dataclass(frozen=True, slots=True)
class Called:
    """Event: what a call waited for on a GPU is done; the compute thread makes it."""

    call: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Arrived:
    """Event: a frame."""

    peer: int
    header: Header
    body: memoryview


@dataclass(frozen=True, slots=True)
class Reduced:
    """Event: an engine has made the sum of all ranks in the place of what the task gave it.

    begin: of the all-reduce, by `time.perf_counter`.
    """

    step: int
    task: int
    values: NDArray[np.float32]
    begin: float


@dataclass(frozen=True, slots=True)
class Stop:
    """Event: end the compute thread."""


Event: TypeAlias = Ready | Close | Replace | Called | Arrived | Reduced | Stop
