"""Gradients of float16 and bfloat16: widened at the load, rounded at the store, float32 between them."""

from __future__ import annotations

import ctypes
import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import cupy_stand_in
import numpy as np
import pytest
import torch
from compll_cases import compiled, gradient, same_bits

import compll
from compll import Item, ParameterError, arrays, driver, types
from compll import build as builder
from compll import codec as api
from compll.emit import cpp

BACKENDS = ("interp", "cpp", "numba", "cudasim")
NAMES = ("terngrad", "int8", "onebit")
SIZES = (0, 1, 17, 1023, 3001, 70_001)
DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}


FLAGS = ["-O1" if flag.startswith("-O") else flag for flag in builder.FLAGS]


@functools.cache
def codec(name: str, backend: str) -> api.Codec:
    """Compile a codec; for C++ with all its libraries at once, at -O1."""
    with mock.patch.object(builder, "FLAGS", FLAGS):
        c = compll.compile(name, backend)
        for element in types.GRADIENTS if backend == "cpp" else ():
            c._library.of(types.dtype(element))  # type: ignore[attr-defined]
    return c


def short(dtype: str, n: int, label: str = "normal", seed: int = 1) -> torch.Tensor:
    """Return a gradient of 16-bit floats; those of "mixed" overflow, vanish and are no numbers too."""
    return torch.from_numpy(gradient(label, n, seed)).to(DTYPES[dtype])


def wide(x: torch.Tensor) -> np.ndarray:
    return x.float().numpy()


def rounded(x: np.ndarray, dtype: str) -> torch.Tensor:
    """Return the nearest 16-bit floats, by PyTorch's own rounding, with the one NaN."""
    y = torch.from_numpy(x).to(DTYPES[dtype])
    nan = torch.tensor([0x7E00 if dtype == "float16" else 0x7FC0], dtype=torch.int16).view(y.dtype)
    return torch.where(y.isnan(), nan, y)


def bits(x: torch.Tensor) -> np.ndarray:
    return x.view(torch.int16).numpy()


def states(c: api.Codec, n: int) -> dict[str, np.ndarray]:
    return {k: np.linspace(-0.5, 0.5, n, dtype=np.float32) for k in c.new_state(n)}


# Numba compiles for seconds: there a codec has one type of the two.
CASES = [
    (name, backend, dtype)
    for backend in BACKENDS
    for name in NAMES
    for dtype in DTYPES
    if backend != "numba" or (dtype == "bfloat16") == (name == "int8")
]


@pytest.mark.parametrize(("name", "backend", "dtype"), CASES)
def test_every_operation_is_that_on_float32_widened_before_and_rounded_after(
    name: str, backend: str, dtype: str
) -> None:
    meant, built = codec(name, "interp"), codec(name, backend)
    for n in SIZES:
        for label in ("normal", "mixed") if n < 70_000 else ("normal",):
            g = short(dtype, n, label)
            old, new = states(meant, n), states(meant, n)
            payload = meant.encode(wide(g), seed=3, state=old or None)
            for threads in (1, 2, 4):
                new = states(meant, n)
                got = built.encode(g, seed=3, state=new or None, threads=threads)
                assert same_bits(got.numpy(), payload), (n, label, threads)
                assert all(same_bits(new[k], old[k]) for k in old)
            decoded = meant.decode(payload, n)
            assert same_bits(bits(built.decode(got, n, dtype=dtype)), bits(rounded(decoded, dtype)))
            total, sums = wide(g).copy(), g.clone()
            meant.decode_add(payload, total, -0.7)
            assert built.decode_add(payload, sums, -0.7) is not None
            assert same_bits(bits(sums), bits(rounded(total, dtype))), (n, label)
            hops = [
                c.hop(payload, x, seed=4, scale=0.5, state=s or None)
                for c, x, s in ((meant, wide(g), old), (built, g, new))
            ]
            assert same_bits(hops[0], hops[1].numpy())
            assert all(same_bits(new[k], old[k]) for k in old)


@pytest.mark.parametrize("dtype", ["float16"])
def test_selections_read_and_write_gradients_of_16_bits_at_computed_positions(dtype: str) -> None:
    meant, built = (codec("topk", backend).with_params(ratio=0.1) for backend in ("interp", "cpp"))
    for n in (0, 1, 1025, 3001):
        g = short(dtype, n)
        old, new = states(meant, n), states(meant, n)
        payload = meant.encode(wide(g), state=old or None)
        got = built.encode(g, state=new or None)
        assert same_bits(got.numpy(), payload)
        assert all(same_bits(new[k], old[k]) for k in old)
        total, sums = wide(g).copy(), g.clone()
        meant.decode_add(payload, total, 0.3)
        built.decode_add(payload, sums, 0.3)
        assert same_bits(bits(sums), bits(rounded(total, dtype)))
        decoded = meant.decode(payload, n)
        assert same_bits(bits(built.decode(got, n, dtype=dtype)), bits(rounded(decoded, dtype)))


