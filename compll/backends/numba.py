"""The Numba backend: generated Python on LLVM vectors, for users without a C++ compiler."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import shutil
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import filelock
import numpy as np

from compll import build as builder
from compll import cache, knobs
from compll.arrays import address
from compll.backends import NO_LAUNCHES, NOT_FINITE, OK, OUT_OF_RANGE, Call, Outcome, Unit, Values
from compll.backends.crew import share, share_steps, share_tiles
from compll.emit import numba as emit
from compll.errors import BackendError
from compll.rng import TILE
from compll.types import Array

LEAST_APART = 16  # tiles; smaller items take longer in Python than in their kernels
PARTS = ("convert", "elementary", "jobs", "kept", "lanes", "positions", "reduce", "runtime", "tiles")
RUNTIME = tuple(f"numba_{part}.py" for part in PARTS)

NEEDS_MEMORY = -4
"""What a first step says where there is too little scratch memory; `room` then says how much it needs."""


def build(unit: Unit) -> NumbaLibrary:
    """Generate, compile (or take from the cache) and load a codec.

    Raises:
        BackendError: Numba is not installed.

    """
    source = cache.remembered("numba", unit.key, lambda: emit.source(unit))
    return NumbaLibrary(unit, module(unit.codec, source))


@functools.cache
def version() -> str:
    """Return the versions of what compiles.

    Raises:
        BackendError: it is not installed.

    """
    try:
        import llvmlite
        import numba
    except ImportError as e:
        raise BackendError(
            f"the numba backend needs Numba, and it cannot be imported ({e}): pip install 'compll[numba]', "
            "or take the slow reference by backend='interp'"
        ) from e
    if numba.config.DISABLE_JIT:
        raise BackendError("the numba backend compiles, and NUMBA_DISABLE_JIT is set: unset it")
    return f"{numba.__version__} {llvmlite.__version__}"


def module(name: str, source: str) -> ModuleType:
    """Compile (or find) and load the module of one generated source.

    Raises:
        BackendError: there is no Numba, or the cache cannot be written.

    """
    here = Path(__file__).parent
    runtime = (here.joinpath(file).read_text("utf-8") for file in RUNTIME)
    parts = (source, *runtime, version(), sys.version, builder.cpu())
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
    folder = knobs.cache_dir() / f"{name}-numba-{key}"
    path = folder / f"{name}.py"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(str(folder / "lock")):
            if not path.is_file() or path.read_text("utf-8") != source:
                path.write_text(source, "utf-8")
            whole = folder / "kernels.sha256"
            if not whole.is_file() or whole.read_text("ascii") != _digest(folder):
                shutil.rmtree(
                    folder / "__pycache__", ignore_errors=True
                )  # half a kernel would end the process
            loaded = _load(f"compll_numba_{key}", path)
            whole.write_text(_digest(folder), "ascii")
            return loaded
    except OSError as e:
        raise BackendError(f"cannot write to the cache '{folder}': {e}; name another by COMPLL_CACHE") from e


def _digest(folder: Path) -> str:
    """Return a hash of the kernels that Numba has stored below a folder."""
    digest = hashlib.sha256()
    for file in sorted(folder.glob("__pycache__/*.nb?")):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()


def _load(name: str, path: Path) -> ModuleType:
    """Import a file; Numba compiles its kernels, or takes them from `__pycache__` beside it."""
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[name] = loaded
    try:
        spec.loader.exec_module(loaded)
    except BaseException:
        del sys.modules[name]
        raise
    return loaded


@functools.cache
def selections() -> ModuleType:
    """Return the kernels that select, compiled once."""
    return module("selection", Path(__file__).with_name("numba_selection.py").read_text("utf-8"))


@functools.cache
def team() -> ModuleType:
    """Return what threads share loops by, compiled once."""
    return module("team", Path(__file__).with_name("numba_team.py").read_text("utf-8"))


class NumbaLibrary:
    """A loaded module."""

    backend, launches = "numba", NO_LAUNCHES

    def __init__(self, unit: Unit, module: ModuleType) -> None:
        """Look up the operations."""
        self.states = unit.functions[0].states
        self.params = [p.name for p in unit.params if not p.static]
        self.operations = module.OPERATIONS
        self.memory = Memory()

    def run(self, op: str, calls: Sequence[Call], values: Values, threads: int) -> list[Outcome]:
        """Run one operation on every item; the GIL is released.

        Items of some size, but no more than a quarter of a thread's share, are spread over the threads;
        the others are run here one after the other, their loops in all threads.
        """
        params = tuple(values[name] for name in self.params)
        if threads == 1 or len(calls) == 1:
            return [self._run(op, call, params, threads) for call in calls]
        outcomes: dict[int, Outcome] = {}
        least, most = LEAST_APART * TILE, sum(call.n for call in calls) // (4 * threads)
        apart = [at for at, call in enumerate(calls) if least <= call.n <= most]
        for at in sorted(set(range(len(calls))).difference(apart)):
            outcomes[at] = self._run(op, calls[at], params, threads)

        def alone(at: int) -> None:
            outcomes[at] = self._run(op, calls[at], params, 1)

        share([functools.partial(alone, at) for at in apart], threads)
        return [outcomes[at] for at in range(len(calls))]

    def _run(self, op: str, call: Call, params: tuple[Any, ...], threads: int) -> Outcome:
        kernels, scratch = self.operations[op], self.memory.scratch
        frame, job = self.memory.frame(op, kernels.frame)
        given = (
            0,  # the first step, and how many tiles its loop has: not known yet
            -1,
            call.n,
            call.seed,
            call.shared_seed,
            call.scale,
            0,
            address(call.gradient),
            address(call.payload),
            call.payload.nbytes,
            *((0, 0) if call.source is None else (address(call.source), call.source.nbytes)),
            address(scratch),
            scratch.nbytes,
            *(0,) * 5,
            *(
                address(state[name])
                for state in (call.state, call.new_state)
                for name in self.states
                if state
            ),
            *params,
        )
        frame[0] = given + (0,) * (len(kernels.frame.names) - len(given))
        native, table = team(), kernels.table
        while status := share_steps(native, job, address(table), len(table), threads):
            if status == NEEDS_MEMORY:
                scratch = self.memory.grow(int(frame["room"][0]))
                frame["scratch"], frame["room"] = address(scratch), scratch.nbytes
            elif status == native.SELECTS:
                number = int(frame["step"][0])
                _select(kernels.loops[number], frame, scratch, threads)
                frame["step"], frame["tiles"] = number + 1, -1
            else:
                return Outcome(status, call.payload.nbytes)
        if call.n and frame["outside"][0]:
            return Outcome(OUT_OF_RANGE, call.payload.nbytes)
        return Outcome(NOT_FINITE if frame["bad"][0] else OK, int(frame["end"][0]))


class Memory(threading.local):
    """What a thread works in, so that calls allocate nothing: scratch memory, and a frame an operation."""

    def __init__(self) -> None:
        self.scratch = self.grow(64)
        self.frames: dict[str, tuple[Array, int]] = {}

    def grow(self, size: int) -> Array:
        """Return scratch memory of so many bytes, which begins at a multiple of 64."""
        whole = np.empty(size + 64, np.uint8)
        self.scratch = whole[-address(whole) % 64 :][:size]
        return self.scratch

    def frame(self, op: str, kind: np.dtype[Any]) -> tuple[Array, int]:
        """Return the frame of an operation, an array of one record, and its address."""
        if op not in self.frames:
            memory = np.zeros(1, kind)
            self.frames[op] = memory, memory.ctypes.data
        return self.frames[op]


def _select(selection: Any, frame: Array, scratch: Array, threads: int) -> None:
    """Run a selection on vectors in scratch memory."""

    def view(number: int, count: int) -> Array:
        member, kind = selection.vectors[number]
        first = int(frame[member][0]) - scratch.ctypes.data
        return scratch[first : first + count * int(kind[1:])].view(kind)

    def run(job: tuple[int, Array], tiles: int, chunk: int) -> None:
        kernel, arguments = job
        share_tiles(team(), kernel, address(arguments), tiles, chunk, threads)

    select = getattr(selections(), selection.function)
    length, rank = int(frame["length"][0]), int(frame["rank"][0])
    frame["result"] = select(view, length, rank, selection.block, run)
