"""A rank that trains a small network by casync.torch until its job fails: `<folder> <topology>`.

Writes into the folder: `pid.<rank>` once a few steps are done, `failure.<rank>` when a RankFailure is raised,
which then ends the process as it would end a user's script.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

import casync.torch as casync


def main(folder: Path, topology: str) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = torch.nn.Sequential(torch.nn.Linear(200, 300), torch.nn.ReLU(), torch.nn.Linear(300, 10))
    sgd = torch.optim.SGD(model.parameters(), lr=0.01)  # loads so much that a busy machine misses heartbeats
    casync.init()
    casync.broadcast_parameters(model.state_dict())
    optimizer = casync.DistributedOptimizer(
        sgd,
        named_parameters=model.named_parameters(),
        codec="terngrad",
        topology=topology,
    )
    try:
        for step in range(1_000_000):
            optimizer.zero_grad()
            model(torch.randn(64, 200)).square().mean().backward()
            optimizer.step()
            if step == 5:
                (folder / f"pid.{casync.rank()}").write_text(str(os.getpid()))
    except casync.RankFailure as failure:
        (folder / f"failure.{casync.rank()}").write_text(json.dumps(failure.args))
        raise


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
