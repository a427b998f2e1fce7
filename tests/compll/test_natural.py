"""natural and dithering against references from their paper: levels, means, variances, odd inputs."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest
from compll_cases import gradient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))

import powers as reference

import compll

DITHERING = {bits: compll.compile("dithering", "interp", bits=bits) for bits in (1, 2, 3, 7)}
NATURAL = compll.compile("natural", "interp")
f32 = np.float32


def wide(n: int) -> np.ndarray:
    """Return elements of all exponents that are finite after rounding."""
    noise = np.random.default_rng(n)
    return (noise.standard_normal(n) * 2.0 ** noise.integers(-120, 120, n)).astype(f32)


@pytest.mark.parametrize("backend", ["interp", "cpp"])
@pytest.mark.parametrize("n", [0, 1, 7, 1000, 4097])
def test_natural_sends_one_of_the_two_powers_of_two_around_an_element(n: int, backend: str) -> None:
    codec = compll.compile("natural", backend)
    for g in (wide(n), gradient("normal", n), gradient("denormal", n), gradient("zeros", n)):
        payload = codec.encode(g, seed=n)
        assert len(payload) == codec.max_bytes(n) == -(-n // 16) * 16 + -(-n // 8)
        low, high, _ = reference.around(np.abs(g.astype(np.float64)), reference.natural_levels())
        out = codec.decode(payload, n).astype(np.float64)
        assert ((np.abs(out) == low) | (np.abs(out) == high)).all()
        assert ((np.sign(out) == np.sign(g)) | (out == 0)).all()
        exact = np.abs(g) == low
        assert (np.abs(out)[exact] == low[exact]).all()  # a power of two arrives as it is


@pytest.mark.parametrize(("bits", "backend"), [(1, "interp"), (3, "interp"), (7, "interp"), (3, "cpp")])
def test_dithering_sends_one_of_the_two_levels_around_an_element(bits: int, backend: str) -> None:
    codec = DITHERING[bits] if backend == "interp" else compll.compile("dithering", backend)
    s = 2**bits - 1
    for n in (0, 1, 511, 513, 3000):
        for g in (gradient("normal", n), gradient("constant", n), gradient("huge", n), wide(n)):
            out = codec.decode(codec.encode(g, seed=n), n).astype(np.float64)
            top = reference.tops(g, 512)
            share = np.divide(np.abs(g.astype(np.float64)), top, out=np.zeros(n), where=top > 0)
            low, high, _ = reference.around(share.astype(f32), reference.dithering_levels(s))
            near = [np.isclose(np.abs(out), level * top, rtol=1e-6, atol=2**-149) for level in (low, high)]
            assert (near[0] | near[1]).all()
            assert ((np.sign(out) == np.sign(g)) | (out == 0)).all()


def chi_square(codec: compll.Codec, g: np.ndarray, p: np.ndarray, gap: np.ndarray, draws: int) -> None:
    """Hold the mean of many decodings against the gradient.

    An element's decoding has variance p (1 - p) gap^2 with p the probability of its upper level.  The squared
    deviations of the means, each in units of its variance, sum to about a chi-square with as many degrees as
    elements; a right codec is 6 of its standard deviations away with a probability below 1e-8, and the mean
    deviation 6 of its own below 2e-9.  The seeds are fixed.
    """
    total = np.zeros(len(g))
    for seed in range(draws):
        total += codec.decode(codec.encode(g, seed=seed), len(g))
    counted = p * (1 - p) > 0.01
    z = ((total / draws - g) * np.sign(g))[counted] / (gap * np.sqrt(p * (1 - p) / draws))[counted]
    degrees = int(counted.sum())
    assert degrees > len(g) // 2
    assert abs(float((z**2).sum()) - degrees) < 6 * math.sqrt(2 * degrees)
    assert abs(float(z.mean())) < 6 / math.sqrt(degrees)


def test_natural_is_unbiased_also_below_the_least_normal_number() -> None:
    for g in (gradient("normal", 2000), gradient("denormal", 2000) * f32(5000)):
        low, high, p = reference.around(np.abs(g.astype(np.float64)), reference.natural_levels())
        chi_square(NATURAL, g, p, high - low, 300)


@pytest.mark.parametrize("bits", [1, 3])
def test_dithering_is_unbiased(bits: int) -> None:
    g = gradient("normal", 2048)
    top = reference.tops(g, 512)
    low, high, p = reference.around(np.abs(g) / top, reference.dithering_levels(2**bits - 1))
    chi_square(DITHERING[bits], g, p, (high - low) * top, 300)


def test_the_variance_of_natural_is_at_most_an_eighth_of_the_square() -> None:
    """At 4/3 of a power of two it is 1/8: err^2 / x^2 is 1/16 in two cases of three, else 1/4.

    The mean of 200,000 has a standard deviation of 2e-4; 6 of them come with a probability of 2e-9.
    """
    worst = np.full(200_000, 4 / 3, f32)
    out = NATURAL.decode(NATURAL.encode(worst, seed=3), len(worst))
    assert float(((out / worst.astype(np.float64) - 1) ** 2).mean()) == pytest.approx(
        reference.EIGHTH, abs=1.2e-3
    )
    g = wide(200_000)
    out = NATURAL.decode(NATURAL.encode(g, seed=4), len(g)).astype(np.float64)
    assert 0.05 < float(((out / g.astype(np.float64) - 1) ** 2).mean()) < reference.EIGHTH


@pytest.mark.parametrize("bits", [1, 2, 3])
def test_the_variance_of_dithering_is_within_the_paper_s_bound(bits: int) -> None:
    """The mean of 200 draws of 2048 elements is far closer to the variance than this is to its bound."""
    g = gradient("normal", 2048)
    square = float((g.astype(np.float64) ** 2).sum())
    errors = []
    for seed in range(200):
        out = DITHERING[bits].decode(DITHERING[bits].encode(g, seed=seed), len(g))
        errors.append(float(((out.astype(np.float64) - g) ** 2).sum()) / square)
    assert np.mean(errors) < reference.dithering_factor(512, 2**bits - 1)
    assert bits == 1 or np.mean(errors) < 3  # and no larger than a few squares


def test_beyond_the_greatest_power_comes_that_and_what_is_not_finite_touches_no_other() -> None:
    for seed in range(20):
        out = NATURAL.decode(NATURAL.encode(np.array([3.4e38, -3e38, 2.0**127], f32), seed=seed), 3)
        assert out.tolist() == [2.0**127, -(2.0**127), 2.0**127]
    g = gradient("normal", 100)
    g[[3, 50, 99]] = np.nan, np.inf, -np.inf
    out = NATURAL.decode(NATURAL.encode(g, seed=1), 100)
    assert np.flatnonzero(np.isnan(out)).tolist() == [3, 50, 99]
    h = gradient("normal", 3 * 512)
    h[600] = np.inf
    out = DITHERING[3].decode(DITHERING[3].encode(h, seed=1), len(h))
    assert not np.isfinite(out[512:1024]).any()
    assert np.isfinite(np.delete(out, slice(512, 1024))).all()
