"""exp, exp2, log, log2: below 1 ulp of the true value, exact at the edges, the same bits on every backend."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from compll import elementary
from compll.codec import compile

NAMES = ("exp", "exp2", "log", "log2")
FUNCTIONS = [(name, getattr(elementary, name), getattr(np, name)) for name in NAMES]
SPECIAL = [0, -0.0, 1, -1, 2, 0.5, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 2**-126, 3.4e38, -3.4e38]
LIMITS = [88.72, 88.73, -87.3, -103.9, -104.1, 127.99, 128, -126.5, -149, -150, -151, 0.70710678, 1.4142135]
EDGES = np.array(SPECIAL + LIMITS, np.float32)


def sample() -> np.ndarray:
    every = np.arange(0, 2**32, 4999, dtype=np.uint64).astype(np.uint32).view(np.float32)
    near = [np.linspace(-160, 130, 300_001), np.linspace(0.5, 2, 300_001)]
    return np.concatenate([EDGES, every, *(x.astype(np.float32) for x in near)])


@pytest.mark.parametrize(("name", "ours", "true"), FUNCTIONS, ids=NAMES)
def test_errors_stay_below_one_ulp(
    name: str, ours: Callable[..., np.ndarray], true: Callable[..., np.ndarray]
) -> None:
    del name
    x = sample()
    with np.errstate(all="ignore"):
        got, want = ours(x), true(x.astype(np.float64))
        rounded = want.astype(np.float32)
        assert np.array_equal(np.isnan(got), np.isnan(want))
        assert np.array_equal(np.isinf(got), np.isinf(rounded))
        finite = np.isfinite(rounded)
        ulps = np.abs(got.astype(np.float64) - want)[finite] / np.spacing(np.abs(rounded[finite])).astype(
            np.float64
        )
    assert ulps.max() < 1


def test_powers_of_two_are_exact() -> None:
    n = np.arange(-149, 128, dtype=np.float32)
    with np.errstate(all="ignore"):
        assert np.array_equal(elementary.exp2(n), np.ldexp(np.float32(1), n.astype(np.int32)))
        assert np.array_equal(elementary.log2(elementary.exp2(n)), n)


@pytest.mark.parametrize("backend", ["cpp", "numba"])
def test_backends_have_the_same_bits_in_lanes_and_scalars(tmp_path: Path, backend: str) -> None:
    path = tmp_path / "elementary.pse"
    path.write_text(
        """
        void ElementaryEncode(float* gradient, uint8* compressed) {
            float top = reduce(gradient, 0, greater);
            float e = exp(top); float p = exp2(top); float l = log(top); float b = log2(top);
            compressed = concat(e, p, l, b, exp(gradient), exp2(gradient), log(gradient), log2(gradient));
        }
        void ElementaryDecode(uint8* compressed, float* gradient) {
            float a, b, c, d;
            float* e; float* p; float* l; float* t;
            extract(compressed, a, b, c, d, e, p, l, t);
            gradient = e + p + l + t;
        }
        """,
        "utf-8",
    )
    fast, interp = (compile(path, backend=b) for b in (backend, "interp"))
    x = sample()
    assert np.array_equal(fast.encode(x), interp.encode(x))
    for value in EDGES:
        one = np.array([value], np.float32)
        assert np.array_equal(fast.encode(one), interp.encode(one)), value
