"""What Numba's passes keep: the elements whose bits are set, side by side, by each of two ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from compll_cases import compiled, gradient, same_bits, write
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from compll import driver
from compll.backends import numba_kept
from compll.backends.numba_lanes import WIDTH, UInt32, has, u32
from compll.backends.numba_tiles import WHOLE, load
from compll.emit import numba


def keeper(put: Any) -> Any:
    """Compile a function that keeps elements of 32 bits, from one address to element `at` behind another."""

    @njit("void(int64, int64, int64, int64)")  # at once: an example is not to wait for it
    def keep(to: int, at: int, bits: int, source: int) -> None:
        put(to, at, bits, load(UInt32, u32, source, 0, WHOLE))

    return keep


WAYS = [keeper(numba_kept.put_each)] + [keeper(numba_kept.put_together)] * has("avx512f")


@pytest.mark.parametrize("keep", WAYS)
@given(bits=st.integers(0, 2**WIDTH - 1), at=st.integers(0, 5))
def test_elements_are_kept_in_order_and_none_before_them_changes(keep: Any, bits: int, at: int) -> None:
    elements = np.arange(1, WIDTH + 1, dtype=np.uint32) * np.uint32(0x07654321)
    out = np.zeros(at + 2 * WIDTH, np.uint32)
    keep(out.ctypes.data, at, bits, elements.ctypes.data)
    wanted = [x for i, x in enumerate(elements.tolist()) if bits >> i & 1]
    assert out[: at + len(wanted)].tolist() == [0] * at + wanted


BESIDE_A_DRAW = """
[[drops]]
void BesideEncode(float* gradient, uint8* compressed) {
    float top = reduce(abs(gradient), 0, greater);
    uint32* index = filter(range(gradient.size), [&](int i) -> bool {
        return random<float>(0, 1) < 0.3 && gradient[i] > -1;
    });
    compressed = concat(top, index, gather(gradient, index));
}
void BesideDecode(uint8* compressed, float* gradient) {
    float top; uint32* index; float* value;
    extract(compressed, top, index, value);
    gradient = scatter(gradient.size, index, value);
}
"""


def test_elements_are_kept_in_order_where_a_tile_is_gone_through_in_another() -> None:
    """A pass that draws goes through a tile lane by lane, and keeps its elements in order afterwards."""
    source = numba.source(driver.unit_of(driver.load([write(BESIDE_A_DRAW)], {}).checked))
    assert "range(TILE // WIDTH):  # now in order" in source
    a, b = (compiled(BESIDE_A_DRAW, backend) for backend in ("interp", "numba"))
    for n in (0, 1, 33, 1024, 1500, 70_001, 200_000):
        g = gradient("mixed" if n < 2000 else "normal", n)
        want = a.encode(g, seed=5)
        assert all(same_bits(b.encode(g, seed=5, threads=threads), want) for threads in (1, 2, 4)), n
