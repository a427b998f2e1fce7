"""int4, fp8, mxfp4 and their like against references that enumerate every code: bytes, values, bounds."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compll_cases import LABELS, gradient

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))

import layout
import minifloats as reference

import compll

SIZES = (0, 1, 7, 32, 33, 128, 1000, 1024, 4097, 20_000)
CODECS: dict[tuple[str, int], compll.Codec] = {
    **{("int4", b): compll.compile("int4", "interp", block=b) for b in (7, 32, 128)},
    **{("fp8", b): compll.compile("fp8", "interp", block=b) for b in (7, 32, 256)},
    **{("fp8e5m2", b): compll.compile("fp8e5m2", "interp", block=b) for b in (7, 256)},
    ("mxfp4", 32): compll.compile("mxfp4", "interp"),
    ("mxfp8", 32): compll.compile("mxfp8", "interp"),
    ("nvfp4", 16): compll.compile("nvfp4", "interp"),
}
BLOCK = {"int4": 128, "fp8": 256, "fp8e5m2": 256, "mxfp4": 32, "mxfp8": 32, "nvfp4": 16}  # by default
f32 = np.float32


def gradients(label: str, n: int) -> np.ndarray:
    """Return a gradient; `ties` lies on the borders between values, `wide` runs over all exponents."""
    noise = np.random.default_rng(n)
    match label:
        case "ties":
            halves = noise.integers(-32, 33, n) / f32(8) * f32(2) ** noise.integers(-3, 4, n)
            return halves.astype(f32)
        case "wide":
            return (noise.standard_normal(n) * 2.0 ** noise.integers(-140, 120, n)).astype(f32)
    return gradient(label, n)


def expected(name: str, g: np.ndarray, block: int) -> tuple[bytes, np.ndarray]:
    """Return the payload and what it decodes to."""

    def spread(scale: np.ndarray) -> np.ndarray:
        return np.repeat(scale, block)[: len(g)]

    with np.errstate(all="ignore"):
        if name == "int4":
            scale, level = reference.int4(g, block)
            return reference.int4_payload(scale, level), level.astype(f32) * spread(scale)
        if name == "fp8":
            scale, code = reference.fp8(g, block)
            return reference.fp8_payload(scale, code), reference.E4M3[code].astype(f32) * spread(scale)
        if name == "fp8e5m2":
            scale, code = reference.fp8(g, block, reference.E5M2[:124])
            return reference.fp8_payload(scale, code), reference.E5M2[code].astype(f32) * spread(scale)
        if name == "mxfp8":
            s, code = reference.mxfp8(g)
            return reference.mxfp8_payload(s, code), reference.E4M3[code] * spread(reference.power(s))
        if name == "nvfp4":
            whole, s, code = reference.nvfp4(g)
            values = (reference.E2M1[code] * spread(reference.E4M3[s])).astype(f32) * f32(whole)
            return reference.nvfp4_payload(f32(whole), s, code), values
        s, code = reference.mxfp4(g)
        return reference.mxfp4_payload(s, code), reference.E2M1[code] * spread(reference.power(s))


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize(("name", "block"), CODECS)
def test_payload_and_decoded_values_are_those_of_the_definition(name: str, block: int, n: int) -> None:
    codec = CODECS[name, block]
    for label in (*LABELS, "ties", "wide"):
        g = gradients(label, n)
        payload, values = expected(name, g, block)
        assert codec.encode(g).tobytes() == payload, label
        assert np.array_equal(codec.decode(codec.encode(g), n), values, equal_nan=True), label
        assert len(payload) == codec.max_bytes(n)


# What the greatest of a block is divided by; the share of an element that is lost, or of its scale; and what
# more the denormal numbers of a scale lose, in units of the least.
GREATEST = {"int4": 7, "fp8": 448, "fp8e5m2": 57344, "mxfp4": 4, "mxfp8": 256, "nvfp4": 6 / (17 / 16)}
LOST = {
    "int4": (0, 1 / 2),
    "fp8": (1 / 16, 2**-10),
    "fp8e5m2": (1 / 8, 2**-17),
    "mxfp4": (1 / 4, 1 / 4),
    "mxfp8": (1 / 8, 2**-10),
    "nvfp4": (1 / 4, 1 / 4),
}
ROUNDING = {"int4": 4, "fp8": 240, "fp8e5m2": 30_000, "mxfp4": 2**22, "mxfp8": 2**15, "nvfp4": 1400}


@pytest.mark.parametrize("label", ["normal", "ties", "wide", "huge", "denormal"])
@pytest.mark.parametrize(("name", "block"), CODECS)
def test_an_element_is_lost_by_half_a_step_at_most(name: str, block: int, label: str) -> None:
    """int4: half a level. e4m3: 1/16 of it, or half a step of the least. e5m2: 1/8, e2m1: 1/4, likewise.

    mxfp8: 1/8, since what lies between 448 and 512 becomes 448.  nvfp4: its block's scale is rounded by 1/16,
    or by half a step of its own least, which the whole's greatest decides.
    """
    g = gradients(label, 5000)
    top = np.array([np.abs(g[at : at + block]).max() for at in range(0, 5000, block)], np.float64)
    scale = np.repeat(top, block)[:5000] / GREATEST[name]
    error = np.abs(CODECS[name, block].decode(CODECS[name, block].encode(g), 5000).astype(np.float64) - g)
    share, least = LOST[name]
    lost = np.maximum(share * np.abs(g.astype(np.float64)), least * scale)
    rounding = 1e-6 * np.abs(g.astype(np.float64)) + ROUNDING[name] * 2**-149
    if name == "nvfp4":
        rounding += 6 * 2**-10 * top.max() / 2688
    assert (error <= lost * (1 + 1e-6) + rounding).all()


@pytest.mark.parametrize("name", BLOCK)
def test_zeros_are_decoded_as_zeros_even_beside_other_blocks(name: str) -> None:
    block = BLOCK[name]
    codec = CODECS[name, block]
    for n in (1, block, 3 * block - 1):
        assert (codec.decode(codec.encode(np.zeros(n, f32)), n) == 0).all()
    g = gradient("normal", 3 * block)
    g[block : 2 * block] = 0
    out = codec.decode(codec.encode(g), 3 * block)
    assert (out[block : 2 * block] == 0).all()
    assert np.count_nonzero(out[:block]) > block // 2


@pytest.mark.parametrize("name", BLOCK)
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_makes_its_block_nan_and_no_other(name: str, value: float) -> None:
    """But with nvfp4, whose blocks share a scale, all of the gradient."""
    block = BLOCK[name]
    g = gradient("normal", 3 * block)
    g[block + 5] = value
    out = CODECS[name, block].decode(CODECS[name, block].encode(g), 3 * block)
    assert np.isnan(out[block : 2 * block]).all()
    rest = np.delete(out, slice(block, 2 * block))
    assert np.isnan(rest).all() if name == "nvfp4" else np.isfinite(rest).all()


# --- the formats themselves ---------------------------------------------------------------------------


def test_every_e4m3_code_is_decoded_by_the_table() -> None:
    codec, codes = CODECS["fp8", 256], np.arange(256)
    for scale in (1.0, 0.75, 2.0**-100):
        payload = np.frombuffer(reference.fp8_payload(np.array([scale], f32), codes), np.uint8)
        want = reference.E4M3.astype(f32) * f32(scale)
        assert np.array_equal(codec.decode(payload, 256), want, equal_nan=True)
    torch_s = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(torch_s, reference.E4M3.astype(f32), equal_nan=True)


def test_every_e5m2_code_is_decoded_by_the_table() -> None:
    codec, codes = CODECS["fp8e5m2", 256], np.arange(256)
    payload = np.frombuffer(reference.fp8_payload(np.array([0.75], f32), codes), np.uint8)
    with np.errstate(invalid="ignore"):
        want = reference.E5M2.astype(f32) * f32(0.75)
    assert np.array_equal(codec.decode(payload, 256), want, equal_nan=True)
    torch_s = torch.arange(256, dtype=torch.uint8).view(torch.float8_e5m2).float().numpy()
    assert np.array_equal(torch_s, reference.E5M2.astype(f32), equal_nan=True)


def test_the_scales_of_nvfp4_use_all_of_e4m3_and_a_block_far_below_the_greatest_is_zeros() -> None:
    g = np.repeat(np.array([2688, 1, 2688 / 1023, 2688 / 1025, 1e-4], f32), 16)
    payload = CODECS["nvfp4", 16].encode(g)
    assert payload[:4].view("<f4")[0] == 1
    assert reference.E4M3[payload[16:19]].tolist() == [448, 0.171875, 0.4375]
    assert payload[20] == 0
    out = CODECS["nvfp4", 16].decode(payload, len(g))
    assert (out[:16] == 2688).all()
    assert (out[64:] == 0).all()


def test_the_reference_rounds_to_e4m3_as_torch_does() -> None:
    x = np.concatenate([gradients("ties", 5000), gradients("normal", 5000) * 100, reference.E4M3[:127] * 1.0])
    x = np.clip(x, -448, 448).astype(f32)
    codes = reference.signed(x, reference.nearest(x, reference.E4M3[:127]), 127, 128)
    theirs = torch.from_numpy(x).to(torch.float8_e4m3fn).view(torch.uint8).numpy()
    assert np.array_equal(codes, theirs)


def test_e4m3_and_e2m1_have_the_values_that_their_papers_list() -> None:
    assert reference.E2M1[:8].tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    assert reference.E4M3[126] == 448
    assert reference.E4M3[8] == 2**-6
    assert reference.E4M3[1] == 2**-9
    assert np.flatnonzero(np.isnan(reference.E4M3)).tolist() == [127, 255]


@pytest.mark.parametrize("s", [0, 1, 2, 100, 127, 252, 254, 255])
def test_every_e2m1_code_is_decoded_by_the_table_with_every_kind_of_scale(s: int) -> None:
    codes = np.resize(np.arange(16), 32)
    payload = np.frombuffer(reference.mxfp4_payload(np.array([s]), codes), np.uint8)
    with np.errstate(over="ignore"):
        want = (reference.E2M1[codes] * reference.power(np.array([s]))).astype(f32)
    assert np.array_equal(CODECS["mxfp4", 32].decode(payload, 32), want, equal_nan=True)


TIES: list[tuple[float, int]] = [
    (0.25, 0),
    (0.75, 2),
    (1.25, 2),
    (1.75, 4),
    (2.5, 4),
    (3.5, 6),
    (5, 6),
    (6, 7),
    (7.75, 7),
]


@pytest.mark.parametrize(("x", "code"), TIES)
def test_a_tie_of_e2m1_goes_to_the_even_code_and_its_neighbours_to_theirs(x: float, code: int) -> None:
    """The first element, 4, makes the scale 1."""

    def encoded(value: Any) -> int:
        payload = CODECS["mxfp4", 32].encode(np.array([4, value, -value], f32))
        assert payload[0] == 127
        assert int(payload[17]) == (int(payload[16]) >> 4) + 8  # the same with the sign's bit
        return int(payload[16]) >> 4

    assert encoded(x) == code
    for near in (np.nextafter(f32(x), f32(0)), np.nextafter(f32(x), f32(8))):
        assert encoded(near) == int(reference.nearest(np.array([near]), reference.E2M1[:8])[0])


def test_the_scale_of_mxfp4_is_the_power_of_two_that_takes_the_greatest_below_8() -> None:
    for top, s in (
        (1.0, 125),
        (1.99, 125),
        (2.0, 126),
        (6.0, 127),
        (3.4e38, 252),
        (1e-45, 0),
        (2.0**-124, 1),
    ):
        payload = CODECS["mxfp4", 32].encode(np.array([0, -top, 0], f32))
        assert payload[0] == s
        assert len(payload) == len(layout.assemble([bytes(1), bytes(2)]))
