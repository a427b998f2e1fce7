"""The CUDA source compiles for real GPUs without one, keeps everything in registers, and is refused clearly.

What the kernels compute is tested on the simulator, test_cudasim.py, which runs the same source.
"""

from __future__ import annotations

import importlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cuda_compilers
import cupy_stand_in
import numpy as np
import pytest
import torch
from compll_cases import gradient, once, same_bits, write
from test_cudasim import BLOCKS, ELEMENTARY, MIXED, SELECTING
from test_half import INSIDE as HALVES

import compll
from compll import arrays, driver, types
from compll import codec as api
from compll.emit import cuda
from compll.emit.cuda import Launch
from compll.tools import compare

COMPILERS = cuda_compilers.available()


def generated(source: str, element: types.Elem = types.FLOAT) -> cuda.Generated:
    return cuda.generate(driver.unit_of(driver.load(api.find(source), {}).checked, element))


def kernels_of(made: cuda.Generated) -> set[str]:
    return {made.table_writer} | {x.kernel for launches in made.launches.values() for x in launches}


def test_a_compiler_for_the_gpu_is_there() -> None:
    assert COMPILERS, "neither NVRTC (pip: nvidia-cuda-nvrtc, which `make setup` installs) nor nvcc is there"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("compiler", COMPILERS[:1])
@pytest.mark.parametrize("name", once(compll.algorithms()))
def test_shipped_kernels_spill_no_register(name: str, compiler: str, arch: str, tmp_path: Path) -> None:
    made = generated(name)
    resources = cuda_compilers.compile_for(compiler, arch, made.source, tmp_path)
    kernels = kernels_of(made)
    assert {r.kernel for r in resources} == kernels
    assert {r.kernel: r.spilled_bytes for r in resources} == dict.fromkeys(kernels, 0)
    assert max(r.registers for r in resources) <= 200


@pytest.mark.parametrize("element", [types.HALF, types.BFLOAT16], ids=str)
@pytest.mark.parametrize("name", ["onebit", "int8"])
def test_kernels_on_gradients_of_16_bits_spill_no_register(
    name: str, element: types.Elem, tmp_path: Path
) -> None:
    made = generated(name, element)
    resources = cuda_compilers.compile_for(COMPILERS[0], "sm_80", made.source, tmp_path)
    assert {r.kernel for r in resources} == kernels_of(made)
    assert not any(r.spilled_bytes for r in resources)


@pytest.mark.parametrize("compiler", COMPILERS)
def test_every_compiler_takes_every_type_function_and_block(compiler: str, tmp_path: Path) -> None:
    for text in (MIXED, BLOCKS, ELEMENTARY, HALVES, SELECTING):
        made = generated(str(write(text)))
        resources = cuda_compilers.compile_for(compiler, "sm_90", made.source, tmp_path)
        assert {r.kernel for r in resources} == kernels_of(made)


def test_the_launches_of_an_operation_are_data() -> None:
    assert generated("terngrad").launches["encode"] == (
        Launch("terngrad_encode_begin", "items"),
        Launch("terngrad_encode_pass0", "tiles"),
        Launch("terngrad_encode_then0", "items"),
        Launch("terngrad_encode_pass1", "tiles"),
    )
    host = re.findall(r"COMPLL_LAUNCH\((\w+), over_(\w+)", generated("terngrad").source)
    assert [Launch(*x) for x in host] == [x for xs in generated("terngrad").launches.values() for x in xs]


def test_a_selection_is_a_list_of_launches_too_and_nothing_waits_between_them() -> None:
    made = generated("topk").launches
    assert [x.kernel.removeprefix("topk_encode_") for x in made["encode"]] == [
        *("begin", "pass0", "then0"),
        *("count_digits0", "after_count_digits0", "count_digits1", "after_count_digits1"),
        *("count_digits2", "after_count_digits2", "count_ranked3", "after_count_ranked3", "write_least4"),
        "pass1",
    ]
    assert [x.kernel.removeprefix("topk_decode_") for x in made["decode"]] == [
        *("begin", "pass0", "pass1", "ascends0", "pass2"),
    ]


def test_self_contained_source_includes_each_header_once_and_asks_for_no_file_of_ours() -> None:
    text = cuda.self_contained(generated("onebit").source)
    assert not re.search(r"#include .*\.cuh", text)
    assert text.count("COMPLL_DEVICE T fold_tiles") == 1


def test_the_source_asks_for_nothing_that_would_change_a_bit() -> None:
    text = cuda.self_contained(generated("onebit").source)
    for name in (
        "fmaf",
        "__fdividef",
        "__expf",
        "use_fast_math",
        "malloc",
        "cudaDeviceSynchronize",
    ):
        assert name not in text


# --- without CuPy, without a GPU, with arrays elsewhere ----------------------------------------------------


