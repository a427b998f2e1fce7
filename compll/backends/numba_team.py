"""Operations in steps, whose loops threads share without the GIL: what their caller runs, and what helps it.

To wake a thread takes as long as a small loop.  So a helper that has finished looks for the next call for a
while, and only then goes back to Python to sleep.  This file knows no program: `compll.backends.numba`
compiles it once and keeps it beside the codecs; it imports nothing of compll.

A team is memory of 64-bit words.  The first counts the helpers that are free, those who were called and have
not come yet included.  Each of several calls at a time has a slot, whose first word, the gate, holds the
number of the call and how many may still join it.  Who joins takes one off, and the caller, when nothing is
left to do, sets it to 0: both by one atomic operation.  So nobody joins afterwards, and the caller waits for
those only who joined before.

An operation works on a frame, memory that begins with the number of its next step and how many tiles that
step's loop has (below 0: not known yet).  So it can return to Python between any two of its loops, for what
only Python can do, and go on afterwards.
"""

from __future__ import annotations

import platform
from typing import Any

from llvmlite import ir
from numba import njit
from numba.core import types
from numba.core.typing import signature
from numba.extending import intrinsic

LINE = 64  # bytes that one processor holds at a time
KERNEL, JOB, TILES, CHUNK, HELPERS, NEXT, DONE = 8, 16, 24, 32, 40, LINE, 2 * LINE  # where, in a slot
SLOT = 3 * LINE
BYTES = LINE + 8 * SLOT  # of a team: 8 calls at a time
STEP, FRAME_TILES = 0, 8  # where, in a frame
BEFORE, LOOP, LEAST, ROW = 0, 8, 16, 24  # where, in a row of an operation's table
SELECTS = -5  # what an operation says before a step whose work Python does
PLACES = 0xFFFF  # of a gate: how many may join
EAGER = 1000  # so often a thread looks again at once; then it lets others run before it does
I64 = ir.IntType(64)
ORDER = "seq_cst"

sched_yield = types.ExternalFunction("sched_yield", types.intc())


def place(b: Any, address: Any) -> Any:
    """Emit an address as a pointer."""
    return b.inttoptr(address, I64.as_pointer())


@intrinsic
def load(_: Any, _at: Any) -> Any:
    """Return a word as all threads see it."""
    return signature(types.int64, types.int64), lambda _c, b, _s, v: b.load_atomic(place(b, v[0]), ORDER, 8)


@intrinsic
def store(_: Any, _at: Any, _word: Any) -> Any:
    """Set a word, after all that was written before."""

    def emit(context: Any, b: Any, _s: Any, v: Any) -> Any:
        b.store_atomic(v[1], place(b, v[0]), ORDER, 8)
        return context.get_dummy_value()

    return signature(types.none, types.int64, types.int64), emit


@intrinsic
def add(_: Any, _at: Any, _word: Any) -> Any:
    """Add to a word; return what it was."""
    kind = signature(types.int64, types.int64, types.int64)
    return kind, lambda _c, b, _s, v: b.atomic_rmw("add", place(b, v[0]), v[1], ORDER)


@intrinsic
def exchange(_: Any, _at: Any, _word: Any) -> Any:
    """Set a word; return what it was."""
    kind = signature(types.int64, types.int64, types.int64)
    return kind, lambda _c, b, _s, v: b.atomic_rmw("xchg", place(b, v[0]), v[1], ORDER)


@intrinsic
def replace(_: Any, _at: Any, _old: Any, _new: Any) -> Any:
    """Set a word if it still is `old`; return whether it was."""

    def emit(_c: Any, b: Any, _s: Any, v: Any) -> Any:
        return b.extract_value(b.cmpxchg(place(b, v[0]), v[1], v[2], ORDER, ORDER), 1)

    return signature(types.boolean, types.int64, types.int64, types.int64), emit


@intrinsic
def relax(_: Any) -> Any:
    """Tell the processor that this thread waits."""

    def emit(context: Any, b: Any, _s: Any, _v: Any) -> Any:
        if platform.machine() in ("x86_64", "AMD64"):
            b.call(
                b.module.declare_intrinsic("llvm.x86.sse2.pause", (), ir.FunctionType(ir.VoidType(), ())), ()
            )
        return context.get_dummy_value()

    return signature(types.none), emit


@intrinsic
def run(_: Any, _kernel: Any, _job: Any, _begin: Any, _end: Any) -> Any:
    """Call a kernel on a range of tiles."""

    def emit(context: Any, b: Any, _s: Any, v: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), I64, I64])
        b.call(b.inttoptr(v[0], kind.as_pointer()), [b.inttoptr(v[1], kind.args[0]), v[2], v[3]])
        return context.get_dummy_value()

    return signature(types.none, *[types.int64] * 4), emit


@intrinsic
def ready(_: Any, _before: Any, _frame: Any) -> Any:
    """Do what stands before a loop; return its number of tiles, or below 0 a status."""

    def emit(_c: Any, b: Any, _s: Any, v: Any) -> Any:
        kind = ir.FunctionType(I64, [ir.IntType(8).as_pointer()])
        return b.call(b.inttoptr(v[0], kind.as_pointer()), [b.inttoptr(v[1], kind.args[0])])

    return signature(types.int64, types.int64, types.int64), emit


