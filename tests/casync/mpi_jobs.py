"""How tests start ranks under MPI: the mpirun that is installed beside this Python."""

from __future__ import annotations

import os
import sys
from pathlib import Path

BIN = Path(sys.executable).parent
ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}


def mpirun(ranks: int, *command: str) -> list[str]:
    """The command that starts so many ranks, on as few cores as there are, whoever the user is."""
    options = ["--allow-run-as-root", "--oversubscribe", "--bind-to", "none", "-n", str(ranks)]
    return [str(BIN / "mpirun"), *options, *command]


def environ(**more: str) -> dict[str, str]:
    """The environment without any place in a job, with this Python's launchers on its path."""
    held = {name: value for name, value in os.environ.items() if not name.startswith(("CASYNC_", "HOROVOD_"))}
    return held | ROOT | {"PATH": f"{BIN}{os.pathsep}{held['PATH']}", "OMP_NUM_THREADS": "1"} | more
