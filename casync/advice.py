"""Does compressing pay in this run? Its kernels, as timed, against the time that the bytes saved would take.

The network's rate is taken from this run: that at which the parameters were broadcast (`casync.broadcast`).
It is estimated rather too low than too high, as connections are young then; so bytes saved count rather too
much, and the warning comes rather too rarely. Where nothing large was broadcast, nothing is said.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from casync.metrics import Cost

log = logging.getLogger("casync")

JUDGED = 50
"""The steps after which a run is judged, once."""

MARGIN = 2.0
"""So many times more than it saves must compression cost: sums of uncompressed gradients take time, too."""


def advice(costs: Sequence[Cost], steps: int, rate: float, sharing: int) -> str | None:
    """What to tell the user of a run in which compression does not pay, None if it may.

    costs: of all gradients over `steps` steps. rate: bytes a second of this machine's link, which `sharing`
    ranks use at once.
    """
    compressed = [cost for cost in costs if cost.compressed]
    kernels = sum(cost.encode_seconds + cost.decode_seconds for cost in compressed) / steps
    saved = sum(cost.raw_bytes_sent - cost.bytes_sent for cost in compressed) / steps
    gained = saved * sharing / rate
    if not compressed or kernels <= MARGIN * gained:
        return None
    return (
        "casync: compression costs more than it saves here: on rank 0 encoding and decoding take "
        f"{1e3 * kernels:.3g} ms a step, and the {saved / 1e6:.3g} MB that are not sent would take "
        f"{1e3 * gained:.3g} ms at {8e-9 * rate:.3g} Gbit/s, as the parameters were broadcast. Let `secopa "
        "plan` choose what to compress, raise min_elements in a rule, or take codec=None; "
        "CASYNC_REPORT=table shows each gradient"
    )


class Advisor:
    """Warns once a job. `rate` is asked when the first optimizer has made JUDGED steps; None: unknown."""

    def __init__(self, rate: Callable[[], float | None], sharing: int) -> None:
        self._rate, self._sharing = rate, sharing
        self._judged = False

    def stepped(self, steps: int, costs: Callable[[], Sequence[Cost]]) -> None:
        """A synchronizer has made so many steps, at these costs."""
        if self._judged or steps < JUDGED:
            return
        self._judged = True
        rate = self._rate()
        told = None if rate is None else advice(costs(), steps, rate, self._sharing)
        if told is not None:
            log.warning("%s", told)
