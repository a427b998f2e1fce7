"""Every backend writes the same bits as the interpreter: shipped algorithms, own ones, generated ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from compll_cases import LABELS, compiled, encode, gradient, same_bits
from fuzz_expressions import generated
from test_language import FREE, KEYWORDS, LEVELS

import compll
from compll.tools import compare

SIZES = (0, 1, 15, 16, 17, 127, 129, 1023, 1024, 1025, 4096 * 3 + 5)


def pair(name: str, **params: Any) -> tuple[compll.Codec, compll.Codec]:
    if name in compll.algorithms():
        return compll.compile(name, "interp", **params), compll.compile(name, "cpp", **params)
    text = {"levels": LEVELS, "free": FREE, "keywords": KEYWORDS}[name]
    return compiled(text, "interp", **params), compiled(text, "cpp", **params)


def equal(a: compll.Codec, b: compll.Codec, label: str, n: int, threads: int, seed: int = 1) -> None:
    case = compare.case(a, label, n, seed)
    assert not case.error
    assert not compare.compare(b, [case], [threads]).differences


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("onebit", {}),
        *(("terngrad", {"bitwidth": w}) for w in (1, 2, 3, 8)),
        ("levels", {"bitwidth": 3}),
        ("free", {}),
        ("keywords", {}),
    ],
)
def test_codecs_are_bit_equal(name: str, params: dict[str, int], threads: int) -> None:
    a, b = pair(name, **params)
    for n in SIZES:
        for label in LABELS if n < 2000 else ("normal", "mixed"):
            equal(a, b, label, n, threads)


@pytest.mark.parametrize("name", ["onebit", "terngrad"])
def test_large_gradients_are_bit_equal_at_every_thread_count(name: str) -> None:
    a, b = pair(name)
    g = gradient("normal", 300_001)
    want = encode(a, g)
    for threads in (1, 2, 3, 4, 16):
        got = encode(b, g, threads=threads)
        assert same_bits(got[0], want[0])
        assert all(same_bits(got[1][k], want[1][k]) for k in want[1])


# --- generated programs ------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(24))
def test_generated_programs_are_bit_equal(seed: int) -> None:
    text = generated(seed)
    a, b = compiled(text, "interp"), compiled(text, "cpp")
    for n, label in (
        (0, "normal"),
        (1, "mixed"),
        (1100, "mixed"),
        (2500, "normal"),
        (300, "denormal"),
        (300, "huge"),
    ):
        equal(a, b, label, n, 2)
    other = [c.with_params(ratio=-2.5, whole=2**40) for c in (a, b)]
    equal(*other, "mixed", 1500, 1)


@pytest.mark.parametrize("offset", [1, 3])
def test_gradients_states_and_outputs_may_begin_anywhere(offset: int) -> None:
    a, b = pair("onebit")
    whole, memory = gradient("normal", 2500), gradient("normal", 2500, seed=2)
    states = [{"residual": memory.copy()[offset : offset + 2100]} for _ in range(2)]
    payloads = [c.encode(whole[offset : offset + 2100], state=s) for c, s in zip((a, b), states, strict=True)]
    assert same_bits(*payloads)
    assert same_bits(states[0]["residual"], states[1]["residual"])
    room = np.full(2500, 7, np.float32)
    b.decode(payloads[0], 2100, out=room[offset : offset + 2100])
    assert same_bits(room[offset : offset + 2100], a.decode(payloads[0], 2100))
    assert (room[:offset] == 7).all()
    assert (room[offset + 2100 :] == 7).all()


def test_the_thread_s_own_flags_are_set_aside_and_restored() -> None:
    a, b = pair("terngrad", bitwidth=8)
    g = gradient("denormal", 200_000)
    want = a.encode(g, seed=1)
    half = torch.tensor([1e-40])
    assert torch.set_flush_denormal(True)
    try:
        for threads in (1, 2):
            assert same_bits(b.encode(g, seed=1, threads=threads), want)
        assert (half * 0.5).item() == 0  # still flushed, as the thread had asked
    finally:
        torch.set_flush_denormal(False)


def test_a_read_outside_of_a_vector_is_an_error_only_if_something_depends_on_it() -> None:
    text = """
    void DeadEncode(float* gradient, uint8* compressed) {
        float dead = gradient[5];
        float live = gradient[1];
        compressed = concat(live);
    }
    void DeadDecode(uint8* compressed, float* gradient) {
        float live; extract(compressed, live);
        gradient = map(range(gradient.size), [&](int i) -> float { return live; });
    }
    """
    for backend in ("interp", "cpp"):
        codec = compiled(text, backend)
        assert codec.encode(np.arange(3, dtype=np.float32)).view(np.float32) == [1]
        with pytest.raises(IndexError, match="outside its range"):
            codec.encode(np.ones(1, np.float32))
