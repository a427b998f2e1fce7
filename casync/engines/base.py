"""The engines' contract, and how they are found: `casync/engines/<name>.py` is the engine <name>.

Such a module has `open(control: Control) -> Engine`: a collective call, made once a synchronizer, in the
thread that will call the engine.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
import sys
import time
from typing import TYPE_CHECKING, Protocol

import casync.engines
from casync.control import RankFailure
from casync.session import close_all

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from casync.control import Control

    Open = Callable[[Control], "Engine"]

SHORTEST, LONGEST = 20e-6, 1e-3
"""Seconds of a pause of `until`: the first, and the longest."""


class EngineError(ValueError):
    """An engine that this process cannot use; says what it needs and what to use instead."""


class Engine(Protocol):
    """Sums of what all ranks hold. One thread of a rank calls it, in the same order on all ranks."""

    name: str

    def all_reduce(self, values: NDArray[np.float32]) -> None:
        """Put the sum of all ranks' `values` in their place, bit-identical on all ranks. Blocks.

        values: contiguous, one dimension, as long on every rank. Whatever this raises fails the job. After
        the job has failed it may block for ever.
        """


def names() -> list[str]:
    """The names of all engines, found by file name."""
    found = (module.name for module in pkgutil.iter_modules(casync.engines.__path__))
    return sorted(name for name in found if name != "base")


def load(name: str) -> Open:
    """How to open the engine of that name; EngineError if there is none, or what it needs is missing."""
    if name not in names():
        raise EngineError(
            f"exact={name!r}: uncompressed gradients are summed by 'ring', casync's own, or by one of the "
            f"engines {', '.join(names())} (casync/engines/)"
        )
    try:
        found: Open = importlib.import_module(f"casync.engines.{name}").open
    except ModuleNotFoundError as error:
        raise EngineError(
            f"exact={name!r} needs {error.name}, which is not installed: install it, or use exact='ring'"
        ) from error
    return found


def check_place(engine: str, control: Control, rank: int, size: int) -> None:
    """Raise EngineError unless the engine knows this process by the job's rank and size."""
    if (rank, size) != (control.rank, control.size):
        raise EngineError(
            f"exact={engine!r}: {engine} knows this process as rank {rank} of {size}, casync as rank "
            f"{control.rank} of {control.size}; an engine sums over all ranks that one launcher has started, "
            "use exact='ring' otherwise"
        )


def until(done: Callable[[], bool], control: Control) -> None:
    """Wait for what must be asked again and again; RankFailure when the job fails meanwhile.

    A pause is a sixteenth of the time waited so far: little is added to it, and long waits cost little.
    """
    begin = time.monotonic()
    while not done():
        control.check()
        time.sleep(min(max((time.monotonic() - begin) / 16, SHORTEST), LONGEST))


def end_failed_job(control: Control) -> None:
    """At exit: if the job has failed, end the process, once the other ranks have been told.

    For engines whose own orderly end would wait for ranks that cannot come; registered when they open, so
    that it runs before that end.
    """
    close_all()
    try:
        control.check()
    except RankFailure:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
