"""Every example of docs/wire-format.md, on every backend, and its table of sizes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from compll_cases import write

import compll
from compll import driver
from compll.backends import Call

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
    if "filter" in program and backend != "interp":
        with pytest.raises(compll.BackendError, match="interp"):
            driver.build(checked, backend)
        return
    want = bytes.fromhex(payload.replace("|", ""))
    out = np.full(len(want), 0xAA, np.uint8)
    (outcome,) = driver.build(checked, backend).run("encode", [Call(len(g), g, out)], {}, 1)
    assert outcome.length == len(want)
    assert out.tobytes().hex(" ") == want.hex(" ")


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 12345])
def test_the_table_of_sizes_is_right(n: int) -> None:
    assert "16 + n / 8, rounded up" in PAGE
    assert compll.compile("onebit", "interp").max_bytes(n) == 16 + -(-n // 8)
    for w in range(1, 9):
        assert compll.compile("terngrad", "interp", bitwidth=w).max_bytes(n) == 16 + -(-n * w // 8)
    scales = -(-4 * -(-n // 256) // 16) * 16
    assert compll.compile("int8", "interp").max_bytes(n) == scales + n
