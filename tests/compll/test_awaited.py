"""`codec.awaited`: what calls on a GPU have left there, for who copies it to the host himself."""

from __future__ import annotations

import sys

import cupy_stand_in
import numpy as np
import pytest
from compll_cases import gradient, same_bits
from cupy_stand_in import GPU, of

import compll

SIZES = (3001, 1500)


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in.module())


def room(nbytes: int) -> cupy_stand_in.ndarray:
    return of(np.zeros(nbytes, np.uint8))


def plain(record: cupy_stand_in.ndarray) -> np.ndarray:
    """A copy that nobody counts."""
    return np.array(record.view(np.ndarray))


def test_results_of_several_calls_are_told_by_copies_of_the_records_without_a_wait() -> None:
    codec, host = compll.compile("dgc", "cuda"), compll.compile("dgc", "interp")
    grads = [gradient("normal", n) for n in SIZES]
    grads[1][7] = np.inf
    items = [
        compll.Item(grad=of(g), out=room(codec.max_bytes(len(g))), seed=7, state=codec.new_state(len(g)))
        for g in grads
    ]
    outs = [result.value for result in codec.batch("encode", items)]
    more = codec.encode(
        of(grads[0]), seed=8, state=codec.new_state(SIZES[0]), out=room(codec.max_bytes(SIZES[0]))
    )
    awaited = codec.awaited([outs[1], more, outs[0]])
    assert [record.dtype for record in awaited.records] == [np.uint8] * 2  # a batch, and a call
    results = awaited.results([plain(record) for record in awaited.records])
    assert GPU.counts["download"] == 0
    meant = [host.encode(g, seed=7, state=host.new_state(len(g))) for g in grads]
    meant.insert(1, host.encode(grads[0], seed=8, state=host.new_state(SIZES[0])))
    for result, want in zip(results, (meant[2], meant[1], meant[0]), strict=True):
        assert same_bits(result.value.get(), want)
    assert [result.finite for result in results] == [False, True, True]


def test_a_refused_payload_is_raised_when_its_record_is_read() -> None:
    codec = compll.compile("dgc", "cuda")
    payload = codec.encode(of(gradient("normal", SIZES[0])), seed=7, state=codec.new_state(SIZES[0]))
    payload[:4] = 255
    out = codec.decode(payload, SIZES[0], wait=False)
    awaited = codec.awaited([out])
    with pytest.raises(compll.PayloadError, match="the payload of this decode is none of 3001 elements"):
        awaited.results([plain(record) for record in awaited.records])


def test_what_no_call_has_returned_is_refused() -> None:
    codec = compll.compile("onebit", "cuda")
    with pytest.raises(
        compll.ParameterError, match="an array that no call of this codec on a GPU has returned"
    ):
        codec.awaited([room(8)])
