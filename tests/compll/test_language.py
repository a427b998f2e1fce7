"""Both published dialects, branches, scopes and names: programs mean what a C programmer reads in them."""

from __future__ import annotations

import numpy as np
import pytest
from compll_cases import both, compiled, encode, gradient, same_bits, write

from compll import codec as api

f32 = np.float32

# The first dialect: lambdas in one function, a width without default, a ternary written with if and else.
LEVELS = """
void LevelsEncode(float* gradient, uint8* compressed, uint8 bitwidth){
    lambda_func larger = [&](float x, float y) -> float{
        if (x > y) {
            return x;
        }
        return y;
    }
    lambda_func lesser = [&](float x, float y) -> float{
        if (x < y) return x; else { return y; }
    };
    float max = reduce(gradient, -1000000, larger);
    float min = reduce(gradient, 1000000, lesser);
    float step = (max - min) / ((1 << bitwidth) - 1);
    uint8 rest = gradient.size % (1 << bitwidth);
    lambda_func level = [&](int at) -> uint<bitwidth> {
        float exact = (gradient[at] - min) / step + random<float>(0,1);
        return floor(exact);
    }
    uint<bitwidth>* Levels = map(range(gradient.size), level);
    compressed = concat(bitwidth, rest, min, max, Levels);
}
void LevelsDecode(uint8* compressed, float* gradient, uint8 bitwidth) {
    uint8 rest;
    float min, max;
    uint<bitwidth>* Levels;
    extract(compressed, bitwidth, rest, min, max, Levels);
    float step = (max - min) / ((1 << bitwidth) - 1);
    lambda_func value = [&](int at) -> float { return Levels[at] * step + min; }
    gradient = map(range(gradient.size), value);
}
"""

# The second: free functions and file-level variables.
FREE = """
float low, high, step;
uint8 top = 3;
float larger(float x, float y) { if (x > y) return x; return y; }
float lesser(float x, float y) { return x < y ? x : y; }
uint2 level(float g) { return min(floor((g - low) / step + random<float>(0, 1)), top); }
float value(uint2 q) { return q * step + low; }
void FreeEncode(float* gradient, uint8* compressed) {
    high = reduce(gradient, -1000000, larger);
    low = reduce(gradient, 1000000, lesser);
    step = (high - low) / top;
    uint2* q = map(gradient, level);
    compressed = concat(low, high, q);
}
void FreeDecode(uint8* compressed, float* gradient) {
    uint2* q;
    extract(compressed, low, high, q);
    step = (high - low) / top;
    gradient = map(q, value);
}
"""


