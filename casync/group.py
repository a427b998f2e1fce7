"""Groups: some ranks of a job that synchronize among themselves, as a job of their own.

A group's ranks are numbered from 0, in the order of the job's. Its messages, of collectives too, have
channels of the job's transport, and its failures are failures of the whole job.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from casync.broadcast import Broadcaster
from casync.control import NO_STEP, MismatchError, RankFailure, Wait, differences
from casync.frames import FrameError, Header, verify
from casync.job import Job

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from casync.channels import Channel, Channels
    from casync.control import Control
    from casync.session import Session

    Frames: TypeAlias = SimpleQueue[tuple[int, Header, memoryview] | None]


class GroupControl:
    """The control plane (`casync.control.Control`) of a group: its collectives are messages to each other."""

    def __init__(self, control: Control, channel: Channel, frames: Frames, ranks: Sequence[int]) -> None:
        """control: of the job. frames: of the channel. ranks: of the group, by the job's numbers."""
        self.rank, self.size = ranks.index(control.rank), len(ranks)
        self._control, self._ranks = control, ranks
        self._channel, self._frames = channel, frames
        self._round = 0
        self._held: defaultdict[int, dict[int, tuple[str, bytes]]] = defaultdict(dict)  # by round and rank
        control.on_failure(lambda _: frames.put(None))

    def waits(self, wait: Wait | None) -> None:
        """Say what this rank waits for."""
        self._control.waits(None if wait is None else replace(wait, rank=self._ranks[wait.rank]))

    def abort(self, failure: RankFailure) -> None:
        """Fail the whole job."""
        _, *what = failure.args
        self._control.abort(RankFailure(self._ranks[failure.rank], *what))

    def check(self) -> None:
        """Raise the job's failure if there is one."""
        self._control.check()

    def on_failure(self, call: Callable[[RankFailure], None]) -> None:
        """Have `call(failure)` called when the job fails; ranks are the job's there."""
        self._control.on_failure(call)

    def agree(self, topic: str, facts: Mapping[str, str]) -> None:
        """Collective: raise MismatchError on every rank of the group unless all hold equal `facts`."""
        text = json.dumps(dict(facts), sort_keys=True).encode()
        held = [json.loads(value) for value in self.gather(topic, text)]
        self._demand(differences(topic, held, self._ranks))

    def gather(self, topic: str, value: bytes) -> list[bytes]:
        """Collective: return the `value` of each rank of the group."""
        self.check()
        body = np.frombuffer(topic.encode() + b"\n" + value, np.uint8)
        for peer in range(self.size):
            if peer != self.rank:
                self._channel.send(peer, self._round, 0, 0, body)
        held = self._held[self._round]
        held[self.rank] = (topic, value)
        while missing := set(range(self.size)) - held.keys():
            self.waits(Wait(min(missing), topic, NO_STEP))
            self._take()
        self.waits(None)
        del self._held[self._round]
        self._round += 1
        in_order = [held[rank] for rank in range(self.size)]
        told = [{"now in": other} for other, _ in in_order]
        self._demand(differences("the order of collectives", told, self._ranks))
        return [theirs for _, theirs in in_order]

    def _take(self) -> None:
        frame = self._frames.get()
        if frame is None:
            self.check()
            return
        peer, header, body = frame
        try:
            verify(header, body)
            if header.step not in (self._round, self._round + 1) or peer in self._held[header.step]:
                raise FrameError(f"collective {header.step} of a group, unexpected at {self._round}")
        except FrameError as error:
            self.abort(RankFailure(peer, None, None, str(error)))
            self.check()
        topic, _, value = bytes(body).partition(b"\n")
        self._held[header.step][peer] = (topic.decode(), value)

    def _demand(self, problem: str | None) -> None:
        if problem:
            raise MismatchError(problem)

    def close(self) -> None:
        """Nothing to close: the job goes on."""


class Group(Job):
    """A group on a rank that is in it. It ends with the job, and is in its report and its trace."""

    def __init__(self, job: Job, session: Session, channels: Channels) -> None:
        """Collective among the group. session: the rank's place in the group."""
        self.session, self.seed, self.channels = session, job.seed, channels
        self.broadcaster = Broadcaster(session.control, channels, session.nodes)
        self.kept = job.kept
        self._report, self._trace, self._advisor = job._report, job._trace, None

    def tell(self) -> None:
        """The job tells."""

    def close(self) -> None:
        """The job ends."""


class Outside(Job):
    """The group on a rank that is not in it: false, and not to be used."""

    def __init__(self, rank: int, ranks: Sequence[int]) -> None:
        self._reason = f"rank {rank} is not in the group of ranks {list(ranks)}: use the group on these only"

    def __bool__(self) -> bool:
        """A rank may ask whether it is in the group: `if group:`."""
        return False

    def __getattr__(self, name: str) -> Any:
        """Raise RuntimeError: there is nothing here."""
        raise RuntimeError(self._reason)


def new_group(job: Job, ranks: Sequence[int]) -> Job:
    """Collective among all ranks of the job: these ranks as a job of their own, false on the others.

    Raises ValueError unless they are ranks of the job, MismatchError on all ranks if these differ.
    """
    session = job.session
    inside = tuple(sorted(set(ranks)))
    if not inside or len(inside) < len(ranks) or not 0 <= inside[0] <= inside[-1] < session.size:
        raise ValueError(f"a group of {list(ranks)}: name ranks of 0 to {session.size - 1}, each once")
    session.control.agree("new_group", {"ranks": str(list(inside))})
    channels = job.channels.among(inside)
    frames: Frames = SimpleQueue()
    channel = channels.open(lambda *frame: frames.put(frame), session.control)
    if session.rank not in inside:
        return Outside(session.rank, inside)
    control = GroupControl(session.control, channel, frames, inside)
    nodes = [tuple(inside.index(rank) for rank in node if rank in inside) for node in session.nodes]
    part = replace(
        session, rank=control.rank, size=control.size, control=control, nodes=tuple(filter(None, nodes))
    )
    return Group(job, part, channels)
