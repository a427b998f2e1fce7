"""Selections, tables and reads at computed positions: every backend writes what the interpreter writes."""

from __future__ import annotations

import numpy as np
import pytest
from compll_cases import compiled, gradient, same_bits
from test_selection import GRADDROP, PAIR, RANDOMK

from compll import codec as api

BACKENDS = ("cpp", "numba", "cudasim")
SIZES = (0, 1, 7, 1025, 70_001)
LIKE_OTHERS = {  # programs that give the simulator nothing to run that others do not
    *("topk", "filter without one", "sort, greater first", "sort of unsigned", "sort by a key"),
    *("a threshold by sort", "reversed", "a reversed map", "a search", "graddrop", "randomk"),
}

SPARSE = {
    "filter with a limit": """
        uint32* index = filter(range(gradient.size), [&](int i) -> bool { return gradient[i] > 0.5; }, 40);
        compressed = concat(index, gather(gradient, index));""",
    "filter without one": """
        uint32* index = filter(range(gradient.size), [&](int i) -> bool { return gradient[i] > 0.5; });
        compressed = concat(index, gather(gradient, index));""",
    "a filter that computes positions": """
        int n = gradient.size;
        uint32* index = filter(range(n), [&](int i) -> bool {
            return i > 0 && gradient[i] > gradient[i - 1] && (i + 1 == n || gradient[i] >= gradient[i + 1]);
        });
        compressed = concat(index, gather(gradient, index));""",
    "topk": """
        uint32* index = topk(abs(gradient), gradient.size / 3);
        compressed = concat(index, gather(gradient, index));""",
    "topk by block": """
        uint32* index = topk(chunk(gradient, 100), 7);
        compressed = concat(index, gather(gradient, index));""",
    "topk of integers": """
        int* q = map(gradient, [&](float x) -> int { return x * 1000; });
        uint32* index = topk(q, 50);
        compressed = concat(index, gather(gradient, index));""",
    "topk of conditions": """
        uint32* index = topk(gradient > 0, 60);
        compressed = concat(index, gather(gradient, index));""",
    "topk of a count": """
        int k = reduce(gradient > 0, 0, add) / 2;
        uint32* index = topk(gradient, k);
        compressed = concat(index, gather(gradient, index));""",
    "a threshold by sort": """
        float* s = sort(abs(gradient), greater);
        float top = s[s.size / 10];
        uint32* index = filter(range(gradient.size), [&](int i) -> bool { return abs(gradient[i]) > top; });
        compressed = concat(index, gather(gradient, index));""",
}

DENSE = {
    "sort": ("float* s = sort(gradient, smaller);", "float", "s[i]"),
    "sort, greater first": ("float* s = sort(gradient, greater);", "float", "s[i]"),
    "sort by block": ("float* s = sort(chunk(gradient, 70), smaller);", "float", "s[i]"),
    "sort by large blocks": ("float* s = sort(chunk(gradient, 3000), greater);", "float", "s[i]"),
    "sort by a key": (
        "float* s = sort(gradient, [&](float a, float b) -> bool { return abs(a) < abs(b); });",
        "float",
        "s[i]",
    ),
    "sort of integers": (
        "int* q = map(gradient, [&](float x) -> int { return x * 100; }); int* s = sort(q, smaller);",
        "int",
        "s[i]",
    ),
    "sort of unsigned": ("uint32* s = sort(bitcast<uint32>(gradient), smaller);", "uint32", "s[i]"),
    "elements of a sort": (
        "float* s = sort(gradient, [&](float a, float b) -> bool { return abs(a) < abs(b); });"
        "float low = s[s.size / 4]; float high = s[s.size - 1 - s.size / 4];",
        "float",
        "gradient[i] < 0 ? low : high",
    ),
    "a search": (
        "float* levels = {-1, 0, 0.5, 2}; int* s = search(levels, gradient);",
        "int",
        "s[i]",
    ),
    "a search among entries that 32 bits do not hold": (
        "int* far = {-4294967296, 4294967296}; int8* q = gradient * 20; int* s = search(far, q);",
        "int8",
        "s[i]",
    ),
    "codes, read reversed": ("int n = gradient.size;", "uint<3>", "gradient[i] > 0 ? 5 : i % 7"),
    "conditions, read reversed": ("int n = gradient.size;", "bool", "gradient[i] > 0"),
    "single elements": (
        "int n = gradient.size; float* levels = {-1, 0, 0.5};"
        "float last = n > 1 && gradient[n - 1] > gradient[n - 2] ? gradient[n - 1] : 2;"
        "uint<3>* codes = gradient * 4; int third = n > 2 ? codes[2] : 9;"
        "int place = n == 0 ? 7 : search(levels, gradient[n / 2]);",
        "float",
        "gradient[i] + last + third + place",
    ),
    "a table": ("int* t = {5, 3, 1}; int n = gradient.size;", "int", "t[i % 3] + t[(n - i) % 3]"),
    "reversed": ("int n = gradient.size;", "float", "gradient[n - 1 - i]"),
    "a reversed map": (
        "int n = gradient.size; float* twice = gradient * 2 + 1;",
        "float",
        "twice[n - 1 - i]",
    ),
    "random numbers, reversed": (
        "int n = gradient.size;"
        "float* noise = map(range(n), [&](int i) -> float { return random<float>(0, 1); });",
        "float",
        "noise[n - 1 - i] + gradient[i]",
    ),
    "what nobody asks for is not out of range": (
        "int n = gradient.size;",
        "float",
        "i + 1 < n && gradient[i + 1] > 0 ? gradient[i + 1] : gradient[i]",
    ),
    "a dense scatter": (
        "int* at = filter(range(gradient.size), [&](int i) -> bool { return gradient[i] > 0.5; });"
        "float* s = scatter(gradient, at, 7); float most = reduce(s, greater);",
        "float",
        "s[i] + (most < 100 ? most : 0)",
    ),
}


