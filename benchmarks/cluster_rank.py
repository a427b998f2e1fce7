"""One rank of the emulated cluster: does what the driver says, a line of JSON on standard input a command.

{"do": "make", "methods": [...], "model": "mlp"}      builds the methods and warms each of them up
{"do": "run", "method": "DDP", "iterations": 3}       runs, and replies with what it took
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cluster_methods import BY_NAME, POWERSGD_WARM, Iterate, twin
from cluster_models import build, elements
from cluster_network import INTERFACE
from cluster_ranks import serve

WARM_UP = POWERSGD_WARM + 2


def counters() -> tuple[float, int, int]:
    """CPU seconds of this process, and bytes sent and received by this node."""
    folder = Path("/sys/class/net") / INTERFACE / "statistics"
    sent, received = (int((folder / f"{way}_bytes").read_text()) for way in ("tx", "rx"))
    return time.process_time(), sent, received


class Rank:
    """The methods that this rank has built."""

    def __init__(self) -> None:
        self.methods: dict[str, Iterate] = {}
        self.ready: Callable[[], list[float]] = list

    def make(self, methods: list[str], model: str) -> dict[str, Any]:
        """Build and warm up; replies with the elements of each gradient and the bytes that casync counts."""
        join({BY_NAME[name].engine for name in methods})
        original, loss = build(model)
        for name in methods:
            made = twin(original)
            if name == "compute alone":
                self.ready = watch(made)
            self.methods[name] = BY_NAME[name].make(made, loss)
            for _ in range(WARM_UP):
                self.methods[name]()
            gc.collect()
        return {"elements": [n for _, n in elements(original)]}

    def run(self, method: str, iterations: int) -> dict[str, Any]:
        """Run one method; seconds of each iteration, and CPU seconds and bytes of all of them."""
        iterate = self.methods[method]
        seconds = []
        before = counters()
        for _ in range(iterations):
            begin = time.perf_counter()
            iterate()
            seconds.append(time.perf_counter() - begin)
        cpu, sent, received = (b - a for a, b in zip(before, counters(), strict=True))
        ready = self.ready() if method == "compute alone" else []
        return {"seconds": seconds, "cpu": cpu, "sent": sent, "received": received, "ready": ready}


def watch(model: torch.nn.Module) -> Callable[[], list[float]]:
    """Note when each gradient of the model is ready; returns what tells the last iteration's times."""
    noted: dict[int, float] = {}
    begin = [0.0]

    def started(*_: object) -> None:
        begin[0] = time.perf_counter()

    model.register_forward_pre_hook(started)
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(
            lambda p: noted.__setitem__(id(p), time.perf_counter() - begin[0])  # type: ignore[misc]
        )
    return lambda: [noted[id(p)] for p in model.parameters()]


def join(engines: set[str]) -> None:
    """Join the job by each library that the methods use."""
    if "casync" in engines:
        import casync.torch as casync

        casync.init()
    if "torch" in engines:
        torch.distributed.init_process_group("gloo")
    if "horovod" in engines:
        import horovod.torch as hvd

        hvd.init()


if __name__ == "__main__":
    torch.set_num_threads(1)
    rank = Rank()
    serve({"make": rank.make, "run": rank.run})
