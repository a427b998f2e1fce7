"""A process's part in a job, as a framework's file needs it: a session and what shares its transport."""

from __future__ import annotations

import logging
import weakref
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from casync import knobs
from casync.advice import Advisor
from casync.broadcast import Broadcaster
from casync.channels import Channels
from casync.probe import Probe
from casync.report import deliver
from casync.trace import Trace
from casync.watch import Watch

if TYPE_CHECKING:
    from casync.report import Report
    from casync.session import Session
    from casync.synchronizer import Synchronizer

log = logging.getLogger("casync")


@dataclass
class Kept:
    """A job's synchronizers, each with who made it, and the accounts of those whose makers are gone."""

    alive: list[tuple[weakref.ref[Any], Synchronizer]] = field(default_factory=list)
    told: list[Report] = field(default_factory=list)

    def reports(self) -> list[Report]:
        """The accounts of all."""
        return [*self.told, *(each.report() for _, each in self.alive)]


class Job:
    """A session and what shares its transport: broadcasts, and a synchronizer an optimizer."""

    def __init__(
        self,
        session: Session,
        seed: int = 0,
        *,
        checksums: bool = False,
        report: str | None = None,
        trace: str | None = None,
    ) -> None:
        """Collective. report, trace: as of `casync.torch.init`; raises KnobError."""
        self._report = knobs.REPORT.given(report)
        folder = knobs.TRACE.given(trace)
        self.session = session
        self.seed = seed
        self.channels = Channels(session.transport, checksums=checksums)
        self.broadcaster = Broadcaster(session.control, self.channels, session.nodes)
        self.kept = Kept()
        self._trace = Trace.start(folder, knobs.TRACE_STEPS.get(), session.control) if folder else None
        sharing = session.local_size if len(session.nodes) > 1 else 1
        self._advisor = Advisor(lambda: self.broadcaster.rate, sharing) if session.rank == 0 else None
        self._told = False

    def watch(self) -> Watch:
        """What one more synchronizer is watched by."""
        lane = self._trace.lane(self.channels.group) if self._trace is not None else None
        return Watch(lane, self.probe(), self._advisor)

    def probe(self) -> Probe | None:
        """What looks at one more synchronizer's gradients, if there will be a report."""
        return Probe() if self._report else None

    def keep(self, synchronizer: Synchronizer, maker: object) -> None:
        """Close it with the job, or, if `maker` is gone by then, when one more is to be kept.

        Nothing is closed when a maker goes: garbage is collected in any thread, whatever lock it holds.
        """
        gone = [each for made_by, each in self.kept.alive if made_by() is None]
        for each in gone:
            if self._report:
                self.kept.told.append(each.report())
            each.close()
        self.kept.alive = [pair for pair in self.kept.alive if pair[1] not in gone]
        self.kept.alive.append((weakref.ref(maker), synchronizer))

    def tell(self) -> None:
        """Deliver the report and the trace, once. No error of theirs fails a run that has done its work."""
        if self._told:
            return
        self._told = True
        try:
            if self._report:
                deliver(self._report, self.session.rank, self.kept.reports())
            if self._trace is not None:
                self._trace.write()
        except Exception as error:
            log.warning("casync: rank %d could not write its account: %s", self.session.rank, error)

    def close(self) -> None:
        """End all threads, deliver what was asked for, and leave the job. Idempotent."""
        for _, synchronizer in self.kept.alive:
            synchronizer.close()
        self.tell()
        self.session.close()
