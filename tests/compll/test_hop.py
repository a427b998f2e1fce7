"""A hop is encode(scale * (g + decode(payload))), fused or composed, bit for bit, on every backend."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
from compll_cases import LABELS, compiled, gradient, same_bits

import compll
from compll import codec as api
from compll import driver, ir
from compll.errors import ParameterError, PayloadError
from compll.passes import fuse

SIZES = (0, 1, 17, 129, 1023, 1024, 1025, 2048, 3 * 1024 + 5)

# Two sizes of blocks, which a hop reads inside each other's reductions; bits and bytes; and names that the
# compiler would choose for the payload that is received.
TWO = """
void TwoEncode(float* gradient, uint8* compressed, int size = 7, int wide = 16) {
    float* received = reduce(chunk(abs(gradient), wide), greater);
    float* received_mean = reduce(chunk(gradient, size), 0, add) / size;
    uint<3>* code = map(range(gradient.size), [&](int i) -> uint<3> {
        return (gradient[i] - received_mean[i / size]) * 2 + 4;
    });
    bool* up = gradient > 0;
    compressed = concat(received, received_mean, code, up);
}
void TwoDecode(uint8* compressed, float* gradient, int size = 7, int wide = 16) {
    float* received; float* received_mean; uint<3>* code; bool* up;
    extract(compressed, received, received_mean, code, up);
    gradient = map(range(gradient.size), [&](int i) -> float {
        return (code[i] - 4) * (received[i / wide] / 3) + received_mean[i / size] + (up[i] ? 0.125 : -0.125);
    });
}
"""
NEIGHBOUR = """
void NeighbourEncode(float* gradient, uint8* compressed) {
    int8* q = map(range(gradient.size), [&](int i) -> int8 { return gradient[i == 0 ? 0 : i - 1] * 10; });
    compressed = concat(q);
}
void NeighbourDecode(uint8* compressed, float* gradient) {
    int8* q;
    extract(compressed, q);
    gradient = q * 0.1;
}
"""
OUTLIERS = """
void OutliersEncode(float* gradient, uint8* compressed) {
    int8* q = gradient * 10;
    uint32* index = filter(range(gradient.size), [&](int i) -> bool { return abs(gradient[i]) > 1.5; });
    compressed = concat(q, index, gather(gradient, index));
}
void OutliersDecode(uint8* compressed, float* gradient) {
    int8* q; uint32* index; float* value;
    extract(compressed, q, index, value);
    gradient = scatter(q * 0.1, index, value);
}
"""
MEAN = """
void MeanEncode(float* gradient, uint8* compressed) {
    int8* q = gradient * 10;
    compressed = concat(q);
}
void MeanDecode(uint8* compressed, float* gradient) {
    int8* q;
    extract(compressed, q);
    gradient = q * 0.1 - reduce(q, add) * 0.001;
}
"""
KEYED = """
void KeyedEncode(float* gradient, uint8* compressed, shared uint64 key) {
    float* s = sample(gradient, 1, key);
    float first = reduce(s, add);
    compressed = concat(first, gradient - first);
}
void KeyedDecode(uint8* compressed, float* gradient, shared uint64 key) {
    float first; float* rest;
    extract(compressed, first, rest);
    gradient = rest + first;
}
"""
CODECS: dict[str, dict[str, Any]] = {
    "onebit": {},
    "terngrad": {"bitwidth": 3, "error_feedback": True},
    "int8": {"block": 1500},
    "qsgd": {"bucket": 12, "bits": 3},
    "two": {},
    "mxfp4": {},
    "neighbour": {},
}
OWN = {"two": TWO, "neighbour": NEIGHBOUR}


@functools.cache
def codec(name: str, backend: str) -> compll.Codec:
    text = OWN[name] if name in OWN else compll.algorithms()[name].read_text("utf-8")
    return compiled(text, backend, **CODECS[name])


def composed(
    codec: compll.Codec, payload: np.ndarray, g: np.ndarray, scale: float, state: dict[str, np.ndarray]
) -> api.Result:
    """What a hop is defined to be."""
    with np.errstate(all="ignore"):
        total = np.float32(scale) * (g + codec.decode(payload, len(g)))
    item = api.Item(grad=total, seed=9, state=state or None)
    return codec.batch("encode", [item])[0]


def states(codec: compll.Codec, n: int) -> dict[str, np.ndarray]:
    return {name: np.linspace(-0.5, 0.5, n, dtype=np.float32) for name in codec.new_state(n)}


def cases(meant: compll.Codec, sizes: tuple[int, ...]) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Payloads, gradients and scales, with every edge value in each."""
    out = []
    for n in sizes:
        for k, label in enumerate(LABELS):
            before = gradient(("normal", "mixed", "huge")[k % 3], n, seed=5)
            payload = meant.encode(before, seed=3, state=states(meant, n) or None)
            for scale in (1.0, -0.25, float("inf")) if label == "mixed" else (0.3,):
                out.append((payload, gradient(label, n), scale))
    return out