@pytest.mark.parametrize("bitwidth", range(1, 9))
def test_the_lambda_dialect_round_trips_at_every_width(bitwidth: int) -> None:
    interp = compiled(LEVELS, "interp", bitwidth=bitwidth)
    for n in (1, 7, 8, 9, 1000, 1025):
        g = gradient("normal", n)
        payload = interp.encode(g, seed=3)
        assert len(payload) == 16 + -(-n * bitwidth // 8)
        assert payload[:2].tolist() == [bitwidth, n % 2**bitwidth & 255]
        if n > 1:
            step = (g.max() - g.min()) / f32(2**bitwidth - 1)
            assert np.abs(interp.decode(payload, n) - g).max() <= step * f32(1.0001)


@pytest.mark.parametrize("bitwidth", [1, 3, 8])
def test_the_lambda_dialect_is_equal_on_cpp(bitwidth: int) -> None:
    interp, cpp = both(LEVELS, bitwidth=bitwidth)
    for n in (0, 1, 9, 1023, 2500):
        g = gradient("normal", n)
        payload = interp.encode(g, seed=3)
        assert same_bits(payload, cpp.encode(g, seed=3))
        assert same_bits(interp.decode(payload, n), cpp.decode(payload, n))


def test_free_functions_and_file_level_variables_mean_the_same() -> None:
    interp, cpp = both(FREE)
    levels = compiled(LEVELS, "interp", bitwidth=2)
    g = gradient("normal", 1500)
    payload = interp.encode(g, seed=9)
    assert same_bits(payload, cpp.encode(g, seed=9))
    out = interp.decode(payload, 1500)
    assert same_bits(out, cpp.decode(payload, 1500))
    assert same_bits(out, levels.decode(levels.encode(g, seed=9), 1500))


def scalar_program(body: str, formals: str = "", result: str = "r", kind: str = "float") -> str:
    return f"""
void OneEncode(float* gradient, uint8* compressed{", " + formals if formals else ""}) {{
{body}
    compressed = concat({result});
}}
void OneDecode(uint8* compressed, float* gradient{", " + formals if formals else ""}) {{
    {kind} r;
    extract(compressed, r);
    gradient = map(range(gradient.size), [&](int i) -> float {{ return r; }});
}}
"""


def value(body: str, g: list[float], backend: str = "interp", formals: str = "", **params: float) -> float:
    codec = compiled(scalar_program(body, formals), backend, **params)
    n = len(g)
    return float(codec.decode(codec.encode(np.array(g, f32)), max(n, 1) if n else 0)[0])


@pytest.mark.parametrize(
    ("body", "want"),
    [
        ("float r = 1; if (reduce(gradient, add) > 5) r = 2;", 2),
        ("float r = 1; if (reduce(gradient, add) > 50) r = 2; else r = 3;", 3),
        (
            "float s = reduce(gradient, add); float r;"
            " if (s < 1) { r = 1; } else if (s < 7) { r = 2; } else { r = 3; }",
            2,
        ),
        ("float r = 1; if (r < 2) { float r = 7; r = 8; }", 1),
        ("float r = 1; if (reduce(gradient, add) > 0) { float r = 7; r = 8; }", 1),
        ("float r = 1; if (r < 2) { r = 8; }", 8),
        ("float s = 2; lambda_func f = [&](float x) -> float { return x * s; } s = 5; float r = f(3);", 15),
        ("lambda_func f = [&](float x) -> float { float s = x; s = s + 1; return s; } float r = f(f(3));", 5),
        (
            "lambda_func f = [&](float x) -> float { return x + 1; }"
            " lambda_func g = [&](float x) -> float { return f(x) * f(x + 1); } float r = g(1);",
            6,
        ),
        (
            "lambda_func f = [&](float x) -> float { if (x > 0) { if (x > 1) { return 2; } } return 0; }"
            " float r = f(5) * 10 + f(0.5);",
            20,
        ),
        ("float max = 4; float r = max(max, 2);", 4),
        ("lambda_func max = [&](float a, float b) -> float { return 42; } float r = max(1, 2);", 42),
        (
            "float r = reduce(gradient, smaller); float smaller = 3;"
            " r = r + smaller + reduce(gradient, smaller);",
            5,
        ),
        (
            "int m = (gradient.size + 1) / 2;"
            " float r = reduce(map(range(m), [&](int i) -> int { return i; }), add);",
            1,
        ),
        (
            "float a = 10; float b = 20; float r = reduce(gradient, 0, [&](float x, float y) -> float"
            " { return x + y + a - b + 10; });",
            6,
        ),
        ("float r = gradient.size == 3 ? 1 : 2;", 1),
        ("uint8 r = 300;", 255),
        ("int8 t = -5.9; float r = t;", -5),
        ("float n = 7; float i = 9; float r = n * gradient.size + i;", 30),
        ("float r = 0x10 + 1e1 + .5 + 2.f;", 28.5),
        ("float r = 1; ;; /* a comment */ // and another", 1),
        ("float r = -2 * -3 + +1 - 10 % 4 / 2;", 6),
        ("float r = 1 | 2 ^ 3 & 2 << 1;", 1 | 2 ^ 3 & 2 << 1),
        ("float r = true ? false ? 1 : 2 : 3;", 2),
        ("float r = gradient[2] + gradient[0];", 4),
    ],
)
def test_statements_mean_what_they_say(body: str, want: float) -> None:
    if "uint8 r" in body:
        body = body.replace("uint8 r", "uint8 t") + " float r = t;"
    assert value(body, [1, 2, 3]) == want


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_a_static_if_may_hold_vector_operators(mode: int) -> None:
    body = """
    float r;
    if (mode == 0) { r = reduce(gradient, add); }
    else if (mode == 1) { r = reduce(gradient, greater); }
    else { float* y = gradient * 2; r = reduce(y, smaller); }
"""
    for backend in ("interp", "cpp"):
        codec = compiled(scalar_program(body, "uint8 mode = 0"), backend, mode=mode)
        assert codec.info.params["mode"].static
        g = np.array([1, 2, 4], f32)
        assert codec.decode(codec.encode(g), 3)[0] == (7, 4, 2)[mode]


def test_a_run_time_parameter_needs_no_new_build() -> None:
    text = scalar_program(
        "float r = reduce(gradient, add) * ratio + whole;", "float ratio = 0.5, int whole = 2"
    )
    codec = compiled(text, "cpp")
    g = np.array([1, 2, 3], f32)
    assert codec.decode(codec.encode(g), 3)[0] == 5
    other = codec.with_params(ratio=2, whole=-1)
    assert other.decode(other.encode(g), 3)[0] == 11
    assert codec.decode(codec.encode(g), 3)[0] == 5
    assert other.info.params["ratio"].value == 2
    assert other.info.fingerprint == codec.info.fingerprint


KEYWORDS = """
void NewEncode(float* signed, uint8* delete, state float* int32_t, state float* new_int32_t, state float* bad,
               float scale = 2, int tile = 3, bool namespace = true, int n = 1, float gradient_ = 1) {
    float new = reduce(signed, add);
    float class_ = reduce(signed, greater);
    float class = reduce(signed, smaller);
    float n_ = reduce(signed * n, add);
    int at = reduce(signed > 0, add);
    float low = class * 2;
    float low_ = class_ * 3;
    int i = at + 1;
    float* v = signed * scale + (namespace ? tile : n) + low - low_ + new + n_ + i + signed.size * gradient_;
    float* template = v + int32_t + new_int32_t * 2 + bad;
    delete = concat(new, class, class_, low, low_, at, template);
    int32_t = signed + bad;
    new_int32_t = signed - bad;
    bad = signed;
}
void NewDecode(uint8* delete, float* signed, float scale = 2) {
    float new, class, class_, low, low_; int at; float* template;
    extract(delete, new, class, class_, low, low_, at, template);
    signed = template * scale;
}
"""


def test_any_name_may_be_used_also_a_keyword_of_cplusplus() -> None:
    interp, cpp = both(KEYWORDS)
    g = gradient("normal", 1100)
    (a, old), (b, new) = encode(interp, g), encode(cpp, g)
    assert same_bits(a, b)
    assert all(same_bits(old[k], new[k]) for k in old)
    want = interp.decode(a, 1100)
    for codec in (interp, cpp):
        out = np.full(1100, 10, f32)
        codec.decode_add(a, out, 0.5)  # the scale of decode_add is not the parameter that is called scale
        assert same_bits(out, f32(10) + f32(0.5) * want)


def test_cpp_groups_as_the_program_does_around_constants() -> None:
    """Found by the generated programs: ratio * (-3 + ratio) had become ratio * -3 + ratio."""
    text = """
void GroupEncode(float* g, uint8* c, float ratio = -2.5) {
    float* v = map(range(g.size), [&](int i) -> float { return g[i] * (-3.0 + ratio) * (2 - g[i]); });
    c = concat(v);
}
void GroupDecode(uint8* c, float* g) { float* v; extract(c, v); g = v; }
"""
    for codec in both(text):
        assert codec.encode(np.array([1, 3], f32)).view(f32).tolist() == [-5.5, 16.5]


IDENTITY = """
void IdentityEncode(float* gradient, uint8* compressed) { compressed = concat(gradient); }
void IdentityDecode(uint8* compressed, float* out) {
    float* gradient;
    extract(compressed, gradient);
    out = gradient;
}
"""


def test_the_identity_is_a_codec() -> None:
    g = gradient("normal", 1300)
    for codec in both(IDENTITY):
        payload = codec.encode(g)
        assert payload.tobytes() == g.tobytes()
        assert same_bits(codec.decode(payload, 1300), g)
        out = np.ones(1300, f32)
        assert same_bits(codec.decode_add(payload, out, 3.0), f32(1) + f32(3) * g)
        assert codec.info.summable


def test_a_state_may_be_sent() -> None:
    text = """
void SentEncode(float* g, uint8* compressed, state float* residual) {
    float* x = g + residual;
    compressed = concat(residual, x);
    residual = x;
}
void SentDecode(uint8* compressed, float* g) {
    float* residual;
    float* x;
    extract(compressed, residual, x);
    g = x - residual;
}
"""
    g = gradient("normal", 1040)
    results = [encode(codec, g) for codec in both(text)]
    assert same_bits(results[0][0], results[1][0])
    assert same_bits(results[0][1]["residual"], results[1][1]["residual"])
    assert results[0][0][: 4 * 1040].tobytes() == np.linspace(-0.5, 0.5, 1040, dtype=f32).tobytes()


def test_a_codec_may_lie_in_two_files_in_either_order() -> None:
    helper = "float twice(float x) { return x %s 2; }\n"
    one = write(
        helper % "*" + "void PairEncode(float* g, uint8* c) { float* t = map(g, twice); c = concat(t); }"
    )
    two = write(
        helper % "/" + "void PairDecode(uint8* c, float* g) { float* t; extract(c, t); g = map(t, twice); }"
    )
    g = np.array([1, 2, 3], f32)
    prints = set()
    for files in ((one, two), (two, one)):
        codec = api.compile(files, "interp")
        assert codec.encode(g).view(f32).tolist() == [2, 4, 6]
        assert codec.decode(codec.encode(g), 3).tolist() == [1, 2, 3]
        prints.add(codec.info.fingerprint)
    assert len(prints) == 1
    with pytest.raises(api.ParameterError, match="has no Decode"):
        api.compile(one, "interp")


def test_vectors_of_other_lengths_than_the_gradient_are_stored() -> None:
    text = """
void EveryEncode(float* gradient, uint8* compressed, int skip = 4) {
    int m = (gradient.size + skip - 1) / skip;
    int32* squares = map(range(m), [&](int i) -> int32 { return i * i; });
    float sum = reduce(squares, add);
    compressed = concat(sum, squares);
}
void EveryDecode(uint8* compressed, float* gradient, int skip = 4) {
    float sum; int32* squares;
    extract(compressed, sum, squares);
    gradient = map(range(gradient.size), [&](int i) -> float { return sum; });
}
"""
    for n in (0, 1, 4, 5, 4097):
        payloads = [codec.encode(np.zeros(n, f32)) for codec in both(text)]
        m = (n + 3) // 4
        assert len(payloads[0]) == 16 + 4 * m
        assert same_bits(payloads[0], payloads[1])
        assert payloads[0][16:].view(np.int32).tolist() == [i * i for i in range(m)]
    codec = compiled(text, "cpp").with_params(skip=2)
    assert len(codec.encode(np.zeros(10, f32))) == 16 + 20


@pytest.mark.parametrize(
    "loop",
    [
        "float* y = map(range(gradient.size + 5000), [&](int i) -> float { return gradient[i]; });",
        "float* z = map(range(5), [&](int i) -> float { return gradient[i]; });"
        " float* y = map(range(gradient.size), [&](int i) -> float { return z[i]; });",
        "float* y = map(range(gradient.size), [&](int i) -> float { return gradient[i + 1]; });",
    ],
)
def test_reading_outside_a_vector_is_an_error_and_no_crash(loop: str) -> None:
    text = f"""
void OutsideEncode(float* gradient, uint8* compressed) {{
    {loop}
    float s = reduce(y, add);
    compressed = concat(s);
}}
void OutsideDecode(uint8* compressed, float* gradient) {{
    float s;
    extract(compressed, s);
    gradient = map(range(gradient.size), [&](int i) -> float {{ return s; }});
}}
"""
    for codec in both(text):
        with pytest.raises(IndexError, match="outside"):
            codec.encode(np.ones(100, f32))


def test_a_select_reads_only_what_it_chooses() -> None:
    text = """
void ShiftEncode(float* gradient, uint8* compressed) {
    float* y = map(range(gradient.size), [&](int i) -> float { return i > 0 ? gradient[i - 1] : -1; });
    float* z = map(range(gradient.size), [&](int i) -> float {
        return i > 0 && gradient[i - 1] > 0 ? 1 : 0;
    });
    compressed = concat(y, z);
}
void ShiftDecode(uint8* compressed, float* gradient) {
    float* y;
    float* z;
    extract(compressed, y, z);
    gradient = y + z;
}
"""
    codec = compiled(text, "interp")
    payload = codec.encode(np.array([5, 6, 7], f32))
    assert payload[:12].view(f32).tolist() == [-1, 5, 6]
    assert payload[16:28].view(f32).tolist() == [0, 1, 1]
