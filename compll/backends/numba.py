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
from compll.backends.crew import share, share_tiles
from compll.emit import numba as emit
from compll.errors import BackendError
from compll.rng import TILE
from compll.types import Array

LEAST_APART = 16  # tiles; smaller items take longer in Python than in their kernels
PARTS = ("convert", "elementary", "jobs", "lanes", "positions", "runtime", "tiles")
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
    """A loaded module.  Scratch memory is kept a thread, so kernels allocate nothing."""

    backend, launches = "numba", NO_LAUNCHES

    def __init__(self, unit: Unit, module: ModuleType) -> None:
        """Look up the operations."""
        self.states = unit.functions[0].states
        self.params = [p.name for p in unit.params if not p.static]
        self.operations = module.OPERATIONS
        self.local = threading.local()

    def run(self, op: str, calls: Sequence[Call], values: Values, threads: int) -> list[Outcome]:
        """Run one operation on every item; the GIL is released.

        Items of some size, but no more than a quarter of a thread's share, are spread over the threads;
        the others are run here one after the other, their loops in all threads.
        """
        kernels = self.operations[op]
        params = tuple(values[name] for name in self.params)
        outcomes: dict[int, Outcome] = {}
        least, most = LEAST_APART * TILE, sum(call.n for call in calls) // (4 * threads)
        apart = [at for at, call in enumerate(calls) if threads > 1 and least <= call.n <= most]
        for at in sorted(set(range(len(calls))).difference(apart)):
            outcomes[at] = self._run(kernels, calls[at], params, threads)

        def alone(at: int) -> None:
            outcomes[at] = self._run(kernels, calls[at], params, 1)

        share([functools.partial(alone, at) for at in apart], threads)
        return [outcomes[at] for at in range(len(calls))]

    def _run(self, kernels: Any, call: Call, params: tuple[Any, ...], threads: int) -> Outcome:
        scratch = self._scratch(0)
        given = (
            call.n,
            call.seed,
            call.shared_seed,
            call.scale,
            0,
            address(call.gradient),
            address(call.payload),
            call.payload.nbytes,
            *((0, 0) if call.source is None else (address(call.source), call.source.nbytes)),
            scratch.ctypes.data,
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
        memory = np.zeros(
            kernels.frame.itemsize, np.uint8
        )  # whose address is found in less time than a record's
        frame, job = memory.view(kernels.frame), address(memory)
        frame[0] = given + (0,) * (len(kernels.frame.names) - len(given))
        for number, before in enumerate(kernels.steps):
            tiles = before(frame)
            if tiles == NEEDS_MEMORY:
                scratch = self._scratch(int(frame["room"][0]))
                frame["scratch"], frame["room"] = scratch.ctypes.data, scratch.nbytes
                tiles = before(frame)
            if tiles < 0:
                return Outcome(tiles, call.payload.nbytes)
            if number < len(kernels.loops):
                _work(kernels.loops[number], frame, job, tiles, scratch, threads)
        if call.n and frame["outside"][0]:
            return Outcome(OUT_OF_RANGE, call.payload.nbytes)
        return Outcome(NOT_FINITE if frame["bad"][0] else OK, int(frame["end"][0]))

    def _scratch(self, size: int) -> Array:
        """Return memory of the thread, of at least so many bytes, that begins at a multiple of 64."""
        held: Array | None = getattr(self.local, "scratch", None)
        if held is None or len(held) < size:
            whole = np.empty(size + 64, np.uint8)
            held = self.local.scratch = whole[-whole.ctypes.data % 64 :][:size]
        return held


def _work(work: Any, frame: Array, job: int, tiles: int, scratch: Array, threads: int) -> None:
    """Run a loop on the frame, whose address is its job, or a selection on vectors in scratch memory."""
    if isinstance(work, tuple):
        loop, chunk = work
        share_tiles(team(), loop.address, job, tiles, chunk, threads)
        return

    def view(number: int, count: int) -> Array:
        member, kind = work.vectors[number]
        first = int(frame[member][0]) - scratch.ctypes.data
        return scratch[first : first + count * int(kind[1:])].view(kind)

    def run(job: tuple[int, Array], tiles: int, chunk: int) -> None:
        kernel, arguments = job
        share_tiles(team(), kernel, address(arguments), tiles, chunk, threads)

    select = getattr(selections(), work.function)
    length, rank = int(frame["length"][0]), int(frame["rank"][0])
    frame["result"] = select(view, length, rank, work.block, run)
