"""The simulator runs what a GPU would: every fiber order, grid and alignment gives the interpreter's bits.

What the simulator finds out about kernels that are wrong is in test_cudasim_finds.py.
"""

from __future__ import annotations

import ctypes
import functools
import re
from typing import Any

import numpy as np
import pytest
from compll_cases import LABELS, OneLibrary, compiled, encode, gradient, same_bits, write
from test_blocks import PROGRAM as BLOCKS
from test_language import FREE, KEYWORDS, LEVELS

import compll
from compll import codec as api
from compll import driver
from compll.backends import Packer, Unit, cudasim, launches
from compll.emit import cuda
from compll.errors import BackendError, ParameterError, PayloadError
from compll.types import FLOAT

SIZES = (0, 1, 3, 127, 129, 1023, 1024, 1025, 4096 * 3 + 5)
MIXED = """
void MixedEncode(float* gradient, uint8* compressed, state float* memory, float ratio = 0.75) {
    float* x = gradient * ratio + memory;
    float most = reduce(abs(x), greater);
    int8* whole = stochastic_round(x / most * 100);
    uint<5>* code = map(range(x.size), [&](int i) -> uint<5> { return i * 7 + random<int>(0, 9); });
    bool* up = x > 0;
    int64* wide = map(range(x.size), [&](int i) -> int64 { return i << 40; });
    compressed = concat(up, most, whole, code, wide);
    memory = x - gradient;
}
void MixedDecode(uint8* compressed, float* gradient) {
    float most; bool* up; int8* whole; uint<5>* code; int64* wide;
    extract(compressed, up, most, whole, code, wide);
    gradient = map(range(gradient.size), [&](int i) -> float {
        return (up[i] ? most : -most) * whole[i] + code[i] + (wide[i] >> 40);
    });
}
"""
ELEMENTARY = """
void ElementaryEncode(float* gradient, uint8* compressed) {
    compressed = concat(exp(gradient), exp2(gradient), log(gradient), log2(gradient));
}
void ElementaryDecode(uint8* compressed, float* gradient) {
    float* e; float* p; float* l; float* b;
    extract(compressed, e, p, l, b);
    gradient = e + p + l + b;
}
"""
SELECTING = """
void SelectingEncode(float* gradient, uint8* compressed, state float* memory) {
    float* x = gradient + memory;
    int n = x.size;
    int* t = {5, 3, inf > 1 ? 1 : 0};
    float* levels = {-inf, -0.5, 0.25, 2};
    float* s = sort(abs(x), greater);
    float top = s[n / 10];
    uint32* index = filter(range(n), [&](int i) -> bool { return abs(x[i]) > top; }, n / 20);
    uint32* most = topk(abs(x), n / 3);
    uint32* each = topk(chunk(x, 100), 7);
    float* blocks = sort(chunk(x, 70), smaller);
    int* whole = sort(map(x, [&](float y) -> int { return y * 1000; }), smaller);
    uint<3>* code = map(range(n), [&](int i) -> uint<3> {
        return search(levels, x[n - 1 - i]) + t[i % 3] % 3;
    });
    compressed = concat(index, gather(x, index), most, each, blocks, whole, code);
    memory = scatter(x, index, 0);
}
void SelectingDecode(uint8* compressed, float* gradient) {
    uint32* index; float* value; uint32* most; uint32* each; float* blocks; int* whole; uint<3>* code;
    extract(compressed, index, value, most, each, blocks, whole, code);
    float* other = map(range(gradient.size), [&](int i) -> float {
        float one = i < most.size ? most[i] : each[i % each.size];
        return blocks[i] + whole[gradient.size - 1 - i] + code[i / 2] + one;
    });
    gradient = scatter(other, index, value);
}
"""
SELECTED = """
void SelectedEncode(float* gradient, uint8* compressed) {
    int n = gradient.size;
    uint32* most = topk(gradient, n / 1000);
    uint32* index = filter(range(n), [&](int i) -> bool { return gradient[i] > 2; });
    float* some = sort(map(range(n / 20), [&](int i) -> float { return gradient[i * 20]; }), smaller);
    compressed = concat(most, index, some, sort(gradient, greater)[n / 7]);
}
void SelectedDecode(uint8* compressed, float* gradient) {
    uint32* most; uint32* index; float* some; float middle;
    extract(compressed, most, index, some, middle);
    gradient = scatter(gradient.size, index, middle);
}
"""
OWN = {
    "selecting": SELECTING,
    "levels": LEVELS,
    "free": FREE,
    "keywords": KEYWORDS,
    "mixed": MIXED,
    "blocks": BLOCKS,
    "elementary": ELEMENTARY,
}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("onebit", {}),
    *(("terngrad", {"bitwidth": w}) for w in range(1, 9)),
    ("levels", {"bitwidth": 3}),
    ("free", {}),
    ("keywords", {}),
    ("mixed", {}),
    ("elementary", {}),
    ("selecting", {}),
    ("dgc", {}),
    ("randomk", {}),
    ("int8", {}),
    ("qsgd", {}),
    *(("blocks", {"size": size}) for size in (7, 48, 100, 1024, 1025, 3000)),
]


