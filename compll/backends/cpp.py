"""The C++ backend: generated C++17 with vector types and OpenMP, built by the user's compiler."""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Sequence

import numpy as np

from compll import build as builder
from compll.backends import Call, Outcome, Unit, Values, pack_parameters
from compll.emit import cpp
from compll.types import Array

POINTERS = ctypes.c_void_p * 8


class _Item(ctypes.Structure):
    """`compll_item` of compll.h."""

    _fields_ = (
        ("gradient", ctypes.c_void_p),
        ("payload", ctypes.c_void_p),
        ("source", ctypes.c_void_p),
        ("n", ctypes.c_int64),
        ("capacity", ctypes.c_int64),
        ("length", ctypes.c_int64),
        ("source_length", ctypes.c_int64),
        ("state", ctypes.c_void_p),
        ("new_state", ctypes.c_void_p),
        ("seed", ctypes.c_uint64),
        ("shared_seed", ctypes.c_uint64),
        ("scale", ctypes.c_float),
        ("status", ctypes.c_int32),
    )


def build(unit: Unit) -> CppLibrary:
    """Generate, compile (or take from the cache) and load a codec.

    Raises:
        BackendError: there is no compiler, or the program needs what this backend does not build yet.

    """
    return CppLibrary(unit, builder.library(unit.codec, cpp.source(unit), cpp.runtime()))


class CppLibrary:
    """A loaded library.  Scratch memory is kept a thread, so kernels allocate nothing."""

    backend = "cpp"

    def __init__(self, unit: Unit, library: ctypes.CDLL) -> None:
        """Look up the operations."""
        self.unit = unit
        self.states = unit.functions[0].states
        self.operations = {}
        for f in unit.functions:
            entry = getattr(library, f"{unit.codec}_{f.op}_f32")
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
        self.scratch_bytes = getattr(library, f"{unit.codec}_scratch_bytes")
        self.scratch_bytes.argtypes = (ctypes.c_int64, ctypes.c_void_p)
        self.scratch_bytes.restype = ctypes.c_int64
        self.local = threading.local()

    def run(self, op: str, calls: Sequence[Call], values: Values, threads: int) -> list[Outcome]:
        """Run one operation on every item; the GIL is released."""
        items = (_Item * len(calls))()
        alive = []
        for item, call in zip(items, calls, strict=True):
            item.gradient = call.gradient.ctypes.data
            item.payload = call.payload.ctypes.data
            item.n = call.n
            item.capacity = item.length = call.payload.nbytes
            item.source, item.source_length = call.source.ctypes.data, call.source.nbytes
            item.seed, item.shared_seed, item.scale = call.seed, call.shared_seed, call.scale
            if call.state:
                old = POINTERS(*(call.state[name].ctypes.data for name in self.states))
                new = POINTERS(*(call.new_state[name].ctypes.data for name in self.states))
                item.state, item.new_state = ctypes.addressof(old), ctypes.addressof(new)
                alive += [old, new]
        params = pack_parameters(self.unit.params, values)
        most = max((call.n for call in calls), default=0)
        scratch = self._scratch(int(self.scratch_bytes(most, params.ctypes.data)))
        self.operations[op](items, len(calls), params.ctypes.data, scratch.ctypes.data, threads, None)
        return [Outcome(item.status, item.length) for item in items]

    def _scratch(self, size: int) -> Array:
        held: Array | None = getattr(self.local, "scratch", None)
        if held is None or held.nbytes < size + 64:
            held = self.local.scratch = np.empty(size + 64, np.uint8)
        start = -held.ctypes.data % 64
        return held[start : start + size] if size else held
