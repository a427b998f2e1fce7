"""The C++ backend: generated C++17 with vector types and OpenMP, built by the user's compiler."""

from __future__ import annotations

import ctypes
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
LENGTH, STATUS = 4, 10  # places of members in it
POINTER = struct.calcsize("@P")


def build(unit: Unit) -> CppLibrary:
    """Generate, compile (or take from the cache) and load a codec.

    Raises:
        BackendError: there is no compiler.

    """
    source = cache.remembered("cpp", unit.key, lambda: cpp.source(unit))
    return CppLibrary(unit, builder.library(unit.codec, source, cpp.runtime()))


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
        self.states = unit.functions[0].states
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
        self.pointers = struct.Struct(f"@{len(self.states)}P")
        self.local = threading.local()

    def run(self, op: str, calls: Sequence[Call], values: Values, threads: int) -> list[Outcome]:
        """Run one operation on every item; the GIL is released."""
        count, states = len(calls), len(self.states) * POINTER  # bytes of the pointers to an item's vectors
        table = ctypes.create_string_buffer(count * (ITEM.size + 2 * states))
        items = ctypes.addressof(table)
        at, old = 0, count * ITEM.size
        for call in calls:
            new = old + states
            if call.state:
                places = [address(call.state[name]) for name in self.states]
                self.pointers.pack_into(table, old, *places)
                if call.new_state is not call.state:
                    places = [address(call.new_state[name]) for name in self.states]
                self.pointers.pack_into(table, new, *places)
            size, source = call.payload.nbytes, call.source
            ITEM.pack_into(
                table,
                at,
                address(call.gradient),
                address(call.payload),
                call.n,
                size,
                size,
                items + old,
                items + new,
                call.seed,
                call.shared_seed,
                call.scale,
                0,
                0 if source is None else address(source),
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
            done = ITEM.unpack_from(table, at)
            outcomes.append(Outcome(done[STATUS], done[LENGTH]))
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
