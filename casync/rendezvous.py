"""Rendezvous: every rank brings a record, every rank gets all records and the job secret, drawn by rank 0.

    through Horovod's HTTP store      PUT /casync/<key>, GET /casync/<key> (404 until it is there)
        rank r    PUT rank.r                      rank 0 reads all, PUT table;  rank r polls table
    through a framework's store       the same keys, by its own client
    through MPI                       rank 0's secret and all records by a collective
    through the address of rank 0     ZeroMQ, rank 0 binds a ROUTER
        rank r    "join" + record   ->            <-  table, when all have joined

Who can reach the meeting point can join: it belongs on the cluster's own network, as with any launcher.
"""

from __future__ import annotations

import itertools
import json
import secrets
import time
import urllib.error
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING

import zmq

from casync.address import endpoint, resolve, with_port
from casync.control import name_ranks
from casync.launch import Board, Keys, Launch, Rank0, RendezvousError, Store, World
from casync.transports import base

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casync.gate import Context

POLL = 0.05
"""Seconds between two looks at the store."""


@dataclass(frozen=True)
class Table:
    """What the ranks know of each other once they have met: the job secret and a record a rank (JSON)."""

    secret: str
    records: tuple[str, ...]

    def to_json(self) -> str:
        """Return the form that travels."""
        return json.dumps([self.secret, *self.records])

    @staticmethod
    def from_json(text: str | bytes) -> Table:
        """Read what `to_json` wrote."""
        secret, *records = json.loads(text)
        return Table(secret, tuple(records))


def meet(context: Context, launch: Launch, record: str, timeout: float) -> Table:
    """Collective: give `record`, return the job's table.

    Raises RendezvousError, naming the missing ranks, when not all of `launch.size` ranks have come within
    `timeout` seconds, and at once when a rank or size is not the one that rank 0 expects.
    """
    deadline = time.monotonic() + timeout
    match launch.meeting:
        case Store(host, port):
            return _through_store(
                _Client(f"http://{with_port(host, port)}/casync/", launch.rank), launch, record, deadline
            )
        case Board(keys=keys):
            return _through_store(keys, launch, record, deadline)
        case Rank0(host, port) if launch.rank == 0:
            return _as_rank0(context, resolve(host), port, launch, record, deadline)
        case Rank0(host, port):
            return _join(context, resolve(host), port, launch, record, deadline)
        case World():
            met = base.load("mpi").meet(launch.rank, launch.size, record, _secret(), timeout)
            if met is None:
                raise RendezvousError(
                    f"not all of {launch.size} ranks joined in time: does every rank of the MPI job call "
                    "casync.init(), and has none ended?"
                )
            secret, records = met
            return Table(secret, tuple(records))
        case None:
            return Table(_secret(), (record,))


def _secret() -> str:
    return secrets.token_hex(16)


def _absent(missing: list[int], size: int, what_to_do: str) -> RendezvousError:
    return RendezvousError(f"{name_ranks(missing)} of {size} did not join in time: {what_to_do}")


# --- Horovod's store ---------------------------------------------------------------------------------------

_sessions: defaultdict[tuple[str, int], Iterator[int]] = defaultdict(itertools.count)
"""How many sessions each rank of this process has had at a store: a second session must not read the
first one's table."""


class _Client:
    """The store's two verbs, for the keys of one session."""

    def __init__(self, url: str, rank: int) -> None:
        self._url = f"{url}{next(_sessions[url, rank])}."
        self._opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by a web proxy

    def put(self, key: str, value: str) -> None:
        self._opener.open(
            urllib.request.Request(self._url + key, data=value.encode(), method="PUT"), timeout=5
        ).close()

    def get(self, key: str) -> str | None:
        try:
            with self._opener.open(self._url + key, timeout=5) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            raise


