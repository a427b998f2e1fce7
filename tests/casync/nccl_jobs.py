"""The transport nccl in one process: ranks are threads, each with a gloo group of its own."""

from __future__ import annotations

import contextlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from casync_jobs import in_threads
from torch import distributed

from casync.exchange import Host
from casync.transports.loopback import LoopbackNetwork
from casync.transports.nccl import NcclTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casync.control import Control
    from casync.exchange import Memory, Transfer


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
