"""Who am I: rank, size and meeting point, from the environment that a launcher made.

`CASYNC_*` comes first, then Horovod's, then MPI's. A process that no launcher started is a job of one rank.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from casync import knobs

if TYPE_CHECKING:
    from collections.abc import Mapping

HOW_TO_START = (
    "start with `horovodrun --gloo -np N python script.py` or `mpirun -n N python script.py`, with torchrun "
    "and casync.torch.init(), or set "
    "CASYNC_RANK, CASYNC_SIZE and CASYNC_ADDR (host:port where rank 0 listens) in each process"
)


class LaunchError(RuntimeError):
    """The environment does not say who this process is; the message says what is missing and the mend."""


class RendezvousError(RuntimeError):
    """The ranks did not meet: the message names the missing ones, or the address, and what to look at."""


@dataclass(frozen=True)
class Store:
    """Horovod's HTTP key-value store: the ranks meet there."""

    host: str
    port: int


class Keys(Protocol):
    """What ranks leave for each other at a place that all of them reach."""

    def put(self, key: str, value: str) -> None:
        """Leave a value. OSError if the place does not answer."""

    def get(self, key: str) -> str | None:
        """The value, None until it is there. OSError if the place does not answer."""


@dataclass(frozen=True)
class Board:
    """A launcher's key-value store at an address, which a framework's own client reaches."""

    host: str
    port: int
    keys: Keys


@dataclass(frozen=True)
class Rank0:
    """The address that rank 0 binds: the ranks meet there."""

    host: str
    port: int


@dataclass(frozen=True)
class World:
    """MPI's world: the ranks meet in a collective of it."""


@dataclass(frozen=True)
class Launch:
    """This process's place in the job.

    local_rank, local_size: None where the launcher does not say (found at the rendezvous).
    interface: the network interface that the launcher names, "" for none. meeting: None for a single rank.
    """

    rank: int = 0
    size: int = 1
    local_rank: int | None = None
    local_size: int | None = None
    meeting: Store | Board | Rank0 | World | None = None
    interface: str = ""

    def __post_init__(self) -> None:
        """Raise LaunchError when rank and size do not fit, or several ranks have nowhere to meet."""
        if not 0 <= self.rank < self.size:
            raise LaunchError(f"rank {self.rank} of {self.size}: ranks count from 0 to size - 1")
        if self.size > 1 and self.meeting is None:
            raise LaunchError(f"{self.size} ranks need a place to meet: {HOW_TO_START}")


def find(environ: Mapping[str, str] | None = None) -> Launch:
    """Return this process's place in its job; raise LaunchError or KnobError when `environ` does not tell."""
    env = os.environ if environ is None else environ
    interface = knobs.IFACE.get(env)
    if any(knob.is_set(env) for knob in (knobs.RANK, knobs.SIZE, knobs.ADDR)):
        return _casync(env, interface)
    if env.get("HOROVOD_RANK"):
        return _horovod(env, interface)
    for implementation in _MPI:
        if env.get(implementation[0]):
            return _mpi(env, interface, *implementation)
    _refuse_other_launchers(env)
    return Launch()


def _casync(env: Mapping[str, str], interface: str) -> Launch:
    rank, size, address = knobs.RANK.get(env), knobs.SIZE.get(env), knobs.ADDR.get(env)
    if rank is None or size is None or (address is None and size > 1):
        needed = (knobs.RANK, knobs.SIZE, knobs.ADDR)
        missing = " and ".join(knob.name for knob in needed if not knob.is_set(env))
        raise LaunchError(f"{missing} not set, while another of the three is: {HOW_TO_START}")
    meeting = Rank0(*address) if address else None
    return Launch(rank, size, knobs.LOCAL_RANK.get(env), knobs.LOCAL_SIZE.get(env), meeting, interface)


def _horovod(env: Mapping[str, str], interface: str) -> Launch:
    def number(name: str) -> int:
        return _number(env, name, "horovodrun", "HOROVOD_RANK")

    size = number("HOROVOD_SIZE")
    meeting = None
    if size > 1:
        host = env.get("HOROVOD_GLOO_RENDEZVOUS_ADDR", "")
        if not host:
            raise LaunchError(
                "HOROVOD_RANK is set, but HOROVOD_GLOO_RENDEZVOUS_ADDR is not: only Horovod's Gloo launcher "
                f"has a rendezvous; {HOW_TO_START}"
            )
        meeting = Store(host, number("HOROVOD_GLOO_RENDEZVOUS_PORT"))
    return Launch(
        number("HOROVOD_RANK"),
        size,
        number("HOROVOD_LOCAL_RANK"),
        number("HOROVOD_LOCAL_SIZE"),
        meeting,
        interface or env.get("HOROVOD_GLOO_IFACE", "").partition(",")[0],
    )


_MPI = (
    (
        "OMPI_COMM_WORLD_RANK",
        "OMPI_COMM_WORLD_SIZE",
        "OMPI_COMM_WORLD_LOCAL_RANK",
        "OMPI_COMM_WORLD_LOCAL_SIZE",
    ),
    ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),
)
"""What Open MPI's mpirun sets (`horovodrun --mpi` calls one), and what MPICH's and Intel MPI's do."""


def _mpi(
    env: Mapping[str, str], interface: str, rank: str, size: str, local_rank: str, local_size: str
) -> Launch:
    def number(name: str) -> int:
        return _number(env, name, "mpirun", rank)

    ranks = number(size)
    return Launch(
        number(rank),
        ranks,
        number(local_rank) if local_rank in env else None,
        number(local_size) if local_size in env else None,
        World() if ranks > 1 else None,
        interface,
    )


def _number(env: Mapping[str, str], name: str, launcher: str, first: str) -> int:
    text = env.get(name, "")
    if not text.isdecimal():
        raise LaunchError(
            f"{name}={text!r}, but {launcher} sets it to a number: start with {launcher} anew, or unset "
            f"{first} to run a single rank"
        )
    return int(text)


def _refuse_other_launchers(env: Mapping[str, str]) -> None:
    """Raise LaunchError under a launcher of several ranks that cannot be joined from here.

    Without this each of its processes would train alone, as rank 0 of 1.
    """
    if env.get("RANK") and env.get("WORLD_SIZE", "1") != "1":
        raise LaunchError(
            f"this process is rank {env['RANK']} of {env.get('WORLD_SIZE')} under torchrun, which only "
            f"casync.torch.init() joins: {HOW_TO_START}"
        )
