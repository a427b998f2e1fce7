"""`param` structs: hyper-parameters that are given together are one set by name, as scalars are."""

from __future__ import annotations

import numpy as np
import pytest
from compll_cases import compiled, gradient, same_bits, write

from compll import codec as api

BODY = """
    float step = 2 * {0}clip / ((1 << {0}bits) - 1);
    uint<{0}bits>* level = round((gradient + {0}clip) / step + random<float>(0, 1) - 0.5);
    compressed = concat({0}bits, level);
}}
"""
DECODE = """
    uint<{0}bits>* level;
    extract(compressed, {0}bits, level);
    gradient = level * (2 * {0}clip / ((1 << {0}bits) - 1)) - {0}clip;
}}
"""
SCALARS = "[[range(1, 8)]] uint8 bits = 4, float clip = 2.0"
ENCODE_SCALARS = f"void LevelsEncode(float* gradient, uint8* compressed, {SCALARS}) {{" + BODY.format("")
DECODE_SCALARS = f"void LevelsDecode(uint8* compressed, float* gradient, {SCALARS}) {{" + DECODE.format("")
STRUCT = "param {}Params {{ [[range(1, 8)]] uint8 bits = 4; float clip = 2.0; }};\n"
ENCODE_STRUCT = (
    STRUCT.format("Encode")
    + "void LevelsEncode(float* gradient, uint8* compressed, EncodeParams params) {"
    + BODY.format("params.")
)
DECODE_STRUCT = (
    STRUCT.format("Decode")
    + "void LevelsDecode(uint8* compressed, float* gradient, DecodeParams p) {"
    + DECODE.format("p.")
)


@pytest.mark.parametrize("encode", [ENCODE_SCALARS, ENCODE_STRUCT])
@pytest.mark.parametrize("decode", [DECODE_SCALARS, DECODE_STRUCT])
def test_a_struct_means_what_its_members_mean_as_scalars(encode: str, decode: str) -> None:
    plain, codec = (compiled(text, "interp") for text in (ENCODE_SCALARS + DECODE_SCALARS, encode + decode))
    assert codec.info.fingerprint == plain.info.fingerprint
    assert codec.info.params == plain.info.params
    assert codec.info.params["bits"].static
    assert not codec.info.params["clip"].static
    g = gradient("normal", 1100)
    for bits, clip in ((4, 2.0), (3, 1.0)):
        a, b = (
            compiled(t, "interp", bits=bits).with_params(clip=clip)
            for t in (ENCODE_SCALARS + DECODE_SCALARS, encode + decode)
        )
        payload = a.encode(g, seed=3)
        assert same_bits(payload, b.encode(g, seed=3))
        assert same_bits(a.decode(payload, 1100), b.decode(payload, 1100))


def test_each_file_has_its_own_structs() -> None:
    files = [
        write(text.replace("EncodeParams", "Params").replace("DecodeParams", "Params"))
        for text in (ENCODE_STRUCT, DECODE_STRUCT)
    ]
    g = gradient("normal", 100)
    for pair in (files, files[::-1]):
        codec = api.compile(tuple(pair), "interp")
        assert codec.info.fingerprint == compiled(ENCODE_SCALARS + DECODE_SCALARS, "interp").info.fingerprint
        assert np.abs(codec.decode(codec.encode(g, seed=1), 100) - np.clip(g, -2, 2)).max() < 0.3


def test_a_member_without_default_must_be_given_and_a_range_is_kept() -> None:
    text = (ENCODE_STRUCT + DECODE_STRUCT).replace("bits = 4", "bits")
    with pytest.raises(api.ParameterError, match="needs a value for 'bits'"):
        compiled(text, "interp")
    with pytest.raises(api.ParameterError, match="from 1 to 8"):
        compiled(text, "interp", bits=9)
    assert compiled(text, "interp", bits=7).info.params["bits"].value == 7


def test_a_member_in_a_static_if_or_a_chunk_is_static() -> None:
    text = """
param P { int mode = 1; int block = 8; bool fast = true; float bound = inf; }
void StaticEncode(float* gradient, uint8* compressed, P p) {
    float* top;
    if (p.mode == 1 && !p.fast) { top = reduce(chunk(gradient, p.block), greater); }
    else { top = reduce(chunk(gradient, p.block), smaller); }
    compressed = concat(top, clamp(gradient, -p.bound, p.bound));
}
void StaticDecode(uint8* compressed, float* gradient, P p) {
    float* top;
    extract(compressed, top, gradient);
}
"""
    codec = compiled(text, "interp")
    assert [name for name, p in codec.info.params.items() if p.static] == ["mode", "block", "fast"]
    g = gradient("normal", 20)
    least = [g[at : at + 8].min() for at in (0, 8, 16)]
    assert codec.encode(g)[:12].view(np.float32).tolist() == least
    greatest = [g[at : at + 8].max() for at in (0, 8, 16)]
    assert compiled(text, "interp", fast=False).encode(g)[:12].view(np.float32).tolist() == greatest
    assert same_bits(codec.decode(codec.encode(g), 20), g)
    assert codec.with_params(bound=0.5).decode(codec.with_params(bound=0.5).encode(g), 20).max() == 0.5


def test_a_width_may_reach_free_functions_through_a_variable_of_the_file() -> None:
    text = """
param EncodeParams { uint8 bitwidth = 2; }
float low, gap;
uint8 width;
uint<width> level(float x) { return floor((x - low) / gap + random<float>(0, 1)); }
float value(uint<width> q) { return q * gap + low; }
void FreeEncode(float* gradient, uint8* compressed, EncodeParams params) {
    width = params.bitwidth;
    low = reduce(gradient, smaller);
    gap = (reduce(gradient, greater) - low) / ((1 << params.bitwidth) - 1);
    compressed = concat(width, low, gap, map(gradient, level));
}
void FreeDecode(uint8* compressed, float* gradient) {
    uint<width>* q;
    extract(compressed, width, low, gap, q);
    gradient = map(q, value);
}
"""
    g = gradient("normal", 1000)
    codecs = {w: compiled(text, "interp", bitwidth=w) for w in (1, 2, 5, 8)}
    assert codecs[2].info.params["bitwidth"].static
    for width, codec in codecs.items():
        payload = codec.encode(g, seed=5)
        assert len(payload) == 16 + 1000 * width // 8
        gap = (g.max() - g.min()) / (2**width - 1)
        for other in codecs.values():  # the width is read from the payload
            assert np.abs(other.decode(payload, 1000) - g).max() <= gap * 1.001
