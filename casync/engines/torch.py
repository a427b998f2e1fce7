"""torch.distributed: an all-reduce of gloo, in a group of the engine's own.

Of its own, so that the script's collectives, in other threads, never come between ours; and of gloo, whatever
the default group is, because gradients are on the CPU.
"""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed

from casync.engines.base import EngineError, check_place, end_failed_job

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from casync.control import Control


def open(control: Control) -> TorchEngine:  # noqa: A001  (the name that casync.engines.base asks for)
    """Collective. Raises EngineError unless torch.distributed is initialised, with the job's ranks."""
    if not distributed.is_initialized():
        raise EngineError(
            "exact='torch' needs a process group: call torch.distributed.init_process_group('gloo') first, "
            "under torchrun, or use exact='ring'"
        )
    check_place("torch", control, distributed.get_rank(), distributed.get_world_size())
    atexit.register(end_failed_job, control)
    return TorchEngine(distributed.new_group(backend="gloo"))


class TorchEngine:
    """The engine (`casync.engines.base.Engine`) over a process group."""

    name = "torch"

    def __init__(self, group: Any) -> None:
        self._group = group

    def all_reduce(self, values: NDArray[np.float32]) -> None:
        """Sum in place."""
        distributed.all_reduce(torch.from_numpy(values), group=self._group)
