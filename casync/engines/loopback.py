"""A sum between the threads of one process, for tests: the engine that goes with the loopback transport."""

from __future__ import annotations

from functools import reduce
from typing import TYPE_CHECKING

import numpy as np

from casync.engines.base import EngineError
from casync.transports.loopback import LoopbackControl

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from casync.control import Control


def open(control: Control) -> LoopbackEngine:  # noqa: A001  (the name that casync.engines.base asks for)
    """Collective. Raises EngineError where the ranks are not threads of a LoopbackNetwork."""
    if not isinstance(control, LoopbackControl):
        raise EngineError("exact='loopback' joins ranks of one process only; use exact='ring'")
    return LoopbackEngine(control)


class LoopbackEngine:
    """The engine (`casync.engines.base.Engine`) in memory: adds in rank order."""

    name = "loopback"

    def __init__(self, control: LoopbackControl) -> None:
        self._control = control
        (self._place, *_) = control.meet("engines", "open", f"engine {id(self)}")

    def all_reduce(self, values: NDArray[np.float32]) -> None:
        """Sum in place; RankFailure when the job fails meanwhile."""
        terms = self._control.meet(self._place, f"{values.size} elements", values.copy())
        values[:] = reduce(np.add, terms)