@functools.cache
def program(name: str, **params: Any) -> driver.Program:
    return driver.load(api.find(name if name in compll.algorithms() else str(write(OWN[name]))), params)


@functools.cache
def unit(name: str, **params: Any) -> Unit:
    return driver.unit_of(program(name, **params).checked)


@functools.cache
def simulated(name: str, order: str = "ascending", **params: Any) -> api.Codec:
    library = cudasim.build(unit(name, **params), order)
    return api.Codec(program(name, **params), OneLibrary(program(name, **params), library))


@functools.cache
def meant(name: str, **params: Any) -> api.Codec:
    whole = program(name, **params)
    return api.Codec(whole, driver.build(whole.checked, "interp"))


def differences(a: api.Codec, b: api.Codec, g: np.ndarray) -> list[str]:
    """Return what two codecs do not do alike: payload, new state, decoded values, and these added."""
    n = len(g)
    (p, old), (q, new) = encode(a, g), encode(b, g)
    added = [gradient("mixed", n, seed=4) for _ in range(2)]
    for codec, out in zip((a, b), added, strict=True):
        codec.decode_add(p, out, -0.7, shared_seed=7)
    alike = {
        "payload": same_bits(p, q),
        "state": all(same_bits(old[k], new[k]) for k in old),
        "decode": same_bits(a.decode(p, n, shared_seed=7), b.decode(p, n, shared_seed=7)),
        "decode_add": same_bits(*added),
    }
    return [what for what, equal in alike.items() if not equal]


@pytest.mark.parametrize("order", cudasim.ORDERS)
@pytest.mark.parametrize(("name", "params"), CASES, ids=lambda x: x if isinstance(x, str) else str(x))
def test_kernels_are_bit_equal_with_the_meaning_in_every_order_of_threads(
    name: str, params: dict[str, Any], order: str
) -> None:
    a, b = meant(name, **params), simulated(name, order, **params)
    for n in SIZES:
        for label in LABELS if n < 1025 else ("normal", "mixed"):
            assert differences(a, b, gradient(label, n)) == [], (n, label)


@pytest.mark.parametrize("name", ["onebit", "terngrad"])
def test_tile_results_beyond_one_tile_are_reduced_in_the_one_order(name: str) -> None:
    g = gradient("normal", 1024 * 1024 + 1024 * 3 + 7)
    a, b = compll.compile(name, "cpp"), compll.compile(name, "cudasim")
    assert b.backend == "cudasim"
    assert differences(a, b, g) == []


def test_counts_of_more_tiles_than_a_block_adds_up_at_once_and_digits_of_more_runs() -> None:
    g = gradient("normal", 2048 * 1024 + 1024 * 3 + 7)
    a, b = (compiled(SELECTED, backend) for backend in ("cpp", "cudasim"))
    assert same_bits(a.encode(g), b.encode(g))


