"""Gradients on a GPU, on the late stand-in: the same bits as in host memory, without a wait of the host."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import late_cupy
import numpy as np
import pytest
from gpu_jobs import GPU, HOST, run_places
from loopback_jobs import random_steps, same_bits, spec_of

import compll

if TYPE_CHECKING:
    from types import ModuleType

    from loopback_jobs import Ran

SHAPES = {"w": (70, 50), "v": (40, 40), "b": (50,)}


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    import cupy_stand_in

    module = late_cupy.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    monkeypatch.setattr(cupy_stand_in.Gpu, "launch", lambda _, kernel, call: late_cupy.launch(kernel, call))
    return module


def assert_same(ran: list[Ran], meant: list[Ran]) -> None:
    for ours, theirs in zip(ran, meant, strict=True):
        assert ours.finite == theirs.finite
        for one, other in zip(ours.results, theirs.results, strict=True):
            assert one.keys() == other.keys()
            assert all(same_bits(one[name], other[name]) for name in one)
        entries = (ran.state["feedback"]["entries"] for ran in (ours, theirs))
        for one, other in zip(*entries, strict=True):
            assert {k: v for k, v in one.items() if k != "values"} == {
                k: v for k, v in other.items() if k != "values"
            }
            assert all(same_bits(one["values"][name], other["values"][name]) for name in other["values"])


def test_ps() -> None:
    rng = np.random.default_rng(1)
    steps = random_steps(rng, SHAPES, 2, 3)
    spec = spec_of(SHAPES, compll.compile("onebit"), "ps", 2)
    meant = run_places(spec, (HOST, HOST), steps)
    assert_same(run_places(spec, (GPU, GPU), steps), meant)
    assert_same(run_places(spec, (HOST, GPU), steps), meant)
