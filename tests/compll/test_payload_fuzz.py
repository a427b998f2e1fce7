"""Damaged and random payloads: each is decoded to n floats or refused, and no byte outside is touched."""

from __future__ import annotations

import functools
import re

import numpy as np
import payload_driver
import pytest
from compll_cases import encode, gradient, light, once

import compll
from compll.types import Array

ALGORITHMS = tuple(compll.algorithms())
CANARY = 0xA5
ROOM = 64  # guarded bytes on both sides of a buffer
KINDS = (
    "valid",
    "random",
    "random after 16",
    "random length",
    "truncated",
    "extended",
    "flipped",
    "head",
    "word",
)
INPUTS = {"interp": 2_000, "cpp": 10_000, "numba": 1_000, "cudasim": 300}
PAIRS = [(name, backend) for name in ALGORITHMS for backend in INPUTS]
MANY = 10_000
COMPARED = 20  # of so many inputs one is also given to the interpreter
HOPPED = 7  # of so many inputs one is also the payload of a hop


@functools.cache
def codec(name: str, backend: str) -> compll.Codec:
    return compll.compile(name, backend)


def damaged(kind: str, right: Array, n: int, rng: np.random.Generator) -> Array:
    """Return a payload of one kind, made from one that is right for n elements."""
    size = len(right)
    match kind:
        case "random":
            return rng.integers(0, 256, size, dtype=np.uint8)
        case "random after 16":
            return np.concatenate([right[:16], rng.integers(0, 256, max(size - 16, 0), dtype=np.uint8)])
        case "random length":
            return rng.integers(0, 256, int(rng.integers(0, 2 * size + 40)), dtype=np.uint8)
        case "truncated":
            return right[: int(rng.integers(0, max(size, 1)))].copy()
        case "extended":
            return np.concatenate([right, rng.integers(0, 256, int(rng.integers(1, 40)), dtype=np.uint8)])
    changed = right.copy()
    if kind == "flipped" and size:
        changed[rng.integers(0, size, 3)] ^= np.left_shift(1, rng.integers(0, 8, 3)).astype(np.uint8)
    if kind in ("head", "word") and size >= 4:  # a number that decides how much, or where
        at = 4 * int(rng.integers(0, min(size // 4, 4) if kind == "head" else size // 4))
        edges = [0, 1, n - 1, n, n + 1, 2**31 - 1, 2**31, 2**32 - 1, int(rng.integers(0, 2 * n + 2))]
        value = edges[int(rng.integers(0, len(edges)))]
        changed[at : at + 4].view("<u4")[0] = value % 2**32
    return changed


def guarded(size: int, align: int) -> tuple[Array, Array]:
    """Return a buffer of so many bytes inside one that is filled with canaries, and that one."""
    whole = np.full(size + 2 * ROOM + align, CANARY, np.uint8)
    start = ROOM + (-(whole.ctypes.data + ROOM)) % align
    return whole[start : start + size], whole


def outside(part: Array, whole: Array) -> Array:
    start = part.ctypes.data - whole.ctypes.data
    return np.concatenate([whole[:start], whole[start + part.nbytes :]])


def decoded(tried: compll.Codec, payload: Array, out: Array, *, adds: bool) -> bytes | None:
    """Decode to a buffer and return what it holds then; None if the payload is refused."""
    item = compll.Item(payload=payload, out=out.view(np.float32), scale=0.5, shared_seed=7)
    try:
        (result,) = tried.batch("decode_add" if adds else "decode", [item], 1)
    except compll.PayloadError as e:
        assert str(e).startswith(f"{tried.info.name}: ")
        return None
    assert result.value.shape == (len(out) // 4,)
    return out.tobytes()


def hops(tried: compll.Codec, payload: Array, n: int) -> bool:
    """Whether a hop takes a payload; it must write one of its own then."""
    state = tried.new_state(n) or None
    try:
        passed = tried.hop(payload, gradient("normal", n), seed=1, shared_seed=7, state=state)
    except compll.PayloadError as e:
        assert str(e).startswith(f"{tried.info.name}: ")
        return False
    assert len(passed) <= tried.max_bytes(n)
    return True


@pytest.mark.parametrize(
    ("name", "backend"),
    [pytest.param(*pair, marks=[pytest.mark.slow] if light(*pair) else []) for pair in PAIRS],
)
def test_any_payload_is_decoded_or_refused_and_stays_in_its_buffers(name: str, backend: str) -> None:
    try_payloads(name, backend, INPUTS[backend])


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "backend"), PAIRS)
def test_many_payloads_are_decoded_or_refused_and_stay_in_their_buffers(name: str, backend: str) -> None:
    try_payloads(name, backend, MANY)


def try_payloads(name: str, backend: str, inputs: int) -> None:
    tried = codec(name, backend)
    rng = np.random.default_rng(0)
    outcomes = {kind: [0, 0] for kind in KINDS}
    right, n = np.empty(0, np.uint8), 0
    for number in range(inputs):
        if number % 45 == 0:
            n = int(rng.choice([0, 1, 7, 33, int(rng.integers(0, 300)), 1030]))
            right = encode(codec(name, "cpp"), gradient("normal", n, number), shared_seed=7)[0]
        kind = KINDS[number % len(KINDS)]
        changed = damaged(kind, right, n, rng)
        payload, around = guarded(len(changed), 16)
        payload[:] = changed
        out, beside = guarded(4 * n, 4)
        answer = decoded(tried, payload, out, adds=number % 4 == 0)
        outcomes[kind][answer is None] += 1
        if tried.info.hop and number % HOPPED == 0:
            assert hops(tried, payload, n) == (answer is not None)
        if backend != "interp" and number % COMPARED == 0:
            again = np.full(4 * n, CANARY, np.uint8)
            assert answer == decoded(codec(name, "interp"), payload, again, adds=number % 4 == 0)
        assert (payload == changed).all()
        assert (outside(payload, around) == CANARY).all()
        assert (outside(out, beside) == CANARY).all()
    assert outcomes["valid"][1] == 0
    assert outcomes["extended"][0] == 0
    assert outcomes["truncated"][1] > 0


# --- the C ABI, under the sanitizers -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "element"),
    [
        *(pytest.param(*p.values, "float", marks=p.marks) for p in once(ALGORITHMS)),
        *(("onebit", "half"), ("graddrop", "bfloat16")),
    ],
)
def test_the_c_abi_touches_no_byte_outside_of_its_buffers(name: str, element: str) -> None:
    result = payload_driver.run(*payload_driver.build(name, "-O0", element=element), 10_000)
    assert not result.wrong, result.wrong
    assert result.inputs >= 10_000
    assert result.counts["valid"][1] == 0
    assert result.counts["extended"][0] == 0
    assert result.counts["truncated"][1] > 0


def one_beyond(source: str) -> str:
    """Return a library whose decoders write one element beyond the end."""
    begin = "k.gradient = static_cast<Gradient*>(item.gradient)"
    assert begin in source
    head, decode, rest = source.partition("\nint32_t decode(")
    return head + decode + rest.replace(begin, begin + " + 1")


def test_the_driver_sees_a_decoder_that_writes_beyond_its_output() -> None:
    result = payload_driver.run(*payload_driver.build("onebit", "-O0", one_beyond), 1000)
    assert "AddressSanitizer: heap-buffer-overflow" in result.wrong
    assert re.search(r"in group \d+, input 0$", result.wrong.strip())


def unchecked(source: str) -> str:
    """Return a library that does not look at the length of a payload."""
    changed = re.sub(r"item\.(source_)?length != \w+\.end", "false", source)
    assert changed != source
    return changed


def test_the_driver_sees_a_decoder_that_reads_a_payload_which_is_too_short() -> None:
    result = payload_driver.run(*payload_driver.build("onebit", "-O0", unchecked), 1000)
    assert "AddressSanitizer: heap-buffer-overflow" in result.wrong
    assert "READ of size" in result.wrong
