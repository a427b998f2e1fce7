"""A session: this process's membership in the job, from rendezvous to goodbye. No framework needed.

with casync.session.connect() as session:
    session.transport.start(receive)
    ...
"""

from __future__ import annotations

import atexit
import json
import os
import sys
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

import zmq

from casync import address, knobs, launch, rendezvous
from casync.control import MismatchError, RankFailure, differences
from casync.gate import Gate
from casync.machine import Process, this_process
from casync.mechanism import Curve, Plain
from casync.peer import LOSSES
from casync.plane import Plane
from casync.solo import SoloControl, SoloTransport
from casync.transports import base

if TYPE_CHECKING:
    from types import TracebackType

    from casync.control import Control
    from casync.gate import Context
    from casync.topologies import Nodes
    from casync.transports.base import Transport


@dataclass(frozen=True, eq=False)
class Session:
    """A rank's place in the job, its control plane and its transport.

    nodes: which ranks share a machine. addresses: where each rank listens; none where no socket is needed.
    encrypted: whether all that casync itself sends is.
    """

    rank: int
    size: int
    local_rank: int
    local_size: int
    control: Control
    transport: Transport
    nodes: Nodes
    context: Context | None = None
    addresses: tuple[str, ...] = ()
    encrypted: bool = False
    pid: int = field(default_factory=os.getpid)

    def close(self) -> None:
        """Send what is queued, say goodbye, close every socket. Idempotent; takes a few seconds at most."""
        _open.discard(self)
        self.transport.close()
        self.control.close()
        if self.context is not None:
            self.context.term()

    def __enter__(self) -> Session:
        """Return the session; leaving the block closes it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; an exception that ends the block fails the job, so that no rank waits for this one."""
        if error is not None:
            _abort(self, error)
        self.close()


def connect(
    transport: str | None = None,
    timeout: float | None = None,
    place: launch.Launch | None = None,
    start_timeout: float | None = None,
    encrypt: bool | None = None,
) -> Session:
    """Join the job and return the session. Collective.

    transport: the name of a file in casync/transports/ (default: CASYNC_TRANSPORT, else mpi where MPI started
    the ranks, else zmq; nccl is never taken unnamed).
    timeout: T in seconds, at least 3 (default: CASYNC_TIMEOUT, 60): of silence, or of no progress.
    place: this process's place in the job (default: from the environment, `casync.launch.find`).
    start_timeout: seconds that ranks wait for others to start (default: CASYNC_START_TIMEOUT, 60).
    encrypt: whether connections are encrypted, on all ranks or on none (default: CASYNC_ENCRYPT, not).

    Raises LaunchError, KnobError, RendezvousError (ranks that did not join), RankFailure, ValueError, and
    MismatchError if some ranks encrypt and others do not.
    """
    place = launch.find() if place is None else place
    timeout = knobs.TIMEOUT.get() if timeout is None else timeout
    if timeout < knobs.MIN_TIMEOUT:
        raise ValueError(f"timeout {timeout:g} s: must be {knobs.MIN_TIMEOUT:g} s or more")
    found = "mpi" if isinstance(place.meeting, launch.World) else "zmq"
    name = transport or knobs.TRANSPORT.get() or found
    module = base.load(name)
    if not hasattr(module, "open"):
        raise ValueError(f"transport {name!r} joins ranks of one process only; use another")
    if place.size == 1:
        return Session(0, 1, 0, 1, SoloControl(), SoloTransport(), ((0,),))
    start_timeout = knobs.START_TIMEOUT.get() if start_timeout is None else start_timeout
    encrypt = knobs.ENCRYPT.get() if encrypt is None else encrypt
    if encrypt and not module.ENCRYPTS:
        raise ValueError(
            f"transport {name!r} cannot encrypt what it sends, and encryption is asked for "
            f"({knobs.ENCRYPT.name}=1): set {knobs.TRANSPORT.name}=zmq, or leave encryption off on all ranks"
        )
    session = _join(place, timeout, start_timeout, module.open, encrypt)
    _open.add(session)
    return session


def _join(
    place: launch.Launch, timeout: float, start_timeout: float, open_transport: base.Open, encrypt: bool
) -> Session:
    mechanism = Curve() if encrypt else Plain(place.rank)
    context: Context = zmq.Context(io_threads=2)
    plane: Plane | None = None
    spared = place.meeting.port if isinstance(place.meeting, launch.Rank0) else 0
    gate = Gate(context, mechanism, spared)
    listening = {}
    try:
        here = address.own(context, place)
        listening = {peer: gate.listen(here, "control", peer) for peer in range(place.rank + 1, place.size)}
        record = {
            "address": here,
            "key": mechanism.published,
            "ports": {peer: port for peer, (_, port) in listening.items()},
            "process": asdict(this_process()),
        }
        table = rendezvous.meet(context, place, json.dumps(record), start_timeout)
        records = [json.loads(text) for text in table.records]
        keys = [theirs["key"] for theirs in records]
        problem = differences("encryption", [{knobs.ENCRYPT.name: "1" if key else "0"} for key in keys])
        if problem:
            raise MismatchError(problem)
        gate.open(table.secret, keys)
        processes = [Process(**theirs["process"]) for theirs in records]
        sockets = {peer: (socket, False) for peer, (socket, _) in listening.items()}
        for peer in range(place.rank):
            port = records[peer]["ports"][str(place.rank)]
            where = records[peer]["address"]
            sockets[peer] = (gate.connect(where, port, "control", peer, LOSSES), True)
        plane = Plane(place.rank, sockets, processes, gate, table.secret, timeout)
        plane.start()
        addresses = tuple(theirs["address"] for theirs in records)
        transport = open_transport(base.Wire(place.rank, place.size, addresses, plane, gate))
    except BaseException as error:
        if plane is not None:
            if not isinstance(error, KNOWN):
                plane.abort(_ended_by(place.rank, error))
            plane.close()
        context.destroy(linger=0)
        raise
    machines = list(dict.fromkeys(it.machine for it in processes))
    nodes = tuple(
        tuple(rank for rank, it in enumerate(processes) if it.machine == machine) for machine in machines
    )
    local = next(node for node in nodes if place.rank in node)
    local_rank = local.index(place.rank) if place.local_rank is None else place.local_rank
    local_size = len(local) if place.local_size is None else place.local_size
    return Session(
        place.rank, place.size, local_rank, local_size, plane, transport, nodes, context, addresses, encrypt
    )


# --- the end of the process --------------------------------------------------------------------------------

_open: set[Session] = set()
KNOWN = (RankFailure, MismatchError)
"""What every rank raises: it needs no report."""


def _ended_by(rank: int, error: BaseException) -> RankFailure:
    text = str(error).strip().partition("\n")[0]
    return RankFailure(rank, None, None, f"it was ended by {type(error).__name__}: {text}".removesuffix(": "))


def _abort(session: Session, error: BaseException) -> None:
    if not isinstance(error, KNOWN):
        session.control.abort(_ended_by(session.rank, error))


@atexit.register
def close_all() -> None:
    """At exit: close what the script left open. An uncaught exception fails the job, it is no goodbye."""
    error = getattr(sys, "last_value", None)
    for session in list(_open):
        if session.pid != os.getpid():
            continue  # this is a forked child, and the session its parent's
        if error is not None:
            _abort(session, error)
        session.close()
