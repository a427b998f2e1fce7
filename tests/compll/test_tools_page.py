"""docs/tools.md lists the examples that `--help` shows, in this order, and every one of them works."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import compll
from compll.cli import app
from compll.cli.examples import EXAMPLES, EXIT_CODES

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "tools.md").read_text("utf-8")
BLOCKS = re.findall(r"^```bash\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
LINES = [line.partition("#") for block in BLOCKS for line in block.splitlines()]
COMMANDS = [(command.strip(), what.strip()) for command, _, what in LINES]
RUN = [command for command, _ in COMMANDS if not command.startswith("compll generate")]  # test_generate does


def test_the_page_lists_the_examples_of_the_help_and_the_exit_codes() -> None:
    assert sorted(COMMANDS) == sorted(example for examples in EXAMPLES.values() for example in examples)
    assert all(f"- {code}: {what}" in PAGE for code, what in EXIT_CODES)


def test_every_example_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = compll.algorithms()["terngrad"].read_text("utf-8")
    head, decode = text.split("\n\nvoid TernGradDecode")
    Path("TernGradEncode.pse").write_text(head)
    Path("TernGradDecode.pse").write_text("void TernGradDecode" + decode)
    for command in RUN:
        done = CliRunner().invoke(app, shlex.split(command)[1:])
        assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception}"
    assert {p.name for p in tmp_path.iterdir()} >= {"mine.pse", "picky.pse", "mine.png", "out"}
