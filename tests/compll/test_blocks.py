"""Reductions by block: the order inside a block, one pass over memory, and the algorithms made of them."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from compll_cases import gradient, same_bits

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "reference"))

import blocks as reference

import compll
from compll import driver, ir
from compll.passes import fuse

PROGRAM = """
void BlocksEncode(float* gradient, uint8* compressed, int size = 256) {
    lambda_func odd = [&](float a, float b) -> float { return a * 0.5 + b; };
    float* mean = reduce(chunk(gradient, size), 0, add) / size;
    float* spread = reduce(chunk(map(range(gradient.size),
        [&](int i) -> float { return abs(gradient[i] - mean[i / size]); }), size), 1, odd);
    int* up = reduce(chunk(gradient > 0, size), add);
    uint<3>* code = map(range(gradient.size), [&](int i) -> uint<3> {
        return (gradient[i] - mean[i / size]) / spread[i / size] * 7 + random<float>(0, 1);
    });
    compressed = concat(mean, spread, up, code);
}

void BlocksDecode(uint8* compressed, float* gradient, int size = 256) {
    float* mean; float* spread; int* up; uint<3>* code;
    extract(compressed, mean, spread, up, code);
    gradient = map(range(gradient.size), [&](int i) -> float {
        return code[i] * spread[i / size] + mean[i / size] + up[i / size];
    });
}
"""


def codec(tmp_path: Path, backend: str, size: int) -> compll.Codec:
    path = tmp_path / "blocks.pse"
    path.write_text(PROGRAM, "utf-8")
    return compll.compile(path, backend, size=size)


@pytest.mark.parametrize("size", [1, 7, 16, 48, 100, 128, 192, 256, 1024, 1025, 3000, 4096])
def test_cpp_equals_the_interpreter_for_blocks_of_any_size(tmp_path: Path, size: int) -> None:
    """Two stages of statistics (the second reads the first), a function that is not associative, integers."""
    cpp, interp = codec(tmp_path, "cpp", size), codec(tmp_path, "interp", size)
    for n in (0, 1, size - 1, size, size + 1, 1023, 1024, 1025, 5000, 70_001 if size in (100, 256) else 17):
        for kind in ("normal", "mixed", "denormal"):
            g = gradient(kind, n)
            payload = interp.encode(g, seed=n)
            for threads in (1, 2, 4):
                assert same_bits(cpp.encode(g, seed=n, threads=threads), payload), (n, kind, threads)
            assert same_bits(cpp.decode(payload, n), interp.decode(payload, n)), (n, kind)


def tree(values: list[float]) -> np.float32:
    """The one order of reduction of float32 sums, as the language's reference words it, in plain loops."""
    v = [np.float32(x) for x in values]
    while True:
        results = []
        for start in range(0, len(v), 1024):
            tile = v[start : start + 1024]
            lanes: dict[int, np.float32] = {}
            for i, x in enumerate(tile):
                lanes[i % 128] = lanes[i % 128] + x if i % 128 in lanes else x
            for w in (64, 32, 16, 8, 4, 2, 1):
                for j in range(w):
                    if j in lanes and j + w in lanes:
                        lanes[j] = lanes[j] + lanes[j + w]
            results.append(lanes[0])
        if len(results) == 1:
            return results[0]
        v = results


