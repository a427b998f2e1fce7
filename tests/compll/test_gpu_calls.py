"""Calls on a GPU: which backend they take, when they wait, and that a graph can hold them.

The GPU is stood in for: see cupy_stand_in. What is counted there are a call's copies to and from the device.
"""

from __future__ import annotations

import gc
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import cupy_stand_in
import numpy as np
import pytest
import torch
from compll_cases import compiled, gradient, same_bits, write
from cupy_stand_in import GPU, of
from test_read_widths import PLAIN, WIDE

import compll
from compll import PayloadError, arrays
from compll.backends import launches

N = 3001
CODECS = ("onebit", "terngrad", "topk", "dgc")  # fixed sizes, of which topk reads by position; dgc's vary


@pytest.fixture(autouse=True)
def cupy(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    module = cupy_stand_in.module()
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


def encoded(codec: compll.Codec, g: Any, **more: Any) -> Any:
    """Encode from a state of zeros beside the gradient."""
    return codec.encode(g, seed=7, state=codec.new_state(len(g), like=g) or None, **more)


def meant(name: str, g: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the payload and what is decoded, as the interpreter has them."""
    codec = compll.compile(name, "interp")
    payload = encoded(codec, g)
    return payload, codec.decode(payload, len(g))


def room(codec: compll.Codec, n: int = N) -> Any:
    return of(np.zeros(codec.max_bytes(n), np.uint8))


# --- backend="auto" ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_auto_works_where_each_array_lies(kind: type) -> None:
    codec, g = compll.compile("onebit"), gradient("normal", N).astype(kind)
    assert codec.backend in ("cpp", "numba")
    want, decoded = meant("onebit", g)
    assert same_bits(encoded(codec, g), want)
    assert {place for place, *_ in codec._library.built} == {arrays.HOST}
    payload = encoded(codec, of(g))
    assert same_bits(payload.get(), want)
    assert {place for place, *_ in codec._library.built} == {arrays.HOST, arrays.GPU}
    for given in (want, payload):
        out = codec.decode(given, N)
        assert type(out) is type(given)
        assert same_bits(np.asarray(out), decoded)
        zeros = np.zeros(N, np.float32)
        added = codec.decode_add(given, of(zeros) if given is payload else zeros, 1.0)
        assert same_bits(np.asarray(added), decoded)
    assert type(codec.new_state(4, like=of(g))["residual"]) is cupy_stand_in.ndarray
    assert type(codec.new_state(4)["residual"]) is np.ndarray
    assert type(codec.decode(payload, N, dtype="float16")) is cupy_stand_in.ndarray


def test_one_call_has_its_arrays_in_one_place() -> None:
    codec, g = compll.compile("terngrad"), gradient("normal", 9)
    with pytest.raises(compll.BackendError, match=r"out lies in the memory of 'cpu', and backend 'cuda'"):
        codec.encode(of(g), seed=1, out=np.zeros(64, np.uint8))
    with pytest.raises(compll.BackendError, match="item 1 of 2: grad lies on 'cuda', and this"):
        codec.batch("encode", [compll.Item(grad=x, seed=1) for x in (g, of(g))])
    out = room(codec, 9)
    out.gpu = 1
    with pytest.raises(compll.BackendError, match="out lies on GPU 1, and this call works on GPU 0"):
        codec.encode(of(g), seed=1, out=out)
    assert codec.batch("encode", []) == []


def test_without_cupy_auto_says_how_to_get_it_when_a_tensor_of_a_gpu_comes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "cupy", None)
    tensor = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    with pytest.raises(compll.BackendError, match=r"needs CuPy.*pip install cupy-cuda12x"):
        compll.compile("onebit").encode(tensor)


def test_a_named_backend_is_the_only_one(monkeypatch: pytest.MonkeyPatch) -> None:
    g = gradient("normal", 9)
    with pytest.raises(compll.BackendError, match="this backend works on the CPU"):
        compll.compile("terngrad", "cpp").encode(of(g), seed=1)
    monkeypatch.setenv("COMPLL_BACKEND", "interp")
    with pytest.raises(compll.BackendError, match="this backend works on the CPU"):
        compll.compile("terngrad").encode(of(g), seed=1)


# --- when a call waits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
def test_encode_into_out_does_not_wait_and_its_length_stays_on_the_device(name: str) -> None:
    codec, g = compll.compile(name, "cuda"), gradient("normal", N)
    want, decoded = meant(name, g)
    out, result = room(codec), of(np.zeros(N, np.float32))
    assert encoded(codec, of(g), out=out) is out
    assert codec.decode(out, N, out=result, wait=False) is result
    assert codec.decode_add(out, result, -1.0, wait=False) is result
    assert GPU.counts["download"] == GPU.counts["upload"] == 0
    assert codec.length(out) == len(want)
    assert GPU.counts["download"] == 1
    payload = codec.result(out)
    assert payload.finite is True
    assert same_bits(payload.value.get(), want)
    assert codec.result(result).value is result
    assert same_bits(codec.decode(out, N).get(), decoded)
    assert not result.get().any()


@pytest.mark.parametrize(("name", "waits"), [("onebit", 0), ("terngrad", 0), ("topk", 1), ("dgc", 1)])
def test_encode_without_out_waits_once_if_length_or_error_depends_on_the_data(name: str, waits: int) -> None:
    codec, g = compll.compile(name, "cuda"), gradient("normal", N)
    payload = encoded(codec, of(g))
    assert GPU.counts["download"] == waits
    assert same_bits(payload.get(), meant(name, g)[0])
    assert codec.length(payload) == len(payload)


@pytest.mark.parametrize("name", CODECS)
def test_decode_waits_once_for_whether_the_payload_was_refused(name: str) -> None:
    codec, g = compll.compile(name, "cuda"), gradient("normal", N)
    payload = of(meant(name, g)[0])
    codec.decode(payload, N)
    assert GPU.counts["download"] == 1
    codec.decode_add(payload, of(g), 0.5)
    assert GPU.counts["download"] == 2


def test_a_batch_tells_what_is_not_finite_when_it_is_asked() -> None:
    codec = compll.compile("terngrad", "cuda")
    grads = [of(gradient("normal", n)) for n in (5, 3000, 70)]
    grads[1][2999] = np.nan
    items = [compll.Item(grad=g, seed=1, out=room(codec, len(g))) for g in grads]
    results = codec.batch("encode", items)
    assert [r.finite for r in results] == [None] * 3
    assert [codec.result(r.value).finite for r in results] == [True, False, True]
    assert [r.value is item.out for r, item in zip(results, items, strict=True)] == [True] * 3
    with pytest.raises(compll.ParameterError, match="no array that a call of this codec on a GPU"):
        codec.result(grads[0])


def test_in_host_memory_length_is_that_of_the_array() -> None:
    codec = compll.compile("dgc", "cpp")
    g = gradient("normal", N)
    payload = encoded(codec, g, out=np.zeros(codec.max_bytes(N), np.uint8))
    assert codec.length(payload) == len(payload) == len(meant("dgc", g)[0])


def test_an_out_that_is_not_aligned_is_filled_too() -> None:
    codec, g = compll.compile("dgc", "cuda"), gradient("normal", N)
    out = of(np.zeros(codec.max_bytes(N) + 1, np.uint8))[1:]
    assert encoded(codec, of(g), out=out) is out
    assert same_bits(codec.result(out).value.get(), meant("dgc", g)[0])
    assert same_bits(codec.decode(out, N).get(), meant("dgc", g)[1])


def test_what_a_call_left_is_kept_as_long_as_its_array_lives() -> None:
    codec = compll.compile("terngrad", "cuda")
    out = room(codec)
    for _ in range(3):
        encoded(codec, of(gradient("normal", N)), out=out)
    entries = codec._library.pending.entries
    assert list(entries) == [id(out)]
    assert codec.with_params().length(out) == codec.max_bytes(N)
    del out
    gc.collect()
    assert not entries


# --- errors ------------------------------------------------------------------------------------------------

OUTSIDE = """
void outsideEncode(float* gradient, uint8* compressed) {
    float far = gradient[gradient.size + 3];
    compressed = concat(far, gradient);
}
void outsideDecode(uint8* compressed, float* gradient) {
    float far;
    float* all;
    extract(compressed, far, all);
    gradient = all;
}
"""


def test_an_error_of_a_call_that_did_not_wait_is_raised_where_its_result_is_asked_for() -> None:
    codec, g = compll.compile(str(write(OUTSIDE)), "cuda"), of(gradient("normal", 40))
    with pytest.raises(IndexError, match="Encode read a vector outside its range"):
        codec.encode(g)
    out = room(codec, 40)
    assert codec.encode(g, out=out) is out
    for ask in (codec.length, codec.result):
        with pytest.raises(IndexError, match=r"Encode read a vector outside its range \(gradient of 40"):
            ask(out)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda p: p[:-1], r"the payload is truncated: it has \d+ bytes, and 3001 elements take"),
        (lambda p: np.append(p, p[:1]), "the payload is too long"),
        (lambda p: p[:3], "the payload is truncated: it has 3 bytes, and begins with"),
        (lambda p: np.append(np.full(4, 255, np.uint8), p[4:]), "3001 elements allow"),
    ],
)
def test_a_payload_whose_counts_are_wrong_is_refused_by_the_kernels_and_explained(
    damage: Any, message: str
) -> None:
    codec = compll.compile("dgc", "cuda")
    payload = of(damage(meant("dgc", gradient("normal", N))[0]))
    out = of(np.full(N, 7, np.float32))
    with pytest.raises(PayloadError, match=message):
        codec.decode(payload, N, out=out)
    assert (out.get() == 7).all()
    codec.decode(payload, N, out=out, wait=False)
    with pytest.raises(PayloadError, match="the payload of this decode is none of 3001 elements, or corrupt"):
        codec.result(out)


@pytest.mark.parametrize("text", [PLAIN, WIDE], ids=["fixed", "varying"])
def test_a_payload_of_another_width_is_decoded_on_a_gpu_too(text: str) -> None:
    codec, reference = compiled(text, "cuda"), compiled(text, "interp")
    for n in (1, N):  # of one element all widths have the same length, and the payload is read
        for bits in (4, 7):
            payload = encoded(compiled(text, "interp", bits=bits), gradient("normal", n))
            assert same_bits(codec.decode(of(payload), n).get(), reference.decode(payload, n))


def test_the_own_width_is_seen_by_the_length_of_the_payload_and_need_not_be_waited_for() -> None:
    codec, g = compiled(PLAIN, "cuda"), gradient("normal", N)
    payload = of(compiled(PLAIN, "interp").encode(g))
    with GPU.capture():
        codec.decode(payload, N)
    other = of(compiled(PLAIN, "interp", bits=3).encode(g))
    with (
        GPU.capture(),
        pytest.raises(compll.BackendError, match="while a graph is captured nothing can wait"),
    ):
        codec.decode(other, N)
    payload[0] = 9
    with pytest.raises(PayloadError, match="'bits' is 9; it can be 1, 2, 3"):
        codec.decode(payload, N)


# --- graphs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CODECS)
def test_a_captured_call_is_launches_and_nothing_else(name: str) -> None:
    codec, g = compll.compile(name, "cuda"), of(gradient("normal", N))
    state = codec.new_state(N, like=g)
    out, decoded, total = room(codec), of(np.zeros(N, np.float32)), of(np.zeros(N, np.float32))
    encoded(codec, g, out=out)
    GPU.counts.clear()
    with GPU.capture() as graph:
        codec.encode(g, seed=7, state=state or None, out=out)
        codec.decode(out, N, out=decoded)
        codec.decode_add(out, total, 0.5)
        for ask in (codec.length, codec.result):
            with pytest.raises(compll.BackendError, match="while a graph is captured nothing can wait"):
                ask(out)
    assert set(GPU.counts) == {"table", "launches"}
    assert GPU.counts["table"] == 3
    assert GPU.counts["launches"] == sum(
        codec.info.launches[op][0] for op in ("encode", "decode", "decode_add")
    )
    assert len(graph) == GPU.counts.total()
    gc.collect()

    reference = compll.compile(name, "interp")
    kept, summed = reference.new_state(N), np.zeros(N, np.float32)
    for step in (1, 2):
        fresh = gradient("normal", N, seed=step)
        g.set(fresh)
        for launch in graph:
            launch()
        want = reference.encode(fresh, seed=7, state=kept or None)
        reference.decode_add(want, summed, 0.5)
        assert codec.length(out) == len(want)
        assert same_bits(codec.result(out).value.get(), want)
        assert same_bits(decoded.get(), reference.decode(want, N))
        assert same_bits(total.get(), summed)
        assert all(same_bits(state[k].get(), kept[k]) for k in kept)


def test_a_hop_can_be_captured_and_a_length_that_is_not_known_says_to_give_out() -> None:
    codec, g = compll.compile("terngrad", "cuda"), of(gradient("normal", N))
    payload = codec.encode(g, seed=1)
    with GPU.capture() as graph:
        hopped = codec.hop(payload, g, seed=2, scale=0.5)
    for launch in graph:
        launch()
    meant_by = compll.compile("terngrad", "interp")
    assert same_bits(hopped.get(), meant_by.hop(payload.get(), g.get(), seed=2, scale=0.5))
    dgc = compll.compile("dgc", "cuda")
    with (
        GPU.capture(),
        pytest.raises(compll.BackendError, match=r"payload of dgc depends on the data.*give out="),
    ):
        encoded(dgc, g)


def test_what_a_captured_call_works_in_lives_as_long_as_its_out() -> None:
    codec, g = compll.compile("terngrad", "cuda"), of(gradient("normal", N))
    out = room(codec)
    with GPU.capture():
        codec.encode(g, seed=1, out=out)
    codec.encode(g, seed=2, out=out)
    (entry,) = codec._library.pending.entries.values()
    (captured,) = entry.captured
    assert captured is not entry.started
    assert len(captured.memory) > len(entry.started.memory) == 1


def test_a_table_of_many_items_is_written_in_pieces() -> None:
    codec = compll.compile("onebit", "cuda")
    grads = [gradient("normal", n) for n in range(90)]
    states = [codec.new_state(n) for n in range(90)]
    items = [compll.Item(grad=of(g), state=s) for g, s in zip(grads, states, strict=True)]
    results = codec.batch("encode", items)
    size = 64 + 90 * launches.ITEM.itemsize + 32 + 90 * 16  # parameters, items, a gap, pointers to states
    assert GPU.counts["table"] == -(-size // launches.PIECE.itemsize) == 4
    assert all(same_bits(r.value.get(), meant("onebit", g)[0]) for r, g in zip(results, grads, strict=True))


# --- tensors -----------------------------------------------------------------------------------------------


class Tensor:
    """As much of a tensor on a GPU as is asked for, of a library of its own."""

    def __init__(self, values: torch.Tensor) -> None:
        self.values, self.device = values, SimpleNamespace(type="cuda", index=1)
        self.dtype = values.dtype

    def __len__(self) -> int:
        return len(self.values)

    def __dlpack__(self) -> None:
        raise AssertionError

    def numpy(self) -> np.ndarray:
        return self.values.numpy()

    def data_ptr(self) -> int:
        return self.values.data_ptr()


def test_a_tensor_s_call_runs_on_its_gpu_and_stream_in_memory_of_its_library(
    cupy: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered: list[tuple[str, Any]] = []

    class Context:
        def __init__(self, what: str, value: Any) -> None:
            self.entry = what, value

        def __enter__(self) -> None:
            entered.append(self.entry)

        def __exit__(self, *_: object) -> None:
            entered.append((self.entry[0], None))

    library = ModuleType("tensors")
    current = SimpleNamespace(current_stream=lambda device: SimpleNamespace(cuda_stream=40 + device.index))
    vars(library).update(
        cuda=current,
        uint8=torch.uint8,
        empty=lambda n, dtype, device: Tensor(torch.empty(n, dtype=dtype)),  # noqa: ARG005
        from_dlpack=lambda x: Tensor(torch.from_numpy(x.view(np.ndarray))),
    )
    monkeypatch.setitem(sys.modules, "tensors", library)
    monkeypatch.setattr(Tensor, "__module__", "tensors")
    memory: list[int] = []
    cuda = cupy.cuda
    cuda.Device = lambda index: Context("device", index)
    cuda.Stream = SimpleNamespace(from_external=lambda s: Context("stream", s.__cuda_stream__()))
    cuda.UnownedMemory = lambda *given: memory.append(given[1]) or given
    cuda.MemoryPointer = lambda held, offset: (held, offset)
    cuda.using_allocator = lambda allocate: Context("memory", allocate)

    g = gradient("normal", 100)
    cuda.runtime.getDevice = lambda: 1
    monkeypatch.setattr(cupy_stand_in.ndarray, "gpu", 1)
    payload = compll.compile("terngrad", "cuda").encode(Tensor(torch.from_numpy(g)), seed=7)
    assert [e for e in entered if e[0] != "memory"] == [
        *[("device", 1), ("stream", (0, 41))],
        *[("stream", None), ("device", None)],
    ]
    assert same_bits(payload.numpy(), meant("terngrad", g)[0])
    allocate = next(value for what, value in entered if what == "memory")
    (pointer, size, owner, device), offset = allocate(96)
    assert (pointer, size, device, offset, memory) == (owner.data_ptr(), 96, 1, 0, [96])
