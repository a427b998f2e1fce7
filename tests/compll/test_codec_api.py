"""The codec's arguments: what is taken, what is refused and in which words, and what is written when."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from compll_cases import compiled, encode, gradient, same_bits, write

import compll
from compll import Codec, Item, ParameterError, PayloadError

BACKENDS = ("interp", "cpp")
TERNGRAD = {b: compll.compile("terngrad", b) for b in BACKENDS}
ONEBIT = {b: compll.compile("onebit", b) for b in BACKENDS}
G = gradient("normal", 100)
HALVES = """
void HalvesEncode(float* gradient, uint8* compressed, float ratio = 0.5,
                  [[range(1, 4)]] uint8 width = 2, bool on = true) {
    uint<width>* q = clamp(gradient * ratio, 0, on ? 3 : 1);
    compressed = concat(q);
}
void HalvesDecode(uint8* compressed, float* gradient, [[range(1, 4)]] uint8 width = 2) {
    uint<width>* q; extract(compressed, q); gradient = q;
}
"""


def refusals() -> dict[str, tuple[Callable[[Codec, Codec], Any], str]]:
    t_out = np.empty(1000, np.uint8)
    frozen = np.empty(1000, np.uint8)
    frozen.flags.writeable = False
    still = np.zeros(100, np.float32)
    still.flags.writeable = False
    payload = TERNGRAD["interp"].encode(G, seed=1)
    return {
        "float64": (lambda t, _: t.encode(G.astype(np.float64), 1), "float64.*astype"),
        "big endian": (lambda t, _: t.encode(G.astype(">f4"), 1), "astype"),
        "2-D": (lambda t, _: t.encode(G.reshape(10, 10), 1), "2 dimensions.*reshape"),
        "strided": (lambda t, _: t.encode(G[::2], 1), "contiguous"),
        "a list": (lambda t, _: t.encode([1.0], 1), "list.*NumPy"),
        "nothing": (lambda t, _: t.encode(None, 1), "NumPy"),
        "no seed": (lambda t, _: t.encode(G), "seed="),
        "negative seed": (lambda t, _: t.encode(G, -1), r"0\.\.2\^64-1"),
        "large seed": (lambda t, _: t.encode(G, 2**64), r"0\.\.2\^64-1"),
        "float seed": (lambda t, _: t.encode(G, 1.5), r"0\.\.2\^64-1"),
        "text seed": (lambda t, _: t.encode(G, "one"), r"0\.\.2\^64-1"),
        "nan seed": (lambda t, _: t.encode(G, float("nan")), r"0\.\.2\^64-1"),
        "infinite seed": (lambda t, _: t.encode(G, float("inf")), r"0\.\.2\^64-1"),
        "bad shared seed": (lambda t, _: t.encode(G, 1, shared_seed=-3), "shared_seed"),
        "small out": (lambda t, _: t.encode(G, 1, out=t_out[: t.max_bytes(100) - 1]), r"max_bytes\(100\) = "),
        "float out": (lambda t, _: t.encode(G, 1, out=np.empty(99, np.float32)), "uint8"),
        "read-only out": (lambda t, _: t.encode(G, 1, out=frozen), "read-only"),
        "state for a stateless": (lambda t, _: t.encode(G, 1, state={"r": G}), "keeps"),
        "no threads": (lambda t, _: t.encode(G, 1, threads=0), "threads"),
        "half a thread": (lambda t, _: t.encode(G, 1, threads=1.5), "threads"),
        "no state": (lambda _, o: o.encode(G), "new_state"),
        "empty state": (lambda _, o: o.encode(G, state={}), "residual"),
        "wrong state": (lambda _, o: o.encode(G, state={"memory": G}), "residual"),
        "short state": (lambda _, o: o.encode(G, state={"residual": G[:99]}), "99 elements"),
        "float64 state": (lambda _, o: o.encode(G, state={"residual": G.astype(float)}), "float32"),
        "read-only state": (lambda _, o: o.encode(G, state={"residual": still}), "read-only"),
        "read-only new state": (
            lambda _, o: o.encode(G, state=o.new_state(100), new_state={"residual": still}),
            "read-only",
        ),
        "wrong new state": (lambda _, o: o.encode(G, state=o.new_state(100), new_state={}), "new_state"),
        "decode out of another length": (
            lambda t, _: t.decode(payload, 100, out=np.empty(99, np.float32)),
            "99",
        ),
        "decode into read-only": (lambda t, _: t.decode(payload, 100, out=still), "read-only"),
        "decode into bytes": (lambda t, _: t.decode(payload, 100, out=np.empty(100, np.uint8)), "float32"),
        "negative n": (lambda t, _: t.decode(payload, -1), "at least 0"),
        "half n": (lambda t, _: t.decode(payload, 1.5), "integer"),
        "text n": (lambda t, _: t.decode(payload, "100"), "integer"),
        "max_bytes of nothing": (lambda t, _: t.max_bytes(-5), "at least 0"),
        "new_state of nothing": (lambda _, o: o.new_state(-5), "at least 0"),
        "payload of floats": (lambda t, _: t.decode(G, 100), "uint8"),
        "payload of bytes": (lambda t, _: t.decode(b"123", 100), "bytes.*frombuffer|NumPy"),
        "scale of text": (lambda t, _: t.decode_add(payload, G.copy(), "x"), "scale"),
        "scale of nothing": (lambda t, _: t.decode_add(payload, G.copy(), None), "scale"),
        "unknown operation": (lambda t, _: t.batch("compress", []), "encode, decode, decode_add, hop"),  # type: ignore[arg-type]
        "static parameter": (lambda t, _: t.with_params(bitwidth=3), "static.*compile"),
        "unknown parameter": (lambda t, _: t.with_params(width=3), "bitwidth"),
    }


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", refusals())
def test_what_does_not_fit_is_refused_in_words_that_mend_it(case: str, backend: str) -> None:
    call, words = refusals()[case]
    with pytest.raises(ParameterError, match=words) as e:
        call(TERNGRAD[backend], ONEBIT[backend])
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"bitwidth": 0}, "from 1 to 8"),
        ({"bitwidth": 9}, "from 1 to 8"),
        ({"bitwidth": 256}, "0 to 255"),
        ({"bitwidth": 2.5}, "integers"),
        ({"bitwidth": float("inf")}, "integers"),
        ({"bitwidth": float("nan")}, "integers"),
        ({"bitwidth": "2"}, "uint8"),
        ({"bitwidth": True}, "uint8"),
        ({"bitwith": 2}, "did you mean 'bitwidth'"),
    ],
)
def test_parameters_are_checked_against_type_and_range(params: dict[str, Any], words: str) -> None:
    with pytest.raises(ParameterError, match=words):
        compll.compile("terngrad", "interp", **params)


def test_numpy_numbers_are_parameters_too() -> None:
    assert compll.compile("terngrad", "interp", bitwidth=np.int64(3)).info.params["bitwidth"].value == 3
    halves = compll.compile(write(HALVES), "interp", ratio=np.float32(0.25), on=np.bool_(False))
    assert halves.info.params["ratio"].value == 0.25
    assert halves.info.params["on"].value is False
    with pytest.raises(ParameterError, match="too large"):
        compll.compile(write(HALVES), "interp", ratio=10**400)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("terngrat", "did you mean 'terngrad'"),
        ("nothing.pse", "no file"),
        (("terngrad", "onebit"), "no file|second"),
        ("/", "no algorithm"),
    ],
)
def test_unknown_algorithms_and_files_are_named(source: Any, words: str) -> None:
    with pytest.raises((ParameterError, compll.CompileError), match=words):
        compll.compile(source, "interp")
    with pytest.raises(compll.BackendError, match="did you mean 'interp'"):
        compll.compile("onebit", "interpp")


@pytest.mark.parametrize("backend", BACKENDS)
def test_out_may_be_exact_longer_or_misaligned_and_nothing_beyond_is_written(backend: str) -> None:
    codec = TERNGRAD[backend]
    want = codec.encode(G, seed=5)
    room = np.full(4096, 0xAA, np.uint8)
    for offset in (0, 1, 15):
        room[:] = 0xAA
        got = codec.encode(G, seed=5, out=room[offset:])
        assert same_bits(got, want)
        assert got.ctypes.data == room[offset:].ctypes.data
        assert (room[offset + len(want) :] == 0xAA).all()
        assert (room[:offset] == 0xAA).all()
        assert same_bits(codec.decode(got, 100), codec.decode(want, 100))
    room[:] = 0xAA
    with pytest.raises(ParameterError):
        codec.encode(G, seed=5, out=room[: len(want) - 1])
    assert (room == 0xAA).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_new_state_may_lie_beside_the_old_one_or_in_slices_of_a_whole(backend: str) -> None:
    codec = ONEBIT[backend]
    whole = np.linspace(-1, 1, 300, dtype=np.float32)
    before = whole.copy()
    fresh = codec.new_state(100)
    payload = codec.encode(G, state={"residual": whole[100:200]}, new_state=fresh)
    assert same_bits(whole, before)
    again = codec.encode(G, state={"residual": whole[100:200]})
    assert same_bits(payload, again)
    assert same_bits(whole[100:200], fresh["residual"])
    assert same_bits(whole[:100], before[:100])
    assert same_bits(whole[200:], before[200:])
    x = G + before[100:200]
    assert same_bits(fresh["residual"], x - codec.decode(payload, 100))


@pytest.mark.parametrize("backend", BACKENDS)
def test_payloads_of_the_wrong_length_or_width_are_refused(backend: str) -> None:
    codec = TERNGRAD[backend]
    payload = codec.encode(G, seed=1)
    for bad in (payload[:-1], payload[:0], np.append(payload, np.uint8(0))):
        out = np.full(100, 7, np.float32)
        with pytest.raises(PayloadError, match=r"truncated|too long"):
            codec.decode(bad, 100, out=out)
        with pytest.raises(PayloadError):
            codec.decode_add(bad, out)
        assert (out == 7).all()
    with pytest.raises(PayloadError):
        codec.decode(payload, 105)
    wrong = payload.copy()
    wrong[0] = 3
    with pytest.raises(PayloadError, match="bitwidth = 3, and this codec has 2"):
        codec.decode(wrong, 100)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gaps_and_unused_bits_are_written_0_and_ignored(backend: str) -> None:
    codec = TERNGRAD[backend]
    payload = codec.encode(G[:3], seed=1)
    assert payload[1:4].tolist() == [0, 0, 0]
    assert payload[12:16].tolist() == [0] * 4
    noisy = payload.copy()
    noisy[1:4], noisy[12:16] = 255, 255
    noisy[16] |= 0xC0
    assert same_bits(codec.decode(noisy, 3), codec.decode(payload, 3))


@pytest.mark.parametrize("seed", [0, 2**63, 2**64 - 1])
def test_seeds_up_to_the_limits(seed: int) -> None:
    a, b = (TERNGRAD[k].encode(G, seed=seed) for k in BACKENDS)
    assert same_bits(a, b)
    assert not same_bits(a, TERNGRAD["cpp"].encode(G, seed=seed ^ 1))
    assert same_bits(a, TERNGRAD["cpp"].encode(G, seed=np.uint64(seed)))


@pytest.mark.parametrize("backend", BACKENDS)
def test_torch_tensors_in_give_torch_tensors_out(backend: str) -> None:
    codec = ONEBIT[backend]
    g = torch.from_numpy(G.copy()).requires_grad_()
    state = codec.new_state(100, like=g)
    payload = codec.encode(g, state=state)
    assert payload.dtype == torch.uint8
    assert isinstance(state["residual"], torch.Tensor)
    plain = codec.new_state(100)
    assert same_bits(payload.numpy(), codec.encode(G, state=plain))
    assert same_bits(state["residual"].numpy(), plain["residual"])
    out = torch.empty(100)
    assert codec.decode(payload, 100, out=out) is not None
    assert same_bits(out.numpy(), codec.decode(payload.numpy(), 100))
    assert isinstance(codec.decode(payload, 100), torch.Tensor)
    room = torch.zeros(1000, dtype=torch.uint8)
    codec.encode(g, state=codec.new_state(100), out=room)
    assert same_bits(room[: len(payload)].numpy(), payload.numpy())
    for bad, words in (
        (g.double(), "float64"),
        (torch.ones(4, 4), "dimensions"),
        (torch.ones(8)[::2], "contiguous"),
    ):
        with pytest.raises(ParameterError, match=words):
            codec.encode(bad, state=codec.new_state(100))
    with pytest.raises(compll.BackendError, match="meta"):
        codec.encode(torch.ones(4, device="meta"), state=codec.new_state(4))


@pytest.mark.parametrize("op", ["encode", "hop", "decode", "decode_add"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_equals_its_items_one_by_one(op: Any, backend: str) -> None:
    codec = ONEBIT[backend]
    sizes = (0, 1, 1000, 5000, 130)

    def items() -> list[Item]:
        made = []
        for k, n in enumerate(sizes):
            g = gradient("mixed" if k == 3 else "normal", n)
            payload, state = encode(codec, gradient("normal", n, seed=2))
            takes_payload = {} if op == "encode" else {"payload": payload}
            if op in ("encode", "hop"):
                made.append(Item(grad=g, seed=k, state=state, scale=0.5, **takes_payload))
            else:
                made.append(Item(out=np.ones(n, np.float32), scale=0.5, **takes_payload))
        return made

    together, single = items(), items()
    results = codec.batch(op, together, threads=2)
    for a, item in zip(results, single, strict=True):
        b = codec.batch(op, [item])[0]
        assert same_bits(a.value, b.value)
        assert a.finite == b.finite
    if op in ("encode", "hop"):
        assert [r.finite for r in results] == [True, True, True, False, True]
        for a, b in zip(together, single, strict=True):
            assert same_bits(a.state["residual"], b.state["residual"])  # type: ignore[index]


@pytest.mark.parametrize("name", ["onebit", "terngrad"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_hop_is_decode_add_scale_and_encode(name: str, backend: str) -> None:
    codec = compll.compile(name, backend)
    payload, _ = encode(codec, gradient("normal", 1500, seed=3))
    g = gradient("normal", 1500)
    a, b = ({k: np.full(1500, 0.25, np.float32) for k in codec.new_state(1500)} for _ in range(2))
    kept = g.copy()
    got = codec.hop(payload, g, seed=11, scale=0.3, state=a or None)
    total = np.float32(0.3) * (g + codec.decode(payload, 1500))
    assert same_bits(got, codec.encode(total, seed=11, state=b or None))
    assert all(same_bits(a[k], b[k]) for k in a)
    assert same_bits(g, kept)


def test_several_threads_may_use_one_codec_at_once() -> None:
    codec = ONEBIT["cpp"]
    gradients = [gradient("normal", 20000, seed=k) for k in range(6)]
    want = [codec.encode(g, state=codec.new_state(20000)) for g in gradients]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(30):
            if not same_bits(
                codec.encode(gradients[k], state=codec.new_state(20000), threads=1 + k % 2), want[k]
            ):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


def test_kernels_release_the_gil() -> None:
    """While one thread is in a kernel, another one counts far more than it could between calls."""
    codec = TERNGRAD["cpp"]
    big = np.zeros(2**24, np.float32)
    out = np.empty(codec.max_bytes(len(big)), np.uint8)
    done = threading.Event()

    def kernel() -> None:
        codec.encode(big, seed=1, out=out, threads=1)
        done.set()

    thread = threading.Thread(target=kernel)
    count = 0
    thread.start()
    while not done.is_set():
        count += 1
    thread.join()
    assert count > 1000


def test_keyword_arguments_of_compile_reach_the_program() -> None:
    codec = compiled(HALVES, "interp", width=4)
    assert codec.info.params["width"].value == 4
    assert codec.info.params["width"].static
    assert codec.info.params["width"].range == (1, 4)
    assert not codec.info.params["ratio"].static
    assert repr(codec) == "<Codec halves(ratio=0.5, width=4, on=True) on interp>"
