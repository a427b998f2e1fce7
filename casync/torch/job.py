"""The job that this process is in, as every function of `casync.torch` finds it."""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING

from casync import group
from casync import session as sessions
from casync.job import Job
from casync.torch import torchrun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casync.session import Session

_job: Job | None = None


def init(
    transport: str | None = None,
    timeout: float | None = None,
    seed: int = 0,
    *,
    checksums: bool = False,
    report: str | None = None,
    trace: str | None = None,
    encrypt: bool | None = None,
) -> None:
    """Join the job that the launcher (horovodrun, torchrun, CASYNC_*) describes. A second call does nothing.

    transport, timeout: as `casync.session.connect`. seed: of the random codecs; the same on all ranks.
    checksums: every frame carries a CRC32C of its body, for networks that are not trusted to.
    report: "table", and rank 0 prints at the end what each gradient has cost; or a path that ends in .json,
    where rank 0 writes it, or, with "{rank}" in it, every rank. Default: CASYNC_REPORT, else none.
    trace: a folder, where every rank writes a Chrome trace of its first steps; the same on all ranks, which
    compare their clocks for it. Default: CASYNC_TRACE, else none.
    encrypt: whether connections between ranks are encrypted; the same on all ranks. Default: CASYNC_ENCRYPT.
    """
    global _job
    if _job is None:
        place = torchrun.find()
        joined = sessions.connect(transport, timeout, place, encrypt=encrypt)
        _job = Job(joined, seed, checksums=checksums, report=report, trace=trace)


@atexit.register
def _tell() -> None:
    """A script that ends without `shutdown`, or by an exception, still delivers its report and its trace."""
    if _job is not None and _job.session.pid == os.getpid():
        _job.tell()


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


def new_group(ranks: Sequence[int], *, job: Job | None = None) -> Job:
    """Collective among all ranks, in the group or not: these ranks as a job of their own.

    For `job=` of `DistributedOptimizer`, `State` and `broadcast_parameters`, where ranks then count from 0
    within the group. On a rank that is not in it the group is false, and must not be used. A failure in a
    group is one of the whole job. Raises ValueError for what are no ranks, MismatchError if the calls differ.
    """
    return group.new_group(current() if job is None else job, ranks)


def shutdown() -> None:
    """Leave the job in order. Does nothing if there is none."""
    global _job
    if _job is not None:
        _job.close()
        _job = None
