"""A batch is its items one by one, however they are spread over threads; a wrong item is named."""

from __future__ import annotations

import functools
import tracemalloc
from typing import Any, get_args

import numpy as np
import pytest
from compll_cases import gradient, same_bits

import compll
from compll import codec as api
from compll.errors import ParameterError, PayloadError

BACKENDS = ("interp", "cpp", "numba", "cudasim")
OPERATIONS = get_args(api.Operation)
# At two threads and more: a large one that all share, and enough small ones to be spread.
SIZES = (0, 300_000, 1, 1024, *range(20_000, 20_008), 129, *range(4096, 4104))


@functools.cache
def onebit(backend: str) -> compll.Codec:
    return compll.compile("onebit", backend)


@functools.cache
def given(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a gradient and a payload."""
    codec = onebit("cpp")
    return gradient("normal", n), codec.encode(gradient("normal", n, seed=2), state=codec.new_state(n))


def items(op: str, sizes: tuple[int, ...]) -> list[api.Item]:
    made = []
    for n in sizes:
        g, payload = given(n)
        state = {"residual": np.linspace(-0.5, 0.5, n, dtype=np.float32)}
        match op:
            case "encode":
                made.append(api.Item(grad=g, state=state))
            case "hop":
                made.append(api.Item(grad=g, state=state, payload=payload, scale=0.5))
            case _:
                made.append(api.Item(payload=payload, out=g.copy(), scale=0.5))
    return made


def same(a: api.Result, b: api.Result, x: api.Item, y: api.Item) -> bool:
    equal = same_bits(a.value, b.value) and a.finite == b.finite
    return equal and (x.state is None or same_bits(x.state["residual"], y.state["residual"]))  # type: ignore[index]


@pytest.mark.parametrize("op", OPERATIONS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_of_any_lengths_gives_what_single_calls_give(backend: str, op: api.Operation) -> None:
    sizes = SIZES if backend != "cudasim" else (*SIZES[2:6], *SIZES[-9:])
    single = items(op, sizes)
    want = [onebit("cpp").batch(op, [item], 1)[0] for item in single]
    for threads in (1, 2, 4) if backend in ("cpp", "numba") else (1,):
        together = items(op, sizes)
        got = onebit(backend).batch(op, together, threads)
        pairs = zip(got, want, together, single, strict=True)
        assert [n for n, four in zip(sizes, pairs, strict=True) if not same(*four)] == []
    assert onebit(backend).batch(op, []) == []


@pytest.mark.parametrize("op", OPERATIONS)
def test_after_the_first_call_nothing_is_allocated_that_grows_with_the_gradients(op: api.Operation) -> None:
    sizes = (2**18, *[2**15] * 4)
    codec, made = onebit("cpp"), items(op, sizes)
    if op in ("encode", "hop"):
        made = [
            api.Item(i.grad, np.empty(codec.max_bytes(len(i.grad)), np.uint8), i.payload, state=i.state)
            for i in made
        ]
    codec.batch(op, made, 2)
    tracemalloc.start()
    try:
        codec.batch(op, made, 2)
        assert tracemalloc.get_traced_memory()[1] < 30_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_item_that_is_wrong_is_named(backend: str) -> None:
    codec, three = compll.compile("terngrad", backend), compll.compile("terngrad", "cpp")
    g = gradient("normal", 100)
    payload = three.encode(g, seed=1)
    width = payload.copy()
    width[0] = 7
    for op in ("decode", "decode_add", "hop"):
        good = (
            api.Item(grad=g, seed=1, payload=payload)
            if op == "hop"
            else api.Item(payload=payload, out=g.copy())
        )
        for bad, words in (
            (good._replace(payload=payload[:-1]), "terngrad: the payload is truncated"),
            (good._replace(payload=width), "terngrad: the payload was made with bitwidth = 7"),
        ):
            with pytest.raises(PayloadError, match=f"item 2 of 4: {words}"):
                codec.batch(op, [good, good, bad, good])  # type: ignore[arg-type]
            with pytest.raises(PayloadError, match=f"^{words}"):
                codec.batch(op, [bad])  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match="item 1 of 2: terngrad needs seed="):
        codec.batch("encode", [api.Item(grad=g, seed=1), api.Item(grad=g)])


@pytest.mark.parametrize("name", ["topk", "graddrop"])
def test_items_that_select_do_so_in_scratch_of_their_own(name: str) -> None:
    codec = compll.compile(name, "cpp")
    grads = [gradient("normal", n) for n in (*range(9000, 9012), 200_000, 0, 1)]

    def encoded(threads: int) -> list[api.Result]:
        states = [codec.new_state(len(g)) or None for g in grads]
        batch = [api.Item(grad=g, seed=3, state=s) for g, s in zip(grads, states, strict=True)]
        return codec.batch("encode", batch, threads)

    want = encoded(1)
    for threads in (2, 4):
        assert all(same_bits(a.value, b.value) for a, b in zip(encoded(threads), want, strict=True))


def test_every_thread_of_a_batch_has_scratch_of_its_own() -> None:
    """One item needs what it needs alone; items that are spread need as much for each thread."""
    library: Any = onebit("cpp")._library.of()
    asked: list[int] = []
    scratch = library._scratch
    library._scratch = lambda size: asked.append(size) or scratch(size)
    try:
        for sizes, threads in (((20_000,), 4), ((20_000,) * 16, 1), ((20_000,) * 16, 2), ((20_000,) * 16, 4)):
            library.run(
                "encode",
                [onebit("cpp")._runner.first.encode(i)[0] for i in items("encode", sizes)],
                {},
                threads,
            )
    finally:
        del library._scratch
    assert asked[0] > 0
    assert asked == [asked[0], asked[0], 2 * asked[0], 4 * asked[0]]
