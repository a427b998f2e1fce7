"""The C++ backend: generated C++17 with vector types and OpenMP, built by the user's compiler."""

from __future__ import annotations

import ctypes
import struct
import threading
from collections.abc import Sequence

from compll import build as builder
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
    return CppLibrary(unit, builder.library(unit.codec, cpp.source(unit), cpp.runtime()))


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
        self.local = threading.local()

    def run(self, op: str, calls: Sequence[Call], values: Values, threads: int) -> list[Outcome]:
        """Run one operation on every item; the GIL is released."""
        states = 2 * len(self.states) * POINTER  # of one item: the pointers to old and new vectors
        table = ctypes.create_string_buffer(max(1, len(calls) * (ITEM.size + states)))
        items, pointers = ctypes.addressof(table), len(calls) * ITEM.size
        for at, call in enumerate(calls):
            place = pointers + at * states
            for number, name in enumerate(self.states if call.state else ()):
                for vectors, behind in ((call.state, 0), (call.new_state, states // 2)):
                    where = place + behind + number * POINTER
                    ctypes.c_void_p.from_buffer(table, where).value = address(vectors[name])
            size = call.payload.nbytes
            ITEM.pack_into(
                table,
                at * ITEM.size,
                *(address(call.gradient), address(call.payload), call.n, size, size),
                *(items + place, items + place + states // 2, call.seed, call.shared_seed, call.scale, 0),
                *((0, 0) if call.source is None else (address(call.source), call.source.nbytes)),
            )
        params = address(self.parameters.pack(values))
        need = self.scratch_bytes(items, len(calls), params, threads)
        self.operations[op](items, len(calls), params, self._scratch(need), threads, None)
        done = (ITEM.unpack_from(table, at * ITEM.size) for at in range(len(calls)))
        return [Outcome(item[STATUS], item[LENGTH]) for item in done]

    def _scratch(self, size: int) -> int:
        """Return the address of so many bytes; asking NumPy for it takes as long as a small kernel."""
        held: tuple[Array, int] | None = getattr(self.local, "scratch", None)
        if held is None or held[0].nbytes < size:
            memory = aligned_empty(size)
            held = self.local.scratch = memory, address(memory)
        return held[1]
