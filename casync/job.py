"""A process's part in a job, as a framework's file needs it: a session and what shares its transport."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casync.broadcast import Broadcaster
from casync.channels import Channels

if TYPE_CHECKING:
    from casync.session import Session
    from casync.synchronizer import Synchronizer


class Job:
    """A session and what shares its transport: broadcasts, and a synchronizer an optimizer."""

    def __init__(self, session: Session, seed: int = 0, *, checksums: bool = False) -> None:
        self.session = session
        self.seed = seed
        self.channels = Channels(session.transport, checksums=checksums)
        self.broadcaster = Broadcaster(session.control, self.channels)
        self.synchronizers: list[Synchronizer] = []

    def close(self) -> None:
        """End all threads and leave the job. Idempotent."""
        for synchronizer in self.synchronizers:
            synchronizer.close()
        self.session.close()
