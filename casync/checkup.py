"""The command `casync check`: on this machine alone, with ranks as threads, or in the job of a launcher."""

from __future__ import annotations

import json
import os
import socket
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from casync import check, links
from casync.channels import Channels
from casync.choice import CodecError, choose
from casync.launch import Launch, find
from casync.plan import Plan
from casync.session import connect
from casync.topologies import Nodes, names
from casync.transports.loopback import LoopbackNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casync.check import Verdict
    from casync.codecs import BatchCodec
    from casync.links import Link
    from casync.plan import Gradient
    from casync.session import Session

TIMEOUT = 30.0
"""Seconds without progress after which the ranks of this machine are given up."""


@dataclass(frozen=True)
class Wish:
    """What is to be checked. topologies: empty for all. plan: None for the check's own. down: of sums."""

    codecs: tuple[BatchCodec, ...]
    topologies: tuple[str, ...]
    gradients: tuple[Gradient, ...]
    plan: Plan | None
    down: BatchCodec | None = None

    def cases(self, nodes: Nodes) -> list[check.Case]:
        """Every codec in every topology."""
        chosen = self.topologies or names()
        return [
            check.Case(codec, name, self.gradients, self.plan, nodes, self.down)
            for codec in self.codecs
            for name in chosen
        ]


def place() -> Launch:
    """This process's place, under torchrun too. LaunchError, KnobError."""
    if os.environ.get("RANK") and os.environ.get("WORLD_SIZE"):
        from casync.torch import torchrun  # PyTorch's store is asked only where torchrun has made one

        return torchrun.find() or find()
    return find()


def alone(wish: Wish, nodes: Nodes) -> list[Verdict]:
    """Check with ranks that are threads of this process. RankFailure if one fails."""
    verdicts = []
    for case in wish.cases(nodes):
        verdict = check.symbolic(case)
        verdicts.append(verdict if verdict.refused or verdict.faults else _in_threads(case))
    return verdicts


def _in_threads(case: check.Case) -> Verdict:
    network = LoopbackNetwork(case.ranks, delay=0.001, reorder=True, timeout=TIMEOUT)
    results: list[Verdict | BaseException] = [RuntimeError("the rank has not ended")] * case.ranks

    def run(rank: int) -> None:
        try:
            results[rank] = check.run(case, network.control(rank), Channels(network.transport(rank)), 1)
        except BaseException as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(case.ranks)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    network.close()
    for result in results:
        if isinstance(result, BaseException):
            raise result
    first = results[0]
    assert isinstance(first, check.Verdict)
    return first


@dataclass(frozen=True)
class Rank:
    """A rank of a real job. link: to the next rank."""

    host: str
    address: str
    link: Link


@dataclass(frozen=True)
class Job:
    """What was found in a real job. transport: its name, and whether it encrypts."""

    transport: str
    nodes: Nodes
    ranks: tuple[Rank, ...]
    verdicts: tuple[Verdict, ...]


def join(wish: Wish, where: Launch) -> tuple[int, Job]:
    """Collective: check in the job of the launcher; this process's rank, and the same findings on every rank.

    Raises LaunchError, RendezvousError, KnobError, RankFailure, MismatchError.
    """
    with connect(place=where) as session:
        return session.rank, _joined(wish, session)


def _joined(wish: Wish, session: Session) -> Job:
    control = session.control
    channels = Channels(session.transport)
    told = control.gather("the hosts", json.dumps(socket.gethostname()).encode())
    measured = links.measure(control, channels)
    ranks = tuple(
        Rank(json.loads(host), address, link)
        for host, address, link in zip(told, session.addresses, measured, strict=True)
    )
    threads = max(1, len(os.sched_getaffinity(0)) // session.local_size)
    verdicts = []
    for case in wish.cases(session.nodes):
        verdict = check.symbolic(case)
        wrong = verdict.refused or verdict.faults
        verdicts.append(verdict if wrong else check.run(case, control, channels, threads))
    transport = session.transport.name + ", encrypted" * session.encrypted
    return Job(transport, session.nodes, ranks, tuple(verdicts))


def ranks_table(job: Job) -> Table:
    """The ranks and the links between them; the slowest link is marked."""
    table = Table(
        title=f"{len(job.ranks)} ranks on {len(job.nodes)} machine{'s' * (len(job.nodes) > 1)}, "
        f"transport {job.transport}",
        title_justify="left",
        box=SIMPLE_HEAD,
    )
    for name in ("rank", "host", "address", "to rank", "latency\nus", "Gbit/s", ""):
        table.add_column(name, justify="left" if name in ("host", "address", "") else "right")
    slowest = min(rank.link.rate for rank in job.ranks)
    for number, rank in enumerate(job.ranks):
        table.add_row(
            str(number),
            rank.host,
            rank.address,
            str((number + 1) % len(job.ranks)),
            f"{1e6 * rank.link.latency:.0f}",
            f"{8e-9 * rank.link.rate:.3g}",
            "slowest" if rank.link.rate == slowest else "",
        )
    return table


def verdicts_table(verdicts: Sequence[Verdict], title: str) -> Table:
    """What came out for each codec and topology; messages and bytes are of all ranks, a step."""
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD)
    for name in ("codec", "topology"):
        table.add_column(name, no_wrap=True)
    for name in ("messages", "bytes", "ratio"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for each in verdicts:
        if each.refused or each.faults:
            table.add_row(each.codec, each.topology, "", "", "", "not allowed" if each.refused else "WRONG")
        else:
            counts = (f"{each.messages}", f"{each.nbytes:,}", f"{each.ratio:.1f}")
            table.add_row(each.codec, each.topology, *counts, "ok")
    return table


def reasons(verdicts: Sequence[Verdict]) -> list[str]:
    """A line for each thing that is not allowed, or wrong."""
    return [
        f"{each.codec} in {each.topology}: {reason}"
        for each in verdicts
        for reason in (each.faults or (each.refused,))
        if reason
    ]


def choices(wish: Wish, nodes: Nodes) -> list[str]:
    """Lines that tell what `topology="auto"` takes for each codec."""
    lines = []
    for codec in wish.codecs:
        try:
            down = wish.down is not None
            lines.append(f'topology="auto" takes {choose((codec,), wish.plan or Plan(()), nodes, down=down)}')
        except CodecError as error:
            lines.append(str(error))
    return [f"{codec.info.name}: {line}" for codec, line in zip(wish.codecs, lines, strict=True)]
