"""The function of a reduction may use what any function may, and blocks may be reduced of any elements."""

from __future__ import annotations

import numpy as np
import pytest
from compll_cases import compiled, encode, gradient, same_bits

BACKENDS = ("cpp", "numba", "cudasim")
SIZES = (0, 1, 6, 129, 1025, 5000)
PARAMETERS = "float ratio = 0.75, int whole = -3, uint8 bits = 3"

CAPTURES = f"""
float scaled(float a, float b, float by) {{ return a * by + b; }}
void CapturesEncode(float* gradient, uint8* compressed, state float* memory, {PARAMETERS}) {{
    int n = gradient.size;
    float* table = {{1, 10, 100}};
    float* x = gradient + memory;
    float mean = reduce(x, add) / max(n, 1);
    bool up = mean > 0;
    uint<3>* code = map(x, [&](float v) -> uint<3> {{ return v * 2 + 3; }});
    bool* sign = x > 0;
    float* top = reduce(chunk(abs(x), 7), greater);
    uint32* found = filter(range(n), [&](int i) -> bool {{ return x[i] > mean; }}, n / 3);

    lambda_func reads = [&](float a, float b) -> float {{
        float y = scaled(max(a, b), mean, up ? ratio : whole) + table[int(a < b)] + search(table, b);
        return n > 5 && b > -1 ? y + top[n / 7 - int(n % 7 == 0)] * x[3] + code[n - 1] : y;
    }};
    float all = reduce(x, 1, reads);
    float* by_block = reduce(chunk(x, 70), 1, reads);
    int integers = reduce(code, whole, [&](int a, int b) -> int {{
        return (a ^ b) + whole + found.size + (n > 2 && sign[n - 2] ? code[0] : bits);
    }});
    compressed = concat(all, integers, by_block, code);
    memory = x * ratio;
}}
void CapturesDecode(uint8* compressed, float* gradient, {PARAMETERS}) {{
    float all; int integers; float* by_block; uint<3>* code;
    extract(compressed, all, integers, by_block, code);
    gradient = map(range(gradient.size), [&](int i) -> float {{ return all + by_block[i / 70]; }});
}}
"""
RECEIVED = """
void ReceivedEncode(float* gradient, uint8* compressed) {
    bool up = gradient.size > 1000;
    bool truth = reduce(gradient > 0, true, [&](bool a, bool b) -> bool { return up ? a && b : a || b; });
    float all = reduce(gradient, greater);
    lambda_func most = [&](float a, float b) -> float { return max(a, b * all); };
    float* large = reduce(chunk(gradient, 2048), 1, most);
    uint<3>* code = map(gradient, [&](float v) -> uint<3> { return v * 2 + 3; });
    compressed = concat(truth, all, large, code);
}
void ReceivedDecode(uint8* compressed, float* gradient) {
    bool truth; float all; float* large; uint<3>* code;
    extract(compressed, truth, all, large, code);
    float sum = reduce(code, 2, [&](float a, float b) -> float {
        return truth ? a - b * all : a + (gradient.size > 0 ? large[0] + code[0] : 0);
    });
    gradient = map(range(gradient.size), [&](int i) -> float { return sum + large[i / 2048]; });
}
"""


@pytest.mark.parametrize(
    ("text", "backend"),
    [(CAPTURES, b) for b in BACKENDS] + [(RECEIVED, b) for b in ("cpp", "cudasim")],
    ids=lambda x: x if x in BACKENDS else "encode" if x is CAPTURES else "decode",
)
def test_a_reduction_s_function_captures(text: str, backend: str) -> None:
    """Scalars, parameters, n, tables, a state, maps, codes, conditions, statistics; in Decode, fields."""
    made, interp = compiled(text, backend), compiled(text, "interp")
    for n in SIZES:
        for kind in ("normal", "mixed"):
            g = gradient(kind, n)
            payload, state = encode(interp, g)
            decoded = interp.decode(payload, n)
            for threads in (1, 2, 4) if backend == "cpp" else (1, 2):
                got, kept = encode(made, g, threads=threads)
                assert same_bits(got, payload), (n, kind, threads)
                assert all(same_bits(kept[name], state[name]) for name in state)
                assert same_bits(made.decode(payload, n), decoded), (n, kind)


ASKED = """
[[no_hop]]
void AskedEncode(float* gradient, uint8* compressed, int who = 0) {
    float* one = {1};
    float* few = map(range(gradient.size), [&](int i) -> float { return random<float>(0, 1); });
    lambda_func f = [&](float a, float b) -> float { return max(a, b) + 0 * one[int(b < 1)]; };
    float all = reduce(gradient, 0, [&](float a, float b) -> float {
        return who == 1 && b > 5 ? few[gradient.size] : f(a, b);
    });
    float* blocks = reduce(chunk(gradient, 100), 0, [&](float a, float b) -> float {
        return who == 2 && b > 5 ? few[-1] : f(a, b);
    });
    float* large = reduce(chunk(gradient, 1500), 0, [&](float a, float b) -> float {
        return who == 3 && b > 5 ? few[4 * gradient.size] : f(a, b);
    });
    compressed = concat(all, blocks, large);
}
void AskedDecode(uint8* compressed, float* gradient, int who = 0) {
    float all; float* blocks; float* large;
    extract(compressed, all, blocks, large);
    gradient = map(range(gradient.size), [&](int i) -> float { return all; });
}
"""


