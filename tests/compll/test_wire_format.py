"""Every example of docs/wire-format.md, on every backend, and its table of sizes."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
from compll_cases import write

import compll
from compll import driver
from compll.backends import Call
from compll.payload import extents, most_counts, total_bytes

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "wire-format.md").read_text("utf-8")
EXAMPLES = re.findall(
    r"^```pse\n(.*?)^```\n```\ngradient:(.*?)\npayload: (.*?)\n```", PAGE, re.DOTALL | re.MULTILINE
)


def test_every_program_of_the_page_is_an_example_that_runs() -> None:
    assert len(EXAMPLES) == PAGE.count("```pse") == 6


@pytest.mark.parametrize("backend", ["interp", "cpp", "numba", "cudasim"])
@pytest.mark.parametrize(("program", "values", "payload"), EXAMPLES, ids=[e[0].split()[1] for e in EXAMPLES])
def test_the_example_s_bytes_come_out(program: str, values: str, payload: str, backend: str) -> None:
    (checked,) = driver.check_files([write(program)], {})
    g = np.array([float(x) for x in values.split()], np.float32)
    library = driver.build(checked, backend)
    want = bytes.fromhex(payload.replace("|", ""))
    encode = checked.encode
    assert encode is not None
    n = len(g)
    room = total_bytes(extents(encode.layout, n, {}, most_counts(encode, n, {})))
    out = np.full(room, 0xAA, np.uint8)
    (outcome,) = library.run("encode", [Call(n, g, out)], {}, 1)
    assert outcome.length == len(want)
    assert out[: len(want)].tobytes().hex(" ") == want.hex(" ")


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 12345])
def test_the_table_of_sizes_is_right(n: int) -> None:
    assert "16 + n / 8, rounded up" in PAGE
    assert compll.compile("onebit", "interp").max_bytes(n) == 16 + -(-n // 8)
    for w in range(1, 9):
        assert compll.compile("terngrad", "interp", bitwidth=w).max_bytes(n) == 16 + -(-n * w // 8)

    def up(size: int, to: int = 16) -> int:
        return -(-size // to) * to

    few, fewer = math.ceil(np.float32(0.01) * np.float32(n)), math.ceil(np.float32(0.001) * np.float32(n))
    bounded = min(n, 2 * few)
    sizes = {
        "adacomp": 16 + up(4 * n) + -(-n // 8),
        "bf16": 2 * n,
        "blocksign": up(4 * -(-n // 256)) + -(-n // 8),
        "dgc": 16 + up(4 * min(n, 2 * fewer)) + 4 * min(n, 2 * fewer),
        "dithering": up(up(4 * -(-n // 512)) + -(-3 * n // 8)) + -(-n // 8),
        "dynamic8": up(4 * -(-n // 256)) + n,
        "efsignsgd": 16 + -(-n // 8),
        "fp16": 2 * n,
        "fp8": up(4 * -(-n // 256)) + n,
        "fp8e5m2": up(4 * -(-n // 256)) + n,
        "graddrop": 16 + up(4 * bounded) + 4 * bounded,
        "hadamard4": up(4 * -(-up(n, 32) // 128)) + up(n, 32) // 2,
        "identity": 4 * n,
        "int4": up(4 * -(-n // 128)) + -(-n // 2),
        "int8": up(4 * -(-n // 256)) + n,
        "int8minmax": up(up(4 * -(-n // 256)) + 4 * -(-n // 256)) + n,
        "mxfp4": up(-(-n // 32)) + -(-n // 2),
        "mxfp8": up(-(-n // 32)) + n,
        "natural": up(n) + -(-n // 8),
        "nvfp4": up(16 + -(-n // 16)) + -(-n // 2),
        "randomk": 4 * few,
        "sidco": 16 + up(4 * bounded) + 4 * bounded,
        "signsgd": 16 + -(-n // 8),
        "tbq": -(-n // 4),
        "threshold": 16 + up(4 * n) + 4 * n,
        "topk": up(4 * few) + 4 * few,
    }
    assert {*sizes, "onebit", "qsgd", "terngrad"} == set(compll.algorithms())
    assert {name: compll.compile(name, "interp").max_bytes(n) for name in sizes} == sizes
    assert all(f"`{name}`" in PAGE for name in compll.algorithms())