@pytest.mark.parametrize("backend", ["interp", "cpp"])
def test_types_of_arrays_in_and_out(backend: str) -> None:
    c = codec("terngrad", backend)
    g = gradient("normal", 300).astype(np.float16)
    payload = c.encode(g, seed=1)
    assert type(payload) is np.ndarray
    assert same_bits(payload, c.encode(g.astype(np.float32), seed=1))
    plain = c.decode(payload, 300)
    assert plain.dtype == np.float32
    for dtype in ("float16", np.float16, np.dtype("float16"), torch.float16):
        assert same_bits(c.decode(payload, 300, dtype=dtype), plain.astype(np.float16))
    assert same_bits(c.decode(payload, 300, dtype=np.float32), plain)
    out = np.empty(300, np.float16)
    assert c.decode(payload, 300, out=out) is out
    assert same_bits(out, plain.astype(np.float16))
    tensor = torch.from_numpy(payload)
    assert c.decode(tensor, 300).dtype == torch.float32
    for kind in DTYPES.values():
        made, room = c.decode(tensor, 300, dtype=kind), torch.empty(300, dtype=kind)
        assert made.dtype == kind
        assert torch.equal(c.decode(payload, 300, out=room), made)
        assert torch.equal(room, made)


@pytest.mark.parametrize(("backend", "dtype"), [case[1:] for case in CASES if case[0] == "onebit"])
def test_gradients_and_outputs_may_begin_at_any_element_and_nothing_else_is_written(
    backend: str, dtype: str
) -> None:
    c, meant = codec("onebit", backend), codec("onebit", "interp")
    whole, n = short(dtype, 2108), 2100
    for offset in (1, 2, 3, 7):
        g = whole[offset : offset + n]
        payload = c.encode(g, state=c.new_state(n))
        assert same_bits(payload.numpy(), meant.encode(wide(g), state=meant.new_state(n)))
        room = torch.full((2108,), 7, dtype=DTYPES[dtype])
        c.decode(payload, n, out=room[offset : offset + n])
        assert torch.equal(room[offset : offset + n], rounded(meant.decode(payload.numpy(), n), dtype))
        assert (room[:offset] == 7).all()
        assert (room[offset + n :] == 7).all()


@pytest.mark.parametrize("backend", ["interp", "cpp", "cudasim"])
def test_a_batch_may_mix_types_and_keeps_its_order(backend: str) -> None:
    c = codec("onebit", backend)
    grads = [
        short("bfloat16", 900),
        short("bfloat16", 5).float(),
        short("float16", 1100),
        short("bfloat16", 3),
    ]
    grads[2][7] = torch.inf
    results = c.batch("encode", [Item(grad=g, state=c.new_state(len(g))) for g in grads])
    assert [r.finite for r in results] == [True, True, False, True]
    for g, r in zip(grads, results, strict=True):
        assert same_bits(r.value.numpy(), c.encode(wide(g), state=c.new_state(len(g))))


def test_libraries_for_16_bits_are_built_when_they_are_needed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("COMPLL_CACHE", str(tmp_path))
    built: list[types.Elem] = []
    real = driver.unit_of

    def unit_of(checked: Any, element: types.Elem = types.FLOAT) -> Any:
        built.append(element)
        return real(checked, element)

    monkeypatch.setattr(driver, "unit_of", unit_of)
    c = compll.compile("onebit", "interp")
    for _ in range(2):
        c.encode(gradient("normal", 9), state=c.new_state(9))
    assert built == [types.FLOAT]
    other = c.with_params()
    for x in (c, other):
        x.encode(short("float16", 9), state=x.new_state(9))
    assert built == [types.FLOAT, types.HALF]


def test_the_type_of_gradients_changes_no_property_and_no_size() -> None:
    c = compll.compile("onebit", "interp")
    before, most = c.info, c.max_bytes(1000)
    g = short("float16", 1000)
    state = c.new_state(1000, like=g)
    assert state["residual"].dtype == torch.float32
    assert len(c.encode(g, state=state)) == most
    assert c.info == before


def test_one_symbol_an_operation_and_element_type() -> None:
    checked = driver.load(api.find("onebit"), {}).checked
    for element, suffix in types.GRADIENTS.items():
        unit = driver.unit_of(checked, element)
        with mock.patch.object(builder, "FLAGS", FLAGS):
            path = builder.library_path(unit.codec, cpp.source(unit), cpp.runtime())
        library = ctypes.CDLL(str(path))
        for op in ("encode", "decode", "decode_add"):
            assert hasattr(library, f"onebit_{op}_{suffix}")
        others = {"f32", "f16", "bf16"} - {suffix}
        assert not any(hasattr(library, f"onebit_encode_{other}") for other in others)


