"""Gradients on a GPU against the same in host memory, through the whole runtime. Run it by benchmarks/gpu.sh.

Jobs of two ranks, threads over the loopback network: both on the GPU, one on the GPU and one in host memory,
both in host memory. Results and residuals are compared bit for bit, overflows and absent gradients included;
then PyTorch's gradients by DistributedOptimizer. Last, a step of a large gradient is timed in each memory.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np

import compll
from casync.channels import Channels
from casync.gpu import Gpu, GpuError
from casync.memory import Host
from casync.plan import Entry, Gradient, Plan
from casync.spec import Spec
from casync.synchronizer import Synchronizer
from casync.transports.loopback import LoopbackNetwork

if TYPE_CHECKING:
    from collections.abc import Iterator

CASES = (  # codec, topology, that of sums
    *(("onebit", "ps", None), ("terngrad", "ps", None), ("dgc", "ps", "onebit"), ("int8", "ring", None)),
    *(("onebit", "ring", None), ("dgc", "allgather", None), ("fp16", "direct", None), (None, "ps", None)),
)
SHAPES = {"w": (300, 150), "v": (64, 64), "b": (300,)}
RANKS = 2
PLACES = {"GPU and GPU": (Gpu, Gpu), "GPU and host": (Gpu, Host)}
Step = list[dict[str, Any]]


def spec_of(codec: str | None, topology: str, down: str | None, shapes: dict[str, tuple[int, ...]]) -> Spec:
    gradients = tuple(Gradient(name, shape) for name, shape in shapes.items())
    plan = Plan(tuple(Entry(g.name, len(g.shape) > 1, RANKS) for g in gradients))
    made, of_sums = (None if name is None else compll.compile(name) for name in (codec, down))
    return Spec(gradients, plan, made, topology, down=of_sums)


def steps_of(shapes: dict[str, tuple[int, ...]], count: int) -> list[Step]:
    """Gradients by step and rank. The second step has an infinity, in the third a rank lacks a gradient."""
    rng = np.random.default_rng(1)
    steps: list[Step] = [
        [{n: rng.standard_normal(np.prod(s), np.float32) for n, s in shapes.items()} for _ in range(RANKS)]
        for _ in range(count)
    ]
    if count > 2:
        steps[1][1]["w"][5] = np.inf
        del steps[2][0]["w"]
    return steps


def job(spec: Spec, places: tuple[Any, Any], steps: list[Step]) -> list[Any]:
    """What each rank ends with: results, step by step, state, and seconds of each step."""
    network = LoopbackNetwork(RANKS, timeout=60)
    found: list[Any] = [None] * RANKS

    def rank_main(rank: int) -> None:
        memory = places[rank]()
        channels = Channels(network.transport(rank))
        synchronizer = Synchronizer(network.control(rank), channels, spec, memory=memory)
        results, seconds = [], []
        for step in steps:
            given = {n: memory.upload(v.copy()) for n, v in step[rank].items()}
            network.control(rank).gather("a step", b"")
            begin = time.perf_counter()
            for name, values in given.items():
                synchronizer.submit(name, values)
            values = synchronizer.synchronize().values
            seconds.append(time.perf_counter() - begin)
            results.append({n: np.array(memory.to_host(v)) for n, v in values.items() if v is not None})
        found[rank] = results, synchronizer.state_dict()["feedback"]["entries"], seconds
        network.control(rank).gather("the end", b"")
        synchronizer.close()

    threads = [threading.Thread(target=rank_main, args=(rank,), daemon=True) for rank in range(RANKS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(300)
    network.close()
    if None in found:
        sys.exit("gpu_runtime.py: a rank has failed, or takes longer than five minutes")
    return found


def vectors(rank: Any) -> Iterator[tuple[str, np.ndarray]]:
    for number, values in enumerate(rank[0]):
        yield from ((f"{name} of step {number}", vector) for name, vector in values.items())
    for entry in rank[1]:
        yield from ((f"{k} of {entry['gradient']}", vector) for k, vector in entry["values"].items())


def differences(found: list[Any], meant: list[Any]) -> Iterator[str]:
    """Yield for each vector what differs, or nothing; any NaN is as good as another."""
    for rank, (ours, theirs) in enumerate(zip(found, meant, strict=True)):
        for (what, one), (_, other) in zip(vectors(ours), vectors(theirs), strict=True):
            same = (one.view(np.uint32) == other.view(np.uint32)) | (np.isnan(one) & np.isnan(other))
            yield "" if same.all() else f"rank {rank}: {what}"


def on_tensors() -> Iterator[str]:
    """PyTorch's gradients on the GPU, which are given: the same results as from the CPU, each step."""
    if importlib.util.find_spec("torch") is None or not importlib.import_module("torch").cuda.is_available():
        return
    torch: Any = importlib.import_module("torch")
    casync: Any = importlib.import_module("casync.torch")
    for dtype in (torch.float32, torch.bfloat16):
        found = []
        for device in ("cpu", "cuda"):
            casync.init()
            p = torch.nn.Parameter(torch.zeros(300, 150, dtype=dtype, device=device))
            optimizer = casync.DistributedOptimizer(torch.optim.SGD([p], lr=0.1), [("p", p)], codec="onebit")
            rng, results = np.random.default_rng(2), []
            for _ in range(4):
                g = torch.from_numpy(rng.standard_normal((300, 150), np.float32)).to(device, dtype)
                optimizer.zero_grad()
                (p * g).sum().backward()
                optimizer.synchronize()
                results.append(p.grad.float().cpu().numpy())
                optimizer.step()
            found.append(np.concatenate(results))
            casync.shutdown()
        yield "" if found[0].tobytes() == found[1].tobytes() else f"tensors of {dtype}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--codecs", nargs="+", help="of those compared; default: all")
    parser.add_argument("--elements", type=int, default=2**24, help="of the gradient that is timed")
    options = parser.parse_args(arguments)
    try:
        Gpu()
    except GpuError as error:
        sys.exit(f"gpu_runtime.py: {error}")
    chosen = [case for case in CASES if options.codecs is None or case[0] in options.codecs]
    compared, differing = 0, []

    def count(what: str, told: Iterator[str]) -> None:
        nonlocal compared
        for wrong in told:
            compared += 1
            differing.extend([f"{what}: {wrong}"] if wrong else [])

    for codec, topology, down in chosen:
        spec, steps = spec_of(codec, topology, down, SHAPES), steps_of(SHAPES, 4)
        meant = job(spec, (Host, Host), steps)
        for name, places in PLACES.items():
            count(f"{codec} in {topology}, {name}", differences(job(spec, places, steps), meant))
        print(f"{codec} in {topology}: compared, {len(differing)} differ so far", flush=True)
    count("DistributedOptimizer", on_tensors())
    shapes = {"w": (options.elements // 1024, 1024)}
    for codec, topology, down in chosen:
        spec, steps = spec_of(codec, topology, down, shapes), steps_of(shapes, 1) * 5
        ms = [1e3 * min(job(spec, (place, place), steps)[0][2]) for place in (Gpu, Host)]
        print(
            f"{codec} in {topology}: {ms[0]:.2f} ms a step on the GPU, {ms[1]:.2f} in host memory", flush=True
        )
    print(f"{compared} results and residuals were compared, {len(differing)} differ")
    if differing:
        sys.exit("\n".join(["gpu_runtime.py: results differ", *differing]))


if __name__ == "__main__":
    main()
