"""The job that this process is in, as every function of `casync.torch` finds it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casync import session as sessions
from casync.job import Job
from casync.torch import torchrun

if TYPE_CHECKING:
    from casync.session import Session

_job: Job | None = None


def init(
    transport: str | None = None, timeout: float | None = None, seed: int = 0, *, checksums: bool = False
) -> None:
    """Join the job that the launcher (horovodrun, torchrun, CASYNC_*) describes. A second call does nothing.

    transport, timeout: as `casync.session.connect`. seed: of the random codecs; the same on all ranks.
    checksums: every frame carries a CRC32C of its body, for networks that are not trusted to.
    """
    global _job
    if _job is None:
        place = torchrun.find()
        _job = Job(sessions.connect(transport, timeout, place), seed, checksums=checksums)


def current() -> Job:
    """The job that `init` has joined. RuntimeError before it."""
    if _job is None:
        raise RuntimeError("casync is not initialised: call casync.init() first")
    return _job


def session() -> Session:
    """This process's place in the job, with its control plane. RuntimeError before `init`."""
    return current().session


def rank() -> int:
    """This process's rank, from 0."""
    return session().rank


def size() -> int:
    """The number of ranks."""
    return session().size


def local_rank() -> int:
    """This process's rank among those of its machine."""
    return session().local_rank


def local_size() -> int:
    """The number of ranks on this machine."""
    return session().local_size


def shutdown() -> None:
    """Leave the job in order. Does nothing if there is none."""
    global _job
    if _job is not None:
        _job.close()
        _job = None
