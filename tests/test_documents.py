"""README and CONTRIBUTING say what is true: their paths exist, their commands and examples run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()
ROWS = re.findall(r"^\| ([^|]+) \| `([^`|]+)` \| ([^|]+) \|$", CONTRIBUTING, re.MULTILINE)


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def environment() -> dict[str, str]:
    return {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}


def test_table_of_changes_was_found() -> None:
    table = CONTRIBUTING.partition("## Where a change goes")[2].partition("## ")[0]
    lines = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(ROWS) == len(lines) >= 10


@pytest.mark.parametrize(("change", "place", "rest"), ROWS, ids=[row[0] for row in ROWS])
def test_every_place_for_a_change_exists(change: str, place: str, rest: str) -> None:
    for path in [
        place,
        *(name for name in re.findall(r"`([^`]+)`", rest) if re.search(r"/|\.(py|md|toml)$", name)),
    ]:
        assert (ROOT / path).exists(), f"{change}: {path}"


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "docs/design.md", "docs/tools.md", "docs/casync.md"]
)
def test_links_and_paths_lead_somewhere(name: str) -> None:
    page = ROOT / name
    text = page.read_text()
    targets = [page.parent / link for link in re.findall(r"\]\(([^)#:]+)\)", text)]
    roots = "compll|casync|secopa|grammar|templates|tests|scripts|examples|benchmarks|generated|docs"
    targets += [ROOT / path for path in re.findall(rf"`((?:{roots})/[\w./-]*)`", text)]
    assert targets
    assert [str(target) for target in targets if not target.exists()] == []


def test_make_knows_the_targets_that_the_pages_name() -> None:
    named = set(re.findall(r"(?:`|^    )make ([a-z-]+)", README + CONTRIBUTING, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test", "test-all", "setup", "lint", "help"} <= named
    assert all(re.search(rf"^{target}:.*## ", makefile, re.MULTILINE) for target in named)


def test_compressor_of_ones_own_trains_as_the_readme_says(tmp_path: Path) -> None:
    (program,), (script,), (shell,) = (blocks(README, language) for language in ("c", "python", "sh"))
    assert "scaledsign.pse" in shell and len(program.splitlines()) == 10
    (tmp_path / "scaledsign.pse").write_text(program)
    (tmp_path / "train.py").write_text(script)
    commands = [line for line in shell.splitlines() if not line.startswith("source ")]
    assert len(commands) == 2
    for command in commands:
        done = subprocess.run(
            command,
            shell=True,
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    found = re.search(r"loss ([\d.]+), ([\d.]+) times fewer bytes", done.stdout)
    assert found, done.stdout
    assert float(found[1]) < 1  # from 8 before the first step
    assert float(found[2]) > 10


@pytest.mark.parametrize("command", blocks(README, "bash")[0].splitlines())
def test_commands_that_look_inside_run(command: str) -> None:
    done = subprocess.run(command, shell=True, env=environment(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
