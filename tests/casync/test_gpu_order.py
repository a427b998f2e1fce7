"""What may be read, and what may be used again, before a GPU has done what it was given: each wait by itself.

While a test holds the stand-in's lock nothing that was queued runs.
"""

from __future__ import annotations

import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import late_cupy
import numpy as np
import pytest
from gpu_jobs import GPU, HOST, run_places, there
from late_cupy import LOCK
from loopback_jobs import even_plan, random_steps, spec_of

import compll
from casync import channels
from casync.bodies import BodyFormat
from casync.buffers import Lease
from casync.control import RankFailure
from casync.engines.base import EngineError
from casync.gpu import Gpu, GpuError
from casync.payload import Payload
from casync.plain import Plain
from casync.plan import Gradient
from casync.spec import Spec
from casync.synchronizer import Synchronizer
from compll.codec import Item

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

N = 1000


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return late_cupy.install(monkeypatch)


class Runs:
    """A GPU, and the calls that it has told of."""

    def __init__(self) -> None:
        self.calls: SimpleQueue[Any] = SimpleQueue()
        self.gpu = Gpu()
        self.gpu.start(lambda call: call, self.calls.put)

    def next(self) -> None:
        self.calls.get(timeout=10)()


@pytest.fixture
def runs() -> Iterator[Runs]:
    made = Runs()
    yield made
    made.gpu.close()


def filled(value: float) -> Any:
    return late_cupy.of(np.full(N, value, np.float32))


def test_what_has_arrived_is_kept_until_it_is_copied(runs: Runs) -> None:
    gpu, form = runs.gpu, BodyFormat((N,), True)
    assert gpu.arrivals is not None
    with LOCK, gpu.here():
        body = gpu.arrivals.lend(N)
        body[:] = bytes([1] * N)
        (part,) = gpu.parts(form, Payload(np.frombuffer(body, np.uint8), False, True))
        gpu.known([], lambda _: None)
        del body
        gpu.arrivals.lend(N)[:] = bytes([2] * N)
    runs.next()
    assert (there(part) == 1).all()
    assert gpu.arrivals.take(1024) is not gpu.arrivals.take(1024)  # both have come back by now


def test_the_side_stream_never_gets_what_the_training_was_given(runs: Runs) -> None:
    gpu = runs.gpu
    with gpu.here():
        kept = gpu.lasting(N)
        kept[:] = 3
        gpu.known([], lambda _: None)
    runs.next()
    with late_cupy.training() as stream:
        read = late_cupy.empty(N, np.float32)
        read[:] = kept
    del kept
    with gpu.here():
        mine = gpu.empty(N)
        mine[:] = 5
        gpu.known([], lambda _: None)
    runs.next()
    stream.synchronize()
    assert (there(read) == 3).all()


def test_a_body_is_not_used_again_before_its_readers_are_done(runs: Runs) -> None:
    gpu, form, bodies = runs.gpu, BodyFormat((4 * N,), True), []
    with gpu.here():
        lease = Lease(gpu.pool, form.capacity, readers=2)
        results = Plain().batch("encode", [Item(grad=filled(7), out=lease.buffer)])
        gpu.encoded(Plain(), form, lease, results, lambda body, _, finite: bodies.append((body, finite)))
    runs.next()
    ((body, finite),) = bodies
    assert finite
    assert (body.view(np.float32) == 7).all()
    lease.release()
    assert not np.shares_memory(gpu._staging.take(form.capacity), body)
    lease.release()
    assert np.shares_memory(gpu._staging.take(form.capacity), body)


def test_flags_and_what_became_of_calls_are_read_when_they_are_there_and_not_mixed_up(runs: Runs) -> None:
    gpu, codec, told = runs.gpu, compll.compile("onebit", "cuda"), []
    form = BodyFormat((codec.max_bytes(N),), True)
    with LOCK, gpu.here():
        for value in (1.0, np.inf, 2.0):
            gpu.known([filled(value).max() < 5, True], told.append)
            lease = Lease(gpu.pool, form.capacity, readers=1)
            item = Item(grad=filled(value), out=lease.buffer, state=gpu.new_state(codec, N))
            results = gpu.run(codec, "encode", [item], 1)
            gpu.encoded(codec, form, lease, results, lambda _body, _parts, finite: told.append(finite))
    for _ in range(6):
        runs.next()
    assert told == [True, True, False, False, True, True]


def test_what_is_uploaded_is_there_for_the_stream_that_is_current(runs: Runs) -> None:
    values = np.arange(N, dtype=np.float32)
    with late_cupy.training() as stream:
        read = late_cupy.empty(N, np.float32)
        read[:] = runs.gpu.upload(values)
        stream.synchronize()
    assert (there(read) == values).all()
    assert (runs.gpu.to_host(read) == values).all()