def differs(name: str, backend: str, threads: int, sizes: tuple[int, ...] = SIZES) -> list[tuple[Any, ...]]:
    meant, made = codec(name, "interp"), codec(name, backend)
    wrong = []
    for payload, g, scale in cases(meant, sizes):
        old, new = states(meant, len(g)), states(meant, len(g))
        kept = g.copy()
        want = composed(meant, payload, g, scale, old)
        item = api.Item(grad=g, payload=payload, seed=9, shared_seed=9, scale=scale, state=new or None)
        got = made.batch("hop", [item], threads)[0]
        equal = (
            same_bits(got.value, want.value)
            and got.finite == want.finite
            and all(same_bits(new[k], old[k]) for k in old)
            and same_bits(g, kept)
        )
        if not equal:
            wrong.append((len(g), scale, got.finite, want.finite))
    return wrong


@pytest.mark.parametrize("name", CODECS)
def test_the_meaning_of_a_fused_hop_is_its_definition(name: str) -> None:
    assert codec(name, "interp")._program.fuses_hop
    assert differs(name, "interp", 1, SIZES[:-1]) == []


@pytest.mark.parametrize("threads", [1, 2, 4])
@pytest.mark.parametrize("name", CODECS)
def test_cpp_fuses_the_hop_bit_by_bit(name: str, threads: int) -> None:
    assert differs(name, "cpp", threads) == []


@pytest.mark.parametrize("name", list(CODECS)[:-2])
def test_cuda_kernels_fuse_the_hop_bit_by_bit(name: str) -> None:
    assert differs(name, "cudasim", 1) == []


def test_numba_fuses_the_hop_bit_by_bit() -> None:
    for threads in (1, 2):
        assert differs("two", "numba", threads, (0, 17, 1025, 3 * 1024 + 5)) == []


@pytest.mark.parametrize("backend", ["interp", "cpp", "cudasim"])
def test_a_gradient_of_16_bits_is_widened_before_the_sum(backend: str) -> None:
    meant, made = codec("onebit", "interp"), codec("onebit", backend)
    n = 1025
    payload, g = meant.encode(gradient("normal", n), state=states(meant, n)), gradient("mixed", n)
    with np.errstate(over="ignore"):
        half = g.astype(np.float16)
    old, new = states(meant, n), states(meant, n)
    want = composed(meant, payload, half.astype(np.float32), 0.3, old)
    got = made.batch("hop", [api.Item(grad=half, payload=payload, scale=0.3, state=new)])[0]
    assert same_bits(got.value, want.value)
    assert got.finite == want.finite
    assert same_bits(new["residual"], old["residual"])


def test_a_large_hop_is_the_same_at_every_number_of_threads() -> None:
    n = 70_001  # more than one thread's share
    meant, made = codec("onebit", "interp"), codec("onebit", "cpp")
    payload, g = meant.encode(gradient("huge", n), state=states(meant, n)), gradient("normal", n)
    old = states(meant, n)
    want = composed(meant, payload, g, 0.3, old)
    for threads in (1, 2, 4):
        new = states(meant, n)
        item = api.Item(grad=g, payload=payload, scale=0.3, state=new)
        assert same_bits(made.batch("hop", [item], threads)[0].value, want.value)
        assert same_bits(new["residual"], old["residual"])


