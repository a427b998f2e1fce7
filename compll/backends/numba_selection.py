"""Selections for Numba: kernels on vectors in scratch memory, and the functions that call them.

They know no program, so `compll.backends.numba` compiles this file once and keeps it beside the codecs.  A
function gets `view`, the vectors that its selection names, and `team`, which runs a kernel's job on ranges of
tiles in several threads.  Keys are compared as unsigned integers; `flip` has the
sign bit where they are signed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit
from numba.core import types
from numba.core.types.misc import CPointer
from numba.core.typing import signature
from numba.extending import intrinsic

from compll.backends.numba_jobs import Job, kernel
from compll.backends.numba_kept import lowest, ones

TILE, WORDS = 1024, 16
BINS, PARTS = 2048, 16  # digits of 11 bits are counted in so many parts of a vector at once
SAMPLE = 16384  # keys at most that tell which are among the least
FEW = 64  # so many elements are sorted by insertion

View = Callable[[int, int], Any]
Team = Callable[[Job, int, int], None]


def function(*signatures: str) -> Any:
    """Return the decorator of a function that is compiled for these types, and called in one thread."""
    return njit(list(signatures), nogil=True, error_model="numpy", cache=True)


def for_keys(before: str, after: str, *others: str) -> list[str]:
    """Return signatures: for either size of key, `K` in a text, and of other elements, `V`."""
    texts = [f"{before}, {after}".replace("K", key) for key in ("uint32", "uint64")]
    return [text.replace("V", other) for text in texts for other in others or ("",)]


@intrinsic
def digit_counts(_: Any) -> Any:
    """Return memory for 256 counts, of the function that asks."""

    def emit(_c: Any, b: Any, _s: Any, _v: Any) -> Any:
        with b.goto_entry_block():
            counts = b.alloca(ir.ArrayType(ir.IntType(64), 256))
        return b.bitcast(counts, ir.IntType(64).as_pointer())

    return signature(CPointer(types.int64)), emit


@intrinsic
def at_most(_: Any, keys: Any, at: Any, flip: Any, last: Any) -> Any:
    """Return which of 64 keys from `at` on are no greater than the last, as bits."""

    def emit(context: Any, b: Any, _s: Any, v: Any) -> Any:
        one = context.get_value_type(keys.dtype)
        some = ir.VectorType(one, 64)
        data = context.make_array(keys)(context, b, v[0]).data
        place = b.bitcast(b.gep(data, [context.cast(b, v[1], at, types.int64)]), some.as_pointer())

        def spread(x: Any, have: Any) -> Any:
            x = context.cast(b, x, have, keys.dtype)
            lane = b.insert_element(ir.Constant(some, ir.Undefined), x, ir.IntType(32)(0))
            order = ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64)
            return b.shuffle_vector(lane, ir.Constant(some, ir.Undefined), order)

        x = b.xor(b.load(place, align=one.width // 8), spread(v[2], flip))
        return b.bitcast(b.icmp_unsigned("<=", x, spread(v[3], last)), ir.IntType(64))

    return signature(types.uint64, keys, at, flip, last), emit


@njit(nogil=True, error_model="numpy")
def least(keys: Any, flip: Any, last: Any, at: Any) -> Any:
    """Return which of the keys from `at` on, at most 64, are no greater than the last, as bits."""
    if at + 64 <= len(keys):
        return at_most(keys, at, flip, last)
    word = np.uint64(0)
    for place in range(at, len(keys)):
        if keys[place] ^ flip <= last:
            word |= np.uint64(1) << np.uint64(place - at)
    return word


# --- the positions of the bits that are set, the first `limit` of them --------------------------------------


@kernel("void(uint64[::1], int64[::1])")
def count_bits(job: Any, begin: Any, end: Any) -> None:
    """Count the bits of each tile."""
    words, first = job[0]
    for tile in range(begin, end):
        count = 0
        for word in words[tile * WORDS : (tile + 1) * WORDS]:
            count += ones(word)
        first[tile + 1] = count


@kernel("void(uint64[::1], int64[::1], int64, int64[::1])")
def write_positions(job: Any, begin: Any, end: Any) -> None:
    """Write the positions of each tile's bits to their places."""
    words, first, limit, out = job[0]
    for tile in range(begin, end):
        at = first[tile]
        if at >= limit or first[tile + 1] == at:
            continue
        base = tile * TILE
        for bits in words[tile * WORDS : (tile + 1) * WORDS]:
            word = bits
            while word != 0 and at < limit:
                out[np.uint64(at)] = base + lowest(word)
                at += 1
                word &= word - np.uint64(1)
            base += 64


