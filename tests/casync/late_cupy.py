"""A stand-in for CuPy whose GPU does everything as late as it may: when the host waits for an event.

Kernels, copies and operators on arrays are queued on the stream that is current, and run, in the stream's
order, no sooner than somebody waits for an event behind them; streams know nothing of each other. So whoever
reads what he has not waited for finds what was there before, each time. Memory is given back as CuPy's pool
gives it: at once, and only to the stream that it was taken for. Waits of the host other than for events are
counted. Kernels are run by the simulator (`cupy_stand_in`). Nothing here shows how a GPU behaves.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import sys
import threading
from collections import Counter, defaultdict, deque
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any

import cupy_stand_in
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest

LOCK = threading.RLock()
NULL = 1
"""The pointer of the default stream."""
POISON = 0x5A


class Late:
    """What one test's GPU has: its streams, and its memory, free for each stream and size."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.free: defaultdict[tuple[int, int], list[np.ndarray]] = defaultdict(list)
        self.pinned: list[np.ndarray] = []
        self.waits: Counter[str] = Counter()  # by the thread that waited
        self.numbers = itertools.count(NULL + 1)
        self.local = threading.local()

    @property
    def current(self) -> Stream:
        stack = getattr(self.local, "stack", None)
        return stack[-1] if stack else stream_of(NULL)

    def waited(self) -> None:
        self.waits[threading.current_thread().name] += 1


GPU = Late()


def stream_of(pointer: int) -> Stream:
    if pointer not in GPU.streams:
        GPU.streams[pointer] = Stream(pointer=pointer)
    return GPU.streams[pointer]


def by_protocol(stream: Any) -> Stream:
    version, pointer = stream.__cuda_stream__()
    assert version == 0
    return stream_of(pointer)


class Stream:
    def __init__(self, *, non_blocking: bool = False, pointer: int = 0) -> None:
        assert non_blocking or pointer
        self.ptr = pointer or next(GPU.numbers)
        GPU.streams[self.ptr] = self
        self.work: deque[Callable[[], object]] = deque()

    def put(self, call: Callable[[], object]) -> None:
        with LOCK:
            self.work.append(call)

    def run_until(self, ran: Callable[[], bool]) -> None:
        with LOCK:
            while not ran():
                self.work.popleft()()

    def synchronize(self) -> None:
        GPU.waited()
        self.run_until(lambda: not self.work)

    def wait_event(self, event: Event) -> None:
        self.put(event.synchronize)

    def is_capturing(self) -> bool:
        return False

    def __enter__(self) -> None:
        if not hasattr(GPU.local, "stack"):
            GPU.local.stack = []
        GPU.local.stack.append(self)

    def __exit__(self, *_: object) -> None:
        GPU.local.stack.pop()


class Event:
    def __init__(self, *, block: bool, disable_timing: bool) -> None:
        assert block, "waiting for it would take a core"
        assert disable_timing
        self.stream, self.ran = stream_of(NULL), False

    def record(self, stream: Stream) -> None:
        self.stream = stream
        stream.put(lambda: setattr(self, "ran", True))

    def synchronize(self) -> None:
        self.stream.run_until(lambda: self.ran)


def poisoned(nbytes: int) -> np.ndarray:
    memory = cupy_stand_in.cudasim.aligned_empty(nbytes)
    memory.fill(POISON)
    return memory


class Block:
    """Memory of the current stream's, by NumPy's array interface."""

    def __init__(self, nbytes: int) -> None:
        self.home = GPU.free[GPU.current.ptr, nbytes]
        self.raw = self.home.pop() if self.home else poisoned(nbytes)
        self.__array_interface__ = self.raw.__array_interface__

    def __del__(self) -> None:
        self.home.append(self.raw)


def plain(x: Any) -> Any:
    """An argument of a queued operator: a number, or memory of an array, which work does not keep."""
    if isinstance(x, ndarray):
        memory = (ctypes.c_char * x.nbytes).from_address(x.ctypes.data)
        return np.ndarray(x.shape, x.dtype, memory, strides=x.strides)
    assert np.ndim(x) == 0, "CuPy takes no NumPy array among its own"
    return x