def test_an_error_of_the_gpu_fails_whoever_waits(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(_: object) -> None:
        raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(late_cupy.Event, "synchronize", failing)
    with runs.gpu.here():
        runs.gpu.known([], lambda _: None)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        runs.next()


def test_a_payload_that_a_kernel_refuses_is_blamed_on_the_rank_that_sent_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    send = channels.Channel.send

    def broken(self: Any, peer: int, step: int, message: int, flags: int, body: Any, done: Any) -> None:
        if peer == 1 and step == 1:
            body = np.full_like(body, 0xFF)
        send(self, peer, step, message, flags, body, done)

    monkeypatch.setattr(channels.Channel, "send", broken)
    shapes = {"w": (60, 50)}
    steps = random_steps(np.random.default_rng(1), shapes, 2, 2)
    spec = spec_of(shapes, compll.compile("dgc"), "allgather", 2)
    with pytest.raises(RankFailure, match=r"rank 0.*w.*step 1.*its payload cannot be decoded"):
        run_places(spec, (HOST, GPU), steps)


@pytest.mark.parametrize("stuck", [0, 1])
def test_a_rank_whose_gpu_comes_to_no_end_is_named(monkeypatch: pytest.MonkeyPatch, stuck: int) -> None:
    synchronize, ended = late_cupy.Event.synchronize, threading.Event()

    def hangs(self: late_cupy.Event) -> None:
        if threading.current_thread().name == "casync-gpu-side":
            ended.wait(30)
        synchronize(self)

    monkeypatch.setattr(late_cupy.Event, "synchronize", hangs)
    shapes = {"w": (60, 50)}
    steps = random_steps(np.random.default_rng(1), shapes, 2, 1)
    places = [GPU if rank == stuck else HOST for rank in range(2)]
    with pytest.raises(RankFailure) as failed:
        run_places(spec_of(shapes, compll.compile("onebit"), "ps", 2), places, steps, timeout=0.5)
    ended.set()
    assert failed.value.rank == stuck


@pytest.mark.parametrize("version", [13, 14])
def test_a_stream_of_another_library_is_taken_by_what_cupy_has_for_it(
    runs: Runs, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    """Since version 14 by CUDA's protocol, before by its pointer alone."""
    if version == 14:
        monkeypatch.setattr(late_cupy.Stream, "from_external", late_cupy.by_protocol, raising=False)
        monkeypatch.delattr(runs.gpu._cupy.cuda, "ExternalStream")
    stream, done = late_cupy.Stream(non_blocking=True), threading.Event()
    with LOCK, runs.gpu.on_stream(stream.ptr):
        values = filled(3)
        runs.gpu.handed_over(done.set)
        assert not done.wait(0.05)
        assert not (there(values) == 3).any()
    assert done.wait(10)
    assert (there(values) == 3).all()


def test_without_a_driver_or_that_gpu_the_error_says_so(
    cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GpuError, match="no GPU 3: CuPy finds 1; see nvidia-smi"):
        Gpu(3)

    def none() -> int:
        raise cupy.cuda.runtime.CUDARuntimeError("cudaErrorInsufficientDriver")

    monkeypatch.setattr(cupy.cuda.runtime, "getDeviceCount", none)
    with pytest.raises(GpuError, match=r"need an NVIDIA driver.*Insufficient"):
        Gpu()


def test_what_is_summed_in_host_memory_only_and_arrays_of_the_other_memory_are_refused(runs: Runs) -> None:
    dense, rows = Gradient("w", (8, 4)), Gradient("e", (8, 4), rows=True)
    for gradient, exact, fault, said in (
        (rows, "ring", ValueError, r"e: of sparse gradients .* sparse_as_dense=True"),
        (dense, "torch", EngineError, r"exact='torch' sums in host memory"),
    ):
        spec = Spec((gradient,), even_plan([gradient], 2), None, "ps", exact=exact)
        with pytest.raises(fault, match=said):
            Synchronizer(Alone(), None, spec, memory=runs.gpu)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"w is a numpy.ndarray.*give a CuPy array"):
        runs.gpu.check("w", np.zeros(2, np.float32))
    with pytest.raises(TypeError, match=r"w is float16 on GPU 0.*contiguous float32 on GPU 0"):
        runs.gpu.check("w", late_cupy.empty(2, np.float16))


class Alone:
    """As much of a control plane as is asked for before a refusal."""

    rank, size = 0, 2