def positions(words: Any, first: Any, limit: int, out: Callable[[int], Any], team: Team) -> int:
    """Write the positions of the set bits, at most `limit`; `out` gives a vector of so many elements."""
    tiles = len(first) - 1
    first[0] = 0
    team(count_bits(words, first), tiles, 64)
    np.cumsum(first[1:], out=first[1:])
    found = min(int(first[tiles]), limit)
    team(write_positions(words, first, limit, out(found)), tiles, 64)
    return found


# --- the key of a rank, by its digits ----------------------------------------------------------------------


@kernel(*for_keys("void(K[::1], uint64, uint64, int64, int64", "int64[:, ::1], int64)"))
def count_digits(job: Any, begin: Any, end: Any) -> None:
    """Count, in each part, the digits below the `left` lowest bits of the keys that begin with `prefix`."""
    keys, flip, prefix, left, width, bins, parts = job[0]
    shift, low = np.uint64(left - width), np.uint64((1 << width) - 1)
    whole, upper = left == keys.itemsize * 8, np.uint64(left)
    for part in range(begin, end):
        own = bins[part]
        own[:] = 0
        for bits in keys[len(keys) * part // parts : len(keys) * (part + 1) // parts]:
            key = bits ^ flip
            if whole or key >> upper == prefix:
                own[(key >> shift) & low] += 1


@function("UniTuple(int64, 2)(int64[:, ::1], int64, int64)")
def find_digit(bins: Any, parts: Any, rank: Any) -> Any:
    """Return the digit of a rank, and how many keys have a lower one."""
    below = 0
    for digit in range(BINS):
        count = 0
        for part in range(parts):
            count += bins[part, digit]
        if below + count > rank:
            return digit, below
        below += count
    return BINS - 1, below


def key_of_rank(keys: Any, flip: Any, rank: int, bins: Any, team: Team) -> tuple[Any, int]:
    """Return the key of a rank in ascending order, 0 <= rank < length, and how many keys are below it."""
    parts = PARTS if len(keys) >= 64 * TILE and len(bins) == PARTS else 1
    prefix, below, left = np.uint64(0), 0, keys.itemsize * 8
    while left > 0:
        width = min(left, 11)
        team(count_digits(keys, flip, prefix, left, width, bins, parts), parts, 1)
        digit, less = find_digit(bins, parts, rank - below)
        below += less
        left -= width
        prefix = np.uint64(int(prefix) << width | digit)
    return prefix, below


def unsigned(keys: Any) -> tuple[Any, Any]:
    """Return keys as unsigned integers, and what turns their order into that of the keys."""
    flip = 1 << (keys.itemsize * 8 - 1) if keys.dtype.kind == "i" else 0
    return keys.view(f"u{keys.itemsize}"), np.uint64(flip)


# --- topk --------------------------------------------------------------------------------------------------


@kernel(*for_keys("void(K[::1], uint64, uint64, int64[::1]", "int64[::1])"))
def count_least(job: Any, begin: Any, end: Any) -> None:
    """Count the keys of each tile that are below the last one that is selected, and those that equal it."""
    keys, flip, last, below, equal = job[0]
    for tile in range(begin, end):
        less, same = 0, 0
        for bits in keys[tile * TILE : (tile + 1) * TILE]:
            less += (bits ^ flip) < last
            same += (bits ^ flip) == last
        below[tile + 1] = less
        equal[tile + 1] = same


@kernel(*for_keys("void(K[::1], uint64, uint64, int64[::1]", "int64[::1], int64, int64[::1])"))
def write_least(job: Any, begin: Any, end: Any) -> None:
    """Write the positions of each tile's selected keys to their places: so many `ties` with the last."""
    keys, flip, last, below, equal, ties, out = job[0]
    for tile in range(begin, end):
        tie = equal[tile]
        at, stop = below[tile] + min(tie, ties), below[tile + 1] + min(equal[tile + 1], ties)
        if at == stop:
            continue
        for base in range(tile * TILE, min(len(keys), (tile + 1) * TILE), 64):
            word = least(keys, flip, last, base)
            while word != 0:
                position = base + lowest(word)
                word &= word - np.uint64(1)
                same = keys[position] ^ flip == last
                if not same or tie < ties:
                    out[np.uint64(at)] = position
                    at += 1
                tie += same


@kernel(*for_keys("void(K[::1], uint64, uint64", "uint64[::1])"))
def mark_least(job: Any, begin: Any, end: Any) -> None:
    """Set the bits of the keys of each tile that are no greater than the last."""
    keys, flip, last, words = job[0]
    for word in range(begin * WORDS, min(end * WORDS, len(words))):
        words[word] = least(keys, flip, last, word * 64)


@kernel(*for_keys("void(K[::1], int64[::1]", "K[::1])"))
def take(job: Any, begin: Any, end: Any) -> None:
    """Copy the keys at positions."""
    keys, at, out = job[0]
    for j in range(begin * TILE, min(end * TILE, len(at))):
        out[j] = keys[at[j]]


@kernel(*for_keys("void(K[::1], uint64, int64, int64, int64", "int64[::1])"))
def least_of_blocks(job: Any, begin: Any, end: Any) -> None:
    """Write the ascending positions of the k smallest keys of each block, ties to the lower position."""
    keys, flip, bits, k, block, out = job[0]
    for b in range(begin, end):
        some = keys[b * block : (b + 1) * block]
        most = min(k, len(some))
        last = np.uint64(0)  # the key of rank most - 1, bit by bit
        for bit in range(bits - 1, -1, -1):
            middle = last | np.uint64((1 << bit) - 1)
            within = 0
            for key in some:
                within += (key ^ flip) <= middle
            if within < most:
                last |= np.uint64(1 << bit)
        ties = most
        for key in some:
            ties -= (key ^ flip) < last
        at, position = b * k, b * block
        for own in some:
            key = own ^ flip
            if key < last or (key == last and ties > 0):
                ties -= key == last
                out[np.uint64(at)] = position
                at += 1
            position += 1


def select_least(view: View, length: int, k: int, block: int, team: Team) -> int:
    """Select the positions of the k smallest `keys`, of all or of each block.

    `work`, and the vectors behind it, are memory.
    """
    k = min(max(k, 0), length)
    if k <= 0:
        return 0
    keys, flip = unsigned(view(0, length))
    if block:
        k, blocks = min(k, block), -(-length // block)
        out = view(1, (blocks - 1) * k + min(k, length - (blocks - 1) * block))
        team(least_of_blocks(keys, flip, keys.itemsize * 8, k, block, out), blocks, 4)
        return 0
    tiles, out = -(-length // TILE), view(1, k)
    work = view(2, PARTS * BINS + 2 * (tiles + 1))
    bins, sums = work[: PARTS * BINS].reshape(PARTS, BINS), work[PARTS * BINS :]
    found = find_near(view, keys, flip, k, bins, sums[: tiles + 1], team) if k < length // 16 else 0
    if not k <= found < length // 4:
        select_many(keys, flip, out, bins, sums, team)
        return 0
    at, near = view(4, found), unsigned(view(5, found))[0]
    team(take(keys, at, near), -(-found // TILE), 64)
    select_many(near, flip, out, bins, sums, team)
    out[:] = at[out]
    return 0


def find_near(view: View, keys: Any, flip: Any, k: int, bins: Any, first: Any, team: Team) -> int:
    """Find the positions of keys among which are the k smallest, if a sample does not deceive.

    Return how many they are: a quarter of all at most.
    """
    size = min(len(keys) // TILE, SAMPLE)
    share = k / len(keys) * size
    rank = int(share + 5 * share**0.5) + 8  # so many of the sample are least that k of all are
    if rank >= size:
        return 0
    sample = np.ascontiguousarray(keys[:: len(keys) // size][:size])
    last, _ = key_of_rank(sample, flip, rank, bins, team)
    words = view(3, -(-len(keys) // 64))
    team(mark_least(keys, flip, last, words), len(first) - 1, 64)
    return positions(words, first, len(keys) // 4, partial(view, 4), team)


def select_many(keys: Any, flip: Any, out: Any, bins: Any, sums: Any, team: Team) -> None:
    """Write the positions of the smallest keys, 0 < len(out) <= len(keys)."""
    tiles, k = -(-len(keys) // TILE), len(out)
    sums = sums[: 2 * (tiles + 1)].reshape(2, tiles + 1)
    last, less = key_of_rank(keys, flip, k - 1, bins, team)
    sums[:, 0] = 0
    team(count_least(keys, flip, last, sums[0], sums[1]), tiles, 64)
    np.cumsum(sums, axis=1, out=sums)
    team(write_least(keys, flip, last, sums[0], sums[1], k - less, out), tiles, 64)


# --- sort: stable, by digits of 8 bits; a few elements by insertion ----------------------------------------


@kernel(*for_keys("void(K[::1], uint64, V[::1], K[::1], V[::1]", "int64)", "uint32", "uint64"))
def arrange_blocks(job: Any, begin: Any, end: Any) -> None:
    """Sort the values of each block by their keys."""
    keys, flip, values, spare_keys, spare, size = job[0]
    first = digit_counts()
    for b in range(begin, end):
        k, v = keys[b * size : (b + 1) * size], values[b * size : (b + 1) * size]
        if len(k) <= FEW:
            for i in range(1, len(k)):
                key, value, at = k[i], v[i], i
                while at > 0 and (key ^ flip) < (k[at - 1] ^ flip):
                    k[at], v[at] = k[at - 1], v[at - 1]
                    at -= 1
                k[at], v[at] = key, value
            continue
        to_k, to_v = spare_keys[b * size : (b + 1) * size], spare[b * size : (b + 1) * size]
        for shift in range(0, keys.itemsize * 8, 8):  # an even number of times: they end in place
            for digit in range(256):
                first[digit] = 0
            for key in k:
                first[((key ^ flip) >> np.uint64(shift)) & np.uint64(255)] += 1
            total = 0
            for digit in range(256):
                count = first[digit]
                first[digit] = total
                total += count
            for i in range(len(k)):
                digit = ((k[i] ^ flip) >> np.uint64(shift)) & np.uint64(255)
                to = np.uint64(first[digit])
                first[digit] += 1
                to_k[to], to_v[to] = k[i], v[i]
            k, to_k = to_k, k
            v, to_v = to_v, v


def arrange(view: View, length: int, rank: int, block: int, team: Team) -> int:
    """Sort `values` by `keys`, all or each block, in their places; two `spare` vectors are memory."""
    del rank
    if length > 0:
        keys, flip = unsigned(view(0, length))
        spare_keys = unsigned(view(2, length))[0]
        values, spare = (x.view(f"u{x.itemsize}") for x in (view(1, length), view(3, length)))
        size = min(block, length) if block else length
        work = arrange_blocks(keys, flip, values, spare_keys, spare, size)
        team(work, -(-length // size), 4)
    return 0


@function(*for_keys("int64(K[::1], uint64", "uint64, int64)"))
def position_of(keys: Any, flip: Any, key: Any, before: Any) -> Any:
    """Return the position of a key that has so many equal ones before it."""
    at = 0
    for own in keys:
        if (own ^ flip) == key:
            if before == 0:
                break
            before -= 1
        at += 1
    return at


def nth(view: View, length: int, rank: int, block: int, team: Team) -> int:
    """Return the position of the element of a rank in the stable order of `keys`; `bins` are memory.

    If there is none, a position that is out of range.
    """
    del block
    if not 0 <= rank < length:
        return -1
    keys, flip = unsigned(view(0, length))
    key, below = key_of_rank(keys, flip, rank, view(1, BINS).reshape(1, BINS), team)
    return int(position_of(keys, flip, key, rank - below))
