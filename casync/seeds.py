"""Seeds of the codecs' random numbers, derived so that a run can be replayed (LANGUAGE: Random numbers).

`shared` is equal on all ranks, `private` differs by rank, role and hop: rounding noise is then independent.
"""

from __future__ import annotations

from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from casync.primitives import Role

MASK = 2**64 - 1


def splitmix64(state: int) -> int:
    """The output of one splitmix64 step from `state` (Steele, Lea, Flood 2014)."""
    z = (state + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def mix(*words: int) -> int:
    """Fold 64-bit words into one: h = splitmix64(h ^ word), from 0."""
    h = 0
    for word in words:
        h = splitmix64(h ^ (word & MASK))
    return h


@lru_cache(maxsize=65536)
def gradient_word(name: str) -> int:
    """The word that stands for a gradient: the first 8 bytes, little-endian, of BLAKE2b of its UTF-8 name."""
    return int.from_bytes(blake2b(name.encode()).digest()[:8], "little")


def shared_seed(run: int, step: int, gradient: str, partition: int) -> int:
    """The seed that all ranks share for one partition of one gradient in one step."""
    return mix(run, step, gradient_word(gradient), partition)


def private_seed(shared: int, rank: int, role: Role, hop: int) -> int:
    """The seed of one encode: `hop` is the place in the ring, 0 in `ps`."""
    return mix(shared, rank, role, hop)
