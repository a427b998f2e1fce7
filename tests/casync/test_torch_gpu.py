"""Models whose gradients count as lying on a GPU: tensors of the CPU, beside the late stand-in for CuPy."""

from __future__ import annotations

import sys
import threading
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import late_cupy
import numpy as np
import pytest
import torch
from torch_jobs import good, jobs, model_hash

import casync.torch as casync
from casync.gpu import GpuError
from casync.torch import ddp, gradients, places

if TYPE_CHECKING:
    from collections.abc import Callable

CUDA = torch.device("cuda", 0)
STEPS = 3


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """What makes all tensors count as lying on the GPU from then on; each thread has a stream."""
    streams: dict[int, late_cupy.Stream] = {}

    def current_stream(_: torch.device) -> Any:
        stream = streams.setdefault(threading.get_ident(), late_cupy.Stream(non_blocking=True))
        return SimpleNamespace(cuda_stream=stream.ptr)

    def begin() -> None:
        late_cupy.install(monkeypatch)
        for module in (places, gradients):
            monkeypatch.setattr(module, "device_of", lambda _: CUDA)
        monkeypatch.setattr(torch.cuda, "current_stream", current_stream)

    return begin


class Two(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(40, 30), torch.nn.Linear(40, 30)
        rng = np.random.default_rng(0)
        with torch.no_grad():
            for p in self.parameters():
                p.copy_(torch.from_numpy(rng.uniform(-0.15, 0.15, tuple(p.shape)).astype(np.float32)))


def comes_late(p: torch.Tensor) -> None:
    """Make a gradient one that the training's stream has not written yet."""
    assert p.grad is not None
    grad, values = p.grad, p.grad.clone()
    grad.fill_(torch.nan)
    stream = late_cupy.stream_of(torch.cuda.current_stream(CUDA).cuda_stream)
    stream.put(lambda: grad.copy_(values))


def train(dtype: torch.dtype, hook: Callable[[torch.Tensor], None] | None = None) -> list[list[str]]:
    """The hashes of two ranks' parameters, step by step; the second rank does not use the second layer."""

    def work(rank: int, job: casync.Job) -> list[str]:
        model = Two().to(dtype)
        for p in model.parameters() if hook else ():
            p.register_post_accumulate_grad_hook(hook)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = casync.DistributedOptimizer(sgd, model.named_parameters(), codec="onebit", job=job)
        hashes = []
        for step in range(STEPS):
            rng = np.random.default_rng([rank, step])
            x = torch.from_numpy(rng.standard_normal((8, 40)).astype(np.float32)).to(dtype)
            optimizer.zero_grad()
            loss = model.first(x).square().sum()
            if rank == 0:
                loss = loss + model.second(x).square().sum()
            loss.backward()
            optimizer.step()
            hashes.append(model_hash(model))
        state = optimizer.state_dict()["casync"]["feedback"]["entries"]
        return [*hashes, *(f"{v.sum()}" for entry in state for v in entry["values"].values())]

    return good(jobs(2, work))


@pytest.mark.parametrize(("dtype", "hook"), [(torch.float32, comes_late), (torch.bfloat16, None)])
def test_a_model_on_a_gpu_trains_as_on_the_cpu(on_gpu: Callable[[], None], dtype: Any, hook: Any) -> None:
    meant = train(dtype)
    on_gpu()
    ran = train(dtype, hook)
    assert ran == meant
    assert ran[0][:STEPS] == ran[1][:STEPS]
    assert [name for name in late_cupy.GPU.waits if "compute" in name] == []


def test_what_the_training_still_reads_of_a_result_is_not_written_over(on_gpu: Callable[[], None]) -> None:
    """The second rank never has a gradient: its results lie in memory that the next step gets again."""
    on_gpu()
    reads: list[bool] = []

    def work(rank: int, job: casync.Job) -> None:
        model = torch.nn.Linear(40, 30, bias=False)
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = casync.DistributedOptimizer(sgd, model.named_parameters(), codec="onebit", job=job)
        for step in range(STEPS):
            optimizer.zero_grad()
            if rank == 0:
                (model(torch.ones(1, 40)).sum() * (step + 1)).backward()
            optimizer.synchronize()
            optimizer.step()
            if rank == 1:
                grad = model.weight.grad
                assert grad is not None
                memory, meant = late_cupy.plain(grad.numpy().view(late_cupy.ndarray)), grad.numpy().copy()
                stream = late_cupy.stream_of(torch.cuda.current_stream(CUDA).cuda_stream)
                stream.put(lambda memory=memory, meant=meant: reads.append(np.array_equal(memory, meant)))
                del grad
        if rank == 1:
            stream.synchronize()

    good(jobs(2, work))
    assert reads == [True] * STEPS


def test_without_cupy_a_model_on_a_gpu_is_refused_and_told_what_to_install(
    on_gpu: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    on_gpu()
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(GpuError, match=r"need CuPy.*pip install cupy-cuda12x"):
        train(torch.float32)


def test_a_device_of_another_kind_and_several_devices_are_refused() -> None:
    parameters = {"w": torch.zeros(2), "v": torch.zeros(2, device="meta")}
    with pytest.raises(RuntimeError, match="on several devices, w on cpu, v on meta"):
        places.place_of(parameters)
    with pytest.raises(RuntimeError, match="v is on meta: casync synchronizes gradients on CPUs and NVIDIA"):
        places.place_of({"v": parameters["v"]})


def test_a_ddp_model_on_a_gpu_is_refused_and_told_what_to_use(on_gpu: Callable[[], None]) -> None:
    on_gpu()
    p = torch.nn.Parameter(torch.zeros(3))
    state = casync.State(codec="onebit")
    state._open = [ddp._Bucket(torch.zeros(3), torch.futures.Future(), ((p, torch.zeros(3)),))]
    (refused,) = jobs(1, lambda _, job: state._build(job))
    assert isinstance(refused, RuntimeError)
    assert "the DDP model is on a GPU" in str(refused)
    assert "wrap its optimizer by DistributedOptimizer" in str(refused)
