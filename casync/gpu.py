"""Gradients on a GPU, by CuPy: kernels on a stream of their own, bodies staged in pinned host memory.

    training's stream --- event ------------> the gradient is ready (a thread waits for the event)
    side stream:  kernels, copies --- event -> what they made is known (another thread waits)

Neither the training thread nor the compute thread ever waits for the GPU. The side stream waits for no event
either: its work is first in, first out, and a wait for the backward pass to reach one gradient would hold up
the merging of all that came before. So a task that reads a gradient is launched when that is there.

A step's outcome is told when all its work on the side stream has run: whether every value was finite, and
every payload sound, must be known before state is committed. The training's stream has nothing to wait for.

Memory of the side stream's own is used in its order alone. What the training may keep (a gradient that was
absent here) therefore comes from the default stream's memory, which CuPy keeps apart.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import threading
from dataclasses import dataclass
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from casync.buffers import Pool
from casync.engines.base import EngineError
from casync.plan import EXACT
from compll.codec import Result

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from numpy.typing import NDArray

    from casync.bodies import BodyFormat
    from casync.buffers import Lease
    from casync.codecs import BatchCodec, DeviceCodec
    from casync.memory import Call, Encoded, Flag
    from casync.payload import Payload
    from casync.plan import Gradient
    from compll.codec import Item, Operation

    Vector = NDArray[np.float32]
    Bytes = NDArray[np.uint8]
    Fate = Callable[[], list[Result]]

Watched: TypeAlias = "tuple[Any, Call, Sequence[Bytes]] | None"


class GpuError(RuntimeError):
    """Gradients on a GPU cannot be synchronized here; the message says what to install."""


def check(gradients: Iterable[Gradient], exact: str) -> None:
    """Raise ValueError or EngineError for what is synchronized in host memory only."""
    rows = [gradient.name for gradient in gradients if gradient.rows]
    if rows:
        raise ValueError(
            f"{', '.join(rows)}: of sparse gradients the rows travel from host memory only; keep these "
            "parameters on the CPU, or give sparse_as_dense=True"
        )
    if exact != EXACT:
        raise EngineError(
            f"exact={exact!r} sums in host memory, and the gradients lie on a GPU: give exact={EXACT!r}"
        )


class Gpu:
    """The memory (`casync.memory.Memory`) of one GPU, for one `Synchronizer`."""

    on_gpu: bool = True
    direct: bool = False

    def __init__(self, device: int = 0) -> None:
        """Raise GpuError without CuPy, a driver, or this GPU."""
        self._cupy = cupy = _cupy(device)
        self.device = device
        with cupy.cuda.Device(device):
            self._stream = cupy.cuda.Stream(non_blocking=True)
        self.pool = Pool(lambda nbytes: cast("Bytes", cupy.empty(nbytes, np.uint8)))
        self.arrivals: Pool | None = Pool(self._pinned)
        self._staging = Pool(self._pinned)
        self._held: list[Bytes] = []  # host memory that copies under way read, until the next event
        self._marks: Watch | None = None
        self._side: Watch | None = None

    def start(self, bound: Callable[[Call], Call], put: Callable[[Call], None]) -> None:
        """Start the threads that wait for events."""
        self._bound = bound
        self._marks, self._side = Watch("training", put, direct=True), Watch("side", put)

    @contextlib.contextmanager
    def here(self) -> Iterator[None]:
        """On this GPU and the side stream."""
        with self._cupy.cuda.Device(self.device), self._stream:
            yield

    @contextlib.contextmanager
    def on_stream(self, pointer: int) -> Iterator[None]:
        """What this thread hands over is put on this stream before: a `cudaStream_t` of another library."""
        cuda = self._cupy.cuda
        # CuPy 14 calls ExternalStream deprecated, and those before have nothing else
        from_external = getattr(cuda.Stream, "from_external", None)
        stream = from_external(_Foreign(pointer)) if from_external else cuda.ExternalStream(pointer)
        with cuda.Device(self.device), stream:
            yield

    def view(self, tensor: Any) -> Vector:
        """A tensor of another library, by DLPack; in the order of the current stream."""
        return cast("Vector", self._cupy.from_dlpack(tensor))

    def check(self, gradient: str, values: object) -> None:
        """Contiguous float32 on this GPU."""
        cupy: Any = self._cupy
        if not isinstance(values, cupy.ndarray):
            found = f"{type(values).__module__}.{type(values).__name__}"
            raise TypeError(
                f"{gradient} is a {found}, and this rank's gradients lie on a GPU: give a CuPy array"
            )
        if (values.dtype, values.device.id, values.flags.c_contiguous) != (np.float32, self.device, True):
            raise TypeError(
                f"{gradient} is {values.dtype} on GPU {values.device.id}, with strides {values.strides}: "
                f"give contiguous float32 on GPU {self.device}"
            )

    def handed_over(self, call: Call) -> None:
        """Call when the current stream, CuPy's in this thread, has come to here."""
        assert self._marks is not None
        with self._cupy.cuda.Device(self.device):
            self._marks.add(self._event(self._cupy.cuda.get_current_stream()), call)

    def run(
        self,
        codec: BatchCodec,
        op: Operation,
        items: Sequence[Item],
        threads: int,  # noqa: ARG002  (the memory's signature)
    ) -> list[Result]:
        """Launch an operation. A payload that is refused is found out when it has run."""
        results = cast("DeviceCodec", codec).batch(op, items, wait=False)
        if op in ("decode", "decode_add") and any(result.finite is None for result in results):
            self._after(self._fate(codec, results))
        return results

    def parts(self, form: BodyFormat, payload: Payload) -> Sequence[Bytes | None]:
        """What was encoded here lies here; what has come is copied here."""
        if payload.parts is not None:
            return payload.parts
        body = payload.body
        if isinstance(body, self._cupy.ndarray):
            return form.split(body, payload.absent)
        there = self._cupy.empty(body.size, np.uint8)
        if body.size:
            there.data.copy_from_host_async(_pointer(body), body.size, self._stream)
            self._held.append(body)
        return form.split(body, payload.absent, there)

    def encoded(
        self,
        codec: BatchCodec,
        form: BodyFormat,
        lease: Lease,
        results: Sequence[Result | None],
        then: Encoded,
    ) -> None:
        """Make what travels: at once, if the payloads' lengths are known before."""
        fate = self._fate(codec, [result for result in results if result is not None])
        parts = [None if result is None else result.value for result in results]
        if form.exact:
            body = self._body(form, lease, parts)
            self._after(lambda: then(body, parts, all(result.finite for result in fate())))
            return

        def measured() -> None:
            found = fate()
            values = iter(found)
            parts = [None if result is None else next(values).value for result in results]
            body, finite = self._body(form, lease, parts), all(result.finite for result in found)
            self._after(lambda: then(body, parts, finite))

        self._after(measured)

    def known(self, flags: Sequence[Flag], then: Callable[[bool], None]) -> None:
        """Tell when the flags are in host memory."""
        told = self._told(flags)
        self._after(lambda: then(all(told())))

    def new_state(self, codec: BatchCodec, n: int) -> dict[str, Vector]:
        """Zeros on the GPU; BackendError for a codec that was compiled for the CPU."""
        with self.here():
            return cast("DeviceCodec", codec).new_state(n, like=self._cupy.empty(1, np.float32))

    def empty(self, n: int) -> Vector:
        """Of the side stream's memory."""
        with self.here():
            return cast("Vector", self._cupy.empty(n, np.float32))

    def lasting(self, n: int) -> Vector:
        """Of the default stream's memory: the side stream never gets it again."""
        with self._cupy.cuda.Device(self.device), self._cupy.cuda.Stream.null:
            return cast("Vector", self._cupy.empty(n, np.float32))

    def to_host(self, values: Vector) -> Vector:
        """A copy, after all that is on the current stream and on the side stream."""
        cuda: Any = self._cupy.cuda
        with cuda.Device(self.device):
            cuda.get_current_stream().synchronize()
        with self.here():
            return cast("Vector", cast("Any", values).get())

    def upload(self, values: Vector) -> Vector:
        """A copy, which the current stream waits for."""
        with self._cupy.cuda.Device(self.device):
            current = self._cupy.cuda.get_current_stream()
        with self.here():
            there = self._cupy.empty(values.size, np.float32)
            there.set(values)
            current.wait_event(self._event(self._stream))
            return cast("Vector", there)

    def close(self) -> None:
        """End the threads when what they wait for is done."""
        for watch in (self._marks, self._side):
            if watch is not None:
                watch.close()

    def _pinned(self, nbytes: int) -> Bytes:
        memory = self._cupy.cuda.alloc_pinned_memory(max(nbytes, 1))  # CuPy's begins at multiples of 512
        return np.frombuffer(memory, np.uint8, nbytes)

    def _event(self, stream: Any) -> Any:
        event = self._cupy.cuda.Event(block=True, disable_timing=True)
        event.record(stream)
        return event

    def _after(self, call: Call) -> None:
        """Make a call, of the task that runs now, when what has been put on the side stream is done."""
        assert self._side is not None
        held, self._held = self._held, []
        self._side.add(self._event(self._stream), self._bound(call), held)

    def _body(self, form: BodyFormat, lease: Lease, parts: Sequence[Bytes | None]) -> Bytes:
        """Begin to make a body: of pinned memory, or, if it travels from GPU to GPU, where the payloads lie.

        One with a table of lengths is of the host's memory, where its receiver reads that.
        """
        if self.direct and (len(parts) == 1 or (form.exact and all(part is not None for part in parts))):
            return form.pack(lease.buffer, parts)
        room = lease.also(self._staging, form.capacity)
        body, places = form.spread(room, [0 if part is None else part.size for part in parts])
        for part, place in zip(parts, places, strict=True):
            if part is not None and part.size:
                self._download(part, place)
        return body

    def _download(self, values: Any, place: Bytes) -> None:
        values.data.copy_to_host_async(_pointer(place), values.nbytes, self._stream)

    def _told(self, flags: Sequence[Flag]) -> Callable[[], list[Flag]]:
        """Begin to copy the flags that lie on the GPU; what is returned tells them afterwards."""
        there = [isinstance(flag, self._cupy.ndarray) for flag in flags]
        room = self._staging.take(max(len(flags), 1))
        for place, (flag, far) in enumerate(zip(flags, there, strict=True)):
            if far:
                self._download(flag, room[place : place + 1])

        def told() -> list[Flag]:
            found = [bool(room[i]) if far else flags[i] for i, far in enumerate(there)]
            self._staging.give(room)
            return found

        return told

    def _fate(self, codec: BatchCodec, results: Sequence[Result]) -> Fate:
        """Begin to copy what became of calls; what is returned tells it afterwards, or raises."""
        unknown = [result.value for result in results if result.finite is None]
        awaited = cast("DeviceCodec", codec).awaited(unknown) if unknown else None
        records = awaited.records if awaited else ()
        copies = [self._staging.take(record.size) for record in records]
        for record, copy in zip(records, copies, strict=True):
            self._download(record, copy)
        flags = self._told([result.finite for result in results])

        def fate() -> list[Result]:
            told = iter(awaited.results(copies) if awaited else ())
            for copy in copies:
                self._staging.give(copy)
            return [
                next(told) if flag is None else Result(result.value, flag)
                for result, flag in zip(results, flags(), strict=True)
            ]

        return fate