def dense(name: str) -> str:
    setup, elem, body = DENSE[name]
    return f"""
    void DenseEncode(float* gradient, uint8* compressed) {{
        {setup}
        {elem}* out = map(range(gradient.size), [&](int i) -> {elem} {{ return {body}; }});
        compressed = concat(out);
    }}
    void DenseDecode(uint8* compressed, float* gradient) {{
        {elem}* out;
        extract(compressed, out);
        gradient = map(range(gradient.size), [&](int i) -> float {{ return out[gradient.size - 1 - i]; }});
    }}
    """


TEXTS = {
    name: f"void PairEncode(float* gradient, uint8* compressed) {{{body}\n}}{PAIR}"
    for name, body in SPARSE.items()
}
TEXTS |= {name: dense(name) for name in DENSE}
TEXTS |= {"graddrop": GRADDROP, "randomk": RANDOMK}


def run(codec: api.Codec, g: np.ndarray, threads: int) -> list[np.ndarray]:
    """Encode twice, decode and merge; return all that was written."""
    n, state, out = len(g), codec.new_state(len(g)), []
    for step in range(2):
        kept = {"state": state} if state else {}
        payload = codec.encode(g, seed=step, shared_seed=9, threads=threads, **kept)
        merged = np.full(n, -0.0, np.float32)
        codec.decode_add(payload, merged, 0.5, shared_seed=9)
        out += [payload, codec.decode(payload, n, shared_seed=9), merged, *(s.copy() for s in state.values())]
    return out


ON_NUMBA = (
    "filter with a limit",
    "topk by block",
    "topk of integers",
    "sort by large blocks",
    "codes, read reversed",
    "conditions, read reversed",
    "single elements",
    "a search among entries that 32 bits do not hold",
    "a dense scatter",
)
"""Numba compiles a program for seconds: these, and the drivers, have each selection and each kind of read."""
CASES = [
    (name, backend)
    for backend in BACKENDS
    for name in (ON_NUMBA if backend == "numba" else TEXTS)
    if backend != "cudasim" or name not in LIKE_OTHERS
]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_backends_write_what_the_interpreter_writes(name: str, backend: str) -> None:
    for n in SIZES:
        for kind in ("normal", "mixed", "zeros"):
            g = gradient(kind, n)
            want = run(compiled(TEXTS[name], "interp"), g, 1)
            for threads in (1, 2) if backend != "cudasim" else (1,):
                have = run(compiled(TEXTS[name], backend), g, threads)
                assert all(same_bits(a, b) for a, b in zip(want, have, strict=True)), (n, kind, threads)


OUTSIDE = """
void OutsideEncode(float* gradient, uint8* compressed, state float* old, int by = 0, int rank = 0) {
    float* s = sort(gradient, smaller);
    float middle = s[rank];
    float* moved = map(range(gradient.size), [&](int i) -> float {
        return gradient[i] > middle && gradient[i + by] > 0 ? 1 : 0;
    });
    compressed = concat(moved);
    old = old + moved;
}
void OutsideDecode(uint8* compressed, float* gradient, int by = 0) {
    float* moved;
    extract(compressed, moved);
    gradient = map(range(gradient.size), [&](int i) -> float { return moved[i + by]; });
}
"""


@pytest.mark.parametrize("backend", ("interp", *BACKENDS))
def test_a_read_out_of_range_is_an_error_that_leaves_the_state_alone(backend: str) -> None:
    codec = compiled(OUTSIDE, backend)
    g = np.linspace(1, 2, 3000, dtype=np.float32)
    state = codec.new_state(len(g))
    payload = codec.encode(g, state=state).copy()
    before = state["old"].copy()
    assert before.sum() == 2999
    for wrong in ({"by": 1}, {"by": -3000}, {"rank": 3000}, {"rank": -1}):
        with pytest.raises(IndexError):
            codec.with_params(**wrong).encode(g, state=state)
        assert np.array_equal(state["old"], before)
    with pytest.raises(api.PayloadError):
        codec.with_params(by=1).decode(payload, len(g))
    falling = g[::-1].copy()  # its first element is the greatest: the others do not ask for a neighbour
    falling[1:] = 0
    codec.with_params(by=5).encode(falling, state=state)


@pytest.mark.parametrize("backend", ("interp", *BACKENDS))
def test_corrupt_counts_and_indices_are_refused(backend: str) -> None:
    codec = compiled(TEXTS["filter with a limit"], backend)
    n = 1000
    payload = codec.encode(gradient("normal", n))
    noise = np.random.default_rng(3)
    refused = 0
    for _ in range(1000):
        bad = payload.copy()
        for place in noise.integers(0, 16 + 4 * 40, 2):
            bad[place] ^= np.uint8(1 << noise.integers(8))
        try:
            codec.decode(bad, n)
        except api.PayloadError:
            refused += 1
    assert refused > 300


def test_a_sort_of_many_runs_is_the_interpreter_s() -> None:
    """On CUDA a warp adds the counts of 32 runs of 4096 elements up at a time."""
    text = """
    [[no_hop]]
    void ManyEncode(float* gradient, uint8* compressed) {
        float* s = sort(gradient, smaller);
        compressed = concat(s);
    }
    void ManyDecode(uint8* compressed, float* gradient) {
        extract(compressed, gradient);
    }
    """
    g = gradient("mixed", 140_000)
    assert same_bits(compiled(text, "cudasim").encode(g), compiled(text, "interp").encode(g))
