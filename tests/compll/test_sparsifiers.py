"""The sparsifiers against references from the papers: bytes, states, promises."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from compll_cases import LABELS, gradient, same_bits

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))

import sparse as reference

import compll

SIZES = (0, 1, 7, 128, 1000, 1024, 4097, 20_000)
NAMES = ("topk", "randomk", "graddrop", "dgc", "sidco", "threshold", "adacomp")
CODEC = {name: compll.compile(name, "interp") for name in NAMES}
SIDCO = {stages: compll.compile("sidco", "interp", stages=stages) for stages in (1, 2, 3)}
f32 = np.float32


def indices(payload: np.ndarray, *, counted: bool = True) -> np.ndarray:
    """Read the positions of a sparse payload."""
    start, count = (16, int.from_bytes(payload[:4].tobytes(), "little")) if counted else (0, 0)
    return payload[start : start + 4 * count].view("<u4").astype(np.int64)


def laplace(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng([seed, n]).laplace(0, 0.01, n).astype(f32)


@pytest.mark.parametrize("ratio", [1e-6, 0.01, 0.3, 1])
@pytest.mark.parametrize("n", SIZES)
def test_topk_sends_the_greatest_and_what_they_are(n: int, ratio: float) -> None:
    codec = CODEC["topk"].with_params(ratio=ratio)
    for label in LABELS:
        g = gradient(label, n)
        index = reference.topk(g, ratio)
        payload = codec.encode(g)
        assert payload.tobytes() == reference.layout.pair(index, g[index], counted=False), label
        assert len(payload) == codec.max_bytes(n)
        want = reference.decoded(n, index, g[index])
        assert np.array_equal(codec.decode(payload, n), want, equal_nan=True)
        if np.isfinite(g).all() and n:
            assert np.abs(g[index]).min() >= np.abs(np.delete(g, index)).max(initial=0)


@pytest.mark.parametrize("ratio", [1e-6, 0.01, 0.3, 1])
@pytest.mark.parametrize("n", SIZES)
def test_randomk_sends_what_the_shared_seed_draws_and_no_index(n: int, ratio: float) -> None:
    codec = CODEC["randomk"].with_params(ratio=ratio)
    for label in LABELS:
        g = gradient(label, n)
        want, index = reference.randomk(g, ratio, 2**40 + 3)
        payload = codec.encode(g, shared_seed=2**40 + 3)
        assert payload.tobytes() == want
        assert len(index) == reference.ceil_of(ratio, n)
        out = codec.decode(payload, n, shared_seed=2**40 + 3)
        assert np.array_equal(out, reference.decoded(n, index, g[index]), equal_nan=True)


@pytest.mark.parametrize("n", SIZES)
def test_graddrop_is_the_paper_s_over_several_steps(n: int) -> None:
    for drop, sampling in ((0.99, 0.001), (0.9, 0.5), (0, 0), (0.999999, 1)):
        codec = CODEC["graddrop"].with_params(drop=drop, sampling=sampling)
        state, residual = codec.new_state(n), np.zeros(n, f32)
        for step, label in enumerate(("normal", "normal", *LABELS, "normal")):
            g = gradient(label, n, seed=step)
            payload = codec.encode(g, seed=step, state=state)
            want, index, residual = reference.graddrop(g, residual, drop, sampling, step)
            assert payload.tobytes() == want, (drop, step)
            assert same_bits(state["residual"], residual)
            assert np.array_equal(np.flatnonzero(codec.decode(payload, n)), index)


@pytest.mark.parametrize("n", SIZES)
def test_dgc_is_the_paper_s_over_several_steps(n: int) -> None:
    for params in (
        {"ratio": 0.001, "momentum": 0.9, "sampling": 0.001},
        {"ratio": 0.25, "momentum": 0.5, "sampling": 0.5},
        {"ratio": 1, "momentum": 0, "sampling": 0},
        {"ratio": 1e-6, "momentum": 1, "sampling": 1},
    ):
        codec = CODEC["dgc"].with_params(**params)
        state, u, v = codec.new_state(n), np.zeros(n, f32), np.zeros(n, f32)
        for step, label in enumerate(("normal", "normal", *LABELS, "normal")):
            g = gradient(label, n, seed=step)
            payload = codec.encode(g, seed=step, state=state)
            want, index, u, v = reference.dgc(g, u, v, seed=step, **params)
            assert payload.tobytes() == want, (params, step)
            assert same_bits(state["u"], u)
            assert same_bits(state["v"], v)
            assert (state["u"][index] == 0).all()  # momentum factor masking
            assert (state["v"][index] == 0).all()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("stages", SIDCO)
def test_sidco_sends_what_lies_beyond_the_fitted_threshold(stages: int, n: int) -> None:
    for ratio in (0.001, 0.01, 0.4, 1):
        codec = SIDCO[stages].with_params(ratio=ratio)
        for g in (laplace(n), gradient("normal", n), gradient("constant", n), gradient("zeros", n)):
            threshold = min(
                reference.sidco_threshold(g, ratio, stages), float(np.abs(g).max(initial=0)) * (1 - 1e-5)
            )
            surely = reference.beyond(g, threshold * (1 + 1e-5), n)
            perhaps = reference.beyond(g, threshold * (1 - 1e-5), n)
            limit = 2 * reference.ceil_of(ratio, n)
            payload = codec.encode(g)
            sent = indices(payload)
            assert payload.tobytes() == reference.layout.pair(sent, g[sent], counted=True)
            assert np.isin(sent, perhaps).all()
            assert np.isin(surely[:limit], sent).all() or len(sent) == limit
            assert len(sent) <= limit
            assert len(sent) > 0 or not g.any()
            assert np.array_equal(codec.decode(payload, n), reference.decoded(n, sent, g[sent]))


@pytest.mark.parametrize("backend", ["interp", "cpp"])
@pytest.mark.parametrize("n", SIZES)
def test_threshold_is_the_paper_s_over_several_steps(n: int, backend: str) -> None:
    for value in (0.01, 2.0, 1e30, 1e-30):
        codec = compll.compile("threshold", backend).with_params(threshold=value)
        state, residual = codec.new_state(n), np.zeros(n, f32)
        for step, label in enumerate(("normal", "normal", *LABELS, "normal")):
            g = gradient(label, n, seed=step)
            payload = codec.encode(g, state=state)
            want, index, residual = reference.threshold(g, residual, value)
            assert payload.tobytes() == want, (value, step)
            assert same_bits(state["residual"], residual)
            assert np.array_equal(np.flatnonzero(codec.decode(payload, n)), index)


@pytest.mark.parametrize("backend", ["interp", "cpp"])
@pytest.mark.parametrize("n", SIZES)
def test_adacomp_is_the_paper_s_over_several_steps(n: int, backend: str) -> None:
    codec = compll.compile("adacomp", backend)
    state, residual = codec.new_state(n), np.zeros(n, f32)
    for step, label in enumerate(("normal", "normal", *LABELS, "normal")):
        g = gradient(label, n, seed=step)
        payload = codec.encode(g, state=state)
        scale, index, negative = reference.adacomp(g, residual, 512)
        sent = payload[4:8].view("<f4")[0]
        assert sent == pytest.approx(scale, rel=1e-5, abs=n * 2**-149)
        assert int(payload[:4].view("<u4")[0]) == len(index)
        fields = [index.astype("<u4").tobytes(), np.packbits(negative, bitorder="little").tobytes()]
        assert payload.tobytes() == reference.layout.assemble([payload[:8].tobytes(), *fields])
        out = reference.decoded(n, index, np.where(negative, -sent, sent))
        assert same_bits(codec.decode(payload, n), out)
        with np.errstate(all="ignore"):
            residual = reference.finite((g + residual) - out)
        assert same_bits(state["residual"], residual)


# --- what the papers promise ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["graddrop", "dgc"])
def test_about_the_wanted_share_is_sent(name: str) -> None:
    """A quarter around the share is the standard deviation of a threshold from 16 samples beyond it."""
    n, share = 50_000, 0.02
    codec = CODEC[name].with_params(**({"drop": 1 - share} if name == "graddrop" else {"ratio": share}))
    state, counts = codec.new_state(n), []
    for step in range(10):
        payload = codec.encode(gradient("normal", n, seed=step), seed=step, state=state)
        counts.append(len(indices(payload)) / n)
        assert len(payload) <= codec.max_bytes(n) < 4 * n
    assert share / 2 < np.mean(counts) < share * 1.5
    assert max(counts) <= 2 * share * (1 + 1e-3)


def test_adacomp_s_share_falls_as_residues_grow_and_no_more_is_kept_than_it_will_send() -> None:
    """Of 512 normal elements some 13 % reach half of the greatest; residues make fewer stand out."""
    n, codec = 50_000, CODEC["adacomp"]
    state, shares, total, sent = codec.new_state(n), [], np.zeros(n), np.zeros(n)
    for step in range(30):
        g = gradient("normal", n, seed=step)
        payload = codec.encode(g, state=state)
        shares.append(int.from_bytes(payload[:4].tobytes(), "little") / n)
        total, sent = total + g, sent + codec.decode(payload, n)
    assert 0.1 < shares[0] < 0.16
    assert 0.002 < np.mean(shares[-5:]) < shares[0] / 2
    assert np.abs(total - sent - state["residual"]).max() < 1e-4


@pytest.mark.parametrize("stages", SIDCO)
def test_sidco_s_share_is_right_on_an_exponential_gradient_after_any_number_of_stages(stages: int) -> None:
    """Of 100,000 1,000 are wanted, with a standard deviation of 32; the fits add a few percent."""
    sent = len(indices(SIDCO[stages].encode(laplace(100_000))))
    assert 850 < sent < 1150


def test_more_stages_of_sidco_come_nearer_on_a_tail_that_is_not_exponential() -> None:
    g = gradient("normal", 100_000)
    one, two, three = (len(indices(SIDCO[stages].encode(g))) for stages in (1, 2, 3))
    assert one < two < 1000
    assert abs(three - 1000) < 1000 - two < 1000 - one


@pytest.mark.parametrize("name", ["graddrop", "topk", "randomk", "sidco", "threshold"])
def test_error_feedback_loses_nothing(name: str) -> None:
    """Every step: residual + sent = x to the bit. Over all: sent + residual = the sum of the gradients."""
    feedback = name in ("topk", "randomk", "sidco")  # the others have it
    codec = compll.compile(name, "interp", error_feedback=feedback)
    n = 3000
    state, total, sent = codec.new_state(n), np.zeros(n), np.zeros(n)
    assert codec.info.feedback
    for step in range(12):
        g, old = gradient("normal", n, seed=step), state["residual"].copy()
        payload = codec.encode(g, seed=step, shared_seed=step, state=state)
        out = codec.decode(payload, n, shared_seed=step)
        assert same_bits(state["residual"] + out, g + old)
        total, sent = total + g, sent + out
    assert np.abs(total - sent - state["residual"]).max() < 1e-5
    assert np.count_nonzero(sent) > 0


def test_dgc_without_momentum_loses_nothing_and_with_it_delays_as_momentum_would() -> None:
    """Where nothing was sent yet, v is the sum of the velocities, as SGD with momentum applies them."""
    n, codec = 3000, CODEC["dgc"].with_params(ratio=0.02)
    plain = codec.with_params(momentum=0)
    kept, state = plain.new_state(n), codec.new_state(n)
    total, sent, velocity, applied = (np.zeros(n) for _ in range(4))
    ever = np.zeros(n, bool)
    for step in range(12):
        g = gradient("normal", n, seed=step)
        total += g
        sent += plain.decode(plain.encode(g, seed=step, state=kept), n)
        velocity = 0.9 * velocity + g
        applied += velocity
        ever |= codec.decode(codec.encode(g, seed=step, state=state), n) != 0
    assert np.abs(total - sent - kept["v"]).max() < 1e-5
    assert 100 < ever.sum() < n
    assert np.abs(applied - state["v"])[~ever].max() < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_equal_elements_are_not_left_waiting(name: str) -> None:
    """A constant gradient, whose every element is the threshold, is sent part by part."""
    n, codec = 1000, CODEC[name]
    if name not in ("threshold", "adacomp"):
        codec = codec.with_params(**({"drop": 0.9} if name == "graddrop" else {"ratio": 0.1}))
    if not codec.info.stateful:
        codec = compll.compile(name, "interp", error_feedback=True, ratio=0.1)
    state, ever = codec.new_state(n), np.zeros(n, bool)
    for step in range(100 if name == "randomk" else 12):
        payload = codec.encode(np.full(n, 0.1, f32), seed=step, shared_seed=step, state=state)
        ever |= codec.decode(payload, n, shared_seed=step) != 0
    assert ever.all()


@pytest.mark.parametrize("name", ["graddrop", "dgc", "sidco", "threshold", "adacomp"])
def test_what_is_not_finite_is_neither_sent_nor_kept(name: str) -> None:
    codec = CODEC[name] if name != "sidco" else compll.compile("sidco", "interp", error_feedback=True)
    n = 2000
    state = codec.new_state(n)
    g = gradient("normal", n)
    g[::7] = np.resize(np.array([np.nan, np.inf, -np.inf], f32), len(g[::7]))
    (result,) = codec.batch("encode", [compll.Item(grad=g, seed=1, state=state)])
    assert not result.finite
    assert np.isfinite(codec.decode(result.value, n)).all()
    assert all(np.isfinite(s).all() and (s[::7] == 0).all() for s in state.values())
    later = codec.decode(codec.encode(gradient("normal", n, seed=2), seed=2, state=state), n)
    assert np.isfinite(later).all()
    assert later.any()


def test_randomk_is_unbiased_when_decoded_with_its_ratio() -> None:
    """Each element is drawn in a tenth of 400 draws.

    How often each of the ten of a stretch is drawn is multinomial: Pearson's sum is a chi-square of 9
    degrees, and of 900 for all stretches; a right codec is 6 of its standard deviations from that with a
    probability below 1e-8.  The seeds are fixed.
    """
    n, draws = 1000, 400
    codec, g = CODEC["randomk"].with_params(ratio=0.1), np.arange(1, 1001, dtype=f32)
    total = np.zeros(n, f32)
    for seed in range(draws):
        codec.decode_add(codec.encode(g, shared_seed=seed), total, 10, shared_seed=seed)
    times = total / g / 10
    chi_square = float(((times - draws / 10) ** 2).sum()) / (draws / 10)
    assert abs(chi_square - 900) < 6 * np.sqrt(2 * 900)


def test_payloads_of_randomk_can_be_summed() -> None:
    n, codec = 4000, CODEC["randomk"]
    a, b = gradient("normal", n), gradient("normal", n, seed=2)
    one, two = (codec.encode(g, shared_seed=9) for g in (a, b))
    summed = (one.view("<f4") + two.view("<f4")).view(np.uint8)
    want = codec.decode(one, n, shared_seed=9) + codec.decode(two, n, shared_seed=9)
    assert same_bits(codec.decode(summed, n, shared_seed=9), want)
    assert same_bits(codec.hop(one, b, shared_seed=9), summed)
