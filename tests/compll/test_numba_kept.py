"""What Numba's passes keep: the elements whose bits are set, side by side, by each of two ways."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from compll.backends import numba_kept
from compll.backends.numba_lanes import WIDTH, UInt32, has, u32
from compll.backends.numba_tiles import WHOLE, load


def keeper(put: Any) -> Any:
    """Compile a function that keeps elements of 32 bits, from one address to element `at` behind another."""

    @njit
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
