"""Runs generated CUDA kernels by their list of launches, on whatever executes them: a GPU, or its simulator.

The list is data that the compiler makes (`emit.cuda`): what the simulator runs in a test is what a GPU runs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from compll.backends import Call, Outcome, Unit, Values, pack_parameters
from compll.emit.cuda import Generated, Launch
from compll.emit.pieces import Buffer
from compll.errors import BackendError
from compll.evaluate import host_int
from compll.rng import TILE
from compll.types import Array

# As in templates/cuda: the threads of a block, the warps of a block of tiles, and CUDA's limits of a grid.
ITEM_THREADS, TILE_THREADS, WARP = 512, 128, 32
MOST_X, MOST_Y = 1 << 20, 65535
ALIGNMENT = 64
KEPT = 256  # sizes of scratch memory that are remembered

ITEM = np.dtype(
    [
        (name, kind)
        for kind, names in (
            ("u8", ("gradient", "payload")),
            ("i8", ("n", "capacity", "length")),
            ("u8", ("state", "new_state", "seed", "shared_seed", "scratch")),
            ("f4", ("scale",)),
            ("i4", ("status",)),
        )
        for name in names
    ]
)  # `compll_item` of compll.cuh


@dataclass(frozen=True)
class Grid:
    """Blocks in x and y, and the threads of each."""

    x: int
    y: int
    threads: int


class Device(Protocol):
    """What executes kernels.  Buffers are its own one-dimensional uint8 arrays, aligned to 64."""

    backend: str

    def empty(self, nbytes: int) -> Any:
        """Return a buffer with any content."""

    def address(self, array: Any) -> int:
        """Return where an array begins, as kernels see it."""

    def upload(self, host: Array, buffer: Any) -> None:
        """Copy host memory to a buffer, in the order of the stream."""

    def download(self, buffer: Any) -> Array:
        """Return a buffer's content, after everything before it in the stream has run."""

    def launch(self, kernel: str, grid: Grid, items: int, count: int, params: int) -> None:
        """Launch a kernel on addresses, without waiting for it."""


def grid_of(launch: Launch, count: int, most: int) -> Grid:
    """Return a launch's grid for `count` items, the longest of `most` elements (compll.cuh: `Grid`)."""
    if launch.over == "items":
        return Grid(min(count, MOST_X), 1, ITEM_THREADS)
    tiles = -(-most // TILE)
    return Grid(max(1, min(-(-tiles // (TILE_THREADS // WARP)), MOST_X)), min(count, MOST_Y), TILE_THREADS)


def bytes_of(kind: str) -> int:
    """Return the bytes of an element of a C type."""
    own = {"float": 4, "bool": 1, "half": 2, "bfloat16": 2, "Rank": 24}
    return own.get(kind) or int(kind.strip("uint_")) // 8


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class LaunchLibrary:
    """A codec as kernels and launches on a device."""

    def __init__(self, unit: Unit, generated: Generated, device: Device) -> None:
        """Keep what a run needs."""
        self.states = unit.functions[0].states
        self.params = unit.params
        self.generated, self.device = generated, device
        self.backend = device.backend
        self._scratch_bytes = functools.lru_cache(KEPT)(self._count_scratch)

    def scratch_bytes(self, n: int, values: Values) -> int:
        """Return the scratch for an item of n elements; the generated `scratch_bytes` says the same."""
        return self._scratch_bytes(n, tuple(values.items()))

    def _count_scratch(self, n: int, values: tuple[tuple[str, float | int | bool], ...]) -> int:
        def size(buffer: Buffer) -> int:
            if buffer.length is None:
                return 0
            return _aligned(max(0, host_int(buffer.length, n, dict(values))) * bytes_of(buffer.type))

        sizes = (sum(map(size, buffers)) for buffers in self.generated.buffers.values())
        return self.generated.frame_bytes + max(sizes, default=0)

    def run(self, op: str, calls: Sequence[Call], values: Values, threads: int) -> list[Outcome]:
        """Run one operation on every item: one upload, the launches, one download of what became of them."""
        del threads
        if not calls:
            return []
        device, params = self.device, pack_parameters(self.params, values)
        for call in calls:
            for what, array in (("gradient", call.gradient), *call.state.items(), *call.new_state.items()):
                if device.address(array) % array.itemsize:
                    raise BackendError(
                        f"{what} begins in the middle of an element, at an address that is no multiple of "
                        f"its size; the {self.backend} backend does not read that: copy it first"
                    )
        sizes = [_aligned(self.scratch_bytes(call.n, values)) for call in calls]
        items_at = _aligned(params.nbytes)
        pointers_at = _aligned(items_at + len(calls) * ITEM.itemsize)
        pointers = np.zeros((len(calls), 2, len(self.states)), np.uint64)
        table, scratch = device.empty(pointers_at + pointers.nbytes), device.empty(sum(sizes))
        base, free = device.address(table), device.address(scratch)
        items = np.zeros(len(calls), ITEM)
        for at, (call, size) in enumerate(zip(calls, sizes, strict=True)):
            if call.state:
                vectors = (call.state, call.new_state)
                pointers[at] = [[device.address(v[name]) for name in self.states] for v in vectors]
            place = base + pointers_at + at * pointers[at].nbytes
            nbytes = call.payload.nbytes
            items[at] = (
                *(device.address(call.gradient), device.address(call.payload)),
                *(call.n, nbytes, nbytes),
                *(place, place + pointers[at, 0].nbytes, call.seed, call.shared_seed, free),
                *(call.scale, 0),
            )
            free += size
        host = np.zeros(table.nbytes, np.uint8)
        host[: params.nbytes] = params.view(np.uint8)
        host[items_at : items_at + items.nbytes] = items.view(np.uint8)
        host[pointers_at:] = pointers.reshape(-1).view(np.uint8)
        device.upload(host, table)
        most = max(call.n for call in calls)
        for launch in self.generated.launches[op]:
            grid = grid_of(launch, len(calls), most)
            device.launch(launch.kernel, grid, base + items_at, len(calls), base)
        done = device.download(table[items_at : items_at + items.nbytes]).view(ITEM)
        return [
            Outcome(int(status), int(length))
            for status, length in zip(done["status"], done["length"], strict=True)
        ]
