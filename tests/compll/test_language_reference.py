"""grammar/language.md: every program compiles, every value is computed, every message is the compiler's."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from compll_cases import write

from compll import driver
from compll.backends import Call
from compll.backends.interp import interpret
from compll.check import check, header
from compll.check.expressions import CALLED, OPERATORS
from compll.check.signature import DECLARED, RESERVED
from compll.codec import CompileError, compile
from compll.errors import render_all
from compll.ops import COMBINES, FUNCTIONS, OPS
from compll.parse import parse
from compll.payload import extents, most_counts, read_counts, total_bytes
from compll.types import NAMED, from_bytes

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "grammar" / "language.md").read_text("utf-8")
PROGRAMS = re.findall(r"```pse\n(.*?)```\n(?:```(error|warning)\n(.*?)```)?", TEXT, re.DOTALL)
VALUES = re.findall(r"```values\n(.*?)```", TEXT, re.DOTALL)
WRONG = re.findall(
    r"^(.+)\n((?:  error: .+\n)+)", "".join(re.findall(r"```wrong\n(.*?)```", TEXT, re.DOTALL)), re.M
)
GRADIENT = np.array([3, -1, 0.5, -2], np.float32)


def name_of(program: str) -> str:
    match = re.search(r"void (\w+?)(?:Encode|Decode)\(", program)
    assert match is not None
    return match[1].lower()


def test_the_page_has_examples_and_wrong_examples() -> None:
    assert len(PROGRAMS) >= 13
    assert [kind for _, kind, _ in PROGRAMS].count("error") >= 2
    assert [kind for _, kind, _ in PROGRAMS].count("warning") == 1
    assert len(VALUES) >= 8
    assert len(WRONG) >= 40
    assert len(WRONG) == TEXT.count("\n  error: ")


@pytest.mark.parametrize(("program", "kind", "message"), PROGRAMS, ids=[name_of(p) for p, *_ in PROGRAMS])
def test_program(program: str, kind: str, message: str, tmp_path: Path) -> None:
    file = f"{name_of(program)}.pse"
    sources = {file: program}
    if kind == "error":
        with pytest.raises(CompileError) as caught:
            check([parse(program, file)], sources, {})
        assert str(caught.value) == message.rstrip("\n")
        return
    tree = parse(program, file)
    checked = check([tree], sources, {})
    assert render_all(checked.warnings, sources) == message.rstrip("\n")
    head = header([tree], sources)
    if head.has_encode and head.has_decode:
        path = tmp_path / file
        path.write_text(program, "utf-8")
        codec = compile(path, backend="interp")
        grad = np.linspace(-1, 1, 3001, dtype=np.float32)
        state = codec.new_state(len(grad)) if codec.info.stateful else None
        out = codec.decode(codec.encode(grad, seed=1, state=state), len(grad))
        kept = out != 0 if codec.info.sparse else np.ones(len(out), bool)
        assert kept.any()
        assert np.corrcoef(grad[kept], out[kept])[0, 1] > 0.8


def value(before: str, expression: str) -> np.ndarray:
    """Return what an expression is, as the last field of a payload."""
    body = f"{before}compressed = concat({expression});"
    text = f"void ValueEncode(float* gradient, uint8* compressed) {{\n{body}\n}}\n"
    encode = driver.check_files([write(text)], {})[0].encode
    assert encode is not None
    n = len(GRADIENT)
    room = total_bytes(extents(encode.layout, n, {}, most_counts(encode, n, {})))
    raw = np.zeros(room, np.uint8)
    call = Call(n, GRADIENT, raw, seed=1)
    assert interpret(encode, call, {}).status == 0
    last = extents(encode.layout, n, {}, read_counts(encode, raw, n, {}))[-1]
    found = from_bytes(raw[last.offset : last.offset + last.size], last.elem, last.count or 1)
    return found if last.count is not None else found[0]


def written(text: str) -> np.ndarray:
    entries = [x.strip() for x in text.strip("{} ").split(",") if x.strip()]
    numbers = [{"true": 1.0, "false": 0.0}.get(x) if x in ("true", "false") else float(x) for x in entries]
    return np.array(numbers) if text.startswith("{") else np.array(numbers)[0]


def values() -> list[tuple[str, str, str]]:
    """Return (declarations before it, expression, its value) for each line of the small examples."""
    found = []
    for block in VALUES:
        before = ""
        for line in block.splitlines():
            expression, arrow, result = line.rpartition(" -> ")
            if arrow and not line.endswith(";"):
                found.append((before, expression.strip(), result.strip()))
            else:
                before += line + "\n"
    return found


@pytest.mark.parametrize(("before", "expression", "result"), values(), ids=[e for _, e, _ in values()])
def test_value(before: str, expression: str, result: str) -> None:
    found, want = value(before, expression), written(result)
    assert found.shape == want.shape
    assert np.array_equal(found, want.astype(found.dtype), equal_nan=found.dtype.kind == "f")


@pytest.mark.parametrize(("code", "messages"), WRONG, ids=[code for code, _ in WRONG])
def test_wrong_line(code: str, messages: str) -> None:
    end = "" if "compressed =" in code else "compressed = concat(gradient);"
    text = f"""
void WrongEncode(float* gradient, uint8* compressed, state float* kept, shared uint64 key) {{ {code} {end} }}
void WrongDecode(uint8* compressed, float* gradient) {{ extract(compressed, gradient); }}
"""
    with pytest.raises(CompileError) as caught:
        driver.check_files([write(text)], {})
    assert [d.message for d in caught.value.diagnostics] == re.findall(r"  error: (.+)\n", messages)


def test_all_that_the_checker_accepts_is_on_the_page() -> None:
    spoken = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    words = set(re.findall(r"[\w]+|[^\w\s]+", " ".join(re.findall(r"`([^`]+)`", spoken)).replace("\\|", "|")))
    spelled = {"neg": "-", "select": "?", "float_bits": "bitcast", "bits_float": "bitcast"}
    names = {spelled.get(op, op) for op in OPS} | {str(t) for t in NAMED} | {*FUNCTIONS, *COMBINES}
    names |= {*OPERATORS, *CALLED, *DECLARED, *RESERVED}
    grammar = (ROOT / "grammar" / "pse.lark").read_text("utf-8")
    names |= set(re.findall(r"^[A-Z_]+\.2: /([a-z_]+)\\b/$", grammar, re.MULTILINE))
    assert {"param", "lambda_func", "else"} <= names
    assert names - words == set()
