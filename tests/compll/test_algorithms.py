"""The shipped algorithms against references written from the papers: values, bounds, bias, odd inputs."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from compll_cases import LABELS, gradient, same_bits

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))

import onebit as onebit_reference
import tbq as tbq_reference
import terngrad as terngrad_reference

import compll

ONEBIT = {b: compll.compile("onebit", b) for b in ("interp", "cpp")}
TERNGRAD = {w: compll.compile("terngrad", "cpp", bitwidth=w) for w in (1, 2, 3, 4, 8)}
TBQ = compll.compile("tbq", "cpp")
f32 = np.float32


@pytest.mark.parametrize("n", [1, 2, 7, 8, 9, 127, 1000, 5000])
def test_onebit_is_the_paper_s_over_several_steps(n: int) -> None:
    codec = ONEBIT["cpp"]
    state, residual = codec.new_state(n), np.zeros(n, f32)
    for step in range(4):
        g = gradient("normal", n, seed=step)
        payload = codec.encode(g, state=state)
        up, down, signs = onebit_reference.parse(payload, n)
        want_up, want_down, want_signs = onebit_reference.encode(g, residual)
        assert (signs == want_signs).all()
        assert up == pytest.approx(want_up, rel=1e-5, abs=1e-7)
        assert down == pytest.approx(want_down, rel=1e-5, abs=1e-7)
        decoded = onebit_reference.decode(up, down, signs)
        assert same_bits(codec.decode(payload, n), decoded.astype(f32))
        residual = (g + residual) - decoded.astype(f32)
        assert same_bits(state["residual"], residual)


@pytest.mark.parametrize("bitwidth", TERNGRAD)
@pytest.mark.parametrize("n", [1, 2, 9, 1000, 4097])
def test_terngrad_s_levels_lie_beside_the_exact_value(bitwidth: int, n: int) -> None:
    codec, g = TERNGRAD[bitwidth], gradient("normal", n)
    payload = codec.encode(g, seed=n)
    width, low, gap, level = terngrad_reference.parse(payload, n)
    want_low, want_gap, lower = terngrad_reference.levels(g, bitwidth, np.full(n, 1.0))
    _, _, upper = terngrad_reference.levels(g, bitwidth, np.zeros(n))
    assert width == bitwidth
    assert low == want_low
    assert gap == pytest.approx(want_gap, rel=1e-6)
    assert (level >= lower - 1).all()
    assert (level <= upper + 1).all()
    assert np.mean((level == lower) | (level == upper)) > 0.999 or n < 1000
    decoded = codec.decode(payload, n)
    assert decoded == pytest.approx(terngrad_reference.decode(low, gap, level), rel=1e-5, abs=1e-6)
    assert np.abs(decoded - g).max() <= gap * (1 + 1e-5)


@pytest.mark.parametrize("bitwidth", [1, 2, 4])
def test_terngrad_is_unbiased(bitwidth: int) -> None:
    """The mean of 400 decodings of 2000 elements is the gradient.

    An element's decoding has variance p (1 - p) gap^2 with p the fraction between levels.  The squared
    deviations of the means, each in units of its variance, sum to about a chi-square of 2000 degrees; beyond
    6 of its standard deviations a right codec comes with a probability below 1e-8.  The seeds are fixed.
    """
    n, draws = 2000, 400
    codec, g = TERNGRAD[bitwidth], gradient("normal", n)
    _, low, gap, _ = terngrad_reference.parse(codec.encode(g, seed=0), n)
    total = np.zeros(n)
    for seed in range(draws):
        total += codec.decode(codec.encode(g, seed=seed), n)
    exact = (g.astype(np.float64) - low) / gap
    p = exact - np.floor(exact)
    wide = p * (1 - p) > 0.01
    z = (total / draws - g)[wide] / (gap * np.sqrt(p * (1 - p) / draws)[wide])
    degrees = int(wide.sum())
    assert degrees > n // 2
    assert (z**2).sum() < degrees + 6 * math.sqrt(2 * degrees)
    assert abs(z.mean()) < 6 / math.sqrt(degrees)
    assert np.abs(z).max() < 6.5


@pytest.mark.parametrize("threshold", [1e-30, 0.5, 1.5, 1e30])
@pytest.mark.parametrize("n", [0, 1, 7, 128, 1000, 1024, 4097])
def test_tbq_is_the_paper_s_over_several_steps(n: int, threshold: float) -> None:
    codec = TBQ.with_params(threshold=threshold)
    state, residual = codec.new_state(n), np.zeros(n, f32)
    for step, label in enumerate(("normal", "normal", *LABELS, "normal")):
        g = gradient(label, n, seed=step)
        payload = codec.encode(g, state=state)
        want, sent, residual = tbq_reference.step(g, residual, threshold)
        assert payload.tobytes() == want
        assert same_bits(codec.decode(payload, n), sent)
        assert same_bits(state["residual"], residual)


def test_tbq_sends_in_the_end_what_it_was_given() -> None:
    n, state, total, sent = 2000, TBQ.new_state(2000), np.zeros(2000), np.zeros(2000)
    for step in range(50):
        g = gradient("normal", n, seed=step) * f32(0.3)
        out = TBQ.decode(TBQ.encode(g, state=state), n)
        assert set(np.unique(out)) <= {-0.5, 0, 0.5}
        total, sent = total + g, sent + out
    assert np.abs(total - sent - state["residual"]).max() < 1e-5
    assert 0.5 < np.abs(sent).mean() < 2 * np.abs(total).mean()


def test_tbq_neither_sends_nor_keeps_what_is_not_finite() -> None:
    state, g = TBQ.new_state(4), np.array([np.nan, np.inf, -np.inf, 0.25], f32)
    (result,) = TBQ.batch("encode", [compll.Item(grad=g, state=state)])
    assert not result.finite
    assert TBQ.decode(result.value, 4).tolist() == [0, 0.5, -0.5, 0]
    assert state["residual"].tolist() == [0, 0, 0, 0.25]


def test_noise_differs_between_elements_and_seeds() -> None:
    g = np.resize(np.array([0, 0.5, 1], f32), 3000)
    _, _, _, level = terngrad_reference.parse(TERNGRAD[1].encode(g, seed=1), 3000)
    middle = level[1::3]
    assert 400 < middle.sum() < 600
    _, _, _, other = terngrad_reference.parse(TERNGRAD[1].encode(g, seed=2), 3000)
    assert 300 < (middle != other[1::3]).sum() < 700


def test_a_constant_gradient_is_exact() -> None:
    for value in (0.0, 0.1, -3e30, 1e-45):
        g = np.full(1000, value, f32)
        payload = TERNGRAD[2].encode(g, seed=1)
        assert same_bits(TERNGRAD[2].decode(payload, 1000), g)
        state = ONEBIT["cpp"].new_state(1000)
        out = ONEBIT["cpp"].decode(ONEBIT["cpp"].encode(g, state=state), 1000)
        np.testing.assert_allclose(out, g, rtol=1e-5)


@pytest.mark.parametrize("backend", ["interp", "cpp"])
def test_nan_and_infinity_do_what_wire_format_says(backend: str) -> None:
    """They spread: every decoded element may be NaN; the state stays finite, and the next step is sound."""
    onebit, terngrad = ONEBIT[backend], compll.compile("terngrad", backend)
    for bad in (np.nan, np.inf, -np.inf):
        g = gradient("normal", 1000)
        g[500] = bad
        state = onebit.new_state(1000)
        (result,) = onebit.batch("encode", [compll.Item(grad=g, state=state)])
        assert not result.finite
        assert np.isfinite(state["residual"]).all()
        assert not np.isfinite(onebit.decode(result.value, 1000)).all()
        clean = onebit.encode(gradient("normal", 1000), state=state)
        assert np.isfinite(onebit.decode(clean, 1000)).all()
        (result,) = terngrad.batch("encode", [compll.Item(grad=g, seed=1)])
        assert not result.finite
        assert not np.isfinite(terngrad.decode(result.value, 1000)).all()


def test_a_range_beyond_float_spreads_as_infinity_does() -> None:
    g = np.array([3e38, -3e38, 0], f32)
    payload = TERNGRAD[2].encode(g, seed=1)
    assert np.frombuffer(payload[8:12].tobytes(), f32)[0] == np.inf
    (result,) = TERNGRAD[2].batch("encode", [compll.Item(grad=g, seed=1)])
    assert result.finite  # the input was


def test_denormals_are_not_flushed() -> None:
    g = gradient("denormal", 1000)
    state = ONEBIT["cpp"].new_state(1000)
    up, down, _ = onebit_reference.parse(ONEBIT["cpp"].encode(g, state=state), 1000)
    assert up > 0 > down
    assert np.abs(TERNGRAD[8].decode(TERNGRAD[8].encode(g, seed=1), 1000)).max() > 0


def test_decode_add_adds_the_scaled_decoding() -> None:
    for codec in (*ONEBIT.values(), *TERNGRAD.values()):
        g = gradient("normal", 1500)
        payload = codec.encode(g, seed=1, state=codec.new_state(1500) or None)
        out = gradient("normal", 1500, seed=9)
        want = out + f32(0.3) * codec.decode(payload, 1500)
        assert codec.decode_add(payload, out, 0.3) is not None
        assert same_bits(out, want)


def test_sizes_are_what_the_wire_format_says() -> None:
    for n in (0, 1, 7, 8, 9, 1000):
        assert ONEBIT["cpp"].max_bytes(n) == 16 + -(-n // 8)
        for w, codec in TERNGRAD.items():
            assert codec.max_bytes(n) == 16 + -(-n * w // 8)
