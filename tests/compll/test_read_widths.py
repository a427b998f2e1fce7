"""A width that Decode reads from the payload: a switch over the widths that Encode can have."""

from __future__ import annotations

import numpy as np
import pytest
from compll_cases import compiled, gradient, same_bits, write

from compll import codec as api
from compll import driver

# The width stands behind a count and a scalar; the value of an element depends on it in arithmetic, too.
WIDE = """
void WideEncode(float* gradient, uint8* compressed, state float* kept,
                [[range(1, 8)]] uint8 bits = 4, float skip = 0.5) {
    uint32* index = filter(range(gradient.size), [&](int i) -> bool { return abs(gradient[i]) > skip; });
    float top = reduce(abs(gradient), 0, greater);
    uint<bits>* q = round((gather(gradient, index) / top + 1) / 2 * ((1 << bits) - 1));
    compressed = concat(top, bits, index, q);
    kept = gradient - decode(compressed);
}
void WideDecode(uint8* compressed, float* gradient) {
    uint8 width;
    float top;
    uint32* index;
    uint<width>* q;
    extract(compressed, top, width, index, q);
    gradient = scatter(gradient.size, index, (q * 2.0 / ((1 << width) - 1) - 1) * top);
}
"""
PLAIN = """
void PlainEncode(float* gradient, uint8* compressed, uint8 bits = 4) {
    uint<bits>* q = gradient * 8;
    compressed = concat(bits, q);
}
void PlainDecode(uint8* compressed, float* gradient) {
    uint8 width;
    uint<width>* q;
    extract(compressed, width, q);
    gradient = q / 8.0;
}
"""
N = 2500


def encoded(codec: api.Codec, g: np.ndarray) -> np.ndarray:
    return codec.encode(g, state=codec.new_state(len(g)) if codec.info.stateful else None)


@pytest.mark.parametrize("text", [WIDE, PLAIN], ids=["wide", "plain"])
def test_a_payload_of_any_width_is_decoded_as_a_codec_of_that_width_does(text: str) -> None:
    codecs = {w: compiled(text, "interp", bits=w) for w in range(1, 9)}
    for g in (gradient("normal", N), gradient("normal", 0), gradient("mixed", 9)):
        for own in codecs.values():
            payload = encoded(own, g)
            want = own.decode(payload, len(g))
            for other in codecs.values():
                assert same_bits(other.decode(payload, len(g)), want)
    assert len({c.info.fingerprint for c in codecs.values()}) == 8
    assert codecs[3].info.params["bits"].static


@pytest.mark.parametrize("backend", ["cpp", "numba", "cudasim"])
def test_backends_switch_alike(backend: str) -> None:
    interp, codec = compiled(PLAIN, "interp", bits=3), compiled(PLAIN, backend, bits=3)
    g = gradient("normal", N)
    for width in (3, 8):
        payload = encoded(compiled(PLAIN, "interp", bits=width), g)
        assert same_bits(codec.decode(payload, N), interp.decode(payload, N))
        out = [c.decode_add(payload, g.copy(), 0.5) for c in (interp, codec)]
        assert same_bits(out[0], out[1])
    assert same_bits(codec.encode(g), interp.encode(g))
    out = np.empty(N, np.float16)
    assert same_bits(codec.decode(payload, N, out=out), interp.decode(payload, N).astype(np.float16))


def test_payloads_of_several_widths_may_stand_in_one_batch() -> None:
    codec = compiled(WIDE, "interp")
    parts = [gradient("normal", n) for n in (10, 2000, 1, 300, 0)]
    payloads = [
        encoded(compiled(WIDE, "interp", bits=w), g) for w, g in zip((2, 4, 8, 2, 4), parts, strict=True)
    ]
    outs = [np.empty(len(g), np.float32) for g in parts]
    codec.batch("decode", [api.Item(payload=p, out=o) for p, o in zip(payloads, outs, strict=True)])
    for payload, out in zip(payloads, outs, strict=True):
        assert same_bits(out, codec.decode(payload, len(out)))


def test_error_feedback_keeps_what_the_own_width_loses() -> None:
    codec = compiled(WIDE, "interp", bits=2)
    state = codec.new_state(N)
    g = gradient("normal", N)
    payload = codec.encode(g, state=state)
    assert same_bits(state["kept"], g - codec.decode(payload, N))
    fed, seven = compiled(PLAIN, "interp", True, bits=2), compiled(PLAIN, "interp", bits=7)
    assert fed.info.feedback
    state = fed.new_state(N)
    payload = fed.encode(g, state=state)
    assert same_bits(state["residual"], g - fed.decode(payload, N))
    payload = seven.encode(g)
    assert same_bits(fed.decode(payload, N), seven.decode(payload, N))


def test_a_width_that_no_payload_has_is_refused() -> None:
    codec = compiled(PLAIN, "interp")
    payload = codec.encode(gradient("normal", 100))
    for width in (0, 9, 255):
        payload[0] = width
        with pytest.raises(api.PayloadError, match=rf"'bits' is {width}; it can be 1, 2, 3, 4, 5, 6, 7, 8"):
            codec.decode(payload, 100)
    payload[0] = 5  # a width of another length
    with pytest.raises(api.PayloadError, match="truncated"):
        codec.decode(payload, 100)
    with pytest.raises(api.PayloadError, match="'bits' ends at 1"):
        codec.decode(payload[:0], 100)


def test_widths_outside_of_the_range_or_of_wrong_programs_are_refused() -> None:
    ranged = PLAIN.replace("uint8 bits = 4", "[[range(2, 5)]] uint8 bits = 4")
    g = gradient("normal", 10)
    payload = compiled(PLAIN, "interp", bits=6).encode(g)
    with pytest.raises(api.PayloadError, match=r"it can be 2, 3, 4, 5$"):
        compiled(ranged, "interp").decode(payload, 10)
    odd = PLAIN.replace("gradient * 8;", "gradient * 8; int zero = 5 / (bits - 6);")
    with pytest.raises(api.CompileError, match="constant 0"):
        compiled(odd, "interp", bits=6)
    with pytest.raises(api.PayloadError, match=r"it can be 1, 2, 3, 4, 5, 7, 8$"):
        compiled(odd, "interp").decode(payload, 10)


def test_a_literal_width_has_one_value() -> None:
    text = PLAIN.replace(", uint8 bits = 4", "").replace("uint<bits>* q", "uint8 bits = 4; uint4* q")
    codec = compiled(text, "interp")
    g = gradient("normal", 10)
    payload = codec.encode(g)
    assert same_bits(payload, compiled(PLAIN, "interp").encode(g))
    payload[0] = 3
    with pytest.raises(api.PayloadError, match="made with width = 3, and this codec has 4"):
        codec.decode(payload, 10)


def test_a_build_leaves_the_width_open_and_nothing_else() -> None:
    path = write(PLAIN.replace("bits = 4", "bits"))
    assert [c.values["bits"] for c in driver.check_files([path], {})] == list(range(1, 9))
    blocks = write("""
void BlocksEncode(float* gradient, uint8* compressed, uint32 block) {
    compressed = concat(reduce(chunk(gradient, block), add));
}
""")
    with pytest.raises(api.ParameterError, match="needs a value for 'block'"):
        driver.check_files([blocks], {})