@pytest.mark.parametrize("offset", [1, 2, 3, 4])
def test_vectors_may_begin_at_any_element(offset: int) -> None:
    n = 2100
    for name in ("onebit", "mixed"):
        a, b = meant(name), simulated(name)
        whole = gradient("normal", n + 8)
        before = [gradient("normal", n + 8, seed=2) for _ in range(2)]
        key = next(iter(a.new_state(0)))
        payloads = [
            c.encode(whole[offset : offset + n], seed=3, state={key: s[offset : offset + n]})
            for c, s in zip((a, b), before, strict=True)
        ]
        assert same_bits(*payloads)
        assert same_bits(*before)
        room = np.full(n + 8, 7, np.float32)
        b.decode(payloads[0], n, out=room[offset : offset + n])
        assert same_bits(room[offset : offset + n], a.decode(payloads[0], n))
        assert (np.delete(room, range(offset, offset + n)) == 7).all()


def test_a_vector_that_begins_inside_an_element_is_refused() -> None:
    g = np.zeros(41, np.uint8)[1:].view(np.float32)
    with pytest.raises(BackendError, match=r"gradient begins in the middle of an element.*copy it first"):
        simulated("terngrad", bitwidth=2).encode(g, seed=1)


def test_nothing_is_written_beside_the_payload_and_padding_is_zero() -> None:
    a, b = meant("terngrad", bitwidth=3), simulated("terngrad", bitwidth=3)
    for n in (0, 1, 5, 1029):
        out = np.full(b.max_bytes(n) + 64, 0xAA, np.uint8)
        payload = b.encode(gradient("normal", n), seed=1, out=out)
        assert same_bits(payload, a.encode(gradient("normal", n), seed=1))
        assert (out[len(payload) :] == 0xAA).all()


def test_a_batch_of_any_lengths_gives_what_single_calls_give() -> None:
    lengths = (0, 5000, 1, 1024, 70000, 129)
    for name in ("onebit", "mixed", "selecting"):
        codec = simulated(name)
        key = next(iter(codec.new_state(0)))
        grads = [gradient("normal", n) for n in lengths]
        states = [codec.new_state(n) for n in lengths]
        items = [
            api.Item(grad=g, seed=k, state=s) for k, (g, s) in enumerate(zip(grads, states, strict=True))
        ]
        results = codec.batch("encode", items)
        for k, (g, result) in enumerate(zip(grads, results, strict=True)):
            state = codec.new_state(len(g))
            assert same_bits(result.value, codec.encode(g, seed=k, state=state))
            assert same_bits(states[k][key], state[key])
        out = [
            api.Item(payload=r.value, out=np.empty(n, np.float32))
            for r, n in zip(results, lengths, strict=True)
        ]
        for r, n, decoded in zip(results, lengths, codec.batch("decode", out), strict=True):
            assert same_bits(decoded.value, codec.decode(r.value, n))
        assert codec.batch("encode", []) == []


