"""identity, fp16 and bf16: the nearest number of the format, payloads that can be summed, odd inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from compll_cases import EDGES, LABELS, gradient, same_bits

import compll

SIZES = (0, 1, 7, 1000, 4097)
WIDTH = {"identity": 4, "fp16": 2, "bf16": 2}
EXACT = {"identity": 24, "fp16": 11, "bf16": 8}  # significant bits
f32 = np.float32


def cast(name: str, g: np.ndarray) -> np.ndarray:
    """Return the numbers of a format, by libraries that know it."""
    if name == "bf16":
        return torch.from_numpy(g.copy()).to(torch.bfloat16).view(torch.int16).numpy().view("<u2")
    with np.errstate(over="ignore"):
        return g.astype(np.float16 if name == "fp16" else f32)


def widened(name: str, numbers: np.ndarray) -> np.ndarray:
    if name == "bf16":
        return (numbers.astype(np.uint32) << 16).view(f32)
    return numbers.astype(f32)


@pytest.mark.parametrize("backend", ["interp", "cpp"])
@pytest.mark.parametrize("name", WIDTH)
def test_every_element_is_cast_to_the_nearest_number(name: str, backend: str) -> None:
    codec = compll.compile(name, backend)
    noise = np.random.default_rng(1)
    every = noise.integers(0, 2**32, 20_000, dtype=np.uint32).view(f32)
    gradients = [every, EDGES, *(gradient(label, n) for label in LABELS for n in SIZES)]
    for g in gradients:
        payload = codec.encode(g)
        numbers = cast(name, g)
        assert len(payload) == codec.max_bytes(len(g)) == WIDTH[name] * len(g)
        finite = ~np.isnan(g)
        assert np.array_equal(payload.view(numbers.dtype)[finite], numbers[finite])
        out = codec.decode(payload, len(g))
        assert np.array_equal(out[finite], widened(name, numbers)[finite])
        assert np.isnan(out[~finite]).all()


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_an_element_is_lost_by_half_a_unit_in_its_last_place(name: str) -> None:
    codec, g = compll.compile(name, "interp"), gradient("normal", 10_000)
    g = g[np.abs(g) > 2**-14]  # above fp16's denormal numbers
    lost = np.abs(codec.decode(codec.encode(g), len(g)).astype(np.float64) / g - 1)
    assert 2.0 ** -(EXACT[name] + 1) < lost.max() <= 2.0 ** -EXACT[name]


def test_the_headers_tell_the_ends_of_the_ranges() -> None:
    fp16, bf16 = (compll.compile(name, "interp") for name in ("fp16", "bf16"))
    g = np.array([65519, 65520, 2**-25, 2**-25 * 1.01, -65520], f32)
    assert fp16.decode(fp16.encode(g), 5).tolist() == [65504, np.inf, 0, 2**-24, -np.inf]
    g = np.array([3.395e38, 3.4e38, 1e-40], f32)
    out = bf16.decode(bf16.encode(g), 3)
    assert out[0] < 3.4e38
    assert out[1] == np.inf
    assert out[2] > 0


@pytest.mark.parametrize("name", WIDTH)
def test_payloads_can_be_summed(name: str) -> None:
    """In the format's own arithmetic: the sum's payload, up to the rounding of that addition."""
    codec, n = compll.compile(name, "interp"), 3000
    assert codec.info.summable
    a, b = gradient("normal", n), gradient("normal", n, seed=2)
    one, two = codec.encode(a), codec.encode(b)
    kind = {"identity": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[name]
    summed = torch.from_numpy(one.copy()).view(kind) + torch.from_numpy(two.copy()).view(kind)
    out = codec.decode(summed.view(torch.uint8).numpy(), n)
    want = codec.decode(one, n) + codec.decode(two, n)
    assert np.abs(out - want).max() <= 2.0 ** -EXACT[name] * np.abs(want).max()
    if name == "identity":
        assert same_bits(codec.hop(one, b), summed.view(torch.uint8).numpy())
