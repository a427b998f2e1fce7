"""Every environment variable that casync reads: typed, documented, in this one place.

A knob is read when it is asked for, so a test or a script may set it before `casync.init()`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

T = TypeVar("T")

MIN_TIMEOUT = 3.0
"""Seconds; heartbeats come every second, so that a shorter silence says nothing."""


class KnobError(ValueError):
    """An environment variable holds what it may not; the message names it, its value and what is allowed."""


@dataclass(frozen=True)
class Knob(Generic[T]):
    """One variable. `parse` raises ValueError on what is not `allowed`; unset and "" are the same."""

    name: str
    default: T
    allowed: str
    meaning: str
    parse: Callable[[str], T]

    def get(self, environ: Mapping[str, str] | None = None) -> T:
        """Return the value in `environ` (default: os.environ); raise KnobError on one that is not allowed."""
        text = (os.environ if environ is None else environ).get(self.name, "")
        if not text:
            return self.default
        try:
            return self.parse(text)
        except ValueError:
            raise KnobError(f"{self.name}={text!r}: must be {self.allowed} ({self.meaning})") from None

    def given(self, value: str | None) -> T:
        """Return what a function's argument of the same meaning says; None: what the variable does."""
        return self.get(None if value is None else {self.name: value})

    def is_set(self, environ: Mapping[str, str] | None = None) -> bool:
        """Return whether `environ` (default: os.environ) holds the variable."""
        return bool((os.environ if environ is None else environ).get(self.name))


def _at_least(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if value < least:
            raise ValueError
        return value

    return parse


def _seconds(least: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        value = float(text)
        if not least <= value < float("inf"):
            raise ValueError
        return value

    return parse


def _switch(text: str) -> bool:
    return bool(("0", "1").index(text))


def _report(text: str) -> str:
    if text != "table" and not text.endswith(".json"):
        raise ValueError
    return text


def _host_port(text: str) -> tuple[str, int] | None:
    host, colon, port = text.rpartition(":")
    if not (host and colon and 1 <= int(port) <= 65535):
        raise ValueError
    in_brackets = host.startswith("[") and host.endswith("]")
    if in_brackets != (":" in host):
        raise ValueError
    return host.strip("[]"), int(port)


RANK = Knob("CASYNC_RANK", None, "an integer from 0 to CASYNC_SIZE - 1", "this process's rank", _at_least(0))
SIZE = Knob("CASYNC_SIZE", None, "an integer of 1 or more", "number of ranks of the job", _at_least(1))
ADDR = Knob(
    "CASYNC_ADDR",
    None,
    "host:port, a name, an IPv4 or an [IPv6] address, and a free port",
    "where rank 0 listens until all ranks have joined",
    _host_port,
)
LOCAL_RANK = Knob(
    "CASYNC_LOCAL_RANK",
    None,
    "an integer from 0 to CASYNC_LOCAL_SIZE - 1",
    "rank among those on this machine; found by itself",
    _at_least(0),
)
LOCAL_SIZE = Knob(
    "CASYNC_LOCAL_SIZE",
    None,
    "an integer of 1 or more",
    "number of ranks on this machine; found by itself",
    _at_least(1),
)
IFACE = Knob(
    "CASYNC_IFACE",
    "",
    "the name of a network interface that has an address, such as eth0",
    "where this rank's sockets listen; default: the launcher's, else the one that leads to the rendezvous",
    str,
)
TIMEOUT = Knob(
    "CASYNC_TIMEOUT",
    60.0,
    f"seconds, {MIN_TIMEOUT:g} or more",
    "how long a rank may be silent, or hold up others without progress, before the job fails and names it",
    _seconds(MIN_TIMEOUT),
)
START_TIMEOUT = Knob(
    "CASYNC_START_TIMEOUT",
    60.0,
    "seconds, 1 or more",
    "how long the ranks that have started wait for those that have not",
    _seconds(1),
)
TRANSPORT = Knob(
    "CASYNC_TRANSPORT",
    "",
    "the name of a file in casync/transports/",
    "what carries the gradients; default: mpi where MPI started the ranks, else zmq",
    str,
)
ENCRYPT = Knob(
    "CASYNC_ENCRYPT",
    False,
    "0 or 1",
    "whether all connections between ranks are encrypted; the same on all ranks",
    _switch,
)
REPORT = Knob(
    "CASYNC_REPORT",
    "",
    "table, or the path of a .json file; {rank} in it gives each rank its own",
    "what synchronization has cost, gradient by gradient, when the run ends: printed, or written, by rank 0",
    _report,
)
TRACE = Knob(
    "CASYNC_TRACE",
    "",
    "a folder",
    "where each rank writes a Chrome trace of its first steps, rank-R.json, for `casync trace`",
    str,
)
TRACE_STEPS = Knob(
    "CASYNC_TRACE_STEPS",
    100,
    "an integer of 1 or more",
    "how many steps are traced, from the first",
    _at_least(1),
)


def knobs() -> list[Knob[object]]:
    """Return every knob, in the order of this file."""
    return [value for value in globals().values() if isinstance(value, Knob)]