@dataclass(frozen=True)
class _Foreign:
    """A stream of another library, by CUDA's protocol of streams."""

    pointer: int

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self.pointer


class Watch:
    """A thread that waits for events, in their order, and makes each one's call, or has `put` make it."""

    def __init__(self, name: str, put: Callable[[Call], None], *, direct: bool = False) -> None:
        self._queue: SimpleQueue[Watched] = SimpleQueue()
        self._put, self._direct = put, direct
        self._thread = threading.Thread(target=self._run, name=f"casync-gpu-{name}", daemon=True)
        self._thread.start()

    def add(self, event: Any, call: Call, held: Sequence[Bytes] = ()) -> None:
        """Wait for an event, too; `held` is kept until then."""
        self._queue.put((event, call, held))

    def close(self) -> None:
        """End the thread when it has come to here. Idempotent."""
        self._queue.put(None)

    def _run(self) -> None:
        while (watched := self._queue.get()) is not None:
            event, call, _ = watched
            try:
                event.synchronize()
            except Exception as error:
                self._put(_raiser(error))
                return
            watched = None  # what was held is free now, not with the next event
            if self._direct:
                call()
            else:
                self._put(call)


def _raiser(error: Exception) -> Call:
    def call() -> None:
        raise error

    return call


def _pointer(array: Bytes) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)


def _cupy(device: int) -> Any:
    """CuPy, if there is this GPU to use it on."""
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        raise GpuError(
            f"gradients on a GPU need CuPy, and it cannot be imported ({error}): pip install cupy-cuda12x, "
            "or cupy-cuda13x, by the version of your driver; or keep the model on the CPU"
        ) from error
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise GpuError(f"gradients on a GPU need an NVIDIA driver, and none is found ({error})") from error
    if device >= count:
        raise GpuError(
            f"there is no GPU {device}: CuPy finds {count}; see nvidia-smi and CUDA_VISIBLE_DEVICES"
        )
    return cupy
