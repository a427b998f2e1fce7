"""What the compute thread does first."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numpy as np
from loopback_jobs import spec_of
from numpy_codecs import CODECS

from casync.channels import Channels
from casync.plan import Entry, Plan
from casync.synchronizer import Synchronizer
from casync.transports.loopback import LoopbackNetwork

if TYPE_CHECKING:
    from collections.abc import Sequence


class Watched:
    """A codec that tells its operations; the first waits until it may begin."""

    def __init__(self, codec: Any) -> None:
        self._codec = codec
        self.operations: list[str] = []
        self.begin = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._codec, name)

    def batch(self, op: str, items: Sequence[Any], threads: int | None = None) -> Any:
        assert self.begin.wait(20)
        self.operations.append(op)
        return self._codec.batch(op, items, threads)


def test_a_decode_waits_for_encodes_though_these_come_later() -> None:
    codec = Watched(CODECS[0])
    plan = Plan(tuple(Entry(name, True, 2) for name in ("first", "second")))
    shapes = dict.fromkeys(("first", "second"), (2, 4096))
    net = LoopbackNetwork(1)
    sync = Synchronizer(
        net.control(0), Channels(net.transport(0)), spec_of(shapes, codec, "ps", 1, plan=plan)
    )
    for name in shapes:
        sync.submit(name, np.ones(8192, np.float32))
    codec.begin.set()
    sync.synchronize()
    sync.close()
    assert codec.operations == ["encode"] * 4 + ["decode"] * 4
