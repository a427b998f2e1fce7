"""How many launches an operation takes on a GPU, for every shipped codec: what docs/design.md promises."""

from __future__ import annotations

import functools
import math

import pytest

import compll
from compll import codec as api
from compll import driver, ir
from compll.backends import Unit
from compll.emit import cuda
from compll.passes import fuse

NAMES = tuple(compll.algorithms())
DIGIT, SORT_DIGIT = 11, 8  # bits of a key that a round looks at: of a rank, and of a sort


@functools.cache
def unit(name: str) -> Unit:
    return driver.unit_of(driver.load(api.find(name), {}).checked)


def rounds(b: ir.Binding) -> int:
    """Return the launches that a selection takes: it counts, and writes what it then knows the place of."""
    match b:
        case ir.Compact():
            return 2
        case ir.Select(_, keys, _, _, _, block):
            return 1 if block else math.ceil(keys.type.bits / DIGIT) + 2
        case ir.Nth(_, keys, _, _, _):
            return math.ceil(keys.type.bits / DIGIT) + 1
        case ir.Arrange(_, keys, _, _, block):
            return 1 if block else 2 * (keys.type.bits // SORT_DIGIT)
        case ir.Ascends():
            return 1
    return 0


def made_by(b: ir.Binding) -> set[str]:
    """Return the names of what is known only when a binding has gone over its elements."""
    match b:
        case ir.Pass(_, sinks, _):
            return {s.name for s in sinks if isinstance(s, ir.Reduce)}
        case ir.Compact(name, count):
            return {name, count}
        case ir.Select() | ir.Nth() | ir.Arrange():
            return {b.name}
    return set()


def chain(f: ir.Function) -> int:
    """Return how many global reductions and selections follow from one another at most."""
    depth: dict[str, int] = {}
    longest = 0
    for b in f.body:
        parts = b.sinks if isinstance(b, ir.Pass) else (b,)
        read = {
            getattr(x, "vector", getattr(x, "name", ""))
            for part in parts
            for e in ir.expressions(part)
            for x in ir.walk(e)
        }
        own = max((depth.get(name, 0) for name in read), default=0)
        names = {getattr(b, "name", "")} | {s.target.name for s in parts if isinstance(s, ir.Store)}
        depth |= dict.fromkeys(names, own)
        if made := made_by(b):
            depth |= dict.fromkeys(made, own + 1)
            longest = max(longest, own + 1)
        if isinstance(b, ir.Ascends):
            longest = max(longest, own + 1)  # what is scattered goes to its places after all else
    return longest


@pytest.mark.parametrize("name", NAMES)
def test_passes_over_the_gradient_are_at_most_one_more_than_the_longest_chain(name: str) -> None:
    made = cuda.generate(unit(name)).counts
    for typed in unit(name).functions:
        fused = fuse(typed, without=cuda.CUDA.without)
        passes = [b for b in fused.body if isinstance(b, ir.Pass)]
        over_gradient = [b for b in passes if b.length == ir.Size()]
        assert len(over_gradient) <= 1 + chain(fused), fused.op
        checks = [b for b in fused.body if isinstance(b, ir.Ascends)]
        selections = sum(map(rounds, fused.body)) - max(0, len(checks) - 1)  # checks that meet are one launch
        assert made[fused.op][1] == len(passes) + selections, fused.op


@pytest.mark.parametrize("name", ["fp8", "int4", "int8", "mxfp4", "qsgd", "tbq"])
def test_codecs_by_block_or_element_go_over_the_gradient_once(name: str) -> None:
    """And begin by a launch over the items."""
    assert set(cuda.generate(unit(name)).counts.values()) == {(2, 1)}
