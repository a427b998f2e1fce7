"""One clock for the traces of a job: each rank's `time.perf_counter` against rank 0's wall clock.

Wall clocks are compared in a few rounds of messages. Between two ranks the fastest message each way bounds
the difference: half of what the ways differ by is the estimate, half of their sum how wrong it may be. Clocks
that differ by no more than that (those of one machine, or kept by NTP) are taken as they are, the others are
moved by the estimate. What they drift apart later, some 20 us a second at worst, is not followed.
"""

from __future__ import annotations

import json
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casync.control import Control

ROUNDS = 8
TOPIC = "the clocks of a trace; set CASYNC_TRACE, or init(trace=...), on all ranks or on none"
_SECONDS = struct.Struct("<d")


@dataclass(frozen=True)
class Clock:
    """offset: seconds; `time.perf_counter()` plus this is the time since the job's origin, as rank 0 has it.

    ahead: seconds by which this rank's wall clock was found to be ahead of rank 0's, 0 where it agrees;
    uncertainty: by how many seconds the ranks' times may be apart still.
    """

    offset: float
    ahead: float
    uncertainty: float


def difference(there_to_here: float, here_to_there: float) -> tuple[float, float]:
    """By how much this rank's clock is ahead, and how wrong that may be; both in seconds.

    Each argument is the least time that a message took that way, read off the receiver's clock less the
    sender's: the delay plus, or minus, the difference.
    """
    ahead, uncertainty = (there_to_here - here_to_there) / 2, (there_to_here + here_to_there) / 2
    return (0.0 if abs(ahead) <= uncertainty else ahead), uncertainty


def align(control: Control) -> Clock:
    """Collective: this rank's clock. Raises what `gather` raises."""
    anchor = time.time() - time.perf_counter()
    least = [float("inf")] * control.size
    origin = 0.0
    for number in range(ROUNDS):
        told = control.gather(TOPIC, _SECONDS.pack(time.perf_counter() + anchor))
        now = time.perf_counter() + anchor
        sent = [_SECONDS.unpack(value)[0] for value in told]
        origin = origin if number else sent[0]
        least = [min(before, now - at) for before, at in zip(least, sent, strict=True)]
    rank_0 = json.loads(control.gather(TOPIC, json.dumps(least).encode())[0])
    if control.rank == 0:
        return Clock(anchor - origin, 0.0, 0.0)
    ahead, uncertainty = difference(least[0], rank_0[control.rank])
    return Clock(anchor - origin - ahead, ahead, uncertainty)