def _through_store(client: Keys, launch: Launch, record: str, deadline: float) -> Table:
    assert isinstance(launch.meeting, Store | Board)
    place = with_port(launch.meeting.host, launch.meeting.port)
    try:
        client.put(f"rank.{launch.rank}", record)
        if launch.rank == 0:
            others = range(1, launch.size)
            records = [_poll(client, f"rank.{rank}", deadline) for rank in others]
            if None not in records:
                table = Table(_secret(), (record, *(text for text in records if text is not None)))
                client.put("table", table.to_json())
                return table
        elif text := _poll(client, "table", deadline):
            return Table.from_json(text)
        missing = [rank for rank in range(launch.size) if client.get(f"rank.{rank}") is None]
    except OSError as error:
        raise RendezvousError(
            f"the launcher's rendezvous store at {place} does not answer ({error}): is the launcher still "
            "running, and does it reach this machine?"
        ) from None
    raise _absent(missing or [0], launch.size, "have their processes been started, and have they not ended?")


def _poll(client: Keys, key: str, deadline: float) -> str | None:
    while (found := client.get(key)) is None and time.monotonic() < deadline:
        time.sleep(POLL)
    return found


# --- the address of rank 0 ---------------------------------------------------------------------------------

_JOIN = b"casync join 1"


def _as_rank0(context: Context, host: str, port: int, launch: Launch, record: str, deadline: float) -> Table:
    router = context.socket(zmq.ROUTER)
    router.linger = 2000  # the tables are on their way when it closes
    try:
        try:
            router.bind(endpoint(router, host, port))
        except zmq.ZMQError as error:
            raise RendezvousError(
                f"rank 0 cannot listen at {with_port(host, port)} ({error}): CASYNC_ADDR must be a free port "
                "of the machine that runs rank 0"
            ) from None
        records: dict[int, tuple[bytes, str]] = {}
        refused: dict[str, None] = {}
        while len(records) < launch.size - 1 and (left := deadline - time.monotonic()) > 0:
            if not router.poll(int(1000 * left)):
                break
            route, *message = router.recv_multipart()
            match _read_join(message):
                case None:
                    continue  # not one of ours
                case rank, size, theirs:
                    reason = _refusal(rank, size, launch.size, records)
                    if reason:
                        refused[reason] = None
                        router.send_multipart([route, b"refused", reason.encode()])
                    else:
                        records[rank] = (route, theirs)
        missing = [rank for rank in range(1, launch.size) if rank not in records]
        if missing:
            absent = _absent(
                missing,
                launch.size,
                f"are they started, with CASYNC_ADDR={with_port(host, port)} and CASYNC_SIZE={launch.size}?"
                + "".join(f" Refused: {reason}." for reason in refused),
            )
            for route, _ in records.values():
                router.send_multipart([route, b"refused", str(absent).encode()])
            raise absent
        table = Table(_secret(), (record, *(records[rank][1] for rank in range(1, launch.size))))
        for route, _ in records.values():
            router.send_multipart([route, b"table", table.to_json().encode()])
        return table
    finally:
        router.close()


def _read_join(message: list[bytes]) -> tuple[int, int, str] | None:
    try:
        tag, rank, size, record = message
        return (int(rank), int(size), record.decode()) if tag == _JOIN else None
    except ValueError:
        return None


def _refusal(rank: int, size: int, expected: int, joined: dict[int, tuple[bytes, str]]) -> str | None:
    if size != expected:
        return f"a process says it is rank {rank} of {size}, but rank 0 was started with size {expected}"
    if not 0 < rank < size:
        return f"a process says it is rank {rank} of {size}; only ranks 1 to {size - 1} join rank 0"
    if rank in joined:
        return f"rank {rank} joined twice: each process needs its own CASYNC_RANK"
    return None


def _join(context: Context, host: str, port: int, launch: Launch, record: str, deadline: float) -> Table:
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    try:
        dealer.connect(endpoint(dealer, host, port))
        dealer.send_multipart([_JOIN, b"%d" % launch.rank, b"%d" % launch.size, record.encode()])
        # A little longer than rank 0 waits, so that its answer, which names the missing ranks, comes first.
        if not dealer.poll(int(1000 * (deadline - time.monotonic() + 2))):
            place = with_port(host, port)
            raise _absent([0], launch.size, f"no answer from {place}; is it started, with this CASYNC_ADDR?")
        answer, text = dealer.recv_multipart()
        if answer != b"table":
            raise RendezvousError(text.decode())
        return Table.from_json(text)
    finally:
        dealer.close()
