"""Each defect of the code generator published with HiPress has a test here that would have caught it.

The program is of that generator's dialect; sizes are ragged, because its errors hide in round ones.
"""

from __future__ import annotations

import numpy as np
import pytest
from compll_cases import compiled, gradient
from test_language import LEVELS

import compll

BACKENDS = ("interp", "cpp")
WIDTHS = range(1, 9)
RAGGED = (1, 2, 3, 5, 7, 8, 9, 17, 255, 257, 1003)
f32 = np.float32


def codes(payload: np.ndarray, n: int, width: int) -> list[int]:
    string = int.from_bytes(payload[16:].tobytes(), "little")
    return [string >> (i * width) & ((1 << width) - 1) for i in range(n)]


@pytest.mark.parametrize("width", WIDTHS)
def test_every_element_is_encoded_in_its_own_place_element_0_too(width: int) -> None:
    """Its thread i packed the elements i+1 .. i+8/b, so element 0 was never sent."""
    codec = compiled(LEVELS, "interp", bitwidth=width)
    top = 2**width - 1
    for n in (2, 9, 100):
        for place in {0, 1, n // 2, n - 1}:
            g = np.zeros(n, f32)
            g[place] = 1
            want = [0] * n
            want[place] = top
            assert codes(codec.encode(g, seed=1), n, width) == want


@pytest.mark.parametrize("width", [1, 2, 4, 8])
@pytest.mark.parametrize("backend", BACKENDS)
def test_decode_unpacks_in_the_order_in_which_encode_packs(width: int, backend: str) -> None:
    """It packed from the high bit and unpacked from the low one: no correlation with the input was left."""
    codec = compiled(LEVELS, backend, bitwidth=width)
    g = gradient("normal", 1003)
    out = codec.decode(codec.encode(g, seed=1), 1003)
    assert np.corrcoef(out, g)[0, 1] > (0.2 if width == 1 else 0.6)
    ramp = np.arange(2**width, dtype=f32)
    assert codec.decode(codec.encode(ramp, seed=1), len(ramp)).tolist() == ramp.tolist()


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("n", RAGGED)
def test_ragged_ends_are_neither_dropped_nor_overrun(width: int, n: int) -> None:
    """Its tail was n % 2^b: 8 bits dropped n % 256 elements, and 2 bits made 19 elements of 17."""
    codec = compiled(LEVELS, "interp", bitwidth=width)
    g = np.zeros(n, f32)
    g[-1] = 1
    payload = codec.encode(g, seed=1)
    assert len(payload) == 16 + -(-n * width // 8)
    room = np.full(n + 16, 7, f32)
    codec.decode(payload, n, out=room[:n])
    if n > 1:
        assert room[n - 1] == 1
    assert (room[n:] == 7).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_reduction_that_starts_from_an_integer_is_of_floats(backend: str) -> None:
    """`reduce(v, -99999, f)` counted in int: if all |g| < 1, both were 0, and the result NaN."""
    codec = compiled(LEVELS, backend, bitwidth=2)
    g = np.array([-0.25, 0.5, 0.125], f32)
    payload = codec.encode(g, seed=1)
    assert payload[4:12].view(f32).tolist() == [-0.25, 0.5]
    assert np.isfinite(codec.decode(payload, 3)).all()


@pytest.mark.parametrize("width", WIDTHS)
def test_a_code_cannot_spill_into_its_neighbours(width: int) -> None:
    """floor(level + r) reached 2^b when r rounded up to 1, unmasked."""
    text = """
void SpillEncode(float* g, uint8* c, uint8 width) { uint<width>* q = floor(g); c = concat(q); }
void SpillDecode(uint8* c, float* g, uint8 width) { uint<width>* q; extract(c, q); g = q; }
"""
    codec = compiled(text, "interp", width=width)
    top = 2**width - 1
    g = np.array([0, 2**width, 0, 1e30, 0, np.inf, 0, -5, 0, np.nan, 0], f32)
    assert codec.decode(codec.encode(g), len(g)).tolist() == [0, top, 0, top, 0, top, 0, 0, 0, 0, 0]


def test_a_code_cannot_spill_on_cpp() -> None:
    text = """
void SpillEncode(float* g, uint8* c) { uint<3>* q = floor(g); uint<5>* r = g; c = concat(q, r); }
void SpillDecode(uint8* c, float* g) { uint<3>* q; uint<5>* r; extract(c, q, r); g = q; }
"""
    g = np.resize(np.array([0, 8, 0, 1e30, 0, np.inf, 0, -5, 0, np.nan, 0, 1e9, 2**31], f32), 1300)
    a, b = (compiled(text, k).encode(g) for k in BACKENDS)
    assert a.tobytes() == b.tobytes()
    assert set(compiled(text, "cpp").decode(b, 1300).tolist()) == {0, 7}


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("value", [0.0, 0.5, -3.0])
def test_a_constant_gradient_does_not_become_nan(width: int, value: float) -> None:
    """It divided by a gap of 0."""
    shipped = compll.compile("terngrad", "interp", bitwidth=width)
    own = compiled(LEVELS, "interp", bitwidth=width)
    for codec in (shipped, own):
        g = np.full(37, value, f32)
        assert codec.decode(codec.encode(g, seed=1), 37).tolist() == g.tolist()


def test_noise_is_of_each_element_and_of_the_seed() -> None:
    """All its threads drew the same number, from a clock."""
    codec = compiled(LEVELS, "interp", bitwidth=1)
    g = np.full(2000, 0.5, f32)
    g[:2] = 0, 1
    one, same, other = (codes(codec.encode(g, seed=s), 2000, 1) for s in (1, 1, 2))
    assert 800 < sum(one) < 1200
    assert one == same
    assert one != other


@pytest.mark.parametrize("n", [2**28 + 3, 2**31 + 1, 2**33])
def test_sizes_do_not_overflow_32_bits(n: int) -> None:
    """Its lengths were int32: wrong once b * n exceeded 2^31."""
    for width in (2, 8):
        assert compll.compile("terngrad", "interp", bitwidth=width).max_bytes(n) == 16 + -(-n * width // 8)


def test_else_if_unary_and_float_literals_are_understood() -> None:
    """Its lexer had no `! ~ ? :`, no 0.5, no `else if`, and maps over vectors crashed it."""
    text = """
void WordsEncode(float* g, uint8* c) {
    uint2* q = map(g, [&](float x) -> uint2 {
        if (!(x > -0.5)) { return 0; } else if (x < 0.5) { return 1; } else return x > 1.5 ? 3 : 2;
    });
    c = concat(q);
}
void WordsDecode(uint8* c, float* g) { uint2* q; extract(c, q); g = q; }
"""
    for backend in BACKENDS:
        codec = compiled(text, backend)
        assert codec.decode(codec.encode(np.array([-1, 0, 1, 2], f32)), 4).tolist() == [0, 1, 2, 3]


def test_fields_are_aligned_and_scalars_cost_no_copies() -> None:
    """It laid fields out back to back, so that codes began at byte 10."""
    codec = compiled(LEVELS, "interp", bitwidth=2)
    assert [(e.name, e.offset) for e in codec._runner.first.extents(5)] == [
        ("bitwidth", 0),
        ("rest", 1),
        ("min", 4),
        ("max", 8),
        ("Levels", 16),
    ]
