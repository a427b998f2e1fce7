"""Scratch memory: at most n / 64 bytes and the bound of the payload, but for vectors that have to be kept."""

from __future__ import annotations

import functools

import pytest

import compll
from compll import driver, ir
from compll.backends.launches import ALIGNMENT, bytes_of
from compll.emit.cpp import Emitter
from compll.evaluate import host_int

N = 2**20
SELECTS = (ir.Compact, ir.Select, ir.Arrange, ir.Nth)
NEEDED = {"terngrad": {"bitwidth": 2}}


@functools.cache
def program(name: str) -> driver.Program:
    return driver.load(driver.find(name), NEEDED.get(name, {}))


def scratch_bytes(emitter: Emitter, values: dict[str, float]) -> int:
    """Return the bytes of an operation's buffers, as the C++ library gives them out."""
    total = 0
    for buffer in emitter.operation().buffers:
        if buffer.length is not None:
            size = max(0, host_int(buffer.length, N, values)) * bytes_of(buffer.type)
            total += -(-size // ALIGNMENT) * ALIGNMENT
    return total


def keeps_vectors(f: ir.Function) -> bool:
    """Whether a fused function sorts, selects, or stores a vector that is neither in nor out."""
    sinks = [s for b in f.body for s in (b.sinks if isinstance(b, ir.Pass) else (b,))]
    return any(
        isinstance(s, SELECTS) or (isinstance(s, ir.Store) and s.target.kind == "vector") for s in sinks
    )


@pytest.mark.parametrize("name", compll.algorithms())
def test_scratch_is_small_unless_vectors_are_kept(name: str) -> None:
    checked = program(name).checked
    values = dict(checked.values)
    most = N // 64 + compll.compile(name, "interp", **NEEDED.get(name, {})).max_bytes(N)
    for f in driver.unit_of(checked).functions:
        emitter = Emitter(f)
        assert keeps_vectors(emitter.f) or scratch_bytes(emitter, values) <= most, f.op


def test_codecs_of_a_fixed_rate_keep_no_vectors_but_these() -> None:
    fixed = [name for name in compll.algorithms() if program(name).info.exact_size]
    dense = [name for name in fixed if not program(name).info.sparse]
    assert len(dense) > 15
    keeping = {
        name
        for name in dense
        for f in driver.unit_of(program(name).checked).functions
        if scratch_bytes(Emitter(f), dict(program(name).checked.values)) > N // 64
    }
    assert keeping == {
        "hadamard4",  # each step of the rotation
        "nvfp4",  # the scales of its blocks, before a scale for all of them is known
        "randomk",  # the positions that are drawn
    }