@pytest.mark.parametrize("backend", ("interp", *BACKENDS))
def test_it_is_asked_for_values_that_there_are_only(backend: str) -> None:
    """All elements are 1, so the table is read at its only entry; an absent lane, which holds 0, reads on."""
    for n in (1, 2, 31, 100, 129, 200, 1024, 1500, 4397):
        compiled(ASKED, backend).encode(np.ones(n, np.float32), seed=1)


@pytest.mark.parametrize("backend", ("interp", *BACKENDS))
@pytest.mark.parametrize("who", [1, 2, 3])
def test_what_it_reads_out_of_range_is_an_error(who: int, backend: str) -> None:
    made = compiled(ASKED, backend, who=who)
    g = np.ones(4397, np.float32)
    made.encode(g, seed=1)
    g[4396] = 6  # the last one alone asks
    with pytest.raises(IndexError, match="outside its range"):
        made.encode(g, seed=1)


HOP = """
void HopEncode(float* gradient, uint8* compressed) {
    float* top = reduce(chunk(gradient, 64), 1, [&](float a, float b) -> float {
        return gradient.size > 4 ? max(a, abs(b)) + gradient[4] : a;
    });
    int8* q = map(range(gradient.size), [&](int i) -> int8 { return gradient[i] / top[i / 64] * 127; });
    compressed = concat(top, q);
}
void HopDecode(uint8* compressed, float* gradient) {
    float* top; int8* q;
    extract(compressed, top, q);
    gradient = map(range(gradient.size), [&](int i) -> float { return q[i] * top[i / 64] / 127; });
}
"""


@pytest.mark.parametrize("backend", ["interp", "cpp", "cudasim"])
def test_in_a_hop_it_reads_the_sum(backend: str) -> None:
    made, interp = compiled(HOP, backend), compiled(HOP, "interp")
    for n in (0, 5, 1000):
        g, other = gradient("normal", n), gradient("normal", n, seed=2)
        payload = interp.encode(other)
        total = np.float32(0.5) * (g + interp.decode(payload, n))
        assert same_bits(made.hop(payload, g.copy(), scale=0.5), interp.encode(total))


DRAWN = """
[[no_hop]]
void DrawnEncode(float* gradient, uint8* compressed, int block = 8) {
    float* mean = reduce(chunk(gradient, block), 0, add) / block;
    float* x = map(gradient, [&](float x) -> float { return x + random<float>(0, 1); });
    float* sum = reduce(chunk(x, block), add);
    float* spread = reduce(chunk(map(range(gradient.size), [&](int i) -> float {
        return stochastic_round(gradient[i] - mean[i / block]) + random<int>(0, 9);
    }), block), 0, greater);
    uint<3>* codes = map(spread, [&](float s) -> uint<3> { return s; });
    bool* large = spread > 3;
    float* noisy = map(range(sum.size), [&](int j) -> float {
        return sum[j] * mean[j] + random<float>(0, 1);
    });
    compressed = concat(mean, codes, large, noisy);
}
void DrawnDecode(uint8* compressed, float* gradient, int block = 8) {
    float* mean; uint<3>* codes; bool* large; float* noisy;
    extract(compressed, mean, codes, large, noisy);
    gradient = map(range(gradient.size), [&](int i) -> float {
        return noisy[i / block] + codes[i / block] + large[i / block];
    });
}
"""


@pytest.mark.parametrize(("backend", "block"), [("cpp", 8), ("cpp", 3000), ("numba", 100), ("cudasim", 100)])
def test_random_numbers_and_codes_of_blocks(backend: str, block: int) -> None:
    made, interp = compiled(DRAWN, backend, block=block), compiled(DRAWN, "interp", block=block)
    for n in (0, 1, 129, 7001):
        g = gradient("normal", n)
        payload = interp.encode(g, seed=n)
        for threads in (1, 2, 4):
            assert same_bits(made.encode(g, seed=n, threads=threads), payload), (n, threads)
        assert same_bits(made.decode(payload, n), interp.decode(payload, n))


MEETING = """
void MeetingEncode(float* gradient, uint8* compressed) {
    float* mean = reduce(chunk(gradient, 16), 0, add) / 16;
    float sum = reduce(gradient, add);
    float* other = reduce(chunk(gradient * sum, 16), greater);
    float* both = map(range(mean.size), [&](int j) -> float { return mean[j] * other[j]; });
    compressed = concat(both, other);
}
void MeetingDecode(uint8* compressed, float* gradient) {
    float* both; float* other;
    extract(compressed, both, other);
    gradient = map(range(gradient.size), [&](int i) -> float { return both[i / 16] + other[i / 16]; });
}
"""


@pytest.mark.parametrize("backend", BACKENDS)
def test_statistics_of_two_passes_meet_in_one_value_a_block(backend: str) -> None:
    made, interp = compiled(MEETING, backend), compiled(MEETING, "interp")
    g = gradient("normal", 3001)
    assert same_bits(made.encode(g), interp.encode(g))
