"""PyTorch: `casync.torch` is shaped after Horovod's API; only the modules of this package import torch.

    import casync.torch as casync
    casync.init()
    casync.broadcast_parameters(model.state_dict(), root_rank=0)
    optimizer = casync.DistributedOptimizer(optimizer, named_parameters=model.named_parameters(),
                                            codec="terngrad", topology="ring", plan="SeCoPaPlan.txt")

A gradient is handed over as soon as the backward pass has accumulated it, and travels while the pass goes on.
"""

from __future__ import annotations

from casync.checkpoint import StateError
from casync.choice import CodecError
from casync.control import MismatchError, RankFailure
from casync.engines.base import EngineError
from casync.gpu import GpuError
from casync.job import Job
from casync.plan import Plan, PlanError
from casync.rules import Rule, Schedule, warm_up
from casync.spec import Op
from casync.torch.ddp import State, hook
from casync.torch.job import init, local_rank, local_size, new_group, rank, session, shutdown, size
from casync.torch.optimizer import DistributedOptimizer
from casync.torch.parameters import broadcast_parameters, write_gradients
from casync.torch.state import merge_states

__all__ = [
    "Average",
    "CodecError",
    "DistributedOptimizer",
    "EngineError",
    "GpuError",
    "Job",
    "MismatchError",
    "Plan",
    "PlanError",
    "RankFailure",
    "Rule",
    "Schedule",
    "State",
    "StateError",
    "Sum",
    "broadcast_parameters",
    "hook",
    "init",
    "local_rank",
    "local_size",
    "merge_states",
    "new_group",
    "rank",
    "session",
    "shutdown",
    "size",
    "warm_up",
    "write_gradients",
]

Average = Op.AVERAGE
Sum = Op.SUM
