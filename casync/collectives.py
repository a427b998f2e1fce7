"""The thread that calls an engine, in one order on all ranks; nobody else blocks in it."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING

from casync.control import RankFailure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from casync.control import Control
    from casync.engines.base import Engine, Open

log = logging.getLogger("casync")

GRACE = 2.0
"""Seconds that the control plane has to name a dead rank, whose connections to the engine close, too."""
LOOK = 0.1
"""Seconds between two looks at whether the job stands while an engine is opened."""


@dataclass(frozen=True, slots=True)
class Request:
    """An all-reduce to be issued. done: called in the engine's thread, when the sum is in place, with the
    time at which it was begun.
    """

    values: NDArray[np.float32]
    step: int
    gradient: str
    done: Callable[[float], None]


class Collectives:
    """One rank's engine and its thread, a daemon: a job that has failed ends, whatever hangs in there."""

    def __init__(self, control: Control, open_engine: Open) -> None:
        """Collective: open the engine; raises what that raises, or RankFailure if the job fails meanwhile."""
        self._control = control
        self._ready: dict[int, Request] = {}
        self._turns: deque[int] = deque()
        self._requests: SimpleQueue[Request | None] = SimpleQueue()
        self._opened, self._failed = threading.Event(), threading.Event()
        self._refusal: BaseException | None = None
        self._thread = threading.Thread(
            target=self._run, args=(open_engine,), name=f"casync-engine-{control.rank}", daemon=True
        )
        self._thread.start()
        while not self._opened.wait(LOOK):
            control.check()
        if self._refusal is not None:
            raise self._refusal
        control.on_failure(lambda _: self._failed.set())

    def submit(self, order: Sequence[int], task: int, request: Request) -> None:
        """Issue the all-reduce of `task` when those before it in `order`, a whole step's, have been issued.

        For one thread, which submits all of a step's before any of the next.
        """
        self._ready[task] = request
        self._turns = self._turns or deque(order)
        while self._turns and self._turns[0] in self._ready:
            self._requests.put(self._ready.pop(self._turns.popleft()))

    def close(self) -> None:
        """End the thread, unless it hangs in the engine of a job that has failed. Idempotent."""
        self._requests.put(None)
        if not self._failed.is_set():
            self._thread.join(GRACE)

    def _run(self, open_engine: Open) -> None:
        try:
            engine = open_engine(self._control)
        except BaseException as error:
            self._refusal = error
            return
        finally:
            self._opened.set()
        while (request := self._requests.get()) is not None:
            begin = time.perf_counter()
            try:
                engine.all_reduce(request.values)
            except RankFailure:
                return
            except Exception as error:
                self._blame(engine, request, error)
                return
            request.done(begin)

    def _blame(self, engine: Engine, request: Request, error: Exception) -> None:
        """Fail the job by this rank, unless the control plane finds another one to be dead."""
        if self._failed.wait(GRACE):
            return
        log.error("casync: rank %d: the engine failed", self._control.rank, exc_info=error)
        reason = f"its all-reduce by {engine.name} failed: {type(error).__name__}: {error}"
        self._control.abort(RankFailure(self._control.rank, request.gradient, request.step, reason))
