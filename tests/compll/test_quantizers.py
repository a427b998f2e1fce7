"""int8minmax, dynamic8 and hadamard4 against references from the papers: values, bounds, odd inputs."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from compll_cases import LABELS, fields, gradient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))

import blocks as reference

import compll

SIZES = (0, 1, 7, 31, 33, 255, 257, 1000, 4097)
f32 = np.float32


def spread(scale: np.ndarray, block: int, n: int) -> np.ndarray:
    return np.repeat(scale.astype(np.float64), block)[:n]


def decoded(name: str, g: np.ndarray, backend: str = "interp") -> np.ndarray:
    codec = compll.compile(name, backend)
    return np.asarray(codec.decode(codec.encode(g), len(g)))


@pytest.mark.parametrize("backend", ["interp", "cpp"])
@pytest.mark.parametrize("n", SIZES)
def test_int8minmax_is_the_nearest_level_between_least_and_greatest(n: int, backend: str) -> None:
    codec = compll.compile("int8minmax", backend)
    for offset in (0, 3, -1000):
        g = gradient("normal", n) + f32(offset)
        payload = codec.encode(g)
        blocks = -(-n // 256)
        start = -(-4 * blocks // 16) * 16
        middle, step = fields(payload[: start + 4 * blocks], ["<f4", "<f4"], blocks)
        level = payload[-(-(start + 4 * blocks) // 16) * 16 :].view("i1")
        want_middle, want_step, exact = reference.int8minmax(g, 256)
        assert middle == pytest.approx(want_middle, rel=1e-6, abs=1e-6 * (abs(offset) + 1))
        assert step == pytest.approx(want_step, rel=1e-6)
        wide = spread(step, 256, n)
        rounding = np.divide(4e-7 * np.abs(g), wide, out=np.full(n, np.inf), where=wide > 0)
        assert (np.abs(level - exact) <= 0.5 + 1e-4 + rounding).all()
        assert (np.abs(level) <= 127).all()


@pytest.mark.parametrize("label", ["normal", "constant", "zeros", "denormal", "huge"])
def test_int8minmax_loses_half_a_step_at_most(label: str) -> None:
    """And where all are equal nothing, but that halves of denormal numbers round."""
    for n in (1, 255, 1000):
        g = gradient(label, n)
        _, step, _ = reference.int8minmax(g, 256)
        error = np.abs(decoded("int8minmax", g).astype(np.float64) - g)
        rounding = 2e-7 * np.abs(g.astype(np.float64)) + 130 * 2**-149
        assert (error <= spread(step, 256, n) / 2 * (1 + 1e-5) + rounding).all()
    constant = np.full(1000, -1e15, f32)
    assert np.array_equal(decoded("int8minmax", constant), constant)


def test_the_tree_has_the_values_of_its_definition() -> None:
    """256 of them, ascending, 0 and 1 among them; 64 between 0.1 and 1, and the least 5.5e-7."""
    values = reference.tree_values()
    assert len(values) == 256
    assert (np.diff(values) > 0).all()
    assert values[127] == 0
    assert values[255] == 1
    assert values[128] == pytest.approx(0.55e-6)
    assert ((values >= 0.1) & (values < 1)).sum() == 64
    codec = compll.compile("dynamic8", "interp")
    payload = np.zeros(16 + 256, np.uint8)
    payload[:4] = np.array([1.0], "<f4").view(np.uint8)
    payload[16:] = np.arange(256)
    assert codec.decode(payload, 256) == pytest.approx(values, rel=1e-6)


@pytest.mark.parametrize("backend", ["interp", "cpp"])
@pytest.mark.parametrize("n", SIZES)
def test_dynamic8_is_the_nearest_value_of_the_tree(n: int, backend: str) -> None:
    codec, values = compll.compile("dynamic8", backend), reference.tree_values()
    for label in LABELS[:-1]:
        g = gradient(label, n)
        payload = codec.encode(g)
        assert len(payload) == codec.max_bytes(n) == -(-4 * -(-n // 256) // 16) * 16 + n
        scale = np.array([np.abs(part).max() for part in reference.cut(g, 256)], f32)
        assert np.array_equal(payload[: 4 * len(scale)].view("<f4"), scale)
        top = spread(scale, 256, n)
        x = np.divide(g, top, out=np.zeros(n), where=top > 0).astype(f32)
        code = payload[len(payload) - n :].astype(int)
        lost = np.abs(x - values[code])
        least = np.abs(x[:, None] - values).min(axis=1)
        assert (lost <= least + 1e-7 * np.abs(x) + 1e-12).all()
        assert codec.decode(payload, n) == pytest.approx(values[code] * top, rel=1e-6, abs=2**-148)


def test_dynamic8_keeps_the_relative_error_of_small_elements_where_int8_loses_them() -> None:
    """Below a 254th of the greatest int8 has nothing but 0; the tree has 16 values from 1e-3 to 1e-2."""
    g = np.full(256, 3e-3, f32)
    g[0] = 1
    assert (decoded("int8", g)[1:] == 0).all()
    assert (np.abs(decoded("dynamic8", g)[1:] - f32(3e-3)) <= 0.9e-2 / 16 / 2 * (1 + 1e-5)).all()


@pytest.mark.parametrize("backend", ["interp", "cpp"])
@pytest.mark.parametrize("n", SIZES)
def test_hadamard4_is_int4_of_the_rotated_gradient(n: int, backend: str) -> None:
    codec = compll.compile("hadamard4", backend)
    m = -(-n // 32) * 32
    for label in ("normal", "constant", "zeros"):
        g = gradient(label, n)
        payload = codec.encode(g)
        blocks = -(-m // 128)
        assert len(payload) == codec.max_bytes(n) == -(-4 * blocks // 16) * 16 + m // 2
        y = reference.rotated(g)
        tops = np.array([np.abs(part).max() for part in reference.cut(y, 128)])
        scale = payload[: 4 * blocks].view("<f4")
        assert scale == pytest.approx(np.maximum(tops / 7, 2**-149), rel=1e-5)
        nibbles = payload[len(payload) - m // 2 :]
        level = np.stack([nibbles & 15, nibbles >> 4], axis=1).ravel().astype(int) - 8
        wide = spread(scale, 128, m)
        assert (np.abs(level - y / wide) <= 0.5 + 1e-4).all()
        out = codec.decode(payload, n)
        want = reference.rotated(level * wide)[:n]
        assert out == pytest.approx(want, rel=1e-5, abs=1e-6 * float(tops.max(initial=0)))


def test_the_error_of_hadamard4_is_half_a_level_in_the_mean_square_at_most() -> None:
    """A rotation keeps squares: a group's errors have those of its levels, each (scale / 2)^2 at most."""
    for label in ("normal", "huge"):
        g = gradient(label, 128 * 30)
        if label == "huge":
            g *= f32(2**-8)  # what is decoded may exceed what was given
        tops = np.array([np.abs(part).max() for part in reference.cut(reference.rotated(g), 128)])
        error = (decoded("hadamard4", g).astype(np.float64) - g).reshape(-1, 128)
        assert ((error**2).mean(axis=1) <= (tops / 14) ** 2 * (1 + 1e-4)).all()


def test_an_outlier_costs_less_than_without_the_rotation() -> None:
    g = gradient("normal", 128 * 20)
    g[::128] = 60
    error = {name: float(((decoded(name, g) - g) ** 2).mean()) for name in ("int4", "hadamard4")}
    assert error["hadamard4"] < 0.5 * error["int4"]


@pytest.mark.parametrize("name", ["int8minmax", "dynamic8", "hadamard4"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_spoils_its_block_and_no_other(name: str, value: float) -> None:
    block = 128 if name == "hadamard4" else 256
    g = gradient("normal", 3 * block)
    g[block + 5] = value
    out = decoded(name, g)
    assert not np.isfinite(out[block : 2 * block]).any()
    assert np.isfinite(np.delete(out, slice(block, 2 * block))).all()


@pytest.mark.parametrize("name", ["int8minmax", "dynamic8", "hadamard4"])
def test_a_block_of_zeros_beside_others_is_decoded_as_zeros(name: str) -> None:
    g = gradient("normal", 3 * 256)
    g[256:512] = 0
    out = decoded(name, g)
    assert (out[256:512] == 0).all()
    assert np.count_nonzero(out[:256]) > 100
