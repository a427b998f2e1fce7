"""Exchanges of bodies by torch.distributed: where the bodies are, and the process group that carries them."""

from __future__ import annotations

import importlib
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import distributed

from casync.buffers import Pool
from casync.transports.base import body_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from casync.frames import Header
    from casync.transports.base import Body


class Transfer(NamedTuple):
    """One side of an exchange: `tensor` (uint8, one dimension) goes to `peer`, or comes from it."""

    peer: int
    sends: bool
    tensor: torch.Tensor


class Memory(Protocol):
    """Where bodies are."""

    device: bool

    def holds(self, body: Body) -> bool:
        """Whether this body is there; others travel with their headers."""

    def tensor(self, header: Header, body: Body) -> torch.Tensor:
        """The body's bytes, uncopied. ValueError if they are not what the header announces."""

    def room(self, nbytes: int) -> torch.Tensor:
        """Room for a body."""

    def body(self, arrived: torch.Tensor) -> Any:
        """What was made room for, and has come, as the receiver gets it."""


class Host:
    """The host's memory."""

    device = False

    def __init__(self) -> None:
        self._pool = Pool()

    def holds(self, body: Body) -> bool:  # noqa: ARG002
        """All bodies are here."""
        return True

    def tensor(self, header: Header, body: Body) -> torch.Tensor:
        """Copies what may not be written, which torch does not take."""
        view = body_bytes(header, body)
        return torch.frombuffer(bytearray(view) if view.readonly else view, dtype=torch.uint8)

    def room(self, nbytes: int) -> torch.Tensor:
        """A buffer of the pool, which gets it back when nothing refers to the tensor or its body."""
        return torch.frombuffer(self._pool.lend(nbytes), dtype=torch.uint8)

    def body(self, arrived: torch.Tensor) -> memoryview:
        """The same bytes."""
        return arrived.numpy().data


class Device:
    """A GPU's memory; bodies are CuPy arrays. Rounds run behind what `stream` waits for."""

    device = True

    def __init__(self, device: torch.device) -> None:
        self._torch: Any = torch  # no types where GPUs are concerned
        self._cupy: Any = importlib.import_module("cupy")
        self._device = device
        self.stream = self._torch.cuda.Stream(device)

    def holds(self, body: Body) -> bool:
        """Whatever is no buffer of the host."""
        return not isinstance(body, bytes | bytearray | memoryview | np.ndarray)

    def tensor(self, header: Header, body: Any) -> torch.Tensor:
        """From now on `stream` waits for what the caller's stream of CuPy has under way (DLPack)."""
        with torch.cuda.stream(self.stream):
            tensor: torch.Tensor = self._torch.from_dlpack(body).reshape(-1).view(torch.uint8)
        if tensor.nbytes != header.nbytes:
            raise ValueError(f"the header announces {header.nbytes} bytes, the body has {tensor.nbytes}")
        return tensor

    def room(self, nbytes: int) -> torch.Tensor:
        """Of torch's allocator, which lends it again as soon as nothing refers to it."""
        with torch.cuda.stream(self.stream):
            return torch.empty(nbytes, dtype=torch.uint8, device=self._device)

    def body(self, arrived: torch.Tensor) -> Any:
        """The same memory, for CuPy. It has come, so that no stream is made to wait for `stream`."""
        with torch.cuda.stream(self.stream):
            return self._cupy.from_dlpack(arrived)


class Group(Protocol):
    """What carries bodies; one thread uses it."""

    memory: Memory

    def exchange(self, transfers: Sequence[Transfer]) -> None:
        """Run all at once; returns when all are done. Whatever it raises fails the job."""


class TorchGroup:
    """A process group of torch.distributed, of all ranks and of its user's own."""

    def __init__(self, backend: str, device: torch.device) -> None:
        """Collective; blocks. device: a GPU, for NCCL, or the CPU, for gloo."""
        self._device = device
        self.memory: Memory = Host() if device.type == "cpu" else Device(device)
        with self._current():
            self._group: Any = distributed.new_group(backend=backend)
            # torch lets some ranks exchange among themselves once all have been in a collective
            distributed.all_reduce(torch.zeros(1, device=device), group=self._group)
            self._settle()

    def exchange(self, transfers: Sequence[Transfer]) -> None:
        """One grouped call, and the wait for its end."""
        with self._current():
            operations = [
                distributed.P2POp(
                    distributed.isend if it.sends else distributed.irecv,
                    it.tensor,
                    it.peer,
                    self._group,
                )
                for it in transfers
            ]
            for work in distributed.batch_isend_irecv(operations):
                work.wait()  # of NCCL: the stream waits, not the thread
            self._settle()

    def _current(self) -> AbstractContextManager[Any]:
        """What this thread calls torch in: torch keeps the current GPU and stream by thread."""
        return torch.cuda.stream(self.memory.stream) if isinstance(self.memory, Device) else nullcontext()

    def _settle(self) -> None:
        """Wait for the GPU, without taking a core."""
        if self._device.type == "cuda":
            ended: Any = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            ended.record()
            ended.synchronize()
