"""grammar/language.md: every example compiles, and every message is the one that the compiler prints."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from compll.check import check, header
from compll.codec import CompileError, compile
from compll.errors import render_all
from compll.parse import parse

TEXT = (Path(__file__).parents[2] / "grammar" / "language.md").read_text("utf-8")
BLOCKS = re.findall(r"```pse\n(.*?)```\n(?:```(error|warning)\n(.*?)```)?", TEXT, re.DOTALL)


def name_of(program: str) -> str:
    match = re.search(r"void (\w+?)(?:Encode|Decode)\(", program)
    assert match is not None
    return match[1].lower()


def test_the_page_has_examples_and_wrong_examples() -> None:
    assert len(BLOCKS) >= 9
    assert [kind for _, kind, _ in BLOCKS].count("error") >= 3
    assert [kind for _, kind, _ in BLOCKS].count("warning") == 1


@pytest.mark.parametrize(("program", "kind", "message"), BLOCKS, ids=[name_of(p) for p, *_ in BLOCKS])
def test_example(program: str, kind: str, message: str, tmp_path: Path) -> None:
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
