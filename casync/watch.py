"""What is looked at while a synchronizer runs, besides its totals: by default nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casync.advice import Advisor
    from casync.probe import Probe
    from casync.trace import Lane


@dataclass(frozen=True)
class Watch:
    """lane: of the trace. probe: of the report. advisor: on rank 0. None: not asked for."""

    lane: Lane | None = None
    probe: Probe | None = None
    advisor: Advisor | None = None
