"""Which machine and process a rank is: for local ranks, and for waking one that was stopped."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Process:
    """A process, told apart from a later one of the same pid by when it started (clock ticks since boot).

    machine: equal for processes that see each other: host name, boot and pid namespace.
    """

    machine: str
    pid: int
    started: str


def this_process() -> Process:
    """Return the calling process. Outside Linux `started` is empty, and `resume` does nothing."""
    parts = [socket.gethostname()]
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    except OSError:
        pass
    return Process("/".join(parts), os.getpid(), _stat(os.getpid())[1])


def resume(process: Process) -> bool:
    """Continue `process` (SIGCONT) if it is of this machine and stopped; return whether it was.

    A stopped rank cannot see that its job has failed, and would stay for ever. Continued, it reads the
    abort, raises and ends.
    """
    here = this_process()
    state, started = _stat(process.pid)
    if process.machine != here.machine or not started or started != process.started or state != "T":
        return False
    try:
        os.kill(process.pid, signal.SIGCONT)
    except OSError:
        return False
    return True


def _stat(pid: int) -> tuple[str, str]:
    """Return state and start time of `pid`, empty where there is no such process or no /proc (proc(5))."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "", ""
    return fields[0], fields[19]
