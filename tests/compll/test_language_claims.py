"""What the language's contract says and no other file tests: each claim by a small program."""

from __future__ import annotations

import numpy as np
import pytest
from compll_cases import both, compiled, gradient, same_bits, write

from compll import codec as api
from compll import driver, ir

DECODE = """
void OneDecode(uint8* compressed, float* gradient) {
    float* v;
    extract(compressed, v);
    gradient = v;
}
"""


def one(body: str, top: str = "", formals: str = "", decode: str = DECODE) -> str:
    return f"{top}\nvoid OneEncode(float* gradient, uint8* compressed{formals}) {{\n{body}\n}}\n{decode}"


def sent(body: str, g: np.ndarray, top: str = "", backend: str = "interp") -> np.ndarray:
    """Return what a program sends of a gradient: one float vector."""
    return compiled(one(body, top), backend).encode(g, seed=7).view(np.float32)


G = np.array([3, -1, 0.5, -2], np.float32)


SENDS = {
    "float* t = {1, 2.5};\n| compressed = concat(gradient * t[1]);": G * 2.5,
    "float* t = {1, 2}; float s = 4;| s = s + 1; compressed = concat(gradient * t[1] * s);": G * 10,
    "int* t = {1, 2}; int f(float x) { return t[1] * x; }| compressed = concat(1.0 * map(gradient, f));": [
        *(6, -2, 1, -4)
    ],
    "| float* t = map(range(8), [&](int i) -> float { return i * i; });"
    " compressed = concat(map(gradient, [&](float x) -> float { return t[int(abs(x))]; }));": [9, 1, 0, 4],
    "| compressed = concat(map(gradient, [&](float x) -> float { return search({-1, 0, 1}, x); }));": [
        *(3, 0, 2, 0)
    ],
    "| float m = reduce(gradient, 1, max); compressed = concat(gradient * m);": G * 3,
    "| float m = reduce(gradient, 1, min); compressed = concat(gradient * m);": G * -2,
    "| compressed = concat(gradient * sqrt(gradient.size) * log2(4));": G * 4,
    "| float s = 1; { float s = 2; s = 3; } compressed = concat(gradient * s);": G,
    "| compressed = concat(uint<3>(gradient) * 1.0);": [3, 0, 0, 0],
    "| int least = -9223372036854775808; compressed = concat(gradient * (least < 0 ? 1 : 2));": G,
    "| int* at = range(gradient.size); compressed = concat(gradient * at);": [0, -1, 1, -6],
    "| compressed = concat(range(gradient.size) * 0.5);": [0, 0.5, 1, 1.5],
}


@pytest.mark.parametrize("backend", ["interp", "cpp"])
@pytest.mark.parametrize("program", SENDS)
def test_a_program_sends(program: str, backend: str) -> None:
    top, _, body = program.partition("|")
    assert sent(body, G, top, backend).tolist() == np.asarray(SENDS[program], np.float32).tolist()


def test_vectors_of_constants_are_tables_made_by_the_compiler() -> None:
    body = """
    int n = 3;
    float* t = map(range(4), [&](int i) -> float { return i * n; });
    compressed = concat(gradient * t[1]);
"""
    encode = driver.check_files([write(one(body))], {})[0].encode
    assert encode is not None
    tables = [b for b in encode.body if isinstance(b, ir.Table)]
    assert [[v.value for v in t.values if isinstance(v, ir.Const)] for t in tables] == [[0, 3, 6, 9]]
    for reads_data in ("gradient.size", "gradient[0]"):
        encode = driver.check_files([write(one(body.replace("= 3", f"= {reads_data}")))], {})[0].encode
        assert encode is not None
        assert not any(isinstance(b, ir.Table) for b in encode.body)


def test_a_table_that_reads_outside_another_is_an_error_of_the_call() -> None:
    body = """
    float* t = {1, 2};
    float* u = map(range(4), [&](int i) -> float { return t[i]; });
    compressed = concat(gradient * u[0]);
"""
    with pytest.raises(IndexError, match="outside"):
        sent(body, G)


def test_a_table_is_searched_in_the_type_in_which_it_meets_the_value() -> None:
    body = "int* t = {-1, 0, 1}; compressed = concat(1.0 * search(t, {0} * gradient));"
    assert sent(body.replace("{0}", "1.0"), np.array([0.5, -0.5, 1.5, np.nan], np.float32)).tolist() == [
        2,
        1,
        3,
        0,
    ]


def test_what_is_drawn_outside_of_a_map_is_drawn_once() -> None:
    g = np.ones(2000, np.float32)
    lines = [
        "compressed = concat(gradient * random<float>(0, 1));",
        "lambda_func f = [&]() -> float { return random<float>(0, 1); } compressed = concat(gradient * f());",
        "float some = 0.5; compressed = concat(gradient * (stochastic_round(some) + 1));",
    ]
    for line in lines:
        for codec in both(one(line)):
            assert len(set(codec.encode(g, seed=7).view(np.float32).tolist())) == 1, line
    inside = "compressed = concat(map(gradient, [&](float x) -> float { return x * f(); }));"
    drawn = sent("lambda_func f = [&]() -> float { return random<float>(0, 1); } " + inside, g)
    assert len(set(drawn.tolist())) > 1900


