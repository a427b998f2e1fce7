"""One rank of `cluster_trace.py`: builds a method, runs it while casync traces, and writes the trace."""

from __future__ import annotations

from typing import Any

import torch
from cluster_methods import METHODS, Iterate, Work, twin
from cluster_models import build
from cluster_ranks import serve

import casync.torch as casync


class Rank:
    """The one method of this rank."""

    def __init__(self) -> None:
        self.iterate: Iterate | None = None

    def make(self, method: str, model: str) -> dict[str, Any]:
        """Build it."""
        casync.init()
        original, loss = build(model)
        (chosen,) = (each for each in METHODS if each.name == method)
        self.iterate = chosen.make(Work(twin(original), loss))
        return {}

    def run(self, iterations: int) -> dict[str, Any]:
        """Run it so often."""
        assert self.iterate is not None
        for _ in range(iterations):
            self.iterate()
        return {}

    def end(self) -> dict[str, Any]:
        """Leave the job, by which the trace is written."""
        casync.shutdown()
        return {}


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = Rank()
    serve({"make": rank.make, "run": rank.run, "end": rank.end})
