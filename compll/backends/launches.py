"""Runs generated CUDA kernels by their list of launches, on whatever executes them: a GPU, or its simulator.

The list is data that the compiler makes (`emit.cuda`): what the simulator runs in a test is what a GPU runs.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from compll.backends import Call, Outcome, Packer, Unit, Values
from compll.emit.cuda import Generated, Launch
from compll.emit.pieces import Buffer
from compll.errors import BackendError
from compll.evaluate import host_int
from compll.rng import TILE
from compll.types import Array

# As in templates/cuda: the threads of a block over items and over tiles, and the most blocks.
ITEM_THREADS, TILE_THREADS, WARP = 512, 128, 32
MOST_X = 1 << 20
ALIGNMENT = 64
KEPT = 256  # sizes of scratch memory that are remembered
PIECE = np.dtype([("words", "u8", (480,))])  # `Piece` of compll.cuh: the parameters of a launch take 4 KiB
ENDS_WITHIN = -1  # the length of a payload that ends where its own counts say

ITEM = np.dtype(
    [
        (name, kind)
        for kind, names in (
            ("u8", ("gradient", "payload")),
            ("i8", ("n", "capacity", "length")),
            ("u8", ("state", "new_state", "seed", "shared_seed", "scratch")),
            ("f4", ("scale",)),
            ("i4", ("status",)),
            ("u8", ("source",)),
            ("i8", ("source_length", "first_block")),
        )
        for name in names
    ]
)  # `compll_item` of compll.cuh


@dataclass(frozen=True)
class Grid:
    """Blocks, and the threads of each."""

    x: int
    threads: int


class Device(Protocol):
    """What executes kernels.  Buffers are its own one-dimensional uint8 arrays, aligned to 64."""

    backend: str

    def empty(self, nbytes: int) -> Any:
        """Return a buffer with any content."""

    def address(self, array: Any) -> int:
        """Return where an array begins, as kernels see it."""

    def write(self, kernel: str, piece: Array, to: int, words: int) -> None:
        """Launch the kernel that writes a `PIECE`, which it takes by value, to an address."""

    def download(self, buffer: Any) -> Array:
        """Return a buffer's content, after everything before it in the stream has run."""

    def launch(self, kernel: str, grid: Grid, items: int, count: int, params: int) -> None:
        """Launch a kernel on addresses, without waiting for it."""


def item_blocks(n: int) -> int:
    """Return the blocks of a launch over tiles that work on an item of n elements (compll.cuh)."""
    return max(1, min(-(-n // (TILE * TILE_THREADS // WARP)), MOST_X))


def grid_of(launch: Launch, count: int, blocks: int) -> Grid:
    """Return a launch's grid for `count` items, which have so many blocks (compll.cuh: `Grid`)."""
    if launch.over == "items":
        return Grid(min(count, MOST_X), ITEM_THREADS)
    return Grid(blocks, TILE_THREADS)


def bytes_of(kind: str) -> int:
    """Return the bytes of an element of a C type."""
    own = {"float": 4, "bool": 1, "half": 2, "bfloat16": 2, "Rank": 24}
    return own.get(kind) or int(kind.strip("uint_")) // 8


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


class LaunchLibrary:
    """A codec as kernels and launches on a device.

    The table of items is written by a kernel that has it among its parameters, so a call copies nothing from
    the host and can be captured.
    """

    def __init__(self, unit: Unit, generated: Generated, device: Device) -> None:
        """Keep what a run needs."""
        self.states = unit.functions[0].states
        self.parameters = Packer(unit.params)
        self.generated, self.device = generated, device
        self.backend, self.launches = device.backend, generated.counts
        self.fallible = generated.fallible
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
        """Run one operation on every item, and wait for what became of them."""
        del threads
        return self.start(op, calls, values).outcomes() if calls else []

    def start(self, op: str, calls: Sequence[Call], values: Values, *, keep: bool = False) -> Started:
        """Launch one operation on every item; `keep` its memory, for launches that are repeated later."""
        device, params = self.device, self.parameters.pack(values)
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
        items, blocks = np.zeros(len(calls), ITEM), 0
        for at, (call, size) in enumerate(zip(calls, sizes, strict=True)):
            if call.state:
                vectors = (call.state, call.new_state)
                pointers[at] = [[device.address(v[name]) for name in self.states] for v in vectors]
            place = base + pointers_at + at * pointers[at].nbytes
            nbytes = call.payload.nbytes
            items[at] = (
                *(device.address(call.gradient), device.address(call.payload)),
                *(call.n, nbytes, ENDS_WITHIN if call.padded else nbytes),
                *(place, place + pointers[at, 0].nbytes, call.seed, call.shared_seed, free),
                *(call.scale, 0),
                *((0, 0) if call.source is None else (device.address(call.source), call.source.nbytes)),
                blocks,
            )
            free += size
            blocks += item_blocks(call.n)
        host = np.zeros(-(-table.nbytes // PIECE.itemsize), PIECE)
        raw = host.view(np.uint8)
        raw[: params.nbytes] = params.view(np.uint8)
        raw[items_at : items_at + items.nbytes] = items.view(np.uint8)
        raw[pointers_at : table.nbytes] = pointers.reshape(-1).view(np.uint8)
        for number in range(len(host)):
            done = number * PIECE.itemsize
            words = min(PIECE.itemsize, table.nbytes - done) // 8
            device.write(self.generated.table_writer, host[number : number + 1], base + done, words)
        for launch in self.generated.launches[op]:
            grid = grid_of(launch, len(calls), blocks)
            device.launch(launch.kernel, grid, base + items_at, len(calls), base)
        memory = (table, scratch, *calls) if keep else (table,)
        return Started(device, table[items_at : items_at + items.nbytes], memory)


@dataclass(frozen=True)
class Started:
    """An operation whose kernels are launched: the items in device memory, and what must not be freed."""

    device: Device
    items: Any
    memory: tuple[Any, ...]

    def outcomes(self) -> list[Outcome]:
        """Wait, and return what became of the items."""
        return self.read(self.device.download(self.items))

    def read(self, copy: Array) -> list[Outcome]:
        """Return what became of the items, of a copy of them in host memory."""
        done = copy.view(ITEM)
        return [
            Outcome(int(status), int(length))
            for status, length in zip(done["status"], done["length"], strict=True)
        ]