def test_a_hop_passes_over_memory_as_often_as_its_encode() -> None:
    fused = set()
    for name in compll.algorithms():
        program = driver.load(api.find(name), {})
        passes = {
            f.op: sum(isinstance(b, ir.Pass) for b in fuse(f).body)
            for f in driver.unit_of(program.checked).functions
        }
        if program.fuses_hop:
            fused.add(name)
            assert passes["hop"] == passes["encode"], name
    composed = {name for name in compll.algorithms() if compll.compile(name, "interp").info.hop} - fused
    assert composed == {"hadamard4", "randomk"}  # they need the decoded vector whole


@pytest.mark.parametrize("backend", ["interp", "cpp"])
@pytest.mark.parametrize("text", [OUTLIERS, MEAN])
def test_what_needs_the_decoded_vector_whole_is_composed(text: str, backend: str) -> None:
    made = compiled(text, backend)
    assert made.info.hop
    assert not made._program.fuses_hop
    for n in (0, 1, 5, 1100):
        payload, g = made.encode(gradient("normal", n, seed=2)), gradient("normal", n)
        want = composed(made, payload, g, 0.5, {})
        assert same_bits(made.hop(payload, g, scale=0.5), want.value)


def test_a_hop_of_a_keyed_codec_needs_the_key() -> None:
    made = compiled(KEYED, "interp")
    g = gradient("normal", 40)
    payload = made.encode(g, seed=1, shared_seed=5)
    with pytest.raises(ParameterError, match="keyed needs shared_seed="):
        made.hop(payload, g, seed=1)
    total = g + made.decode(payload, 40, shared_seed=5)
    assert same_bits(made.hop(payload, g, seed=2, shared_seed=5), made.encode(total, seed=2, shared_seed=5))


@pytest.mark.parametrize("backend", ["interp", "cpp", "numba", "cudasim"])
def test_an_overflow_in_the_sum_is_not_finite_and_lanes_that_are_not_there_are_not_asked(
    backend: str,
) -> None:
    made = codec("onebit", backend)
    payload = made.encode(np.full(17, 1e37, np.float32), state=made.new_state(17))
    large = np.full(17, 3.38e38, np.float32)

    def finite(g: np.ndarray, payload: np.ndarray, scale: float) -> bool:
        item = api.Item(grad=g, payload=payload, scale=scale, state=made.new_state(17))
        return made.batch("hop", [item])[0].finite

    assert not finite(large, payload, 0.5)
    assert finite(-large, payload, 0.5)
    odd = payload.copy()
    odd[4:8] = np.array([np.inf], np.float32).view(
        np.uint8
    )  # the mean of the elements below 0, of which none is
    assert finite(-large, odd, 0.5)


@pytest.mark.parametrize("backend", ["interp", "cpp", "numba", "cudasim"])
def test_a_payload_that_is_refused_changes_no_state(backend: str) -> None:
    made = codec("terngrad", backend) if backend != "numba" else compll.compile("terngrad", "numba")
    state = states(made, 50)
    kept = {k: v.copy() for k, v in state.items()}
    g = gradient("normal", 50)
    payload = made.encode(g, seed=1, state=made.new_state(50) or None)
    wrong = payload.copy()
    wrong[0] = 6
    width = made.info.params["bitwidth"].value
    with pytest.raises(PayloadError, match=f"bitwidth = 6, and this codec has {width}"):
        made.hop(wrong, g, seed=1, state=state or None)
    with pytest.raises(PayloadError, match=r"too long: it has .* bytes, and 50 elements take"):
        made.hop(np.append(payload, payload), g, seed=1, state=state or None)
    assert all(same_bits(state[k], kept[k]) for k in kept)


def test_a_hop_is_not_written_over_the_payload_that_it_reads() -> None:
    made = codec("onebit", "cpp")
    room = np.zeros(200, np.uint8)
    g = gradient("normal", 100)
    payload = made.encode(g, state=made.new_state(100), out=room)
    with pytest.raises(ParameterError, match="out and payload share memory"):
        made.hop(payload, g, state=made.new_state(100), out=room)


def test_a_payload_may_begin_anywhere() -> None:
    made = codec("int8", "cpp")
    g = gradient("normal", 3000)
    payload = made.encode(g)
    shifted = np.concatenate([np.zeros(3, np.uint8), payload])[3:]
    assert same_bits(made.hop(shifted, g), made.hop(payload, g))
