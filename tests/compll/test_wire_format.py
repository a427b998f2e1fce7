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
        "dgc": 16 + up(4 * min(n, 2 * fewer)) + 4 * min(n, 2 * fewer),
        "fp8": up(4 * -(-n // 256)) + n,
        "graddrop": 16 + up(4 * bounded) + 4 * bounded,
        "int4": up(4 * -(-n // 128)) + -(-n // 2),
        "int8": up(4 * -(-n // 256)) + n,
        "mxfp4": up(-(-n // 32)) + -(-n // 2),
        "randomk": 4 * few,
        "sidco": 16 + up(4 * bounded) + 4 * bounded,
        "tbq": -(-n // 4),
        "topk": up(4 * few) + 4 * few,
    }
    assert {*sizes, "onebit", "qsgd", "terngrad"} == set(compll.algorithms())
    assert {name: compll.compile(name, "interp").max_bytes(n) for name in sizes} == sizes
    assert all(f"`{name}`" in PAGE for name in compll.algorithms())