@pytest.mark.parametrize(("name", "params"), [("terngrad", {"bitwidth": 4}), ("selecting", {})])
def test_every_grid_gives_the_same(
    name: str, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    codec = simulated(name, **params)

    def encode_all() -> list[np.ndarray]:
        items = [
            api.Item(grad=gradient("normal", n), seed=n, state=codec.new_state(n) or None)
            for n in (20_000, 7, 9000)
        ]
        return [r.value for r in codec.batch("encode", items)]

    want = encode_all()
    for most in (1, 2, 3):
        monkeypatch.setattr(launches, "MOST_X", most)
        assert all(map(same_bits, encode_all(), want))


def test_what_is_not_finite_is_told_for_each_item() -> None:
    grads = [gradient("normal", 3000) for _ in range(3)]
    grads[1][2999] = np.nan
    results = simulated("terngrad", bitwidth=2).batch("encode", [api.Item(grad=g, seed=1) for g in grads])
    assert [r.finite for r in results] == [True, False, True]


def test_a_payload_of_another_width_is_refused_and_nothing_is_written() -> None:
    two, four = simulated("terngrad", bitwidth=2), simulated("terngrad", bitwidth=4)
    payload = four.encode(gradient("normal", 64), seed=1)
    payload[0] = 3
    out = np.full(64, 7, np.float32)
    with pytest.raises(PayloadError, match="bitwidth = 3, and this codec has 4"):
        four.decode(payload, 64, out=out)
    assert (out == 7).all()
    with pytest.raises(PayloadError, match="it has 48 bytes, and 64 elements take 32"):
        two.decode(payload, 64)


def test_launches_over_the_elements_are_one_more_than_the_chain_of_reductions() -> None:
    for name, passes in (("onebit", 2), ("terngrad", 2), ("int8", 1), ("qsgd", 1)):
        made = cuda.generate(unit(name))
        over = {op: counts[1] for op, counts in made.counts.items()}
        assert over == {"encode": passes, "decode": 1, "decode_add": 1, "hop": passes}
        assert compll.compile(name, "cudasim").info.launches == made.counts
        assert compll.compile(name, "interp").info.launches == {}


def test_python_and_the_headers_agree_on_the_rule_of_launches() -> None:
    text = "".join(cuda.runtime().values())
    for name in ("TILE_THREADS", "ITEM_THREADS", "WARP", "MOST_X"):
        (value,) = re.findall(rf"\b{name} = ([\d< ]+)[,;]", text)
        low, _, shift = value.partition("<<")
        assert getattr(launches, name) == int(low) << int(shift or 0), name
    item = re.sub("//.*", "", text.partition("struct compll_item {")[2].partition("\n}")[0])
    assert re.findall(r"(\w+)[,;]", item) == list(launches.ITEM.names or ())


# --- the C ABI ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("onebit", {}),
        ("mixed", {}),
        ("terngrad", {"bitwidth": 5}),
        ("blocks", {"size": 3000}),
        ("selecting", {}),
    ],
)
def test_the_c_functions_launch_the_same_kernels(name: str, params: dict[str, Any]) -> None:
    codec, one = simulated(name, **params), unit(name, **params)
    library, n = codec._library.of(FLOAT), 5000
    assert isinstance(library, launches.LaunchLibrary)
    raw = library.device.library  # type: ignore[attr-defined]
    host_params = Packer(one.params).pack(codec._values)
    where = ctypes.c_void_p(host_params.ctypes.data)
    for ask in ("max_bytes", "scratch_bytes"):
        getattr(raw, f"{one.codec}_{ask}").restype = ctypes.c_int64
    scratch_bytes, blocks = (getattr(raw, f"{one.codec}_{ask}") for ask in ("scratch_bytes", "item_blocks"))
    blocks.restype = ctypes.c_int64
    for size in (0, 1, 1024, 4096, 4097, 2**31 + 5, 2**40):
        assert blocks(ctypes.c_int64(size)) == launches.item_blocks(size)
        assert scratch_bytes(ctypes.c_int64(size), where) == library.scratch_bytes(size, codec._values)
    assert getattr(raw, f"{one.codec}_max_bytes")(ctypes.c_int64(n), where) == codec.max_bytes(n)

    g = gradient("normal", n)
    want, state = encode(codec, g)
    old = {k: np.linspace(-0.5, 0.5, n, dtype=np.float32) for k in state}
    out = cudasim.aligned_empty(codec.max_bytes(n))
    scratch = cudasim.aligned_empty(library.scratch_bytes(n, codec._values))
    pointers = np.array([v.ctypes.data for v in old.values()], np.uint64)
    item = np.zeros(1, launches.ITEM)
    item["gradient"], item["payload"], item["scratch"] = (x.ctypes.data for x in (g, out, scratch))
    item["state"] = item["new_state"] = pointers.ctypes.data
    item["n"], item["capacity"], item["seed"] = n, len(out), 7
    call = getattr(raw, f"{one.codec}_encode_f32")
    arguments = [ctypes.c_void_p(item.ctypes.data), *map(ctypes.c_int64, (1, blocks(n))), where, None]
    assert call(*arguments) == 0
    assert (item["status"][0], item["length"][0]) == (0, len(want))
    assert same_bits(out, want)
    assert all(same_bits(old[k], state[k]) for k in state)
    item["capacity"] = len(out) - 1
    call(*arguments)
    assert item["status"][0] == -3


# --- messages ----------------------------------------------------------------------------------------


def test_an_unknown_backend_is_told_with_the_known_ones() -> None:
    with pytest.raises(BackendError, match=r"no backend 'cudasin'.*cudasim"):
        compll.compile("onebit", "cudasin")
    with pytest.raises(ParameterError, match="needs seed"):
        simulated("terngrad", bitwidth=2).encode(np.zeros(3, np.float32))
