"""Horovod: its all-reduce, where the script has called `hvd.init()`.

Ours are issued one by one, and each is the whole of a bucket. But Horovod may fuse one with all-reduces of
the script's own that are under way at the same time, and a fused sum has other bits: replicas are identical,
runs are promised to be so with HOROVOD_FUSION_THRESHOLD=0 only.
"""

from __future__ import annotations

import atexit
import itertools
import os
import warnings
from functools import partial
from typing import TYPE_CHECKING

import horovod.torch as hvd  # type: ignore[import-untyped]
import torch

from casync.engines.base import EngineError, check_place, end_failed_job, until

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from casync.control import Control

_opened = itertools.count()
"""How many engines this process has opened, the same on all ranks: Horovod matches all-reduces by name."""


def open(control: Control) -> HorovodEngine:  # noqa: A001  (the name that casync.engines.base asks for)
    """Collective. Raises EngineError unless Horovod is initialised, with the job's ranks.

    Warns where deterministic algorithms are asked of torch and Horovod's fusion is on.
    """
    if not hvd.is_initialized():
        raise EngineError(
            "exact='horovod' needs Horovod to be initialised: call horovod.torch.init() before, under "
            "horovodrun, or use exact='ring'"
        )
    check_place("horovod", control, hvd.rank(), hvd.size())
    if torch.are_deterministic_algorithms_enabled() and os.environ.get("HOROVOD_FUSION_THRESHOLD") != "0":
        warnings.warn(
            "exact='horovod': a sum that Horovod fuses with another has other bits, so that two runs may "
            "differ, though replicas do not; set HOROVOD_FUSION_THRESHOLD=0, or use exact='ring'",
            stacklevel=1,
        )
    atexit.register(end_failed_job, control)
    return HorovodEngine(f"casync.{next(_opened)}", control)


class HorovodEngine:
    """The engine (`casync.engines.base.Engine`) over Horovod."""

    name = "horovod"

    def __init__(self, prefix: str, control: Control) -> None:
        """`prefix`: of its all-reduces' names, of which one by one is under way."""
        self._prefix, self._control = prefix, control

    def all_reduce(self, values: NDArray[np.float32]) -> None:
        """Sum in place; RankFailure when the job fails meanwhile."""
        name = f"{self._prefix}.{values.size}"
        handle = hvd.allreduce_async_(torch.from_numpy(values), name=name, op=hvd.Sum)
        until(partial(hvd.poll, handle), self._control)
        hvd.synchronize(handle)
