"""Every environment variable that CompLL reads, typed, in one place."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import platformdirs

from compll.errors import BackendError


def cache_dir() -> Path:
    """`COMPLL_CACHE`: the folder for built libraries; by default the user's cache folder."""
    value = os.environ.get("COMPLL_CACHE", "")
    return Path(value) if value else Path(platformdirs.user_cache_dir("compll"))


def compiler() -> str:
    """`COMPLL_CXX`: the C++ compiler of the `cpp` backend; by default `CXX`, else `g++`."""
    return os.environ.get("COMPLL_CXX") or os.environ.get("CXX") or "g++"


def march() -> str:
    """`COMPLL_MARCH`: the processor that `cpp` compiles for, as in `-march`; by default `native`."""
    return os.environ.get("COMPLL_MARCH") or "native"


@functools.cache
def threads() -> int:
    """`COMPLL_THREADS`: threads of one call when the caller names none; by default the usable cores.

    As OpenMP does with its variables, a process reads it once: that takes longer than a small kernel.

    Raises:
        BackendError: the variable is no positive integer.

    """
    value = os.environ.get("COMPLL_THREADS", "")
    if not value:
        return len(os.sched_getaffinity(0))
    if not value.isdecimal() or int(value) < 1:
        raise BackendError(f"COMPLL_THREADS is '{value}'; it must be a positive integer, such as 2")
    return int(value)


os.register_at_fork(after_in_child=threads.cache_clear)  # a launcher may give it other cores


def backend() -> str:
    """`COMPLL_BACKEND`: what `backend="auto"` takes: `auto` (the default) or a backend's name."""
    return os.environ.get("COMPLL_BACKEND") or "auto"