def test_other_types_are_refused() -> None:
    c = compll.compile("int8", "interp")
    g = np.ones(9, np.float16)
    p = c.encode(g)
    any_of = "float32 or float16 or bfloat16"
    refused: dict[str, Callable[[], Any]] = {
        f"grad has elements of type float64; this takes {any_of}; give grad.astype": lambda: c.encode(
            np.ones(9)
        ),
        f"uint16; this takes {any_of}": lambda: c.encode(g.view(np.uint16)),
        ">f2.*astype": lambda: c.encode(g.astype(">f2")),
        "float8_e5m2.*astype": lambda: c.encode(torch.ones(9).to(torch.float8_e5m2)),
        "contiguous": lambda: c.encode(torch.ones(8, dtype=torch.bfloat16)[::2]),
        "2 dimensions": lambda: c.encode(torch.ones(2, 2, dtype=torch.bfloat16)),
        f"'float64'; a gradient is {any_of}": lambda: c.decode(p, 9, dtype="float64"),
        f"int16; a gradient is {any_of}": lambda: c.decode(p, 9, dtype=torch.int16),
        "leave one of them away": lambda: c.decode(p, 9, dtype="float16", out=g),
        f"int16; this takes {any_of}": lambda: c.decode(p, 9, out=np.empty(9, np.int16)),
        "out has elements of type float64": lambda: c.decode_add(p, np.empty(9)),
        "grad has elements of type complex64": lambda: c.hop(p, np.empty(9, np.complex64)),
        "float16; this takes uint8": lambda: c.encode(g, out=np.empty(99, np.float16)),
    }
    for words, call in refused.items():
        with pytest.raises(ParameterError, match=words) as e:
            call()
        assert "\n" not in str(e.value)


def test_numpy_s_bfloat16_is_that_of_ml_dtypes(monkeypatch: pytest.MonkeyPatch) -> None:
    c = compll.compile("int8", "interp")
    g = short("bfloat16", 9)
    payload = c.encode(g).numpy()
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(ParameterError, match=r"NumPy has no bfloat16.*pip install ml_dtypes"):
        c.decode(payload, 9, dtype="bfloat16")
    stand_in = SimpleNamespace(bfloat16=np.dtype("V2"))  # that package's type is such a one, with arithmetic
    monkeypatch.setitem(sys.modules, "ml_dtypes", stand_in)
    view = arrays._wrap_array(bits(g).view(np.uint16))
    assert view.dtype == stand_in.bfloat16
    assert view.tobytes() == bits(g).tobytes()


def test_arrays_and_tensors_on_a_gpu_keep_their_types(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in.module())
    gpu, meant = compll.compile("terngrad", "cuda"), codec("terngrad", "interp")
    g = gradient("normal", 1500).astype(np.float16)
    payload = gpu.encode(cupy_stand_in.of(g), seed=7)
    assert same_bits(payload.get(), meant.encode(g, seed=7))
    decoded = gpu.decode(payload, 1500, dtype="float16")
    assert type(decoded) is cupy_stand_in.ndarray
    assert same_bits(decoded.get(), meant.decode(payload.get(), 1500, dtype="float16"))
    with pytest.raises(ParameterError, match="CuPy has no bfloat16: give out=, a tensor"):
        gpu.decode(payload, 1500, dtype="bfloat16")
    x = short("bfloat16", 30)
    bits_, wrap = arrays._from_dlpack(x, "x", "bfloat16")
    assert same_bits(np.asarray(bits_), bits(x))
    monkeypatch.setattr(torch, "from_dlpack", lambda a: torch.from_numpy(np.array(a)))
    _, wrap = arrays._from_dlpack(x, "x", "bfloat16")
    assert torch.equal(wrap(bits_.view(np.uint16)), x)


SPARSE = """
void SparseEncode(float* gradient, uint8* compressed) {
    uint32* index = topk(gradient, 2);
    compressed = concat(index, gather(gradient, index));
}
void SparseDecode(uint8* compressed, float* gradient) {
    uint32* index; float* value;
    extract(compressed, index, value);
    gradient = scatter(gradient.size, index, value);
}
"""
NANS = {  # signalling, with bits of its own, the one that is written; and 1.5
    torch.float32: (0x7F800001, 0xFFC12345, 0x7FC00000, 0x3FC00000),
    torch.float16: (0x7C01, 0xFE12, 0x7E00, 0x3E00),
    torch.bfloat16: (0x7F81, 0xFFC3, 0x7FC0, 0x3FC0),
}


@pytest.mark.parametrize(
    ("backend", "dtype"),
    [(b, d) for b in ("interp", "cpp", "cudasim") for d in NANS] + [("numba", torch.float32)],
)
def test_decode_add_keeps_the_bits_of_a_nan_that_no_position_names(backend: str, dtype: torch.dtype) -> None:
    signalling, own, canonical, sum_ = NANS[dtype]
    g = np.zeros(2000, np.float32)
    g[[5, 1500]] = 3
    out = np.zeros(2000, np.uint32 if dtype == torch.float32 else np.uint16)
    out[[2, 1024, 1500]], out[[3, 1999]] = signalling, own
    want = out.copy()
    want[[5, 1500]] = sum_, canonical
    codec = compiled(SPARSE, backend)
    codec.decode_add(codec.encode(g), torch.from_numpy(out.view(f"i{out.itemsize}")).view(dtype), 0.5)
    assert out.tolist() == want.tolist()
