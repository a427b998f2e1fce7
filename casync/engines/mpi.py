"""MPI: the non-blocking all-reduce, on a communicator of the engine's own, beside any transport.

MPI asks implementations for identical results on all ranks (MPI 4.1, section 6.9.6). A blocking all-reduce
would take a core while it waits; this one is looked after, with pauses.
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING

from mpi4py import MPI

from casync.engines.base import check_place, until
from casync.transports.mpi import check_threads, duplicate_world, end_failed_job

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from casync.control import Control


def open(control: Control) -> MpiEngine:  # noqa: A001  (the name that casync.engines.base asks for)
    """Collective. Raises EngineError where MPI did not start the job's ranks, MpiError without threads."""
    check_place("mpi", control, MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size)
    check_threads()
    atexit.register(end_failed_job, control)
    return MpiEngine(duplicate_world(control), control)


class MpiEngine:
    """The engine (`casync.engines.base.Engine`) over MPI."""

    name = "mpi"

    def __init__(self, communicator: MPI.Comm, control: Control) -> None:
        self._communicator, self._control = communicator, control

    def all_reduce(self, values: NDArray[np.float32]) -> None:
        """Sum in place; RankFailure when the job fails meanwhile."""
        until(self._communicator.Iallreduce(MPI.IN_PLACE, values, MPI.SUM).Test, self._control)
