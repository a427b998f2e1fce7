"""efsignsgd, signsgd and blocksign against references from the papers: signs, scales, states, promises."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from compll_cases import LABELS, gradient, same_bits

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))

import signs as reference

import compll

SIZES = (0, 1, 7, 8, 255, 257, 1000, 4097)
BLOCK = 256
f32 = np.float32


def scales_of(name: str, n: int) -> int:
    return -(-n // BLOCK) if name == "blocksign" else 1


@pytest.mark.parametrize("backend", ["interp", "cpp"])
@pytest.mark.parametrize("name", ["efsignsgd", "blocksign"])
def test_signs_and_the_mean_size_are_sent_and_the_rest_is_kept(name: str, backend: str) -> None:
    codec = compll.compile(name, backend)
    for n in SIZES:
        state, residual = codec.new_state(n), np.zeros(n, f32)
        block = BLOCK if name == "blocksign" else max(n, 1)
        for step in range(4):
            g = gradient("normal", n, seed=step)
            x = g + residual
            payload = codec.encode(g, state=state)
            scale, signs = reference.parse(payload, n, scales_of(name, n))
            assert np.array_equal(signs, reference.signs(x))
            assert scale[: -(-n // block)] == pytest.approx(reference.mean_sizes(x, block), rel=1e-5)
            decoded = signs * np.repeat(scale, block)[:n]
            assert same_bits(codec.decode(payload, n), decoded)
            residual = x - decoded
            assert same_bits(state["residual"], residual)


@pytest.mark.parametrize("name", ["efsignsgd", "blocksign"])
def test_the_error_is_what_karimireddy_et_al_prove(name: str) -> None:
    """|x - C(x)|^2 = (1 - |x|_1^2 / (d |x|^2)) |x|^2 in each block: a contraction, so feedback converges."""
    codec, n = compll.compile(name, "interp"), 5000
    for label in ("normal", "constant"):
        g = gradient(label, n)
        out = codec.decode(codec.encode(g, state=codec.new_state(n)), n)
        block = BLOCK if name == "blocksign" else n
        for at in range(0, n, block):
            part = g[at : at + block].astype(np.float64)
            want = (part**2).sum() - np.abs(part).sum() ** 2 / len(part)
            error = ((part - out[at : at + block]) ** 2).sum()
            assert error == pytest.approx(want, rel=1e-4, abs=1e-9 * (part**2).sum())


@pytest.mark.parametrize("name", ["efsignsgd", "blocksign"])
def test_feedback_sends_in_the_end_what_it_was_given(name: str) -> None:
    codec, n = compll.compile(name, "interp"), 2000
    state, total, sent = codec.new_state(n), np.zeros(n), np.zeros(n)
    for step in range(40):
        g = gradient("normal", n, seed=step)
        sent += codec.decode(codec.encode(g, state=state), n)
        total += g
    assert np.abs(total - sent - state["residual"]).max() < 1e-4
    assert np.abs(state["residual"]).mean() < 0.7 * np.abs(total).mean()


def test_blocks_of_zeros_are_decoded_as_zeros_and_what_is_not_finite_stays_in_its_block() -> None:
    codec = compll.compile("blocksign", "interp")
    for value in (0, np.nan, np.inf, -np.inf):
        g = gradient("normal", 3 * BLOCK)
        g[BLOCK : 2 * BLOCK] = 0
        g[BLOCK + 5] = value
        state = codec.new_state(len(g))
        out = codec.decode(codec.encode(g, state=state), len(g))
        middle = out[BLOCK : 2 * BLOCK]
        assert (middle == 0).all() if value == 0 else not np.isfinite(middle).any()
        assert np.isfinite(np.delete(out, slice(BLOCK, 2 * BLOCK))).all()
        assert np.isfinite(state["residual"]).all()


@pytest.mark.parametrize("backend", ["interp", "cpp"])
def test_signsgd_sends_the_signs(backend: str) -> None:
    codec = compll.compile("signsgd", backend)
    for n in SIZES:
        for label in LABELS:
            g = gradient(label, n)
            payload = codec.encode(g)
            unit, signs = reference.parse(payload, n, 1)
            assert len(payload) == codec.max_bytes(n) == 16 + -(-n // 8)
            assert np.array_equal(signs, reference.signs(g))
            whole = np.isfinite(g).all()
            assert unit[0] == float(g.any()) if whole else np.isnan(unit[0])
            out = codec.decode(payload, n)
            assert np.array_equal(out, signs * unit[0], equal_nan=True)
    assert not codec.info.hop


def test_the_sum_of_signs_sent_again_is_the_majority_vote() -> None:
    codec, n = compll.compile("signsgd", "interp"), 3000
    for workers in (2, 3, 8):
        gradients = [gradient("normal", n, seed=w) for w in range(workers)]
        total = np.zeros(n, f32)
        for g in gradients:
            codec.decode_add(codec.encode(g), total)
        vote = codec.decode(codec.encode(total), n)
        assert np.array_equal(vote, reference.majority(gradients))
