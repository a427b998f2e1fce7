"""docs/casync.md shows what is: its pictures are drawn, its example and its topology run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from loopback_jobs import random_steps, run_job, same_bits, spec_of
from typer.testing import CliRunner

import casync.topologies
import compll
from casync.choice import CodecError, check_codec
from casync.cli import app
from casync.spec import Op
from casync.topologies import names, topology
from casync.verify import verify

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "casync.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


CONSOLE = [block.partition("\n") for block in blocks("console")]
EXAMPLE, CHAIN = blocks("python")


@pytest.fixture
def chain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The topology of the page, as a file among the others."""
    (tmp_path / "chain.py").write_text(CHAIN)
    monkeypatch.setattr(casync.topologies, "__path__", [*casync.topologies.__path__, str(tmp_path)])
    yield
    sys.modules.pop("casync.topologies.chain", None)


def test_every_topology_has_its_picture() -> None:
    assert {command.split()[3] for command, _, _ in CONSOLE} == {*names(), "chain"}


@pytest.mark.usefixtures("chain")
@pytest.mark.parametrize(("command", "_", "picture"), CONSOLE, ids=[command for command, _, _ in CONSOLE])
def test_pictures_are_what_casync_show_draws(command: str, _: str, picture: str) -> None:
    program, *arguments = command.removeprefix("$ ").split()
    drawn = CliRunner().invoke(app, arguments)
    assert (program, drawn.exit_code) == ("casync", 0)
    lines = [line.rstrip() for line in drawn.stdout.splitlines()]
    shown = picture.splitlines()
    assert lines[: len(shown)] == shown


def test_the_example_prints_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    exec(compile(EXAMPLE, "docs/casync.md", "exec"), {})
    assert capsys.readouterr().out == blocks("text")[0]


@pytest.mark.usefixtures("chain")
def test_the_page_s_topology_is_right_runs_and_asks_for_a_hop() -> None:
    module = topology("chain")
    for nranks in range(1, 10):
        for partitions in range(1, nranks + 2):
            verify(
                module.schedule(nranks, [module.owner(p, nranks) for p in range(partitions)], ()), partitions
            )
    shapes = {"weight": (50, 200)}
    steps = random_steps(np.random.default_rng(0), shapes, 3, 1)
    for rank in steps[0]:
        rank["weight"] = np.round(100 * rank["weight"])
    spec = spec_of(shapes, compll.compile("identity"), "chain", 3, op=Op.SUM)
    total = sum(rank["weight"] for rank in steps[0])
    assert all(same_bits(ran.results[0]["weight"], total) for ran in run_job(spec, steps))
    with pytest.raises(CodecError, match="topology chain: it has no hop"):
        check_codec(compll.compile("topk"), "chain")


def test_the_refusal_on_the_page_is_the_one_that_is_raised() -> None:
    with pytest.raises(CodecError) as error:
        check_codec(compll.compile("topk"), "ring")
    assert str(error.value) in re.sub(r"\s+", " ", PAGE)