@njit(nogil=True, error_model="numpy")
def wait(rounds: Any) -> Any:
    """Wait a moment, having done so a number of times."""
    if rounds < EAGER:
        relax()
    else:
        sched_yield()


@njit(nogil=True, error_model="numpy")
def piece(begin: Any, tiles: Any, chunk: Any, threads: Any) -> Any:
    """Return where a piece ends: whole chunks, ever fewer, so that all threads end together."""
    share = 2 * threads * chunk
    return min(tiles, begin + (tiles - begin + share - 1) // share * chunk)


@njit(nogil=True, error_model="numpy")
def work(slot: Any, kernel: Any, job: Any, tiles: Any, chunk: Any, threads: Any) -> Any:
    """Run a kernel on pieces until none is left."""
    while True:
        begin = load(slot + NEXT)
        if begin >= tiles:
            return
        end = piece(begin, tiles, chunk, threads)
        if replace(slot + NEXT, begin, end):
            run(kernel, job, begin, end)


@njit("int64(int64, int64, int64, int64, int64, int64)", nogil=True, error_model="numpy", cache=True)
def lead(slot: Any, kernel: Any, job: Any, tiles: Any, chunk: Any, helpers: Any) -> Any:
    """Run a kernel on all tiles, with up to so many helpers; return how many have joined.

    A helper touches neither the kernel nor its job after that.
    """
    store(slot + KERNEL, kernel)
    store(slot + JOB, job)
    store(slot + TILES, tiles)
    store(slot + CHUNK, chunk)
    store(slot + HELPERS, helpers)
    store(slot + NEXT, 0)
    store(slot + DONE, 0)
    shut = (load(slot) | PLACES) + 1
    store(slot, shut + helpers)
    work(slot, kernel, job, tiles, chunk, helpers + 1)
    joined = helpers - (exchange(slot, shut) & PLACES)
    rounds = 0
    while load(slot + DONE) < joined:
        wait(rounds)
        rounds += 1
    return joined


@njit("int64(int64, int64)", nogil=True, error_model="numpy", cache=True)
def missing(team: Any, helpers: Any) -> Any:
    """Count as called how many are missing of so many free helpers; return that number."""
    while True:
        free = load(team)
        if free >= helpers:
            return 0
        if replace(team, free, helpers):
            return helpers - free


@njit(
    "int64(int64, int64, int64, int64, int64, int64, int64, boolean)",
    nogil=True,
    error_model="numpy",
    cache=True,
)
def spread(
    kernel: Any, job: Any, tiles: Any, chunk: Any, team: Any, slot: Any, helpers: Any, called: Any
) -> Any:
    """Run a kernel on all tiles, with helpers as far as there are chunks for them.

    Above 0, it has not begun, and so many helpers are to be called first, unless they are `called` already.
    Below 0, so many have helped.
    """
    useful = min(helpers, (tiles + chunk - 1) // chunk - 1)
    if useful <= 0:
        run(kernel, job, 0, tiles)
        return 0
    lacking = 0 if called else missing(team, useful)
    return lacking if lacking > 0 else -lead(slot, kernel, job, tiles, chunk, useful)


@njit("int64(int64, int64, int64, int64, int64, int64, boolean)", nogil=True, error_model="numpy", cache=True)
def go_on(frame: Any, table: Any, steps: Any, team: Any, slot: Any, helpers: Any, called: Any) -> Any:
    """Do the steps that are left of an operation.

    Return 0 at its end; above 0 how many helpers are to be called first, unless they are `called` already;
    below 0 the status of what stands before a loop, or SELECTS.
    """
    while load(frame + STEP) < steps:
        row = table + load(frame + STEP) * ROW
        tiles, kernel, chunk = load(frame + FRAME_TILES), load(row + LOOP), load(row + LEAST)
        if tiles < 0:
            tiles = ready(load(row + BEFORE), frame)
            if tiles < 0:
                return tiles
            store(frame + FRAME_TILES, tiles)
        if kernel != 0:
            lacking = spread(kernel, frame, tiles, chunk, team, slot, helpers, called)
            if lacking > 0:
                return lacking
            called = False
        elif chunk != 0:
            return SELECTS
        store(frame + FRAME_TILES, -1)
        store(frame + STEP, load(frame + STEP) + 1)
    return 0


@njit(nogil=True, error_model="numpy")
def join(team: Any, slot: Any) -> Any:
    """Help with the call of a slot; return whether there was one with work left."""
    gate = load(slot)
    if gate & PLACES == 0 or load(slot + NEXT) >= load(slot + TILES):
        return False
    if not replace(slot, gate, gate - 1):
        return False
    add(team, -1)
    threads = load(slot + HELPERS) + 1
    work(slot, load(slot + KERNEL), load(slot + JOB), load(slot + TILES), load(slot + CHUNK), threads)
    add(team, 1)
    add(slot + DONE, 1)
    return True


@njit("int64(int64, int64)", nogil=True, error_model="numpy", cache=True)
def serve(team: Any, most: Any) -> Any:
    """Help with calls until none came while looking `most` times; return how many it helped with."""
    rounds, helped = 0, 0
    while rounds < most:
        wait(rounds)
        rounds += 1
        for slot in range(team + LINE, team + BYTES, SLOT):
            if join(team, slot):
                rounds = 0
                helped += 1
    add(team, -1)
    return helped
