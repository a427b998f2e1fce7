"""The C++ backend: generated C++17 with vector types and OpenMP, built by the user's compiler."""

from __future__ import annotations

import ctypes
import functools
import struct
import threading
from collections.abc import Sequence
from typing import NamedTuple

from compll import build as builder
from compll import cache
from compll.arrays import address, aligned_empty
from compll.backends import NO_LAUNCHES, Call, Outcome, Packer, Unit, Values
from compll.emit import cpp
from compll.types import Array

ITEM = struct.Struct("@PPqqqPPQQfiPq")  # `compll_item` of compll.h
DONE = struct.Struct("@32xq36xi")  # what is read of it afterwards: length and status
KEPT = 64  # sizes of tables of items that are remembered


def build(unit: Unit) -> CppLibrary:
    """Generate, compile (or take from the cache) and load a codec.

    Raises:
        BackendError: there is no compiler.

    """
    source = cache.remembered("cpp", unit.key, lambda: cpp.source(unit))
    return CppLibrary(unit, builder.library(unit.codec, source, cpp.runtime()))


@functools.lru_cache(KEPT)
def _room(size: int) -> type[ctypes.Array[ctypes.c_char]]:
    """Return the type of memory of so many bytes; making one takes longer than a small kernel."""
    return ctypes.c_char * size


class _Given(NamedTuple):
    """Values of the run-time parameters, their record and its place; n -> the scratch that they ask for."""

    values: Values
    record: Array
    place: int
    needs: dict[int, int]


class CppLibrary:
    """A loaded library.  Scratch memory is kept a thread, so kernels allocate nothing."""

    backend, launches = "cpp", NO_LAUNCHES

    def __init__(self, unit: Unit, library: ctypes.CDLL) -> None:
        """Look up the operations."""
        self.unit = unit
        self.operations = {}
        for f in unit.functions:
            entry = getattr(library, f"{unit.codec}_{f.op}_{unit.suffix}")
            entry.argtypes = (
                ctypes.c_void_p,
                ctypes.c_int64,
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_int32,
                ctypes.c_void_p,
            )
            entry.restype = ctypes.c_int32
            self.operations[f.op] = entry
        self.scratch_bytes = getattr(library, f"{unit.codec}_batch_scratch_bytes")
        self.scratch_bytes.argtypes = (ctypes.c_void_p, ctypes.c_int64, ctypes.c_void_p, ctypes.c_int32)
        self.scratch_bytes.restype = ctypes.c_int64
        self.parameters = Packer(unit.params)
        self.given: _Given | None = None
        self.pointers = struct.Struct(f"@{len(unit.functions[0].states)}P")
        self.local = threading.local()

    def run(self, op: str, calls: Sequence[Call], values: Values, threads: int) -> list[Outcome]:
        """Run one operation on every item; the GIL is released."""
        count, states = len(calls), self.pointers.size  # bytes of the pointers to an item's vectors
        table = _room(count * (ITEM.size + 2 * states))()
        items = ctypes.addressof(table)
        at, old = 0, count * ITEM.size
        for call in calls:
            new = old
            if call.state:
                self.pointers.pack_into(table, old, *map(address, call.state.values()))
                if call.new_state is not call.state:
                    new = old + states
                    self.pointers.pack_into(table, new, *map(address, call.new_state.values()))
            size, source = call.payload.nbytes, call.source
            ITEM.pack_into(
                table,
                at,
                address(call.gradient),
                call.payload_at or address(call.payload),
                call.n,
                size,
                size,
                items + old,
                items + new,
                call.seed,
                call.shared_seed,
                call.scale,
                0,
                0 if source is None else call.source_at or address(source),
                0 if source is None else source.nbytes,
            )
            at, old = at + ITEM.size, new + states
        given = self._given(values)  # held here: another thread may replace the one that is kept
        need = given.needs.get(calls[0].n) if count == 1 else None
        if need is None:
            need = self.scratch_bytes(items, count, given.place, threads)
            if count == 1:  # of one item it is the same for any number of threads
                given.needs[calls[0].n] = need
        self.operations[op](items, count, given.place, self._scratch(need), threads, None)
        outcomes = []
        for at in range(0, count * ITEM.size, ITEM.size):
            length, status = DONE.unpack_from(table, at)
            outcomes.append(Outcome(status, length))
        return outcomes

    def _given(self, values: Values) -> _Given:
        """Return what is kept of the values that were used last."""
        given = self.given
        if given is None or given.values is not values:
            record = self.parameters.pack(values)
            given = self.given = _Given(values, record, address(record), {})
        return given

    def _scratch(self, size: int) -> int:
        """Return the address of so many bytes; asking NumPy for it takes as long as a small kernel."""
        held: tuple[Array, int] | None = getattr(self.local, "scratch", None)
        if held is None or held[0].nbytes < size:
            memory = aligned_empty(size)
            held = self.local.scratch = memory, address(memory)
        return held[1]
