"""Compares the CUDA kernels with another backend, bit for bit: for benchmarks/gpu.py."""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING, Any

import numpy as np

import compll

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from gpu_machines import Machine


def gradients(n: int) -> Iterator[tuple[str, np.ndarray]]:
    """Yield gradients of n elements of several kinds: name, values."""
    rng = np.random.default_rng(n)
    normal = rng.standard_normal(n, dtype=np.float32)
    yield "normal", normal
    if n > 2**17:
        return
    yield "float16", normal.astype(np.float16)
    mixed = rng.integers(0, 2**32, n, dtype=np.uint32).view(np.float32)  # every bit pattern, NaN included
    yield "mixed", mixed
    yield "ties", np.round(normal)


def differences(
    machine: Machine, codec: compll.Codec, meant: compll.Codec, sizes: Sequence[int]
) -> Iterator[str]:
    """Compare every operation of a codec; yield for each result what differs, or nothing."""
    for n in sizes:
        for kind, g in gradients(n):
            for what, ours, theirs in results(machine, codec, meant, g):
                same = ours.dtype == theirs.dtype and ours.tobytes() == theirs.tobytes()
                yield "" if same else f"{what} at n = {n}, {kind}"
    yield from damaged(machine, codec, meant)
    if machine.backend == "cuda":
        yield from on_tensors(machine, codec)


def results(
    machine: Machine, codec: compll.Codec, meant: compll.Codec, g: np.ndarray
) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield of each operation what it wrote, and what the other backend did."""
    n, there = len(g), machine.array(g)
    states = [c.new_state(n, like=x) or None for c, x in ((codec, there), (meant, g))]
    room = machine.bytes(codec.max_bytes(n))

    def encode() -> Any:
        return codec.encode(there, seed=7, state=states[0], out=room)

    for step in range(2):  # the second begins from a state that is not zero
        payload = encode()
        want = meant.encode(g, seed=7, state=states[1])
        yield f"payload {step}", machine.host(payload[: codec.length(payload)]), want
    for name, kept in (states[1] or {}).items():
        yield f"state {name}", machine.host((states[0] or {})[name]), kept
    yield (
        "decoded",
        *(
            machine.host(x) if c is codec else x
            for c, x in ((c, c.decode(p, n, shared_seed=7)) for c, p in ((codec, payload), (meant, want)))
        ),
    )
    sums = machine.array(g), g.copy()
    codec.decode_add(payload, sums[0], 0.3, shared_seed=7)
    meant.decode_add(want, sums[1], 0.3, shared_seed=7)
    yield "decode_add", machine.host(sums[0]), sums[1]
    if codec.info.hop:
        hopped = codec.hop(payload, there, seed=8, shared_seed=7, scale=0.5, state=states[0])
        theirs = meant.hop(want, g, seed=8, shared_seed=7, scale=0.5, state=states[1])
        yield "hop", machine.host(hopped[: codec.length(hopped)]), theirs
    replay = machine.recorded(encode)  # twice: once before it is captured
    replay()
    for _ in range(1 if machine.backend == "cudasim" else 2):
        want = meant.encode(g, seed=7, state=states[1])
    yield "payload of a replayed graph", machine.host(room[: codec.length(room)])[: len(want)], want


def damaged(machine: Machine, codec: compll.Codec, meant: compll.Codec) -> Iterator[str]:
    """Decode damaged payloads: both refuse them, or both decode the same."""
    n, rng = 1500, np.random.default_rng(3)
    g = rng.standard_normal(n, dtype=np.float32)
    payload = meant.encode(g, seed=7, state=meant.new_state(n) or None)
    for _ in range(10):
        wrong = payload.copy()
        wrong[rng.integers(0, len(wrong), 3)] ^= rng.integers(1, 256, 3).astype(np.uint8)
        wrong = wrong[: len(wrong) - int(rng.integers(0, 2))]
        found = [decoded(c, p, n) for c, p in ((meant, wrong), (codec, machine.array(wrong)))]
        there = None if found[1] is None else machine.host(found[1])
        same = (found[0] is None) == (there is None) and (
            there is None or there.tobytes() == found[0].tobytes()
        )
        yield "" if same else f"a damaged payload, decoded or refused as {meant.backend} does not"


def decoded(codec: compll.Codec, payload: Any, n: int) -> Any:
    try:
        return codec.decode(payload, n, shared_seed=7)
    except compll.PayloadError:
        return None


def on_tensors(machine: Machine, codec: compll.Codec) -> Iterator[str]:
    """Encode PyTorch's tensors on a stream of PyTorch's, and captured in its graph, as CuPy's arrays are."""
    if importlib.util.find_spec("torch") is None:
        return
    torch: Any = importlib.import_module("torch")
    n = 70_001
    halves = ("bfloat16",) if codec.info.name in ("int8", "onebit") else ()  # compiling them takes time
    for kind in ("float32", *halves):
        tensor = torch.randn(n, device="cuda").to(getattr(torch, kind))
        array = machine.array(tensor.float().cpu().numpy())
        want = codec.encode(array, seed=7, state=codec.new_state(n, like=array) or None)
        want = machine.host(want[: codec.length(want)])
        with torch.cuda.stream(torch.cuda.Stream()):
            state = codec.new_state(n, like=tensor)
            got = codec.encode(tensor, seed=7, state=state or None)
            own = got[: codec.length(got)].cpu().numpy()
            yield "" if own.tobytes() == want.tobytes() else f"payload of a tensor of {kind}"
            room = torch.zeros(codec.max_bytes(n), dtype=torch.uint8, device="cuda")
            codec.encode(tensor, seed=7, state=state or None, out=room)
            torch.cuda.current_stream().synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            codec.encode(tensor, seed=7, state=state or None, out=room)
        for vector in state.values():
            vector.zero_()
        graph.replay()
        torch.cuda.synchronize()
        own = room[: codec.length(room)].cpu().numpy()
        yield "" if own.tobytes() == want.tobytes() else f"payload of a tensor of {kind} by PyTorch's graph"
