"""The transport nccl by gloo: in processes, and in one process, whose threads are ranks."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from casync_jobs import in_threads
from torch import distributed

from casync.exchange import Host
from casync.transports import nccl
from casync.transports.loopback import LoopbackNetwork
from casync.transports.nccl import NcclTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casync.control import Control
    from casync.exchange import Memory, Transfer


def by_gloo(rank: int, size: int, port: int) -> None:
    """Collective: from now on `nccl` names the transport over gloo groups, in this process."""
    distributed.init_process_group("gloo", f"tcp://127.0.0.1:{port}", world_size=size, rank=rank)
    nccl.open = lambda wire: nccl.join(wire, "gloo", torch.device("cpu"))


class ThreadGroup:
    """Exchanges by gloo, whose groups torch.distributed does not know: it has one rank a process."""

    def __init__(self, group: Any, memory: Memory) -> None:
        self.memory = memory
        self._group = group

    def exchange(self, transfers: Sequence[Transfer]) -> None:
        works = [
            (self._group.send if it.sends else self._group.recv)([it.tensor], it.peer, 0) for it in transfers
        ]
        for work in works:
            work.wait()


@contextlib.contextmanager
def nccl_network(
    size: int, memory: Callable[[], Memory] = Host
) -> Iterator[list[tuple[Control, NcclTransport]]]:
    """The control plane and the transport of each rank."""
    store: Any = distributed.HashStore()  # type: ignore[attr-defined]
    gloo: Any = distributed.ProcessGroupGloo  # type: ignore[attr-defined]
    groups = in_threads(size, lambda rank: gloo(store, rank, size, timedelta(minutes=5)))
    network = LoopbackNetwork(size)
    made = [
        NcclTransport(network.transport(rank), ThreadGroup(group, memory()), network.control(rank))
        for rank, group in enumerate(groups)
    ]
    yield [(network.control(rank), transport) for rank, transport in enumerate(made)]
    in_threads(size, lambda rank: made[rank].close())
    network.close()