class Pointer:
    def __init__(self, array: ndarray) -> None:
        self.ptr, self.nbytes = array.ctypes.data, array.nbytes

    def copy_to_host_async(self, place: ctypes.c_void_p, nbytes: int, stream: Stream) -> None:
        self.copy(place.value or 0, self.ptr, place.value or 0, nbytes, stream)

    def copy_from_host_async(self, source: ctypes.c_void_p, nbytes: int, stream: Stream) -> None:
        self.copy(self.ptr, source.value or 0, source.value or 0, nbytes, stream)

    def copy(self, to: int, source: int, host: int, nbytes: int, stream: Stream) -> None:
        assert nbytes <= self.nbytes
        begins = ((p.ctypes.data, p.ctypes.data + p.nbytes) for p in GPU.pinned)
        assert any(begin <= host and host + nbytes <= end for begin, end in begins), "not pinned"
        stream.put(lambda: ctypes.memmove(to, source, nbytes))


class ndarray(cupy_stand_in.ndarray):  # noqa: N801 - CuPy's name
    @property
    def data(self) -> Any:
        return Pointer(self)

    def __setitem__(self, key: Any, value: Any) -> None:
        target, value = plain(self), plain(value)
        GPU.current.put(lambda: target.__setitem__(key, value))

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **more: Any) -> Any:
        given = [plain(x) for x in inputs]
        call = getattr(ufunc, method)
        if out is None:
            samples = [np.ones_like(x, shape=1) if isinstance(x, np.ndarray) else x for x in given]
            with np.errstate(all="ignore"):
                kind = call(*samples).dtype
            shape = () if method == "reduce" else np.broadcast_shapes(*map(np.shape, given))
            made = empty(int(np.prod(shape)), kind).reshape(shape)
        else:
            (made,) = out
        target = plain(made)

        def late() -> None:
            with np.errstate(all="ignore"):
                target[...] = call(*given, **{k: v for k, v in more.items() if k == "axis"})

        GPU.current.put(late)
        return made

    def __bool__(self) -> bool:
        return bool(self.get())

    def get(self) -> np.ndarray:
        GPU.current.synchronize()
        return np.array(self.view(np.ndarray))

    def set(self, host: np.ndarray) -> None:
        assert type(host) is np.ndarray
        self[...] = of(host)


ndarray.__module__ = "cupy"


def empty(n: int, kind: Any) -> ndarray:
    return np.asarray(Block(int(n) * np.dtype(kind).itemsize)).view(kind).view(ndarray)


def of(host: np.ndarray) -> ndarray:
    there, copy = empty(host.size, host.dtype), host.copy()
    target = plain(there)
    GPU.current.put(lambda: target.__setitem__(..., copy))
    return there


def zeros(n: int, kind: Any) -> ndarray:
    there = empty(n, kind)
    there[...] = 0
    return there


def pinned(nbytes: int) -> np.ndarray:
    GPU.pinned.append(poisoned(nbytes))
    return GPU.pinned[-1]


def module() -> ModuleType:
    """Return a CuPy whose GPU has done nothing yet."""
    GPU.__init__()  # type: ignore[misc]
    cupy = cupy_stand_in.module()
    cuda = SimpleNamespace(
        runtime=cupy.cuda.runtime,
        get_current_stream=lambda: GPU.current,
        Stream=Stream,
        ExternalStream=stream_of,
        Event=Event,
        Device=cupy_stand_in.Device,
        alloc_pinned_memory=pinned,
    )
    Stream.null = stream_of(NULL)  # type: ignore[attr-defined]
    vars(cupy).update(ndarray=ndarray, cuda=cuda, asarray=of, empty=empty, zeros=zeros)
    cupy.from_dlpack = lambda x: x.detach().numpy().view(ndarray)
    return cupy


def install(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Have whoever imports CuPy, and the stand-in's kernels, use this one."""
    cupy = module()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    monkeypatch.setattr(cupy_stand_in.Gpu, "launch", lambda _, kernel, call: GPU.current.put(call))  # noqa: ARG005
    return cupy


@contextlib.contextmanager
def training() -> Any:
    """What is done in this block is put on a stream of the training's."""
    stream = Stream(non_blocking=True)
    with stream:
        yield stream
