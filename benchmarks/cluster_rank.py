"""One rank of the emulated cluster: does what the driver says, a line of JSON on standard input a command.

{"do": "make", "entries": [["DDP", 8]], "model": "vgg19", "plan": null}
    builds methods, each for a part of the model, and warms each of them up
{"do": "run", "entry": ["DDP", 8], "iterations": 3}
    runs, and replies with what it took
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from cluster_ablation import ABLATION
from cluster_methods import METHODS, POWERSGD_WARM, Entry, Iterate, Work, twin
from cluster_models import build, elements
from cluster_network import INTERFACE
from cluster_ranks import serve

BY_NAME = {method.name: method for method in (*METHODS, *ABLATION)}
WARM_UP = POWERSGD_WARM + 2


def counters() -> tuple[float, int, int]:
    """CPU seconds of this process, and bytes sent and received by this node."""
    folder = Path("/sys/class/net") / INTERFACE / "statistics"
    sent, received = (int((folder / f"{way}_bytes").read_text()) for way in ("tx", "rx"))
    return time.process_time(), sent, received


class Rank:
    """The methods that this rank has built; each with its model's parameters."""

    def __init__(self) -> None:
        self.methods: dict[Entry, tuple[Iterate, list[torch.nn.Parameter]]] = {}
        self.ready: Callable[[], list[float]] = list

    def make(self, entries: list[tuple[str, int]], model: str, plan: str | None) -> dict[str, Any]:
        """Build each method for its part of the model and warm up; replies with the elements of gradients."""
        join({BY_NAME[name].engine for name, _ in entries})
        originals = {part: build(model, part) for part in {1, *(part for _, part in entries)}}
        for name, part in entries:
            original, loss = originals[part]
            made = twin(original)
            if name == "compute alone":
                self.ready = watch(made)
            iterate = BY_NAME[name].make(Work(made, loss, plan))
            self.methods[Entry(name, part)] = iterate, list(made.parameters())
            self.run((name, part), WARM_UP)
            gc.collect()
        return {"elements": [n for _, n in elements(originals[1][0])]}

    def run(self, entry: tuple[str, int], iterations: int) -> dict[str, Any]:
        """Run one method; seconds of each iteration, and CPU seconds and bytes of all of them."""
        iterate, parameters = self.methods[Entry(*entry)]
        seconds = []
        before = counters()
        for _ in range(iterations):
            begin = time.perf_counter()
            iterate()
            seconds.append(time.perf_counter() - begin)
        cpu, sent, received = (b - a for a, b in zip(before, counters(), strict=True))
        for p in parameters:  # others have their turn, and need the memory
            p.grad = None
        ready = self.ready() if entry[0] == "compute alone" else []
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
