"""Ranks of jobs over the transport nccl, whose bodies a process group of gloo carries on the CPU.

`nccl_worker.py <folder>`: forks the ranks of all jobs (imports are paid once), each of which writes a file,
and prints how each process ended, as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from casync_jobs import free_port
from loopback_jobs import even_plan, spec_of
from nccl_jobs import by_gloo

import compll
from casync.channels import Channels
from casync.control import RankFailure
from casync.launch import Launch, Rank0
from casync.plan import Gradient
from casync.session import Session, connect
from casync.synchronizer import Synchronizer

SIZES = (2, 3, 4)
FAULTS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP}
CASES = ("none:ps", "terngrad:ring", "onebit:hierarchical", "topk:allgather", "bf16:direct")
CODECS = {name: compll.compile(name) for name in ("onebit", "terngrad", "topk", "bf16")}
SHAPES = {"conv": (90, 100), "fc": (40, 500), "rare": (3, 5000), "bias": (300,), "nobody's": (10,)}
STEPS, VICTIM = 4, 1


def spec(case: str, size: int) -> Any:
    codec, topology = case.split(":")
    plan = even_plan([Gradient(name, shape) for name, shape in SHAPES.items()], size)
    return spec_of(SHAPES, CODECS.get(codec), topology, size, plan=plan, seed=5, nodes=halves(size))


def halves(size: int) -> tuple[tuple[int, ...], ...]:
    return tuple(range((size + 1) // 2)), tuple(range((size + 1) // 2, size))


def gradients(rank: int, step: int) -> dict[str, np.ndarray]:
    """Of this rank in this step; one gradient fires on some ranks only, another on none."""
    rng = np.random.default_rng([rank, step])
    made = {name: rng.standard_normal(int(np.prod(shape)), np.float32) for name, shape in SHAPES.items()}
    return {n: g for n, g in made.items() if n != "nobody's" and (n != "rare" or (rank + step) % 2)}


def hash_of(results: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in SHAPES:
        values = results[name]
        digest.update(b"-" if values is None else values.tobytes())
    return digest.hexdigest()


def train(session: Session) -> dict[str, Any]:
    """Two optimizers at once; each rank hands over their gradients in an order of its own."""
    channels = Channels(session.transport, checksums=True)
    draw = random.Random(session.rank)
    found: dict[str, Any] = {}
    for case in CASES:
        made = spec(case, session.size)
        both = [Synchronizer(session.control, channels, made, threads=1) for _ in range(2)]
        hashes = []
        for step in range(STEPS):
            handed = [
                (synchronizer, name, values)
                for synchronizer in both
                for name, values in gradients(session.rank, step).items()
            ]
            for synchronizer, name, values in draw.sample(handed, len(handed)):
                time.sleep(draw.random() * 0.002)
                synchronizer.submit(name, values)
            hashes += [[hash_of(synchronizer.synchronize().values) for synchronizer in both]]
        stats = [synchronizer.stats() for synchronizer in both]
        found[case] = {"hashes": hashes, "bytes": [it.bytes_sent for it in stats]}
        for synchronizer in both:
            synchronizer.close()
    return found


def for_ever(session: Session, number: int) -> None:
    """Until one rank gets a signal in the middle of a step."""
    synchronizer = Synchronizer(
        session.control, Channels(session.transport), spec("none:ring", session.size), threads=1
    )
    for step in range(1_000_000):
        for name, values in gradients(session.rank, step).items():
            synchronizer.submit(name, values)
        if step == STEPS and session.rank == VICTIM:
            os.kill(os.getpid(), number)
        synchronizer.synchronize()


def main(job: str, rank: int, size: int, ports: tuple[int, int], folder: Path) -> None:
    os.environ["CASYNC_TIMEOUT"] = "3" if job in FAULTS else "60"
    torch.set_num_threads(1)
    by_gloo(rank, size, ports[0])
    with connect("nccl", place=Launch(rank, size, meeting=Rank0("127.0.0.1", ports[1]))) as session:
        file = folder / f"{job}.{rank}"
        if job in FAULTS:
            try:
                for_ever(session, FAULTS[job])
            except RankFailure as failure:
                file.write_text(json.dumps(failure.args))
                raise
        else:
            file.write_text(json.dumps(train(session)))
            session.control.gather("the end", b"")


if __name__ == "__main__":
    jobs = {f"{size} ranks": size for size in SIZES} | dict.fromkeys(FAULTS, 3)
    processes: dict[str, int] = {}
    for job, size in jobs.items():
        ports = free_port(), free_port()
        for rank in range(size):
            pid = os.fork()
            if not pid:
                main(job, rank, size, ports, Path(sys.argv[1]))
                sys.exit()
            processes[f"{job}.{rank}"] = pid
    stopped = processes.pop(f"stop.{VICTIM}")
    codes = {name: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for name, pid in processes.items()}
    os.kill(stopped, signal.SIGKILL)
    print(json.dumps(codes))