def test_without_cupy_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def no_cupy(name: str, *more: Any) -> Any:
        if name == "cupy":
            raise ImportError("No module named 'cupy'")
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", no_cupy)
    with pytest.raises(compll.BackendError, match=r"needs CuPy.*pip install cupy-cuda12x.*'cudasim'"):
        compll.compile("onebit", "cuda")


@pytest.mark.parametrize(
    ("gpus", "message"), [(0, "finds no GPU: see nvidia-smi"), (None, r"no NVIDIA driver \(no driver\)")]
)
def test_without_a_gpu_the_error_says_what_is_missing(
    gpus: int | None, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CUDARuntimeError(RuntimeError):
        pass

    def count() -> int:
        if gpus is None:
            raise CUDARuntimeError("no driver")
        return gpus

    runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CUDARuntimeError)
    real = importlib.import_module
    cupy = SimpleNamespace(cuda=SimpleNamespace(runtime=runtime))
    monkeypatch.setattr(
        importlib, "import_module", lambda name, *m: cupy if name == "cupy" else real(name, *m)
    )
    with pytest.raises(compll.BackendError, match=message):
        compll.compile("onebit", "cuda")


def test_an_array_that_lies_elsewhere_is_an_error_that_names_both_places() -> None:
    x = torch.empty(3, device="meta")
    with pytest.raises(compll.BackendError, match=r"grad lies on 'meta', and this backend works on the CPU"):
        compll.compile("onebit", "cpp").encode(x, state={"residual": np.zeros(3, np.float32)})
    for host in (np.zeros(3, np.float32), torch.zeros(3)):
        with pytest.raises(compll.BackendError, match=r"grad lies in the memory of 'cpu'.*grad\.cuda\(\)"):
            arrays.view(host, "grad", arrays.GRADIENT, arrays.GPU)


# --- what Python does around the kernels, with a stand-in for CuPy -----------------------------------------


@pytest.fixture
def cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy", cupy_stand_in.module())


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("name", ["onebit", "terngrad", "dgc"])
def test_the_backend_takes_gpu_arrays_and_returns_them(name: str) -> None:
    gpu, meant = compll.compile(name, "cuda"), compll.compile(name, "interp")
    g = gradient("normal", 3001)
    on_gpu = cupy_stand_in.of(g)
    states = [gpu.new_state(3001), meant.new_state(3001)]
    payload = gpu.encode(on_gpu, seed=7, state=states[0] or None)
    want = meant.encode(g, seed=7, state=states[1] or None)
    decoded, summed = gpu.decode(payload, 3001), gpu.decode_add(payload, cupy_stand_in.of(g), 0.3)
    results = [payload, decoded, summed, *states[0].values()]
    assert {type(x) for x in results} == {cupy_stand_in.ndarray}
    wanted = [want, meant.decode(want, 3001), meant.decode_add(want, g.copy(), 0.3), *states[1].values()]
    assert all(same_bits(a.get(), b) for a, b in zip(results, wanted, strict=True))
    shifted = cupy_stand_in.of(np.zeros(len(want) + 1, np.uint8))[1:]
    shifted.set(want)
    assert same_bits(gpu.decode(shifted, 3001).get(), wanted[1])
    if meant.info.hop:
        hopped = gpu.hop(payload, on_gpu, seed=1, state=states[0] or None)
        assert same_bits(hopped.get(), meant.hop(want, g, seed=1, state=states[1] or None))


@pytest.mark.usefixtures("cupy")
@pytest.mark.parametrize("name", ["onebit", "randomk"])
def test_the_tools_compare_a_backend_of_the_gpu_as_any_other(name: str) -> None:
    meant = compll.compile(name, "interp")
    cases = [compare.case(meant, label, n) for label in ("normal", "mixed") for n in (0, 700, 1025)]
    found = compare.compare(compll.compile(name, "cuda"), cases)
    assert not found.differences
    assert found.backend == "cuda"


@pytest.mark.usefixtures("cupy")
def test_the_backend_tells_what_is_wrong_with_a_payload_and_an_array() -> None:
    gpu = compll.compile("terngrad", "cuda")
    payload = gpu.encode(cupy_stand_in.of(gradient("normal", 100)), seed=1)
    payload[0] = 5
    with pytest.raises(compll.PayloadError, match="bitwidth = 5, and this codec has 2"):
        gpu.decode(payload, 100)
    with pytest.raises(compll.BackendError, match="grad lies in the memory of 'cpu'"):
        gpu.encode(np.zeros(3, np.float32), seed=1)
    with pytest.raises(compll.BackendError, match="grad lies on 'cuda', and this backend works on the CPU"):
        compll.compile("terngrad", "cpp").encode(cupy_stand_in.of(np.zeros(3, np.float32)), seed=1)
