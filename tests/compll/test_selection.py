"""filter, topk, sort, sample, gather, scatter, search and tables, on the interpreter, by plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
from compll_cases import both, gradient, same_bits, write

from compll import codec as api
from compll import driver, rng
from compll.backends import Call
from compll.backends.interp import interpret
from compll.passes import fuse

PAIR = """
void PairDecode(uint8* compressed, float* gradient) {
    uint32* index; float* value;
    extract(compressed, index, value);
    gradient = scatter(gradient.size, index, value);
}
"""


def pair(body: str, formals: str = "") -> api.Codec:
    text = f"void PairEncode(float* gradient, uint8* compressed{formals}) {{\n{body}\n}}\n{PAIR}"
    return api.compile(write(text), "interp")


def selected(payload: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Read a payload of a count, uint32 positions and float values, from the wire format's text."""
    count = int.from_bytes(payload[:4].tobytes(), "little")
    values_at = 16 + -(-4 * count // 16) * 16
    index = np.frombuffer(payload[16 : 16 + 4 * count].tobytes(), "<u4")
    return index, np.frombuffer(payload[values_at:].tobytes(), "<f4")


def rank(x: float) -> tuple[int, float, int]:
    """The total order -0 < +0 < ... < NaN."""
    return (1, 0, 0) if math.isnan(x) else (0, x, 0 if math.copysign(1, x) < 0 else 1)


ABOVE = pair("""
    uint32* index = filter(range(gradient.size), [&](int i) -> bool { return gradient[i] > 0.5; }, 4);
    compressed = concat(index, gather(gradient, index));
""")


def test_filter_takes_the_first_positions_in_order() -> None:
    for n in (0, 1, 7, 2000):
        g = gradient("mixed", n)
        index, value = selected(ABOVE.encode(g))
        want = [i for i in range(n) if g[i] > 0.5][:4]
        assert index.tolist() == want
        assert np.array_equal(value, g[want], equal_nan=True)
        out = ABOVE.decode(ABOVE.encode(g), n)
        assert [i for i in range(n) if out[i] != 0] == [i for i in want if g[i] != 0]


def test_the_wire_format_s_example_of_a_sparse_pair() -> None:
    g = np.zeros(1000, np.float32)
    g[[3, 17, 999]] = 1, -2, 0.5
    codec = pair("""
        uint32* index = filter(range(gradient.size), [&](int i) -> bool { return gradient[i] != 0; });
        compressed = concat(index, gather(gradient, index));
    """)
    want = "03000000" + "00" * 12 + "0300000011000000e703000000000000" + "0000803f000000c00000003f"
    assert codec.encode(g).tobytes().hex() == want
    assert codec.encode(np.zeros(1000, np.float32)).tobytes() == bytes(16)
    assert codec.encode(np.zeros(0, np.float32)).tobytes() == bytes(16)
    assert np.array_equal(codec.decode(codec.encode(g), 1000), g)
    assert not codec.info.exact_size
    assert codec.info.sparse
    assert not codec.info.hop
    assert codec.max_bytes(1000) == 16 + 4000 + 4000


@pytest.mark.parametrize("k", [0, 1, 5, 100, 5000])
def test_topk_takes_the_greatest_ties_to_the_lower_position(k: int) -> None:
    codec = pair(
        "uint32* index = topk(gradient, k); compressed = concat(index, gather(gradient, index));",
        ", int k = 5",
    ).with_params(k=k)
    for kind in ("mixed", "normal", "zeros"):
        g = gradient(kind, 1003)
        raw = codec.encode(g)
        count = min(k, len(g))
        want = sorted(sorted(range(len(g)), key=lambda i: (rank(g[i]), -i), reverse=True)[:count])
        assert np.frombuffer(raw[: 4 * count].tobytes(), "<u4").tolist() == want
        assert len(raw) == codec.max_bytes(len(g))  # k is known to the host: no count travels


@pytest.mark.parametrize("order", ["smaller", "greater"])
@pytest.mark.parametrize("block", [0, 1, 64, 1000])
def test_sort_has_one_total_order(order: str, block: int) -> None:
    over = f"chunk(gradient, {block})" if block else "gradient"
    codec = api.compile(
        write(f"""
        void SortedEncode(float* gradient, uint8* compressed) {{
            float* s = sort({over}, {order});
            compressed = concat(bitcast<uint32>(s));
        }}
        void SortedDecode(uint8* compressed, float* gradient) {{
            uint32* s; extract(compressed, s); gradient = bitcast<float>(s);
        }}
        """),
        "interp",
    )
    g = gradient("mixed", 1003)
    out = codec.encode(g).view("<f4")
    parts = [g[at : at + block] for at in range(0, len(g), block)] if block else [g]
    want = [x for part in parts for x in sorted(part, key=rank, reverse=order == "greater")]
    assert np.array_equal(out, np.array(want, np.float32), equal_nan=True)
    assert np.array_equal(np.signbit(out)[out == 0], np.signbit(np.array(want))[np.array(want) == 0])


def test_sort_by_a_key_is_stable() -> None:
    codec = api.compile(
        write("""
        void KeyEncode(float* gradient, uint8* compressed) {
            compressed = concat(sort(gradient, [&](float a, float b) -> bool { return abs(a) < abs(b); }));
        }
        void KeyDecode(uint8* compressed, float* gradient) {
            float* s; extract(compressed, s); gradient = s;
        }
        """),
        "interp",
    )
    g = np.array([3, -1, 1, -3, 2, 1, -1, 0], np.float32)
    assert codec.encode(g).view("<f4").tolist() == [0, -1, 1, 1, -1, 2, 3, -3]


def test_a_sample_has_one_element_of_each_stratum() -> None:
    codec = api.compile(
        write("""
        void SampleEncode(float* gradient, uint8* compressed, int m = 10) {
            compressed = concat(sample(gradient, m));
        }
        void SampleDecode(uint8* compressed, float* gradient, int m = 10) {
            float* s;
            extract(compressed, s);
            gradient = map(range(gradient.size), [&](int i) -> float { return 0.0; });
        }
        """),
        "interp",
    )
    for n, m in ((1000, 10), (7, 10), (4097, 300)):
        g = np.arange(n, dtype=np.float32)
        drawn = codec.with_params(m=m).encode(g, seed=5).view("<f4").astype(int)
        count = min(m, n)
        assert len(drawn) == count
        word = rng.words(np.arange(count), 0, 5).astype(int)
        for j, place in enumerate(drawn):
            low, high = j * n // count, (j + 1) * n // count
            assert place == low + (int(word[j]) * (high - low) >> 32)
            assert low <= place < high


RANDOMK = """
void RandomEncode(float* gradient, uint8* compressed, shared uint64 key, float ratio = 0.1) {
    compressed = concat(sample(gradient, ceil(ratio * gradient.size), key));
}
void RandomDecode(uint8* compressed, float* gradient, shared uint64 key, float ratio = 0.1) {
    float* value;
    extract(compressed, value);
    gradient = scatter(gradient.size, sample(range(gradient.size), ceil(ratio * gradient.size), key), value);
}
"""


def test_a_shared_seed_draws_the_same_positions_in_encode_and_decode() -> None:
    codec = api.compile(write(RANDOMK), "interp")
    g = gradient("normal", 1000)
    out = codec.decode(codec.encode(g, shared_seed=3), 1000, shared_seed=3)
    assert np.count_nonzero(out) == 100
    assert np.array_equal(out[out != 0], g[out != 0])
    assert codec.info.summable
    assert codec.info.exact_size
    assert codec.info.keyed
    total = np.full(1000, -0.0, np.float32)
    codec.decode_add(codec.encode(g, shared_seed=3), total, shared_seed=3)
    assert np.signbit(total[out == 0]).all()  # where nothing is named, nothing is added
    other = codec.decode(codec.encode(g, shared_seed=4), 1000, shared_seed=4)
    assert not np.array_equal(out != 0, other != 0)


def test_decode_add_of_a_scatter_touches_only_what_it_names() -> None:
    g = np.zeros(100, np.float32)
    g[5] = 3
    codec = ABOVE
    out = np.full(100, -0.0, np.float32)
    out[7] = np.nan
    before = out.copy()
    codec.decode_add(codec.encode(g), out, 0.5)
    assert out[5] == 1.5
    before[5] = 1.5
    assert np.array_equal(out.view(np.uint32), before.view(np.uint32))


def test_search_counts_the_entries_below() -> None:
    codec = api.compile(
        write("""
        void SearchEncode(float* gradient, uint8* compressed) {
            float* levels = {-1, 0, 0.5, 2};
            compressed = concat(search(levels, gradient));
        }
        void SearchDecode(uint8* compressed, float* gradient) {
            int* s; float* middle = {-2, -0.5, 0.25, 1, 3};
            extract(compressed, s);
            gradient = map(range(gradient.size), [&](int i) -> float { return middle[s[i]]; });
        }
        """),
        "interp",
    )
    g = np.array([-5, -1, -0.5, 0, -0.0, 0.25, 0.5, 1, 2, 3, np.inf, -np.inf, np.nan], np.float32)
    want = [sum(level < x for level in (-1, 0, 0.5, 2)) for x in g]
    assert codec.encode(g).view("<i8").tolist() == want
    assert codec.decode(codec.encode(g), len(g)).tolist() == [(-2, -0.5, 0.25, 1, 3)[k] for k in want]


GRADDROP = f"""
void PairEncode(float* gradient, uint8* compressed, state float* residual,
                float drop = 0.9, float sampling = 0.1) {{
    float* x = gradient + residual;
    float* s = sort(abs(sample(x, max(ceil(sampling * x.size), int(16 / (1 - drop))))), smaller);
    float threshold = s[int(drop * s.size)];
    uint32* index = filter(range(x.size), [&](int i) -> bool {{ return abs(x[i]) > threshold; }},
                           2 * ceil((1 - drop) * x.size));
    compressed = concat(index, gather(x, index));
    residual = x - decode(compressed);
}}
{PAIR}
"""


def test_graddrop_keeps_what_it_drops() -> None:
    """The language's own example: nothing is lost, and about the wanted share is sent."""
    codec = api.compile(write(GRADDROP), "interp")
    n, total, sent = 20_000, np.zeros(20_000), np.zeros(20_000)
    state = codec.new_state(n)
    for step in range(5):
        g = gradient("normal", n, seed=step)
        payload = codec.encode(g, seed=step, state=state)
        out = codec.decode(payload, n)
        total, sent = total + g, sent + out
        assert 0.05 < np.count_nonzero(out) / n < 0.2
        kept = np.abs(out[out != 0]).min()
        assert np.abs(state["residual"]).max() <= kept
    assert np.abs(total - sent - state["residual"]).max() < 1e-4
    assert codec.info.feedback
    assert codec.max_bytes(n) < 8 * n


def test_a_payload_that_this_program_did_not_make_is_refused() -> None:
    n = 1000
    payload = ABOVE.encode(gradient("normal", n))
    for at, value, words in ((0, 5, "allow 4"), (16, 0xFF, "corrupt"), (19, 0xFF, "corrupt")):
        bad = payload.copy()
        bad[at] = value
        with pytest.raises(api.PayloadError, match=words):
            ABOVE.decode(bad, n)
    for size in (0, 3, 15, len(payload) - 1):
        with pytest.raises(api.PayloadError, match="truncated"):
            ABOVE.decode(payload[:size], n)
    with pytest.raises(api.PayloadError, match="too long"):
        ABOVE.decode(np.append(payload, np.uint8(0)), n)
    noise = np.random.default_rng(1)
    for _ in range(500):
        bad = payload.copy()
        for place in noise.integers(0, len(bad), 3):
            bad[place] ^= np.uint8(1 << noise.integers(8))
        try:
            out = ABOVE.decode(bad, n)
        except api.PayloadError:
            continue
        assert np.count_nonzero(out) <= 4


@pytest.mark.parametrize("text", [GRADDROP, RANDOMK], ids=["graddrop", "randomk"])
def test_every_pass_keeps_the_meaning(text: str) -> None:
    program = driver.load([write(text)], {})
    n, values = 3000, program.checked.values
    g, old = gradient("normal", n), gradient("normal", n, seed=9)
    results = []
    for typed in driver.unit_of(program.checked).functions:
        for f in (typed, fuse(typed)):
            state = {name: old.copy() for name in f.states}
            payload = np.zeros(8 * n + 16, np.uint8) if f.op == "encode" else results[0][0]
            out = g.copy()
            outcome = interpret(f, Call(n, out, payload, 5, 5, 0.5, state, state), values)
            assert outcome.status == 0
            results.append((payload[: outcome.length], out, *state.values()))
    for a, b in zip(results[::2], results[1::2], strict=True):
        assert all(np.array_equal(x, y) for x, y in zip(a, b, strict=True))


@pytest.mark.parametrize(("kind", "most"), [("uint8", 2**8), ("int16", 2**15), ("uint32", 2**32)])
def test_positions_kept_in_a_narrow_type_limit_n(kind: str, most: int) -> None:
    codec = api.compile(write(GRADDROP.replace("uint32* index", f"{kind}* index")), "interp")
    assert codec.max_bytes(most) > 0
    with pytest.raises(
        api.ParameterError, match=f"positions as {kind}.*of {most} elements, not of {most + 1}"
    ):
        codec.max_bytes(most + 1)
    if most < 2**10:
        with pytest.raises(api.ParameterError, match="positions"):
            codec.encode(gradient("normal", most + 1), seed=1, state=codec.new_state(most + 1))


def test_encode_refuses_what_decode_has_no_positions_for() -> None:
    codec = api.compile(
        write("""
void DrawEncode(float* gradient, uint8* compressed, shared uint64 key) {
    compressed = concat(sample(gradient, gradient.size / 2, key));
}
void DrawDecode(uint8* compressed, float* gradient, shared uint64 key) {
    float* value;
    extract(compressed, value);
    uint1* index = sample(range(gradient.size), gradient.size / 2, key);
    gradient = scatter(gradient.size, index, value);
}
"""),
        backend="interp",
    )
    assert len(codec.encode(gradient("normal", 2), seed=1)) == codec.max_bytes(2)
    for call in (codec.max_bytes, lambda n: codec.encode(gradient("normal", n), seed=1)):
        with pytest.raises(api.ParameterError, match="of 2 elements, not of 37"):
            call(37)


def test_positions_of_a_shorter_vector_may_be_kept_in_a_narrow_type() -> None:
    codec = pair(
        "uint8* at = topk(gather(gradient, sample(range(gradient.size), 200, key)), 3); uint32* index = at;"
        " compressed = concat(index, gather(gradient, index));",
        ", shared uint64 key",
    )
    assert len(codec.encode(gradient("normal", 5000), seed=1)) == 16 + 12


@pytest.mark.parametrize("size", [1, 15, 16, 17, 31, 33, 64, 255, 300])
@pytest.mark.parametrize("kind", ["float", "int"])
def test_tables_of_every_size_are_searched_and_read_alike(kind: str, size: int) -> None:
    entries = ", ".join(f"{k - size // 2}{'.5' if kind == 'float' else ''}" for k in range(size))
    text = f"""
void TableEncode(float* gradient, uint8* compressed) {{
    {kind}* table = {{{entries}}};
    int32* below = map(range(gradient.size), [&](int i) -> int32 {{
        return search(table, {kind}(gradient[i]));
    }});
    float* entry = map(range(gradient.size), [&](int i) -> float {{
        return table[clamp(int(gradient[i]), 0, {size - 1})];
    }});
    compressed = concat(below, entry);
}}
void TableDecode(uint8* compressed, float* gradient) {{
    int32* below;
    float* entry;
    extract(compressed, below, entry);
    gradient = map(range(gradient.size), [&](int i) -> float {{ return below[i] + entry[i]; }});
}}
"""
    meant, made = both(text)
    around = np.arange(-200, 200, 0.25, dtype=np.float32)
    for g in (around, gradient("mixed", 1100), around[:3]):
        payload = meant.encode(g)
        assert np.array_equal(made.encode(g), payload)
        assert same_bits(made.decode(payload, len(g)), meant.decode(payload, len(g)))
