"""Cases of ranks that fail, and how they ended: `fault_worker.py` runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from casync_jobs import free_port
from namespaces import address

WORKER = Path(__file__).with_name("fault_worker.py")
SHAPES = {"embed": (400, 300), "conv": (90, 100), "bias": (10,)}
CHECKPOINT, STEP, LAST = 3, 5, 7
"""The step before which ranks save their state, that of the fault, and the last one."""
FAILED, MISMATCH = 3, 4
"""Exit codes: of a rank that raised RankFailure, or was told how ranks differ or who is missing."""
PAUSE = 2.5
"""Seconds for which a rank is stopped by the fault "pause"."""
WITHIN = 30.0
"""Seconds that a job may take from its start, the failed rank included; a process that takes longer hangs."""


@dataclass(frozen=True)
class Case:
    """A job, and what goes wrong in it: where in `Worker`, on which rank.

    address: where the ranks meet. machines: the prefix of the namespaces that they run in. turn: to tell
    cases apart that are alike.
    """

    fault: str = "none"
    moment: str = ""
    victim: int = 0
    topology: str = "ps"
    codec: str = "onebit"
    size: int = 3
    resume: bool = False
    timeout: float = 20.0
    start_timeout: float = 10.0
    address: str = ""
    machines: str = ""
    turn: int = 0

    @property
    def name(self) -> str:
        """Also the folder of its files."""
        return "-".join(
            map(str, (self.fault, self.moment, self.victim, self.size, self.topology, self.turn))
        ).replace(" ", "_")


@dataclass
class Rank:
    """How a rank ended. told: what it printed, as one mapping."""

    code: int | None
    told: dict[str, Any]
    err: str


@dataclass
class Ended:
    """How a job ended. continued: ranks that were stopped when all others had ended."""

    case: Case
    ranks: list[Rank]
    continued: list[int] = field(default_factory=list)

    @property
    def others(self) -> list[Rank]:
        """All but the victim."""
        return [rank for number, rank in enumerate(self.ranks) if number != self.case.victim]

    def failure(self, *, of_all: bool = False) -> list[Any]:
        """The fields of the one RankFailure that the others (or all) raised."""
        ranks = self.ranks if of_all else self.others
        assert [rank.code for rank in ranks] == [FAILED] * len(ranks), self
        raised = {json.dumps(rank.told["failure"]) for rank in ranks}
        assert len(raised) == 1, f"every rank raises the same failure: {self}"
        found: list[Any] = json.loads(raised.pop())
        return found

    def reports(self) -> list[str]:
        """What was printed of the failure."""
        return [line for rank in self.ranks for line in rank.err.splitlines() if "reports: rank" in line]


def run(cases: list[Case], folder: Path) -> list[Ended]:
    """Run jobs, several at a time; files of a case stay in `folder` for a case that resumes it."""
    assert len({case.name for case in cases}) == len(cases), "each needs a folder of its own"
    cases = [
        replace(case, address=f"{address(0) if case.machines else '127.0.0.1'}:{free_port()}")
        for case in cases
    ]
    done = subprocess.run(
        [sys.executable, str(WORKER), str(folder)],
        input=json.dumps([asdict(case) for case in cases]),
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        start_new_session=True,  # ctrl-C in a job is none of the tests'
        check=False,
    )
    assert done.returncode == 0, done.stderr
    ended = {}
    for line in done.stdout.splitlines():
        told = json.loads(line)
        case = cases[told["case"]]
        ranks = []
        for rank in range(case.size):
            out, err = ((folder / case.name / f"{kind}.{rank}").read_text() for kind in ("out", "err"))
            printed = {key: value for text in out.splitlines() for key, value in json.loads(text).items()}
            ranks.append(Rank(told["codes"][str(rank)], printed, err))
        ended[told["case"]] = Ended(case, ranks, told["continued"])
    return [ended[number] for number in range(len(cases))]