def test_the_size_of_a_selection_is_a_length() -> None:
    body = """
    uint32* index = filter(range(gradient.size), [&](int i) -> bool { return gradient[i] > 0; });
    uint32* small = filter(range(index.size), [&](int j) -> bool { return gradient[index[j]] < 1; });
    uint32* best = topk(gather(gradient, index), 2);
    float* scaled = map(range(index.size), [&](int j) -> float { return gradient[index[j]] * j; });
    compressed = concat(index, small, best, scaled);
"""
    decode = """
void OneDecode(uint8* compressed, float* gradient) {
    uint32* index; uint32* small; uint32* best; float* scaled;
    extract(compressed, index, small, best, scaled);
    float* marked = scatter(index.size, small, 10);
    gradient = scatter(gradient.size, index, marked + scaled);
}
"""
    codec = compiled(one(body, decode=decode), "interp")
    for n in (0, 1, 5, 2000):
        g = gradient("normal", n)
        payload = codec.encode(g)
        assert len(payload) <= codec.max_bytes(n)
        index = np.flatnonzero(g > 0)
        want = np.zeros(n, np.float32)
        scaled = g[index] * np.arange(len(index), dtype=np.float32)
        want[index] = np.where(g[index] < 1, np.float32(10), np.float32(0)) + scaled
        assert np.array_equal(codec.decode(payload, n), want)


def test_an_output_may_be_extracted_itself() -> None:
    decode = "void OneDecode(uint8* compressed, float* gradient) { extract(compressed, gradient); }"
    g = gradient("normal", 1100)
    for codec in both(one("compressed = concat(gradient);", decode=decode)):
        assert same_bits(codec.decode(codec.encode(g), 1100), g)
        assert codec.info.summable
    with pytest.raises(api.CompileError, match=r"gradient\.size elements and is assigned 3"):
        compiled(one("compressed = concat(range(3) * 1.0);", decode=decode), "interp")


def test_a_key_may_be_sent_and_compared() -> None:
    decode = """
void OneDecode(uint8* compressed, float* gradient, shared uint64 key) { extract(compressed, key, gradient); }
"""
    for codec in both(
        one("compressed = concat(key, gradient);", formals=", shared uint64 key", decode=decode)
    ):
        payload = codec.encode(G, seed=1, shared_seed=2**63)
        assert codec.decode(payload, 4, shared_seed=2**63).tolist() == G.tolist()
        with pytest.raises(api.PayloadError, match=f"made with key = {2**63}, and this codec has 5"):
            codec.decode(payload, 4, shared_seed=5)


def test_parameters_may_have_any_name_but_the_arguments_of_compile() -> None:
    text = one("compressed = concat(gradient * source * self);", formals=", float source = 2, float self = 3")
    codec = compiled(text, "interp", source=5)
    assert codec.encode(G).view(np.float32).tolist() == (G * 15).tolist()
    assert codec.with_params(self=1).encode(G).view(np.float32).tolist() == (G * 5).tolist()


def test_a_parameter_is_static_also_through_a_variable() -> None:
    formals = "int block = 1, uint8 bits = 4, float ratio = 1"
    decode = (
        "void OneDecode(uint8* compressed, float* gradient) { float* s; extract(compressed, gradient, s); }"
    )
    body = """
    int size = 2 * block;
    uint8 w = bits;
    uint<w>* q = gradient;
    compressed = concat(1.0 * q * ratio, reduce(chunk(gradient, size), add));
"""
    text = f"void OneEncode(float* gradient, uint8* compressed, {formals}) {{ {body} }}\n{decode}"
    static = {name: p.static for name, p in compiled(text, "interp").info.params.items()}
    assert static == {"block": True, "bits": True, "ratio": False}
    assert compiled(text, "interp", bits=1).encode(G).view(np.float32).tolist() == [1, 0, 0, 0, 2, -1.5]


def test_a_sort_may_read_what_it_captures() -> None:
    body = """
    float* t = {0, 1, 2};
    float center = gradient[0];
    compressed = concat(sort(gradient, [&](float a, float b) -> bool {
        return abs(a - center) * t[2] < abs(b - center) * t[2];
    }));
"""
    assert sent(body, G).tolist() == [3, 0.5, -1, -2]


def test_a_program_that_has_feedback_is_refused_more() -> None:
    fed = one(
        "float* x = kept + gradient; compressed = concat(x); kept = x - decode(compressed);",
        formals=", state float* kept",
    )
    with pytest.raises(api.ParameterError, match="error feedback of its own \\(its state 'kept'\\)"):
        compiled(fed, "interp", True)
    named = one("compressed = concat(gradient); residual = gradient;", formals=", state float* residual")
    with pytest.raises(api.ParameterError, match="a state 'residual' of its own"):
        compiled(named, "interp", True)
    other = one("m = 0.5 * m + gradient; compressed = concat(m);", formals=", state float* m")
    assert compiled(other, "interp", True).info.feedback
    assert not compiled(other, "interp", True).info.hop
