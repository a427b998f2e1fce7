"""Jobs some of whose ranks have their gradients on the late stand-in for a GPU, the others in host memory."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import late_cupy
import numpy as np
from casync_jobs import in_threads
from loopback_jobs import Ran
from test_transports import NETWORKS

from casync.channels import Channels
from casync.gpu import Gpu
from casync.memory import Host
from casync.spec import Spec
from casync.synchronizer import Synchronizer
from casync.transports.loopback import LoopbackNetwork, LoopbackTransport

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from loopback_jobs import Step

    from casync.control import Control
    from casync.frames import Header
    from casync.rules import Codecs
    from casync.transports.base import Transport

HOST, GPU = "host", "gpu"


class DirectTransport(LoopbackTransport):
    """Bodies that lie on the GPU arrive as arrays on the GPU, as by NCCL."""

    device = True

    def send(self, peer: int, header: Header, body: Any, done: Any = None) -> None:
        if not isinstance(body, late_cupy.ndarray):
            super().send(peer, header, body, done)
            return
        assert (body.dtype, body.shape) == (np.uint8, (header.nbytes,))
        copy = late_cupy.empty(header.nbytes, np.uint8)
        copy[:] = body
        event = late_cupy.Event(block=True, disable_timing=True)
        event.record(late_cupy.GPU.current)
        event.synchronize()
        SENT.append(header.nbytes)
        self._network.transport(peer)._enqueue(0.0, self.rank, header, copy)  # type: ignore[arg-type]
        if done is not None:
            done()


SENT: list[int] = []
"""The bytes of all bodies that went from GPU to GPU."""


@contextlib.contextmanager
def direct_network(size: int) -> Iterator[list[Transport]]:
    network = LoopbackNetwork(size)
    made = network._transports = [DirectTransport(network, rank) for rank in range(size)]  # type: ignore[assignment]
    SENT.clear()
    yield list(made)
    network.close()


def there(values: Any) -> Any:
    """What memory of the GPU holds now, whatever is still to be run."""
    return None if values is None else np.array(values.view(np.ndarray))


def run_rank(
    control: Control,
    transport: Transport,
    place: str,
    spec: Spec,
    steps: Sequence[Mapping[str, Any]],
    *,
    scales: Sequence[float] | None = None,
    switch: Mapping[int, Codecs] | None = None,
    state: dict[str, Any] | None = None,
) -> Ran:
    """One rank's steps; results are what its memory holds when `synchronize` returns."""
    memory = Gpu() if place == GPU else Host()
    channels = Channels(transport, checksums=not transport.device)
    synchronizer = Synchronizer(control, channels, spec, threads=1, memory=memory)
    if state is not None:
        synchronizer.load_state_dict(state)
    ran = Ran()
    control.gather("all are set up", b"")
    if control.rank == 0:
        late_cupy.GPU.waits.clear()
    control.gather("the steps begin", b"")
    try:
        for number, step in enumerate(steps):
            if switch and number in switch:
                synchronizer.switch(switch[number])
                late_cupy.GPU.waits.clear()  # of what moves state
                control.gather("all have switched", b"")
            synchronizer.loss_scale = scales[number] if scales else 1.0
            if place == GPU:
                with late_cupy.training():
                    for name, values in step.items():
                        if values is not None:
                            synchronizer.submit(name, late_cupy.of(values))
                    outcome = synchronizer.synchronize()
            else:
                for name, values in step.items():
                    if values is not None:
                        synchronizer.submit(name, values.copy())
                outcome = synchronizer.synchronize()
            ran.results.append({name: there(v) for name, v in outcome.values.items()})
            ran.finite.append(outcome.finite)
        assert place == HOST or not late_cupy.GPU.waits, late_cupy.GPU.waits
        control.gather("the steps' end", b"")
        ran.state = synchronizer.state_dict()
        ran.stats = synchronizer.stats()
        control.gather("the end", b"")
    finally:
        synchronizer.close()
    return ran


def run_places(
    spec: Spec, places: Sequence[str], steps: Sequence[Step], network: str = "loopback", **options: Any
) -> list[Ran]:
    """The steps on as many ranks as there are places, threads all of them; raises what one raised."""
    states = options.pop("states", [None] * len(places))
    plane = LoopbackNetwork(len(places), timeout=options.pop("timeout", 20))
    with {**NETWORKS, "direct": direct_network}[network](len(places)) as transports:

        def rank_main(rank: int) -> Ran:
            ends = plane.control(rank), transports[rank], places[rank]
            return run_rank(*ends, spec, [step[rank] for step in steps], state=states[rank], **options)

        ran = in_threads(len(places), rank_main)
    plane.close()
    for result in ran:
        if isinstance(result, BaseException):
            raise result
    return ran
