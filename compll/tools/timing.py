"""Times of functions that are called in turns, so that a disturbance hits all of them."""

from __future__ import annotations

import ctypes
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from compll.types import Array

SHORTEST = 1e-3  # seconds: what is faster is called several times a round
LEAST = 5  # rounds
WAKING = 3e-3  # seconds that a thread was seen to wait for a core
REST = 0.012  # seconds: libgomp's threads were at work for 7 ms after a call


@dataclass(frozen=True)
class Rounds:
    """Seconds of one call of each function in each round."""

    seconds: Mapping[str, Sequence[float]]

    def median(self, name: str) -> float:
        """Return the median seconds of a call."""
        return statistics.median(self.seconds[name])

    def ratio(self, above: str, below: str) -> float:
        """Return the median over the rounds of one function's time over that of another."""
        pairs = zip(self.seconds[above], self.seconds[below], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def with_least(self, name: str, *of: str) -> Rounds:
        """Add the least of some functions' times in each round, under a name."""
        least = [min(row) for row in zip(*(self.seconds[o] for o in of), strict=True)]
        return Rounds({**self.seconds, name: least})


def rounds(
    functions: Mapping[str, Callable[[], object]], budget: float, least: int = LEAST, *, rest: float = 0.0
) -> Rounds:
    """Call each function once a round for `budget` seconds, and for at least so many rounds.

    `rest`: seconds before each one's turn, in which the threads of others go to sleep: OpenMP's look for work
    for some milliseconds after a call, on a core that the next function may need.  What takes less than ten
    times as long as its own threads may take to wake is called for that long before, unmeasured.
    """
    repeats, wakes = {}, {}
    for name, function in functions.items():
        function()  # the first call touches memory and makes threads
        start = time.perf_counter()
        function()
        took = max(time.perf_counter() - start, 1e-9)
        repeats[name] = max(1, round(SHORTEST / took))
        wakes[name] = math.ceil(WAKING / took) if rest and took < 10 * WAKING else 0
    taken: dict[str, list[float]] = {name: [] for name in functions}
    begin = time.perf_counter()
    done = 0
    while done < least or time.perf_counter() - begin < budget:
        done += 1
        for name, function in functions.items():
            if rest:
                time.sleep(rest)
                for _ in range(wakes[name]):
                    function()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                function()
            taken[name].append((time.perf_counter() - start) / repeats[name])
    return Rounds(taken)


def copies(
    source: Array, target: Array, threads: int, pool: ThreadPoolExecutor
) -> dict[str, Callable[[], object]]:
    """Return ways to copy a vector: memcpy by one thread, and by as many as are asked for.

    Of a vector that fits in a cache the one thread is the faster one, since waking others costs more.
    """
    parts = list(zip(np.array_split(target, threads), np.array_split(source, threads), strict=True))

    def together() -> None:
        list(pool.map(lambda part: np.copyto(*part), parts))

    ways: dict[str, Callable[[], object]] = {"memcpy": lambda: np.copyto(target, source)}
    return ways if threads == 1 else {**ways, f"memcpy by {threads}": together}


def fill(target: Array, threads: int, pool: ThreadPoolExecutor) -> Callable[[], object]:
    """Return a way to write a vector and read nothing: memset by so many threads.

    With a byte other than 0: some processors clear memory many times faster than they write to it.
    """
    parts = [(part.ctypes.data, part.nbytes) for part in np.array_split(target, threads)]
    if threads == 1:
        return lambda: ctypes.memset(parts[0][0], 1, parts[0][1])
    return lambda: list(pool.map(lambda part: ctypes.memset(part[0], 1, part[1]), parts))
