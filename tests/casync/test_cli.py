"""The command line draws schedules as their topologies' comments do, and measures."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typer.testing import CliRunner

from casync.cli import app

if TYPE_CHECKING:
    from pathlib import Path


def words(text: str) -> list[list[str]]:
    return [line.split() for line in text.strip().splitlines()]


def test_show_draws_the_ring() -> None:
    result = CliRunner().invoke(app, ["show", "ring", "-n", "3"])
    assert result.exit_code == 0
    assert words(result.stdout)[2:5] == [
        ["0", "E", ">1", "<2", ">1", "D"],
        ["1", "<0", "H", ">2", "<0", "D"],
        ["2", "<1", "H*", ">0", "D"],
    ]
    assert "3 ranks, 1 partitions: 4 messages, 3 encodes, 5 decodes" in result.stdout


def test_show_draws_the_parameter_server() -> None:
    result = CliRunner().invoke(app, ["show", "ps", "-n", "3", "-k", "2"])
    assert words(result.stdout)[2:5] == [
        ["0", "M", "<1", "<2", "M", "M", "E*", ">1", ">2", "D"],
        ["1", "E", ">0", "<0", "D"],
        ["2", "E", ">0", "<0", "D"],
    ]
    assert "partition 1" in result.stdout


def test_show_draws_nodes() -> None:
    result = CliRunner().invoke(app, ["show", "hierarchical", "-n", "4", "--per-node", "2"])
    assert words(result.stdout)[2:6] == [
        ["0", "M", "<1", "M", "<2", "M", "E*", ">2", ">1", "D"],
        ["1", "P", ">0", "<0", "D"],
        ["2", "M", "<3", "M", "E", ">0", "<0", ">3", "D"],
        ["3", "P", ">2", "<2", "D"],
    ]
    assert "6 messages, 2 encodes, 5 decodes" in result.stdout
    alone = CliRunner().invoke(app, ["show", "hierarchical", "-n", "4", "--per-node", "1"])
    assert "6 messages, 4 encodes, 7 decodes" in alone.stdout  # as many as ps has


def test_show_draws_sums_that_no_rank_encodes() -> None:
    result = CliRunner().invoke(app, ["show", "allgather", "-n", "3"])
    assert words(result.stdout)[2] == ["0", "E", ">1", ">2", "M", "<2", "<1", "M", "M", "D*"]
    result = CliRunner().invoke(app, ["show", "direct", "-n", "3"])
    assert words(result.stdout)[2] == ["0", "E", "S", "<1", "<2", "S", "S", "R*", ">1", ">2", "D"]


def test_an_unknown_topology_is_a_clear_error() -> None:
    result = CliRunner().invoke(app, ["show", "star"])
    assert result.exit_code == 2
    assert "unknown topology 'star'" in result.output


def test_an_unknown_transport_is_a_clear_error() -> None:
    result = CliRunner().invoke(app, ["bench", "--transport", "pigeon"])
    assert result.exit_code == 2
    assert "no transport 'pigeon'" in result.output


def test_bench_measures_and_writes_only_where_told(tmp_path: Path) -> None:
    page = tmp_path / "runtime.md"
    result = CliRunner().invoke(
        app, ["bench", "--steps", "2", "--transport", "loopback", "--output", str(page)]
    )
    assert result.exit_code == 0, result.output
    rows = [line.split("|")[1:-1] for line in page.read_text().splitlines() if line.startswith("| loopback")]
    # 50 gradients in one partition each: 8 tasks in a ring of two ranks, 10 in ps
    assert [(row[1].strip(), row[2].strip(), int(row[5])) for row in rows] == [
        ("ring", "none", 400),
        ("ring", "onebit", 400),
        ("ps", "onebit", 500),
    ]