@pytest.mark.parametrize("size", [3, 32, 200, 1500])
def test_a_block_is_reduced_from_its_own_element_0(tmp_path: Path, size: int) -> None:
    n = 4001
    g = gradient("normal", n)
    payload = codec(tmp_path, "interp", size).encode(g, seed=1)
    means = np.frombuffer(payload[: 4 * -(-n // size)].tobytes(), "<f4")
    want = [(np.float32(0) + tree(list(g[at : at + size]))) / np.float32(size) for at in range(0, n, size)]
    assert same_bits(means, np.array(want, np.float32))


BLOCKWISE = (
    "dithering",
    "dynamic8",
    "fp8",
    "fp8e5m2",
    "int4",
    "int8",
    "int8minmax",
    "mxfp4",
    "mxfp8",
    "qsgd",
)


@pytest.mark.parametrize("name", BLOCKWISE)
def test_statistics_and_quantization_share_one_pass(name: str) -> None:
    program = driver.load([compll.algorithms()[name]], {})
    for f in driver.unit_of(program.checked).functions:
        assert sum(isinstance(b, ir.Pass) for b in fuse(f).body) == 1, f.op


TWO_SIZES = """
void TwoEncode(float* gradient, uint8* compressed) {{
    float* wide = reduce(chunk(gradient, 64), greater);
    float* narrow = reduce(chunk(gradient, 7), greater);
    float* over = map(range(gradient.size), [&](int i) -> float {{ return {over}; }});
    float* again = reduce(chunk(over, {size}), smaller);
    float sum = reduce(over, smaller);
    compressed = concat(wide, narrow, over, again, sum);
}}
void TwoDecode(uint8* compressed, float* gradient) {{
    float* wide; float* narrow; float* over; float* again; float sum;
    extract(compressed, wide, narrow, over, again, sum);
    gradient = over;
}}
"""


@pytest.mark.parametrize("size", [64, 7])
@pytest.mark.parametrize(
    "over", ["narrow[i / 7] - wide[i / 64]", "wide[i / 64] - narrow[i / 7]", "gradient[i] - narrow[i / 7]"]
)
def test_statistics_of_blocks_of_two_sizes_meet(over: str, size: int, tmp_path: Path) -> None:
    path = tmp_path / "two.pse"
    path.write_text(TWO_SIZES.format(over=over, size=size), "utf-8")
    n = 1000
    g = gradient("normal", n)
    payload = compll.compile(path, "interp").encode(g)
    fields = [
        np.frombuffer(payload[a : a + 4 * m].tobytes(), "<f4") for a, m in ((0, 16), (64, 143), (640, n))
    ]
    assert same_bits(fields[0], np.maximum.reduceat(g, np.arange(0, n, 64)))
    assert same_bits(fields[1], np.maximum.reduceat(g, np.arange(0, n, 7)))
    i = np.arange(n)
    want = eval(over.replace("/", "//"), {"wide": fields[0], "narrow": fields[1], "gradient": g, "i": i})
    assert same_bits(fields[2], want)
    again = np.minimum.reduceat(want, np.arange(0, n, size))
    assert same_bits(np.frombuffer(payload[4640 : 4640 + 4 * len(again)].tobytes(), "<f4"), again)
    assert payload[-4:].view("<f4")[0] == want.min()


BOTH_SIGNS = """
void BothEncode(float* gradient, uint8* compressed) {
    float* size = reduce(chunk(abs(gradient), 48), 0, greater);
    float* top = reduce(chunk(gradient, 48), -9, greater);
    float sizes = reduce(abs(gradient), 0, greater);
    float highest = reduce(gradient, -9, greater);
    compressed = concat(size, top, sizes, highest);
}
void BothDecode(uint8* compressed, float* gradient) {
    float* size; float* top; float sizes; float highest;
    extract(compressed, size, top, sizes, highest);
    gradient = map(range(gradient.size), [&](int i) -> float {
        return size[i / 48] + top[i / 48] + sizes + highest;
    });
}
"""


@pytest.mark.parametrize("backend", ["cpp", "numba", "cudasim"])
def test_the_greatest_of_both_signs_is_not_taken_as_that_of_sizes(backend: str, tmp_path: Path) -> None:
    path = tmp_path / "both.pse"
    path.write_text(BOTH_SIGNS, "utf-8")
    meant, codec = (compll.compile(path, b) for b in ("interp", backend))
    for n in (1, 47, 100, 3000):
        g = -1 - np.abs(gradient("normal", n))
        assert same_bits(codec.encode(g), meant.encode(g))


INT8 = {b: compll.compile("int8", "cpp", block=b) for b in (32, 256)}
QSGD = {b: compll.compile("qsgd", "cpp", bits=b) for b in (1, 3, 7)}


@pytest.mark.parametrize("n", [1, 31, 32, 33, 1000, 4097])
@pytest.mark.parametrize("block", INT8)
def test_int8_is_the_nearest_level_of_its_block(block: int, n: int) -> None:
    g = gradient("normal", n)
    payload = INT8[block].encode(g)
    scales, levels = reference.parse_int8(payload, n, block)
    want, exact = reference.int8(g, block)
    assert scales == pytest.approx(want, rel=1e-6)
    assert np.abs(levels - exact).max() <= 0.5 + 1e-4
    decoded = INT8[block].decode(payload, n)
    assert np.abs(decoded - g).max() <= want.max() * 0.5 * (1 + 1e-4)


@pytest.mark.parametrize("n", [1, 511, 513, 4097])
@pytest.mark.parametrize("bits", QSGD)
def test_qsgd_s_levels_lie_beside_the_exact_value(bits: int, n: int) -> None:
    g = gradient("normal", n)
    payload = QSGD[bits].encode(g, seed=n)
    norms, levels, negative = reference.parse_qsgd(payload, n, bits, 512)
    want, exact = reference.qsgd(g, bits, 512)
    assert norms == pytest.approx(want, rel=1e-5)
    assert (np.abs(levels - exact) <= 1 + 1e-3).all()
    assert (negative == (g < 0)).all()
    decoded = QSGD[bits].decode(payload, n)
    sizes = np.repeat(norms.astype(np.float64), 512)[:n] * levels / (2**bits - 1)
    assert decoded == pytest.approx(np.where(negative, -sizes, sizes), rel=1e-5)


@pytest.mark.parametrize("bits", [1, 3])
def test_qsgd_is_unbiased(bits: int) -> None:
    """The mean of 400 decodings is the gradient: see the same test of terngrad for the false-alarm rate."""
    n, draws = 2048, 400
    g = gradient("normal", n)
    norms, exact = reference.qsgd(g, bits, 512)
    total = np.zeros(n)
    for seed in range(draws):
        total += QSGD[bits].decode(QSGD[bits].encode(g, seed=seed), n)
    p = exact - np.floor(exact)
    wide = p * (1 - p) > 0.01
    step = np.repeat(norms, 512) / (2**bits - 1)
    z = (total / draws - g)[wide] / (step * np.sqrt(p * (1 - p) / draws))[wide]
    degrees = int(wide.sum())
    assert abs(float((z**2).sum()) - degrees) < 6 * np.sqrt(2 * degrees)


@pytest.mark.parametrize("name", ["int8", "qsgd"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_block_and_is_seen(name: str, value: float) -> None:
    block = {"int8": 256, "qsgd": 512}[name]
    made = compll.compile(name, "cpp")
    g = gradient("normal", 3 * block)
    g[block + 5] = value
    decoded = made.decode(made.encode(g, seed=1), len(g))
    assert np.isnan(decoded[block : 2 * block]).all()
    assert np.isfinite(decoded[:block]).all()
    assert np.isfinite(decoded[2 * block :]).all()
    (result,) = made.batch(
        "encode", [compll.Item(grad=g, out=np.empty(made.max_bytes(len(g)), np.uint8), seed=1)]
    )
    assert not result.finite


@pytest.mark.parametrize("name", ["int8", "qsgd"])
def test_a_constant_and_a_zero_gradient_survive(name: str) -> None:
    made = compll.compile(name, "cpp")
    zero = np.zeros(1000, np.float32)
    assert (made.decode(made.encode(zero, seed=1), 1000) == 0).all()
    constant = np.full(1000, -0.3, np.float32)
    decoded = made.decode(made.encode(constant, seed=1), 1000)
    limit = 1e-6 if name == "int8" else 0.3 * np.sqrt(512) / 7
    assert np.abs(decoded - constant).max() <= limit
